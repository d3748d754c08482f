"""Columns of norm 1, whose products are correlations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLUMNS", "column_magnitudes", "standardise_columns"]

# Columns that go through all passes together: 1000 samples of them fit into the second cache, so that memory is read
# once and not once per pass.
COLUMNS = 256


@kernel
def column_magnitudes(
    activations: NDArray[np.floating[Any]], poison: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Write the largest |value| of every column of ``activations`` (sample, unit); not finite where a value is not.

    ``poison`` (unit,) is work space: ``x - x`` is 0 for finite x and NaN otherwise, which keeps the loop free of
    branches.
    """
    samples, units = activations.shape
    poison[:] = 0.0
    out[:] = 0.0
    for s in range(samples):
        row = activations[s]
        for u in range(units):
            value = np.float64(abs(row[u]))
            poison[u] += value - value
            out[u] = value if value > out[u] else out[u]
    for u in range(units):
        out[u] += poison[u]


@kernel
def standardise_columns(
    activations: NDArray[np.floating[Any]],
    scale: NDArray[np.float64],
    centre: bool,  # noqa: FBT001  # kernels are called by position
    tolerance: float,
    work: NDArray[np.float64],
    out: NDArray[np.floating[Any]],
    dead: NDArray[np.bool_],
) -> bool:
    """Write columns of Euclidean norm 1, and of mean 0 if ``centre``; columns that do not vary become 0.

    Parameters
    ----------
    activations : floating, shape (sample, unit)
    scale : float64, shape (unit,)
        Factor per column that keeps its squares from overflowing or vanishing; a power of two rounds nothing.
    centre : bool
        Subtract the mean, so that products are correlations; else they are cosines.
    tolerance : float
        A column is dead when the root mean square of what remains (its standard deviation, if centred) is at most
        ``tolerance`` times the root mean square of its values.
    work : float64, shape (2, at least COLUMNS)
        Work space.
    out : floating, shape (sample, unit)
    dead : bool, shape (unit,)

    Returns
    -------
    bool
        Whether all values were finite; where they were not, ``out`` says nothing.

    Notes
    -----
    Two passes with float64 accumulators: a one-pass covariance in float32 loses everything when the mean is large.
    Loops run along rows, so that they are contiguous and vectorise over units.
    """
    samples, units = activations.shape
    finite = True
    for first in range(0, units, COLUMNS):
        width = min(COLUMNS, units - first)
        mean = work[0, :width]
        size = work[1, :width]
        factor = scale[first : first + width]
        for u in range(width):
            mean[u] = 0.0
            size[u] = 0.0
        for s in range(samples):
            row = activations[s, first : first + width]
            for u in range(width):
                mean[u] += row[u] * factor[u]
        for u in range(width):
            finite &= bool(np.isfinite(mean[u]))
            mean[u] = mean[u] / samples if centre else 0.0
        for s in range(samples):
            row = activations[s, first : first + width]
            for u in range(width):
                difference = row[u] * factor[u] - mean[u]
                size[u] += difference * difference
        for u in range(width):
            # Sum of squares about zero = about the mean + samples * mean^2.
            total = size[u] + samples * mean[u] * mean[u]
            dead[first + u] = not (size[u] > tolerance * tolerance * total)
            size[u] = 0.0 if dead[first + u] else 1.0 / np.sqrt(size[u])
        for s in range(samples):
            row = activations[s, first : first + width]
            target = out[s, first : first + width]
            for u in range(width):
                target[u] = (row[u] * factor[u] - mean[u]) * size[u]
    return finite
