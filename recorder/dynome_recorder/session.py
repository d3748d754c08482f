"""What is open between entering and leaving a recorder: the writer, its thread, the buffers, the counters.

The order of things at one moment: copy what is due into slots (training thread), hand the slots over, and let the
writer thread wait for the copies, count what is not finite, compress, sync and commit. Nothing here decides whether an
error may reach training: `Recorder` does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynome_recorder.background import BackgroundWriter
from dynome_recorder.capture.parameters import hash_parameters
from dynome_recorder.capture.transfer import SlotPool
from dynome_recorder.distributed import Place, lead, same, together
from dynome_recorder.errors import FingerprintError, InvalidArgumentError, StorageError
from dynome_recorder.metrics import StepMetrics
from dynome_recorder.schedule import check_count
from dynome_recorder.shield import Blame
from dynome_recorder.storage.writer import RecordingWriter
from dynome_recorder.taking import MomentTaker
from dynome_recorder.tracing.isolation import device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from dynome_recorder.metrics import Value
    from dynome_recorder.plan import Plan
    from dynome_recorder.settings import Settings
    from dynome_recorder.storage.records import CommitRecord
    from dynome_recorder.storage.run import RunDescription

logger = logging.getLogger(__name__)

OTHERS_TIMEOUT = 60.0
"""Seconds that a rank waits for the others' commits, where it is asked to wait for its own."""


@dataclass(frozen=True)
class Statistics:
    """What recording has cost this process since the recorder was opened.

    Attributes
    ----------
    blocked_seconds
        Time that the training thread spent in the recorder: probe passes, copies, waiting for a free buffer.
    waited_seconds
        The part of it in which it waited, because the buffers were full.
    writer_cpu_seconds
        CPU time of the writer thread and of those that compress for it.
    snapshots, skipped
        Per stream, how many were taken, and how many were due and left out because the buffers were full.
    peak_buffer_bytes
        Most bytes of host buffers in use at once.
    """

    blocked_seconds: float
    waited_seconds: float
    writer_cpu_seconds: float
    snapshots: Mapping[str, int]
    skipped: Mapping[str, int]
    peak_buffer_bytes: int


