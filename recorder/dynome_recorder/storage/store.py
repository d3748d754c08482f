"""Reading bulk arrays with zarr, as long as the log says they are. Imports zarr: import this module late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from zarr.core.buffer import cpu
from zarr.storage import LocalStore, WrapperStore

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import check_file
from dynome_recorder.storage.layout import BulkLayout, node_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

__all__ = ["CommittedArray", "CommittedStore", "open_array"]


class CommittedStore(WrapperStore[LocalStore]):
    """A read-only store that answers one array's metadata from the commit log, and refuses to miss a committed chunk.

    The ``zarr.json`` on disk may be behind the log (a killed run), and zarr reads a missing chunk as fill value; here
    the first is replaced and the second raises, naming the file.
    """

    def __init__(
        self, store: LocalStore, *, metadata: Mapping[str, bytes], files: Mapping[str, tuple[int, str]]
    ) -> None:
        super().__init__(store)
        self.metadata = metadata
        self.files = files

    def with_read_only(self, read_only: bool = False) -> CommittedStore:  # noqa: FBT001, FBT002 - zarr's signature
        """Return the same store; it cannot be made writable."""
        if not read_only:
            raise ValueError("A recording is read-only here; record through RecordingWriter.")
        return self

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, the array's metadata from the log.

        A committed file is compared with its size first: zarr reads a missing chunk, and a shard cut to nothing, as
        fill values.
        """
        if key in self.metadata:
            return cpu.Buffer.from_bytes(self.metadata[key])
        if key not in self.files:
            return None  # a part that no rank wrote reads as fill; what lies there uncommitted is nobody's data
        check_file(self._store.root / key, size=self.files[key][0])
        return await self._store.get(key, prototype, byte_range)

    def check(self) -> None:
        """Raise CorruptRecordingError, naming the file, if a committed file of the array is not as it was written."""
        for name, (size, checksum) in self.files.items():
            check_file(self._store.root / name, size=size, checksum=checksum)


class CommittedArray(zarr.Array):  # type: ignore[misc,type-arg,unused-ignore]
    """A zarr array whose reading errors name the damaged file.

    Decoding fails somewhere inside zarr, without the file's name; only then every file of the array is checked.
    """

    def __getitem__(self, selection: Any) -> Any:
        """Read a basic selection."""
        return self._guarded(super().__getitem__, selection)

    def get_basic_selection(self, *args: Any, **kwargs: Any) -> Any:
        """Read a basic selection."""
        return self._guarded(super().get_basic_selection, *args, **kwargs)

    def get_orthogonal_selection(self, *args: Any, **kwargs: Any) -> Any:
        """Read an orthogonal selection."""
        return self._guarded(super().get_orthogonal_selection, *args, **kwargs)

    def get_coordinate_selection(self, *args: Any, **kwargs: Any) -> Any:
        """Read a selection of points."""
        return self._guarded(super().get_coordinate_selection, *args, **kwargs)

    def get_block_selection(self, *args: Any, **kwargs: Any) -> Any:
        """Read a selection of chunks."""
        return self._guarded(super().get_block_selection, *args, **kwargs)

    def _guarded(self, read: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except (CorruptRecordingError, IndexError):
            raise
        except (ValueError, RuntimeError, OSError) as error:
            if isinstance(self.store, CommittedStore):
                self.store.check()
            raise CorruptRecordingError(f"{self.store_path}: cannot be read ({error}).") from error


def open_array(store: Path, layout: BulkLayout, *, length: int, files: Mapping[str, tuple[int, str]]) -> CommittedArray:
    """Open a bulk array with the number of snapshots that the log says.

    Parameters
    ----------
    store
        The folder ``store.zarr``.
    layout
        Layout of the array, from ``run.json``.
    length
        Committed snapshots.
    files
        Size and crc32 of the array's committed files by path below `store`.

    Returns
    -------
    CommittedArray
        Lazy; it holds no data.
    """
    committed = CommittedStore(
        # Absolute: a worker of a cluster, or this process after a chdir, stands in another folder.
        LocalStore(store.absolute(), read_only=True),
        metadata={f"{layout.path}/zarr.json": node_bytes(layout.document(length))},
        files=files,
    )
    return CommittedArray(zarr.open_array(committed, path=layout.path, mode="r", zarr_format=3).async_array)
