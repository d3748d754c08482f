"""Summaries equal their definitions and what giotto-tda, gudhi and persim say; Betti curves count a graph's parts."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import dask
import gudhi.representations
import naive_summaries as naive
import numpy as np
import pytest
import xarray as xr
from connectome_strategies import weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from persim.persistent_entropy import persistent_entropy

import dynome_analysis as dya
from dynome_analysis.homology.births import births_and_deaths
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.labelled.summaries import diagram_summaries
from dynome_analysis.persistence.layouts import to_giotto
from dynome_analysis.persistence.rips import functional_persistence, rips_diagrams
from dynome_analysis.persistence.summaries import Summary, summarise_births, summarise_deaths, summarise_diagram
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

unhurried = settings(deadline=None, max_examples=80)
GIOTTO = importlib.util.find_spec("gtda") is not None
GRID = np.array([-0.5, 0.0, 0.125, 0.25, 0.25, 0.3, 0.5, 0.875, 1.0, 2.0])


@st.composite
def points(draw: st.DrawFn) -> NDArray[np.float64]:
    """Bars with ties, of length 0 and infinity, endpoints on the thresholds."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 12))
    ends = random.integers(0, 9, (count, 2)) / 8 if draw(st.booleans()) else random.random((count, 2)) ** 8
    found = np.sort(ends, axis=1)
    found[random.random(count) < 0.2, 1] = np.inf
    return found


def assert_lengths(found: Summary, lengths: list[float]) -> None:
    expected = naive.numbers(lengths)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12, abs=1e-13, nan_ok=True), name
    if sum(length > 0 for length in lengths) == len(lengths) > 1:
        assert found.normalised_entropy == pytest.approx(expected["entropy"] / np.log2(len(lengths)), abs=1e-13)
        assert 0 <= found.normalised_entropy <= 1 + 1e-12


@unhurried
@given(points())
def test_diagram_summaries_equal_their_definitions(diagram: NDArray[np.float64]) -> None:
    bars = [(birth, death) for birth, death in diagram.tolist()]
    found = summarise_diagram(diagram, thresholds=GRID)
    assert found.number == len(naive.lengths_of(bars))
    assert found.infinite == sum(death == np.inf for _, death in bars)
    assert found.betti.tolist() == [naive.betti(bars, threshold) for threshold in GRID]
    assert_lengths(found, naive.lengths_of(bars))
    backwards = summarise_diagram(diagram[::-1], thresholds=GRID)
    assert backwards.betti.tolist() == found.betti.tolist()
    assert backwards.total == pytest.approx(found.total, rel=1e-14)
    finite = diagram[np.isfinite(diagram[:, 1])]
    assert summarise_diagram(finite).l2 == pytest.approx(functional_persistence(finite), rel=1e-14)


@unhurried
@given(weights(largest=9))
def test_weight_summaries_equal_their_definitions_and_count_the_parts_of_the_graph(
    connectome: NDArray[np.float32],
) -> None:
    born, died = births_and_deaths(connectome)
    grid = np.unique(np.concatenate([GRID, connectome.ravel().astype(np.float64)]))
    components, cycles = summarise_births(born, thresholds=grid), summarise_deaths(died, thresholds=grid)
    for found, values in ((components, born), (cycles, died)):
        assert (found.number, found.infinite) == (values.size, 0)
        assert_lengths(found, values.astype(float).tolist())
    matrix = connectome.tolist()
    at = grid >= 0  # below 0 an edge of weight 0 would count as heavier, and the graph has none
    expected = [naive.components_and_cycles(matrix, threshold) for threshold in grid[at]]
    assert list(zip(components.betti[at].tolist(), cycles.betti[at].tolist(), strict=True)) == expected


