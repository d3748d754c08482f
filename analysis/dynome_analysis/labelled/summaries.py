"""Summaries of diagrams, births and deaths, snapshot by snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.labelled.blocks import moments, one_snapshot_per_chunk
from dynome_analysis.labelled.exchange import diagrams_by_degree, lacks_loops
from dynome_analysis.persistence.summaries import (
    Summary,
    check_thresholds,
    summarise_births,
    summarise_deaths,
    summarise_diagram,
)
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["diagram_summaries"]


def _summarise_counts(counts: NDArray[np.int64], *, thresholds: NDArray[np.float64]) -> Summary:
    return summarise_deaths(WeightHistogram(counts), thresholds=thresholds)


# Variables of a signature that are no diagrams: the part that each makes, and how.
WEIGHTS: dict[str, tuple[str, Callable[..., Summary]]] = {
    "births": ("births", summarise_births),
    "deaths": ("deaths", summarise_deaths),
    "death_histogram": ("deaths", _summarise_counts),
    "death_counts": ("deaths", _summarise_counts),
}
COUNTS = ("number", "infinite")
LENGTHS = ("total", "l2", "linf")


def diagram_summaries(
    signature: xr.Dataset,
    *,
    thresholds: int | Sequence[float] | NDArray[np.floating[Any]] = 101,
    normalise: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Describe every diagram, and every multiset of births or deaths, by a few numbers and a Betti curve.

    Parameters
    ----------
    signature : Dataset
        Of `graph_homology`, `rips` or `analyze`: whatever it holds of births, deaths and diagrams is summarised,
        and nothing of H1 where an analysis left it out.
    thresholds : int or ascending numbers, default 101
        Where the Betti curves are taken; a number stands for so many steps from 0 to 1, both included.
    normalise : bool, default False
        Divide the entropy by ``log2(number)``, its largest possible value; NaN for fewer than two lengths.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Dataset
        In memory, on (snapshot, part), with ``part`` out of "births", "deaths", "h0", "h1", "h2":

        - ``number`` int64: finite bars of positive length; of births and deaths, all
        - ``infinite`` int64: bars that never die; they count in ``betti`` only
        - ``total`` float64: sum of lengths, the total persistence and L1 amplitude
        - ``l2``, ``linf`` float64: L2 amplitude (of "h1": functional persistence) and longest length
        - ``entropy`` float64: persistence entropy in bits, or normalised; NaN where ``total`` is 0
        - ``betti`` int64 (snapshot, part, threshold), threshold a weight for "births" and "deaths", a distance for
          "h0" ...: the components (births) and independent cycles (deaths) of the graph of edges heavier than the
          threshold; the bars of the diagram that are alive at it

        A *length* is the lifetime of a finite bar, or a weight. Coordinates ``epoch`` and ``step`` on snapshot.

    Raises
    ------
    InvalidArgumentError
        Nothing to summarise, thresholds that do not ascend, or H1 of some snapshots but not of all.
    InvalidDataError
        Births or deaths that do not ascend from 0 up, NaN, a death before its birth.

    Notes
    -----
    METHODS.md section 3. Deaths that were counted in bins stand at the centres of their bins. One pass over each
    snapshot, one snapshot per task: O(n) time for n births, deaths or points, no memory beside them.
    """
    grid = check_thresholds(np.linspace(0, 1, thresholds) if isinstance(thresholds, int) else np.asarray(thresholds))
    parts = _tasks(signature, grid)
    if not parts:
        raise InvalidArgumentError(
            "signature must be a Dataset of dya.graph_homology, dya.rips or dya.analyze, with births, deaths or "
            f"diagrams; got {type(signature).__name__} {tuple(getattr(signature, 'data_vars', ()))}"
        )
    flat = compute([task for tasks in parts.values() for task in tasks], description="summaries", progress=progress)
    count = len(flat) // len(parts)
    # By part, then snapshot, as they were asked for.
    rows: list[list[Summary]] = [flat[start : start + count] for start in range(0, len(flat), count)]

    def table(name: str, dtype: type) -> NDArray[Any]:
        return np.array([[getattr(one, name) for one in row] for row in rows], dtype).swapaxes(0, 1)

    entropy = table("normalised_entropy" if normalise else "entropy", np.float64)
    return xr.Dataset(
        {
            **{name: (("snapshot", "part"), table(name, np.int64)) for name in COUNTS},
            **{name: (("snapshot", "part"), table(name, np.float64)) for name in LENGTHS},
            "entropy": (("snapshot", "part"), entropy),
            "betti": (("snapshot", "part", "threshold"), table("betti", np.int64)),
        },
        coords={**moments(signature), "part": list(parts), "threshold": grid},
        attrs=provenance(
            "diagram_summaries", {"thresholds": grid.tolist(), "normalise": normalise}, source=signature.attrs
        ),
    )


def _tasks(signature: xr.Dataset, grid: NDArray[np.float64]) -> dict[str, list[Any]]:
    """Return, for each part that the signature holds, one lazy summary per snapshot."""
    held = set(getattr(signature, "data_vars", ()))
    tasks: dict[str, list[Any]] = {}
    for name, (part, summarise) in WEIGHTS.items():
        if name in held:
            blocks = one_snapshot_per_chunk(signature[name]).data.to_delayed().ravel()
            tasks[part] = [dask.delayed(_summarise_row)(summarise, block, grid) for block in blocks]
    # Where H1 was not computed, "no bars" would be an answer to what nobody asked.
    if held & {"birth", "h1_birth"} and not lacks_loops(signature).all():
        diagrams = diagrams_by_degree(signature)
        for degree in diagrams[0]:
            tasks[f"h{degree}"] = [dask.delayed(summarise_diagram)(one[degree], thresholds=grid) for one in diagrams]
    return tasks


def _summarise_row(
    summarise: Callable[..., Summary], block: NDArray[np.floating[Any]], grid: NDArray[np.float64]
) -> Summary:
    return summarise(block[0], thresholds=grid)
