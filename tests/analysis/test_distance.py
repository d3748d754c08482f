"""Distances in closed form, between quantile functions and of all pairs equal their twins and scipy."""

import math
from collections.abc import Callable

import naive
import naive_distance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from dynome_analysis.distance.centroids import centroid
from dynome_analysis.distance.halves import paired_floor, split_samples
from dynome_analysis.distance.quantiles import quantile_distance, quantile_embedding
from dynome_analysis.distance.weights import pairwise_distances, signature_distance, sorted_distance
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=60)
ORDERS = (1.0, 1.5, 2.0, 3.0, 40.0, math.inf)


@st.composite
def weights(draw: st.DrawFn, *, least: int = 1, largest: int = 30, size: int | None = None) -> NDArray[np.floating]:
    """Ascending values of [0, 1], float32 or float64, on a grid or tiny every now and then."""
    count = draw(st.integers(least, largest)) if size is None else size
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(count)
    kind = draw(st.sampled_from(("distinct", "tied", "tiny")))
    if kind == "tied":
        values = np.round(values, 1)
    elif kind == "tiny":
        values *= 1e-30
    return np.sort(values).astype(draw(st.sampled_from((np.float32, np.float64))))


@unhurried
@given(st.data(), st.sampled_from(ORDERS), st.sampled_from((3, 700)))
def test_every_order_equals_the_naive_twin(data: st.DataObject, order: float, size: int) -> None:
    births, deaths = [data.draw(weights(size=2)) for _ in range(2)], [data.draw(weights(size=size)) for _ in range(2)]
    first, second = zip(births, deaths, strict=True)
    found = sorted_distance(first, second, order=order)
    scale = max(float(np.abs(a.astype(float) - b).max()) for a, b in zip(first, second, strict=True)) or 1.0
    # The twin's powers vanish for tiny values; it is asked in units of the largest difference.
    expected = naive_distance.sorted_distance(
        *([part.astype(float) / scale for part in side] for side in (first, second)), order
    )
    assert found == pytest.approx(expected * scale, rel=1e-9)
    assert found == pytest.approx(sorted_distance(second, first, order=order), rel=1e-12)


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_sorted_distance_equals_the_naive_twin(seed: int, births: int, deaths: int) -> None:
    random = np.random.default_rng(seed)
    first, second = (
        tuple(np.sort(random.random(size).astype(np.float32)) for size in (births, deaths)) for _ in range(2)
    )
    assert sorted_distance(first, second) == pytest.approx(naive.top_distance(first, second), rel=1e-12)


def test_sorted_distance_sums_in_float64() -> None:
    first = np.zeros(1 << 18, np.float32)
    second = np.full(1 << 18, 1e-4, np.float32)
    expected = float(second[0]) * np.sqrt(first.size)
    assert sorted_distance([first], [second]) == pytest.approx(expected, rel=1e-12)


