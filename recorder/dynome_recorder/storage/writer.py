"""Writing a recording: numpy arrays in, committed files out.

The protocol (FORMAT.md, "Committing"): write and sync the files of a moment, then the commit record, whose rename is
the commit; publish later. Whatever happens in between, the recording is valid up to the last commit.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from dynome_recorder.errors import (
    InvalidArgumentError,
    StorageError,
)
from dynome_recorder.storage.commits import (
    SEGMENT_LENGTH,
    CommitRecord,
    LogState,
    chain_link,
    fold_segments,
    record_path,
    replay_log,
    write_record,
)
from dynome_recorder.storage.files import sync_folder, write_atomically, write_file
from dynome_recorder.storage.format import (
    COMMITS_FOLDER,
    RUN_FILE,
    STORE_FOLDER,
    STREAMS,
    Json,
    crc32,
    encode_component,
    seal,
)
from dynome_recorder.storage.layout import ArraySpec, BulkLayout, compress
from dynome_recorder.storage.lifecycle import acquire_lock, create, is_new, resume, storage_errors
from dynome_recorder.storage.manifest import committed_state
from dynome_recorder.storage.moment import Moment
from dynome_recorder.storage.publish import Publisher, stream_of
from dynome_recorder.storage.run import RunDescription, layouts, normalised, run_document
from dynome_recorder.storage.sweep import find_stale_views
from dynome_recorder.storage.views import HEALTH_PROBLEMS, Views, build_views
from dynome_recorder.storage.workers import Workers

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from filelock import FileLock
    from numpy.typing import NDArray

__all__ = ["ArraySpec", "Moment", "RecordingWriter", "RunDescription"]

logger = logging.getLogger(__name__)

WRITE_THREADS = 4
"""Files of one moment are compressed and synced side by side; file systems merge concurrent syncs into few."""


class RecordingWriter:
    """The only writer of a recording, from :meth:`open` to :meth:`close`. A context manager."""

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Json],
        state: LogState,
        *,
        lock: FileLock,
        resumed: bool,
        publish_interval: float,
        clock: Callable[[], float],
    ) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.resumed = resumed
        self.publish_interval = publish_interval
        self._run = run
        self._lock = lock
        self._clock = clock
        self._layouts = layouts(run)
        self._publisher = Publisher(path / STORE_FOLDER, run_id=run["run_id"], layouts=self._layouts)
        self._workers = Workers(WRITE_THREADS)
        self._adopt(state)
        self._published_at = -float("inf")
        self._closed = False
        self._broken = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        description: RunDescription,
        *,
        publish_interval: float = 2.0,
        on_existing: Literal["resume", "error"] = "resume",
        run_id: str | None = None,
        clock: Callable[[], float] = time.time,
        rank: int = 0,
        world: int = 1,
        first_sequence: int | None = None,
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
        folder = Path(path).absolute()  # training may change the working folder
        wanted = normalised(run_document(description, run_id=run_id or uuid.uuid4().hex, created=clock()))
        with storage_errors(folder):
            new = is_new(folder)
            if not new and on_existing == "error":
                raise InvalidArgumentError(f"{folder}: holds a recording already; give a new folder, or let it resume.")
            folder.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(folder)
            try:
                # Asked again under the lock: another process may have started it meanwhile.
                if new := is_new(folder):
                    run, state = wanted, create(folder, wanted)
                else:
                    run, state = resume(folder, wanted)
                writer = cls(
                    folder, run, state, lock=lock, resumed=not new, publish_interval=publish_interval, clock=clock
                )
                for stale in find_stale_views(folder / STORE_FOLDER, writer._views):
                    stale.unlink()
                writer._publish()
                if new:
                    # Last, so that a folder with a run.json is a whole recording.
                    write_atomically(folder / RUN_FILE, seal(run, indent=True), sync=True)
                    sync_folder(folder.parent)
            except BaseException:
                lock.release()
                raise
        return writer

    def _adopt(self, state: LogState) -> None:
        """Take place at the end of a log."""
        self.last: CommitRecord | None = state.live[-1] if state.live else None
        self._tail: CommitRecord | None = state.records[-1] if state.records else None
        self._lengths = {stream: len(state.status[stream]) for stream in STREAMS}
        self._views: Views = build_views(self._run, state)
        complete = [record.epoch for record in state.live if record.epoch_complete]
        self.last_complete_epoch: int | None = complete[-1] if complete else None

    @property
    def run_id(self) -> str:
        """Identity of the run."""
        return str(self._run["run_id"])

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the threads that compress and write, in seconds; not that of the thread that calls."""
        return self._workers.cpu_seconds

    def commit(self, moment: Moment) -> CommitRecord:
        """Commit a moment: when this returns, it is on disk and survives a crash.

        Parameters
        ----------
        moment
            What to commit.

        Returns
        -------
        CommitRecord
            The record that commits it.

        Raises
        ------
        InvalidArgumentError
            The moment does not fit the recording (a site is missing, a shape or dtype differs). Nothing is written.
        StorageError
            The disk is full, read-only or failed. The moment is not committed; the recording is valid up to the commit
            before it, and the next commit may be tried.
        """
        self._check_usable()
        arrays = self._arrays(moment)
        metrics = _metrics(moment)
        health = self._health(moment)
        snapshots = {
            stream: self._lengths[stream] for stream in STREAMS if any(stream_of(path) == stream for path in arrays)
        }
        with storage_errors(self.path), self._all_or_nothing(arrays):
            record = self._append(
                CommitRecord(
                    sequence=self.next_sequence,
                    previous=self._previous,
                    kind="moment",
                    time=float(self._clock()),
                    epoch=int(moment.epoch),
                    step=int(moment.step),
                    epoch_complete=bool(moment.epoch_complete),
                    parameters=moment.parameters,
                    snapshots=snapshots,
                    health=health,
                    metrics=metrics,
                    files=self._write_arrays(arrays),
                )
            )
            for stream in snapshots:
                self._lengths[stream] += 1
            self.last = record
            if record.epoch_complete:
                self.last_complete_epoch = record.epoch
            self._views.append(record)
        self._tidy()
        return record

    def commit_all(self, moments: Sequence[Moment]) -> list[CommitRecord]:
        """Commit moments in order; where one fails, those before it are committed and its error is raised."""
        return [self.commit(moment) for moment in moments]

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
        with storage_errors(self.path):
            state = committed_state(self.path, self._run)
            complete: dict[int | None, int] = {r.epoch: r.sequence for r in state.live if r.epoch_complete}
            if epoch is not None and epoch not in complete:
                known = ", ".join(map(str, complete)) or "none"
                raise InvalidArgumentError(f"{self.path}: epoch {epoch} is not committed; committed epochs: {known}.")
            self.rewind_to(-1 if epoch is None else complete[epoch])

    @property
    def live(self) -> Sequence[CommitRecord]:
        """The committed moments that no rewind left behind, in order. Cost: reads the log."""
        return committed_state(self.path, self._run).live

    def wait_committed(self, sequence: int, timeout: float) -> bool:
        """Return whether all ranks have committed."""
        return True

    def rewind_to(self, keep: int) -> None:
        """Go back to a record: what was recorded after it is superseded; -1 supersedes everything."""
        self._check_usable()
        with storage_errors(self.path):
            state = committed_state(self.path, self._run)
            if not state.live or state.live[-1].sequence <= keep:
                return
            with self._all_or_nothing({}):
                record = self._append(
                    CommitRecord(
                        sequence=self.next_sequence,
                        previous=self._previous,
                        kind="rewind",
                        time=float(self._clock()),
                        keep=keep,
                    )
                )
                self._adopt(replay_log([*state.records, record]))
        self._tidy()

    def flush(self) -> None:
        """Publish now what is committed, so that plain Zarr readers see it.

        Raises
        ------
        StorageError
            The disk is full, read-only or failed. What is committed stays committed.
        """
        self._check_usable()
        with storage_errors(self.path):
            self._publish()

    def close(self) -> None:
        """Publish, make it durable, and release the recording. Closing twice does nothing.

        Raises
        ------
        StorageError
            Publishing failed. What is committed stays committed, and is published when the recording is opened next.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._broken:
                with storage_errors(self.path):
                    self._publish()
                    self._publisher.sync()
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

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next record of the log."""
        return 0 if self._tail is None else self._tail.sequence + 1

    @property
    def _previous(self) -> str:
        return chain_link(self._tail)

    def _append(self, record: CommitRecord) -> CommitRecord:
        self._tail = write_record(self.path / COMMITS_FOLDER, record)
        return self._tail

    @contextlib.contextmanager
    def _all_or_nothing(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[None]:
        """Guard a commit against anything that can cut it off, Ctrl-C included.

        Either nothing is visible and the writer stands where it stood, or the writer refuses to go on: after a failure
        behind the rename of the record nobody can say what the disk will hold, and its files must not be touched.
        """
        sequence = self.next_sequence
        self._broken = True
        try:
            yield
        except BaseException:
            if not record_exists(self.path / COMMITS_FOLDER, sequence):
                self._discard(arrays)
                self._broken = False
            raise
        self._broken = False

    def _arrays(self, moment: Moment) -> dict[str, NDArray[Any]]:
        """Return the arrays of a moment by path, checked against ``run.json``."""
        arrays: dict[str, NDArray[Any]] = {}
        for kind, given in (("sites", moment.probe), ("weights", moment.weights)):
            if given is None:
                continue
            entries = self._run["fingerprint"][kind]
            if given.keys() != entries.keys():
                names = sorted(given.keys() ^ entries.keys())
                raise InvalidArgumentError(
                    f"{self.path}: a moment must hold each of its {kind} once; differs in {names[0]}."
                )
            if not entries:
                raise InvalidArgumentError(f"{self.path}: has no {kind} to record; give None.")
            for name, entry in entries.items():
                layout = self._layouts[entry["path"]]
                array = np.asarray(given[name])
                if array.shape != layout.shape or array.dtype != layout.stored.newbyteorder("="):
                    raise InvalidArgumentError(
                        f"{self.path}: {name} must be {layout.stored.name} of shape {layout.shape}, "
                        f"got {array.dtype.name} of shape {array.shape}."
                    )
                arrays[layout.path] = array
        return arrays

    def _health(self, moment: Moment) -> dict[str, dict[str, int]]:
        """Return the non-zero counts of a moment."""
        unknown = moment.health.keys() - self._run["fingerprint"]["sites"].keys()
        kinds = {problem for counts in moment.health.values() for problem in counts} - set(HEALTH_PROBLEMS)
        if unknown or kinds:
            raise InvalidArgumentError(f"{self.path}: health of {sorted(unknown | kinds)[0]!r} is unknown.")
        return {
            site: kept
            for site, counts in moment.health.items()
            if (kept := {problem: int(count) for problem, count in counts.items() if count})
        }

    def _write_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, str]]:
        """Write and sync one file per array; returns size and crc32 by path."""

        # Inner chunks of all arrays are compressed side by side. They are queued before the tasks that wait for them,
        # so these can never fill the pool while what they wait for has not started.
        pieces = {
            path: [self._workers.submit(partial(compress, piece)) for piece in self._layouts[path].pieces(array)]
            for path, array in arrays.items()
        }

        def write(path: str) -> tuple[str, tuple[int, str]]:
            layout = self._layouts[path]
            name = self._file(layout)
            data = layout.assemble([piece.result() for piece in pieces[path]])
            target = self.path / STORE_FOLDER / name
            write_file(target, data, sync=True)
            sync_folder(target.parent)
            return name, (len(data), crc32(data))

        futures = [self._workers.submit(partial(write, path)) for path in arrays]
        try:
            return dict(future.result() for future in futures)
        finally:
            wait(futures)  # none may still be writing when the caller cleans up after the first that failed

    def _discard(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Delete the files of a moment that was not committed; what cannot be deleted is swept at the next opening."""
        for path in arrays:
            with contextlib.suppress(OSError):
                (self.path / STORE_FOLDER / self._file(self._layouts[path])).unlink(missing_ok=True)

    def _file(self, layout: BulkLayout) -> str:
        return layout.file(self._lengths[stream_of(layout.path)])

    def _tidy(self) -> None:
        """Fold and publish when it is time. Neither can lose anything, so a failure waits for the next time."""
        try:
            if self.next_sequence % SEGMENT_LENGTH == 0:
                fold_segments(self.path / COMMITS_FOLDER, length=self.next_sequence)
            if time.monotonic() - self._published_at >= self.publish_interval:
                self._publish()
        except OSError as error:
            logger.warning("%s: committed, but not published yet (%s)", self.path, error)

    def _publish(self) -> None:
        self._publisher.publish(self._views, self._lengths, self._tail)
        self._published_at = time.monotonic()

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidArgumentError(f"{self.path}: the recording is closed; open it again to continue.")
        if self._broken:
            raise StorageError(f"{self.path}: the disk failed while committing; open the recording again to continue.")


def record_exists(folder: Path, sequence: int) -> bool:
    """Return whether a record is visible under its name (also when that cannot be told)."""
    try:
        return record_path(folder, sequence).exists()
    except OSError:
        return True


def _metrics(moment: Moment) -> dict[str, Any]:
    """Return the metrics of a moment as its record holds them."""
    for name in (*moment.step_metrics, *moment.epoch_metrics):
        encode_component(name)  # raises now: once committed, a name that no array can have would block every view
    steps: dict[str, Any] = {}
    for name, (numbers, values) in moment.step_metrics.items():
        if len(numbers) != len(values):
            raise InvalidArgumentError(f"metric {name!r}: {len(numbers)} steps but {len(values)} values.")
        if len(numbers):
            steps[name] = {"step": [int(number) for number in numbers], "value": [float(value) for value in values]}
    epochs = {name: float(value) for name, value in moment.epoch_metrics.items()}
    return {kind: series for kind, series in (("step", steps), ("epoch", epochs)) if series}
