"""Diagrams survive the layouts of giotto-tda, persim and gudhi; what a layout cannot hold is known."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import gudhi
import gudhi.representations
import naive_summaries as naive
import numpy as np
import pytest
import xarray as xr
from connectome_strategies import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ripser import ripser

import dynome_analysis as dya
from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.labelled.exchange import Layout, diagrams_by_degree, export_diagrams, import_diagrams
from dynome_analysis.persistence.layouts import from_giotto, from_gudhi, from_persim, to_giotto, to_gudhi, to_persim
from dynome_analysis.persistence.rips import rips_diagrams
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

Diagrams = dict[int, NDArray[np.float64]]

unhurried = settings(deadline=None, max_examples=60)
# giotto-tda is installed in one of the two environments; the naive twin of its padding is checked in both.
GIOTTO = importlib.util.find_spec("gtda") is not None


@st.composite
def diagrams(draw: st.DrawFn, *, degrees: tuple[int, ...] = (0, 1, 2)) -> Diagrams:
    """Bars with ties, of length 0, infinite ones; degree 0 as Rips makes it, one infinite bar and all born at 0."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = {}
    for degree in degrees:
        points = np.sort(random.integers(0, 6, size=(draw(st.integers(0, 6)), 2)) / 8, axis=1)
        if degree == 0:
            points = np.concatenate([points * [0, 1], [[0, np.inf]]])
        elif draw(st.booleans()):
            points[: len(points) // 3, 1] = np.inf
        found[degree] = points[np.lexsort((points[:, 1], points[:, 0]))]
    return found


def assert_same(found: Diagrams, expected: Diagrams) -> None:
    assert sorted(found) == sorted(expected)
    for degree, points in expected.items():
        assert found[degree].dtype == np.float64
        np.testing.assert_array_equal(found[degree], points)


def bars(diagram: Diagrams) -> dict[int, list[tuple[float, float]]]:
    return {degree: [(birth, death) for birth, death in points.tolist()] for degree, points in diagram.items()}


# Numbers


@unhurried
@given(st.lists(diagrams(), min_size=1, max_size=4))
def test_giotto_layout_is_the_twins(stack: list[Diagrams]) -> None:
    """Without the one infinite bar of degree 0; the twin pads."""
    reduced = [{**one, 0: one[0][:-1]} for one in stack]
    array = to_giotto(stack)
    np.testing.assert_array_equal(array, naive.giotto_rows([bars(one) for one in reduced], (0, 1, 2)))
    whole = to_giotto(stack, reduced_homology=False)
    np.testing.assert_array_equal(whole, naive.giotto_rows([bars(one) for one in stack], (0, 1, 2)))
    loops = to_giotto(stack, dimensions=[1])
    np.testing.assert_array_equal(loops, array[array[:, :, 2] == 1].reshape(len(stack), -1, 3))


if GIOTTO:
    from gtda.homology._utils import _postprocess_diagrams

    @unhurried
    @given(st.lists(diagrams(), min_size=1, max_size=4), st.booleans(), st.sampled_from([np.inf, 2.0, 0.25]))
    def test_giotto_layout_is_giottos(stack: list[Diagrams], reduced: bool, infinity: float) -> None:
        theirs = [[one[degree].copy() for degree in (0, 1, 2)] for one in stack]
        expected = _postprocess_diagrams(theirs, "ripser", [0, 1, 2], infinity, reduced)
        found = to_giotto(stack, reduced_homology=reduced, infinity_values=infinity)
        by_degree = [np.lexsort((one[:, 1], one[:, 0], one[:, 2])) for one in expected]
        assert found.shape == expected.shape
        for ours, one, order in zip(found, expected, by_degree, strict=True):
            np.testing.assert_array_equal(ours[np.lexsort((ours[:, 1], ours[:, 0], ours[:, 2]))], one[order])


@unhurried
@given(st.lists(diagrams(), min_size=1, max_size=4), st.booleans())
def test_giotto_round_trip_loses_only_bars_of_length_zero(stack: list[Diagrams], reduced: bool) -> None:
    array = to_giotto(stack, reduced_homology=reduced)
    for found, one in zip(from_giotto(array, reduced_homology=reduced), stack, strict=True):
        assert_same(found, {degree: points[points[:, 0] < points[:, 1]] for degree, points in one.items()})
    shuffled = np.random.default_rng(0).permuted(np.arange(array.shape[1]))
    for found, again in zip(from_giotto(array), from_giotto(array[:, shuffled]), strict=True):
        assert_same(found, again)
    np.testing.assert_array_equal(to_giotto(from_giotto(array), reduced_homology=True).shape, array.shape)


@unhurried
@given(st.lists(activations(largest=10), min_size=1, max_size=3))
def test_giotto_round_trip_of_a_connectome_is_whole_with_the_number_of_units(values: list[NDArray[np.float32]]) -> None:
    for one in values:
        diagram = rips_diagrams(correlate(one)[0])
        assert_same(from_giotto(to_giotto([diagram]), units=one.shape[1])[0], diagram)


@unhurried
@given(diagrams(), diagrams(degrees=(1, 2)), st.sampled_from([1.0, 2.0]))
def test_persim_and_gudhi_round_trips_are_whole(diagram: Diagrams, higher: Diagrams, infinity: float) -> None:
    assert_same(from_persim(to_persim(diagram)), diagram)
    assert_same(from_persim(to_persim(higher)), {0: np.empty((0, 2)), **higher})
    assert_same(from_gudhi(to_gudhi(diagram), dimensions=(0, 1, 2)), diagram)
    finite = to_persim(diagram, reduced_homology=True, infinity_values=infinity)
    assert all(np.isfinite(points).all() for points in finite)
    assert len(finite[0]) == len(diagram[0]) - 1
    replaced = {degree: np.where(np.isinf(points), infinity, points) for degree, points in diagram.items()}
    assert_same(
        from_gudhi(to_gudhi(diagram, infinity_values=infinity), dimensions=(0, 1, 2)), from_persim([*replaced.values()])
    )


@pytest.fixture
def connectome() -> NDArray[np.float32]:
    random = np.random.default_rng(3)
    values = np.maximum(random.normal(size=(80, 4)) @ random.normal(size=(4, 30)), 0)
    return correlate(np.concatenate([values, values[:, :2]], axis=1).astype(np.float32))[0]


def test_ripsers_and_gudhis_own_results_are_read(connectome: NDArray[np.float32]) -> None:
    """Bars of length 0 are in neither; ours has one, of the duplicated units."""
    expected = rips_diagrams(connectome)
    assert (expected[0][:2, 1] == 0).all()
    proper = {degree: points[points[:, 1] > points[:, 0]] for degree, points in expected.items()}
    distances = np.float32(1) - connectome
    np.fill_diagonal(distances, 0)
    dgms = ripser(distances, distance_matrix=True)["dgms"]
    assert_same({degree: points[points[:, 1] > points[:, 0]] for degree, points in from_persim(dgms).items()}, proper)
    tree = gudhi.RipsComplex(distance_matrix=distances.astype(np.float64)).create_simplex_tree(max_dimension=2)
    theirs = [bar for bar in tree.persistence(homology_coeff_field=2) if bar[0] < 2]
    assert_same(from_gudhi(theirs), proper)
    assert sorted(to_gudhi(proper)) == sorted(theirs)
    assert [degree for degree, _ in to_gudhi(proper)] == [degree for degree, _ in theirs]


def test_images_of_persim_and_gudhi_take_the_layouts(connectome: NDArray[np.float32]) -> None:
    diagram = rips_diagrams(connectome)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # persim's imports and numpy do not agree in every environment
        from persim import PersistenceImager

        dgms = to_persim(diagram, reduced_homology=True)
        imager = PersistenceImager(pixel_size=0.1)
        images = imager.fit_transform([dgms[0], dgms[1]])
    assert all(np.isfinite(image).all() and image.sum() > 0 for image in images)
    loops = [dgms[1], dgms[1][:3]]
    image = gudhi.representations.PersistenceImage(resolution=[5, 5], bandwidth=0.1, im_range=[0, 1, 0, 1])
    found = image.fit_transform(loops)
    assert found.shape == (2, 25)
    assert (found[0].sum() > found[1].sum()) and (found > 0).all()


def test_a_layout_by_hand() -> None:
    loops = np.array([[0.5, 0.75], [0.25, 0.5], [0.5, 0.5]])
    stack: list[Diagrams] = [{0: np.array([[0, np.inf], [0, 0.5]]), 1: loops}, {0: np.array([[0.0, np.inf]])}]
    expected = [
        [[0, 0.5, 0], [0.25, 0.5, 1], [0.5, 0.75, 1]],
        [[0, 0, 0], [0.25, 0.25, 1], [0.25, 0.25, 1]],
    ]
    assert to_giotto(stack).tolist() == expected
    assert to_gudhi(stack[0])[0] == (1, (0.25, 0.5))
    assert to_gudhi(stack[0])[-2:] == [(0, (0.0, np.inf)), (0, (0.0, 0.5))]
    empty = to_giotto([{1: np.empty((0, 2))}])
    assert empty.tolist() == [[[0, 0, 1]]]
    assert from_giotto(empty)[0][1].shape == (0, 2)
    # A bar that would die before it is born leaves nothing; one that dies as it is born is padding.
    assert to_persim({1: np.array([[0.5, np.inf]])}, infinity_values=0.25)[1].shape == (0, 2)
    assert from_giotto(np.array([[[0.0, 2.0, 0]]]), infinity_values=2.0, reduced_homology=False)[0][0].tolist() == [
        [0, np.inf]
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_giotto([]), InvalidArgumentError, "at least one snapshot"),
        (lambda: to_giotto([{}]), InvalidArgumentError, "at least one degree"),
        (lambda: to_giotto([{1: np.zeros((2, 3))}]), InvalidArgumentError, r"\(point, 2\).*got \(2, 3\)"),
        (lambda: to_persim({1: np.array([[0.5, np.nan]])}), InvalidDataError, "or NaN"),
        (lambda: to_gudhi({1: np.array([[0.5, 0.25]])}), InvalidDataError, "deaths at or after them"),
        (lambda: from_persim([np.array([[np.inf, np.inf]])]), InvalidDataError, "finite births"),
        (lambda: from_giotto(np.zeros((2, 3))), InvalidArgumentError, r"\(sample, feature, 3\).*got float64"),
        (lambda: from_giotto(np.full((1, 1, 3), 0.5)), InvalidArgumentError, r"degrees 0, 1, 2.*got \[0.5\]"),
        (lambda: from_giotto(np.full((1, 1, 3), np.nan)), InvalidArgumentError, "degrees 0, 1, 2"),
        (lambda: from_giotto(np.array([[[0.0, 1, 0]]]), units=1), InvalidArgumentError, "units must be at least"),
    ],
)  # fmt: skip
def test_what_is_no_diagram_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Labelled


