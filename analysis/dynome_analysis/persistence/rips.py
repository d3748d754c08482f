"""Vietoris-Rips persistence of one connectome: our own engine for degree 1, others for what it does not do.

Numbers only. Rules to keep: the distance is a decreasing function of the weight, in float32, with diagonal 0 (engines
read the diagonal as the birth of a vertex); H0 comes exactly from the births, because every engine drops its bars of
length 0; an engine only ever sees a finite matrix (a NaN row makes the others return an empty H1 without an error).
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dynome_analysis.homology.births import births, check_connectome
from dynome_analysis.persistence.loops import loop_weights
from dynome_recorder.errors import InvalidArgumentError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ENGINES",
    "TRANSFORMS",
    "Engine",
    "RipsEngine",
    "Transform",
    "find_engine",
    "functional_persistence",
    "parse_rips_options",
    "rips_diagrams",
    "rips_distances",
]

Engine = Literal["auto", "dynome", "giotto-ph", "ripser", "gudhi"]
Transform = Literal["1 - r", "sqrt(1 - r)", "sqrt(1 - r^2)", "arccos r"]

# Decreasing functions of weights in [0, 1], float64: 0 where the weight is 1. "1 - r" is what functional persistence
# takes [P]; the others are common distances of correlations [O].
TRANSFORMS: Mapping[Transform, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "1 - r": lambda weights: 1 - weights,
    "sqrt(1 - r)": lambda weights: np.sqrt(1 - weights),
    "sqrt(1 - r^2)": lambda weights: np.sqrt((1 - weights) * (1 + weights)),
    "arccos r": np.arccos,
}
# Weights that are transformed at once: float64 of all pairs would be twice the connectome.
PART = 1 << 20
HIGHEST_DIMENSION = 2
LARGEST_FIELD = 46337


class RipsFunction(Protocol):
    """Diagrams of a checked connectome in degrees 1 to ``highest``, over the field of ``field`` elements."""

    def __call__(
        self,
        weights: NDArray[np.float32],
        *,
        transform: Transform,
        highest: int,
        field: int,
        memory_limit: int | None,
    ) -> Sequence[NDArray[np.floating[Any]]]:
        """Return one (point, 2) array of births and deaths per degree 1 ... ``highest``."""
        ...


@dataclass(frozen=True)
class RipsEngine:
    """A way to compute Rips diagrams: what it needs, what it knows, and the function.

    Attributes
    ----------
    module, distribution : str
        What is imported, and the distribution that brings it.
    highest_dimension : int
    diagrams : RipsFunction
    extra : str
        The extra of ours that installs it, if there is one.
    other_fields : bool
        Whether it knows fields of other than two elements.
    """

    module: str
    distribution: str
    highest_dimension: int
    diagrams: RipsFunction
    extra: str = ""
    other_fields: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether the module can be imported, found out without importing it."""
        return importlib.util.find_spec(self.module) is not None

    def knows(self, dimension: int, field: int) -> bool:
        """Whether it computes this degree over this field."""
        return dimension <= self.highest_dimension and (field == 2 or self.other_fields)


def _dynome(
    weights: NDArray[np.float32], *, transform: Transform, highest: int, field: int, memory_limit: int | None
) -> Sequence[NDArray[np.floating[Any]]]:
    # Paired by weight: the float32 of 1 - r would merge weights that differ.
    return [_transformed(loop_weights(weights, memory_limit=memory_limit, check=False), transform)]


def _giotto_ph(
    weights: NDArray[np.float32], *, transform: Transform, highest: int, field: int, memory_limit: int | None
) -> Sequence[NDArray[np.floating[Any]]]:
    from gph import ripser_parallel

    # An infinite threshold lets giotto-ph take the enclosing radius itself; edge collapse costs more than it saves on
    # correlations.
    found = ripser_parallel(
        _distances(weights, transform),
        maxdim=highest,
        thresh=np.inf,
        coeff=field,
        metric="precomputed",
        collapse_edges=False,
        n_threads=1,
    )
    return list(found["dgms"][1:])


def _ripser(
    weights: NDArray[np.float32], *, transform: Transform, highest: int, field: int, memory_limit: int | None
) -> Sequence[NDArray[np.floating[Any]]]:
    from ripser import ripser

    with warnings.catch_warnings():
        # ripser.py guesses that a matrix with more columns than rows, or a tiny one, may be a mistake; ours is a
        # distance matrix.
        warnings.simplefilter("ignore")
        found = ripser(_distances(weights, transform), maxdim=highest, thresh=np.inf, coeff=field, distance_matrix=True)
    return list(found["dgms"][1:])


