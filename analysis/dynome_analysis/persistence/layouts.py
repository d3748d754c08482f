"""Persistence diagrams in the layouts of other libraries, and back. Numbers only.

Ours, as `dynome_analysis.persistence.rips.rips_diagrams` makes it, is one mapping per snapshot: degree to float64
(point, 2), birth and death, sorted by (birth, death). The rule to keep: what a layout cannot hold is said in the
function that writes it, and can be asked back from the function that reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "check_points",
    "from_giotto",
    "from_gudhi",
    "from_persim",
    "sorted_points",
    "to_giotto",
    "to_gudhi",
    "to_persim",
]


def to_giotto(
    diagrams: Sequence[Mapping[int, NDArray[np.floating[Any]]]],
    *,
    dimensions: Sequence[int] | None = None,
    reduced_homology: bool = True,
    infinity_values: float = np.inf,
) -> NDArray[np.float64]:
    """Write diagrams as giotto-tda's array, padded as its `VietorisRipsPersistence` pads.

    Parameters
    ----------
    diagrams : sequence of mapping from int to floating, shape (point, 2)
        One mapping per snapshot.
    dimensions : sequence of int, optional
        Degrees to write; by default all that any snapshot has. A degree that a snapshot lacks counts as empty.
    reduced_homology : bool, default True
        Leave out, in degree 0, the bar that never dies (of several, the one that was born first).
    infinity_values : float, default infinity
        Death of every other bar that never dies; below its birth, the bar is left out.

    Returns
    -------
    float64, shape (sample, feature, 3)
        Rows [birth, death, degree], degrees ascending; new array. Every degree has as many rows as the largest diagram
        of that degree has points, at least one. Shorter diagrams end in rows on the diagonal, at the smallest birth
        that any sample has in the degree (0 where none has a point).

    Raises
    ------
    InvalidArgumentError
        No snapshot, no degree, or an array that is not (point, 2).
    InvalidDataError
        A NaN, a birth that is infinite, or a death before its birth.

    Notes
    -----
    Bars of length 0 cannot be told from padding, so they are left out, as giotto-tda does; `from_giotto` puts those of
    degree 0 back where it is told the number of units. O(points) time and memory. METHODS.md section 3.
    """
    if not len(diagrams):
        raise InvalidArgumentError("diagrams must hold at least one snapshot: an array of no samples has no degrees")
    degrees = sorted({int(d) for d in dimensions} if dimensions is not None else {d for one in diagrams for d in one})
    if not degrees:
        raise InvalidArgumentError("dimensions must name at least one degree, for example (0, 1)")
    blocks = []
    for degree in degrees:
        written = [
            _without_infinity(one, degree, reduced_homology=reduced_homology, infinity_values=infinity_values)
            for one in diagrams
        ]
        proper = [points[points[:, 0] < points[:, 1]] for points in written]
        longest = max(1, *(len(points) for points in proper))
        corner = min((float(points[:, 0].min()) for points in proper if len(points)), default=0.0)
        block = np.full((len(diagrams), longest, 3), corner)
        block[:, :, 2] = degree
        for row, points in zip(block, proper):
            row[: len(points), :2] = points
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def from_giotto(
    array: NDArray[np.floating[Any]],
    *,
    reduced_homology: bool = True,
    infinity_values: float = np.inf,
    units: int | None = None,
) -> list[dict[int, NDArray[np.float64]]]:
    """Read diagrams from giotto-tda's array; rows on the diagonal are padding and left out.

    Parameters
    ----------
    array : floating, shape (sample, feature, 3)
        Rows [birth, death, degree], in any order.
    reduced_homology : bool, default True
        The array lacks the bar of degree 0 that never dies: put it back, born at 0.
    infinity_values : float, default infinity
        Bars with exactly this death never die.
    units : int, optional
        How many bars each diagram of degree 0 had: bars [0, 0] of length 0 are put back until there are so many.

    Returns
    -------
    list of dict from int to float64, shape (point, 2)
        Per sample; sorted by (birth, death). Every degree of the array has an entry, an empty one where a sample has
        padding only.

    Raises
    ------
    InvalidArgumentError
        Not an array (sample, feature, 3) with whole degrees, or more bars than ``units``.
    InvalidDataError
        A NaN, a birth that is infinite, or a death before its birth.
    """
    triples = np.asarray(array)
    if triples.ndim != 3 or triples.shape[2] != 3 or triples.dtype.kind != "f":
        raise InvalidArgumentError(
            "array must be floating of shape (sample, feature, 3), rows [birth, death, degree]; got "
            f"{triples.dtype} of shape {triples.shape}"
        )
    degrees = np.unique(triples[:, :, 2])
    if not (np.isfinite(degrees) & (degrees >= 0) & (degrees == np.floor(degrees))).all():
        raise InvalidArgumentError(f"array must hold degrees 0, 1, 2, ... in its third column; got {degrees.tolist()}")
    found = []
    for sample in triples:
        diagram = {}
        for degree in degrees.astype(int).tolist():
            points = sorted_points(sample[sample[:, 2] == degree, :2])
            points = points[points[:, 0] < points[:, 1]]
            points[points[:, 1] == infinity_values, 1] = np.inf
            if degree == 0:
                points = _complete_components(points, reduced_homology=reduced_homology, units=units)
            diagram[degree] = points
        found.append(diagram)
    return found


def to_persim(
    diagram: Mapping[int, NDArray[np.floating[Any]]],
    *,
    reduced_homology: bool = False,
    infinity_values: float = np.inf,
) -> list[NDArray[np.float64]]:
    """Write one snapshot's diagrams as persim and ripser.py do (``"dgms"``): a list by degree.

    Parameters
    ----------
    diagram : mapping from int to floating, shape (point, 2)
    reduced_homology, infinity_values
        As for `to_giotto`; by default nothing is left out or changed. persim's images need finite deaths.

    Returns
    -------
    list of float64, shape (point, 2)
        Degree 0 first; a degree that is missing below the highest is an empty array. Bars of length 0 are kept.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `to_giotto`.
    """
    return [
        _without_infinity(diagram, degree, reduced_homology=reduced_homology, infinity_values=infinity_values)
        for degree in range(max(diagram, default=-1) + 1)
    ]


def from_persim(diagram: Sequence[NDArray[np.floating[Any]]]) -> dict[int, NDArray[np.float64]]:
    """Read one snapshot's diagrams from a list by degree, as ripser.py returns it; nothing is left out.

    A degree that our mapping did not have comes back as an empty one; raises as `to_persim`.
    """
    return {degree: sorted_points(points) for degree, points in enumerate(diagram)}


def to_gudhi(
    diagram: Mapping[int, NDArray[np.floating[Any]]],
    *,
    reduced_homology: bool = False,
    infinity_values: float = np.inf,
) -> list[tuple[int, tuple[float, float]]]:
    """Write one snapshot's diagrams as gudhi's ``SimplexTree.persistence()`` does: a list (degree, (birth, death)).

    Parameters
    ----------
    diagram : mapping from int to floating, shape (point, 2)
    reduced_homology, infinity_values
        As for `to_giotto`; by default nothing is left out or changed.

    Returns
    -------
    list of (int, (float, float))
        Highest degree first, then longest bar first, as gudhi sorts. Bars of length 0 are kept (gudhi itself lists
        them only for ``min_persistence=-1``); an empty degree leaves no trace.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `to_giotto`.

    Notes
    -----
    ``gudhi.representations`` takes arrays of one degree, one per snapshot: ``[one[1] for one in diagrams]``.
    """
    bars: list[tuple[int, tuple[float, float]]] = []
    for degree in sorted(diagram, reverse=True):
        points = _without_infinity(diagram, degree, reduced_homology=reduced_homology, infinity_values=infinity_values)
        longest_first = np.argsort(points[:, 0] - points[:, 1], kind="stable")
        bars += [(degree, (birth, death)) for birth, death in points[longest_first].tolist()]
    return bars


def from_gudhi(
    bars: Iterable[tuple[int, tuple[float, float]]], *, dimensions: Sequence[int] = ()
) -> dict[int, NDArray[np.float64]]:
    """Read one snapshot's diagrams from a list (degree, (birth, death)); nothing is left out.

    Parameters
    ----------
    bars : iterable of (int, (float, float))
    dimensions : sequence of int
        Degrees that get an entry even if there is no bar.

    Returns
    -------
    dict from int to float64, shape (point, 2)
        Degrees ascending, points sorted by (birth, death).

    Raises
    ------
    InvalidDataError
        As `to_giotto`.
    """
    found: dict[int, list[tuple[float, float]]] = {int(degree): [] for degree in dimensions}
    for degree, bar in bars:
        found.setdefault(int(degree), []).append(bar)
    return {degree: sorted_points(np.array(found[degree], np.float64).reshape(-1, 2)) for degree in sorted(found)}


def check_points(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return a diagram as float64 (point, 2), the same array where it is one already, or say what is wrong with it.

    Raises
    ------
    InvalidArgumentError
        Not of shape (point, 2); an empty array may have any shape.
    InvalidDataError
        A NaN, a birth that is infinite, or a death before its birth.
    """
    table = np.asarray(points, np.float64)
    if table.size == 0:
        return np.empty((0, 2))
    if table.ndim != 2 or table.shape[1] != 2:
        raise InvalidArgumentError(f"a diagram must be an array (point, 2) of births and deaths; got {table.shape}")
    if not (np.isfinite(table[:, 0]) & (table[:, 1] >= table[:, 0])).all():
        raise InvalidDataError("a diagram must hold finite births and deaths at or after them; it holds others or NaN")
    return table