class Session:
    """One opening of a recording, from its lock to its release; on every rank.

    Parameters
    ----------
    settings, plan, description
        What is recorded.
    place
        Which process of how many this is.
    """

    def __init__(self, settings: Settings, plan: Plan, description: RunDescription, place: Place) -> None:
        self.settings = settings
        self.place = place
        same(place, "what is recorded (sites, probe, weights)", _comparable(description))
        self.pool = SlotPool(settings.buffer_bytes, device=device_of(settings.model))
        self.writer = self._open(description)
        self.background = BackgroundWriter(self.writer, on_stop=self.pool.stop)
        self.metrics = StepMetrics()
        self.completed = self.step = 0
        self._kept_step = 0  # of the last moment at which training can go on
        self.blocked_seconds = 0.0
        self._abandoned = False
        try:
            self.last_complete_epoch: int | None = lead(place, lambda: self.writer.last_complete_epoch)
            self.taker = MomentTaker(settings, plan, place, self.pool, failure=self.background.failure)
            self.taker.attach()
        except BaseException:
            self.background.close()
            raise

    def _open(self, description: RunDescription) -> RecordingWriter:
        """Open the recording, rank 0 before the others: opening sweeps what was not committed, theirs is to come."""
        place, opened = self.place, []

        def open_writer(first_sequence: int | None) -> RecordingWriter:
            return RecordingWriter.open(
                self.settings.path,
                description,
                on_existing=self.settings.on_existing,
                rank=place.rank,
                world=place.world,
                first_sequence=first_sequence,
            )

        def open_first() -> int:
            opened.append(open_writer(None))
            return opened[0].next_sequence

        try:
            first = lead(place, open_first)
            return together(place, lambda: opened[0] if place.leads else open_writer(first))
        except BaseException:
            for writer in opened:
                writer.close()
            raise

    @property
    def committed_epoch(self) -> int | None:
        """The last complete epoch that is on disk; on ranks other than 0, as it was when training started."""
        return self.writer.last_complete_epoch if self.place.leads else self.last_complete_epoch

    # Starting

    def start(self, *, epoch: int | None = None, step: int | None = None) -> int:
        """Make ready to train after the last complete epoch, or after ``step`` steps and ``epoch`` epochs.

        Returns
        -------
        int
            The last completed epoch.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those that were recorded there.
        InvalidArgumentError
            If nothing is recorded there.
        """
        self.drain()
        self.metrics = StepMetrics()  # of an epoch that was left early: it is trained again
        live = lead(self.place, lambda: bool(self.writer.live))
        if step is not None or epoch is not None:
            self._start_at(epoch or 0, step or 0, live=live)
        elif self.last_complete_epoch is None:
            self._rewind(-1)  # a repair may have lost epoch 0 and left step snapshots after it
            self.completed = self.step = 0
            self.commit(complete=True, metrics={})
        else:
            self._continue_after(self._complete_record(self.last_complete_epoch))
        self.taker.expect_batch(self.step + 1)
        return self.completed

    def _start_at(self, epoch: int, step: int, *, live: bool) -> None:
        if not live:
            self.completed, self.step = epoch, step
            self.commit(complete=True, metrics={})
            return
        found = lead(
            self.place,
            lambda: next((one for one in reversed(self.writer.live) if one.step == step and one.parameters), None),
        )
        if found is None:
            raise FingerprintError(
                f"{self.settings.path}: nothing is recorded at step {step} after which training could go on; restore"
                f" the checkpoint of epoch {self.last_complete_epoch}, or record to another folder."
            )
        self._continue_after(found)

    def _continue_after(self, record: CommitRecord) -> None:
        self._check_parameters(record)
        self._rewind(record.sequence)  # supersedes step snapshots of an epoch that did not end: it is trained again
        self.completed, self.step = record.epoch, record.step
        self._kept_step = self.step
        self.last_complete_epoch = record.epoch
        logger.info("%s: continues after epoch %d, step %d", self.settings.path, record.epoch, record.step)

    def _check_parameters(self, record: CommitRecord) -> None:
        def check() -> None:
            if record.parameters != hash_parameters(self.settings.model):
                raise FingerprintError(
                    f"{self.settings.path}: the model's parameters are not those recorded after epoch {record.epoch};"
                    f" restore the checkpoint of epoch {record.epoch} (recorder.committed_epoch) before training, or"
                    " call recorder.resume_from(epoch) with the epoch of the checkpoint that you have restored."
                )

        lead(self.place, check)

    def go_to(self, epoch: int, *, step: int | None) -> None:
        """Go back to a recorded epoch, or on to one that was trained and not recorded: the epochs between are gaps.

        Raises
        ------
        FingerprintError
            If the model's parameters are not those of the epoch; nothing is superseded then.
        InvalidArgumentError
            If the epoch is not recorded, or the step is missing that a later one needs, or is an earlier one.
        """
        last = self.last_complete_epoch
        if last is None or epoch <= last:
            record = self._complete_record(epoch)
            self._check_parameters(record)
            self._rewind(record.sequence)
            self.last_complete_epoch = epoch
            return
        if step is None:
            raise InvalidArgumentError(
                f"{self.settings.path}: the recording ends after epoch {last}; to go on after epoch {epoch}, which was"
                f" not committed, say how many optimizer steps were done by then: resume_from({epoch}, step=...)."
            )
        step = check_count("resume_from(): step", step, least=self._complete_record(last).step)
        for missing in range(last + 1, epoch + 1):
            self.completed, self.step = missing, step if missing == epoch else -1
            due = self.taker.due(epoch=missing, step=self.step, complete=True)
            self.commit(complete=missing == epoch, metrics={}, lost=True, due=due)
        self.drain()

    def _complete_record(self, epoch: int) -> CommitRecord:
        def find() -> CommitRecord:
            complete = {record.epoch: record for record in self.writer.live if record.epoch_complete}
            if epoch not in complete:
                known = ", ".join(map(str, complete)) or "none"
                raise InvalidArgumentError(
                    f"{self.settings.path}: epoch {epoch} is not committed; committed epochs: {known}."
                )
            return complete[epoch]

        return lead(self.place, find)

    def _rewind(self, keep: int) -> None:
        """Supersede what was recorded after a record; every rank, since all count the records."""
        self.drain()
        together(self.place, lambda: self.background.run(lambda: self.writer.rewind_to(keep)))

    # Training

    def end_step(self, metrics: Mapping[str, Any], sample_ids: Any) -> Mapping[str, InvalidArgumentError]:
        """Note that one optimizer step is done; record what is due and make ready for the next.

        Returns why metrics cannot be recorded, by name.
        """
        self.step += 1
        refused = self.metrics.add(self.step, metrics)
        error, taker = self.background.error, self.taker
        if error is not None:
            raise error
        if taker.counts_steps:
            taker.end_batch(sample_ids)
            if taker.has_batch or taker.due(epoch=self.completed, step=self.step, complete=False):
                self.commit(complete=False, metrics={})
            taker.expect_batch(self.step + 1)
        return refused

    def note(self, metrics: Mapping[str, Any]) -> Mapping[str, InvalidArgumentError]:
        """Keep metrics of the step noted last; returns why some cannot be recorded."""
        return self.metrics.add(self.step, metrics)

    def commit(
        self,
        *,
        complete: bool,
        metrics: Mapping[str, Value],
        lost: bool = False,
        hashed: bool | None = None,
        due: Sequence[str] | None = None,
    ) -> None:
        """Take the snapshots that are due now and hand them to the writer thread.

        Parameters
        ----------
        complete
            Whether an epoch ends here.
        metrics
            Of the epoch.
        lost
            The moment is past: what was due is noted as left out.
        hashed
            Whether training can resume here; where an epoch ends if None.
        due
            Streams to take; what the schedules say if None.
        """
        hashed = complete if hashed is None else hashed
        taken = self.taker.take(
            epoch=self.completed, step=self.step, complete=complete, hashed=hashed, lost=lost, due=due
        )
        steps, self.metrics = self.metrics, StepMetrics()
        if not self.place.leads:  # rank 0 keeps the metrics of all
            steps, metrics = StepMetrics(), {}
        self.background.submit(taken.pending(steps, metrics))
        if hashed:
            self._kept_step = self.step
        if complete:
            self.last_complete_epoch = self.completed

    def blame(self, error: Exception) -> Blame | None:
        """Return which moment an error of the writer thread stopped at; None for any other error."""
        failed = self.background.failed
        if error is not self.background.error or failed is None:
            return None
        doing = f"epoch {failed.epoch}" if failed.epoch_complete else f"step {failed.step}"
        return Blame(doing, failed.epoch, failed.step)

    # Ending

    @property
    def has_more(self) -> bool:
        """Whether anything was noted behind the last moment at which training can go on, on the rank that keeps it."""
        return self.place.leads and (self.step != self._kept_step or bool(self.metrics))

    def drain(self) -> None:
        """Return when everything taken so far is committed, by all ranks.

        Raises
        ------
        StorageError
            Another rank has not committed in time: its recording has stopped.
        """
        self.background.drain()
        if self.place.world > 1 and not self.writer.wait_committed(self.writer.next_sequence - 1, OTHERS_TIMEOUT):
            raise StorageError(
                f"{self.settings.path}: another rank has not committed within {OTHERS_TIMEOUT:.0f} s, its recording has"
                " stopped; see its log."
            )

    def flush(self) -> None:
        """As `drain`, and publish."""
        self.drain()
        self.background.run(self.writer.flush)

    def abandon(self) -> None:
        """Take nothing more: hooks off, buffers away. What was handed over is still committed if that is possible."""
        if not self._abandoned:
            self._abandoned = True
            self.taker.detach()
            self.pool.stop()

    def close(self, *, interrupted: bool = False) -> None:
        """Commit what waits, publish, and release the lock."""
        self.taker.detach()
        try:
            if self.place.world > 1 and self.background.error is None:
                self.drain()
        finally:
            self.background.close(interrupted=interrupted)
            self.pool.stop()

    @property
    def statistics(self) -> Statistics:
        """What recording has cost so far."""
        return Statistics(
            blocked_seconds=self.blocked_seconds,
            waited_seconds=self.pool.waited_seconds,
            writer_cpu_seconds=self.background.cpu_seconds,
            snapshots=dict(self.taker.snapshots),
            skipped=dict(self.taker.skipped),
            peak_buffer_bytes=self.pool.peak_bytes,
        )


def _comparable(description: RunDescription) -> Sequence[Any]:
    """Return what all ranks must agree on, in a form that travels and compares."""
    arrays = {
        kind: [(name, spec.shape, spec.dtype) for name, spec in getattr(description, kind).items()]
        for kind in ("sites", "weights", "batches", "gradients")
    }
    return [arrays, dict(description.probe), description.parts]
