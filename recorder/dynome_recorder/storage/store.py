"""Reading bulk arrays straight from their files, as long as the log says they are.

zarr reads the same values, but it takes a chunk that is missing for fill values, blames no file, and spends more time
on its event loop than on decoding a few units of many snapshots. Tests hold the result against zarr.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import check_file
from dynome_recorder.storage.layout import BulkLayout, decompress, without_crc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CommittedArray", "Piece", "Write", "positions"]

Write: TypeAlias = "Callable[[NDArray[Any], NDArray[Any]], None]"
"""Writes stored values (the second) into an array of their shape."""


@dataclass(frozen=True)
class CommittedArray:
    """All snapshots of a bulk array, (snapshot, ...): reads no more than the inner chunks that it is asked for.

    Attributes
    ----------
    store
        The folder ``store.zarr``, absolute: a worker of a cluster, or this process after a chdir, stands elsewhere.
    layout
        Layout of the array, from ``run.json``.
    length
        Committed snapshots.
    files
        Size and crc32 of the array's committed files by path below `store`.
    """

    store: Path
    layout: BulkLayout
    length: int
    files: Mapping[str, tuple[int, str]] = field(repr=False)

    @property
    def path(self) -> str:
        """Path below ``store.zarr``."""
        return self.layout.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Committed length, then the shape of one snapshot."""
        return (self.length, *self.layout.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype on disk; bfloat16 is uint16, its bit pattern."""
        return self.layout.stored

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        """Return a selection by whole numbers, slices and lists of positions, one per axis; others are whole.

        Raises
        ------
        CorruptRecordingError
            A committed file is missing or damaged; the message names it.
        """
        chosen = positions(selection, self.shape)
        indices, *places = map(np.atleast_1d, chosen)
        values = np.empty([indices.size, *(one.size for one in places)], self.dtype)
        for row, piece in self.pieces(indices.tolist(), [(one, np.arange(one.size)) for one in places]):
            piece.read(values[row, ...])
        return values.reshape([one.size for one in chosen if one.ndim])

    def pieces(
        self, indices: Sequence[int], axes: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> Iterator[tuple[int, Piece]]:
        """Yield what has to be read of each inner chunk, and where in `indices` its snapshot stands.

        Parameters
        ----------
        indices
            Snapshots.
        axes
            Per axis of a snapshot, which positions are wanted and where each goes in the output.
        """
        layout = self.layout
        grid = [length // inner for length, inner in zip(layout.chunk, layout.inner, strict=True)]
        cuts = [_cut(wanted, into, inner) for (wanted, into), inner in zip(axes, layout.inner, strict=True)]
        boxes = []
        for box in itertools.product(*cuts):
            flat = 0
            for (chunk, _, _), length in zip(box, grid, strict=True):
                flat = flat * length + chunk
            part, number = divmod(flat, math.prod(grid))  # parts cut the first axis alone
            boxes.append((part, number, _orthogonal([one for _, one, _ in box]), _orthogonal([one for *_, one in box])))
        for row, index in enumerate(indices):
            for part, number, within, into in boxes:
                name = layout.file(index, part)
                # What no rank wrote reads as fill; what lies there uncommitted is nobody's data.
                size = self.files[name][0] if name in self.files else None
                yield row, Piece(self.store / name, size, layout, number, within, into)


@dataclass(frozen=True)
class Piece:
    """Part of one inner chunk.

    Attributes
    ----------
    path
        The file.
    size
        Its committed bytes; None where it was never committed.
    layout
        Layout of the array.
    number
        Of the inner chunk in its file, in C order.
    within
        Index of the part in the inner chunk.
    into
        Index of the part in the output.
    """

    path: Path
    size: int | None
    layout: BulkLayout
    number: int
    within: tuple[Any, ...]
    into: tuple[Any, ...]

    def read(self, out: NDArray[Any], write: Write = np.copyto) -> None:
        """Read the part and write it to its place in an output. Threads may do so side by side.

        Raises
        ------
        CorruptRecordingError
            The file is missing or damaged; the message names it.
        """
        layout = self.layout
        is_view = all(isinstance(one, slice) for one in self.into)
        target = out[(*self.into, ...)]  # a view, of a single number too
        is_whole = target.shape == layout.inner and all(isinstance(one, slice) for one in self.within)
        if (
            is_view
            and is_whole
            and target.dtype == layout.stored
            and target.flags.c_contiguous
            and self.size is not None
        ):
            self._decode(target)  # a whole chunk where it belongs: nothing to copy
            return
        if self.size is None:
            stored = np.full(target.shape, layout.fill, layout.stored)
        else:
            chunk = np.empty(layout.inner, layout.stored)
            self._decode(chunk)
            stored = chunk[self.within]
        write(target, stored)
        if not is_view:
            out[self.into] = target

    def _decode(self, out: NDArray[Any]) -> None:
        assert self.size is not None
        check_file(self.path, size=self.size)
        try:
            with self.path.open("rb", buffering=0) as file:
                data = _read_at(file, *self._extent(file))
            decompress(without_crc(data), out)
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptRecordingError(f"{self.path}: cannot be read ({error}).") from error

    def _extent(self, file: FileIO) -> tuple[int, int]:
        """Return where the inner chunk lies in its file, and its bytes."""
        assert self.size is not None
        layout = self.layout
        if layout.inner == layout.chunk:
            return 0, self.size
        count = math.prod(layout.chunk) // math.prod(layout.inner)
        index = without_crc(_read_at(file, self.size - 16 * count - 4, 16 * count + 4))
        offset, length = np.frombuffer(index, "<u8").reshape(count, 2)[self.number].tolist()
        if offset + length > self.size:
            raise ValueError(f"its index points beyond its {self.size} bytes")
        return offset, length


def positions(selection: Any, shape: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return the positions that a selection chooses along each axis; those of a whole number have no axis.

    Raises
    ------
    IndexError
        A position that is not there, or more of them than axes.
    """
    given = list(selection) if isinstance(selection, tuple) else [selection]
    missing = [slice(None)] * (len(shape) - sum(one is not Ellipsis for one in given))
    where = next((axis for axis, one in enumerate(given) if one is Ellipsis), len(given))
    given[where : where + 1] = missing
    if len(given) != len(shape):
        raise IndexError(f"{len(given)} indices for {len(shape)} axes.")
    return [np.asarray(np.arange(length)[one]) for one, length in zip(given, shape, strict=True)]


def _read_at(file: FileIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ValueError(f"{len(data)} of {length} bytes at {offset}")
    return data


def _cut(wanted: NDArray[np.int64], into: NDArray[np.int64], step: int) -> list[tuple[int, Any, Any]]:
    """Return per chunk of one axis its number, the positions wanted of it, and where they go."""
    numbers = wanted // step
    found = []
    for number in np.unique(numbers).tolist():
        mine = np.flatnonzero(numbers == number)
        found.append((number, _shortened(wanted[mine] - number * step), _shortened(into[mine])))
    return found


def _shortened(places: NDArray[np.int64]) -> Any:
    """Return positions as a slice where they are one."""
    step = int(places[1] - places[0]) if places.size > 1 else 1
    if step > 0 and (np.diff(places) == step).all():
        return slice(int(places[0]), int(places[-1]) + 1, step)
    return places


def _orthogonal(index: list[Any]) -> tuple[Any, ...]:
    """Return an index by axes as numpy takes it, whose lists of positions would go along each other."""
    if sum(not isinstance(one, slice) for one in index) <= 1:
        return tuple(index)
    return np.ix_(*(np.arange(one.start, one.stop, one.step) if isinstance(one, slice) else one for one in index))
