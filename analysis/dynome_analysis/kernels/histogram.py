"""Counting weights of [0, 1] in uniform bins, and comparing two such counts as sorted values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["add_to_histogram", "add_upper_triangle_to_histogram", "compare_histograms"]


@kernel
def add_to_histogram(values: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    """Add every entry of ``values``, of one or two dimensions, to ``counts`` (bin,).

    Weight w goes to bin ``min(int(w * bins), bins - 1)``. With a power of two of bins the product is exact, so that no
    weight is counted beside its bin. What does not lie in [0, 1], NaN included, is counted in the last bin and never
    written outside ``counts``.
    """
    bins = counts.shape[0]
    if values.ndim == 1:
        for index in range(values.shape[0]):
            scaled = values[index] * bins
            counts[int(scaled) if 0 <= scaled < bins else bins - 1] += 1
    else:
        for i in range(values.shape[0]):
            row = values[i]
            for j in range(row.shape[0]):
                scaled = row[j] * bins
                counts[int(scaled) if 0 <= scaled < bins else bins - 1] += 1


@kernel
def add_upper_triangle_to_histogram(matrix: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    """Add the entries above the diagonal of ``matrix`` (unit, unit) to ``counts`` (bin,), as `add_to_histogram`."""
    bins = counts.shape[0]
    for i in range(matrix.shape[0] - 1):
        row = matrix[i, i + 1 :]
        for j in range(row.shape[0]):
            scaled = row[j] * bins
            counts[int(scaled) if 0 <= scaled < bins else bins - 1] += 1


@kernel
def compare_histograms(
    first: NDArray[np.int64], second: NDArray[np.int64], order: float, scale: float
) -> tuple[float, float]:
    """Return the sum of ``(|x_l - y_l| / scale)^order`` and the largest ``|x_l - y_l|``, values at their bin centres.

    ``first`` and ``second`` (bin,) count equally many values of [0, 1], in bins of their own number; x and y are those
    values in ascending order. One merge of the cumulative counts: O(bins) time, however many values there are.
    """
    total = 0.0
    largest = 0.0
    position = 0
    left = 0
    for index in range(first.shape[0]):
        remaining = first[index]
        centre = (index + 0.5) / first.shape[0]
        while remaining > 0:
            while left == 0:
                left = second[position]
                position += 1
            together = min(remaining, left)
            difference = abs(centre - (position - 0.5) / second.shape[0])
            largest = max(largest, difference)
            part = difference / scale
            total += together * (part * part if order == 2.0 else part**order)
            remaining -= together
            left -= together
    return total, largest
