"""Writing a recording: numpy arrays in, committed files out.

The protocol (FORMAT.md, "Writing"): write and sync the files of a moment, then the commit record, whose rename is the
commit; publish later. Whatever happens in between, the recording is valid up to the last commit. With several ranks
each does so for its own parts; rank 0 keeps the log and publishes what all have committed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from dynome_recorder.errors import InvalidArgumentError, StorageError
from dynome_recorder.storage.commits import record_is_absent, write_record
from dynome_recorder.storage.committing import Commit
from dynome_recorder.storage.files import sync_folder, write_atomically
from dynome_recorder.storage.format import COMMITS_FOLDER, RUN_FILE, STREAMS, seal
from dynome_recorder.storage.layout import ArraySpec
from dynome_recorder.storage.lifecycle import Opened, join, start_or_resume, storage_errors
from dynome_recorder.storage.manifest import committed_state
from dynome_recorder.storage.moment import CheckedMoment, Moment, MomentCheck
from dynome_recorder.storage.ranks import AwaitedRanks
from dynome_recorder.storage.records import CommitRecord, chain_link, replay_log
from dynome_recorder.storage.run import RunDescription, layouts, normalised, run_document
from dynome_recorder.storage.showing import Showing
from dynome_recorder.storage.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

__all__ = ["ArraySpec", "Moment", "RecordingWriter", "RunDescription"]

logger = logging.getLogger(__name__)

WRITE_THREADS = 4
"""Files of one moment are compressed and synced side by side; file systems merge concurrent syncs into few."""


class RecordingWriter:
    """The only writer of a recording, or of one rank's share, from `open` to `close`. A context manager.

    Attributes
    ----------
    path
        Folder of the recording.
    rank, world
        Which of how many processes this is.
    resumed
        Whether the recording was there before.
    """

    def __init__(
        self, path: Path, opened: Opened, *, rank: int, world: int, interval: float, clock: Callable[[], float]
    ) -> None:
        """Use `open`."""
        self.path = path
        self.rank, self.world = rank, world
        self.resumed = not opened.new
        self._run = opened.run
        self._lock = opened.lock
        self._clock = clock
        self._check = MomentCheck(path, opened.run, layouts(opened.run), rank=rank, world=world)
        self._workers = Workers(WRITE_THREADS)
        self._showing = Showing(path, opened.run, opened.state, rank=rank, interval=interval)
        self._awaited = AwaitedRanks(path / COMMITS_FOLDER, rank=rank, world=world)
        self._lengths = {stream: len(opened.state.status[stream]) for stream in STREAMS}
        self._next = len(opened.state.records)
        self._live_end = opened.state.live[-1].sequence if opened.state.live else -1
        self._tail = opened.last_part if rank else self._showing.tail
        self._process = os.getpid()
        self._closed = False
        self._broken = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        description: RunDescription,
        *,
        rank: int = 0,
        world: int = 1,
        first_sequence: int | None = None,
        publish_interval: float = 2.0,
        on_existing: Literal["resume", "error"] = "resume",
        run_id: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Start a recording, or continue the one that is there.

        Continuing checks the log and the size of every file, finishes what a crash interrupted, deletes what was
        written and never committed, and publishes.

        Parameters
        ----------
        path
            Folder of the recording; made with its parents where missing.
        description
            What is recorded. On continuing it must have the fingerprint of the recording.
        rank, world
            Which of how many processes this is. Rank 0 opens first; the others join what it has opened.
        first_sequence
            On another rank than 0: `next_sequence` of rank 0.
        publish_interval
            Seconds between publishings while recording; 0 publishes at every commit.
        on_existing
            "error" refuses to continue a recording.
        run_id, clock
            Identity and source of Unix time; given only to write the same recording again.

        Raises
        ------
        StorageError
            The disk is full, read-only or failed.
        RecordingLockedError
            Another process records there.
        FingerprintError
            The recording is of something else; the message names the field.
        CorruptRecordingError, UnsupportedVersionError
            The recording cannot be continued as it is.
        InvalidArgumentError
            The folder holds something else, or the description cannot be stored.
        """
        if not 0 <= rank < world:
            raise InvalidArgumentError(f"rank must be one of 0 to {world - 1}, below the number of ranks; got {rank}.")
        folder = Path(path).absolute()  # training may change the working folder
        wanted = normalised(run_document(description, run_id=run_id or uuid.uuid4().hex, created=clock()))
        with storage_errors(folder):
            if rank:
                opened = join(folder, wanted, rank=rank, first_sequence=first_sequence)
            else:
                opened = start_or_resume(folder, wanted, may_resume=on_existing == "resume")
            try:
                writer = cls(folder, opened, rank=rank, world=world, interval=publish_interval, clock=clock)
                if not rank:
                    writer._showing.begin()
                if opened.new:
                    # Last, so that a folder with a run.json is a whole recording.
                    write_atomically(folder / RUN_FILE, seal(opened.run, indent=True), sync=True)
                    sync_folder(folder.parent)
            except BaseException:
                opened.lock.release()
                raise
        return writer

    @property
    def run_id(self) -> str:
        """Identity of the run."""
        return str(self._run["run_id"])

    @property
    def last(self) -> CommitRecord | None:
        """The last live moment that is committed, or None; on another rank than 0 the record of this rank."""
        return self._showing.last

    @property
    def last_complete_epoch(self) -> int | None:
        """The last epoch that is committed as complete, or None; on another rank than 0 as it was at the opening."""
        return self._showing.last_complete_epoch

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next record of the log, the same on every rank at the same moment."""
        return self._next

    @property
    def live(self) -> tuple[CommitRecord, ...]:
        """The moments that all ranks have committed and no rewind left behind, in order. Reads the whole log."""
        with storage_errors(self.path):
            return committed_state(self.path, self._run).live

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the threads that compress and write, in seconds; not that of the thread that calls."""
        return self._workers.cpu_seconds

    def commit(self, moment: Moment) -> CommitRecord:
        """Commit a moment: when this returns, this rank's share is on disk and survives a crash.

        Parameters
        ----------
        moment
            What to commit.

        Returns
        -------
        CommitRecord
            The record of this rank. With several ranks the moment counts once `wait_committed` is True for its
            sequence.

        Raises
        ------
        InvalidArgumentError
            The moment does not fit the recording (a site is missing, a shape or dtype differs). Nothing is written.
        StorageError
            The disk is full, read-only or failed. The moment is not committed; the recording is valid up to the commit
            before it, and the next commit may be tried.
        """
        return self.commit_all([moment])[0]

    def commit_all(self, moments: Sequence[Moment]) -> list[CommitRecord]:
        """Commit moments in order, sharing the syncs of their folders; cheaper than one by one where they are small.

        Raises
        ------
        InvalidArgumentError
            A moment does not fit the recording; those before it are committed.
        StorageError
            The disk is full, read-only or failed. As for `commit`; a beginning of the moments may be committed, and
            then the recording has to be opened again.
        """
        self._check_usable()
        fitting: list[CheckedMoment] = []
        refusal: InvalidArgumentError | None = None
        for moment in moments:
            try:
                fitting.append(self._check(moment))
            except InvalidArgumentError as error:
                refusal = error
                break
        records = self._commit_checked(fitting) if fitting else []
        if refusal is not None:
            raise refusal
        return records

    def _commit_checked(self, moments: Sequence[CheckedMoment]) -> list[CommitRecord]:
        with storage_errors(self.path):
            commit = Commit(self.path, moments, sequence=self._next, previous=self._tail, lengths=self._lengths)
            with self._all_or_nothing(lambda: commit.undo(rank=self.rank)):
                records = commit.run(self._workers, rank=self.rank, world=self.world, clock=self._clock)
                for record in records:
                    self._next += 1
                    self._live_end, self._tail = record.sequence, record
                    self._awaited.add(record)
                self._lengths = dict(commit.lengths)
                self._settle()
        self._showing.tidy(self._next)
        return records

    def _settle(self) -> None:
        """Count what all ranks have committed by now."""
        for record in self._awaited.take():
            self._showing.add(record)

    @contextlib.contextmanager
    def _all_or_nothing(self, undo: Callable[[], bool]) -> Iterator[None]:
        """Guard a commit against anything that can cut it off, Ctrl-C included.

        Either nothing is visible and the writer stands where it stood, or the writer refuses to go on: after a failure
        behind the rename of the record nobody can say what the disk will hold, and its files must not be touched.
        """
        self._broken = True
        try:
            yield
        except BaseException:
            self._broken = not undo()
            raise
        self._broken = False

    def wait_committed(self, sequence: int, timeout: float | None = None) -> bool:
        """Wait until all ranks have committed everything up to a record, and return whether they have.

        Parameters
        ----------
        sequence
            Of the record; `next_sequence` - 1 is the newest.
        timeout
            Seconds; None waits as long as it takes.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while not self._awaited.are_there(sequence):
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def rewind(self, epoch: int | None) -> None:
        """Go back to the end of an epoch: what was recorded after it is superseded, nothing is deleted.

        Parameters
        ----------
        epoch
            A committed, complete epoch; None goes back to before the first moment.

        Raises
        ------
        InvalidArgumentError
            The epoch is not committed as complete.
        StorageError
            The disk is full, read-only or failed.
        """
        self._check_usable()
        complete = {record.epoch: record.sequence for record in self.live if record.epoch_complete}
        if epoch is not None and epoch not in complete:
            known = ", ".join(map(str, complete)) or "none"
            raise InvalidArgumentError(f"{self.path}: epoch {epoch} is not committed; committed epochs: {known}.")
        self.rewind_to(-1 if epoch is None else complete[epoch])

    def rewind_to(self, sequence: int) -> None:
        """Go back to a record: the moments after it are superseded, nothing is deleted. Every rank must call it.

        Parameters
        ----------
        sequence
            Of a live moment; -1 goes back to before the first.

        Raises
        ------
        InvalidArgumentError
            There is no such moment.
        StorageError
            The disk is full, read-only or failed, or another rank has not committed yet.
        """
        self._check_usable()
        if self._live_end == sequence:
            return
        if self.rank == 0:
            with storage_errors(self.path):
                self._append_rewind(sequence)
            self._showing.tidy(self._next)
        else:
            self._next += 1
        self._live_end = sequence

    def _append_rewind(self, sequence: int) -> None:
        state = committed_state(self.path, self._run)
        if len(state.records) != self._next:
            raise StorageError(f"{self.path}: another rank has not committed yet; wait for it before going back.")
        if sequence != -1 and sequence not in {record.sequence for record in state.live}:
            raise InvalidArgumentError(f"{self.path}: record {sequence} is no moment to go back to.")
        commits, number = self.path / COMMITS_FOLDER, self._next
        record = CommitRecord(
            sequence=number,
            previous=chain_link(self._tail),
            kind="rewind",
            time=float(self._clock()),
            keep=sequence,
        )
        with self._all_or_nothing(lambda: record_is_absent(commits, number)):
            self._tail = write_record(commits, record)
            self._next += 1
            self._awaited = AwaitedRanks(commits, rank=0, world=self.world)  # all of it is there
            self._showing.adopt(replay_log([*state.records, self._tail]))

    def flush(self) -> None:
        """Publish now what is committed, so that plain Zarr readers see it. Only rank 0 publishes.

        Raises
        ------
        StorageError
            The disk is full, read-only or failed. What is committed stays committed.
        """
        self._check_usable()
        with storage_errors(self.path):
            with self._all_or_nothing(lambda: False):  # cut off here, what is shown would not be what is counted
                self._settle()
            self._showing.publish()

    def close(self) -> None:
        """Publish, make it durable, and release the recording. Closing twice does nothing.

        Raises
        ------
        StorageError
            Publishing failed. What is committed stays committed, and is published when the recording is opened next.
        """
        if self._closed or os.getpid() != self._process:  # a forked child has a copy that is not its own
            return
        self._closed = True
        try:
            if not self._broken and self.rank == 0:
                with storage_errors(self.path):
                    self._settle()
                    self._showing.publish()
                    self._showing.sync()
        finally:
            self._workers.close()
            self._lock.release()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close, and let an error that is on its way pass before one of closing."""
        try:
            self.close()
        except StorageError:
            if error is None:
                raise
            logger.warning("%s: could not be published while another error was on its way", self.path, exc_info=True)

    def _check_usable(self) -> None:
        if self._closed or os.getpid() != self._process:
            raise InvalidArgumentError(f"{self.path}: the recording is closed; open it again to continue.")
        if self._broken:
            raise StorageError(f"{self.path}: the disk failed while committing; open the recording again to continue.")
