"""Counted weights: exact counts, a bound that holds, distances that equal those of the written-out values."""

import json

import dask
import naive_homology
import numpy as np
import pytest
import xarray as xr
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

import dynome_analysis as dya
from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.distance.weights import sorted_distance
from dynome_analysis.homology.births import births, births_and_deaths
from dynome_analysis.homology.histogram import BINS, WeightHistogram, bin_centres, death_histogram, histogram_distance
from dynome_analysis.kernels.histogram import add_to_histogram, add_upper_triangle_to_histogram
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=100)
matrices = st.one_of(weights(), activations().map(lambda values: correlate(values)[0]))
few_bins = st.sampled_from([1, 2, 8, 256])
orders = st.sampled_from([1.0, 1.5, 2.0, 3.0, 60.0, np.inf])


@st.composite
def unit_values(draw: st.DrawFn) -> NDArray[np.float32]:
    """float32 of [0, 1]: spread, on the borders of bins and next to them, tied, subnormal."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 60))
    borders = (random.integers(0, 257, size) / 256).astype(np.float32)
    kinds = {
        "spread": random.random(size, np.float32),
        "borders": borders,
        "below": np.nextafter(borders, np.float32(0)),
        "above": np.minimum(np.nextafter(borders, np.float32(1)), np.float32(1)),
        "tiny": (random.random(size) * 1e-42).astype(np.float32),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


@unhurried
@given(unit_values(), few_bins)
def test_counts_equal_the_naive_twin_and_numpy(values: NDArray[np.float32], bins: int) -> None:
    found = WeightHistogram.of(values, bins=bins)
    assert found.counts.tolist() == naive_homology.histogram(values.tolist(), bins)
    np.testing.assert_array_equal(found.counts, np.histogram(values.astype(float), bins, (0, 1))[0])
    assert (found.bins, found.total, found.counts.dtype) == (bins, values.size, np.int64)


@unhurried
@given(unit_values(), few_bins, st.floats(0, 1))
def test_no_sorted_value_is_farther_away_than_the_bound(values: NDArray[np.float32], bins: int, z: float) -> None:
    found = WeightHistogram.of(values, bins=bins)
    exact = np.sort(values).astype(np.float64)
    assert found.values().dtype == np.float32
    assert np.abs(found.values() - exact).max() <= found.bound == 0.5 / bins
    rank = max(int(np.ceil(z * exact.size)), 1)
    assert abs(found.quantile(z) - exact[rank - 1]) <= found.bound


@unhurried
@given(unit_values(), unit_values(), few_bins)
def test_parts_add_up_and_are_taken_out_again(
    first: NDArray[np.float32], second: NDArray[np.float32], bins: int
) -> None:
    one, other = (WeightHistogram.of(part, bins=bins) for part in (first, second))
    assert one + other == other + one == WeightHistogram.of(np.concatenate([first, second]), bins=bins)
    assert (one + other).subtract(second) == one
    assert (one == other) == (one.counts.tolist() == other.counts.tolist())
    if not (one.counts >= other.counts).all():
        with pytest.raises(InvalidDataError, match="lose weights that it does not hold"):
            one.subtract(second)


@unhurried
@given(unit_values(), st.randoms(), few_bins, few_bins, orders)
def test_distance_equals_the_naive_twin_and_keeps_its_bound(
    first: NDArray[np.float32], random, bins: int, other_bins: int, order: float
) -> None:
    second = np.array([random.choice([0.0, 0.25, random.random(), 1.0]) for _ in first], np.float32)
    one, other = WeightHistogram.of(first, bins=bins), WeightHistogram.of(second, bins=other_bins)
    found, bound = histogram_distance(one, other, order=order)
    expected = naive_homology.histogram_distance(one.counts.tolist(), other.counts.tolist(), order)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    exact = np.linalg.norm(np.sort(first).astype(float) - np.sort(second), ord=order)
    assert abs(found - exact) <= bound * (1 + 1e-9)
    assert histogram_distance(other, one, order=order)[0] == pytest.approx(found, rel=1e-9)
    if order == 1:
        scipy = wasserstein_distance(one.centres, other.centres, one.counts, other.counts)
        assert found == pytest.approx(scipy * one.total, rel=1e-6, abs=1e-9)
    if order == 2:
        assert found == pytest.approx(sorted_distance([one.values()], [other.values()]), rel=1e-6)


def test_a_high_order_does_not_vanish() -> None:
    one, other = WeightHistogram.of([0.25], bins=256), WeightHistogram.of([0.2578125], bins=256)
    assert histogram_distance(one, other, order=400)[0] == pytest.approx(2 / 256)
    assert histogram_distance(one, one, order=400) == (0, 1 / 256)
    nothing = WeightHistogram(np.zeros(4, np.int64))
    for order in (2, np.inf):
        assert histogram_distance(nothing, nothing, order=order) == (0, 0)


@unhurried
@given(matrices, few_bins)
def test_death_histogram_counts_the_deaths(connectome: NDArray[np.float32], bins: int) -> None:
    born, died = births_and_deaths(connectome)
    before = connectome.copy()
    found = death_histogram(connectome, bins=bins)
    assert found == WeightHistogram.of(died, bins=bins)
    assert found == death_histogram(connectome, births=born, bins=bins, check=False)
    assert np.abs(found.values() - died).max(initial=0) <= found.bound
    np.testing.assert_array_equal(connectome, before)


def test_kernels_count_slices_rows_and_triangles_alike() -> None:
    random = np.random.default_rng(0)
    matrix = random.random((30, 40), np.float32)
    for values in (matrix, matrix[3:20, 5:33], matrix[::2], matrix[4], matrix[:, 7]):
        counts = np.ones(16, np.int64)
        add_to_histogram(values, counts)
        np.testing.assert_array_equal(counts - 1, np.histogram(values, 16, (0, 1))[0])
    counts = np.zeros(16, np.int64)
    add_upper_triangle_to_histogram(matrix[:30, :30], counts)
    np.testing.assert_array_equal(counts, np.histogram(matrix[:30, :30][np.triu_indices(30, 1)], 16, (0, 1))[0])


def test_a_kernel_writes_nothing_out_of_bounds() -> None:
    counts = np.zeros(12, np.int64)
    add_to_histogram(np.array([-0.5, 2, np.nan, np.inf, -np.inf, 1, -0.0], np.float32), counts[4:8])
    assert counts.tolist() == [0] * 4 + [1, 0, 0, 6] + [0] * 4


def test_bins_by_default() -> None:
    connectome = correlate(np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32))[0]
    found = death_histogram(connectome)
    assert found.bins == BINS == 65536
    assert found.bound == 2.0**-17
    assert np.abs(found.values() - births_and_deaths(connectome)[1]).max() <= found.bound
    np.testing.assert_array_equal(found.centres.astype(float), (np.arange(BINS) + 0.5) / BINS)


def test_a_histogram_keeps_its_own_counts() -> None:
    counts = np.array([1, 2], np.int32)
    kept = WeightHistogram(counts)
    counts[0] = 5
    assert kept.counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        kept.counts[0] = 5
    assert kept != [1, 2]
    with pytest.raises(TypeError, match="unsupported operand"):
        kept + 1  # type: ignore[operator]
    with pytest.raises(TypeError, match="unhashable"):
        hash(kept)


@pytest.mark.parametrize("bins", [0, -2, 3, 65535, 2**24, 2.0, True, "many"])
def test_bins_are_a_power_of_two(bins: int) -> None:
    message = f"bins must be a power of two from 1 to 8388608; got {bins!r}"
    for function in (
        lambda: WeightHistogram.of([0.5], bins=bins),
        lambda: death_histogram(np.zeros((3, 3)), bins=bins),
        lambda: bin_centres(bins),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            function()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: WeightHistogram(np.zeros((2, 2), int)), InvalidArgumentError, r"int64 of shape \(2, 2\)"),
        (lambda: WeightHistogram(np.zeros(2)), InvalidArgumentError, "float64"),
        (lambda: WeightHistogram(np.array([1, -3])), InvalidArgumentError, "bin 1 holds -3"),
        (lambda: WeightHistogram(np.zeros(3, int)), InvalidArgumentError, "power of two"),
        (lambda: WeightHistogram.of([0.5, 1.5]), InvalidDataError, "outside, or NaN"),
        (lambda: WeightHistogram.of([1e300]), InvalidDataError, "outside"),
        (lambda: WeightHistogram.of([-0.5]), InvalidDataError, "outside"),
        (lambda: WeightHistogram.of([np.nan, 0.5]), InvalidDataError, "NaN"),
        (
            lambda: WeightHistogram.of([0.5], bins=2) + WeightHistogram.of([0.5], bins=4),
            InvalidArgumentError,
            "2 and 4 bins do not add up",
        ),
        (lambda: WeightHistogram.of([0.5]).quantile([0.5, 1.1]), InvalidArgumentError, "fractions"),
        (lambda: WeightHistogram.of([0.5]).quantile(np.nan), InvalidArgumentError, "fractions"),
        (lambda: WeightHistogram.of([]).quantile(0.5), InvalidDataError, "no quantiles"),
        (
            lambda: histogram_distance(WeightHistogram.of([0.5]), WeightHistogram.of([0.5, 1])),
            InvalidDataError,
            "1 and 2 weights",
        ),
        (
            lambda: histogram_distance(WeightHistogram.of([0.5]), WeightHistogram.of([0.5]), order=0.5),
            InvalidArgumentError,
            "order must be at least 1",
        ),
        (lambda: death_histogram(2 * np.ones((3, 3))), InvalidDataError, "holds a heavier one"),
        (lambda: death_histogram(2 * np.ones((3, 3)), check=False), InvalidDataError, "holds a heavier one"),
        (lambda: death_histogram(np.triu(np.ones((3, 3)))), InvalidArgumentError, "symmetric"),
        (lambda: death_histogram(-np.ones((3, 3))), InvalidDataError, "negative"),
        (
            lambda: death_histogram(np.ones((3, 3)), births=np.zeros(2, np.float32)),
            InvalidDataError,
            "from the same connectome",
        ),
    ],
)
def test_what_cannot_be_counted_is_said(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("something was computed")


@pytest.fixture
def stack() -> xr.DataArray:
    random = np.random.default_rng(3)
    matrices = [correlate(random.normal(size=(15, 12)).astype(np.float32))[0] for _ in range(3)]
    matrices[1][4] = matrices[1][:, 4] = 0
    np.fill_diagonal(matrices[1], 1)  # is no edge
    return xr.DataArray(
        np.stack(matrices), dims=("snapshot", "unit", "unit_"), coords={"epoch": ("snapshot", [0, 1, 4])}
    )


def test_labelled_histograms_are_lazy_and_equal_the_numbers(stack: xr.DataArray) -> None:
    with dask.config.set(scheduler=refuse):
        lazy = dya.graph_homology(stack.chunk({"snapshot": 2, "unit": 5}), deaths="histogram", bins=512)
    assert lazy["death_histogram"].chunks == ((1, 1, 1), (512,))
    assert lazy["death_histogram"].attrs == {"bound": 1 / 1024}
    assert json.loads(lazy.attrs["parameters"])["graph_homology"] == {"deaths": "histogram", "bins": 512}
    assert "deaths" not in lazy
    found = lazy.compute()
    for position, matrix in enumerate(stack.to_numpy()):
        np.testing.assert_array_equal(found["births"][position], births(matrix))
        np.testing.assert_array_equal(found["death_histogram"][position], death_histogram(matrix, bins=512).counts)
    assert found["death_histogram"].dtype == np.int64
    np.testing.assert_array_equal(found["bin_centre"], bin_centres(512))
    assert found["dead_units"].to_numpy().tolist() == [0, 1, 0]
    assert found["epoch"].to_numpy().tolist() == [0, 1, 4]
    xr.testing.assert_identical(dya.graph_homology(stack, deaths="histogram", bins=512), found)
    xr.testing.assert_identical(dya.graph_homology(stack, deaths="histogram", bins=512, check=False), found)


def test_labelled_weights_are_checked_unless_told_otherwise(stack: xr.DataArray) -> None:
    negative = (stack - 0.5).assign_attrs(operation="connectomes")
    for deaths in ("exact", "histogram"):
        with pytest.raises(InvalidDataError, match="negative"):
            dya.graph_homology(negative, deaths=deaths)
    with pytest.raises(InvalidArgumentError, match="deaths must be 'exact' or 'histogram'; got 'some'"):
        dya.graph_homology(stack, deaths="some")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="power of two"):
        dya.graph_homology(stack, deaths="histogram", bins=100)
