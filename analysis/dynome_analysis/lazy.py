"""Dask arrays of what is recorded: a task for every snapshot, or for several where little of each is chosen.

A Dask array that is sliced keeps its tasks and copies what they return. For a few units of each of many snapshots that
costs as much as decoding them: 64 of 1024 units of 40 snapshots took 84 ms in 40 tasks and 45 ms in one (two cores).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dynome_analysis.reading import JointArray

__all__ = ["CHUNK_BYTES", "lazy_snapshots"]

CHUNK_BYTES = 2**26


def lazy_snapshots(values: JointArray, *, name: str) -> da.Array:
    """Return a Dask array with one chunk per snapshot; `name` says what the values are.

    A choice by whole numbers, slices and one list of positions reads no more than that. One of less than whole
    snapshots has several of them in a chunk, of at most 64 MiB; ``rechunk`` makes other tasks that read.
    """
    return _Snapshots.of(values, name, (1, *values.shape[1:]))


class _Snapshots(da.Array):  # type: ignore[misc]  # dask ships no types
    """Anything but slicing and rechunking makes a plain Dask array of it: copying, pickling and persisting too."""

    values: JointArray

    @classmethod
    def of(cls, values: JointArray, name: str, chunks: Any) -> _Snapshots:
        """Make one of a JointArray, with one task for each chunk."""
        meta = np.empty((0,) * values.ndim, values.dtype)
        blocks = da.from_array(values, chunks=chunks, name=name, meta=meta)
        array = cls(blocks.dask, blocks.name, blocks.chunks, meta=meta)
        array.values = values
        return array

    def __getitem__(self, index: Any) -> da.Array:
        given = index if isinstance(index, tuple) else (index,)
        if sum(isinstance(one, list | np.ndarray) for one in given) > 1 or not all(map(_is_positions, given)):
            return super().__getitem__(index)
        values = self.values.choose((*given, ...))
        if not given or 0 in values.shape:
            return super().__getitem__(index)
        chunks = values.shape
        if values.has_snapshots:  # cut along samples, tasks would decode the same
            each = math.prod(values.shape[1:])
            is_whole = each == math.prod(self.shape[1:]) and self.chunksize[0] == 1
            chunks = (1 if is_whole else max(1, CHUNK_BYTES // (each * values.dtype.itemsize)), *values.shape[1:])
        return self.of(values, f"chosen-{tokenize(self.name, index)}", chunks)

    def rechunk(self, *args: Any, **options: Any) -> da.Array:
        array = super().rechunk(*args, **options)
        if array.npartitions > (array.numblocks[0] if self.values.has_snapshots else 1):
            return array
        return self.of(self.values, f"rechunked-{tokenize(self.name, array.chunks)}", array.chunks)

    def __dask_postcompute__(self) -> tuple[Callable[..., NDArray[Any]], tuple[()]]:
        if self.npartitions > 1:
            return super().__dask_postcompute__()  # type: ignore[no-any-return]
        return _only, ()  # Dask would copy it, as others may hold it; it was made for this


def _is_positions(index: Any) -> bool:
    if isinstance(index, list | np.ndarray):
        return np.ndim(index) == 1
    return isinstance(index, slice | int | np.integer) and not isinstance(index, bool)


def _only(results: Any) -> NDArray[Any]:
    while isinstance(results, list | tuple):
        (results,) = results
    return results  # type: ignore[no-any-return]
