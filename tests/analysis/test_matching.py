"""Distances between diagrams equal every matching tried, scipy's square assignment, Hera and persim."""

import math

import naive
import naive_distance
import numpy as np
import persim
import pytest
from gudhi.hera import bottleneck_distance, wasserstein_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dynome_analysis.distance import assignment, bottleneck
from dynome_analysis.distance.matching import diagram_distance
from dynome_analysis.distance.weights import sorted_distance
from dynome_recorder.errors import InvalidArgumentError

unhurried = settings(deadline=None, max_examples=60)
NORMS = (1, 2, math.inf)
ORDERS = (1.0, 1.5, 2.0, 3.0, math.inf)
Diagram = NDArray[np.float64]


@st.composite
def diagrams(draw: st.DrawFn, *, largest: int) -> Diagram:
    """Points above the diagonal, scattered or all near it, on a grid every other time so that they tie."""
    count = draw(st.integers(0, largest))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = np.sort(random.random((count, 2)), axis=1)
    if draw(st.booleans()):
        points[:, 1] = points[:, 0] + random.exponential(0.05, count)
    return np.round(points, 1) if draw(st.booleans()) else points


def off_diagonal(points: Diagram) -> Diagram:
    """Hera hangs or crashes on points of the diagonal."""
    return points[points[:, 0] < points[:, 1]]


def square_assignment(first: Diagram, second: Diagram, order: float, ground_norm: float) -> float:
    """The textbook problem: every diagram gets one copy of the diagonal per point of the other."""
    rows, columns = len(first), len(second)
    cost = np.zeros((rows + columns, rows + columns))
    cost[:rows, :columns] = np.linalg.norm(first[:, None] - second[None], ord=ground_norm, axis=-1) ** order
    ways = [np.linalg.norm((d - d[:, ::-1]) / 2, ord=ground_norm, axis=-1) ** order for d in (first, second)]
    cost[:rows, columns:] = ways[0][:, None]
    cost[rows:, :columns] = ways[1][None]
    return float(cost[linear_sum_assignment(cost)].sum() ** (1 / order))


@unhurried
@given(diagrams(largest=4), diagrams(largest=4), st.sampled_from(ORDERS), st.sampled_from(NORMS))
def test_a_distance_equals_trying_every_matching(first: Diagram, second: Diagram, order: float, norm: float) -> None:
    found = diagram_distance(first, second, order=order, ground_norm=norm)
    expected = naive_distance.diagram_distance(first.tolist(), second.tolist(), order, norm)
    assert found == pytest.approx(expected, abs=1e-12)
    if order == norm == 2:
        assert found == pytest.approx(naive.diagram_distance(first.tolist(), second.tolist()), abs=1e-12)


@unhurried
@given(diagrams(largest=40), diagrams(largest=40), st.sampled_from(ORDERS[:-1]), st.sampled_from(NORMS))
def test_wasserstein_equals_assignment_and_hera(first: Diagram, second: Diagram, order: float, norm: float) -> None:
    found = diagram_distance(first, second, order=order, ground_norm=norm)
    assert found == pytest.approx(square_assignment(first, second, order, norm), rel=1e-7, abs=1e-9)
    left, right = off_diagonal(first), off_diagonal(second)
    hera = wasserstein_distance(left, right, order=order, internal_p=norm, delta=1e-6)
    assert found == pytest.approx(hera, rel=1e-5, abs=1e-7)
    assert found == pytest.approx(diagram_distance(second, first, order=order, ground_norm=norm), abs=1e-12)
    shuffled = np.random.default_rng(0).permutation(first)
    assert found == pytest.approx(diagram_distance(shuffled, second, order=order, ground_norm=norm), rel=1e-9)


@unhurried
@given(diagrams(largest=40), diagrams(largest=40))
def test_bottleneck_equals_hera_and_persim(first: Diagram, second: Diagram) -> None:
    found = diagram_distance(first, second, order=math.inf, ground_norm=math.inf)
    assert found == pytest.approx(bottleneck_distance(off_diagonal(first), off_diagonal(second), 0.0), abs=1e-15)
    if len(first) and len(second):
        assert found == pytest.approx(persim.bottleneck(first, second), abs=1e-12)
    assert found == diagram_distance(second, first, order=math.inf, ground_norm=math.inf)


