"""Verifying a recording, and repairing it if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dynome_recorder.storage.format import LOCK_FILE
from dynome_recorder.storage.inspection import Finding, Verification, inspect
from dynome_recorder.storage.repair import repair_recording

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["Finding", "Verification", "is_in_progress", "verify"]


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Verify a recording, and repair it if asked.

    Parameters
    ----------
    path
        The recording's folder.
    deep
        Read every committed file and compare its checksum. Without it only their sizes are compared.
    repair
        Publish what is committed, delete what was never committed, move damaged files to ``quarantine``, and write into
        the log which snapshots are lost by that. Committed data is never deleted.
    progress
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Verification
        What was found; after a repair, what was done and what is left.

    Raises
    ------
    RecordingNotFoundError
        There is no recording.
    UnsupportedVersionError
        A format that this version does not know.
    RecordingLockedError
        A repair was asked for while a recorder writes.
    StorageError
        A repair could not be written.
    """
    folder = Path(path)
    if repair:
        return repair_recording(folder, deep=deep, progress=progress)
    return inspect(folder, deep=deep, in_progress=is_in_progress(folder), progress=progress)


def is_in_progress(folder: Path) -> bool:
    """Return whether a recorder holds the lock of a recording. Never creates the lock file."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False  # a read-only copy: nobody can be recording there
    lock.release()
    return False