def _gudhi(
    weights: NDArray[np.float32], *, transform: Transform, highest: int, field: int, memory_limit: int | None
) -> Sequence[NDArray[np.floating[Any]]]:
    from gudhi import RipsComplex

    distances = _distances(weights, transform)
    # Beyond the enclosing radius the complex is a cone: nothing is born, and all are dead.
    radius = float(distances.max(axis=1).min())
    tree = RipsComplex(distance_matrix=distances, max_edge_length=radius).create_simplex_tree(max_dimension=highest + 1)
    tree.compute_persistence(homology_coeff_field=field)
    return [tree.persistence_intervals_in_dimension(dimension) for dimension in range(1, highest + 1)]


# In the order in which "auto" tries them.
ENGINES: Mapping[Engine, RipsEngine] = {
    "dynome": RipsEngine("dynome_analysis", "dynome", 1, _dynome, extra="analysis", other_fields=False),
    "giotto-ph": RipsEngine("gph", "giotto-ph", 2, _giotto_ph, extra="giotto"),
    "ripser": RipsEngine("ripser", "ripser", 2, _ripser, extra="analysis"),
    "gudhi": RipsEngine("gudhi", "gudhi", 2, _gudhi),
}


def find_engine(engine: Engine = "auto", *, dimension: int = 1, field: int = 2) -> Engine:
    """Return the name of the engine to use: the one asked for, or for "auto" the first that is installed.

    Parameters
    ----------
    engine : {"auto", "dynome", "giotto-ph", "ripser", "gudhi"}
    dimension : int
        The highest degree that it has to know.
    field : int
        The prime number of elements of the field that it has to know.

    Raises
    ------
    InvalidArgumentError
        The name is not a known engine, or the engine does not know the degree or the field.
    MissingExtraError
        The engine, or for "auto" every engine that would do, is missing.
    """
    if engine != "auto" and engine not in ENGINES:
        raise InvalidArgumentError(f"engine must be one of {', '.join(('auto', *ENGINES))}; got {engine!r}")
    fitting = {name: candidate for name, candidate in ENGINES.items() if candidate.knows(dimension, field)}
    wanted = f"degree {dimension} over the field of {field} elements"
    if engine == "auto":
        for name, candidate in fitting.items():
            if candidate.is_installed:
                return name
        raise MissingExtraError(
            f'Rips diagrams of {wanted} need one of {", ".join(fitting)}: pip install "dynome[analysis]"'
        )
    if engine not in fitting:
        raise InvalidArgumentError(f'the Rips engine {engine!r} does not compute {wanted}: use engine="auto"')
    found = ENGINES[engine]
    if not found.is_installed:
        source = f"dynome[{found.extra}]" if found.extra else found.distribution
        raise MissingExtraError(
            f'the Rips engine {engine!r} is not installed: pip install "{source}", or use engine="auto"'
        )
    return engine


def rips_distances(connectome: NDArray[np.floating[Any]], *, transform: Transform = "1 - r") -> NDArray[np.float32]:
    """Return the distances between units: a decreasing function of the weights, diagonal 0.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite; weights above 1 count as 1.
    transform : {"1 - r", "sqrt(1 - r)", "sqrt(1 - r^2)", "arccos r"}
        The function: "1 - r" as functional persistence has it [P], the others are our choice [O].

    Returns
    -------
    float32, shape (unit, unit)
        New array. ``1 - r`` is computed in float32, the others in float64 and rounded.

    Raises
    ------
    InvalidArgumentError
        A transform that is not known, or a matrix that is no connectome.
    InvalidDataError
        A weight is negative, NaN or infinite.

    Notes
    -----
    O(unit^2) time and memory.
    """
    _check_transform(transform)
    return _distances(check_connectome(connectome), transform)


