"""A few numbers for one diagram, or for one multiset of births or deaths, in one pass. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.kernels.summaries import SUMS, summarise_counted, summarise_points, summarise_sorted
from dynome_analysis.persistence.layouts import check_points
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Summary", "check_thresholds", "summarise_births", "summarise_deaths", "summarise_diagram"]


@dataclass(frozen=True)
class Summary:
    """Numbers that describe one diagram or one multiset of weights.

    A *length* is the lifetime ``death - birth`` of a finite bar, or a weight. All of it is METHODS.md section 3.

    Attributes
    ----------
    number : int
        Finite bars of positive length; of a multiset, all weights.
    infinite : int
        Bars that never die; they count in ``betti`` and nowhere else.
    total : float
        Total persistence, the sum of lengths, which is their L1 amplitude.
    l2 : float
        L2 amplitude, the root of the sum of squared lengths. Of an H1 diagram: functional persistence.
    linf : float
        Longest length; 0 where there is none.
    entropy : float
        Persistence entropy in bits, ``-sum p log2 p`` with p a length over ``total``; NaN where ``total`` is 0.
    betti : int64, shape (threshold,)
        Betti number at every threshold.
    """

    number: int
    infinite: int
    total: float
    l2: float
    linf: float
    entropy: float
    betti: NDArray[np.int64]

    @property
    def normalised_entropy(self) -> float:
        """Entropy over the largest that as many lengths can have, ``log2(number)``: in [0, 1]; NaN for fewer than 2."""
        return self.entropy / float(np.log2(self.number)) if self.number > 1 else float("nan")


def summarise_diagram(
    diagram: NDArray[np.floating[Any]], *, thresholds: NDArray[np.floating[Any]] | tuple[float, ...] = ()
) -> Summary:
    """Summarise one persistence diagram of one degree.

    Parameters
    ----------
    diagram : floating, shape (point, 2)
        Births and deaths, deaths may be infinite; points in any order.
    thresholds : floating, shape (threshold,)
        Ascending, in the unit of the diagram.

    Returns
    -------
    Summary
        ``betti[k]`` counts the bars with ``birth <= thresholds[k] < death``.

    Raises
    ------
    InvalidArgumentError
        The diagram is not (point, 2), or thresholds do not ascend.
    InvalidDataError
        A NaN, a birth that is infinite, or a death before its birth.

    Notes
    -----
    Entropy in bits, as giotto-tda's; gudhi's and persim's is in nats, ``log(2)`` times this. giotto-tda's amplitudes
    are norms of *half* lifetimes, the distance of a point to the diagonal in the maximum norm. O(point log
    threshold + threshold) time, no copy of float64.
    """
    grid = check_thresholds(thresholds)
    sums, alive = np.empty(len(SUMS)), np.empty(grid.size + 1, np.int64)
    summarise_points(check_points(diagram), grid, sums, alive)
    return _summary(sums, alive[:-1])


def summarise_births(
    births: NDArray[np.floating[Any]], *, thresholds: NDArray[np.floating[Any]] | tuple[float, ...] = ()
) -> Summary:
    """Summarise the births of components of one connectome.

    Parameters
    ----------
    births : floating, shape (unit - 1,)
        Ascending, finite, not negative, as `dynome_analysis.homology.births` returns them.
    thresholds : floating, shape (threshold,)
        Ascending weights.

    Returns
    -------
    Summary
        Of the weights; ``betti`` is beta0, the number of components of the graph of edges heavier than the threshold:
        1 + the number of births that are at most the threshold.

    Raises
    ------
    InvalidArgumentError
        Not one floating axis, or thresholds do not ascend.
    InvalidDataError
        Weights that do not ascend from 0 up, NaN, infinity.

    Notes
    -----
    O(unit + threshold) time, no copy of float32 or float64.
    """
    sums, reached = _summarise_weights(births, thresholds)
    return _summary(sums, reached + 1)


def summarise_deaths(
    deaths: NDArray[np.floating[Any]] | WeightHistogram,
    *,
    thresholds: NDArray[np.floating[Any]] | tuple[float, ...] = (),
) -> Summary:
    """Summarise the deaths of cycles of one connectome.

    Parameters
    ----------
    deaths : floating, shape (death,), or WeightHistogram
        Ascending, finite, not negative; or counted in bins, each death then standing at the centre of its bin, within
        the histogram's ``bound`` of where it is.
    thresholds : floating, shape (threshold,)
        Ascending weights.

    Returns
    -------
    Summary
        Of the weights; ``betti`` is beta1, the number of independent cycles of the graph of edges heavier than the
        threshold: the number of deaths above it.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As `summarise_births`.

    Notes
    -----
    O(death + threshold) time, no copy of float32 or float64; O(bin + threshold) for a histogram, which is never
    expanded.
    """
    if isinstance(deaths, WeightHistogram):
        grid = check_thresholds(thresholds)
        sums, reached = np.empty(len(SUMS)), np.empty(grid.size, np.int64)
        summarise_counted(deaths.centres, deaths.counts, grid, sums, reached)
    else:
        sums, reached = _summarise_weights(deaths, thresholds)
    return _summary(sums, int(sums[0]) - reached)


def check_thresholds(thresholds: NDArray[np.floating[Any]] | tuple[float, ...]) -> NDArray[np.float64]:
    """Return thresholds as float64 (threshold,), or say that they do not ascend."""
    grid = np.asarray(thresholds, np.float64)
    if grid.ndim != 1 or np.isnan(grid).any() or (np.diff(grid) < 0).any():
        raise InvalidArgumentError("thresholds must be numbers in ascending order, without NaN")
    return grid


def _summarise_weights(
    values: NDArray[np.floating[Any]], thresholds: NDArray[np.floating[Any]] | tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    weights = np.asarray(values)
    if weights.ndim != 1 or weights.dtype.kind != "f":
        raise InvalidArgumentError(
            f"weights must be one floating axis, ascending; got {weights.dtype} of shape {weights.shape}"
        )
    weights = np.ascontiguousarray(weights, np.float32 if weights.dtype.itemsize <= 4 else np.float64)
    # Ascending between two finite ends that are not negative is all of it; NaN fails every comparison.
    if weights.size and not (weights[0] >= 0 and weights[-1] < np.inf and bool((weights[1:] >= weights[:-1]).all())):
        raise InvalidDataError("weights must ascend, finite and not negative: births or deaths as dynome sorts them")
    grid = check_thresholds(thresholds)
    sums, reached = np.empty(len(SUMS)), np.empty(grid.size, np.int64)
    summarise_sorted(weights, grid, sums, reached)
    return sums, reached


def _summary(sums: NDArray[np.float64], betti: NDArray[np.int64]) -> Summary:
    number, infinite, total, squares, largest, logarithms = sums.tolist()
    # -sum (l / total) log2(l / total), opened up, so that one pass is enough; rounding may leave it a hair below 0.
    entropy = max(0.0, float(np.log2(total)) - logarithms / total) if total > 0 else float("nan")
    return Summary(int(number), int(infinite), total, squares**0.5, largest, entropy, betti)
