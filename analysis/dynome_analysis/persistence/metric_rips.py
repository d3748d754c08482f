"""Vietoris-Rips persistence of any distance matrix, not only of a connectome's. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology.births import births
from dynome_analysis.persistence.loops import loop_lengths
from dynome_analysis.persistence.rips import Engine, rips_diagrams
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["metric_components", "metric_diagrams"]

LARGEST = np.finfo(np.float32).max
# Below 1, weights 1 - k / RANKS are different float32 for different k, and so are distances k / RANKS.
RANKS = 1 << 24


def metric_diagrams(
    distances: NDArray[np.floating[Any]],
    *,
    dimensions: Sequence[int] = (0, 1),
    longest: float = np.inf,
    field: int = 2,
    engine: Engine = "auto",
    memory_limit: int | None = None,
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
    field, engine, memory_limit
        As for `dynome_analysis.persistence.rips.rips_diagrams`.

    Returns
    -------
    dict of int to float64, shape (point, 2)
        Sorted by (birth, death). Degree 0 has one bar per point, those of length 0 included; what is alive at the end
        has death infinity.

    Raises
    ------
    InvalidArgumentError
        Not square, not symmetric, or vertex weights on the diagonal; a longest edge below 0 or NaN; a degree, field or
        engine that is not known, or more than 16 million different distances for another engine than ours.
    InvalidDataError
        NaN, a negative distance, or a memory limit that does not suffice.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    Degree 0 as `metric_components`. Degree 1 over two elements by our own engine, `loop_lengths`.
    Everything else takes an engine for connectomes: what is paired depends on the order of the edges alone, so it is
    given their ranks. An edge that does not exist is given the largest float32 and comes last; what dies by it never
    dies, which is the persistence of the filtration that ends before it. One more
    float32 copy of the matrix, and 24 bytes per pair where ranks are needed.
    """
    wanted = sorted({int(degree) for degree in dimensions})
    matrix = _check_distances(distances, longest)
    own = field == 2 and engine in ("auto", "dynome")
    diagrams: dict[int, NDArray[np.float64]] = {}
    if 0 in wanted:
        diagrams[0] = metric_components(matrix)
    if 1 in wanted and own:
        threshold = float(np.max(matrix, where=matrix < LARGEST, initial=0.0))
        diagrams[1] = loop_lengths(matrix, threshold=threshold, memory_limit=memory_limit).astype(np.float64)
    others = [degree for degree in wanted if degree not in diagrams]
    if others or not wanted:
        diagrams |= _by_ranks(matrix, others, field=field, engine=engine)
    return {degree: _truncate(diagrams[degree]) for degree in wanted}


def metric_components(distances: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the H0 diagram of a distance matrix, one bar per point; O(point^2) time, one copy of the matrix.

    Births keep the heaviest edges. Non-negative floats order like their bit patterns, so subtracting these from that of
    the largest turns short into heavy, exactly and back.
    """
    top = LARGEST.view(np.int32)
    heavy = births((top - distances.view(np.int32)).view(np.float32), check=False)
    merged = (top - heavy.view(np.int32)).view(np.float32)
    diagram = np.zeros((len(distances), 2))
    diagram[:-1, 1] = merged[::-1]
    diagram[-1, 1] = np.inf
    return diagram


def _by_ranks(
    matrix: NDArray[np.float32], dimensions: Sequence[int], *, field: int, engine: Engine
) -> dict[int, NDArray[np.float64]]:
    """Let an engine for connectomes pair the ranks of the distances, and put the distances back."""
    lengths, ranks = np.unique(matrix, return_inverse=True)
    if lengths.size > RANKS:
        raise InvalidArgumentError(
            f"distances have {lengths.size} different values; degrees above 1, other fields and other engines take at "
            f"most {RANKS}"
        )
    weights = (1.0 - ranks.reshape(matrix.shape) / RANKS).astype(np.float32)
    found = rips_diagrams(weights, dimensions=dimensions, field=field, engine=engine)
    return {
        degree: lengths[np.rint(points * RANKS).astype(np.int64)].astype(np.float64).reshape(-1, 2)
        for degree, points in found.items()
    }


def _check_distances(distances: NDArray[np.floating[Any]], longest: float) -> NDArray[np.float32]:
    """Return distances as float32 with the largest float32 for edges that do not exist, or say what is wrong."""
    if not longest >= 0:
        raise InvalidArgumentError(f"longest must be a length of at least 0; got {longest}")
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
    # Bit patterns are compared from here on, and that of -0.0, as -log(1) gives it, is not that of 0.0.
    return np.minimum(np.abs(np.ascontiguousarray(shorter)), LARGEST)


def _truncate(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut a diagram at the edges that do not exist, and sort it."""
    # All of them come at once and make a full simplex, so what they bear they kill: only deaths need a cut.
    deaths = np.where(points[:, 1] >= LARGEST, np.inf, points[:, 1])
    ordered: NDArray[np.float64] = np.column_stack([points[:, 0], deaths])[np.lexsort((deaths, points[:, 0]))]
    return ordered
