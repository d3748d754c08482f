"""Every measure of two units equals its twin and a library, and says what it cannot do."""

import tracemalloc
from functools import partial
from typing import Any

import naive
import numpy as np
import pytest
from connectome_strategies import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk
from scipy.stats import rankdata, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.metrics.pairwise import cosine_similarity

from dynome_analysis.connectome import correlation
from dynome_analysis.connectome.correlation import (
    MEASURES,
    Measure,
    correlate,
    cross_correlate,
    non_finite_units,
    standardise,
)
from dynome_analysis.connectome.shrinkage import SHRINKAGE_MINIMUM, shrinkage_intensity
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

TWINS = {
    "pearson": naive.correlation,
    "spearman": naive.spearman,
    "cosine": naive.cosine,
    "partial": partial(naive.partial_correlation, least=SHRINKAGE_MINIMUM),
}
every_measure = pytest.mark.parametrize("measure", MEASURES)

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


@every_measure
@unhurried
@given(values=activations(largest=10))
def test_every_measure_equals_its_naive_twin(measure: Measure, values: NDArray[np.float32]) -> None:
    signed, dead = correlate(values, measure=measure, signed=True)
    expected, expected_dead = TWINS[measure](values.tolist())
    np.testing.assert_allclose(signed, expected, atol=1e-5 if measure == "partial" else 2e-6)
    assert dead.tolist() == expected_dead
    assert not signed[dead].any()
    np.testing.assert_array_equal(correlate(values, measure=measure)[0], np.abs(signed))


@every_measure
@unhurried
@given(values=activations(), random=st.randoms())
def test_is_symmetric_bounded_and_follows_a_permutation(measure: Measure, values: NDArray[np.float32], random) -> None:
    connectome, dead = correlate(values, measure=measure)
    np.testing.assert_array_equal(connectome, connectome.T)
    assert connectome.min() >= 0
    assert connectome.max() <= 1
    assert not connectome.diagonal().any()
    assert not connectome[dead].any()
    order = random.sample(range(values.shape[1]), values.shape[1])
    permuted, permuted_dead = correlate(values[:, order], measure=measure)
    np.testing.assert_allclose(permuted, connectome[np.ix_(order, order)], atol=1e-5 if measure == "partial" else 2e-6)
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


@pytest.mark.parametrize("tolerance", [-1e-6, float("nan")])
def test_a_tolerance_that_would_kill_every_unit_is_refused(tolerance: float) -> None:
    values = np.random.default_rng(0).normal(size=(9, 3))
    for call in (correlate, standardise):
        with pytest.raises(InvalidArgumentError, match="dead_tolerance must be a number of at least 0"):
            call(values, dead_tolerance=tolerance)


def test_cosine_has_no_tolerance() -> None:
    values = np.random.default_rng(0).normal(size=(9, 3))
    assert not correlate(values, measure="cosine", dead_tolerance=2.0)[1].any()


def test_integers_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="int64"):
        correlate(np.zeros((3, 3), np.int64))


def latent(samples: int, units: int, *, seed: int = 0) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    drive = random.normal(size=(samples, 5)) @ random.normal(size=(5, units))
    return np.maximum(drive + 0.3 * random.normal(size=(samples, units)), 0)


def without_diagonal(matrix: Any) -> NDArray[np.float64]:
    matrix = np.array(matrix, np.float64)
    np.fill_diagonal(matrix, 0)
    return matrix


def test_spearman_equals_scipy() -> None:
    values = latent(80, 70)
    assert np.unique(values).size < values.size
    expected = without_diagonal(spearmanr(values).statistic)
    np.testing.assert_allclose(correlate(values, measure="spearman", signed=True)[0], expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_share_ties_and_see_every_bit(dtype: type) -> None:
    tiny, step = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).eps
    column = np.array([-0.0, 0.0, 1, 1 + step, -1, -1 - step, tiny, -tiny, 3, 3, 3, np.finfo(dtype).min], dtype)
    values = np.column_stack([column, np.arange(column.size), np.random.default_rng(0).normal(size=column.size)])
    ranks = rankdata(values.astype(dtype), axis=0)
    expected = without_diagonal(np.corrcoef(ranks, rowvar=False))
    np.testing.assert_allclose(correlate(values.astype(dtype), measure="spearman", signed=True)[0], expected, atol=1e-6)


