"""Closed-form and matching distances equal their twins, gudhi's Hera and scipy's square assignment."""

import naive
import numpy as np
import pytest
from gudhi.hera import wasserstein_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dynome_analysis.distance import diagram_distance, pairwise_distances, sorted_distance
from dynome_analysis.halves import paired_floor, split_samples
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=60)


@st.composite
def diagrams(draw: st.DrawFn, *, largest: int) -> NDArray[np.float64]:
    """Points above the diagonal, on a grid every other time so that they tie."""
    count = draw(st.integers(0, largest))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = np.sort(random.random((count, 2)), axis=1)
    return np.round(points, 1) if draw(st.booleans()) else points


def square_assignment(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The textbook problem: every diagram gets one copy of the diagonal per point of the other."""
    rows, columns = len(first), len(second)
    cost = np.zeros((rows + columns, rows + columns))
    cost[:rows, :columns] = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
    cost[:rows, columns:] = ((first[:, 1] - first[:, 0]) ** 2 / 2)[:, None]
    cost[rows:, :columns] = ((second[:, 1] - second[:, 0]) ** 2 / 2)[None]
    return float(np.sqrt(cost[linear_sum_assignment(cost)].sum()))


@unhurried
@given(diagrams(largest=4), diagrams(largest=4))
def test_diagram_distance_equals_trying_every_matching(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    assert diagram_distance(first, second) == pytest.approx(
        naive.diagram_distance(first.tolist(), second.tolist()), abs=1e-12
    )


@unhurried
@given(diagrams(largest=40), diagrams(largest=40))
def test_diagram_distance_equals_assignment_and_hera(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    found = diagram_distance(first, second)
    assert found == pytest.approx(square_assignment(first, second), abs=1e-7)
    assert found == pytest.approx(
        wasserstein_distance(first, second, order=2, internal_p=2, delta=1e-6), rel=1e-5, abs=1e-7
    )
    assert found == pytest.approx(diagram_distance(second, first), abs=1e-12)


def test_equal_diagrams_are_exactly_zero_apart() -> None:
    points = np.sort(np.random.default_rng(0).random((300, 2)), axis=1)
    assert diagram_distance(points, points[::-1]) == 0
    assert diagram_distance(np.empty((0, 2)), np.empty((0, 2))) == 0


def test_close_diagrams_do_not_cancel() -> None:
    points = np.sort(np.random.default_rng(0).random((300, 2)), axis=1)
    moved = points + 1e-12
    assert diagram_distance(points, moved) == pytest.approx(1e-12 * np.sqrt(600), rel=1e-3)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 3)), np.array([[0.0, np.inf]])])
def test_what_is_no_diagram_is_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidArgumentError, match="leave infinite bars out"):
        diagram_distance(bad, np.zeros((1, 2)))


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_sorted_distance_equals_the_naive_twin(seed: int, births: int, deaths: int) -> None:
    random = np.random.default_rng(seed)
    first, second = (
        tuple(np.sort(random.random(size).astype(np.float32)) for size in (births, deaths)) for _ in range(2)
    )
    assert sorted_distance(first, second) == pytest.approx(naive.top_distance(first, second), rel=1e-12)


def test_sorted_distance_sums_in_float64_over_blocks() -> None:
    first = np.zeros(3 << 20, np.float32)
    second = np.full(3 << 20, 1e-4, np.float32)
    expected = float(second[0]) * np.sqrt(first.size)
    assert sorted_distance([first], [second]) == pytest.approx(expected, rel=1e-12)


def test_graphs_of_different_size_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="different size have no distance"):
        sorted_distance([np.zeros(3)], [np.zeros(4)])


@pytest.mark.parametrize("snapshots", [1, 2, 7])
def test_pairwise_distances_equal_one_by_one(snapshots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynome_analysis.distance.SEGMENT", 32)
    random = np.random.default_rng(0)
    births, deaths = (random.random((snapshots, size)).astype(np.float32) for size in (5, 33))
    found = pairwise_distances([births, deaths])
    expected = [
        [sorted_distance([births[i], deaths[i]], [births[j], deaths[j]]) for j in range(snapshots)]
        for i in range(snapshots)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not found.diagonal().any()


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
