"""Starting and continuing a recording: its lock, its folders, and what a crash left to be finished."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dynome_recorder.errors import (
    CorruptRecordingError,
    DynomeError,
    InvalidArgumentError,
    RecordingLockedError,
    StorageError,
)
from dynome_recorder.storage.commits import fold_segments, last_part, sweep_partial, uncommitted_records
from dynome_recorder.storage.files import sync_folder
from dynome_recorder.storage.format import COMMITS_FOLDER, LOCK_FILE, PARTIAL_SUFFIX, RUN_FILE, STORE_FOLDER, Json
from dynome_recorder.storage.manifest import Manifest, committed_state
from dynome_recorder.storage.publish import check_published, read_published
from dynome_recorder.storage.records import CommitRecord, LogState, replay_log
from dynome_recorder.storage.run import check_fingerprint, layouts, read_run
from dynome_recorder.storage.sweep import quarantine, sweep_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Opened", "acquire_lock", "join", "start_or_resume", "storage_errors"]

logger = logging.getLogger(__name__)

_RANK_LOCK = re.compile(r"recorder\.r(\d+)\.lock")


def acquire_lock(folder: Path, rank: int = 0) -> FileLock:
    """Take a rank's lock of a recording, or raise RecordingLockedError."""
    # Not per thread: a recorder may be closed by another thread than the one that opened it.
    lock = FileLock(lock_path(folder, rank), thread_local=False)
    try:
        # Half a second, because `dynome info` holds the lock for an instant to see whether a recorder does.
        lock.acquire(timeout=0.5)
    except Timeout:
        raise RecordingLockedError(
            f"{folder}: another recorder writes here; leave its `with` block, wait until its process ends, or record to"
            " another folder."
        ) from None
    return lock


def lock_path(folder: Path, rank: int) -> Path:
    """Return the file that a rank locks while it records."""
    path = folder / LOCK_FILE
    return path.with_name(f"{path.stem}.r{rank}{path.suffix}") if rank else path


@contextlib.contextmanager
def others_gone(folder: Path) -> Iterator[None]:
    """Hold the locks of all other ranks that ever recorded here, while rank 0 opens and sweeps.

    One of an earlier session that outlived its rank 0 could write under the numbers of the new one.

    Raises
    ------
    RecordingLockedError
        Such a process still records.
    """
    with contextlib.ExitStack() as locks:
        for path in sorted(folder.glob(f"{(folder / LOCK_FILE).stem}.r*.lock")):
            if match := _RANK_LOCK.fullmatch(path.name):
                locks.callback(acquire_lock(folder, int(match[1])).release)
        yield


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one clear StorageError."""
    try:
        yield
    except DynomeError:
        raise  # some of ours are an OSError too
    except OSError as error:
        what = error.strerror or str(error)
        raise StorageError(f"{path}: cannot be written ({what}); free or choose another disk or folder.") from error


@dataclass(frozen=True)
class Opened:
    """A recording whose lock is held.

    Attributes
    ----------
    run
        Content of ``run.json``; not written yet where the recording is new.
    state
        What the log says.
    lock
        This rank's lock.
    new
        Whether the recording begins here.
    last_part
        The newest record of a rank above 0.
    """

    run: Mapping[str, Json]
    state: LogState
    lock: FileLock
    new: bool = False
    last_part: CommitRecord | None = None


def start_or_resume(folder: Path, wanted: Mapping[str, Json], *, may_resume: bool) -> Opened:
    """Make the folders of a new recording, or check and clean one that is there; for rank 0."""
    if not is_new(folder) and not may_resume:
        raise InvalidArgumentError(f"{folder}: holds a recording already; give a new folder, or let it resume.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = acquire_lock(folder)
    try:
        # Asked again under the lock: another process may have started it meanwhile.
        if is_new(folder):
            return Opened(wanted, create(folder, wanted), lock, new=True)
        with others_gone(folder):
            run, state = resume(folder, wanted)
        return Opened(run, state, lock)
    except BaseException:
        lock.release()
        raise


def join(folder: Path, wanted: Mapping[str, Json], *, rank: int, first_sequence: int | None) -> Opened:
    """Take a rank's place in a recording that rank 0 has opened; changes nothing in it."""
    run = read_run(folder)
    check_fingerprint(run, wanted, where=folder)
    lock = acquire_lock(folder, rank)
    try:
        state = committed_state(folder, run)
        if first_sequence is not None and first_sequence != len(state.records):
            raise StorageError(
                f"{folder}: rank 0 goes on with record {first_sequence}, rank {rank} sees {len(state.records)} records;"
                " let all ranks record to one folder that all of them see."
            )
        return Opened(run, state, lock, last_part=last_part(folder / COMMITS_FOLDER, rank))
    except BaseException:
        lock.release()
        raise


def is_new(folder: Path) -> bool:
    """Return whether a recording can be started: nothing is there, or only what the start of one left that was cut off.

    Raises
    ------
    InvalidArgumentError
        Something else is there.
    CorruptRecordingError
        A recording without its ``run.json`` is there.
    """
    if not folder.exists():
        return True
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder}: is a file; give a folder for the recording.")
    if (folder / RUN_FILE).exists():
        return False
    names = {entry.name for entry in folder.iterdir()}
    foreign = names - {COMMITS_FOLDER, STORE_FOLDER, LOCK_FILE, RUN_FILE + PARTIAL_SUFFIX}
    foreign = {name for name in foreign if not _RANK_LOCK.fullmatch(name)}
    if foreign:
        shown = ", ".join(sorted(foreign)[:3])
        raise InvalidArgumentError(f"{folder}: not empty and not a recording (holds {shown}); give a new folder.")
    commits = folder / COMMITS_FOLDER
    if (commits.is_dir() and any(commits.iterdir())) or (read_published(folder) or (-1, ""))[0] >= 0:
        raise CorruptRecordingError(f"{folder / RUN_FILE}: missing, but there are commits; restore it from a copy.")
    return True


def create(folder: Path, run: Mapping[str, Json]) -> LogState:
    """Make the folders of a new recording; what a start left that was cut off is cleared first (nothing committed)."""
    shutil.rmtree(folder / STORE_FOLDER, ignore_errors=True)
    (folder / COMMITS_FOLDER).mkdir(exist_ok=True)
    for path in layouts(run):
        (folder / STORE_FOLDER / path).mkdir(parents=True, exist_ok=True)
    return replay_log([])


def resume(folder: Path, wanted: Mapping[str, Json]) -> tuple[dict[str, Json], LogState]:
    """Check a recording that is there, finish what a crash interrupted, and return its run and log."""
    run = read_run(folder)
    check_fingerprint(run, wanted, where=folder)
    state = committed_state(folder, run)
    published = read_published(folder)
    check_published(folder, published, state)
    Manifest(path=folder, run=run, state=state).check_files()
    commits = folder / COMMITS_FOLDER
    sweep_partial(commits)
    # A damaged root can no longer say how long the log was, so nothing is deleted on the word of the log alone.
    keep = published is None
    swept = uncommitted_records(commits, len(state.records))
    for path in swept:  # from the end, so that a crash in between leaves a log
        if keep:
            quarantine(folder, path)
        else:
            path.unlink()
    if swept:
        sync_folder(commits)
    for rank in range(max((record.world for record in state.records), default=1)):
        fold_segments(commits, length=len(state.records), rank=rank)
    swept += sweep_orphans(folder, run, state, keep=keep)
    if swept:
        done = "moved to quarantine" if keep else "deleted"
        logger.info("%s: %s %d files that no commit record lists", folder, done, len(swept))
    return run, state
