"""The recorder that a training loop talks to.

It owns the order of things and the promise not to harm: until the first training step every error raises; from then
on an error stops the recording, loudly, and training goes on (``strict=True`` raises instead). The parts it drives
know nothing of each other: `canary` watches one pass, `capture` runs the probe, the writer commits plain arrays (a
`Moment`), so that a writer in another thread, further streams and several ranks can take their places later.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynome_recorder.capture.parameters import copy_weights, hash_parameters
from dynome_recorder.capture.probe import Forward, Probe, call_model
from dynome_recorder.capture.probing import capture
from dynome_recorder.capture.reductions import RecordedType, check_choice, check_reductions
from dynome_recorder.description import check_plain, describe_run
from dynome_recorder.errors import FingerprintError, InvalidArgumentError, MissingExtraError
from dynome_recorder.metrics import StepMetrics, take_metric, to_numbers
from dynome_recorder.planning import Reductions, make_plan
from dynome_recorder.schedule import Schedule, check_count, check_schedule, every
from dynome_recorder.shield import Shield

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from torch import nn
    from torch.optim import Optimizer

    from dynome_recorder.plan import Plan
    from dynome_recorder.storage.commits import CommitRecord
    from dynome_recorder.storage.writer import RecordingWriter
    from dynome_recorder.tracing.sites import Pattern
    from dynome_recorder.tracing.trace import Trace

logger = logging.getLogger(__name__)


class Recorder:
    """Record a model's activations on a probe, its weights and its metrics while it trains.

    Parameters
    ----------
    path
        The run directory, made where it does not exist.
    model
        The model in training. It is left as it is: hooks are attached only while the probe runs.
    sites
        What to record, as `sites.select_sites` takes it; None: every activation module but the output's.
    probe
        The fixed samples.
    schedule, weights
        When the probe runs, and when weights are recorded (None: never).
    reduction
        How outputs with more axes than (sample, unit) become units (``"max"``, ``"tokens"``,
        ``["flatten", subset(units=64)]``, ...), for all sites or in a mapping by site name, glob or module class;
        None: convolutions are averaged over space, three axes are refused.
    dtype
        Recorded dtype of activations; ``"native"`` keeps each site's own.
    optimizer
        Described in ``run.json``; never changed.
    hyperparameters
        Plain values that describe the run: learning rate, width, seed, ...
    forward
        ``forward(model, batch)`` runs the model on one batch of the probe; None: see `Probe`. Autocast is off there
        unless ``forward`` turns it on, wherever the training loop uses it.
    strict
        True raises where the recorder would otherwise stop recording and let training go on.
    on_existing
        What to do where ``path`` holds a recording: continue it, or raise.

    Raises
    ------
    InvalidArgumentError
        For an argument of the wrong kind.
    MissingExtraError
        If torch is not installed.

    Examples
    --------
    ::

        recorder = Recorder("runs/mlp-7", model, probe=Probe(train_set, size=1000), weights=every(epochs=1))
        with recorder:
            for epoch in recorder.epochs(20):
                for x, y in loader:
                    recorder.step(loss=train_step(x, y))
                recorder.epoch(val_loss=validate())

    Notes
    -----
    Training with and without the recorder is bit-identical: random states, modes, buffers and gradients are as if it
    were not there. A snapshot costs the probe's forward passes, a copy of the sites, and the writer's compression and
    file syncs.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        *,
        probe: Probe,
        sites: Sequence[Pattern] | None = None,
        schedule: Schedule | None = None,
        weights: Schedule | None = None,
        reduction: Reductions | None = None,
        dtype: RecordedType = "native",
        optimizer: Optimizer | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        forward: Forward | None = None,
        strict: bool = False,
        on_existing: Literal["resume", "error"] = "resume",
    ) -> None:
        _check_model(model)
        if not isinstance(probe, Probe):
            raise InvalidArgumentError(
                f"probe must be a Probe, e.g. Probe(train_set, size=1000); got {type(probe).__name__}."
            )
        check_choice("dtype", dtype, RecordedType)
        check_choice("on_existing", on_existing, Literal["resume", "error"])
        check_reductions(reduction)
        self.path = Path(path).absolute()  # a loop may change the working folder
        # The probe runs the eager module: hooks that are attached to a compiled one after its first call never fire.
        self._model: nn.Module = getattr(model, "_orig_mod", model)
        self._patterns = sites
        self._probe = probe
        self._schedules = {"probe": check_schedule("schedule", schedule if schedule is not None else every(epochs=1))}
        if weights is not None:
            self._schedules["weights"] = check_schedule("weights", weights)
        self._reduction = reduction
        self._dtype = dtype
        self._optimizer = optimizer
        self._hyperparameters = {name: check_plain(name, value) for name, value in (hyperparameters or {}).items()}
        self._forward = forward if forward is not None else call_model
        self._on_existing = on_existing
        self._shield = Shield(self.path, strict=strict)
        self._writer: RecordingWriter | None = None
        self._plan: Plan | None = None
        self._metrics = StepMetrics()
        self._epoch: int | None = None  # the epoch under way, between its yield and its commit
        self._completed = 0
        self._step = 0
        self._training = False  # from the first epoch on, misplaced calls are told and ignored

    # Before training

    def plan(self, *, epochs: int = 100, steps_per_epoch: int | None = None) -> Plan:
        """Say what will be recorded and what it takes; writes nothing and leaves the model as it is.

        Parameters
        ----------
        epochs, steps_per_epoch
            Length of the run that the totals are for; schedules that count steps need both.

        Raises
        ------
        InvalidArgumentError
            If a pattern matches nothing or names what cannot be hooked, or a site needs a reduction.
        InvalidDataError
            If the model's forward pass fails on the probe.

        Notes
        -----
        Cost: loads the probe once, and runs one watched forward pass on its first batch.
        """
        return self._make_plan(epochs=epochs, steps_per_epoch=steps_per_epoch)[0]

    def __enter__(self) -> Recorder:
        """Plan, open the recording and take its lock.

        Raises
        ------
        DynomeError
            Whatever would stop the recording, before training has begun.
        """
        from dynome_recorder.storage.writer import RecordingWriter

        if self._writer is not None:
            raise InvalidArgumentError(f"{self.path}: this recorder is open already.")
        plan, trace = self._make_plan()
        description = describe_run(
            plan,
            trace,
            model=self._model,
            probe=self._probe,
            optimizer=self._optimizer,
            hyperparameters=self._hyperparameters,
        )
        self._writer = RecordingWriter.open(self.path, description, on_existing=self._on_existing)
        self._plan, self._metrics, self._shield = plan, StepMetrics(), Shield(self.path, strict=self._shield.strict)
        self._training, self._epoch = False, None
        self._shield.remove_note()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish, close and release the lock; an error of the training loop is never hidden by one of ours."""
        writer, self._writer, self._epoch = self._writer, None, None
        if writer is None:
            return
        if error is None and self.degraded is None:
            with self._guard("closing the recording"):
                writer.close()
        else:
            try:
                writer.close()
            except Exception as second:
                logger.warning("%s: could not be closed cleanly: %s", self.path, second)

    @property
    def degraded(self) -> str | None:
        """When and why recording stopped although training went on; None where it did not."""
        return self._shield.degraded

    @property
    def committed_epoch(self) -> int | None:
        """The last complete recorded epoch, or None: load its checkpoint before `epochs` starts."""
        if self._writer is not None:
            return self._writer.last_complete_epoch
        complete = [record.epoch for record in self._live_records() if record.epoch_complete]
        return complete[-1] if complete else None

    def resume_from(self, epoch: int) -> None:
        """Go back to an earlier recorded epoch: later snapshots are marked superseded, nothing is deleted.

        Call it before `epochs`, with the model as it was after that epoch.

        Raises
        ------
        InvalidArgumentError
            If the epoch is not recorded, or training is under way.
        """
        if self._training:
            raise InvalidArgumentError("resume_from must be called before the loop over epochs() starts.")
        self._opened("resume_from").rewind(epoch)

    # Training

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the epochs to train, from the first that is not recorded to ``count``; a finished run yields none.

        A fresh recording gets epoch 0, the untrained network, first. An epoch whose loop body does not call `epoch` is
        committed without metrics when the next one is asked for; leaving the loop early leaves it uncommitted.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those of the last recorded epoch.
        InvalidArgumentError
            If ``count`` is no number of epochs or the recorder is not open.
        """
        count = check_count("epochs()", count, least=0)
        committed = self._opened("epochs").last_complete_epoch
        if self.degraded is not None:
            pass  # a second loop after recording stopped: training goes on where it was
        elif committed is not None and committed >= count:
            logger.info("%s: all %d epochs are recorded", self.path, count)
            return
        elif committed is None:
            self._completed = self._step = 0
            self._opened("epochs").rewind(None)  # a repair may have lost epoch 0 and left step snapshots after it
            self._commit(epoch=0, complete=True, metrics={})
        else:
            self._continue_after(committed)
        self._training = True
        for epoch in range(self._completed + 1, count + 1):
            self._epoch = epoch
            yield epoch
            if self._epoch == epoch:
                self.epoch()

    def step(self, **metrics: Any) -> None:
        """Note that one optimizer step is done, with its metrics.

        Metrics are numbers or one-element tensors; tensors are not read before the next commit, so no step waits for a
        device.

        Runs the probe or copies weights where a schedule that counts steps says so. Cost otherwise: microseconds.
        """
        if self._epoch is None:
            self._misplaced("step")
            return
        self._step += 1
        if self.degraded is not None:
            return
        with self._guard(f"step {self._step}"):
            for name, value in self._usable(metrics).items():
                self._metrics.add(self._step, name, value)
            if any(schedule.due_step(self._step) for schedule in self._schedules.values()):
                self._commit(epoch=self._completed, complete=False, metrics={})

    def epoch(self, **metrics: Any) -> None:
        """Commit the epoch that was just trained, with its metrics; when this returns, it is on disk."""
        if self._epoch is None:
            self._misplaced("epoch")
            return
        self._completed, self._epoch = self._epoch, None
        if self.degraded is not None:
            return
        with self._guard(f"epoch {self._completed}"):
            self._commit(epoch=self._completed, complete=True, metrics=self._usable(metrics))

    def flush(self) -> None:
        """Return when everything that was committed is published, so that plain Zarr readers see it too."""
        writer = self._opened("flush")
        if self.degraded is None:
            with self._guard("flush"):
                writer.flush()

    # Parts

    def _make_plan(self, *, epochs: int = 100, steps_per_epoch: int | None = None) -> tuple[Plan, Trace]:
        return make_plan(
            self.path,
            self._model,
            patterns=self._patterns,
            probe=self._probe,
            forward=self._forward,
            reduction=self._reduction,
            dtype=self._dtype,
            schedules=self._schedules,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
        )

    def _guard(self, doing: str) -> AbstractContextManager[None]:
        return self._shield.stop_recording_on_error(doing, epoch=self._completed, step=self._step)

    def _continue_after(self, committed: int) -> None:
        """Check that the model is where the recording ended, and take up its counters."""
        writer = self._opened("epochs")
        record = writer.last
        if record is None or not record.epoch_complete:  # it was killed between step snapshots, after that epoch
            record = [one for one in self._live_records() if one.epoch_complete][-1]
        if record.parameters != hash_parameters(self._model):
            raise FingerprintError(
                f"{self.path}: the model's parameters are not those recorded after epoch {committed};"
                f" restore the checkpoint of epoch {committed} (recorder.committed_epoch) before epochs(), or go back"
                " with recorder.resume_from(epoch) to an epoch whose checkpoint you have."
            )
        writer.rewind(committed)  # supersedes step snapshots of an epoch that did not end: it is trained again
        self._completed, self._step = committed, record.step
        self._metrics = StepMetrics()  # of an epoch that was left early: it is trained again
        logger.info("%s: continues after epoch %d", self.path, committed)

    def _commit(self, *, epoch: int, complete: bool, metrics: Mapping[str, Any]) -> None:
        from dynome_recorder.storage.writer import Moment

        writer = self._opened("commit")
        due = {
            stream: schedule.due_epoch(epoch) if complete else schedule.due_step(self._step)
            for stream, schedule in self._schedules.items()
        }
        captured = None
        if due["probe"] and self._plan is not None:
            captured = capture(self._model, self._plan.sites, probe=self._probe, forward=self._forward)
        writer.commit(
            Moment(
                epoch=epoch,
                step=self._step,
                epoch_complete=complete,
                parameters=hash_parameters(self._model),
                probe=captured.activations if captured is not None else None,
                weights=copy_weights(self._model) if due.get("weights") else None,
                step_metrics=self._metrics.drain(),
                epoch_metrics=to_numbers(metrics),
                health=captured.health if captured is not None else {},
            )
        )

    def _live_records(self) -> Sequence[CommitRecord]:
        from dynome_recorder.storage.format import RUN_FILE
        from dynome_recorder.storage.manifest import read_manifest

        return read_manifest(self.path).live if (self.path / RUN_FILE).exists() else ()

    def _opened(self, method: str) -> RecordingWriter:
        if self._writer is None:
            raise InvalidArgumentError(
                f"{self.path}: {method}() needs an open recorder; use it inside `with recorder:`."
            )
        return self._writer

    def _usable(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics that can be recorded; what cannot is told once per name and left out."""
        usable = {}
        for name, value in metrics.items():
            try:
                usable[name] = take_metric(name, value)
            except Exception as error:
                if self._shield.strict:
                    raise
                self._shield.tell(f"metric {name}", f"{self.path}: {error} It is left out; training goes on.")
        return usable

    def _misplaced(self, method: str) -> None:
        text = (
            f"{self.path}: {method}() belongs in the loop `for epoch in recorder.epochs(n):`, epoch() once at its end."
        )
        if self._shield.strict or not self._training:
            raise InvalidArgumentError(text)
        self._shield.tell(method, f"{text} It is ignored; training goes on.")


def _check_model(model: Any) -> None:
    try:
        from torch import nn
    except ImportError as error:
        raise MissingExtraError('Recorder needs torch; install it with: pip install "dynome[torch]"') from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
