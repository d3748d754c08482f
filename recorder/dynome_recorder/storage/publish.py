"""Publishing: making what the log says visible in ``store.zarr`` to readers that know only Zarr.

Order is what keeps a plain reader right at any moment: chunks of views, then each array's ``zarr.json``, last the
root's, which holds the consolidated metadata. A published shape never covers a snapshot that is not committed.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import sync_folder, write_atomically
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER, Json, encode_json
from dynome_recorder.storage.layout import BulkLayout, check_node, group_document, node_bytes, seal_node

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dynome_recorder.storage.records import CommitRecord, LogState
    from dynome_recorder.storage.views import Views

__all__ = ["Publisher", "check_published", "node_documents", "read_published"]


def stream_of(path: str) -> str:
    """Return the stream that an array below ``store.zarr`` belongs to."""
    return path.partition("/")[0]


def node_documents(
    layouts: Mapping[str, BulkLayout], views: Views, lengths: Mapping[str, int]
) -> dict[str, dict[str, Json]]:
    """Return the metadata document of every node of the store but its root, by path, parents before children.

    Parameters
    ----------
    layouts
        Bulk arrays by path.
    views
        The views, as long as they are to be shown.
    lengths
        Number of snapshots per stream.
    """
    documents: dict[str, dict[str, Json]] = {}
    arrays = {path: layout.document(lengths[stream_of(path)]) for path, layout in layouts.items()}
    arrays |= {path: column.layout.document(len(column)) for path, column in views.columns.items()}
    groups = {*views.streams, "probe/sites", "metrics", *(path.rpartition("/")[0] for path in arrays)}
    groups |= {"batches/sites"} if "batches" in views.streams else set()
    for path in sorted({*groups, *arrays}):
        documents[path] = arrays[path] if path in arrays else group_document({"element": "group"})
    return documents


class Publisher:
    """Writes views and metadata of one store, and remembers what it has written so that it writes only what changed."""

    def __init__(self, store: Path, *, run_id: str, layouts: Mapping[str, BulkLayout]) -> None:
        self.store = store
        self.run_id = run_id
        self.layouts = layouts
        self._written: dict[str, bytes] = {}
        self._unsynced: set[Path] = set()
        self._folders: set[Path] = set()

    def publish(self, views: Views, lengths: Mapping[str, int], last: CommitRecord | None) -> None:
        """Show everything up to `last`, the newest record (None: nothing is committed yet).

        Raises
        ------
        OSError
            The disk is full, read-only or failed; what was shown before stays valid.
        """
        for column in views.columns.values():
            for name, rows in column.chunks(dirty_only=True):
                self._write(name, column.layout.encode(rows))
            column.dirty = len(column)
        nodes = {path: node_bytes(document) for path, document in node_documents(self.layouts, views, lengths).items()}
        for path, data in nodes.items():
            if self._written.get(path) != data:
                self._write(f"{path}/zarr.json", data)
                self._written[path] = data
        self._write("zarr.json", root_bytes(self.run_id, nodes, last))

    def sync(self) -> None:
        """Make everything that was published durable against a power cut."""
        folders = {path.parent for path in self._unsynced}
        for path in self._unsynced:
            if path.exists():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        for folder in folders:
            sync_folder(folder)
        self._unsynced.clear()

    def _write(self, name: str, data: bytes) -> None:
        path = self.store / name
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        write_atomically(path, data, sync=False)
        self._unsynced.add(path)


def root_bytes(run_id: str, nodes: Mapping[str, bytes], last: CommitRecord | None) -> bytes:
    """Return the root's ``zarr.json``: the metadata of all nodes, and which record it was published after."""
    # The nodes are already encoded; joining their text costs a tenth of encoding them again.
    metadata = ",".join(f"{encode_json(path)}:{data.decode().rstrip()}" for path, data in nodes.items())
    consolidated = f'{{"kind":"inline","must_understand":false,"metadata":{{{metadata}}}}}'
    head = f'{{"zarr_format":3,"node_type":"group","consolidated_metadata":{consolidated}}}'
    published = None if last is None else {"sequence": last.sequence, "checksum": last.checksum}
    return seal_node(head, {"element": "recording", "run_id": run_id, "published": published})


def read_published(folder: Path) -> tuple[int, str] | None:
    """Return sequence and checksum of the record that a recording was published after; sequence -1 before the first.

    None where the root's ``zarr.json`` is missing or damaged: it is derived, only verify minds.
    """
    try:
        data = (folder / STORE_FOLDER / "zarr.json").read_bytes()
        if not check_node(data):
            return None
        published = json.loads(data)["attributes"]["published"]
        return (-1, "") if published is None else (int(published["sequence"]), str(published["checksum"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_published(folder: Path, published: tuple[int, str] | None, state: LogState) -> None:
    """Hold the log against what was published: a record that was published cannot be missing.

    The chain shows a hole in the log, but not that its end is gone; this does. `published` must have been read before
    the log, because a recorder may be adding to both.

    Raises
    ------
    CorruptRecordingError
        Published records are missing, or are others than those of the log.
    """
    if published is None or published[0] < 0:
        return
    sequence, checksum = published
    commits = folder / COMMITS_FOLDER
    if sequence >= len(state.records):
        raise CorruptRecordingError(
            f"{commits}: record {len(state.records)} is missing, the store was published after record {sequence}; "
            "restore it, or run 'dynome verify --repair'."
        )
    record = state.records[sequence]
    if checksum not in (record.checksum, record.replaces):
        raise CorruptRecordingError(f"{commits}: record {sequence} is not the one that the store was published after.")
