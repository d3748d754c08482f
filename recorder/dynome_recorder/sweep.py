"""Telling apart the files of ``store.zarr``: committed, derived, or left by something that was interrupted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynome_recorder.format import PARTIAL_SUFFIX, STORE_FOLDER, Json
from dynome_recorder.run import layouts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dynome_recorder.commits import LogState

__all__ = ["find_orphans", "sweep_orphans"]

_CHUNK = re.compile(r"c(\.\d+)+")


def find_orphans(folder: Path, run: Mapping[str, Json], state: LogState) -> list[Path]:
    """Return the files that an interrupted write left: partial files, and chunks of bulk arrays that no record lists.

    Cost: lists every folder of the store.
    """
    store = folder / STORE_FOLDER
    listed = {name for record in state.records for name in record.files}
    orphans = [path for path in store.rglob(f"*{PARTIAL_SUFFIX}") if path.is_file()]
    for array in layouts(run):
        if (store / array).is_dir():
            orphans += [
                path
                for path in (store / array).iterdir()
                if _CHUNK.fullmatch(path.name) and f"{array}/{path.name}" not in listed
            ]
    return sorted(orphans)


def sweep_orphans(folder: Path, run: Mapping[str, Json], state: LogState) -> list[Path]:
    """Delete what :func:`find_orphans` finds, and return it. Only the holder of the lock may call this."""
    orphans = find_orphans(folder, run, state)
    for path in orphans:
        path.unlink()
    return orphans
