"""Labelled diagrams to and from the layouts of giotto-tda, persim and gudhi."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr

from dynome_analysis.labelled.blocks import moments
from dynome_analysis.labelled.diagrams import pad_points
from dynome_analysis.persistence.layouts import (
    from_giotto,
    from_gudhi,
    from_persim,
    sorted_points,
    to_giotto,
    to_gudhi,
    to_persim,
)
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "Layout",
    "check_loops",
    "diagrams_by_degree",
    "export_diagrams",
    "import_diagrams",
    "lacks_loops",
    "recorded_degrees",
]

Layout = Literal["giotto", "persim", "gudhi"]


def export_diagrams(
    signature: xr.Dataset,
    *,
    layout: Layout = "giotto",
    dimensions: Sequence[int] | None = None,
    reduced_homology: bool | None = None,
    infinity_values: float = np.inf,
) -> Any:
    """Write the diagrams of all snapshots as another library lays them out.

    Parameters
    ----------
    signature : Dataset
        Of `rips` or `analyze` (which holds degree 1).
    layout : {"giotto", "persim", "gudhi"}
        Whose layout.
    dimensions : sequence of int, optional
        Degrees to write; by default all that the signature has.
    reduced_homology : bool, optional
        Leave out, in degree 0, the bar that never dies. By default as the library does: True for "giotto".
    infinity_values : float, default infinity
        Death of every other bar that never dies.

    Returns
    -------
    array or list
        "giotto": float64 (snapshot, feature, 3), rows [birth, death, degree], padded on the diagonal, bars of length 0
        left out. "persim": per snapshot a list by degree of float64 (point, 2). "gudhi": per snapshot a list of
        (degree, (birth, death)). See `dynome_analysis.persistence.layouts`.

    Raises
    ------
    InvalidArgumentError
        Not a result with diagrams, an analysis that left H1 out, an unknown layout, or a degree that the signature
        lacks.

    Notes
    -----
    METHODS.md section 3. O(points) time and memory.
    """
    _check_layout(layout)
    diagrams = diagrams_by_degree(signature)
    if dimensions is not None:
        missing = sorted({int(degree) for degree in dimensions} - set(diagrams[0]))
        if missing:
            has = ", ".join(map(str, diagrams[0])) or "none"
            raise InvalidArgumentError(
                f"dimensions: the signature has no diagrams of degree {missing[0]}; it has {has}"
            )
        diagrams = [{int(degree): one[int(degree)] for degree in sorted(dimensions)} for one in diagrams]
    reduced = layout == "giotto" if reduced_homology is None else reduced_homology
    if layout == "giotto":
        return to_giotto(diagrams, reduced_homology=reduced, infinity_values=infinity_values)
    write = to_persim if layout == "persim" else to_gudhi
    return [write(one, reduced_homology=reduced, infinity_values=infinity_values) for one in diagrams]


def import_diagrams(
    diagrams: Any,
    *,
    layout: Layout = "giotto",
    reduced_homology: bool = True,
    infinity_values: float = np.inf,
    units: int | None = None,
    like: xr.Dataset | xr.DataArray | None = None,
) -> xr.Dataset:
    """Read diagrams in the layout of another library as a Dataset like that of `rips`.

    Parameters
    ----------
    diagrams : array or sequence
        As `export_diagrams` returns it: one entry per snapshot.
    layout : {"giotto", "persim", "gudhi"}
        Whose layout.
    reduced_homology, infinity_values, units
        Of "giotto" only, see `dynome_analysis.persistence.layouts.from_giotto`: whether the bar that never dies was
        left out, what its death was replaced by, and how many bars degree 0 had.
    like : Dataset or DataArray, optional
        What the snapshots are: its coordinates ``epoch`` and ``step`` and its provenance carry over.

    Returns
    -------
    Dataset
        ``birth``, ``death`` float64 and ``dimension`` int64 (snapshot, point), padded with NaN and -1, as `rips`
        returns it.

    Raises
    ------
    InvalidArgumentError
        An unknown layout, no snapshot, another number of snapshots than ``like`` has, or data not in the layout.
    InvalidDataError
        A NaN, a birth that is infinite, or a death before its birth.
    """
    _check_layout(layout)
    if layout == "giotto":
        found = from_giotto(diagrams, reduced_homology=reduced_homology, infinity_values=infinity_values, units=units)
    else:
        found = [from_persim(one) if layout == "persim" else from_gudhi(one) for one in diagrams]
    if not found:
        raise InvalidArgumentError("diagrams must hold at least one snapshot")
    if like is not None and like.sizes.get("snapshot") != len(found):
        raise InvalidArgumentError(
            f"like must have one snapshot per diagram, {len(found)}; it has {like.sizes.get('snapshot')}"
        )
    degrees = sorted({degree for one in found for degree in one})
    birth, death, degree = pad_points([_table(one) for one in found])
    return xr.Dataset(
        {
            "birth": (("snapshot", "point"), birth),
            "death": (("snapshot", "point"), death),
            "dimension": (("snapshot", "point"), np.where(np.isnan(degree), -1, degree).astype(np.int64)),
        },
        coords={} if like is None else moments(like),
        attrs=provenance(
            "import_diagrams",
            {"layout": layout, "dimensions": degrees},
            source=like.attrs if like is not None else None,
        ),
    )


def diagrams_by_degree(signature: xr.Dataset) -> list[dict[int, NDArray[np.float64]]]:
    """Return, per snapshot, degree to float64 (point, 2), sorted by (birth, death), the padding left out.

    Every snapshot has the same degrees; a degree in which no snapshot has a point is known from the provenance.

    Raises
    ------
    InvalidArgumentError
        Not a result of `rips`, `import_diagrams` or `analyze`; or of an analysis that left H1 out.
    """
    check_loops(signature)
    if isinstance(signature, xr.Dataset) and {"birth", "death", "dimension"} <= set(signature.data_vars):
        birth, death = signature["birth"].to_numpy(), signature["death"].to_numpy()
        degree = signature["dimension"].to_numpy()
    elif isinstance(signature, xr.Dataset) and {"h1_birth", "h1_death"} <= set(signature.data_vars):
        birth, death = signature["h1_birth"].to_numpy(), signature["h1_death"].to_numpy()
        degree = np.where(np.isnan(birth), -1, 1)
    else:
        raise InvalidArgumentError(
            f"signature must be a Dataset with diagrams, of dya.rips or dya.analyze; got {type(signature).__name__}"
        )
    known = {1} if "h1_birth" in signature else set(recorded_degrees(signature))
    degrees = sorted(known | set(np.unique(degree).tolist()) - {-1})
    return [
        {d: sorted_points(np.column_stack([born[kind == d], died[kind == d]])) for d in degrees}
        for born, died, kind in zip(birth, death, degree)
    ]


def lacks_loops(signature: xr.Dataset) -> NDArray[np.bool_]:
    """Say of which snapshots an analysis left H1 out; it has no points there, and that is no empty diagram."""
    if "h1_birth" in signature and "functional_persistence" in signature:
        missing: NDArray[np.bool_] = np.atleast_1d(np.isnan(signature["functional_persistence"].to_numpy()))
        return missing
    return np.zeros(1, np.bool_)


def check_loops(signature: xr.Dataset) -> None:
    """Raise InvalidArgumentError where H1 was left out of an analysis: what is not known is not empty."""
    if isinstance(signature, xr.Dataset) and lacks_loops(signature).any():
        raise InvalidArgumentError(
            f"the analysis has no H1 here ({signature.attrs.get('h1', 'left out')}): analyze(recording, "
            "route='dense') with an engine and enough memory, or choose snapshots that have it"
        )


def recorded_degrees(signature: xr.Dataset) -> list[int]:
    """Return the degrees that were asked for, from the last step of the provenance; none where it is unknown."""
    steps = json.loads(signature.attrs.get("parameters", "{}"))
    return [int(degree) for degree in steps.get(signature.attrs.get("operation"), {}).get("dimensions", ())]


def _table(diagram: dict[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    parts = [np.column_stack([points, np.full(len(points), float(degree))]) for degree, points in diagram.items()]
    return np.concatenate([np.empty((0, 3)), *parts])


def _check_layout(layout: str) -> None:
    if layout not in get_args(Layout):
        raise InvalidArgumentError(f"layout must be one of {', '.join(get_args(Layout))}; got {layout!r}")
