"""Births and deaths equal their twin, scipy's spanning tree, and the counts of the paper."""

import tracemalloc

import naive
import naive_homology
import numpy as np
import pytest
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.homology.births import births, births_and_deaths, check_connectome, number_of_deaths, spanning_tree
from dynome_analysis.homology.sorting import SORTS, _vectors_suffice, numpy_sorts_by_vectors, sort_weights
from dynome_analysis.kernels.spanning_tree import BLOCK
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


def symmetric(values: NDArray[np.floating]) -> NDArray[np.float32]:
    upper = np.triu(values, 1).astype(np.float32)
    return upper + upper.T


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
    for found, again in zip((born, died), births_and_deaths(connectome, check=False, sort="radix"), strict=True):
        np.testing.assert_array_equal(found, again)


@unhurried
@given(matrices)
def test_the_tree_with_its_edges_equals_the_naive_twin(connectome: NDArray[np.float32]) -> None:
    weights, edges = spanning_tree(connectome)
    expected_weights, expected_edges = naive_homology.spanning_tree(connectome.tolist())
    assert weights.tolist() == expected_weights
    assert edges.tolist() == expected_edges
    assert (weights.dtype, edges.dtype, edges.shape) == (np.float32, np.int32, (len(connectome) - 1, 2))
    np.testing.assert_array_equal(weights, births(connectome))


@unhurried
@given(matrices)
def test_equals_scipy(connectome: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(births(connectome), scipy_births(connectome))


@pytest.mark.parametrize("units", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("levels", [2, 1000])
def test_equals_scipy_across_blocks(units: int, levels: int) -> None:
    connectome = symmetric(np.random.default_rng(units).integers(0, levels, (units, units)) / levels)
    born, died = births_and_deaths(connectome)
    weights, edges = spanning_tree(connectome, check=False)
    np.testing.assert_array_equal(weights, born)
    np.testing.assert_array_equal(connectome[edges[:, 0], edges[:, 1]], born)
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
    connectome = np.array([[9, -0.0, 0.5], [-0.0, np.nan, 0.25], [0.5, 0.25, -9]], np.float32)
    before = connectome.copy()
    for matrix in (connectome, np.abs(connectome), np.array([[9, -0.0, 0.5], [0.0, 9, 0.25], [0.5, 0.25, 9]])):
        born, died = births_and_deaths(matrix)
        assert born.tolist() == births(matrix).tolist() == [0.25, 0.5]
        assert died.tolist() == [0]
        assert not np.signbit(died).any()
        assert spanning_tree(matrix)[1].tolist() == [[1, 2], [0, 2]]
    np.testing.assert_array_equal(connectome, before)
    assert not np.signbit(check_connectome(connectome)[~np.eye(3, dtype=bool)]).any()


def test_of_tied_edges_the_smaller_pair_is_the_heavier() -> None:
    weights, edges = spanning_tree(np.ones((4, 4)))
    assert weights.tolist() == [1, 1, 1]
    assert edges.tolist() == [[0, 3], [0, 2], [0, 1]]


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.zeros((2, 3)), InvalidArgumentError, "square"),
        (np.zeros((0, 0)), InvalidArgumentError, "at least one unit"),
        (np.zeros((2, 2), int), InvalidArgumentError, "int64"),
        (np.array([[0, 0.5], [0.25, 0]]), InvalidArgumentError, "symmetric"),
        (np.array([[0, 0.5, 0], [0.5, 0, -0.1], [0, 0, 0]]), InvalidDataError, "negative"),
        (np.array([[0, -0.5], [-0.5, 0]]), InvalidDataError, "negative"),
        (np.array([[0, np.nan], [np.nan, 0]]), InvalidDataError, "finite"),
        (np.array([[0, -np.nan], [-np.nan, 0]]), InvalidDataError, "finite"),
        (np.array([[0, np.inf], [np.inf, 0]]), InvalidDataError, "finite"),
        (np.array([[0, 1e39], [1e39, 0]]), InvalidDataError, "finite"),
    ],
)
def test_what_is_no_connectome_is_refused(matrix: NDArray[np.float64], error: type[Exception], message: str) -> None:
    for function in (births_and_deaths, births, spanning_tree, check_connectome):
        with pytest.raises(error, match=message):
            function(matrix)


