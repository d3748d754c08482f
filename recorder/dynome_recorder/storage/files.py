"""Writing files so that a crash leaves them whole or absent, and telling whether they still are what was written."""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.format import PARTIAL_SUFFIX, crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["check_file", "sync_folder", "write_atomically", "write_file", "write_pieces"]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Does nothing where the platform cannot open a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, *, sync: bool) -> None:
    """Write a new file under its final name; nothing may rely on it before something else says that it is complete."""
    with path.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def write_pieces(
    path: Path, pieces: Iterable[bytes | memoryview], *, written: Callable[[tuple[int, str]], None]
) -> None:
    """Write a new file from pieces as they come, under its final name, and sync it.

    Parameters
    ----------
    path
        Where the file goes.
    pieces
        Its content.
    written
        Called with size in bytes and crc32 when all is written, before the sync.
    """
    size = checksum = 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            size += len(piece)
            checksum = zlib.crc32(piece, checksum)
        file.flush()
        written((size, f"{checksum:08x}"))
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes, *, sync: bool) -> None:
    """Write a file under a temporary name and rename it: readers see the old content or the new, never a part.

    Parameters
    ----------
    path
        Where the file goes. The temporary name is `path` with ``.partial`` appended, so one writer per file.
    data
        The whole content.
    sync
        Make content and name durable before returning. Without it the file survives a killed process, not a power cut.

    Raises
    ------
    OSError
        The disk is full, read-only or failed; the temporary file is removed.
    """
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        write_file(temporary, data, sync=sync)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def check_file(path: Path, *, size: int, checksum: str | None = None) -> None:
    """Raise CorruptRecordingError, naming the file, unless it has this size (and crc32, which reads it whole)."""
    try:
        found = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptRecordingError(f"{path}: missing.") from None
    if found != size:
        raise CorruptRecordingError(f"{path}: {found} bytes where {size} were committed.")
    if checksum is not None and crc32(path.read_bytes()) != checksum:
        raise CorruptRecordingError(f"{path}: damaged (crc32 {checksum} does not match).")