def rips_diagrams(
    connectome: NDArray[np.floating[Any]],
    *,
    dimensions: Sequence[int] = (0, 1),
    transform: Transform = "1 - r",
    field: int = 2,
    engine: Engine = "auto",
    memory_limit: int | None = None,
) -> dict[int, NDArray[np.float64]]:
    """Compute persistence diagrams of the Rips filtration of a connectome.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite.
    dimensions : sequence of int
        Degrees out of 0, 1, 2. Degree 2 is for few units only.
    transform : {"1 - r", "sqrt(1 - r)", "sqrt(1 - r^2)", "arccos r"}
        From weight to distance, as for `rips_distances`. It moves the points and changes nothing else: what is paired
        depends on the order of the weights alone.
    field : int
        Homology over the field of this prime number of elements.
    engine : {"auto", "dynome", "giotto-ph", "ripser", "gudhi"}
        What computes degrees above 0; "auto" takes for each degree the first that is installed, in this order.
        "dynome" is our own: degree 1 over the field of two elements.
    memory_limit : int, optional
        Bytes that "dynome" may take beside the connectome, half of the memory that is free by default [O]; the other
        engines keep to no limit.

    Returns
    -------
    dict of int to float64, shape (point, 2)
        Birth and death per point, sorted by (birth, death). Degree 0 has exactly one bar per unit: unit - 1 deaths,
        the transformed births of components (bars of length 0 included), and one infinite bar. Higher degrees have no
        bars of length 0 or infinity.

    Raises
    ------
    InvalidArgumentError
        A degree, transform, field or engine that is not known, or a matrix that is no connectome.
    InvalidDataError
        A weight is negative, NaN or infinite, or the memory limit does not suffice.
    MissingExtraError
        The engine is not installed.

    Notes
    -----
    Degree 0: O(unit^2). Degree 1: as `loop_weights`, O(unit^2) memory. Degree 2 and other
    fields: the engine's, far worse, O(unit^2) memory and more. Functional persistence uses the same distance and
    degrees [authors' code: P]; the engine is our choice [O]. METHODS.md section 3.
    """
    wanted, chosen = parse_rips_options(dimensions, transform=transform, field=field, engine=engine)
    weights = check_connectome(connectome)
    diagrams: dict[int, NDArray[np.float64]] = {}
    if wanted[0] == 0:
        diagrams[0] = _components(weights, transform)
    for name in dict.fromkeys(chosen.values()):
        degrees = [dimension for dimension, other in chosen.items() if other == name]
        # Fewer than 4 points span no cycle, and some engines refuse to look.
        found = (
            [np.empty((0, 2))] * degrees[-1]
            if len(weights) < 4
            else ENGINES[name].diagrams(
                weights, transform=transform, highest=degrees[-1], field=field, memory_limit=memory_limit
            )
        )
        diagrams.update({dimension: _tidy(found[dimension - 1]) for dimension in degrees})
    return diagrams


def functional_persistence(diagram: NDArray[np.floating[Any]]) -> float:
    """Return FP, the L2 norm of the lifetimes of an H1 diagram (point, 2) [functional-persistence authors' code: P]."""
    lifetimes = np.asarray(diagram, np.float64)
    return float(np.linalg.norm(lifetimes[:, 1] - lifetimes[:, 0]))


def parse_rips_options(
    dimensions: Sequence[int], *, transform: Transform = "1 - r", field: int = 2, engine: Engine = "auto"
) -> tuple[tuple[int, ...], dict[int, Engine]]:
    """Return the degrees, ascending, and the engine of each degree above 0, or say what `rips_diagrams` refuses."""
    wanted = tuple(sorted({int(dimension) for dimension in dimensions}))
    if not wanted or wanted[0] < 0 or wanted[-1] > HIGHEST_DIMENSION:
        raise InvalidArgumentError(f"dimensions must be degrees out of 0, 1, 2; got {tuple(dimensions)}")
    _check_transform(transform)
    # The bound is that of ripser.py and gudhi: products of two elements must fit 31 bits.
    if not 2 <= field <= LARGEST_FIELD or any(field % factor == 0 for factor in range(2, int(field**0.5) + 1)):
        raise InvalidArgumentError(f"field must be a prime number of at most {LARGEST_FIELD}; got {field}")
    return wanted, {degree: find_engine(engine, dimension=degree, field=field) for degree in wanted if degree > 0}


def _check_transform(transform: str) -> None:
    if transform not in TRANSFORMS:
        raise InvalidArgumentError(f"transform must be one of {', '.join(TRANSFORMS)}; got {transform!r}")


def _transformed(weights: NDArray[np.float32], transform: Transform) -> NDArray[np.float32]:
    """Return distances of weights, every one by itself, so that all engines see the same numbers."""
    if transform == "1 - r":
        distances: NDArray[np.float32] = np.float32(1) - weights
        return np.maximum(distances, np.float32(0), out=distances)
    distances = np.empty(weights.shape, np.float32)
    rows = max(PART // max(weights[:1].size, 1), 1)
    for first in range(0, len(weights), rows):
        part = np.minimum(weights[first : first + rows], np.float32(1)).astype(np.float64)
        distances[first : first + rows] = TRANSFORMS[transform](part)
    return distances


def _distances(weights: NDArray[np.float32], transform: Transform) -> NDArray[np.float32]:
    distances = _transformed(weights, transform)
    np.fill_diagonal(distances, 0)
    return distances


def _components(weights: NDArray[np.float32], transform: Transform) -> NDArray[np.float64]:
    """Return the H0 diagram from the births: components merge at their distance, in the engines' float32."""
    diagram = np.zeros((len(weights), 2))
    diagram[:-1, 1] = _transformed(births(weights, check=False)[::-1], transform)
    diagram[-1, 1] = np.inf
    return diagram


def _tidy(diagram: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return a diagram as float64, sorted by (birth, death), without bars of length 0, so that engines are equal."""
    points = np.asarray(diagram, np.float64).reshape(-1, 2)
    points = points[points[:, 1] > points[:, 0]]
    ordered: NDArray[np.float64] = points[np.lexsort((points[:, 1], points[:, 0]))]
    return ordered
