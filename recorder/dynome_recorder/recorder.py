"""The recorder that a training loop talks to.

It owns the promise not to harm: until the first training step every error raises; from then on an error stops the
recording, loudly, and training goes on (``strict=True`` raises instead). What is recorded when is `session`'s matter.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from dynome_recorder.distributed import find_place, together
from dynome_recorder.errors import FingerprintError, InvalidArgumentError, InvalidDataError
from dynome_recorder.metrics import take_metrics
from dynome_recorder.schedule import check_count
from dynome_recorder.settings import check_settings
from dynome_recorder.shield import Blame, Shield
from dynome_recorder.termination import ended_by_sigterm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import torch
    from torch import nn
    from torch.optim import Optimizer

    from dynome_recorder.capture.probe import Forward, Probe
    from dynome_recorder.capture.reductions import RecordedType
    from dynome_recorder.distributed import Place
    from dynome_recorder.plan import Plan
    from dynome_recorder.representation import Display
    from dynome_recorder.schedule import Schedule
    from dynome_recorder.session import Session, Statistics
    from dynome_recorder.settings import OnExisting, OnFull
    from dynome_recorder.tracing.sites import Pattern
    from dynome_recorder.tracing.trace import Trace

logger = logging.getLogger(__name__)

_SHOWN = ("blocked_seconds", "waited_seconds", "writer_cpu_seconds", "peak_buffer_bytes")


class Recorder:
    """Record a model's activations, weights and metrics while it trains.

    Parameters
    ----------
    path
        The run directory, made where it does not exist. Every process of a distributed run gives the same.
    model
        The model in training, compiled or wrapped for distributed training or not. It is left as it is: hooks are
        attached only while the probe runs, and for a recorded batch.
    sites
        What to record, as `select_sites` takes it; None: every activation module but the output's.
    probe
        The fixed samples.
    schedule, weights
        When the probe runs, and when weights are recorded (None: never).
    batches
        When the training batch's own activations are recorded, in steps; None: never.
    batch_size
        Samples that one process puts through the model between two optimizer steps, accumulated batches together;
        needed with ``batches``. A smaller batch leaves the rest of its rows empty.
    gradients
        Record the gradient of the loss by every site's output too, in the batches stream.
    reduction
        How outputs with more axes than (sample, unit) become units: for all sites, or per site in a mapping; None:
        convolutions are averaged over space, three axes are refused.
    dtype
        Recorded dtype of activations; ``"native"`` keeps each site's own.
    autocast
        The dtype under which the training loop autocasts; the probe runs under the same. None: without.
    optimizer
        Described in ``run.json``; never changed.
    hyperparameters
        Plain values that describe the run: learning rate, width, seed, ...
    forward
        ``forward(model, batch)`` runs the model on one batch of the probe; None: see `Probe`.
    on_full
        What happens when a snapshot is due and the buffers are full, because the disk is slower than the schedule:
        ``"block"`` waits; ``"skip"`` leaves the snapshot out; ``"thin"`` also takes only every 2nd, 4th, ... due
        snapshot of that stream until the writer has caught up. What is left out is recorded as a gap.
    buffer_bytes
        Most bytes of snapshots that wait for the disk. A crash loses at most these.
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
    Training with and without the recorder is bit-identical: random states, modes, buffers, gradients and what modules
    keep between passes are as if it were not there. What a pass leaves elsewhere, in objects of other classes or
    through hooks of the user's, the probe's passes leave too, unless it is done only ``if self.training:``.

    A snapshot costs the training thread the probe's forward passes and one copy of the sites; a thread of the
    recorder's compresses, syncs and commits. SIGTERM ends the loop by SystemExit, and what waits is committed.
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
        batches: Schedule | None = None,
        batch_size: int | None = None,
        gradients: bool = False,
        reduction: Any = None,
        dtype: RecordedType = "native",
        autocast: torch.dtype | None = None,
        optimizer: Optimizer | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        forward: Forward | None = None,
        on_full: OnFull = "block",
        buffer_bytes: int = 2**28,
        strict: bool = False,
        on_existing: OnExisting = "resume",
    ) -> None:
        self._settings = check_settings(
            path,
            model,
            sites=sites,
            probe=probe,
            schedule=schedule,
            weights=weights,
            batches=batches,
            batch_size=batch_size,
            gradients=gradients,
            reduction=reduction,
            dtype=dtype,
            autocast=autocast,
            optimizer=optimizer,
            hyperparameters=hyperparameters,
            forward=forward,
            on_full=on_full,
            buffer_bytes=buffer_bytes,
            strict=strict,
            on_existing=on_existing,
        )
        self.path = self._settings.path
        self._shield = Shield(self.path)
        self._session: Session | None = None
        self._last_statistics: Statistics | None = None
        self._signals = contextlib.ExitStack()
        self._epoch: int | None = None  # the epoch under way, between its begin and its commit
        self._training = False  # whether start() was called
        self._asked = False  # whether epochs() or start() was: from then on, misplaced calls are told and ignored
        self._stepped = False

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
            If a pattern matches nothing or names what cannot be hooked, a site needs a reduction, or a length is none.
        InvalidDataError
            If the model's forward pass fails on the probe.

        Notes
        -----
        Cost: loads the probe once, and runs a few forward passes on its first batch.
        """
        epochs = check_count("plan(): epochs", epochs, least=0)
        if steps_per_epoch is not None:
            steps_per_epoch = check_count("plan(): steps_per_epoch", steps_per_epoch, least=1)
        return self._make_plan(find_place(), epochs=epochs, steps_per_epoch=steps_per_epoch, measure=True)[0]

    def __enter__(self) -> Recorder:
        """Plan, open the recording and take its lock.

        Raises
        ------
        DynomeError
            Whatever would stop the recording, before training has begun.
        """
        from dynome_recorder.description import describe_run
        from dynome_recorder.session import Session

        if self._session is not None:
            raise InvalidArgumentError(f"{self.path}: this recorder is open already.")
        place = find_place()
        plan, trace = together(place, lambda: self._make_plan(place))
        settings = self._settings
        description = describe_run(
            plan,
            trace,
            model=settings.model,
            probe=settings.probe,
            optimizer=settings.optimizer,
            hyperparameters=settings.hyperparameters,
        )
        self._shield = Shield(self.path)
        self._session = Session(settings, plan, description, place)
        self._training, self._asked, self._stepped, self._epoch = False, False, False, None
        self._shield.remove_note()
        self._signals.enter_context(ended_by_sigterm())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit what waits, publish, close and release the lock; an error of the training loop is never hidden."""
        session, self._session = self._session, None
        epoch, self._epoch = self._epoch, None
        if session is None:
            return
        try:
            if error is None and self.degraded is None:
                if session.has_more:
                    self._tell_of_the_rest(epoch, session)
                with self._guard("closing the recording", session):
                    session.close()
            else:
                try:
                    session.close()
                except Exception as second:
                    # That recording stopped was told already, in one line.
                    level = logging.WARNING if self.degraded is None else logging.DEBUG
                    logger.log(level, "%s: could not be closed cleanly: %s", self.path, second)
        finally:
            self._last_statistics = session.statistics
            self._signals.close()

    @property
    def degraded(self) -> str | None:
        """When and why recording stopped although training went on; None where it did not."""
        return self._shield.degraded

    @property
    def statistics(self) -> Statistics | None:
        """What recording has cost this process since it was opened last; None before that."""
        return self._session.statistics if self._session is not None else self._last_statistics

    @property
    def committed_epoch(self) -> int | None:
        """The last complete recorded epoch, or None: load its checkpoint before training starts."""
        if self._session is not None:
            return self._session.committed_epoch
        from dynome_recorder.storage.format import RUN_FILE
        from dynome_recorder.storage.manifest import read_manifest

        live = read_manifest(self.path).live if (self.path / RUN_FILE).exists() else ()
        complete = [record.epoch for record in live if record.epoch_complete]
        return complete[-1] if complete else None

    def resume_from(self, epoch: int, *, step: int | None = None) -> None:
        """Say which epoch the restored checkpoint is of, where it is not `committed_epoch`.

        Call it before training, with the model as it was after that epoch, on every rank. Going back marks later
        snapshots superseded and deletes nothing. Going on past the last recorded epoch (a crash took what was not
        committed yet) records the epochs between as gaps; ``step`` then says how many optimizer steps were done.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those of the epoch; nothing is superseded then.
        InvalidArgumentError
            If the epoch is not recorded, a gap is asked for without its step, or training is under way.
        """
        if self._training:
            raise InvalidArgumentError("resume_from must be called before the loop over epochs() starts, or start().")
        self._opened("resume_from").go_to(check_count("resume_from()", epoch, least=0), step=step)

    # Training

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the epochs to train, from the first that is not recorded to ``count``; a finished run yields none.

        A fresh recording gets epoch 0, the untrained network, first. An epoch whose loop body does not call `epoch` is
        committed without metrics when the next one is asked for; leaving the loop early leaves it uncommitted, which is
        told.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those of the last recorded epoch.
        InvalidArgumentError
            If ``count`` is no number of epochs or the recorder is not open.
        """
        count = check_count("epochs()", count, least=0)
        session = self._opened("epochs")
        if self.degraded is not None:
            completed = session.completed  # a second loop after recording stopped: training goes on where it was
        elif session.last_complete_epoch is not None and session.last_complete_epoch >= count:
            logger.info("%s: all %d epochs are recorded", self.path, count)
            self._asked = True
            return
        else:
            completed = self.start()
        for epoch in range(completed + 1, count + 1):
            self.begin(epoch)
            yield epoch
            if self._epoch == epoch:
                self.epoch()

    def start(self, *, epoch: int | None = None, step: int | None = None) -> int:
        """Make ready to train: check that the model is where the recording ends; a fresh one gets epoch 0.

        For training loops that count their epochs themselves; `epochs` calls it. Then call `begin`, `step` and `epoch`.

        Parameters
        ----------
        epoch, step
            Where training goes on, if that is not the last recorded epoch: completed epochs and optimizer steps, as at
            a checkpoint that was written within an epoch (see `mark`).

        Returns
        -------
        int
            The last completed epoch: 0 in a fresh recording.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those of the last recorded epoch.
        InvalidArgumentError
            If the recorder is not open.
        """
        session = self._opened("start")
        epoch = None if epoch is None else check_count("start(): epoch", epoch, least=0)
        step = None if step is None else check_count("start(): step", step, least=0)
        if self.degraded is not None:
            return session.completed
        if self._training:  # a second loop: what goes wrong here must not end the first one's work
            with self._guard("start()", session, raising=(FingerprintError, InvalidArgumentError)):
                session.start(epoch=epoch, step=step)
        else:
            session.start(epoch=epoch, step=step)
        self._training = self._asked = True
        return session.completed

    def begin(self, epoch: int) -> None:
        """Say that an epoch is now trained: the one after the last completed one."""
        session = self._opened("begin")
        if not self._training or epoch != session.completed + 1:
            self._misplaced(
                f"begin({epoch})", f"needs start() before it, and the epochs in order: {session.completed + 1} is next"
            )
            return
        self._epoch = epoch

    def step(self, *, sample_ids: Any = None, **metrics: Any) -> None:
        """Note that one optimizer step is done, with its metrics.

        Metrics are numbers or one-element tensors; tensors are read by the writer thread, so no step waits for a
        device.

        Runs the probe, or hands over the batch and the weights, where a schedule that counts steps says so. Cost
        otherwise: microseconds.

        Parameters
        ----------
        sample_ids
            Whole numbers, one per sample of the batch, that say which samples these were; kept with a recorded batch.

        Raises
        ------
        InvalidDataError
            If the batch of the first step is due and cannot be recorded; later ones stop the recording instead.
        InvalidArgumentError
            Before the loop over `epochs`.
        """
        session = self._session
        if self._epoch is None or session is None:
            self._misplaced("step()", "belongs in the loop `for epoch in recorder.epochs(n):`")
            return
        if self._shield.degraded is not None:
            session.step += 1
            return
        # No context manager here: what every step pays is counted in microseconds.
        started = time.perf_counter()
        try:
            refused = session.end_step(metrics, sample_ids)
            if refused:
                self._leave_out(refused)
            self._stepped = True
        except Exception as error:
            # The first recorded batch is the canary of the stream: a site that cannot be recorded is told as an error.
            raising = () if self._stepped else (InvalidDataError,)
            self._stop_recording(error, f"step {session.step}", session, raising=raising)
        finally:
            session.blocked_seconds += time.perf_counter() - started

    def epoch(self, **metrics: Any) -> None:
        """Hand over the epoch that was just trained, with its metrics, to be committed; `flush` waits for that."""
        session = self._session
        if self._epoch is None or session is None:
            self._misplaced("epoch()", "belongs in the loop `for epoch in recorder.epochs(n):`, once, at its end")
            return
        session.completed, self._epoch = self._epoch, None
        if self.degraded is not None:
            return
        with self._guard(f"epoch {session.completed}", session):
            taken, refused = take_metrics(metrics)
            self._leave_out(refused)
            session.commit(complete=True, metrics=taken)

    def note(self, **metrics: Any) -> None:
        """Add metrics to the step noted last, for loops that know them only later.

        They are recorded with the next snapshot, `mark` or end of an epoch.
        """
        session = self._session
        if session is None or not self._training:
            self._misplaced("note()", "belongs behind a step()")
        elif self.degraded is None:
            with self._guard(f"step {session.step}", session):
                self._leave_out(session.note(metrics))

    def mark(self) -> None:
        """Make this step one at which training can go on, and wait until it is on disk: call it with a checkpoint.

        The end of an epoch is one without that. No snapshot is taken.
        """
        session = self._session
        if session is None or not self._training:
            self._misplaced("mark()", "belongs behind a step()")
        elif self.degraded is None:
            with self._guard(f"step {session.step}", session):
                session.commit(complete=False, metrics={}, hashed=True, due=())
                session.drain()

    def flush(self) -> None:
        """Return when everything handed over is on disk, by all ranks, and published for plain Zarr readers."""
        session = self._opened("flush")
        if self.degraded is None:
            with self._guard("flush", session):
                session.flush()

    # Looks

    def __repr__(self) -> str:
        """Return what is recorded, how far it is and what it has cost, in a few lines."""
        return str(self._display())

    def _repr_html_(self) -> str:
        return self._display()._repr_html_()

    def _display(self) -> Display:
        from dynome_recorder.representation import show_recorder

        session, statistics = self._session, self.statistics
        figures = {} if statistics is None else {name: getattr(statistics, name) for name in _SHOWN}
        return show_recorder(
            path=self.path,
            model=type(self._settings.model).__name__,
            state="recording" if session is not None else "not open" if statistics is None else "closed",
            completed=session.completed if session is not None and self._training else None,
            step=session.step if session is not None else 0,
            schedules=self._settings.schedules,
            probe=self._settings.probe,
            degraded=self.degraded,
            statistics=figures,
        )

    # Parts

    def _make_plan(self, place: Place, **length: Any) -> tuple[Plan, Trace]:
        # Late, as everything is that only a recorder in use needs: importing the package costs little.
        from dynome_recorder.planning import make_plan

        settings = self._settings
        return make_plan(
            self.path,
            settings.model,
            patterns=settings.patterns,
            probe=settings.probe,
            forward=settings.forward,
            reduction=settings.reduction,
            dtype=settings.dtype,
            schedules=settings.schedules,
            batch_size=settings.batch_size,
            gradients=settings.gradients,
            parts=_recorded_parts(self.path) or place.world,
            buffer_bytes=settings.buffer_bytes,
            on_full=settings.on_full,
            autocast=settings.autocast,
            **({"epochs": 100, "steps_per_epoch": None} | length),
        )

    @contextlib.contextmanager
    def _guard(self, doing: str, session: Session, *, raising: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Let training go on where the block fails, count its time, and leave nothing behind once recording stopped."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._stop_recording(error, doing, session, raising=raising)
        finally:
            session.blocked_seconds += time.perf_counter() - started

    def _stop_recording(
        self, error: Exception, doing: str, session: Session, *, raising: tuple[type[Exception], ...]
    ) -> None:
        """Degrade, unless the error is one that is raised; called while it is handled."""
        if self._settings.strict or isinstance(error, raising):
            raise error
        blame = session.blame(error) or Blame(doing, session.completed, session.step)
        self._shield.stop_recording(error, blame)
        session.abandon()

    def _opened(self, method: str) -> Session:
        if self._session is None:
            raise InvalidArgumentError(
                f"{self.path}: {method}() needs an open recorder; use it inside `with recorder:`."
            )
        return self._session

    def _leave_out(self, refused: Mapping[str, InvalidArgumentError]) -> None:
        """Tell once per name why a metric is not recorded."""
        for name, error in refused.items():
            if self._settings.strict:
                raise error
            self._shield.tell(f"metric {name}", f"{self.path}: {error} It is left out; training goes on.")

    def _tell_of_the_rest(self, epoch: int | None, session: Session) -> None:
        """Tell what a loop that was left in order leaves behind: it is recorded with the next moment, and none came."""
        if epoch is None:
            text = f"what was noted after epoch {session.completed} is not recorded; call mark() behind note()"
        else:
            text = (
                f"the loop was left in epoch {epoch}, which is not recorded as complete; call epoch() before break if"
                " it is, or mark() to keep its steps"
            )
        self._shield.tell("rest", f"{self.path}: {text}.")

    def _misplaced(self, call: str, where: str) -> None:
        text = f"{self.path}: {call} {where}."
        if self._settings.strict or not self._asked:
            raise InvalidArgumentError(text)
        self._shield.tell(call, f"{text} It is ignored; training goes on.")


def _recorded_parts(path: Path) -> int | None:
    """Return into how many parts the recording that is there cuts its snapshots; None where none is there."""
    from dynome_recorder.storage.format import RUN_FILE
    from dynome_recorder.storage.run import parts, read_run

    return parts(read_run(path)) if (path / RUN_FILE).is_file() else None