def test_spearman_sees_order_alone() -> None:
    values = np.random.default_rng(0).normal(size=(40, 30))
    bent = np.where(np.arange(30) % 2, np.exp(5 * values), values**3)
    np.testing.assert_array_equal(correlate(bent, measure="spearman")[0], correlate(values, measure="spearman")[0])


def test_rounding_noise_has_no_ranks() -> None:
    values = np.random.default_rng(3).normal(size=(100, 3)).astype(np.float32)
    values[:, 1] = np.float32(1000) + np.float32(6e-5) * (np.arange(100) % 2)
    connectome, dead = correlate(values, measure="spearman")
    assert dead.tolist() == [False, True, False]
    assert not connectome[1].any()
    assert not correlate(values, measure="spearman", dead_tolerance=1e-9)[1].any()


def test_cosine_equals_scikit_learn_and_is_not_centred() -> None:
    values = latent(40, 70)
    values[:, 3] = 0
    values[:, 5] = 2
    connectome, dead = correlate(values, measure="cosine", signed=True)
    np.testing.assert_allclose(connectome, without_diagonal(cosine_similarity(values.T)), atol=1e-6)
    assert np.flatnonzero(dead).tolist() == [3]
    assert connectome[5].any()


@pytest.mark.parametrize(("samples", "units"), [(30, 70), (70, 30), (50, 50)])
def test_partial_equals_the_inverse_of_scikit_learns_estimate(samples: int, units: int) -> None:
    values = latent(samples, units, seed=1)
    values = values[:, values.std(axis=0) > 0]
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    estimate = LedoitWolf(assume_centered=True).fit(scaled)
    precision = np.linalg.inv(estimate.covariance_)
    size = np.sqrt(np.diag(precision))
    expected = without_diagonal(-precision / size / size[:, None])
    np.testing.assert_allclose(correlate(values, measure="partial", signed=True)[0], expected, atol=2e-6)
    columns = scaled / np.sqrt(samples)
    assert shrinkage_intensity(columns) == pytest.approx(estimate.shrinkage_, rel=1e-9)


def test_partial_correlation_tells_near_copies_apart() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50000, 4))
    values[:, 1] = values[:, 0] + 1e-4 * values[:, 1]
    values[:, 2] += values[:, 0]
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(scaled).covariance_)
    size = np.sqrt(np.diag(precision))
    expected = without_diagonal(-precision / size / size[:, None])
    np.testing.assert_allclose(correlate(values, measure="partial", signed=True)[0], expected, atol=1e-6)


def test_partial_correlation_takes_out_what_a_third_unit_explains() -> None:
    random = np.random.default_rng(0)
    cause = random.normal(size=20000)
    values = np.column_stack([cause, cause + random.normal(size=20000), cause + random.normal(size=20000)])
    assert correlate(values)[0][1, 2] > 0.45
    assert correlate(values, measure="partial")[0][1, 2] < 0.03


@every_measure
def test_one_sample_and_one_unit(measure: Measure) -> None:
    one_sample = np.array([[1, -2, 0]], np.float32)
    connectome, dead = correlate(one_sample, measure=measure, signed=True)
    cosine = measure == "cosine"
    assert dead.tolist() == ([False, False, True] if cosine else [True] * 3)
    assert connectome.tolist() == [[0, -cosine, 0], [-cosine, 0, 0], [0, 0, 0]]
    connectome, dead = correlate(np.arange(1.0, 5)[:, None], measure=measure)
    assert connectome.tolist() == [[0]]
    assert dead.tolist() == [False]


