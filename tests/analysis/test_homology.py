"""Births and deaths equal their twin, scipy's spanning tree, and the counts of the paper."""

import naive
import numpy as np
import pytest
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree

from dynome_analysis.correlation import correlate
from dynome_analysis.homology import births, births_and_deaths, number_of_deaths
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=100)
matrices = st.one_of(weights(), activations().map(lambda values: correlate(values)[0]))


def scipy_births(connectome: NDArray[np.float32]) -> NDArray[np.float32]:
    """scipy reads 0 as "no edge", so it gets ranks, counted from 1, in place of weights."""
    levels, ranks = np.unique(connectome, return_inverse=True)
    costs = (levels.size - ranks).reshape(connectome.shape).astype(float)
    np.fill_diagonal(costs, 0)
    kept = minimum_spanning_tree(costs).data.astype(int)
    return np.sort(levels[levels.size - kept])


@unhurried
@given(matrices)
def test_equals_the_naive_twin(connectome: NDArray[np.float32]) -> None:
    before = connectome.copy()
    born, died = births_and_deaths(connectome)
    expected_born, expected_died = naive.births_and_deaths(connectome.tolist())
    assert born.tolist() == expected_born
    assert died.tolist() == expected_died
    assert born.dtype == died.dtype == np.float32
    np.testing.assert_array_equal(connectome, before)


@unhurried
@given(matrices)
def test_equals_scipy(connectome: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(births(connectome), scipy_births(connectome))


@pytest.mark.parametrize("units", [63, 64, 65, 130])
@pytest.mark.parametrize("levels", [2, 1000])
def test_equals_scipy_across_blocks(units: int, levels: int) -> None:
    random = np.random.default_rng(units)
    upper = np.triu(random.integers(0, levels, (units, units)), 1).astype(np.float32) / levels
    connectome = upper + upper.T
    born, died = births_and_deaths(connectome)
    np.testing.assert_array_equal(born, scipy_births(connectome))
    together = np.sort(np.concatenate([born, died]))
    np.testing.assert_array_equal(together, np.sort(connectome[np.triu_indices(units, 1)]))


@unhurried
@given(matrices, st.randoms())
def test_names_of_units_do_not_matter(connectome: NDArray[np.float32], random) -> None:
    order = random.sample(range(len(connectome)), len(connectome))
    for found, expected in zip(births_and_deaths(connectome[np.ix_(order, order)]), births_and_deaths(connectome)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("units", "deaths"), [(1, 0), (2, 0), (3, 1), (4, 3), (10, 36)])
def test_counts(units: int, deaths: int) -> None:
    born, died = births_and_deaths(np.ones((units, units), np.float32))
    assert (born.size, died.size) == (units - 1, deaths)
    assert number_of_deaths(units) == deaths


def test_edges_of_weight_zero_are_counted() -> None:
    connectome = np.zeros((5, 5))
    connectome[0, 1] = connectome[1, 0] = 0.5
    born, died = births_and_deaths(connectome)
    assert born.tolist() == [0, 0, 0, 0.5]
    assert died.tolist() == [0] * 6


def test_negative_zeros_and_the_diagonal_are_not_weights() -> None:
    connectome = np.array([[9, -0.0, 0.5], [-0.0, 9, 0.25], [0.5, 0.25, 9]], np.float32)
    born, died = births_and_deaths(connectome)
    assert born.tolist() == [0.25, 0.5]
    assert died.tolist() == [0]
    assert not np.signbit(died).any()


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.zeros((2, 3)), InvalidArgumentError, "square"),
        (np.zeros((0, 0)), InvalidArgumentError, "at least one unit"),
        (np.zeros((2, 2), int), InvalidArgumentError, "int64"),
        (np.array([[0, 0.5], [0.25, 0]]), InvalidArgumentError, "symmetric"),
        (np.array([[0, -0.5], [-0.5, 0]]), InvalidDataError, "negative"),
        (np.array([[0, np.nan], [np.nan, 0]]), InvalidDataError, "finite"),
        (np.array([[0, -np.nan], [-np.nan, 0]]), InvalidDataError, "finite"),
        (np.array([[0, np.inf], [np.inf, 0]]), InvalidDataError, "finite"),
    ],
)
def test_what_is_no_connectome_is_refused(matrix: NDArray[np.float64], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        births_and_deaths(matrix)
    with pytest.raises(error, match=message):
        births(matrix)
