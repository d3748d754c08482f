"""Vietoris-Rips persistence of any distance matrix, not only of ``1 - connectome``. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology import births
from dynome_analysis.persistence import ENGINES, Engine, find_engine
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["metric_components", "metric_diagrams"]

LARGEST = np.finfo(np.float32).max


def metric_diagrams(
    distances: NDArray[np.floating[Any]],
    *,
    dimensions: Sequence[int] = (0, 1),
    longest: float = np.inf,
    engine: Engine = "auto",
    field: int = 2,
) -> dict[int, NDArray[np.float64]]:
    """Compute the diagrams of the Rips filtration of a distance matrix, up to a longest edge.

    Parameters
    ----------
    distances : floating, shape (point, point)
        Symmetric, not negative, diagonal 0; infinity where there is no edge. Rounded to float32.
    dimensions : sequence of int
        Degrees out of 0, 1, 2.
    longest : float
        Longer edges do not exist.
    engine, field
        As for `dynome_analysis.persistence.rips_diagrams`.

    Returns
    -------
    dict of int to float64, shape (point, 2)
        Sorted by (birth, death). Degree 0 has one bar per point, those of length 0 included; what is alive at the end
        has death infinity.

    Raises
    ------
    InvalidArgumentError
        Not square, not symmetric, or vertex weights on the diagonal.
    InvalidDataError
        NaN, or a negative distance.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    An edge that does not exist is given the largest float32 and so comes last in the filtration. What is born by it is
    left out and what dies by it never dies, which is the persistence of the filtration that ends before it. Cost as
    `rips_diagrams`, with one more float32 copy of the matrix.
    """
    matrix = _check_distances(distances, longest)
    diagrams = {}
    for degree in sorted({int(degree) for degree in dimensions}):
        diagrams[degree] = metric_components(matrix) if degree == 0 else np.empty((0, 2))
    highest = max(diagrams)
    if highest > 0 and len(matrix) > 3:
        found = ENGINES[find_engine(engine)].diagrams(matrix, highest)
        for degree in diagrams:
            if degree > 0:
                diagrams[degree] = np.asarray(found[degree - 1], np.float64).reshape(-1, 2)
    return {degree: _truncate(points) for degree, points in diagrams.items()}


def metric_components(distances: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the H0 diagram of a distance matrix, one bar per point; O(point^2) time, one copy of the matrix.

    Births keep the heaviest edges. Non-negative floats order like their bit patterns, so subtracting these from that of
    the largest turns short into heavy, exactly and back.
    """
    top = LARGEST.view(np.int32)
    heavy = births((top - distances.view(np.int32)).view(np.float32))
    merged = (top - heavy.view(np.int32)).view(np.float32)
    diagram = np.zeros((len(distances), 2))
    diagram[:-1, 1] = merged[::-1]
    diagram[-1, 1] = np.inf
    return diagram


def _check_distances(distances: NDArray[np.floating[Any]], longest: float) -> NDArray[np.float32]:
    """Return distances as float32 with the largest float32 for edges that do not exist, or say what is wrong."""
    matrix = np.asarray(distances)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise InvalidArgumentError(f"distances must be a square matrix (point, point); got shape {matrix.shape}")
    if np.isnan(matrix).any() or (matrix < 0).any():
        raise InvalidDataError("distances must not be negative or NaN; infinity stands for an edge that does not exist")
    if np.diagonal(matrix).any():
        raise InvalidArgumentError(
            "distances must have diagonal 0: vertex weights are not read; np.fill_diagonal(distances, 0) drops them"
        )
    with np.errstate(over="ignore"):
        shorter = np.where(matrix <= longest, matrix, np.inf).astype(np.float32)
    if not np.array_equal(shorter, shorter.T):
        raise InvalidArgumentError("distances must be exactly symmetric: use (distances + distances.T) / 2")
    return np.minimum(np.ascontiguousarray(shorter), LARGEST)


def _truncate(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut a diagram at the edges that do not exist, and sort it."""
    kept = points[points[:, 0] < LARGEST]
    kept[kept[:, 1] >= LARGEST, 1] = np.inf
    ordered: NDArray[np.float64] = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
    return ordered
