"""Powers of differences, summed: entry by entry, for all pairs of rows, and along the merge of two quantile functions.

``kind`` says what is summed: 0 the maximum of ``|d|``, 1 ``|d|``, 2 ``d^2``, 3 ``(|d| / scale)^order``. Differences are
taken in float64 whatever the inputs hold. Many partial sums side by side let the compiler use vector registers without
reordering anything by itself (fast mathematics stays off), and keep rounding small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LANES", "merge_quantiles", "pair_powers", "sum_powers"]

# Partial sums side by side, 2 kB. With 128 all pairs take a third longer, with 512 the tails of short vectors do.
LANES = 256


@kernel
def sum_powers(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    kind: int,
    order: float,
    scale: float,
    lanes: NDArray[np.float64],
    doubts: NDArray[np.float64],
) -> float:
    """Return the sum (or maximum) over entries of two arrays (value,); NaN where a difference is none.

    ``lanes`` and ``doubts`` (LANES,) are work space. O(value) time.
    """
    count = first.shape[0]
    width = lanes.shape[0]
    lanes[:] = 0.0
    if kind == 0:
        doubts[:] = 0.0
    else:
        doubts[0] = 0.0
    whole = count - count % (4 * width)
    for start in range(0, whole, 4 * width):
        a = first[start : start + width]
        b = first[start + width : start + 2 * width]
        c = first[start + 2 * width : start + 3 * width]
        d = first[start + 3 * width : start + 4 * width]
        e = second[start : start + width]
        f = second[start + width : start + 2 * width]
        g = second[start + 2 * width : start + 3 * width]
        h = second[start + 3 * width : start + 4 * width]
        if kind == 2:
            for k in range(width):
                p = np.float64(a[k]) - np.float64(e[k])
                q = np.float64(b[k]) - np.float64(f[k])
                r = np.float64(c[k]) - np.float64(g[k])
                s = np.float64(d[k]) - np.float64(h[k])
                lanes[k] += (p * p + q * q) + (r * r + s * s)
        elif kind == 1:
            for k in range(width):
                p = abs(np.float64(a[k]) - np.float64(e[k]))
                q = abs(np.float64(b[k]) - np.float64(f[k]))
                r = abs(np.float64(c[k]) - np.float64(g[k]))
                s = abs(np.float64(d[k]) - np.float64(h[k]))
                lanes[k] += (p + q) + (r + s)
        elif kind == 0:
            for k in range(width):
                p = abs(np.float64(a[k]) - np.float64(e[k]))
                q = abs(np.float64(b[k]) - np.float64(f[k]))
                r = abs(np.float64(c[k]) - np.float64(g[k]))
                s = abs(np.float64(d[k]) - np.float64(h[k]))
                # A comparison forgets NaN, a sum keeps it.
                doubts[k] += (p - p) + (q - q) + (r - r) + (s - s)
                p = q if q > p else p
                r = s if s > r else r
                p = r if r > p else p
                lanes[k] = p if p > lanes[k] else lanes[k]
        else:
            for k in range(width):
                lanes[k] += (abs(np.float64(a[k]) - np.float64(e[k])) / scale) ** order
                lanes[k] += (abs(np.float64(b[k]) - np.float64(f[k])) / scale) ** order
                lanes[k] += (abs(np.float64(c[k]) - np.float64(g[k])) / scale) ** order
                lanes[k] += (abs(np.float64(d[k]) - np.float64(h[k])) / scale) ** order
    # Halving keeps the sums of the lanes in vector registers, too; the number of lanes is a power of two.
    half = width // 2
    while half > 0:
        if kind == 0:
            for k in range(half):
                lanes[k] = lanes[half + k] if lanes[half + k] > lanes[k] else lanes[k]
                doubts[k] += doubts[half + k]
        else:
            for k in range(half):
                lanes[k] += lanes[half + k]
        half //= 2
    total = float(lanes[0])
    doubt = float(doubts[0])
    for k in range(whole, count):
        gap = float(abs(np.float64(first[k]) - np.float64(second[k])))
        if kind == 2:
            total += gap * gap
        elif kind == 1:
            total += gap
        elif kind == 0:
            doubt += gap - gap
            total = gap if gap > total else total
        else:
            total += (gap / scale) ** order
    return total + doubt


@kernel
def pair_powers(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    kind: int,
    order: float,
    scales: NDArray[np.float64],
    same: bool,  # noqa: FBT001  # kernels are called by position
    lanes: NDArray[np.float64],
    doubts: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Add `sum_powers` of every row of ``first`` and every row of ``second`` to ``out`` (row, row).

    With ``same`` only the pairs above the diagonal are computed. ``scales`` (row, row) is read for kind 3 only, and
    a pair of scale 0 has no differences. O(row^2 * value) time.
    """
    for i in range(first.shape[0]):
        for j in range(i + 1 if same else 0, second.shape[0]):
            if kind == 0:
                largest = sum_powers(first[i], second[j], kind, order, 1.0, lanes, doubts)
                if out[i, j] == out[i, j] and not largest <= out[i, j]:
                    out[i, j] = largest
            elif kind != 3:
                out[i, j] += sum_powers(first[i], second[j], kind, order, 1.0, lanes, doubts)
            elif scales[i, j] != 0:
                out[i, j] += sum_powers(first[i], second[j], kind, order, scales[i, j], lanes, doubts)


@kernel
def merge_quantiles(
    first: NDArray[np.floating[Any]],
    first_counts: NDArray[np.int64],
    first_mass: int,
    second: NDArray[np.floating[Any]],
    second_counts: NDArray[np.int64],
    second_mass: int,
    kind: int,
    order: float,
    scale: float,
) -> float:
    """Return the integral (or maximum) of powers of the difference of two quantile functions.

    ``first`` and ``second`` (atom,) ascend; every unit of an atom's count weighs ``mass``, so that both sides weigh
    the same in all. Empty counts say one per atom. Masses are integers, so the pieces of the common refinement are
    exact. Return -1 where an input does not ascend or holds NaN. O(atoms of both) time, nothing allocated.
    """
    n = first.shape[0]
    m = second.shape[0]
    if not (first[0] == first[0] and second[0] == second[0]):
        return -1.0
    total = 0.0
    part = 0.0
    parts = 0
    i = 0
    j = 0
    left: Any = first_mass * first_counts[0] if first_counts.shape[0] else first_mass
    right: Any = second_mass * second_counts[0] if second_counts.shape[0] else second_mass
    while True:
        if left == 0:
            i += 1
            if i == n:
                break
            if not first[i] >= first[i - 1]:
                return -1.0
            left = first_mass * first_counts[i] if first_counts.shape[0] else first_mass
            continue
        if right == 0:
            j += 1
            if j == m:
                break
            if not second[j] >= second[j - 1]:
                return -1.0
            right = second_mass * second_counts[j] if second_counts.shape[0] else second_mass
            continue
        taken = min(left, right)
        left -= taken
        right -= taken
        gap = float(abs(np.float64(first[i]) - np.float64(second[j])))
        if kind == 0:
            if not gap <= total:
                total = gap
        elif kind == 1:
            part += taken * gap
        elif kind == 2:
            part += taken * (gap * gap)
        else:
            part += taken * (gap / scale) ** order
        parts += 1
        if parts == 1024:  # a long sum of small terms rounds less in pieces
            total += part
            part = 0.0
            parts = 0
    return total + part