@pytest.fixture
def rips(make_recording: Callable[..., Path]) -> xr.Dataset:
    recording = dya.open_recording(make_recording(epochs=2, dead_units=2))
    return dya.rips(dya.connectomes(recording), engine="ripser")


@pytest.mark.parametrize("layout", ["giotto", "persim", "gudhi"])
def test_labelled_diagrams_come_back(rips: xr.Dataset, layout: Layout) -> None:
    """Dead units have distance 1, two of them in a site; no bar has length 0, but the number of units is told."""
    written = export_diagrams(rips, layout=layout)
    assert len(written) == rips.sizes["snapshot"]
    found = import_diagrams(written, layout=layout, units=20, like=rips)
    xr.testing.assert_equal(found, rips)
    assert found.attrs["recording"] == rips.attrs["recording"]
    assert '"import_diagrams"' in found.attrs["parameters"]
    assert "epoch" not in import_diagrams(written, layout=layout).coords
    lazy = export_diagrams(rips.chunk(), layout=layout, dimensions=[1])
    only = diagrams_by_degree(import_diagrams(lazy, layout=layout))
    for ours, whole in zip(only, diagrams_by_degree(rips), strict=True):
        np.testing.assert_array_equal(ours[1], whole[1])


def test_a_degree_without_points_is_known_from_the_provenance() -> None:
    nothing = xr.DataArray(np.zeros((2, 3, 3), np.float32), dims=("snapshot", "unit", "unit_"))
    found = dya.rips(nothing, dimensions=(1,), engine="ripser")
    assert [list(one) for one in diagrams_by_degree(found)] == [[1], [1]]
    assert export_diagrams(found).shape == (2, 1, 3)


def test_what_cannot_be_exported_is_said(rips: xr.Dataset) -> None:
    with pytest.raises(InvalidArgumentError, match="layout must be one of giotto, persim, gudhi; got 'dionysus'"):
        export_diagrams(rips, layout="dionysus")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="no diagrams of degree 2; it has 0, 1"):
        export_diagrams(rips, dimensions=(1, 2))
    with pytest.raises(InvalidArgumentError, match=r"a Dataset with diagrams.*got DataArray"):
        export_diagrams(rips["birth"])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="at least one snapshot"):
        import_diagrams([], layout="persim")
    with pytest.raises(InvalidArgumentError, match="one snapshot per diagram, 1; it has 3"):
        import_diagrams(export_diagrams(rips)[:1], like=rips)
