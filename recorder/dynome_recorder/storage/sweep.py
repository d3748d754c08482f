"""Telling apart the files of ``store.zarr``: committed, derived, or left by something that was interrupted."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from dynome_recorder.storage.files import sync_folder
from dynome_recorder.storage.format import PARTIAL_SUFFIX, QUARANTINE_FOLDER, STORE_FOLDER, Json
from dynome_recorder.storage.run import layouts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dynome_recorder.storage.records import LogState
    from dynome_recorder.storage.views import Views

__all__ = ["find_orphans", "find_stale_views", "quarantine", "sweep_orphans"]

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


def sweep_orphans(folder: Path, run: Mapping[str, Json], state: LogState, *, keep: bool) -> list[Path]:
    """Delete what :func:`find_orphans` finds, and return it. Only the holder of the lock may call this.

    With `keep`, chunks are moved to the quarantine instead: for when the log itself may have lost what lists them.
    """
    orphans = find_orphans(folder, run, state)
    for path in orphans:
        if keep and not path.name.endswith(PARTIAL_SUFFIX):
            quarantine(folder, path)
        else:
            path.unlink()
    return orphans


def find_stale_views(store: Path, views: Views) -> list[Path]:
    """Return the chunk files of views that lie beyond their arrays' ends, as a repair of the log can leave them."""
    stale = []
    for path, column in views.columns.items():
        expected = {name for name, _ in column.chunks(dirty_only=False)}
        if (store / path).is_dir():
            stale += [
                file
                for file in (store / path).iterdir()
                if _CHUNK.fullmatch(file.name) and f"{path}/{file.name}" not in expected
            ]
    return sorted(stale)


def quarantine(folder: Path, path: Path, *, keep: bool = False) -> Path:
    """Move (`keep`: copy) a file of a recording below ``quarantine``, under a free name; returns where it is."""
    target = folder / QUARANTINE_FOLDER / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while target.exists():
        number += 1
        target = target.with_name(re.sub(r"(~\d+)?$", f"~{number}", target.name, count=1))
    if keep:
        shutil.copyfile(path, target)
    else:
        path.rename(target)
    sync_folder(target.parent)
    return target