@unhurried
@given(weights(largest=9), st.sampled_from([4, 64]))
def test_counted_deaths_are_those_at_the_centres_of_their_bins(connectome: NDArray[np.float32], bins: int) -> None:
    _, died = births_and_deaths(connectome)
    histogram = WeightHistogram.of(died, bins=bins)
    found = summarise_deaths(histogram, thresholds=GRID)
    expected = summarise_deaths(histogram.values(), thresholds=GRID)
    assert (found.number, found.linf) == (expected.number, expected.linf)
    for name in ("total", "l2", "entropy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12, nan_ok=True)
    np.testing.assert_array_equal(found.betti, expected.betti)
    assert abs(found.total - summarise_deaths(died).total) <= histogram.bound * died.size + 1e-12


@unhurried
@given(st.lists(points(), min_size=1, max_size=4))
def test_entropy_and_betti_curves_equal_gudhis_and_persims(stack: list[NDArray[np.float64]]) -> None:
    """Theirs is in nats; both know positive finite lengths only."""
    proper = [one[(one[:, 1] > one[:, 0]) & np.isfinite(one[:, 1])] for one in stack]
    proper = [one for one in proper if len(one) > 1]
    if not proper:
        return
    grid = np.unique(GRID)
    ours = [summarise_diagram(one, thresholds=grid) for one in proper]
    entropies = [one.entropy * np.log(2) for one in ours]
    np.testing.assert_allclose(gudhi.representations.Entropy().fit_transform(proper).ravel(), entropies, atol=1e-9)
    np.testing.assert_allclose(persistent_entropy(proper), entropies, atol=1e-9)
    normalised = [one.normalised_entropy for one in ours]
    np.testing.assert_allclose(persistent_entropy(proper, normalize=True), normalised, atol=1e-9)
    curves = gudhi.representations.BettiCurve(predefined_grid=grid).fit_transform(proper)
    np.testing.assert_array_equal(curves, [one.betti for one in ours])


if GIOTTO:
    from gtda.diagrams import Amplitude, BettiCurve, NumberOfPoints, PersistenceEntropy

    def test_summaries_equal_giottos(matrices: list[NDArray[np.float32]]) -> None:
        """Its amplitudes are norms of half lifetimes, its entropy is in bits, its curves lie on grids of its own."""
        stack = [rips_diagrams(matrix, engine="ripser") for matrix in matrices]
        array = to_giotto(stack)
        curve = BettiCurve(n_bins=40)
        curves = curve.fit_transform(array)
        ours = [
            [summarise_diagram(one[degree], thresholds=curve.samplings_[degree].ravel()) for degree in (0, 1)]
            for one in stack
        ]
        # The bar that never dies is not in theirs.
        betti = [[one.betti - one.infinite for one in row] for row in ours]
        np.testing.assert_array_equal(curves, betti)
        np.testing.assert_array_equal(
            NumberOfPoints().fit_transform(array), [[one.number for one in row] for row in ours]
        )
        expected = {
            "entropy": PersistenceEntropy().fit_transform(array),
            "total": 2 * Amplitude("wasserstein", metric_params={"p": 1}).fit_transform(array),
            "l2": 2 * Amplitude("wasserstein", metric_params={"p": 2}).fit_transform(array),
            "linf": 2 * Amplitude("bottleneck").fit_transform(array),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(values, [[getattr(one, name) for one in row] for row in ours], rtol=1e-12)


def test_a_summary_by_hand() -> None:
    found = summarise_diagram(np.array([[0, 1], [0.5, 1.5], [0, np.inf], [1, 1]]), thresholds=(0, 0.5, 1, 1.5))
    assert found.betti.tolist() == [2, 3, 2, 1]
    assert (found.number, found.infinite, found.total, found.linf) == (2, 1, 2.0, 1.0)
    assert found.l2 == pytest.approx(2**0.5)
    assert (found.entropy, found.normalised_entropy) == (1.0, 1.0)
    assert summarise_births(np.array([0.25, 0.5]), thresholds=(0.25, 0.4, 0.5)).betti.tolist() == [2, 2, 3]
    assert summarise_deaths(np.array([0.25, 0.5]), thresholds=(0.25, 0.4, 0.5)).betti.tolist() == [1, 1, 0]


@pytest.mark.parametrize("summarise", [summarise_diagram, summarise_births, summarise_deaths])
def test_nothing_has_no_entropy(summarise: Callable[..., Summary]) -> None:
    found = summarise(np.empty((0, 2)) if summarise is summarise_diagram else np.empty(0), thresholds=(0.5,))
    assert (found.number, found.total, found.l2, found.linf) == (0, 0.0, 0.0, 0.0)
    assert np.isnan(found.entropy)
    assert np.isnan(found.normalised_entropy)
    assert found.betti.tolist() == [int(summarise is summarise_births)]


def test_one_length_is_certain_and_many_float32_ones_are_summed_in_float64() -> None:
    one = summarise_diagram(np.array([[0.0, 1e-30]]))
    assert (one.entropy, np.isnan(one.normalised_entropy)) == (0.0, True)
    many = np.full(100_000, 0.1, np.float32)
    assert summarise_deaths(many).total == pytest.approx(float(many.astype(np.float64).sum()), rel=1e-12)
    assert summarise_deaths(many).entropy == pytest.approx(np.log2(100_000), rel=1e-12)
    assert summarise_deaths(many.astype(np.float16)).number == 100_000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: summarise_diagram(np.zeros((1, 2)), thresholds=(1, 0)), InvalidArgumentError, "ascending order"),
        (lambda: summarise_diagram(np.array([[0, np.nan]])), InvalidDataError, "or NaN"),
        (lambda: summarise_births(np.array([0.5, 0.25])), InvalidDataError, "must ascend"),
        (lambda: summarise_births(np.array([0.25, np.nan, 0.5])), InvalidDataError, "must ascend"),
        (lambda: summarise_deaths(np.array([-0.25, 0.5])), InvalidDataError, "not negative"),
        (lambda: summarise_deaths(np.array([0.25, np.inf])), InvalidDataError, "finite"),
        (lambda: summarise_deaths(np.zeros((2, 2))), InvalidArgumentError, "one floating axis.*float64 of shape"),
        (lambda: summarise_deaths(np.zeros(2, int)), InvalidArgumentError, "one floating axis"),
    ],
)
def test_what_cannot_be_summarised_is_said(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Labelled


@pytest.fixture
def connectomes(make_recording: Callable[..., Path]) -> xr.DataArray:
    return dya.connectomes(dya.open_recording(make_recording(epochs=2, dead_units=1)))


@pytest.fixture
def matrices(connectomes: xr.DataArray) -> list[NDArray[np.float32]]:
    return list(connectomes.to_numpy())


def assert_part(found: xr.Dataset, part: str, position: int, summary: Summary) -> None:
    row = found.sel(part=part).isel(snapshot=position)
    for name in ("number", "infinite", "total", "l2", "linf", "entropy"):
        assert row[name].item() == getattr(summary, name), (part, name)
    np.testing.assert_array_equal(row["betti"], summary.betti)


def test_births_and_deaths_of_a_recording(connectomes: xr.DataArray, matrices: list[NDArray[np.float32]]) -> None:
    lazy = dya.graph_homology(connectomes)
    calls: list[tuple[str, int, int]] = []
    found = diagram_summaries(lazy, thresholds=11, progress=lambda *report: calls.append(report))
    assert calls[-1][0] == "summaries"
    assert found["part"].to_numpy().tolist() == ["births", "deaths"]
    assert found["threshold"].to_numpy() == pytest.approx(np.linspace(0, 1, 11))
    assert found.coords["epoch"].to_numpy().tolist() == [0, 1, 2]
    for position, matrix in enumerate(matrices):
        born, died = births_and_deaths(matrix)
        grid = found["threshold"].to_numpy()
        assert_part(found, "births", position, summarise_births(born, thresholds=grid))
        assert_part(found, "deaths", position, summarise_deaths(died, thresholds=grid))
    xr.testing.assert_identical(diagram_summaries(lazy.compute(), thresholds=11), found)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(diagram_summaries(lazy.chunk({"snapshot": 2}), thresholds=11), found)
    assert found.attrs["recording"] == connectomes.attrs["recording"]


def test_counted_deaths_of_a_recording(connectomes: xr.DataArray) -> None:
    counted = dya.graph_homology(connectomes, deaths="histogram", bins=256)
    found = diagram_summaries(counted, thresholds=3)
    assert found["part"].to_numpy().tolist() == ["births", "deaths"]
    for position in range(3):
        histogram = WeightHistogram(counted["death_histogram"].to_numpy()[position])
        assert_part(found, "deaths", position, summarise_deaths(histogram, thresholds=(0, 0.5, 1)))
    renamed = counted.rename(death_histogram="death_counts")  # as an analysis calls it
    xr.testing.assert_equal(diagram_summaries(renamed, thresholds=3), found)


def test_diagrams_of_a_recording(connectomes: xr.DataArray, matrices: list[NDArray[np.float32]]) -> None:
    signature = dya.rips(connectomes, engine="ripser")
    found = diagram_summaries(signature, thresholds=(0.25, 0.5))
    assert found["part"].to_numpy().tolist() == ["h0", "h1"]
    for position, matrix in enumerate(matrices):
        for degree, diagram in rips_diagrams(matrix, engine="ripser").items():
            assert_part(found, f"h{degree}", position, summarise_diagram(diagram, thresholds=(0.25, 0.5)))
    normalised = diagram_summaries(signature, thresholds=(), normalise=True)
    np.testing.assert_allclose(normalised["entropy"], found["entropy"] / np.log2(found["number"]))
    assert normalised.sizes["threshold"] == 0


def test_a_whole_analysis_is_summarised(make_recording: Callable[..., Path]) -> None:
    signature = dya.analyze(dya.open_recording(make_recording(epochs=2)))
    found = diagram_summaries(signature)
    assert found["part"].to_numpy().tolist() == ["births", "deaths", "h1"]
    np.testing.assert_allclose(found["l2"].sel(part="h1"), signature["functional_persistence"], rtol=1e-12)


def test_what_holds_nothing_to_summarise_is_said(connectomes: xr.DataArray) -> None:
    for nothing in (connectomes, xr.Dataset({"x": 1})):
        with pytest.raises(InvalidArgumentError, match=r"signature must be a Dataset of dya.graph_homology"):
            diagram_summaries(nothing)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="thresholds must be numbers in ascending order"):
        diagram_summaries(dya.rips(connectomes, engine="ripser"), thresholds=[0.5, 0.25])