@every_measure
@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e300), (np.float64, 1e-310), (np.float32, 1e37)])
def test_no_measure_overflows_or_vanishes(measure: Measure, dtype: type, scale: float) -> None:
    values = np.random.default_rng(2).uniform(-1, 1, size=(30, 6)).astype(dtype)
    scaled = (values * dtype(scale)).astype(dtype)
    expected = correlate(values, measure=measure)[0]
    np.testing.assert_allclose(correlate(scaled, measure=measure)[0], expected, atol=1e-5)


@every_measure
def test_threads_change_nothing(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(10, 135))
    expected = correlate(values, measure=measure, threads=1)[0]
    monkeypatch.setattr(correlation, "STRIP", 32)
    monkeypatch.setattr(correlation, "THREADED", 1)
    np.testing.assert_array_equal(correlate(values, measure=measure, threads=3)[0], expected)


def test_the_result_is_the_only_square_array() -> None:
    values = np.random.default_rng(0).normal(size=(10, 500)).astype(np.float32)
    correlate(values)
    tracemalloc.start()
    connectome, _ = correlate(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * connectome.nbytes


def test_blas_does_not_read_what_it_overwrites() -> None:
    columns = np.ones((3, 40), np.float32)
    target = np.full((40, 40), np.nan, np.float32)
    product = ssyrk(1.0, columns.T, beta=0.0, c=target.T, lower=1, overwrite_c=1).T
    assert np.shares_memory(product, target)
    assert (product[np.triu_indices(40)] == 3).all()


@every_measure
@pytest.mark.parametrize("signed", [False, True])
def test_a_block_between_sets_is_that_of_the_joint_connectome(measure: Measure, signed: bool) -> None:
    values = latent(40, 60)
    values[:, [2, 50]] = 0
    values[:, 40:] *= -1
    first, second = values[:, :35], values[:, 35:]
    if measure == "partial":
        with pytest.raises(InvalidArgumentError, match="'partial' depends on all units at once"):
            cross_correlate(first, second, measure=measure)
        return
    block, dead_first, dead_second = cross_correlate(first, second, measure=measure, signed=signed)
    joint, dead = correlate(values, measure=measure, signed=signed)
    assert block.shape == (35, 25)
    np.testing.assert_allclose(block, joint[:35, 35:], atol=1e-6)
    np.testing.assert_array_equal(np.r_[dead_first, dead_second], dead)
    assert (block.min() < 0) == signed


def test_a_set_against_itself_has_ones_on_the_diagonal() -> None:
    values = np.random.default_rng(0).normal(size=(30, 9))
    block, _, _ = cross_correlate(values, values)
    np.testing.assert_allclose(block.diagonal(), 1, atol=1e-6)
    assert block.max() <= 1


def test_sets_of_different_samples_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="the same samples; got 3 and 4"):
        cross_correlate(np.ones((3, 2)), np.ones((4, 2)))


@every_measure
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_measure_names_non_finite_units(measure: Measure, dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    values[2, 3] = np.nan
    values[1, 3] = np.inf
    with pytest.raises(InvalidDataError, match=r"1 of 4 units hold NaN or infinity \(first: unit 3\)"):
        correlate(values, measure=measure)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="one of pearson, spearman, cosine, partial; got 'kendall'"):
        correlate(np.ones((3, 3)), measure="kendall")  # type: ignore[arg-type]


def test_columns_multiply_to_correlations() -> None:
    values = latent(50, 20)
    columns, dead = standardise(values)
    np.testing.assert_allclose(np.abs(without_diagonal(columns.T @ columns)), correlate(values)[0], atol=1e-6)
    np.testing.assert_array_equal(dead, correlate(values)[1])


def test_a_mask_is_not_dropped_silently() -> None:
    values = np.ma.masked_invalid(np.array([[1.0, np.nan], [2.0, 3.0], [0.5, 1.0]]))
    with pytest.raises(InvalidArgumentError, match="masked array"):
        correlate(values)
