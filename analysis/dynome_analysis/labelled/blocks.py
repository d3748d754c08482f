"""How per-snapshot functions meet Dask: one task per snapshot, several results each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["check_connectomes", "map_snapshots", "moments", "one_snapshot_per_chunk"]


def check_connectomes(connectomes: xr.DataArray) -> int:
    """Return the number of units, or say that these are no connectomes."""
    if not isinstance(connectomes, xr.DataArray) or connectomes.dims != ("snapshot", "unit", "unit_"):
        found = f"{type(connectomes).__name__} {tuple(getattr(connectomes, 'dims', ()))}"
        raise InvalidArgumentError(
            f"connectomes must be a DataArray (snapshot, unit, unit_), as dya.connectomes makes; got {found}"
        )
    return int(connectomes.sizes["unit"])


def moments(labelled: xr.DataArray | xr.Dataset) -> dict[str, Any]:
    """Return the coordinates that say when a snapshot was taken."""
    return {name: labelled.coords[name].variable for name in ("epoch", "step") if name in labelled.coords}


def one_snapshot_per_chunk(array: xr.DataArray) -> xr.DataArray:
    """Return a Dask-backed view of (snapshot, ...) whose chunks are whole snapshots."""
    return array.chunk({name: 1 if name == "snapshot" else -1 for name in array.dims})


def map_snapshots(
    function: Callable[..., tuple[Any, ...]],
    blocks: da.Array,
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    **options: Any,
) -> list[da.Array]:
    """Apply ``function(snapshot, position, **options)`` to every snapshot of ``blocks``, lazily.

    Parameters
    ----------
    function : callable
        Takes one snapshot without its leading axis and its position, returns as many arrays as there are ``outputs``.
    blocks : dask array, (snapshot, ...)
        One chunk per snapshot.
    outputs : sequence of (shape, dtype)
        What the function returns for one snapshot.
    **options
        Passed on; Dask objects are computed first.

    Returns
    -------
    list of dask arrays
        Each (snapshot, ...), one chunk per snapshot. They share the one task that computes them.
    """
    count = blocks.shape[0]
    # An object array of one tuple per snapshot keeps the function a single task, whoever of its results is wanted.
    packed = da.map_blocks(
        _pack,
        blocks,
        function=function,
        drop_axis=tuple(range(1, blocks.ndim)),
        dtype=object,
        meta=np.empty(0, object),
        **options,
    )
    return [
        da.map_blocks(
            _unpack,
            packed,
            index=index,
            new_axis=tuple(range(1, 1 + len(shape))) or None,
            chunks=((1,) * count, *((size,) for size in shape)),
            dtype=dtype,
            meta=np.empty((0,) * (1 + len(shape)), dtype),
        )
        for index, (shape, dtype) in enumerate(outputs)
    ]


def _pack(block: Any, *, function: Callable[..., tuple[Any, ...]], block_info: Any = None, **options: Any) -> Any:
    packed = np.empty(1, object)
    packed[0] = function(block[0], block_info[0]["chunk-location"][0], **options)
    return packed


def _unpack(packed: Any, *, index: int) -> Any:
    return np.asarray(packed[0][index])[None]
