"""Sorting weights in the fastest way that this machine has. Numbers only."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from dynome_analysis.kernels.multiset import count_zeros, gather_zeros
from dynome_analysis.kernels.radix import DIGIT_BITS, PASSES, radix_sort
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sort", "numpy_sorts_by_vectors", "sort_weights"]

Sort = Literal["auto", "numpy", "radix"]
SORTS = ("auto", "numpy", "radix")
# From this share of zeros on, setting them aside takes less time than it saves.
MANY_ZEROS = 0.05


def sort_weights(weights: NDArray[np.float32], *, sort: Sort = "auto") -> NDArray[np.float32]:
    """Return non-negative weights in ascending order, using up ``weights``.

    Parameters
    ----------
    weights : float32, shape (value,)
        Not NaN, none negative, contiguous. Holds the result or anything else afterwards.
    sort : {"auto", "numpy", "radix"}
        "numpy" is ``np.sort``, in place. "radix" passes over the values once per digit and needs as much memory
        again. "auto" is "numpy" where `numpy_sorts_by_vectors`, else "radix".

    Returns
    -------
    float32, shape (value,)
        ``weights`` itself, or for "radix" possibly the work space.

    Raises
    ------
    InvalidArgumentError
        Another ``sort``.

    Notes
    -----
    O(value log value) time in place, or O(value) time and 4 bytes per value. The edges of dead units are zeros, a third
    of all in a trained ReLU network; ``np.sort`` takes twice as long with so many ties, so they are set aside first.
    """
    if sort not in SORTS:
        raise InvalidArgumentError(f"sort must be one of {', '.join(SORTS)}; got {sort!r}")
    if sort == "numpy" or (sort == "auto" and numpy_sorts_by_vectors()):
        zeros = count_zeros(weights)
        if zeros > MANY_ZEROS * weights.size:
            gather_zeros(weights)
            weights[zeros:].sort()
        else:
            weights.sort()
        return weights
    work = np.empty_like(weights)
    places = np.empty((PASSES, 1 << DIGIT_BITS), np.int64)
    return work if radix_sort(weights.view(np.int32), work.view(np.int32), places) else weights


@cache
def numpy_sorts_by_vectors() -> bool:
    """Say whether ``np.sort`` of float32 uses vector instructions here: AVX-512, or with numpy 2 also AVX2 or ASIMD.

    Without them it took twelve times longer than with them, and `radix_sort` a sixth of that; with them half as long as
    `radix_sort`. Asked of ``numpy.show_config``, which tells what this numpy has and this processor offers.
    """
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})  # type: ignore[call-arg,func-returns-value,attr-defined]
    usable = {*simd.get("baseline", ()), *simd.get("found", ())}
    return _vectors_suffice(usable, int(np.__version__.split(".")[0]))


def _vectors_suffice(usable: set[str], major: int) -> bool:
    # numpy 2.4 names levels of x86 in place of single extensions.
    wide = {"AVX512_SKX", "X86_V4"}
    narrow = {"AVX2", "X86_V3", "ASIMD"}
    return bool(usable & (wide if major < 2 else wide | narrow))
