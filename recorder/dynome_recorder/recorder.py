"""The recorder that a training loop talks to.

It owns the order of things and the promise not to harm: until the first training step every error raises; from then
on an error stops the recording, loudly, and training goes on (``strict=True`` raises instead). The parts it drives
know nothing of each other: `trace` watches one pass, `capture` runs the probe, the writer commits plain arrays (a
`Moment`), so that a writer in another thread, further streams and several ranks can take their places later.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .capture import RecordedType, Reduction, capture, check_choice, copy_weights, hash_parameters, layout_site
from .errors import DynomeError, FingerprintError, InvalidArgumentError, MissingExtraError
from .metrics import StepMetrics, take_metric, to_numbers
from .plan import Plan, free_disk, list_unhookable, plan_weights
from .probe import Forward, Probe, call_model, to_device
from .schedule import Schedule, check_schedule, every
from .sites import Pattern, select_sites

if TYPE_CHECKING:
    from types import TracebackType

    from torch import nn
    from torch.optim import Optimizer

    from .commits import CommitRecord
    from .layout import ArraySpec
    from .run import RunDescription
    from .trace import Trace
    from .writer import RecordingWriter

logger = logging.getLogger(__name__)


class RecordingWarning(UserWarning):
    """Something was not recorded, or recording stopped; training is not affected."""


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
        How outputs with more axes than (sample, unit) become units, for all sites or per site name; None:
        convolutions are averaged over space, three axes are refused.
    dtype
        Recorded dtype of activations; ``"native"`` keeps each site's own.
    optimizer
        Described in ``run.json``; never changed.
    hyperparameters
        Plain values that describe the run: learning rate, width, seed, ...
    forward
        ``forward(model, batch)`` runs the model on one batch of the probe; None: see `Probe`.
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
        reduction: Reduction | Mapping[str, Reduction] | None = None,
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
        for chosen in reduction.values() if isinstance(reduction, Mapping) else [reduction]:
            if chosen is not None:
                check_choice("reduction", chosen, Reduction)
        self.path = Path(path)
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
        self._hyperparameters = {name: _check_plain(name, value) for name, value in (hyperparameters or {}).items()}
        self._forward = forward if forward is not None else call_model
        self._strict = strict
        self._on_existing = on_existing
        self._writer: RecordingWriter | None = None
        self._plan: Plan | None = None
        self._metrics = StepMetrics()
        self._epoch: int | None = None  # the epoch under way, between its yield and its commit
        self._completed = 0
        self._step = 0
        self._training = False  # from the first yield on, errors degrade
        self._told: set[str] = set()
        self.degraded: str | None = None

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
        return self._prepare(epochs=epochs, steps_per_epoch=steps_per_epoch)[0]

    def __enter__(self) -> Recorder:
        """Plan, open the recording and take its lock.

        Raises
        ------
        DynomeError
            Whatever would stop the recording, before training has begun.
        """
        from .writer import RecordingWriter

        if self._writer is not None:
            raise InvalidArgumentError(f"{self.path}: this recorder is open already.")
        plan, trace = self._prepare()
        self._plan = plan
        self._writer = RecordingWriter.open(self.path, self._describe(plan, trace), on_existing=self._on_existing)
        self._training, self.degraded, self._epoch = False, None, None
        self._metrics, self._told = StepMetrics(), set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish, close and release the lock; an error of the training loop is never hidden by one of ours."""
        writer, self._writer, self._epoch = self._writer, None, None
        if writer is None:
            return
        if error is None and self.degraded is None:
            with self._shielded("closing the recording"):
                writer.close()
        else:
            try:
                writer.close()
            except Exception as second:
                logger.warning("%s: could not be closed cleanly: %s", self.path, second)

    @property
    def committed_epoch(self) -> int | None:
        """The last complete epoch that is recorded: load its checkpoint before `epochs` starts. None where there is
        none."""
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
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidArgumentError(f"epochs() needs a number of epochs; got {count!r}.")
        writer = self._opened("epochs")
        committed = writer.last_complete_epoch
        if committed is not None and committed >= count:
            logger.info("%s: all %d epochs are recorded", self.path, count)
            return
        if committed is None:
            self._completed = self._step = 0
            self._commit(epoch=0, complete=True, metrics={})
        else:
            self._continue_after(committed)
        self._training = True
        for epoch in range(self._completed + 1, count + 1):
            self._epoch = epoch
            yield epoch
            if self._epoch == epoch:
                self.epoch()
        self._training = False

    def step(self, **metrics: Any) -> None:
        """Note that one optimizer step is done, with its metrics: numbers or one-element tensors, which are not read
        yet.

        Runs the probe or copies weights where a schedule that counts steps says so. Cost otherwise: microseconds.
        """
        if self._epoch is None:
            self._misplaced("step")
            return
        self._step += 1
        if self.degraded is not None:
            return
        with self._shielded(f"step {self._step}"):
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
        with self._shielded(f"epoch {self._completed}"):
            self._commit(epoch=self._completed, complete=True, metrics=self._usable(metrics))

    def flush(self) -> None:
        """Return when everything that was committed is published, so that plain Zarr readers see it too."""
        writer = self._opened("flush")
        if self.degraded is None:
            with self._shielded("flush"):
                writer.flush()

    # Parts

    def _prepare(self, *, epochs: int = 100, steps_per_epoch: int | None = None) -> tuple[Plan, Trace]:
        from .format import RUN_FILE
        from .isolation import device_of
        from .trace import trace_model

        model, probe = self._model, self._probe
        trace = trace_model(
            model,
            to_device(probe.batches()[0], device_of(model)),
            forward=self._forward,
            samples=probe.rows_per_batch()[0],
            seed=probe.seed,
        )
        calls = {(call.module, call.call): call for call in trace.calls}
        layouts = []
        sites = select_sites(model, self._patterns, trace=trace)
        self._check_reduction_names({site.name for site in sites})
        for site in sites:
            call = calls[site.module, site.call]
            if call.output_shape is None or call.output_dtype is None:
                raise InvalidArgumentError(f"sites: {site.name!r} {call.problem}.")
            layouts.append(
                layout_site(
                    site,
                    output_shape=call.output_shape[1:],
                    native_dtype=call.output_dtype,
                    reduction=self._reduction_of(site.name),
                    dtype=self._dtype,
                )
            )
        plan = Plan(
            path=self.path,
            continues=(self.path / RUN_FILE).exists(),
            sites=tuple(layouts),
            weights=plan_weights(model) if "weights" in self._schedules else (),
            samples=probe.size,
            probe=f"{probe.size} of {probe.population} samples, {'class-balanced' if probe.balanced else 'random'}",
            schedules=dict(self._schedules),
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            unhookable=list_unhookable(model, trace),
            free_bytes=free_disk(self.path),
        )
        return plan, trace

    def _reduction_of(self, name: str) -> Reduction | None:
        return self._reduction.get(name) if isinstance(self._reduction, Mapping) else self._reduction

    def _check_reduction_names(self, sites: set[str]) -> None:
        unknown = sorted(set(self._reduction) - sites) if isinstance(self._reduction, Mapping) else []
        if unknown:
            raise InvalidArgumentError(
                f"reduction: {unknown[0]!r} is no recorded site; the sites are {', '.join(map(repr, sorted(sites)))}."
            )

    def _describe(self, plan: Plan, trace: Trace) -> RunDescription:
        from .layers import describe_model
        from .run import RunDescription

        return RunDescription(
            sites={layout.site.name: _site_spec(layout, plan.samples) for layout in plan.sites},
            weights={weight.name: _weight_spec(weight) for weight in plan.weights},
            probe=self._probe.describe(),
            model=describe_model(self._model, trace.layers),
            optimizer=describe_optimizer(self._optimizer) if self._optimizer is not None else None,
            hyperparameters=self._hyperparameters,
            schedules={stream: str(schedule) for stream, schedule in self._schedules.items()},
            versions=_versions(),
        )

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
        logger.info("%s: continues after epoch %d", self.path, committed)

    def _commit(self, *, epoch: int, complete: bool, metrics: Mapping[str, Any]) -> None:
        from .writer import Moment

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
        from .format import RUN_FILE
        from .manifest import read_manifest

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
                if self._strict:
                    raise
                self._tell(f"metric {name}", f"{self.path}: {error} It is left out; training goes on.")
        return usable

    def _misplaced(self, method: str) -> None:
        text = (
            f"{self.path}: {method}() belongs in the loop `for epoch in recorder.epochs(n):`, epoch() once at its end."
        )
        if self._strict or not self._training:
            raise InvalidArgumentError(text)
        self._tell(method, f"{text} It is ignored; training goes on.")

    @contextlib.contextmanager
    def _shielded(self, doing: str) -> Iterator[None]:
        """Let training go on where recording fails: stop recording, mark the run degraded, and say so in one line."""
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            text = (
                " ".join(str(error).split()) if isinstance(error, DynomeError) else f"{type(error).__name__}: {error}"
            )
            self.degraded = f"{doing}: {text}"
            logger.debug("recording failed", exc_info=True)
            self._tell(
                "degraded",
                f"{self.path}: recording stopped at {self.degraded} Training goes on; what was committed is safe.",
            )

    def _tell(self, key: str, text: str) -> None:
        if key in self._told:
            return
        self._told.add(key)
        logger.warning("%s", text)
        # A filter that turns warnings into errors must not end a training run.
        with contextlib.suppress(RecordingWarning):
            warnings.warn(text, RecordingWarning, stacklevel=4)


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's class and the plain values of its parameter groups."""
    return {
        "class": type(optimizer).__name__,
        "groups": [
            {
                "parameters": len(group["params"]),
                **{name: value for name, item in group.items() if (value := _to_plain(item)) is not None},
            }
            for group in optimizer.param_groups
        ],
    }


