"""Vietoris-Rips persistence of one connectome, by whichever engine is installed. Numbers only.

Rules to keep: the distance is ``1 - connectome`` in float32 with diagonal 0 (engines read the diagonal as the birth
of a vertex); H0 comes exactly from the births, because every engine drops its bars of length 0; an engine only ever
sees a finite matrix (a NaN row makes all of them return an empty H1 without an error).
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dynome_analysis.homology import births, check_connectome
from dynome_recorder.errors import InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ENGINES",
    "Engine",
    "RipsEngine",
    "find_engine",
    "functional_persistence",
    "rips_diagrams",
    "rips_distances",
]

Engine = Literal["auto", "giotto-ph", "ripser"]


class RipsFunction(Protocol):
    """Diagrams of a finite metric space in degrees 1 to ``highest``, over the field of two elements."""

    def __call__(self, distances: NDArray[np.float32], highest: int) -> Sequence[NDArray[np.floating[Any]]]:
        """Return one (point, 2) array of births and deaths per degree 1 ... ``highest``."""
        ...


@dataclass(frozen=True)
class RipsEngine:
    """A way to compute Rips diagrams: module and distribution that it needs, highest degree it knows, function."""

    module: str
    distribution: str
    highest_dimension: int
    diagrams: RipsFunction

    @property
    def is_installed(self) -> bool:
        """Whether the module can be imported, found out without importing it."""
        return importlib.util.find_spec(self.module) is not None


def _giotto_ph(distances: NDArray[np.float32], highest: int) -> Sequence[NDArray[np.floating[Any]]]:
    from gph import ripser_parallel

    # An infinite threshold lets giotto-ph take the enclosing radius itself; edge collapse costs more than it saves on
    # correlations.
    found = ripser_parallel(
        distances, maxdim=highest, thresh=np.inf, metric="precomputed", collapse_edges=False, n_threads=1
    )
    return list(found["dgms"][1:])


def _ripser(distances: NDArray[np.float32], highest: int) -> Sequence[NDArray[np.floating[Any]]]:
    from ripser import ripser

    with warnings.catch_warnings():
        # ripser.py guesses that a matrix with more columns than rows, or a tiny one, may be a mistake; ours is a
        # distance matrix.
        warnings.simplefilter("ignore")
        found = ripser(distances, maxdim=highest, thresh=np.inf, distance_matrix=True)
    return list(found["dgms"][1:])


# In the order in which "auto" tries them.
ENGINES: Mapping[Engine, RipsEngine] = {
    "giotto-ph": RipsEngine("gph", "giotto-ph", 2, _giotto_ph),
    "ripser": RipsEngine("ripser", "ripser", 2, _ripser),
}


def find_engine(engine: Engine = "auto") -> Engine:
    """Return the name of the engine to use: the one asked for, or for "auto" the first that is installed.

    Raises
    ------
    InvalidArgumentError
        The name is not a known engine.
    MissingExtraError
        The engine, or for "auto" every engine, is missing.
    """
    if engine == "auto":
        for name, candidate in ENGINES.items():
            if candidate.is_installed:
                return name
        raise MissingExtraError('Rips diagrams need giotto-ph or ripser: pip install "dynome[analysis]"')
    if engine not in ENGINES:
        raise InvalidArgumentError(f"engine must be one of {', '.join(('auto', *ENGINES))}; got {engine!r}")
    if not ENGINES[engine].is_installed:
        extra = "giotto" if engine == "giotto-ph" else "analysis"
        raise MissingExtraError(
            f'the Rips engine {engine!r} is not installed: pip install "dynome[{extra}]", or use engine="auto"'
        )
    return engine


def rips_distances(connectome: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return ``1 - connectome`` as float32 (unit, unit) with diagonal 0; weights above 1 count as 1."""
    weights = check_connectome(connectome)
    distances: NDArray[np.float32] = np.maximum(np.float32(1) - weights, np.float32(0))
    np.fill_diagonal(distances, 0)
    return distances


def rips_diagrams(
    connectome: NDArray[np.floating[Any]], *, dimensions: Sequence[int] = (0, 1), engine: Engine = "auto"
) -> dict[int, NDArray[np.float64]]:
    """Compute persistence diagrams of the Rips filtration on ``1 - connectome``, over the field of two elements.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite.
    dimensions : sequence of int
        Degrees out of 0, 1, 2. Degree 2 is for few units only.
    engine : {"auto", "giotto-ph", "ripser"}
        What computes degrees above 0; "auto" takes the first that is installed, in this order.

    Returns
    -------
    dict of int to float64, shape (point, 2)
        Birth and death per point, sorted by (birth, death). Degree 0 has exactly one bar per unit: unit - 1 deaths
        ``1 - births`` (bars of length 0 included) and one infinite bar. Higher degrees have no bars of length 0 or
        infinity.

    Raises
    ------
    InvalidArgumentError
        A degree or an engine that is not known, or a matrix that is no connectome.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    Degree 0: O(unit^2). Degree 1: the engine's, between O(unit^2) and far worse, O(unit^2) memory and more.
    Functional persistence uses the same distance and degrees [authors' code: P]; the engine is our choice [O].
    """
    wanted = sorted({int(dimension) for dimension in dimensions})
    if not wanted or wanted[0] < 0 or wanted[-1] > 2:
        raise InvalidArgumentError(f"dimensions must be degrees out of 0, 1, 2; got {tuple(dimensions)}")
    diagrams: dict[int, NDArray[np.float64]] = {}
    if 0 in wanted:
        diagrams[0] = _components(connectome)
    if wanted[-1] > 0:
        name = find_engine(engine)
        distances = rips_distances(connectome)
        # Fewer than 4 points span no cycle, and some engines refuse to look.
        few = distances.shape[0] < 4
        found = [] if few else ENGINES[name].diagrams(distances, wanted[-1])
        for dimension in wanted:
            if dimension > 0:
                diagrams[dimension] = _tidy(np.empty((0, 2)) if few else found[dimension - 1])
    return diagrams


def functional_persistence(diagram: NDArray[np.floating[Any]]) -> float:
    """Return FP, the L2 norm of the lifetimes of an H1 diagram (point, 2) [functional-persistence authors' code: P]."""
    lifetimes = np.asarray(diagram, np.float64)
    return float(np.linalg.norm(lifetimes[:, 1] - lifetimes[:, 0]))


def _components(connectome: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the H0 diagram from the births: components merge at ``1 - b``, in the engines' float32 arithmetic."""
    merged = np.maximum(np.float32(1) - births(connectome)[::-1], np.float32(0)).astype(np.float64)
    diagram = np.zeros((merged.size + 1, 2))
    diagram[:-1, 1] = merged
    diagram[-1, 1] = np.inf
    return diagram


def _tidy(diagram: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return a diagram as float64, sorted by (birth, death), without bars of length 0, so that engines are equal."""
    points = np.asarray(diagram, np.float64).reshape(-1, 2)
    points = points[points[:, 1] > points[:, 0]]
    ordered: NDArray[np.float64] = points[np.lexsort((points[:, 1], points[:, 0]))]
    return ordered
