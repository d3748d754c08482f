"""Recording under Hugging Face's Trainer: ``Trainer(..., callbacks=[DynomeCallback("runs/bert", probe=...)])``."""

from __future__ import annotations

import math
import numbers
import weakref
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidArgumentError, MissingExtraError
from dynome_recorder.integrations.driver import Driver

try:
    from transformers.trainer_callback import TrainerCallback
except ImportError as error:
    raise MissingExtraError(
        'DynomeCallback needs Transformers; install it with: pip install "dynome[transformers]"'
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from dynome_recorder.capture.probe import Probe
    from dynome_recorder.recorder import Recorder

__all__ = ["DynomeCallback"]

_TIMINGS = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")


class DynomeCallback(TrainerCallback):  # type: ignore[misc]
    """Record a model while Hugging Face's ``Trainer.train`` trains it.

    Parameters
    ----------
    path
        The run directory.
    probe
        The fixed samples. A batch that is a mapping is passed as keyword arguments, labels left out; tokenised samples
        that are not padded to one length need ``collate=``.
    **options
        Arguments of `Recorder`: sites, schedule, weights, batches, reduction, ... ``batch_size`` is the trainer's where
        ``batches`` is given.

    Attributes
    ----------
    recorder
        The recorder, while training is under way.

    Notes
    -----
    A step is an optimizer step: accumulated batches are one. Metrics are what the trainer logs: loss, gradient norm and
    learning rate at its logging steps; what it evaluates belongs to the epoch where it does so at the end of one, to
    the step otherwise. Timings are left out.

    ``trainer.train(resume_from_checkpoint=...)`` goes on in the recording where the checkpoint is, in the middle of an
    epoch too: what was recorded after it is superseded. Everything up to a checkpoint is committed before it.

    After the first step the callback never raises: it stops recording and says so, unless ``strict=True``.

    The trainer does not tell its callbacks of an exception. Used as a context manager around ``trainer.train()``, the
    callback closes the recording where one leaves the block; otherwise when it is deleted, when the next training
    starts, or when the interpreter ends.

    One device, or one process per device (DDP). FSDP and DeepSpeed shard the model and are refused.

    Raises
    ------
    MissingExtraError
        On import, where Transformers is not installed.

    Examples
    --------
    ::

        callback = DynomeCallback("runs/bert", probe=Probe(train_set, size=256), sites=["*.intermediate"])
        with callback:
            Trainer(model=model, args=arguments, train_dataset=train_set, callbacks=[callback]).train()
    """

    def __init__(self, path: str | Path, *, probe: Probe, **options: Any) -> None:
        self._driver = Driver(path, {"probe": probe, **options})
        self._ended = False  # an epoch's batches are done, its evaluation is not
        # Runs at interpreter exit too, and holds no reference to the callback. A trainer that gets there was cut off.
        weakref.finalize(self, self._driver.close, SystemExit())

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, while training is under way."""
        return self._driver.recorder

    def close(self) -> None:
        """Close the recording, if one is open."""
        self._driver.close(None)

    def __enter__(self) -> Self:
        """Return the callback."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the recording."""
        self._driver.close(error)

    # From here on the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the recording where the trainer stands, checkpoint or not."""
        for name in ("fsdp", "deepspeed"):
            if getattr(args, name, None):
                raise InvalidArgumentError(
                    f"DynomeCallback records whole models, and {name} shards them; train on one device, or with DDP."
                )
        if self._driver.options.get("batches") is not None:
            size = args.per_device_train_batch_size * args.gradient_accumulation_steps
            self._driver.options.setdefault("batch_size", size)
        self._ended = False
        self._driver.open(
            given["model"],
            optimizer=getattr(given.get("optimizer"), "optimizer", given.get("optimizer")),
            completed=math.floor(state.epoch or 0),
            step=state.global_step,
            at_end=float(state.epoch or 0).is_integer(),
            way_out="go on with trainer.train(resume_from_checkpoint=True)",
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin the epoch, or go on in it."""
        with self._driver.shielded("beginning an epoch"):
            self._complete({})
            self._driver.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Note an optimizer step; commit where the trainer is about to save."""
        self._driver.step = state.global_step
        with self._driver.shielded("noting a step"):
            self._driver.after_step({})
            if control.should_save:  # set by the trainer's own callback, which runs first
                self._driver.before_checkpoint()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **given: Any) -> None:
        """Keep what the trainer logs while it trains."""
        with self._driver.shielded("keeping what was logged"):
            if logs and "loss" in logs:  # neither an evaluation's, which on_evaluate gets, nor the summary at the end
                self._driver.note(_numbers(logs))
                if not control.should_evaluate:
                    self._complete({}, flush=control.should_save)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Commit the epoch; where the trainer is about to log and to evaluate, after it has."""
        with self._driver.shielded("committing an epoch"):
            stopping = control.should_training_stop or control.should_epoch_stop
            if stopping and not float(state.epoch or 0).is_integer():
                self._driver.before_checkpoint()  # training ends inside the epoch
                return
            self._ended = True
            if not (control.should_evaluate or control.should_log):
                self._complete({}, flush=control.should_save)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **given: Any
    ) -> None:
        """Keep the metrics: of the epoch at its end, of the step inside it."""
        with self._driver.shielded("keeping what was evaluated"):
            found = _numbers(metrics or {})
            if self._ended:
                self._complete(found, flush=str(getattr(args.save_strategy, "value", args.save_strategy)) != "no")
            else:
                self._driver.note(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close the recording."""
        with self._driver.shielded("ending"):
            self._complete({})
            self._driver.close(None)

    def _complete(self, metrics: Mapping[str, Any], *, flush: bool = False) -> None:
        if not self._ended:
            return
        self._ended = False
        self._driver.after_epoch(metrics, number=self._driver.completed + 1)
        if flush:
            self._driver.before_checkpoint()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that are numbers, without the trainer's timings and its own counter of epochs."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, numbers.Real) and name != "epoch" and not name.endswith(_TIMINGS)
    }