def sorted_points(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return a diagram as new float64 (point, 2), sorted by (birth, death); raises as `check_points`."""
    table = check_points(points)
    ordered: NDArray[np.float64] = table[np.lexsort((table[:, 1], table[:, 0]))]
    return ordered


def _without_infinity(
    diagram: Mapping[int, NDArray[np.floating[Any]]], degree: int, *, reduced_homology: bool, infinity_values: float
) -> NDArray[np.float64]:
    """Return one degree, sorted, with bars that never die replaced and one of degree 0 left out if asked for."""
    points = sorted_points(diagram.get(degree, np.empty((0, 2))))
    forever = np.flatnonzero(points[:, 1] == np.inf)
    points[forever, 1] = infinity_values
    if degree == 0 and reduced_homology and forever.size:
        points = np.delete(points, forever[0], axis=0)
    # An infinity_values below a birth leaves nothing of the bar.
    return sorted_points(points[points[:, 1] >= points[:, 0]])


def _complete_components(
    points: NDArray[np.float64], *, reduced_homology: bool, units: int | None
) -> NDArray[np.float64]:
    """Put back into degree 0 what the layout cannot hold."""
    if reduced_homology:
        points = np.concatenate([points, [[0.0, np.inf]]])
    missing = 0 if units is None else units - len(points)
    if missing < 0:
        raise InvalidArgumentError(f"units must be at least the number of bars of degree 0, {len(points)}; got {units}")
    return sorted_points(np.concatenate([np.zeros((missing, 2)), points]))
