"""Files for people, which appear whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dynome_recorder.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders above it, by a temporary name that is renamed.

    Raises
    ------
    StorageError
        It cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}): make room there or name another place with --out"
        ) from error
