"""Rips diagrams: H0 equals 1 - births, H1 equals ripser.py called by hand, every engine says the same."""

import re

import numpy as np
import pytest
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ripser import ripser

from dynome_analysis import persistence
from dynome_analysis.correlation import correlate
from dynome_analysis.homology import births
from dynome_analysis.persistence import ENGINES, find_engine, functional_persistence, rips_diagrams, rips_distances
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError, MissingExtraError

unhurried = settings(deadline=None, max_examples=60)
matrices = st.one_of(weights(largest=20), activations(largest=24).map(lambda values: correlate(values)[0]))
INSTALLED = [name for name, engine in ENGINES.items() if engine.is_installed]


def by_hand(connectome: NDArray[np.float32], highest: int = 1) -> list[NDArray[np.float64]]:
    """Diagrams of ripser.py as its documentation says, as sorted lists of bars of positive length."""
    distances = 1 - connectome
    np.fill_diagonal(distances, 0)
    found = ripser(np.ascontiguousarray(distances), maxdim=highest, distance_matrix=True)["dgms"]
    bars = [diagram[diagram[:, 1] > diagram[:, 0]].astype(np.float64) for diagram in found]
    return [diagram[np.lexsort((diagram[:, 1], diagram[:, 0]))] for diagram in bars]


@unhurried
@given(matrices)
def test_components_equal_one_minus_births_and_ripser(connectome: NDArray[np.float32]) -> None:
    diagram = rips_diagrams(connectome, dimensions=(0,))[0]
    assert diagram.shape == (len(connectome), 2)
    assert not diagram[:, 0].any()
    np.testing.assert_array_equal(diagram[:-1, 1], np.sort(np.float32(1) - births(connectome)))
    assert diagram[-1, 1] == np.inf
    if len(connectome) > 2:
        np.testing.assert_array_equal(diagram[diagram[:, 1] > 0], by_hand(connectome)[0])


@pytest.mark.parametrize("engine", INSTALLED)
@unhurried
@given(connectome=matrices)
def test_loops_equal_ripser(engine: persistence.Engine, connectome: NDArray[np.float32]) -> None:
    before = connectome.copy()
    diagram = rips_diagrams(connectome, dimensions=(1,), engine=engine)[1]
    assert diagram.shape[1] == 2
    if len(connectome) > 2:
        np.testing.assert_array_equal(diagram, by_hand(connectome)[1])
    np.testing.assert_array_equal(connectome, before)


@pytest.mark.parametrize("engine", INSTALLED)
def test_every_degree_of_a_larger_connectome(engine: persistence.Engine) -> None:
    random = np.random.default_rng(0)
    values = np.maximum(random.normal(size=(100, 4)) @ random.normal(size=(4, 50)), 0)
    connectome, _ = correlate(values)
    diagrams = rips_diagrams(connectome, dimensions=(2, 1), engine=engine)
    assert list(diagrams) == [1, 2]
    assert len(diagrams[1]) > 5
    for dimension, diagram in diagrams.items():
        np.testing.assert_array_equal(diagram, by_hand(connectome, 2)[dimension])


def test_a_square_has_one_loop() -> None:
    connectome = np.full((4, 4), 0.25, np.float32)
    for i in range(4):
        connectome[i, (i + 1) % 4] = connectome[(i + 1) % 4, i] = 0.75
    assert rips_diagrams(connectome)[1].tolist() == [[0.25, 0.75]]
    assert functional_persistence(rips_diagrams(connectome)[1]) == pytest.approx(0.5)


@pytest.mark.parametrize("units", [1, 2, 3])
def test_few_units_have_no_loops(units: int) -> None:
    diagrams = rips_diagrams(np.full((units, units), 0.5, np.float32), dimensions=(0, 1, 2))
    assert [diagrams[dimension].shape for dimension in (0, 1, 2)] == [(units, 2), (0, 2), (0, 2)]
    assert functional_persistence(diagrams[1]) == 0


def test_the_distance_has_diagonal_zero_and_is_never_negative() -> None:
    distances = rips_distances(np.array([[0, 1.5], [1.5, 0]]))
    assert distances.tolist() == [[0, 0], [0, 0]]
    assert distances.dtype == np.float32


def test_nan_never_reaches_an_engine() -> None:
    connectome = np.zeros((5, 5))
    connectome[0] = connectome[:, 0] = np.nan
    with pytest.raises(InvalidDataError, match="finite"):
        rips_diagrams(connectome)


@pytest.mark.parametrize("dimensions", [(), (-1,), (0, 3)])
def test_unknown_degrees_are_refused(dimensions: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"degrees out of 0, 1, 2"):
        rips_diagrams(np.zeros((3, 3)), dimensions=dimensions)


def test_engines_are_found_by_name_and_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_engine() == INSTALLED[0]
    with pytest.raises(InvalidArgumentError, match="engine must be one of auto, giotto-ph, ripser; got 'nerve'"):
        find_engine("nerve")  # type: ignore[arg-type]
    missing = persistence.RipsEngine("no_such_module", "none", 1, lambda distances, highest: [])
    monkeypatch.setattr(persistence, "ENGINES", {**ENGINES, "giotto-ph": missing})
    assert find_engine() == "ripser"
    with pytest.raises(MissingExtraError, match=re.escape('pip install "dynome[giotto]"')):
        find_engine("giotto-ph")
    monkeypatch.setattr(persistence, "ENGINES", {"giotto-ph": missing, "ripser": missing})
    with pytest.raises(MissingExtraError, match=re.escape('pip install "dynome[analysis]"')):
        find_engine()
