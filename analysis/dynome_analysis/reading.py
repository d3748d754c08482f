"""Read one snapshot out of a recording's store, decoded and joined over sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.errors import InvalidDataError
from dynome_recorder.storage.format import bfloat16_to_float32

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_recorder.storage.manifest import Manifest
    from dynome_recorder.storage.records import CommitRecord
    from dynome_recorder.storage.store import CommittedArray

__all__ = ["JointArray", "SnapshotReader", "decode", "decoded_dtype", "distinct_snapshots"]


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
        return np.result_type(*(decoded_dtype(dtype) for dtype in self.dtypes.values()))

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
        parts = [self._decoded(name, position) for name in self.arrays]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1, dtype=self.dtype)

    def read(self, name: str, position: int) -> NDArray[np.floating[Any]]:
        """Read and decode one array at one snapshot; as `joint`."""
        return self.trim(self._decoded(name, position), position)

    def trim(self, values: NDArray[Any], position: int) -> NDArray[Any]:
        """Return the samples of a snapshot that there are, of an array whose first axis is all of them."""
        if self.there is None or self.there[position].all():
            return values
        there = self.there[position]
        return values[np.repeat(there, values.shape[0] // there.size)]

    def _decoded(self, name: str, position: int) -> NDArray[np.floating[Any]]:
        return decode(np.asarray(self.arrays[name][self.indices[position]]), self.dtypes[name])


class JointArray:
    """All snapshots of what a reader reads, (snapshot, ...): an array that reads no more than it is asked for.

    Attributes
    ----------
    shape, dtype, ndim
        As numpy has them.
    """

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self.shape = (len(reader.indices), *reader.shape)
        self.dtype = reader.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, selection: Any) -> NDArray[np.floating[Any]]:
        """Return a selection by whole numbers, slices and lists of positions, one per axis; others are whole.

        Raises
        ------
        CorruptRecordingError
            A stored file is missing or damaged; the message names it.
        """
        given = selection if isinstance(selection, tuple) else (selection,)
        chosen = [np.arange(length)[one] for one, length in zip(given, self.shape)]
        chosen += [np.arange(length) for length in self.shape[len(given) :]]
        values = np.empty([np.size(one) for one in chosen], self.dtype)
        for row, position in enumerate(np.atleast_1d(chosen[0])):
            self._read(values[row, ...], int(position), [np.atleast_1d(one) for one in chosen[1:]])
        return values.reshape([one.size for one in chosen if one.ndim])

    def _read(self, out: NDArray[np.floating[Any]], position: int, chosen: Sequence[NDArray[np.int64]]) -> None:
        """Read some places of one snapshot; the last axis runs over all arrays."""
        reader, offset = self._reader, 0
        for name, array in reader.arrays.items():
            last = chosen[-1] if chosen else np.zeros(1, np.int64)
            width = array.shape[-1] if chosen else 1
            mine = (last >= offset) & (last < offset + width)
            if mine.any():
                places = [*chosen[:-1], last[mine] - offset] if chosen else []
                stored = np.asarray(array[(reader.indices[position], *(_span(one) for one in places))])
                block = decode(stored, reader.dtypes[name])
                out[(..., mine) if chosen else ()] = block[np.ix_(*(one - one.min() for one in places))]
            offset += width


def _span(places: NDArray[np.int64]) -> slice:
    return slice(int(places.min()), int(places.max()) + 1)


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


def decode(stored: NDArray[np.generic], dtype: str) -> NDArray[np.floating[Any]]:
    """Return stored values of a logical dtype as float32 or float64, without loss; bfloat16 is a bit pattern."""
    if dtype == "bfloat16":
        return bfloat16_to_float32(stored.astype(np.uint16, copy=False))
    return stored.astype(decoded_dtype(dtype), copy=False)


def decoded_dtype(dtype: str) -> np.dtype[np.floating[Any]]:
    """Return float64 for the logical dtypes that float32 cannot hold without loss, else float32."""
    wide = dtype not in ("bfloat16", "float16", "float32", "int8", "uint8", "int16", "uint16", "bool")
    return np.dtype(np.float64 if wide else np.float32)