def test_graphs_of_different_size_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="different size have no distance"):
        sorted_distance([np.zeros(3)], [np.zeros(4)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [5, 512, 1200])
def test_nan_is_never_lost(order: float, size: int) -> None:
    values = np.linspace(0, 1, size)
    broken = values.copy()
    broken[size // 3] = np.nan
    assert math.isnan(sorted_distance([values], [broken], order=order))
    found = pairwise_distances([[values, broken, values]], order=order, threads=1)
    assert np.isnan(found[[0, 1], [1, 2]]).all()
    assert found[0, 2] == 0


@pytest.mark.parametrize("order", [0.5, -1, math.nan])
def test_orders_below_one_are_refused(order: float) -> None:
    for call in (
        lambda: sorted_distance([np.zeros(1)], [np.zeros(1)], order=order),
        lambda: quantile_distance([np.zeros(1)], [np.zeros(1)], order=order),
        lambda: pairwise_distances([np.zeros((2, 1))], order=order),
    ):
        with pytest.raises(InvalidArgumentError, match="order must be at least 1 or infinite"):
            call()


@unhurried
@given(weights(), weights(), weights(), weights(), st.sampled_from(ORDERS))
def test_quantile_distance_equals_fractions(
    a: NDArray[np.floating], b: NDArray[np.floating], c: NDArray[np.floating], d: NDArray[np.floating], order: float
) -> None:
    found = quantile_distance([a, b], [c, d], order=order)
    scale = quantile_distance([a, b], [c, d], order=math.inf) or 1.0
    x, y, z, w = (part.astype(float) / scale for part in (a, b, c, d))
    expected = naive_distance.quantile_distance([x, y], [z, w], order) * scale
    assert found == pytest.approx(expected, rel=1e-9)
    if order == 1:
        parts = wasserstein_distance(x, z) + wasserstein_distance(y, w)
        assert found == pytest.approx(parts * scale, rel=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_quantile_distance_is_the_closed_form_for_equal_sizes_and_for_copies(order: float) -> None:
    random = np.random.default_rng(0)
    first, second = np.sort(random.random(300)), np.sort(random.random(300))
    closed = sorted_distance([first], [second], order=order)
    share = 1.0 if math.isinf(order) else 300 ** (-1 / order)
    assert quantile_distance([first], [second], order=order) == pytest.approx(closed * share, rel=1e-12)
    tripled = quantile_distance([np.repeat(first, 3)], [np.repeat(second, 5)], order=order)
    assert tripled == pytest.approx(closed * share, rel=1e-12)


@unhurried
@given(weights(largest=200), weights(largest=200), st.sampled_from((1.0, 2.0, math.inf)))
def test_a_histogram_stands_for_its_values(a: NDArray[np.floating], b: NDArray[np.floating], order: float) -> None:
    first, second = WeightHistogram.of(a, bins=64), WeightHistogram.of(b, bins=128)
    found = quantile_distance([first], [second], order=order)
    assert found == pytest.approx(quantile_distance([first.values()], [second.values()], order=order), rel=1e-9)
    assert abs(found - quantile_distance([a], [b], order=order)) <= first.bound + second.bound + 1e-7
    np.testing.assert_array_equal(quantile_embedding(first, 7), quantile_embedding(first.values(), 7))
    if len(a) == len(b):
        distance, bound = signature_distance([a, first], [b, second], order=order)
        exact = sorted_distance([a, a], [b, b], order=order)
        assert abs(distance - exact) <= bound + 1e-6


def test_a_histogram_carries_its_bound_into_both_parts() -> None:
    random = np.random.default_rng(0)
    births, deaths = np.sort(random.random((2, 20)), axis=1), np.sort(random.random((2, 300)), axis=1)
    counted = [WeightHistogram.of(row, bins=16) for row in deaths]
    distance, bound = signature_distance([births[0], counted[0]], [births[1], counted[1]])
    assert bound == pytest.approx(np.sqrt(300) / 16)
    assert 0 < abs(distance - sorted_distance([births[0], deaths[0]], [births[1], deaths[1]])) <= bound
    assert signature_distance([births[0]], [births[1]]) == (sorted_distance([births[0]], [births[1]]), 0.0)
    with pytest.raises(InvalidArgumentError, match="a histogram compares with a histogram"):
        signature_distance([counted[0]], [deaths[1]])


@unhurried
@given(weights(), st.integers(1, 60))
def test_quantile_embedding_is_its_definition(values: NDArray[np.floating], size: int) -> None:
    found = quantile_embedding(values, size)
    assert found.tolist() == naive_distance.quantile_embedding(values.tolist(), size)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(quantile_embedding(values, len(values)), values)


def test_what_has_no_quantiles_is_said() -> None:
    with pytest.raises(InvalidDataError, match="no values have no quantiles"):
        quantile_distance([np.empty(0)], [np.zeros(1)])
    with pytest.raises(InvalidDataError, match="no values have no quantiles"):
        quantile_embedding(np.empty(0), 3)
    with pytest.raises(InvalidArgumentError, match="size must be at least 1; got 0"):
        quantile_embedding(np.zeros(3), 0)
    for bad in (np.array([1.0, 0.0]), np.array([0.0, np.nan]), np.array([np.nan])):
        with pytest.raises(InvalidArgumentError, match="values must ascend, without NaN"):
            quantile_distance([bad], [np.array([0.0, 1.0])])
        with pytest.raises(InvalidArgumentError, match="values must ascend, without NaN"):
            quantile_distance([np.array([0.0, 1.0])], [bad])
    huge = WeightHistogram(np.array([2**62, 0]))
    with pytest.raises(InvalidDataError, match="too fine a common refinement"):
        quantile_distance([huge], [np.zeros(3)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("snapshots", [1, 2, 7])
def test_all_pairs_equal_one_by_one(
    snapshots: int, order: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynome_analysis.distance.weights.SEGMENT", 32)
    monkeypatch.setattr("dynome_analysis.distance.weights.WIDTH", 16)
    random = np.random.default_rng(0)
    births, deaths = random.random((snapshots, 5)).astype(np.float32), random.random((snapshots, 133))
    found = pairwise_distances([births, deaths], order=order, threads=threads)
    expected = [
        [sorted_distance([births[i], deaths[i]], [births[j], deaths[j]], order=order) for j in range(snapshots)]
        for i in range(snapshots)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()
    np.testing.assert_array_equal(found, pairwise_distances([births, deaths], order=order, threads=2))
    others = pairwise_distances([births, deaths], [births[:3], deaths[:3]], order=order, threads=threads)
    np.testing.assert_allclose(others, np.array(expected)[:, :3], rtol=1e-12)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_all_pairs_of_different_sizes(order: float) -> None:
    random = np.random.default_rng(0)
    rows = [np.sort(random.random(size)).astype(np.float32) for size in (3, 8, 8, 21)]
    found = pairwise_distances([rows, rows[::-1]], order=order, normalised=True)
    for i, j in np.ndindex(4, 4):
        expected = quantile_distance([rows[i], rows[3 - i]], [rows[j], rows[3 - j]], order=order)
        assert found[i, j] == pytest.approx(expected, rel=1e-12)
    one = pairwise_distances([rows], [[rows[1], WeightHistogram.of(rows[1])]], order=order, normalised=True)
    assert one.shape == (4, 2)
    np.testing.assert_allclose(one[:, 0], one[:, 1], atol=1e-5)
    assert one[1, 0] == 0


def test_groups_that_do_not_compare_are_refused() -> None:
    with pytest.raises(InvalidDataError, match=r"rows of 3 to 4 values; .* or normalised=True"):
        pairwise_distances([[np.zeros(3), np.zeros(4)]])
    with pytest.raises(InvalidArgumentError, match=r"every part needs as many snapshots; got \[2, 3\]"):
        pairwise_distances([np.zeros((2, 1)), np.zeros((3, 1))])
    with pytest.raises(InvalidArgumentError, match="both groups need the same parts; got 2 and 1"):
        pairwise_distances([np.zeros((2, 1)), np.zeros((2, 1))], [np.zeros((2, 1))])
    with pytest.raises(InvalidArgumentError, match="values must ascend, without NaN"):
        pairwise_distances([np.array([[0.0, np.nan], [0.0, 1.0]])], normalised=True)
    counted = WeightHistogram.of([0.5])
    with pytest.raises(InvalidArgumentError, match="histograms are compared by their quantiles: normalised=True"):
        pairwise_distances([[np.zeros(1)]], [[counted]])


@pytest.mark.parametrize("order", [1, 2, 3, math.inf])
def test_a_group_without_snapshots_has_no_distances(order: float) -> None:
    assert pairwise_distances([[]], [np.zeros((2, 3))], order=order).shape == (0, 2)
    assert pairwise_distances([np.zeros((2, 3))], [[]], order=order).shape == (2, 0)
    assert pairwise_distances([[]], order=order).shape == (0, 0)


def test_close_snapshots_do_not_cancel() -> None:
    row = np.random.default_rng(0).random(10_000)
    assert pairwise_distances([np.stack([row, row + 1e-9])])[0, 1] == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 7, 100])
def test_halves_are_disjoint_equal_and_seeded(samples: int) -> None:
    first, second = split_samples(samples, seed=3)
    assert len(first) == len(second) == samples // 2
    assert len({*first.tolist(), *second.tolist()}) == 2 * (samples // 2)
    np.testing.assert_array_equal(first, split_samples(samples, seed=3)[0])
    np.testing.assert_array_equal(first, np.sort(first))
    if samples == 100:
        assert first.tolist() != split_samples(samples, seed=4)[0].tolist()


def test_the_paired_floor_is_half_the_disagreement() -> None:
    np.testing.assert_allclose(paired_floor(np.array([1.0, np.nan]), np.array([3.0, 1.0])), [1.0, np.nan])


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_the_centroid_minimises_the_sum_of_squared_distances(seed: int, graphs: int, weighted: bool) -> None:
    random = np.random.default_rng(seed)
    births, deaths = (np.sort(random.random((graphs, size)), axis=1).astype(np.float32) for size in (4, 9))
    shares = random.random(graphs) + 0.01 if weighted else None

    def cost(birth: NDArray[np.floating], death: NDArray[np.floating]) -> float:
        squares = [sorted_distance([birth, death], pair) ** 2 for pair in zip(births, deaths, strict=True)]
        return float(np.average(squares, weights=shares))

    middle = centroid(births, weights=shares), centroid(iter(deaths), weights=shares)
    np.testing.assert_allclose(middle[0], np.average(births.astype(float), axis=0, weights=shares), rtol=1e-12)
    assert (np.diff(middle[1]) >= 0).all()
    for _ in range(5):
        moved = [np.sort(part + random.normal(0, 0.01, part.shape)) for part in middle]
        assert cost(*middle) <= cost(*moved)


def test_the_centroid_of_different_sizes_is_of_quantiles() -> None:
    rows = [np.array([0.0, 1.0]), np.array([0.0, 0.25, 0.5]), np.array([0.5])]
    expected = np.mean([naive_distance.quantile_embedding(row.tolist(), 4) for row in rows], axis=0)
    np.testing.assert_allclose(centroid(rows, size=4), expected, rtol=1e-15)
    counted = WeightHistogram.of(np.array([0.1, 0.9]), bins=2)
    assert centroid([counted], size=2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: centroid([np.zeros(2), np.zeros(3)]), InvalidDataError, "have no mean entry by entry.*give a size"),
        (lambda: centroid([]), InvalidDataError, "no graphs have no centroid"),
        (lambda: centroid([WeightHistogram(np.array([1]))]), InvalidDataError, "histograms needs a size"),
        (lambda: centroid(np.zeros((2, 3)), weights=[1.0]), InvalidArgumentError, "as many weights as graphs.*1 for 2"),
        (
            lambda: centroid(np.zeros((1, 3)), weights=[1, 1]),
            InvalidArgumentError,
            "weights as graphs.*2 for 1",
        ),
        (lambda: centroid(np.zeros((2, 3)), weights=[1, -1]), InvalidArgumentError, "none negative and not all 0"),
        (lambda: centroid(np.zeros((2, 3)), weights=[0, 0]), InvalidArgumentError, "none negative and not all 0"),
    ],
)
def test_what_has_no_centroid_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
