"""Read one snapshot out of a recording's store, decoded and joined over sites."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.threads import for_each, usable_cores
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.storage.format import bfloat16_to_float32
from dynome_recorder.storage.store import positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_recorder.storage.manifest import Manifest
    from dynome_recorder.storage.records import CommitRecord
    from dynome_recorder.storage.store import CommittedArray, Piece, Write

__all__ = ["JointArray", "SnapshotReader", "decode", "decoded_dtype", "distinct_snapshots"]

LEAST_FOR_THREADS = 2**21
MOST_THREADS = 4
"""Starting threads costs as much as decoding half a MiB; tasks that handle a snapshot each keep all cores busy."""


@dataclass(frozen=True)
class SnapshotReader:
    """Reads arrays of one stream, one snapshot at a time; fit to travel to another process.

    Attributes
    ----------
    recording : str
        What messages call the recording: its folder.
    arrays : dict of str to CommittedArray
        By site or parameter, each (snapshot, ...); a missing or damaged chunk raises, it never reads as fill value.
    dtypes : dict of str to str
        Logical dtype of each array.
    dimensions : tuple of str
        Names of the axes of one snapshot.
    indices, epochs, steps : tuple of int
        Per live snapshot, each moment once: its row in the arrays, completed epochs, optimizer steps done.
    there : tuple of bool, shape (sample,), or None
        Per live snapshot of training batches: which samples there are; a smaller batch leaves the rest empty. None:
        all of them, always.
    """

    recording: str
    arrays: Mapping[str, CommittedArray]
    dtypes: Mapping[str, str]
    dimensions: tuple[str, ...]
    indices: tuple[int, ...]
    epochs: tuple[int, ...]
    steps: tuple[int, ...]
    there: tuple[NDArray[np.bool_], ...] | None = None

    @classmethod
    def of(cls, manifest: Manifest, stream: str, described: Mapping[str, Mapping[str, Any]]) -> SnapshotReader:
        """Make a reader of the live snapshots of ``stream`` for arrays as the manifest describes them.

        Raises
        ------
        InvalidDataError
            The stream has no committed snapshot.
        """
        snapshots = distinct_snapshots(manifest, stream)
        if not snapshots:
            raise InvalidDataError(
                f"{manifest.path} has no committed snapshot in its stream {stream!r}: record one first"
            )
        return cls(
            recording=str(manifest.path),
            arrays={name: manifest.array(entry["path"]) for name, entry in described.items()},
            dtypes={name: str(entry["dtype"]) for name, entry in described.items()},
            dimensions=tuple(next(iter(described.values()))["dimensions"]),
            indices=tuple(int(index) for _, index in snapshots),
            epochs=tuple(int(record.epoch) for record, _ in snapshots),
            steps=tuple(int(record.step) for record, _ in snapshots),
            there=tuple(manifest.batch_rows(record) for record, _ in snapshots) if stream == "batches" else None,
        )

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """What the decoded arrays have in common: float32, or float64 where one of them is."""
        return np.result_type(*(decoded_dtype(self.dtypes[name]) for name in self.arrays))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `joint` for one snapshot.

        Raises
        ------
        InvalidDataError
            The arrays differ in another axis than the last.
        """
        shapes = {name: tuple(array.shape[1:]) for name, array in self.arrays.items()}
        if len(shapes) == 1:
            return next(iter(shapes.values()))
        heads = {shape[:-1] for shape in shapes.values()}
        if len(heads) > 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InvalidDataError(
                f"sites of {self.recording} differ in their samples, choose sites that agree: {listed}"
            )
        return (*heads.pop(), sum(shape[-1] for shape in shapes.values()))

    @property
    def labels(self) -> NDArray[np.str_]:
        """Name of the array that every entry of the last axis of `joint` comes from."""
        return np.repeat(list(self.arrays), [array.shape[-1] for array in self.arrays.values()])

    def moment(self, position: int) -> str:
        """Return what messages call a snapshot."""
        return f"epoch {self.epochs[position]} (step {self.steps[position]})"

    def joint(self, position: int) -> NDArray[np.floating[Any]]:
        """Read all arrays at the snapshot with this position among the live ones, side by side along the last axis.

        Of a training batch, only the samples that there are.

        Raises
        ------
        CorruptRecordingError
            A stored file is missing or damaged; the message names it.
        """
        return self.trim(self.whole(position), position)

    def whole(self, position: int) -> NDArray[np.floating[Any]]:
        """As `joint`, of `shape`: where a batch was smaller, the rest is NaN."""
        return JointArray(self)[position]

    def read(self, name: str, position: int) -> NDArray[np.floating[Any]]:
        """Read and decode one array at one snapshot; as `joint`."""
        return replace(self, arrays={name: self.arrays[name]}).joint(position)

    def trim(self, values: NDArray[Any], position: int) -> NDArray[Any]:
        """Return the samples of a snapshot that there are, of an array whose first axis is all of them."""
        if self.there is None or self.there[position].all():
            return values
        there = self.there[position]
        return values[np.repeat(there, values.shape[0] // there.size)]


class JointArray:
    """All snapshots of what a reader reads, (snapshot, ...): an array that reads no more than it is asked for.

    Attributes
    ----------
    shape, dtype, ndim
        As numpy has them.
    """

    def __init__(self, reader: SnapshotReader, chosen: Sequence[NDArray[np.int64]] | None = None) -> None:
        self._reader = reader
        self._chosen = positions(..., (len(reader.indices), *reader.shape)) if chosen is None else chosen
        self.shape = tuple(one.size for one in self._chosen if one.ndim)
        self.dtype = reader.dtype
        self.ndim = len(self.shape)

    @property
    def has_snapshots(self) -> bool:
        """Whether the first axis is that of the snapshots: none of them was chosen by its number."""
        return bool(self._chosen[0].ndim)

    def choose(self, selection: Any) -> JointArray:
        """Return a selection by whole numbers, slices and lists of positions, one per axis, and read nothing."""
        given = iter(positions(selection, self.shape))
        return JointArray(self._reader, [one[next(given)] if one.ndim else one for one in self._chosen])

    def __getitem__(self, selection: Any) -> NDArray[np.floating[Any]]:
        """Return the values of a selection.

        Costs what it takes to decode the inner chunks that hold it, on a few threads where they are many.

        Raises
        ------
        CorruptRecordingError
            A stored file is missing or damaged; the message names it.
        """
        return self.choose(selection).read()

    def read(self) -> NDArray[np.floating[Any]]:
        """Return all values; as a selection."""
        rows, *places = map(np.atleast_1d, self._chosen)
        values = np.empty([rows.size, *(one.size for one in places)], self.dtype)
        pieces = list(self._pieces(rows, places))
        stored = sum(piece.layout.inner_nbytes for _, piece, _ in pieces)
        threads = min(usable_cores(), len(pieces), MOST_THREADS) if stored >= LEAST_FOR_THREADS else 1
        for_each(lambda one: one[1].read(values[one[0], ...], one[2]), pieces, threads=threads)
        return values.reshape(self.shape)

    def _pieces(
        self, rows: NDArray[np.int64], places: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[int, Piece, Write]]:
        """Yield what has to be read, and its row in the output; the last axis runs over all arrays."""
        reader, offset = self._reader, 0
        for name, array in reader.arrays.items():
            axes = [(one, np.arange(one.size)) for one in places]
            if axes:
                last, into = axes[-1]
                mine = np.flatnonzero((last >= offset) & (last < offset + array.shape[-1]))
                axes[-1] = (last[mine] - offset, into[mine])
                offset += array.shape[-1]
            write = partial(decode, dtype=reader.dtypes[name])
            indices = [reader.indices[position] for position in rows.tolist()]
            yield from ((row, piece, write) for row, piece in array.pieces(indices, axes))


def distinct_snapshots(manifest: Manifest, stream: str) -> tuple[tuple[CommitRecord, int], ...]:
    """Return record and index of the live snapshots of a stream, each moment of the training once.

    Where a schedule counts steps and epochs, an epoch's last step is recorded twice: as a step within the epoch, and
    as the epoch's end. The second is kept, which knows that the epoch is complete: a distance between the two would be
    a 0 that says nothing of the training. Parameters that were changed in between make two moments.
    """
    snapshots = manifest.snapshots(stream)
    following = [(record.step, record.parameters) for record, _ in snapshots[1:]]
    kept = [now for now, after in zip(snapshots, following) if (now[0].step, now[0].parameters) != after]
    return (*kept, *snapshots[-1:])


def decode(out: NDArray[np.floating[Any]], stored: NDArray[np.generic], *, dtype: str) -> None:
    """Write stored values of a logical dtype as float32 or float64, without loss; bfloat16 is a bit pattern."""
    if dtype == "bfloat16":
        out[...] = bfloat16_to_float32(stored.astype(np.uint16, copy=False))
    elif dtype == "float16" and out.dtype == np.float32:
        np.take(_float16_values(), stored.view(np.uint16), out=out, mode="clip")
    else:
        out[...] = stored


@cache
def _float16_values() -> NDArray[np.float32]:
    """Return what every bit pattern says; numpy's own loop takes five times as long where zeros are mixed in."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def decoded_dtype(dtype: str) -> np.dtype[np.floating[Any]]:
    """Return float64 for the logical dtypes that float32 cannot hold without loss, else float32."""
    wide = dtype not in ("bfloat16", "float16", "float32", "int8", "uint8", "int16", "uint16", "bool")
    return np.dtype(np.float64 if wide else np.float32)
