"""Starting and continuing a recording: its lock, its folders, and what a crash left to be finished."""

from __future__ import annotations

import contextlib
import logging
import shutil
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dynome_recorder.errors import (
    CorruptRecordingError,
    DynomeError,
    InvalidArgumentError,
    RecordingLockedError,
    StorageError,
)
from dynome_recorder.storage.commits import LogState, fold_segments, replay_log, sweep_partial
from dynome_recorder.storage.format import COMMITS_FOLDER, LOCK_FILE, PARTIAL_SUFFIX, RUN_FILE, STORE_FOLDER, Json
from dynome_recorder.storage.manifest import Manifest, committed_state
from dynome_recorder.storage.publish import check_published, read_published
from dynome_recorder.storage.run import check_fingerprint, layouts, read_run
from dynome_recorder.storage.sweep import sweep_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["acquire_lock", "create", "is_new", "resume", "storage_errors"]

logger = logging.getLogger(__name__)


def acquire_lock(folder: Path) -> FileLock:
    """Take the lock of a recording, or raise RecordingLockedError."""
    # Not per thread: a recorder may be closed by another thread than the one that opened it.
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        # Half a second, because `dynome info` holds the lock for an instant to see whether a recorder does.
        lock.acquire(timeout=0.5)
    except Timeout:
        raise RecordingLockedError(
            f"{folder}: another process is recording here; wait until it ends, end it, or record to another folder."
        ) from None
    return lock


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
    sweep_partial(folder / COMMITS_FOLDER)
    fold_segments(folder / COMMITS_FOLDER, length=len(state.records))
    # A damaged root can no longer say how long the log was, so nothing is deleted on the word of the log alone.
    if orphans := sweep_orphans(folder, run, state, keep=published is None):
        done = "moved to quarantine" if published is None else "deleted"
        logger.info("%s: %s %d files that no commit record lists", folder, done, len(orphans))
    return run, state