@pytest.mark.parametrize("fault", [-0.5, np.nan, np.inf, 0.75])
@pytest.mark.parametrize("place", [(0, 1), (1, 0), (149, 148), (3, 140), (140, 3), (149, 0), (17, 130), (127, 128)])
def test_one_wrong_entry_anywhere_is_refused(fault: float, place: tuple[int, int]) -> None:
    connectome = np.full((150, 150), 0.5, np.float32)
    births(connectome)
    connectome[place] = fault
    with pytest.raises((InvalidArgumentError, InvalidDataError), match=r"symmetric|negative|finite"):
        births(connectome)


@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0x7FC00000, 0x7F800000])
@pytest.mark.parametrize("function", [births, births_and_deaths, spanning_tree])
def test_unchecked_weights_that_are_not_finite_are_noticed_all_the_same(function, pattern: int) -> None:
    bits = np.zeros((5, 5), np.int32)
    bits[1] = bits[:, 1] = pattern
    with pytest.raises(InvalidDataError, match="finite"):
        function(bits.view(np.float32), check=False)


def test_an_unchecked_matrix_whose_births_are_no_edges_is_noticed() -> None:
    matrix = np.array([[0, 0.5, 0.6], [0.5, 0, 0.5], [0.6, 0.9, 0]])  # 0.9 is found in the row of unit 2 only
    with pytest.raises(InvalidArgumentError, match=r"a birth is not among the edges: .* symmetric"):
        births_and_deaths(matrix, check=False)


def test_other_layouts_and_precisions_are_read() -> None:
    connectome = symmetric(np.random.default_rng(1).random((9, 9)))
    for matrix in (np.asfortranarray(connectome), np.kron(connectome, np.ones((2, 2), np.float32))[::2, ::2]):
        for found, expected in zip(births_and_deaths(matrix), births_and_deaths(connectome), strict=True):
            np.testing.assert_array_equal(found, expected)
    half = connectome.astype(np.float16)
    np.testing.assert_array_equal(births(half), births(half.astype(np.float64)))


@pytest.mark.parametrize(("function", "bytes_per_entry"), [(births, 0), (spanning_tree, 0), (births_and_deaths, 2)])
def test_no_work_array_is_as_large_as_the_matrix(function, bytes_per_entry: int) -> None:
    units = 300
    connectome = symmetric(np.random.default_rng(0).random((units, units)))
    function(connectome)
    tracemalloc.start()
    try:
        function(connectome)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < bytes_per_entry * units**2 + 200 * units


@unhurried
@given(st.integers(0, 300), st.sampled_from([0.0, 1e-42, 1.0, 3e38]), st.integers(1, 1000), st.integers(0, 2**32 - 1))
def test_every_sort_gives_the_same(size: int, scale: float, levels: int, seed: int) -> None:
    values = (np.random.default_rng(seed).integers(0, levels, size) / levels * scale).astype(np.float32)
    expected = sorted(values.tolist())
    for sort in SORTS:
        assert sort_weights(values.copy(), sort=sort).tolist() == expected  # type: ignore[arg-type]


def test_an_unknown_sort_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="sort must be one of auto, numpy, radix; got 'bubble'"):
        births_and_deaths(np.ones((3, 3)), sort="bubble")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usable", "major", "fast"),
    [
        ({"SSE2", "AVX2"}, 1, False),
        ({"SSE2", "AVX2", "AVX512_SKX"}, 1, True),
        ({"SSE2", "AVX2"}, 2, True),
        ({"X86_V2", "X86_V3"}, 2, True),
        ({"X86_V2"}, 2, False),
        ({"NEON", "ASIMD"}, 1, False),
        ({"NEON", "ASIMD"}, 2, True),
        (set(), 2, False),
    ],
)
def test_which_processors_sort_by_vectors(usable: set[str], major: int, fast: bool) -> None:
    assert _vectors_suffice(usable, major) is fast
    assert numpy_sorts_by_vectors() in (True, False)


def test_auto_takes_the_radix_sort_where_numpy_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynome_analysis.homology.sorting.numpy_sorts_by_vectors", lambda: False)
    values = np.array([3, 1, 2], np.float32)
    assert sort_weights(values).tolist() == [1, 2, 3]
    assert values.tolist() == [3, 1, 2]  # the result lies in the work space: one digit differs


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_zeros_are_set_aside_and_nothing_is_lost(size: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random(size, np.float32)
    values[random.random(size) < share] = 0
    found = sort_weights(values.copy(), sort="numpy")
    np.testing.assert_array_equal(found, np.sort(values))
    assert not np.signbit(found).any()
