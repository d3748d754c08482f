"""Columns of mean 0 and norm 1, whose product is the correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .flags import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["column_magnitudes", "standardise_columns"]


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
    tolerance: float,
    work: NDArray[np.float64],
    out: NDArray[np.float32],
    dead: NDArray[np.bool_],
) -> None:
    """Write columns of mean 0 and Euclidean norm 1; constant columns become 0 and are marked dead.

    Parameters
    ----------
    activations : floating, shape (sample, unit)
        Finite values.
    scale : float64, shape (unit,)
        Factor per column that brings its largest |value| near 1, so that no square overflows or vanishes; a power of
        two rounds nothing.
    tolerance : float
        A column is dead when its standard deviation is at most ``tolerance`` times its root mean square.
    work : float64, shape (2, unit)
        Work space.
    out : float32, shape (sample, unit)
    dead : bool, shape (unit,)

    Notes
    -----
    Two passes with float64 accumulators: a one-pass covariance in float32 loses everything when the mean is large.
    Loops run along rows, so that they are contiguous and vectorise over units.
    """
    samples, units = activations.shape
    mean = work[0]
    centred = work[1]
    for u in range(units):
        mean[u] = 0.0
        centred[u] = 0.0
    for s in range(samples):
        row = activations[s]
        for u in range(units):
            mean[u] += row[u] * scale[u]
    for u in range(units):
        mean[u] /= samples
    for s in range(samples):
        row = activations[s]
        for u in range(units):
            difference = row[u] * scale[u] - mean[u]
            centred[u] += difference * difference
    for u in range(units):
        # Sum of squares about zero = about the mean + samples * mean^2.
        total = centred[u] + samples * mean[u] * mean[u]
        dead[u] = not (centred[u] > tolerance * tolerance * total)
        centred[u] = 0.0 if dead[u] else 1.0 / np.sqrt(centred[u])
    for s in range(samples):
        row = activations[s]
        for u in range(units):
            out[s, u] = (row[u] * scale[u] - mean[u]) * centred[u]
