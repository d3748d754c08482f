"""The topological centroid of a set of graphs, part by part. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.distance.quantiles import quantile_embedding
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from dynome_analysis.distance.quantiles import Measure

__all__ = ["centroid", "check_weights"]


def centroid(
    vectors: Iterable[Measure],
    *,
    weights: Sequence[float] | NDArray[np.floating[Any]] | None = None,
    size: int | None = None,
) -> NDArray[np.float64]:
    """Return the mean of the l-th smallest values: the centroid of births, or of deaths, of several graphs.

    The vector that minimises the (weighted) sum of squared `sorted_distance` to the given ones, hence, for births and
    deaths apart, the graph signature nearest to all in ``d_top`` (*Fast topological clustering with Wasserstein
    distance*, ICLR 2022 [G]; METHODS.md section 2).

    Parameters
    ----------
    vectors : iterable of floating arrays (value,) or WeightHistogram; or one array (snapshot, value)
        Each ascends. May be a generator: one is looked at at a time.
    weights : floating, shape (snapshot,), optional
        None negative, not all 0; equal by default. They are divided by their sum.
    size : int, optional
        Take `quantile_embedding` to this length first: needed where lengths differ, and for histograms.

    Returns
    -------
    float64, shape (value,) or (size,)
        Ascending.

    Raises
    ------
    InvalidArgumentError
        Weights that are none, or not as many as vectors.
    InvalidDataError
        No vectors, or of different lengths without ``size``.

    Notes
    -----
    O(values) time, two float64 vectors of the result's length beyond the inputs.
    """
    total: NDArray[np.float64] | None = None
    shares = None if weights is None else check_weights(weights)
    count = 0
    for count, vector in enumerate(vectors, start=1):
        if isinstance(vector, WeightHistogram) and size is None:
            raise InvalidDataError("the centroid of histograms needs a size: it is made of that many quantiles of each")
        row = np.asarray(vector if size is None else quantile_embedding(vector, size), np.float64)
        if total is None:
            total = np.zeros(row.shape)
        if row.shape != total.shape:
            raise InvalidDataError(
                f"graphs of different size have no mean entry by entry: shapes {total.shape} and {row.shape}; "
                "give a size, to which quantiles embed them"
            )
        if shares is None:
            total += row
        elif count <= len(shares):
            total += row * shares[count - 1]
    if total is None:
        raise InvalidDataError("no graphs have no centroid")
    if shares is None:
        return total / count
    if len(shares) != count:
        raise InvalidArgumentError(f"as many weights as graphs are needed; got {len(shares)} for {count}")
    return total


def check_weights(weights: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return weights divided by their sum, or say why they are none."""
    shares = np.asarray(weights, np.float64)
    if shares.ndim != 1 or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise InvalidArgumentError("weights must be finite numbers (snapshot,), none negative and not all 0")
    found: NDArray[np.float64] = shares / shares.sum()
    return found
