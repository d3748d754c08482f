"""Loops: equal to the textbook, to ripser.py on a thousand matrices and to giotto-ph; refused where memory ends."""

import tracemalloc
import warnings

import naive_loops
import numba
import numpy as np
import pytest
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ripser import ripser

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.persistence import loops
from dynome_analysis.persistence.loops import estimate_loops_memory, loop_lengths, loop_weights
from dynome_analysis.persistence.rips import rips_distances
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

JIT = not numba.config.DISABLE_JIT
CASES = 1000 if JIT else 160
unhurried = settings(deadline=None, max_examples=100 if JIT else 40)
matrices = st.one_of(weights(largest=10), activations(largest=10).map(lambda values: correlate(values)[0]))


def in_order(diagram: NDArray[np.floating]) -> NDArray[np.float64]:
    """A diagram as a sorted list of bars of positive length."""
    points = np.asarray(diagram, np.float64).reshape(-1, 2)
    points = points[points[:, 1] > points[:, 0]]
    return points[np.lexsort((points[:, 1], points[:, 0]))]


def by_ripser(distances: NDArray[np.float32], threshold: float = np.inf) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_order(ripser(distances, maxdim=1, thresh=threshold, distance_matrix=True)["dgms"][1])


def symmetric(matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    upper = np.triu(matrix, 1).astype(np.float32)
    return upper + upper.T


def contrived(seed: int, largest: int) -> NDArray[np.float32]:
    """Distances with every trouble: ties, few values, duplicates, lattices, circles, sparse graphs, dead units."""
    random = np.random.default_rng(seed)
    units = int(random.integers(4, largest))
    kind = seed % 8
    if kind == 0:
        distances = random.random((units, units))
    elif kind == 1:
        distances = random.choice([0, 0.25, 0.5, 0.75, 1], (units, units))
    elif kind == 2:
        distances = random.integers(0, 12, (units, units)) / 12
    elif kind == 3:
        distances = np.where(random.random((units, units)) < 0.3, random.random((units, units)), 1)
    elif kind == 4:
        distances = random.integers(0, 3, (units, units)) / 2
    elif kind == 5:
        angle = np.sort(random.random(units)) * 2 * np.pi
        around = np.abs(angle[:, None] - angle)
        distances = np.minimum(around, 2 * np.pi - around)
    else:
        points = random.random((units, 2)) if kind == 6 else random.integers(0, 6, (units, 2)) / 10
        points = points[random.integers(0, units, units)] if random.random() < 0.5 else points
        distances = np.abs(points[:, None] - points).sum(axis=2)
    if random.random() < 0.3:
        dead = random.random(units) < 0.2
        distances[dead] = distances[:, dead] = 1
    return symmetric(distances)


def latent(units: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    drive = random.normal(size=(200, 6)) @ random.normal(size=(6, units)) + random.normal(size=(200, units))
    return correlate(np.maximum(drive, 0).astype(np.float32))[0]


def squares(side: int) -> NDArray[np.float32]:
    """Two groups, 1 apart, 2 within; one more unit is 3 from all. ``(side - 1) ** 2`` loops live from 1 to 2."""
    distances = np.full((2 * side + 1, 2 * side + 1), 2.0)
    distances[:side, side:] = distances[side:, :side] = 1
    distances[-1] = distances[:, -1] = 3
    return symmetric(distances)


def doubling(levels: int) -> NDArray[np.float32]:
    """Distances that lead an edge over paths whose length doubles with every level.

    Centre t is joined to the later centres and to the leaves after centre t - 1 was, and closer to a crowd far away,
    which makes it the more likely to be led over. Two more units hang a loop on the last centre and the first leaf.
    """
    centres, leaves, crowd = levels, 4, 3 * levels
    units = centres + leaves + 2 + crowd
    distances = np.full((units, units), 50.0) + np.random.default_rng(0).random((units, units))
    for centre in range(centres):
        distances[centre, centre + 1 : centres + leaves] = 1 + centre + np.arange(centres + leaves - centre - 1) / 100
        distances[centre, centres + leaves + 2 :] = 49 - centre / centres
    last, leaf, x, y = centres - 1, centres, centres + leaves, centres + leaves + 1
    distances[leaf, x], distances[last, x], distances[leaf, y], distances[x, y] = 45, 41, 42, 43
    return symmetric(distances)


@unhurried
@given(matrices)
def test_loops_equal_the_textbook(connectome: NDArray[np.float32]) -> None:
    distances = rips_distances(connectome)
    expected = naive_loops.loops(distances.tolist())
    assert [tuple(point) for point in in_order(loop_lengths(distances))] == expected
    # The same pairs, found by weight: 1 - w in float32 may merge what differs.
    found = loop_weights(connectome)
    assert (found[:, 0] > found[:, 1]).all()
    assert [tuple(point) for point in in_order(np.maximum(np.float32(1) - found, 0))] == expected


@pytest.mark.parametrize("steps", [loops.STEPS_PER_UNIT, 0])
def test_loops_equal_ripser_on_contrived_distances(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "STEPS_PER_UNIT", steps)
    points = 0
    for seed in range(CASES if steps else CASES // 5):
        distances = contrived(seed, 40 if JIT else 20)
        expected = by_ripser(distances)
        np.testing.assert_array_equal(in_order(loop_lengths(distances)), expected, err_msg=f"seed {seed}")
        points += len(expected)
    assert points > CASES / 2


def test_a_threshold_beyond_float32_cuts_nothing() -> None:
    steps = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    ring = np.minimum(steps, 9 - steps)
    np.testing.assert_array_equal(loop_lengths(ring, threshold=1e300), loop_lengths(ring))


def test_a_threshold_cuts_the_filtration() -> None:
    endless = 0
    for seed in range(CASES // 5):
        distances = contrived(seed, 30 if JIT else 15)
        threshold = float(np.quantile(distances[np.triu_indices(len(distances), 1)], (seed % 7 + 1) / 8)) + 1e-9
        expected = by_ripser(distances, threshold)
        np.testing.assert_array_equal(in_order(loop_lengths(distances, threshold=threshold)), expected)
        endless += int(np.isinf(expected).sum())
    assert endless > 5
    square = squares(4)
    assert loop_lengths(square, threshold=1).tolist() == [[1, np.inf]] * 9
    assert loop_lengths(square, threshold=float(np.nextafter(1.0, 0))).shape == (0, 2)
    assert loop_lengths(square, threshold=2).tolist() == [[1, 2]] * 9


@pytest.mark.parametrize("kind", ["latent", "independent", "rounded", "half dead"])
def test_loops_of_larger_connectomes(kind: str) -> None:
    units = 160 if JIT else 32
    if kind == "independent":
        connectome = correlate(np.random.default_rng(1).normal(size=(200, units)))[0]
    else:
        connectome = latent(units)
    if kind == "rounded":
        connectome = np.round(connectome * 16) / np.float32(16)
    elif kind == "half dead":
        connectome[::2] = connectome[:, ::2] = 0
    found = in_order(np.float32(1) - loop_weights(connectome))
    assert len(found) > 5
    np.testing.assert_array_equal(found, by_ripser(rips_distances(connectome)))
    order = np.random.default_rng(0).permutation(units)
    again = loop_weights(np.ascontiguousarray(connectome[np.ix_(order, order)]))
    np.testing.assert_array_equal(in_order(np.float32(1) - again), found)


def test_many_loops_at_once_make_room() -> None:
    side = 40 if JIT else 12
    assert loop_lengths(squares(side)).tolist() == [[1, 2]] * (side - 1) ** 2


@pytest.mark.parametrize("steps", [loops.STEPS_PER_UNIT, 0])
def test_paths_that_double_are_swept(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "STEPS_PER_UNIT", steps)
    distances = doubling(40 if JIT else 10)
    np.testing.assert_array_equal(in_order(loop_lengths(distances)), by_ripser(distances))


@unhurried
@given(matrices)
def test_the_order_of_the_weights_decides_alone(connectome: NDArray[np.float32]) -> None:
    before = connectome.copy()
    found = loop_weights(connectome)
    halved = loop_weights(connectome * np.float32(0.5) if connectome.max() > 1e-30 else connectome)
    assert len(found) == len(halved)
    np.testing.assert_array_equal(connectome, before)
    assert found.dtype == np.float32
    assert (np.diff(found[:, 0]) <= 0).all()


@pytest.mark.parametrize("units", [1, 2, 3])
def test_few_units_have_no_loops(units: int) -> None:
    assert loop_weights(np.full((units, units), 0.5, np.float32)).shape == (0, 2)


def test_equal_weights_have_no_loops() -> None:
    for value in (0, 0.5, 1):
        assert loop_weights(np.full((70, 70), value, np.float32)).shape == (0, 2)


def test_memory_is_estimated_before_and_refused() -> None:
    units = 150 if JIT else 40
    connectome = latent(units)
    estimate = estimate_loops_memory(units)
    assert estimate_loops_memory(units, edges=10) < estimate < estimate_loops_memory(2 * units) < 5 * estimate
    loop_weights(connectome)
    tracemalloc.start()
    loop_weights(connectome, check=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * estimate < peak < 1.1 * estimate + 10_000
    with pytest.raises(InvalidDataError, match=rf"loops of {units} units need .* memory limit: .* raise memory_limit"):
        loop_weights(connectome, memory_limit=1000)
    # Enough to start with, not enough for what the loops bring.
    distances = squares(40 if JIT else 12)
    with pytest.raises(InvalidDataError, match="MB or more, the limit is"):
        loop_lengths(distances, memory_limit=estimate_loops_memory(len(distances)))


def test_bad_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="threshold must be a length of at least 0; got nan"):
        loop_lengths(np.zeros((5, 5)), threshold=float("nan"))
    with pytest.raises(InvalidArgumentError, match="square"):
        loop_weights(np.zeros((5, 4)))
    with pytest.raises(InvalidDataError, match="finite"):
        loop_weights(np.full((5, 5), np.nan))
    monkeypatch.setattr(loops, "MOST_UNITS", 4)
    with pytest.raises(InvalidArgumentError, match="loops are found among at most 4 units; got 5"):
        loop_weights(np.zeros((5, 5)))
