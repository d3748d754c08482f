"""Average ranks, by a radix sort of keys that order as the values do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["average_ranks"]


@kernel
def average_ranks(
    keys: NDArray[np.unsignedinteger[Any]],
    counts: NDArray[np.int64],
    sorted_keys: NDArray[np.unsignedinteger[Any]],
    order: NDArray[np.int32],
    out: NDArray[np.float32],
) -> None:
    """Write the rank of every key within its row, from 1; equal keys share the mean of their ranks.

    Parameters
    ----------
    keys : unsigned integers, shape (unit, sample)
        Overwritten: work space.
    counts : int64, shape (bytes of a key, 256)
        Work space.
    sorted_keys : as keys, shape (sample,)
        Work space.
    order : int32, shape (2, sample)
        Work space.
    out : float32, shape (unit, sample)

    Notes
    -----
    O(unit * sample * bytes). A radix sort, least byte first, that leaves out bytes in which all keys agree: its time
    does not hang on how wide the vectors of the machine are, as that of numpy's sorts does.
    """
    units, samples = keys.shape
    passes = counts.shape[0]
    for u in range(units):
        source = keys[u]
        target = sorted_keys
        before = order[0]
        after = order[1]
        counts[:] = 0
        for s in range(samples):
            before[s] = s
            key = np.uint64(source[s])
            for digit in range(passes):
                counts[digit, np.int64((key >> np.uint64(8 * digit)) & np.uint64(255))] += 1
        for digit in range(passes):
            count = counts[digit]
            shift = np.uint64(8 * digit)
            if count[np.int64((np.uint64(source[0]) >> shift) & np.uint64(255))] == samples:
                continue
            end = samples
            for value in range(255, -1, -1):
                end -= count[value]
                count[value] = end
            for s in range(samples):
                key = source[s]
                digit_value = np.int64((np.uint64(key) >> shift) & np.uint64(255))
                place = count[digit_value]
                count[digit_value] = place + 1
                target[place] = key
                after[place] = before[s]
            source, target = target, source
            before, after = after, before
        begin = 0
        while begin < samples:
            end = begin + 1
            while end < samples and source[end] == source[begin]:
                end += 1
            for s in range(begin, end):
                out[u, before[s]] = 0.5 * (begin + 1 + end)
            begin = end
