"""Labelled results equal the numbers, lazily where they can be, with provenance, and refuse what they cannot read."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dynome_analysis as dya
from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.distance.matching import diagram_distance
from dynome_analysis.distance.weights import pairwise_distances, sorted_distance
from dynome_analysis.homology.births import births_and_deaths
from dynome_analysis.labelled.centroids import topological_centroid
from dynome_analysis.labelled.signatures import Metric
from dynome_analysis.persistence.rips import rips_diagrams
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

MakeRecording = Callable[..., Path]


@pytest.fixture
def recording(make_recording: MakeRecording) -> dya.Recording:
    return dya.open_recording(make_recording(epochs=3, dead_units=1))


@pytest.fixture
def matrices(recording: dya.Recording) -> list[np.ndarray]:
    return [correlate(block)[0] for block in recording.activations().to_numpy()]


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("something was computed")


def test_connectomes_are_lazy_and_equal_the_numbers(recording: dya.Recording, matrices: list[np.ndarray]) -> None:
    with dask.config.set(scheduler=refuse):
        lazy = dya.connectomes(recording)
        signature = dya.graph_homology(lazy)
    assert lazy.dims == ("snapshot", "unit", "unit_")
    assert lazy.chunks == ((1,) * 4, (20,), (20,))
    np.testing.assert_array_equal(lazy, matrices)
    assert lazy.coords["dead_units"].to_numpy().tolist() == [2] * 4
    assert lazy.coords["site_"].to_numpy().tolist() == lazy.coords["site"].to_numpy().tolist()
    assert signature.chunks["birth"] == (19,)
    assert json.loads(signature.attrs["parameters"])["connectomes"] == {
        "measure": "pearson",
        "sites": ["hidden1", "hidden2"],
        "signed": False,
        "edges": "all",
        "units": None,
        "seed": 0,
    }
    assert signature.attrs["recording"] == recording.id
    assert json.loads(signature.attrs["versions"])["numpy"] == np.__version__


def test_homology_is_the_same_lazy_whole_and_chunked_otherwise(
    recording: dya.Recording, matrices: list[np.ndarray]
) -> None:
    lazy = dya.connectomes(recording)
    found = dya.graph_homology(lazy).compute()
    for position, matrix in enumerate(matrices):
        born, died = births_and_deaths(matrix)
        np.testing.assert_array_equal(found["births"][position], born)
        np.testing.assert_array_equal(found["deaths"][position], died)
    assert found["dead_units"].to_numpy().tolist() == [2] * 4
    whole = dya.graph_homology(lazy.compute())
    assert whole.chunks == {}
    xr.testing.assert_identical(whole, found)
    xr.testing.assert_identical(dya.graph_homology(lazy.chunk({"snapshot": 3, "unit": 7})).compute(), found)
    unlabelled = xr.DataArray(np.stack(matrices), dims=("snapshot", "unit", "unit_"))
    assert dya.graph_homology(unlabelled)["dead_units"].to_numpy().tolist() == [2] * 4


def test_chosen_sites_make_a_smaller_graph(recording: dya.Recording) -> None:
    chosen = dya.connectomes(recording, sites="hidden2")
    joint = dya.connectomes(recording)
    np.testing.assert_allclose(chosen, joint[:, 12:, 12:], atol=1e-6)


def test_diagrams_are_padded(recording: dya.Recording, matrices: list[np.ndarray]) -> None:
    calls: list[tuple[str, int, int]] = []
    found = dya.rips(dya.connectomes(recording), progress=lambda *report: calls.append(report))
    counts = set()
    for position, matrix in enumerate(matrices):
        row = found.isel(snapshot=position)
        for degree, diagram in rips_diagrams(matrix).items():
            kept = row["dimension"].to_numpy() == degree
            np.testing.assert_array_equal(np.column_stack([row["birth"][kept], row["death"][kept]]), diagram)
        padding = row["dimension"].to_numpy() == -1
        assert np.isnan(row["birth"][padding]).all()
        counts.add(int(padding.sum()))
    assert min(counts) == 0
    assert len(counts) > 1
    assert calls[-1][1] == calls[-1][2] > 0
    components = dya.rips(dya.connectomes(recording).compute(), dimensions=[0])
    assert components.sizes["point"] == 20


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("metric", ["top", "births", "deaths", "frobenius", "wasserstein"])
def test_distances_equal_the_numbers(
    recording: dya.Recording, matrices: list[np.ndarray], metric: str, eager: bool
) -> None:
    connectomes = dya.connectomes(recording)
    pairs = [births_and_deaths(matrix) for matrix in matrices]
    chosen = {"top": slice(0, 2), "births": slice(0, 1), "deaths": slice(1, 2)}
    loops = [rips_diagrams(matrix)[1] for matrix in matrices]
    if metric == "frobenius":
        signature, expected = connectomes, [[np.linalg.norm(a.astype(float) - b) for b in matrices] for a in matrices]
    elif metric == "wasserstein":
        signature, expected = dya.rips(connectomes).chunk(), [[diagram_distance(a, b) for b in loops] for a in loops]
    else:
        part = chosen[metric]
        signature = dya.graph_homology(connectomes)
        expected = [[sorted_distance(a[part], b[part]) for b in pairs] for a in pairs]
    signature = signature.compute() if eager else signature
    change = dya.reconfiguration(signature, metric=metric)
    np.testing.assert_allclose(change, [np.nan, expected[1][0], expected[2][1], expected[3][2]], rtol=1e-6)
    assert change.coords["epoch"].to_numpy().tolist() == [0, 1, 2, 3]
    matrix = dya.distance_matrix(signature, metric=metric)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert matrix.coords["epoch_"].dims == ("snapshot_",)


@pytest.mark.parametrize("memory_limit", [1, 4 * 20 * 19 * 2, 1 << 30])
@pytest.mark.parametrize(("metric", "order"), [("top", 2.0), ("deaths", 1.0), ("frobenius", np.inf)])
def test_a_matrix_in_blocks_of_snapshots_is_the_matrix(
    recording: dya.Recording, metric: str, order: float, memory_limit: int
) -> None:
    lazy = dya.connectomes(recording)
    signature = lazy if metric == "frobenius" else dya.graph_homology(lazy)
    whole = dya.distance_matrix(signature.compute(), metric=metric, order=order)
    calls: list[tuple[str, int, int]] = []
    found = dya.distance_matrix(
        signature,
        metric=metric,
        order=order,
        memory_limit=memory_limit,
        progress=lambda *report: calls.append(report),
    )
    xr.testing.assert_identical(found, whole)
    assert calls[-1][1] == calls[-1][2] > 0
    assert json.loads(found.attrs["parameters"])["distance_matrix"]["metric"] == metric


def test_a_lazy_matrix_holds_two_blocks_at_a_time() -> None:
    alive: set[int] = set()
    most = 0

    def load(block: np.ndarray, block_info: dict) -> np.ndarray:
        nonlocal most
        made = np.sort(np.random.default_rng(block_info[0]["chunk-location"][0]).random((1, 1000)), axis=1)
        alive.add(id(made))
        weakref.finalize(made, alive.discard, id(made))
        most = max(most, len(alive))
        return made

    rows = da.map_blocks(load, da.zeros((12, 1000), chunks=(1, 1000)), dtype=float)
    signature = xr.Dataset({"deaths": (("snapshot", "death"), rows)})
    with pytest.raises(InvalidArgumentError, match="memory_limit must be at least 1; got 0"):
        dya.distance_matrix(signature, metric="deaths", memory_limit=0)
    found = dya.distance_matrix(signature, metric="deaths", memory_limit=4 * 8000)
    assert most <= 6  # two blocks of two, and one that a thread has just made each
    expected = pairwise_distances([signature["deaths"].to_numpy()])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("eager", [False, True])
def test_deaths_in_a_histogram_carry_their_bound(recording: dya.Recording, eager: bool) -> None:
    connectomes = dya.connectomes(recording)
    exact, counted = (dya.graph_homology(connectomes, deaths=kind) for kind in ("exact", "histogram"))
    if eager:
        exact, counted = exact.compute(), counted.compute()
    for metric in ("top", "deaths"):
        for function in (dya.reconfiguration, dya.distance_matrix):
            expected, found = function(exact, metric=metric), function(counted, metric=metric)
            bound = found.attrs["bound"]
            assert bound == pytest.approx(np.sqrt(exact.sizes["death"]) / 65536)
            assert np.nanmax(abs(found - expected)) <= bound
            assert "bound" not in expected.attrs
    assert "bound" not in dya.reconfiguration(counted, metric="births").attrs


@pytest.mark.parametrize("metric", ["top", "wasserstein", "frobenius"])
def test_one_reference_for_all_snapshots(recording: dya.Recording, metric: str) -> None:
    connectomes = dya.connectomes(recording)
    signature = {"top": dya.graph_homology, "wasserstein": dya.rips, "frobenius": lambda lazy: lazy}[metric](
        connectomes
    )
    matrix = dya.distance_matrix(signature, metric=metric)
    first = dya.reconfiguration(signature, metric=metric, reference="first")
    np.testing.assert_allclose(first, matrix[0], rtol=1e-12)
    for chosen in (signature.isel(snapshot=2), signature.isel(snapshot=[2]).compute()):
        given = dya.reconfiguration(signature, metric=metric, reference=chosen)
        np.testing.assert_allclose(given, matrix[2], rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match="a reference is one graph, this one has 4 snapshots"):
        dya.reconfiguration(signature, metric=metric, reference=signature)
    with pytest.raises(InvalidArgumentError, match="reference must be 'previous', 'first' or the signature"):
        dya.reconfiguration(signature, metric=metric, reference="last")  # type: ignore[arg-type]


def test_orders_and_norms_reach_the_numbers(recording: dya.Recording, matrices: list[np.ndarray]) -> None:
    connectomes = dya.connectomes(recording)
    loops = [rips_diagrams(matrix)[1] for matrix in matrices]
    diagrams = dya.rips(connectomes)
    found = dya.distance_matrix(diagrams, metric="wasserstein", order=np.inf, ground_norm=np.inf)
    assert found[0, 1] == diagram_distance(loops[0], loops[1], order=np.inf, ground_norm=np.inf)
    assert json.loads(found.attrs["parameters"])["distance_matrix"] == {
        "metric": "wasserstein",
        "order": "inf",
        "ground_norm": "inf",
    }
    change = dya.reconfiguration(diagrams, metric="wasserstein", order=1, ground_norm=1)
    assert change[1] == diagram_distance(loops[0], loops[1], order=1, ground_norm=1)
    births = [births_and_deaths(matrix)[0] for matrix in matrices]
    change = dya.reconfiguration(dya.graph_homology(connectomes), metric="births", order=np.inf)
    assert change[1] == np.abs(births[1].astype(float) - births[0]).max()


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0, 1.0]])
def test_the_centroid_of_snapshots(
    recording: dya.Recording, matrices: list[np.ndarray], weights: list[float] | None
) -> None:
    lazy = dya.graph_homology(dya.connectomes(recording))
    found = topological_centroid(lazy, weights=weights)
    xr.testing.assert_allclose(found, topological_centroid(lazy.compute(), weights=weights), rtol=1e-12)
    for position, name in enumerate(("births", "deaths")):
        rows = [births_and_deaths(matrix)[position].astype(float) for matrix in matrices]
        np.testing.assert_allclose(found[name], np.average(rows, axis=0, weights=weights), rtol=1e-12)
    to_centroid = (dya.reconfiguration(lazy, reference=found) ** 2).weighted(
        xr.DataArray(weights or [1.0] * 4, dims="snapshot")
    )
    for snapshot in range(4):
        to_snapshot = dya.reconfiguration(lazy, reference=lazy.isel(snapshot=snapshot)) ** 2
        assert to_centroid.mean() <= to_snapshot.weighted(to_centroid.weights).mean()
    assert json.loads(found.attrs["parameters"])["topological_centroid"]["sizes"] is None
    small = topological_centroid(lazy, weights=weights, sizes=(5, 7))
    assert dict(small.sizes) == {"birth": 5, "death": 7}
    counted = dya.graph_homology(dya.connectomes(recording), deaths="histogram")
    np.testing.assert_allclose(
        topological_centroid(counted, weights=weights, sizes=(5, 7))["deaths"], small["deaths"], atol=1e-5
    )
    with pytest.raises(InvalidDataError, match="the centroid of histograms needs a size"):
        topological_centroid(counted)
    with pytest.raises(InvalidArgumentError, match="as many weights as snapshots are needed; got 1 for 4"):
        topological_centroid(lazy, weights=[1.0])


def test_the_noise_floor_is_what_its_formula_says(recording: dya.Recording) -> None:
    found = dya.noise_floor(recording, seed=5)
    halves = dya.noise_floor(recording, seed=6)
    assert (found["two_halves"] != halves["two_halves"]).all()
    xr.testing.assert_identical(found, dya.noise_floor(recording, seed=5))
    order = np.random.default_rng(5).permutation(40)
    deaths = [
        [births_and_deaths(correlate(block[np.sort(half)])[0])[1] for block in recording.activations().to_numpy()]
        for half in (order[:20], order[20:])
    ]
    within = [sorted_distance([a], [b]) for a, b in zip(*deaths, strict=True)]
    steps = [[sorted_distance([a], [b]) for a, b in pairwise(half)] for half in deaths]
    np.testing.assert_allclose(found["two_halves"], within)
    np.testing.assert_allclose(found["paired"], [np.nan, *(abs(a - b) / 2 for a, b in zip(*steps, strict=True))])
    both = dya.noise_floor(recording, metric="top", seed=5)["two_halves"] ** 2
    births = dya.noise_floor(recording, metric="births", seed=5)["two_halves"] ** 2
    np.testing.assert_allclose(both, births + found["two_halves"] ** 2)
    with pytest.raises(InvalidArgumentError, match="metric must be one of top, births, deaths; got 'frobenius'"):
        dya.noise_floor(recording, metric="frobenius")  # type: ignore[arg-type]


def test_a_probe_too_small_to_halve_has_no_floor(make_recording: MakeRecording) -> None:
    found = dya.noise_floor(dya.open_recording(make_recording(samples=3, epochs=1)))
    assert np.isnan(found["two_halves"]).all()
    assert np.isnan(found["paired"]).all()


def test_one_snapshot_has_no_distances_but_a_floor(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=0))
    signature = dya.graph_homology(dya.connectomes(recording))
    for function in (dya.reconfiguration, dya.distance_matrix):
        with pytest.raises(InvalidDataError, match="needs at least two of them; this signature has 1"):
            function(signature)
    floor = dya.noise_floor(recording)
    assert floor["two_halves"].to_numpy()[0] > 0
    assert np.isnan(floor["paired"]).all()


def test_diverged_activations_are_named(make_recording: MakeRecording) -> None:
    def diverge(moment):
        if moment.epoch < 2:
            return moment
        broken = moment.probe["hidden2"].copy()
        broken[3, 5] = np.nan
        return replace(moment, probe={**moment.probe, "hidden2": broken})

    path = make_recording(epochs=2, change=diverge)
    connectomes = dya.connectomes(dya.open_recording(path))
    assert connectomes[:2].compute().notnull().all()
    with pytest.raises(
        InvalidDataError, match=rf"{path}: activations of 'hidden2' hold NaN or infinity at epoch 2 \(step 6\)"
    ):
        connectomes.compute()
    with pytest.raises(InvalidDataError, match="hidden2"):
        dya.noise_floor(dya.open_recording(path))


def test_what_a_metric_cannot_read_is_said(recording: dya.Recording) -> None:
    connectomes = dya.connectomes(recording)
    with pytest.raises(InvalidArgumentError, match=r"metric 'top' needs a result of dya.graph_homology"):
        dya.reconfiguration(connectomes)
    with pytest.raises(InvalidArgumentError, match=r"metric 'frobenius' needs a result of dya.connectomes"):
        dya.reconfiguration(dya.graph_homology(connectomes), metric="frobenius")
    with pytest.raises(InvalidArgumentError, match=r"metric 'wasserstein' needs a result of dya.rips"):
        dya.distance_matrix(dya.graph_homology(connectomes), metric="wasserstein")
    with pytest.raises(InvalidArgumentError, match="metric must be one of top, births"):
        dya.reconfiguration(connectomes, metric="cosine")  # type: ignore[arg-type]
    with pytest.raises(
        InvalidArgumentError, match="measure must be one of pearson, spearman, cosine, partial; got 'tau'"
    ):
        dya.connectomes(recording, measure="tau")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"connectomes must be a DataArray \(snapshot, unit, unit_\)"):
        dya.graph_homology(recording.activations())
    with pytest.raises(InvalidArgumentError, match="got Dataset"):
        dya.rips(dya.graph_homology(connectomes))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"route": "streaming"}, {"engine": "none"}])
def test_loops_that_were_left_out_are_not_taken_for_none(recording: dya.Recording, options: dict[str, str]) -> None:
    analysis = dya.analyze(recording, **options)  # type: ignore[arg-type]
    for ask in (
        lambda: dya.reconfiguration(analysis, metric="wasserstein"),
        lambda: dya.distance_matrix(analysis, metric="wasserstein"),
        lambda: dya.export_diagrams(analysis),
    ):
        with pytest.raises(InvalidArgumentError, match=r"the analysis has no H1 here .left out of .*route='dense'"):
            ask()
    assert dya.diagram_summaries(analysis)["part"].values.tolist() == ["births", "deaths"]
    components = dya.rips(dya.connectomes(recording), dimensions=(0,))
    with pytest.raises(InvalidArgumentError, match="degree 1, this signature has degree 0"):
        dya.reconfiguration(components, metric="wasserstein")


def test_loops_of_some_snapshots_are_compared_when_these_are_chosen(recording: dya.Recording) -> None:
    analysis = dya.analyze(recording).load()
    expected = dya.reconfiguration(analysis.isel(snapshot=slice(1, None)), metric="wasserstein")
    analysis["functional_persistence"][0] = np.nan
    for ask in (dya.diagram_summaries, dya.export_diagrams):
        with pytest.raises(InvalidArgumentError, match="no H1 here"):
            ask(analysis)
    xr.testing.assert_identical(
        dya.reconfiguration(analysis.isel(snapshot=slice(1, None)), metric="wasserstein"), expected
    )


@pytest.mark.parametrize("metric", ["top", "deaths"])
def test_deaths_that_an_analysis_counted_are_compared(recording: dya.Recording, metric: Metric) -> None:
    counted, exact = dya.analyze(recording, deaths="histogram"), dya.analyze(recording)
    for compare in (dya.reconfiguration, dya.distance_matrix):
        found, known = compare(counted, metric=metric), compare(exact, metric=metric)
        assert found.attrs["bound"] > 0
        np.testing.assert_allclose(found, known, atol=found.attrs["bound"])
    for name in ("births", "deaths"):
        sizes = (exact.sizes["birth"], exact.sizes["death"])
        found = topological_centroid(counted, sizes=sizes)[name]
        np.testing.assert_allclose(found, topological_centroid(exact)[name], atol=counted.attrs["deaths_bound"] + 1e-6)
