"""Rips diagrams: H0 equals 1 - births, H1 equals ripser.py called by hand, every engine says the same."""

import re
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from connectome_strategies import activations, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ripser import ripser

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.homology.births import births
from dynome_analysis.persistence import rips as persistence
from dynome_analysis.persistence.rips import (
    ENGINES,
    TRANSFORMS,
    find_engine,
    functional_persistence,
    rips_diagrams,
    rips_distances,
)
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError, MissingExtraError

unhurried = settings(deadline=None, max_examples=60)
matrices = st.one_of(weights(largest=20), activations(largest=24).map(lambda values: correlate(values)[0]))
INSTALLED = [name for name, engine in ENGINES.items() if engine.is_installed]
BEYOND_LOOPS = [name for name in INSTALLED if ENGINES[name].knows(2, 3)]


def by_hand(connectome: NDArray[np.float32], highest: int = 1) -> list[NDArray[np.float64]]:
    """Diagrams of ripser.py as its documentation says, as sorted lists of bars of positive length."""
    distances = 1 - connectome
    np.fill_diagonal(distances, 0)
    found = ripser(np.ascontiguousarray(distances), maxdim=highest, distance_matrix=True)["dgms"]
    return [in_order(diagram) for diagram in found]


def in_order(diagram: NDArray[np.floating]) -> NDArray[np.float64]:
    """The bars of positive length, sorted."""
    bars = diagram[diagram[:, 1] > diagram[:, 0]].astype(np.float64)
    return bars[np.lexsort((bars[:, 1], bars[:, 0]))]


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


@pytest.mark.parametrize("engine", ["auto", *BEYOND_LOOPS])
def test_every_degree_of_a_larger_connectome(engine: persistence.Engine) -> None:
    random = np.random.default_rng(0)
    values = np.maximum(random.normal(size=(100, 4)) @ random.normal(size=(4, 50)), 0)
    connectome, _ = correlate(values)
    diagrams = rips_diagrams(connectome, dimensions=(2, 1), engine=engine)
    assert list(diagrams) == [1, 2]
    assert len(diagrams[1]) > 5
    for dimension, diagram in diagrams.items():
        np.testing.assert_array_equal(diagram, by_hand(connectome, 2)[dimension])


def projective_plane() -> NDArray[np.float32]:
    """The connectome of six vertices of a triangulated projective plane, subdivided: its torsion shows in the field."""
    faces = ["012", "023", "034", "045", "051", "124", "235", "341", "452", "513"]
    parts = sorted({"".join(sorted(part)) for face in faces for part in (*face, *combinations(face, 2), face)})
    connectome = np.full((len(parts), len(parts)), 0.25, np.float32)
    for i, first in enumerate(parts):
        for j, second in enumerate(parts):
            if set(first) < set(second) or set(second) < set(first):
                connectome[i, j] = 0.75
    return connectome


@pytest.mark.parametrize("engine", ["auto", *BEYOND_LOOPS])
def test_the_field_shows_torsion(engine: persistence.Engine) -> None:
    connectome = projective_plane()
    assert rips_diagrams(connectome)[1].tolist() == [[0.25, 0.75]]
    assert rips_diagrams(connectome, field=3, engine=engine)[1].shape == (0, 2)


@pytest.mark.parametrize("engine", INSTALLED)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_moves_the_points_of_one_pairing(
    transform: persistence.Transform, engine: persistence.Engine
) -> None:
    random = np.random.default_rng(0)
    connectome, _ = correlate(np.maximum(random.normal(size=(100, 4)) @ random.normal(size=(4, 40)), 0))
    distances = rips_distances(connectome, transform=transform)
    weights = np.linspace(0, 1, 5)
    expected = {
        "1 - r": 1 - weights,
        "sqrt(1 - r)": np.sqrt(1 - weights),
        "sqrt(1 - r^2)": np.sqrt(1 - weights**2),
        "arccos r": np.arccos(weights),
    }[transform]
    square = np.full((2, 2), 0.0)
    for weight, distance in zip(weights, expected, strict=True):
        square[0, 1] = square[1, 0] = weight
        assert rips_distances(square, transform=transform)[0, 1] == pytest.approx(distance, abs=1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ripser(distances, maxdim=1, distance_matrix=True)["dgms"]
    diagrams = rips_diagrams(connectome, transform=transform, engine=engine)
    np.testing.assert_array_equal(diagrams[1], in_order(found[1]))
    np.testing.assert_array_equal(diagrams[0], in_order(found[0]))


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


@pytest.mark.parametrize("field", [1, 4, 6, 46349, -2])
def test_fields_have_a_prime_number_of_elements(field: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"field must be a prime number of at most 46337; got {field}"):
        rips_diagrams(np.zeros((3, 3)), field=field)


def test_unknown_transforms_are_refused() -> None:
    message = re.escape("transform must be one of 1 - r, sqrt(1 - r), sqrt(1 - r^2), arccos r; got '1 / r'")
    with pytest.raises(InvalidArgumentError, match=message):
        rips_diagrams(np.zeros((3, 3)), transform="1 / r")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=message):
        rips_distances(np.zeros((3, 3)), transform="1 / r")  # type: ignore[arg-type]


def test_the_memory_limit_reaches_our_engine() -> None:
    with pytest.raises(InvalidDataError, match="loops of 10 units need more than the memory limit"):
        rips_diagrams(np.full((10, 10), 0.5), memory_limit=100)


def test_engines_are_found_by_name_and_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert INSTALLED[0] == "dynome"
    assert find_engine() == "dynome"
    assert find_engine(dimension=2) == find_engine(field=3) == BEYOND_LOOPS[0]
    with pytest.raises(
        InvalidArgumentError, match="engine must be one of auto, dynome, giotto-ph, ripser, gudhi; got 'nerve'"
    ):
        find_engine("nerve")  # type: ignore[arg-type]
    for options in ({"dimension": 2}, {"field": 5}):
        with pytest.raises(InvalidArgumentError, match=r"'dynome' does not compute degree .* use engine=\"auto\""):
            find_engine("dynome", **options)
    missing = {name: replace(engine, module="no_such_module") for name, engine in ENGINES.items() if name != "dynome"}
    monkeypatch.setattr(persistence, "ENGINES", {**ENGINES, "giotto-ph": missing["giotto-ph"]})
    assert find_engine(dimension=2) == "ripser"
    monkeypatch.setattr(persistence, "ENGINES", {**ENGINES, **missing})
    assert find_engine() == "dynome"
    for name, source in {"giotto-ph": "dynome[giotto]", "ripser": "dynome[analysis]", "gudhi": "gudhi"}.items():
        with pytest.raises(MissingExtraError, match=re.escape(f'pip install "{source}"')):
            find_engine(name)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r"degree 2 over the field of 2 elements need one of giotto-ph, ripser"):
        find_engine(dimension=2)
