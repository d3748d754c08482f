"""The (birth, death) plane: lengths between points, ways to the diagonal, near neighbours. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.spatial import KDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

__all__ = ["GroundNorm", "lengths", "nearest_pairs", "to_diagonal"]

GroundNorm = Literal[1, 2] | float


def lengths(differences: Points, ground_norm: GroundNorm) -> Points:
    """Return the norm of every row of ``differences`` (row, 2)."""
    found: Points = np.linalg.norm(differences, ord=ground_norm, axis=1)
    return found


def to_diagonal(points: Points, ground_norm: GroundNorm) -> Points:
    """Return how far every point (point, 2) lies from the diagonal: half its persistence times ``2^(1 / norm)``."""
    found: Points = np.abs(points[:, 1] - points[:, 0]) * (0.5 * 2 ** (1 / ground_norm))
    return found


def nearest_pairs(
    left: Points, right: Points, count: int, ground_norm: GroundNorm
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (row, column) of every point with its ``count`` nearest ones of the other side, each once."""
    pairs = []
    for points, others, swapped in ((left, right, False), (right, left, True)):
        near = KDTree(others).query(points, k=range(1, 1 + min(count, len(others))), p=ground_norm)[1]
        own = np.repeat(np.arange(len(points)), near.shape[1])
        rows, columns = (near.reshape(-1), own) if swapped else (own, near.reshape(-1))
        pairs.append(rows * len(right) + columns)
    rows, columns = np.divmod(np.unique(np.concatenate(pairs)), len(right))
    return rows, columns