@unhurried
@given(diagrams(largest=20), diagrams(largest=20))
def test_persim_measures_order_one_in_the_plane(first: Diagram, second: Diagram) -> None:
    if len(first) and len(second):
        found = diagram_distance(first, second, order=1, ground_norm=2)
        # persim takes its lengths from a Gram matrix: equal points lie 1e-8 apart.
        assert found == pytest.approx(persim.wasserstein(first, second), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_few_candidates_are_enough(seed: int, order: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one neighbour at first, all the rest has to come from prices, or from asking for more."""
    monkeypatch.setattr(assignment, "NEIGHBOURS", 1)
    monkeypatch.setattr(assignment, "ADDED", 1)
    monkeypatch.setattr(assignment, "TILE", 4)
    monkeypatch.setattr(bottleneck, "NEIGHBOURS", 1)
    random = np.random.default_rng(seed)
    first, second = (np.sort(random.random((size, 2)), axis=1) for size in (60, 45))
    second[:20] = first[:20] + random.normal(0, 0.02, (20, 2))
    second.sort(axis=1)
    found = diagram_distance(first, second, order=order, ground_norm=math.inf)
    if math.isinf(order):
        assert found == pytest.approx(bottleneck_distance(first, second, 0.0), abs=1e-15)
    else:
        assert found == pytest.approx(square_assignment(first, second, order, math.inf), rel=1e-9)


def test_many_points_equal_the_assignment() -> None:
    random = np.random.default_rng(0)
    first, second = (np.sort(random.random((150, 2)), axis=1) for _ in range(2))
    near = np.sort(first + random.normal(0, 0.01, first.shape), axis=1)
    for other in (second, near):
        assert diagram_distance(first, other) == pytest.approx(square_assignment(first, other, 2, 2), rel=1e-9)


def test_equal_diagrams_are_exactly_zero_apart() -> None:
    points = np.sort(np.random.default_rng(0).random((300, 2)), axis=1)
    for order in ORDERS:
        assert diagram_distance(points, points[::-1], order=order) == 0
        assert diagram_distance(np.empty((0, 2)), np.empty((0, 2)), order=order) == 0
        assert diagram_distance(np.empty((0, 2)), np.array([[0.5, 0.5]]), order=order) == 0


@pytest.mark.parametrize("order", ORDERS)
def test_one_diagram_may_be_empty(order: float) -> None:
    points = np.array([[0.0, 1.0], [0.25, 0.75]])
    ways = np.array([1.0, 0.5]) / np.sqrt(2)
    expected = np.linalg.norm(ways, order)
    assert diagram_distance(points, np.empty((0, 2)), order=order) == pytest.approx(expected)
    assert diagram_distance(np.empty((0, 2)), points, order=order) == pytest.approx(expected)


def test_close_diagrams_do_not_cancel() -> None:
    points = np.sort(np.random.default_rng(0).random((300, 2)), axis=1)
    moved = points + 1e-12
    assert diagram_distance(points, moved) == pytest.approx(1e-12 * np.sqrt(600), rel=1e-3)
    assert diagram_distance(points, moved, order=math.inf) == pytest.approx(1e-12 * np.sqrt(2), rel=1e-3)


def test_high_orders_and_tiny_diagrams_do_not_vanish() -> None:
    points = np.sort(np.random.default_rng(0).random((30, 2)), axis=1) * 1e-30
    other = points + 1e-32
    assert diagram_distance(points, other, order=40) == pytest.approx(1e-32 * np.sqrt(2) * 30 ** (1 / 40), rel=1e-6)


def test_on_births_alone_it_is_the_closed_form() -> None:
    """Bars of equal birth, far from the diagonal: the plane is a line."""
    births = np.sort(np.random.default_rng(0).random((2, 50)), axis=1)
    first, second = (np.column_stack([np.full(50, -10.0), row]) for row in births)
    for order in ORDERS:
        expected = sorted_distance([births[0]], [births[1]], order=order)
        assert diagram_distance(first, second, order=order) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 3)), np.array([[0.0, np.inf]])])
def test_what_is_no_diagram_is_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidArgumentError, match="leave infinite bars out"):
        diagram_distance(bad, np.zeros((1, 2)))


def test_a_death_before_its_birth_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="a death before its birth: turn weights into distances first"):
        diagram_distance(np.array([[0.0, 1.0], [0.9, 0.4]]), np.zeros((0, 2)))


def test_unknown_conventions_are_refused() -> None:
    points = np.array([[0.0, 1.0]])
    with pytest.raises(InvalidArgumentError, match=r"ground_norm must be 1, 2 or inf; got 3"):
        diagram_distance(points, points, ground_norm=3)
    with pytest.raises(InvalidArgumentError, match=r"order must be at least 1 or infinite; got 0.5"):
        diagram_distance(points, points, order=0.5)
