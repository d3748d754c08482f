"""How many recorded values are NaN, infinite, or became infinite by the cast; counted in the writer thread.

The rule to keep: numpy alone counts here. torch would start a second team of threads beside the one that trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from dynome_recorder.capture.transfer import Slot

# Bit pattern of infinity; greater ones, but for the sign, are NaN.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000}


def read_health(
    slot: Slot, *, sites: Iterable[str] | None = None, rows: Mapping[str, int] | None = None
) -> dict[str, dict[str, int]]:
    """Wait for a slot and count what is wrong in it; for the writer thread.

    Parameters
    ----------
    slot
        A snapshot that was sent. Its extras are the numbers of values that were infinite before the cast, of sites
        where a cast may add some.
    sites
        Which to look at; None: all that it holds.
    rows
        How many leading rows of a site hold values; all where it is not named.

    Returns
    -------
    Per site with any, how many values are NaN (``nan``), were infinite (``inf``), or became infinite by the cast
    (``overflow``); numbers of 0 are left out.

    Notes
    -----
    Cost: two passes of a maximum over integers, at memory speed, where all values are finite.
    """
    arrays, before = slot.arrays(), slot.extra_numbers()
    health = {}
    for name in sites if sites is not None else arrays:
        array = arrays[name]
        nan, infinite = count_nonfinite(array[: (rows or {}).get(name, len(array))], slot.specs[name].dtype)
        native = before.get(name, infinite)
        counts = {"nan": nan, "inf": native, "overflow": max(0, infinite - native)}
        if any(counts.values()):
            health[name] = {kind: count for kind, count in counts.items() if count}
    return health


def count_nonfinite(values: NDArray[Any], dtype: str) -> tuple[int, int]:
    """Return how many values are NaN and how many infinite.

    Parameters
    ----------
    values
        As a slot gives them: contiguous; bfloat16 as its bit pattern in uint16.
    dtype
        torch's name of their dtype: float16, bfloat16, float32 or float64.
    """
    infinity = _INFINITY[dtype]
    bits = values.reshape(-1).view(f"u{values.dtype.itemsize}")
    sign = 1 << (8 * values.dtype.itemsize - 1)
    signed = bits.view(f"i{values.dtype.itemsize}")
    # The greatest signed pattern tells of positive values, the greatest unsigned one of negative ones. No memory.
    if not len(bits) or (int(signed.max()) < infinity and int(bits.max()) < (sign | infinity)):
        return 0, 0
    magnitudes = bits & bits.dtype.type(sign - 1)
    return int(np.count_nonzero(magnitudes > infinity)), int(np.count_nonzero(magnitudes == infinity))