def _to_plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, (bool, int, float)) for item in value):
        return list(value)
    return None


def _check_plain(name: str, value: Any) -> Any:
    """Return a hyper-parameter as JSON can hold it; numpy's and torch's scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _check_plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_check_plain(name, item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidArgumentError(
        f"hyperparameters: {name!r} must be a number, a text, or a list or mapping of them; got {type(value).__name__}."
    )


def _check_model(model: Any) -> None:
    try:
        from torch import nn
    except ImportError as error:
        raise MissingExtraError('Recorder needs torch; install it with: pip install "dynome[torch]"') from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}.")


def _site_spec(layout: Any, samples: int) -> ArraySpec:
    from .layout import ArraySpec

    site = layout.site
    return ArraySpec(
        shape=(samples, layout.units),
        dtype=layout.dtype,
        dimensions=("sample", "unit"),
        attributes={
            "module": site.module,
            "call": site.call,
            "type": site.type,
            "aliases": list(site.aliases),
            "output_shape": list(layout.output_shape),
            "reduction": layout.reduction,
            "native_dtype": layout.native_dtype,
        },
    )


def _weight_spec(weight: Any) -> ArraySpec:
    from .layout import ArraySpec

    return ArraySpec(
        shape=weight.shape,
        dtype=weight.dtype,
        dimensions=tuple(f"axis_{axis}" for axis in range(len(weight.shape))),
        attributes={"aliases": list(weight.aliases)},
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("dynome", "torch", "numpy", "zarr"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
