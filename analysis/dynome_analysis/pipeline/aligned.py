"""Write into chunked arrays by whole chunks, or not at all.

A chunk (a shard, where there are shards) is the smallest thing that can be written. Two tasks that each write a part of
one read it, change their part and write it back, and the last one wins: silently, a quarter of the values was wrong in
our trial of ``da.to_zarr`` with chunks that do not fit. Rule to keep: nothing here writes to a Zarr array but through
`write_aligned`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import zarr
from zarr.core.array import AsyncArray

from dynome_analysis.compute import Progress, compute
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dask.array as da
    from numpy.typing import ArrayLike

__all__ = ["check_aligned", "store_blocks", "write_aligned"]


def check_aligned(array: zarr.Array[Any], region: Sequence[slice]) -> None:
    """Raise unless a region consists of whole chunks (shards) of an array.

    Parameters
    ----------
    array : zarr.Array
    region : sequence of slice
        Start and stop per axis, step 1.

    Raises
    ------
    InvalidArgumentError
        A part of a chunk lies outside the region, which another task may write at the same time.
    """
    unit = array.shards or array.chunks
    kind = "shards" if array.shards else "chunks"
    if len(region) != array.ndim:
        raise InvalidArgumentError(f"{array.store_path}: a region needs {array.ndim} slices; got {len(region)}")
    for axis, (part, size, step) in enumerate(zip(region, array.shape, unit)):
        start, stop = part.start, part.stop
        if not 0 <= start <= stop <= size or part.step not in (None, 1):
            raise InvalidArgumentError(
                f"{array.store_path}: axis {axis} has {size} values, {start}:{stop} is not there"
            )
        if start % step or (stop % step and stop != size):
            raise InvalidArgumentError(
                f"{array.store_path}: {start}:{stop} along axis {axis} cuts through {kind} of {step}, and tasks that "
                f"share one overwrite each other's values: write multiples of {step}"
            )


def write_aligned(array: zarr.Array[Any], region: Sequence[slice], values: ArrayLike) -> None:
    """Write whole chunks of a Zarr array; chunks that hold only the fill value are written too.

    Raises
    ------
    InvalidArgumentError
        The region cuts through a chunk (see `check_aligned`), or the values have another shape.
    """
    check_aligned(array, region)
    block = np.asarray(values)
    shape = tuple(part.stop - part.start for part in region)
    if block.shape != shape:
        raise InvalidArgumentError(f"{array.store_path}: the region holds {shape}, the values are {block.shape}")
    # A chunk that is not there reads as fill value; only a chunk that is there can be checked. (zarr 3.1.5 has no
    # with_config.)
    metadata: Any = array.metadata
    whole = AsyncArray(metadata, array.store_path, config={"write_empty_chunks": True})
    zarr.Array(whole)[tuple(region)] = block


def store_blocks(source: da.Array, target: zarr.Array[Any], *, progress: Progress | None = None) -> None:
    """Compute a Dask array and write each of its blocks from the worker that computed it.

    Parameters
    ----------
    source : dask array
        Its chunks are whole chunks (shards) of the target.
    target : zarr.Array
        Of the same shape, in a store that every worker can write to.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Raises
    ------
    InvalidArgumentError
        Shapes differ, or a block cuts through a chunk of the target; nothing has been computed then.

    Notes
    -----
    As ``da.store(source, target, lock=False)``, which is wrong without a word where blocks share a chunk. One block in
    memory per worker thread; nothing but a count travels back.
    """
    if source.shape != target.shape:
        raise InvalidArgumentError(f"{target.store_path}: has shape {target.shape}, the source {source.shape}")
    ends = [np.concatenate([[0], np.cumsum(sizes)]).tolist() for sizes in source.chunks]
    blocks = source.to_delayed()
    tasks = []
    for place in np.ndindex(*source.numblocks):
        region = [slice(bounds[index], bounds[index + 1]) for bounds, index in zip(ends, place)]
        check_aligned(target, region)
        tasks.append(dask.delayed(write_aligned)(target, region, blocks[place]))
    compute(tasks, description="storing", progress=progress)
