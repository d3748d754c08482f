"""Weights counted in uniform bins of [0, 1]: deaths in bounded memory, with an error that is known. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology.births import births as births_of
from dynome_analysis.homology.births import check_connectome
from dynome_analysis.kernels.histogram import (
    add_to_histogram,
    add_upper_triangle_to_histogram,
    compare_histograms,
)
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["BINS", "WeightHistogram", "bin_centres", "check_bins", "death_histogram", "histogram_distance"]

# 512 kB of counts, and half a bin of 7.6e-6: about as far as two float32 products of the same activations differ. [O]
BINS = 65536
# Up to here float32 holds every bin centre exactly.
MOST_BINS = 1 << 23


@dataclass(frozen=True, eq=False)
class WeightHistogram:
    """How many weights lie in each of equally wide bins of [0, 1]: a multiset known up to half a bin.

    The bins are a power of two: then no multiplication rounds, every float32 weight is counted in the bin that holds
    it, every centre is a float32, and `bound` holds without a term for rounding (METHODS.md section 2).

    Parameters
    ----------
    counts : int64, shape (bin,)
        Bin k holds the weights w with ``k <= w * bins < k + 1``, the last one 1 as well. A power of two of bins, from 1
        to 2^23; kept as a read-only copy.

    Raises
    ------
    InvalidArgumentError
        Not a vector of integers, none negative, of such a length.

    Notes
    -----
    Frozen, additive (``a + b`` holds the weights of both), 8 bytes per bin whatever is counted.
    """

    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check the counts and keep a copy that nobody can change."""
        counts = np.array(self.counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iu":
            raise InvalidArgumentError(
                f"counts must be integers of shape (bin,); got {counts.dtype} of shape {counts.shape}"
            )
        check_bins(counts.size)
        if counts.min() < 0:
            raise InvalidArgumentError(f"counts must not be negative; bin {int(counts.argmin())} holds {counts.min()}")
        counts = counts.astype(np.int64, copy=False)
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)

    @classmethod
    def of(cls, weights: ArrayLike, *, bins: int = BINS) -> WeightHistogram:
        """Count ``weights``, floating of any shape, all in [0, 1]; O(weights) time, else `InvalidDataError`."""
        check_bins(bins)
        with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which is refused below
            values = np.ascontiguousarray(weights, np.float32).reshape(-1)
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise InvalidDataError("a histogram counts weights of [0, 1]; there is a weight outside, or NaN")
        counts = np.zeros(bins, np.int64)
        add_to_histogram(values, counts)
        return cls(counts)

    @property
    def bins(self) -> int:
        """The number of bins."""
        return self.counts.size

    @property
    def total(self) -> int:
        """How many weights are counted."""
        return int(self.counts.sum())

    @property
    def bound(self) -> float:
        """Half a bin: no sorted weight lies farther from its place in `values`."""
        return 0.5 / self.bins

    @property
    def centres(self) -> NDArray[np.float32]:
        """Centres of the bins, float32 (bin,), exact."""
        return bin_centres(self.bins)

    def __add__(self, other: WeightHistogram) -> WeightHistogram:
        """Return the histogram of the weights of both; `InvalidArgumentError` unless they have the same bins."""
        if not isinstance(other, WeightHistogram):
            return NotImplemented
        if self.bins != other.bins:
            raise InvalidArgumentError(
                f"histograms of {self.bins} and {other.bins} bins do not add up: count both with the same bins"
            )
        return WeightHistogram(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same counts in the same bins."""
        return isinstance(other, WeightHistogram) and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def subtract(self, weights: ArrayLike) -> WeightHistogram:
        """Return the histogram without ``weights``, each of which was counted before.

        Raises
        ------
        InvalidDataError
            A bin holds fewer weights than are to be taken out, or a weight lies outside [0, 1].
        """
        left = self.counts - WeightHistogram.of(weights, bins=self.bins).counts
        if left.min() < 0:
            raise InvalidDataError(
                "a histogram cannot lose weights that it does not hold: take births and edges from the same connectome"
            )
        return WeightHistogram(left)

    def values(self) -> NDArray[np.float32]:
        """Return every weight as the centre of its bin, float32 ascending, 4 bytes per weight: within `bound` of it."""
        return np.repeat(self.centres, self.counts)

    def quantile(self, fractions: ArrayLike) -> NDArray[np.float32]:
        """Return ``F^-1(z) = inf {x : F(x) >= z}`` for ``fractions`` z, within `bound`; float32, the shape of z.

        As ``sorted[ceil(z * total) - 1]`` of the weights, ``sorted[0]`` at z = 0. O(bins) time.

        Raises
        ------
        InvalidArgumentError
            A fraction outside [0, 1].
        InvalidDataError
            Nothing is counted.
        """
        chosen = np.asarray(fractions, np.float64)
        if not ((chosen >= 0) & (chosen <= 1)).all():
            raise InvalidArgumentError("quantiles are asked for by fractions of [0, 1]")
        if self.total == 0:
            raise InvalidDataError("a histogram without weights has no quantiles")
        ranks = np.maximum(np.ceil(chosen * self.total), 1)
        found: NDArray[np.float32] = self.centres[np.searchsorted(np.cumsum(self.counts), ranks)]
        return found


def death_histogram(
    connectome: NDArray[np.floating[Any]],
    *,
    births: NDArray[np.float32] | None = None,
    bins: int = BINS,
    check: bool = True,
) -> WeightHistogram:
    """Return the deaths of a connectome counted in bins: all edges without the births.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        As for `homology.births`, and no weight above 1.
    births : float32, shape (unit - 1,), optional
        Those of this connectome, where they are known already.
    bins : int
        A power of two.
    check : bool
        As for `homology.births`.

    Returns
    -------
    WeightHistogram
        ``1 + unit * (unit - 3) / 2`` weights; the l-th smallest death lies within ``bound`` of ``values()[l]``.

    Raises
    ------
    InvalidArgumentError
        Not a square floating matrix, not symmetric, or bins that are no power of two.
    InvalidDataError
        A weight outside [0, 1], NaN or infinite, or births of another connectome.

    Notes
    -----
    METHODS.md section 2. O(unit^2) time, 32 bytes per bin: no sort, and nothing that grows with the edges.
    """
    check_bins(bins)
    weights = check_connectome(connectome, check=check)
    born = births_of(weights, check=False) if births is None else births
    if born.size and not born.max() <= 1:  # the heaviest edge is always a birth
        raise InvalidDataError("a death histogram counts weights of [0, 1]; this connectome holds a heavier one")
    counts = np.zeros(bins, np.int64)
    add_upper_triangle_to_histogram(weights, counts)
    return WeightHistogram(counts).subtract(born)


def histogram_distance(first: WeightHistogram, second: WeightHistogram, *, order: float = 2.0) -> tuple[float, float]:
    """Return the Wasserstein distance of two histograms, and how far the one of the weights may be from it.

    ``( sum_l |x_l - y_l|^order )^(1 / order)`` with the l-th smallest against the l-th smallest, as for the weights
    themselves, which is the exact distance in one dimension; the largest difference for ``order = inf`` (bottleneck).

    Parameters
    ----------
    first, second : WeightHistogram
        Equally many weights; the bins may differ.
    order : float
        At least 1, may be infinite; 2 is the distance of deaths of METHODS.md section 2.

    Returns
    -------
    distance : float
    bound : float
        The distance between the weights that were counted lies within this of ``distance``. Every weight moved by at
        most half a bin, so by the triangle inequality it is ``(first.bound + second.bound) * total^(1 / order)``.

    Raises
    ------
    InvalidArgumentError
        An order below 1.
    InvalidDataError
        The histograms hold different numbers of weights.

    Notes
    -----
    O(bins) time and no memory to speak of, however many weights are counted: nothing is expanded.
    """
    if not order >= 1:
        raise InvalidArgumentError(f"order must be at least 1 or infinite; got {order}")
    total = first.total
    if total != second.total:
        raise InvalidDataError(
            f"graphs of different size have no distance weight by weight: {total} and {second.total} weights counted; "
            "choose sites with as many units in both"
        )
    bound = first.bound + second.bound
    largest = compare_histograms(first.counts, second.counts, 1.0, 1.0)[1]
    if largest > 0 and np.isfinite(order):
        # In units of the largest difference, no power of it vanishes.
        powers = compare_histograms(first.counts, second.counts, float(order), largest)[0]
        largest *= powers ** (1 / order)
    return float(largest), float(bound * total ** (1 / order)) if total else 0.0


def bin_centres(bins: int) -> NDArray[np.float32]:
    """Return the centres of ``bins`` bins of [0, 1], float32 (bin,), exact; `InvalidArgumentError` as `check_bins`."""
    check_bins(bins)
    return ((np.arange(bins) + 0.5) / bins).astype(np.float32)


def check_bins(bins: Any) -> None:
    """Say which numbers of bins there may be, unless ``bins`` is one of them."""
    whole = isinstance(bins, int | np.integer) and not isinstance(bins, bool)
    if not (whole and 1 <= bins <= MOST_BINS and int(bins).bit_count() == 1):
        raise InvalidArgumentError(f"bins must be a power of two from 1 to {MOST_BINS}; got {bins!r}")
