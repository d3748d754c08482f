"""Writing the files of moments: compressed side by side, written as the pieces come, synced side by side.

What the disk has to sync goes out as early as it can: a file as soon as its last piece is written, while others are
still compressed; folders and records beside them. Syncs that wait at the same time are merged by the file system.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from dynome_recorder.storage.files import sync_folder, write_pieces
from dynome_recorder.storage.layout import compress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dynome_recorder.storage.layout import BulkLayout
    from dynome_recorder.storage.moment import PartData
    from dynome_recorder.storage.workers import Workers

__all__ = ["BulkFiles"]

FileEntry: TypeAlias = tuple[int, str]
"""Size in bytes, and crc32."""


class BulkFiles:
    """Files that are on their way to the disk; none may be relied on before `wait` returns.

    Parameters
    ----------
    store
        The folder ``store.zarr``.
    contents
        What is written, by path below it.
    """

    def __init__(self, store: Path, contents: Mapping[str, PartData]) -> None:
        self._store = store
        self._contents = contents
        self._workers: Workers | None = None
        self._written: dict[str, Future[FileEntry]] = {name: Future() for name in contents}
        self._pending: list[Future[Any]] = []
        # One entry for each file of a folder that is still to be synced; who takes the last, a True, does the folder.
        self._left: dict[Path, list[bool]] = {}
        for name in contents:
            left = self._left.setdefault((store / name).parent, [])
            left.append(not left)

    def start(self, workers: Workers) -> None:
        """Begin to compress and write."""
        self._workers = workers
        # Inner chunks are queued before the files that wait for them: these can never fill the pool while what they
        # wait for has not started. What is one chunk is compressed by the thread that writes it.
        pieces: dict[str, list[Callable[[], bytes | memoryview]]] = {
            name: [
                partial(compress, piece)
                if content.layout.inner == content.layout.chunk
                else workers.submit(partial(compress, piece)).result
                for piece in content.layout.pieces(content.data)
            ]
            for name, content in self._contents.items()
        }
        for name, content in self._contents.items():
            writing = self.also(partial(self._write, name, content.layout, pieces[name]))
            # Whatever ends it, in a thread that runs out of memory before the first line too: nobody waits for ever.
            writing.add_done_callback(partial(_pass_on_failure, self._written[name]))

    def entries(self) -> dict[str, FileEntry]:
        """Return size and crc32 of every file by path, as soon as all are written; they may not be synced yet.

        Raises
        ------
        OSError
            The disk is full, read-only or failed.
        """
        return {name: future.result() for name, future in self._written.items()}

    def also(self, doing: Callable[[], Any]) -> Future[Any]:
        """Do something beside the syncs, which `wait` waits for too."""
        assert self._workers is not None
        future = self._workers.submit(doing)
        self._pending.append(future)
        return future

    def wait(self) -> None:
        """Return when all is on disk.

        Raises
        ------
        OSError
            The disk is full, read-only or failed.
        """
        for future in self._pending:
            future.result()

    def discard(self) -> None:
        """Delete the files, none of which is being written any more; what cannot be is swept at the next opening."""
        wait(self._pending)
        for name in self._written:
            with contextlib.suppress(OSError):
                (self._store / name).unlink(missing_ok=True)

    def _write(self, name: str, layout: BulkLayout, compressed: Sequence[Callable[[], bytes | memoryview]]) -> None:
        def pieces() -> Iterator[bytes | memoryview]:
            lengths = []
            for piece in compressed:
                data = piece()
                lengths.append(len(data))
                yield data
            yield layout.index(lengths)

        write_pieces(self._store / name, pieces(), written=self._written[name].set_result)
        # Right behind the last file: what a file's sync has taken along costs a folder's next to nothing.
        folder = (self._store / name).parent
        if self._left[folder].pop():
            sync_folder(folder)


def _pass_on_failure(written: Future[FileEntry], writing: Future[Any]) -> None:
    error = writing.exception()
    if error is not None and not written.done():
        written.set_exception(error)
