"""A binary heap over two parallel arrays, keys and items, least key first; the caller keeps its size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["raise_last", "sink_first"]


@kernel
def raise_last(keys: NDArray[np.float64], items: NDArray[Any], size: int, key: float, item: int) -> None:
    """Add an item to a heap of ``size`` others."""
    position = size
    while position > 0 and keys[(position - 1) // 2] > key:
        keys[position] = keys[(position - 1) // 2]
        items[position] = items[(position - 1) // 2]
        position = (position - 1) // 2
    keys[position] = key
    items[position] = item


@kernel
def sink_first(keys: NDArray[np.float64], items: NDArray[Any], size: int, key: float, item: int) -> None:
    """Put an item in the place of the first of a heap of ``size`` items; of an empty one it is only written there."""
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[position] = keys[child]
        items[position] = items[child]
        position = child
    keys[position] = key
    items[position] = item
