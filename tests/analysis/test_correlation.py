"""|correlation| equals its twin and numpy, and says what it cannot do."""

import naive
import numpy as np
import pytest
from connectome_strategies import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynome_analysis.correlation import correlate, non_finite_units
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=60)


@unhurried
@given(activations())
def test_equals_the_naive_twin(values: NDArray[np.float32]) -> None:
    before = values.copy()
    connectome, dead = correlate(values)
    expected, expected_dead = naive.absolute_correlation(values.tolist())
    assert connectome.dtype == np.float32
    np.testing.assert_allclose(connectome, expected, atol=2e-6)
    assert dead.tolist() == expected_dead
    np.testing.assert_array_equal(values, before)


@unhurried
@given(activations(), st.randoms())
def test_is_symmetric_bounded_and_follows_a_permutation(values: NDArray[np.float32], random) -> None:
    connectome, dead = correlate(values)
    np.testing.assert_array_equal(connectome, connectome.T)
    assert connectome.min() >= 0
    assert connectome.max() <= 1
    assert not connectome.diagonal().any()
    assert not connectome[dead].any()
    order = random.sample(range(values.shape[1]), values.shape[1])
    permuted, permuted_dead = correlate(values[:, order])
    np.testing.assert_allclose(permuted, connectome[np.ix_(order, order)], atol=2e-6)
    np.testing.assert_array_equal(permuted_dead, dead[order])


def test_equals_numpy_at_a_size_of_many_tiles() -> None:
    random = np.random.default_rng(0)
    values = np.maximum(random.normal(size=(50, 5)) @ random.normal(size=(5, 131)), 0).astype(np.float32)
    values[:, 77] = 3.0
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.abs(np.nan_to_num(np.corrcoef(values.astype(float), rowvar=False)))
    np.fill_diagonal(expected, 0)
    connectome, dead = correlate(values)
    np.testing.assert_allclose(connectome, expected, atol=2e-6)
    assert np.flatnonzero(dead).tolist() == [77]


@pytest.mark.parametrize(("factor", "offset"), [(1, 1e4), (1e-30, 0), (1e30, 0), (-3, 5)])
def test_scale_and_offset_of_a_unit_do_not_matter(factor: float, offset: float) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(200, 20))
    changed = values.copy()
    changed[:, ::2] = changed[:, ::2] * factor + offset
    np.testing.assert_allclose(correlate(changed)[0], correlate(values)[0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-310, 1e300, 1.7e308])
def test_extreme_sizes_neither_vanish_nor_overflow(scale: float) -> None:
    values = np.random.default_rng(2).uniform(-1, 1, size=(30, 6))
    np.testing.assert_allclose(correlate(values * scale)[0], correlate(values)[0], atol=1e-5)


def test_a_unit_that_varies_by_rounding_only_is_dead() -> None:
    values = np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32)
    values[:, 2] = np.float32(1000) + np.float32(6e-5) * (np.arange(100) % 2)
    connectome, dead = correlate(values)
    assert dead.tolist() == [False, False, True, False]
    assert not connectome[2].any()
    assert not correlate(values, dead_tolerance=1e-9)[1].any()


def test_a_unit_that_fires_once_is_alive() -> None:
    values = np.zeros((1000, 2), np.float32)
    values[3, 0] = 1e-20
    values[3, 1] = 5
    connectome, dead = correlate(values)
    assert not dead.any()
    assert connectome[0, 1] == pytest.approx(1)


def test_float16_is_read_without_loss_and_other_orders_are_copied() -> None:
    values = np.random.default_rng(4).normal(size=(30, 5)).astype(np.float16)
    expected, _ = correlate(values.astype(np.float32))
    np.testing.assert_array_equal(correlate(values)[0], expected)
    np.testing.assert_array_equal(correlate(np.asfortranarray(values))[0], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named(bad: float) -> None:
    values = np.ones((5, 4), np.float32)
    values[2, 3] = bad
    values[0, 1] = bad
    with pytest.raises(InvalidDataError, match=r"2 of 4 units hold NaN or infinity \(first: unit 1\)"):
        correlate(values)
    assert non_finite_units(values).tolist() == [1, 3]


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 3, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"shape \(sample, unit\)"):
        correlate(np.zeros(shape, np.float32))


def test_integers_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="int64"):
        correlate(np.zeros((3, 3), np.int64))
