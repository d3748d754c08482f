"""Streaming gives the births and deaths of the whole connectome, whatever the tiles, threads and order of merging."""

import pickle
from collections.abc import Callable
from itertools import combinations, combinations_with_replacement, pairwise
from pathlib import Path
from typing import Any

import naive_streaming as naive
import numpy as np
import pytest
import xarray as xr
from connectome_strategies import activations
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from threadpoolctl import threadpool_info, threadpool_limits

import dynome_analysis as dya
from dynome_analysis.connectome.columns import standardise
from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.homology import routes, tiling
from dynome_analysis.homology.births import births_and_deaths
from dynome_analysis.homology.forests import EdgeList, GrowingForest, spanning_forest
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.homology.routes import activation_signature, choose_route, dense_bytes
from dynome_analysis.homology.streaming import (
    PartialHomology,
    StreamedHomology,
    finish,
    merge,
    stream_homology,
    streaming_bytes,
    tile_homology,
)
from dynome_analysis.kernels.forests import ABSENT, LARGEST, tile_floors
from dynome_analysis.kernels.tiles import permute_columns, scan_tile, strongest_rows
from dynome_analysis.labelled import tiles
from dynome_analysis.labelled.tiles import tiled_homology
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.storage.store import Piece
from dynome_recorder.storage.writer import Moment

unhurried = settings(deadline=None, max_examples=100)
BINS = 256


def latent(units: int, *, samples: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """ReLU units of a few shared factors, a tenth of them dead, a tenth copies of others."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(samples, 5)) @ random.normal(size=(5, units)) + random.normal(size=(samples, units))
    values = np.maximum(values, 0)
    values[:, random.random(units) < 0.1] = 0.5
    copies = np.flatnonzero(random.random(units) < 0.1)
    values[:, copies] = values[:, random.integers(0, units, copies.size)]
    return values.astype(np.float32)


def clustered(units: int, clusters: int, *, samples: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Tight groups in mixed order: paths between groups say nothing about pairs within one."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(samples, clusters))[:, random.integers(0, clusters, units)]
    return (centres + 0.5 * random.normal(size=(samples, units))).astype(np.float32)


def exact(units: int, *, seed: int = 0) -> NDArray[np.float32]:
    """+-1 over 64 balanced samples: no product rounds, so every tiling gives the same weights, with many ties."""
    random = np.random.default_rng(seed)
    half = np.repeat([1.0, -1.0], 32)
    return np.stack([random.permutation(half) for _ in range(units)], axis=1).astype(np.float32)


def assert_streams(found: StreamedHomology, values: NDArray[np.float32]) -> None:
    """Compare with the whole connectome: births within 1e-6, every death within the bound and as much again."""
    connectome, dead = correlate(values)
    born, died = births_and_deaths(connectome)
    np.testing.assert_array_equal(found.dead, dead)
    np.testing.assert_allclose(found.births, born, rtol=0, atol=1e-6)
    assert found.births.dtype == np.float32
    assert (np.diff(found.births) >= 0).all()
    counted = found.deaths.values()
    assert counted.size == died.size
    np.testing.assert_allclose(counted, died, rtol=0, atol=found.deaths.bound + 1e-6)


def all_edges(values: NDArray[np.float32]) -> list[naive.Edge]:
    connectome = correlate(values)[0]
    return [(float(connectome[i, j]), i, j) for i, j in combinations(range(len(connectome)), 2)]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few landmarks and a small buffer, so that small inputs go through everything that large ones do."""
    monkeypatch.setattr(tiling, "LANDMARKS", 4)
    monkeypatch.setattr(tiling, "LANDMARKS_PAY", 2)
    monkeypatch.setattr(tiling, "SLICE", 7)
    monkeypatch.setattr(tiling, "KEPT", 40)
    monkeypatch.setattr(tiling, "KEPT_PER_VERTEX", 0)


@unhurried
@given(activations(), st.integers(1, 16), st.integers(1, 2))
def test_equals_the_whole(values: NDArray[np.float32], tile: int, threads: int) -> None:
    before = values.copy()
    assert_streams(stream_homology(values, tile=tile, bins=BINS, threads=threads), values)
    np.testing.assert_array_equal(values, before)


@unhurried
@given(activations(), st.integers(1, 16))
def test_the_tree_has_the_births_as_weights(values: NDArray[np.float32], tile: int) -> None:
    found = stream_homology(values, tile=tile, bins=BINS, edges=True, threads=1)
    connectome = correlate(values)[0]
    units = len(connectome)
    assert found.edges is not None
    assert found.edges.shape == (units - 1, 2)
    assert (found.edges[:, 0] < found.edges[:, 1]).all()
    np.testing.assert_allclose(connectome[tuple(found.edges.T)], found.births, rtol=0, atol=1e-6)
    kept = naive.unique_forest((1.0, int(i), int(j)) for i, j in found.edges)
    assert len(kept) == units - 1  # no cycle


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    "values",
    [latent(90), clustered(90, 3), clustered(90, 30), exact(70), np.random.default_rng(0).normal(size=(9, 80))],
)
@pytest.mark.parametrize(("tile", "threads"), [(7, 1), (16, 2), (200, 3)])
@pytest.mark.parametrize("edges", [False, True])
def test_small_buffers_and_landmarks_change_nothing(
    values: NDArray[np.float32], tile: int, threads: int, edges: bool
) -> None:
    found = stream_homology(values, tile=tile, threads=threads, edges=edges)
    assert_streams(found, values)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("tile", [5, 16, 100])
@pytest.mark.parametrize("dead", [[], [0], [3, 17], [0, 1, 39], list(range(40))])
def test_equals_the_naive_twin_edge_by_edge(tile: int, dead: list[int]) -> None:
    values = exact(40)
    values[:, dead] = 1
    found = stream_homology(values, tile=tile, bins=BINS, edges=True, threads=2)
    edges = all_edges(values)
    tree = naive.unique_forest(edges)
    assert found.edges is not None
    assert [tuple(edge) for edge in found.edges[::-1].tolist()] == [(i, j) for _, i, j in tree]
    assert found.births[::-1].tolist() == [weight for weight, _, _ in tree]
    whole = naive.histogram((weight for weight, _, _ in edges), BINS)
    born = naive.histogram((weight for weight, _, _ in tree), BINS)
    assert found.deaths.counts.tolist() == [a - b for a, b in zip(whole, born)]
    assert np.flatnonzero(found.dead).tolist() == dead


@unhurried
@given(st.integers(2, 30), st.integers(0, 2**32 - 1), st.randoms())
def test_partial_results_merge_in_any_order(units: int, seed: int, random) -> None:
    values = exact(units, seed=seed)
    generator = np.random.default_rng(seed)
    values[:, generator.random(units) < 0.2] = 0
    inner = np.flatnonzero(generator.random(units - 1) < 0.2) + 1
    bounds = list(pairwise([0, *inner.tolist(), units]))
    parts = []
    for (a, b), (c, d) in combinations_with_replacement(bounds, 2):
        other = None if a == c else values[:, c:d]
        parts.append(tile_homology(values[:, a:b], other, starts=(a, c), tile=5, bins=BINS, threads=1))
    whole = stream_homology(values, bins=BINS, edges=True, threads=1)
    while len(parts) > 1:
        first = parts.pop(random.randrange(len(parts)))
        second = parts.pop(random.randrange(len(parts)))
        parts.append(pickle.loads(pickle.dumps(merge(first, second))))
    found = finish(parts[0], units, edges=True)
    np.testing.assert_array_equal(found.births, whole.births)
    np.testing.assert_array_equal(found.edges, whole.edges)
    np.testing.assert_array_equal(found.dead, whole.dead)
    assert found.deaths == whole.deaths


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("unique", [False, True])
def test_a_partial_result_is_the_forest_of_its_own_edges(unique: bool) -> None:
    values = exact(50, seed=3)
    values[:, [2, 21, 30]] = 0
    found = tile_homology(values[:, :20], values[:, 20:], starts=(0, 20), tile=9, bins=BINS, unique=unique)
    edges = [edge for edge in all_edges(values) if edge[1] < 20 <= edge[2]]
    expected = naive.unique_forest(edges)
    assert found.weights.tolist() == [weight for weight, _, _ in expected]
    assert found.histogram.counts.tolist() == naive.histogram((edge[0] for edge in edges), BINS)
    assert found.dead.tolist() == [2, 21, 30]
    if unique:
        assert found.edges.tolist() == [[i, j] for _, i, j in expected]


def test_names_of_units_do_not_matter() -> None:
    values = exact(60)
    found = stream_homology(values, tile=16)
    permuted = stream_homology(values[:, np.random.default_rng(1).permutation(60)], tile=16)
    np.testing.assert_array_equal(found.births, permuted.births)
    assert found.deaths == permuted.deaths


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_every_float_and_layout(dtype: type, layout: str) -> None:
    values = np.asarray(latent(30), dtype=dtype, order=layout)  # type: ignore[call-overload]
    assert_streams(stream_homology(values, tile=8), values)


def test_blas_has_its_threads_back_afterwards() -> None:
    def blas_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        stream_homology(latent(40), tile=8, threads=2)
        assert blas_threads() == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"bins": 1000}, "power of two"),
        ({"memory_limit": 1000}, "memory_limit is 0 MB"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        stream_homology(latent(300), **options)  # type: ignore[arg-type]


def test_what_is_no_activations_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="shape"):
        stream_homology(np.zeros(3))
    with pytest.raises(InvalidArgumentError, match="floating"):
        stream_homology(np.zeros((3, 2), int))  # type: ignore[arg-type]
    with pytest.raises(InvalidDataError, match="NaN"):
        stream_homology(np.full((3, 2), np.nan))
    with pytest.raises(InvalidArgumentError, match="same samples"):
        tile_homology(np.zeros((3, 2)), np.zeros((4, 2)), starts=(0, 2))
    with pytest.raises(InvalidArgumentError, match="behind the first"):
        tile_homology(np.zeros((3, 2)), np.zeros((3, 2)), starts=(0, 1))


def test_missing_and_doubled_tiles_are_refused() -> None:
    values = latent(20)
    first = tile_homology(values[:, :10])
    second = tile_homology(values[:, 10:], starts=(10, 0))
    with pytest.raises(InvalidArgumentError, match="190 edges, but the merged tiles hold 90"):
        finish(merge(first, second), 20)
    between = tile_homology(values[:, :10], values[:, 10:], starts=(0, 10))
    whole = merge(merge(first, second), between)
    finish(whole, 20)
    with pytest.raises(InvalidArgumentError, match="each once"):
        finish(merge(whole, first), 20)
    with pytest.raises(InvalidArgumentError, match="bins"):
        merge(first, tile_homology(values, bins=BINS))


def test_a_memory_limit_makes_tiles_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    values = latent(300)
    chosen: list[int] = []
    reduce_tiles = tiling.reduce_tiles

    def spy(*args: object, tile: int, **options: object) -> object:
        chosen.append(tile)
        return reduce_tiles(*args, tile=tile, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("dynome_analysis.homology.streaming.reduce_tiles", spy)
    enough = streaming_bytes(60, 300, tile=150, threads=1)
    found = stream_homology(values, tile=600, threads=1, memory_limit=enough)
    stream_homology(values, tile=600, threads=1, memory_limit=2 * enough)
    assert chosen == [150, 600]
    assert_streams(found, values)


@pytest.mark.parametrize("unique", [False, True])
def test_floors_bound_the_weakest_edge_of_every_path(unique: bool) -> None:
    random = np.random.default_rng(5)
    vertices = 24
    first, second = (ends.astype(np.int32) for ends in np.triu_indices(vertices, 1))
    chosen = random.random(first.size) < 0.09  # leaves more than one tree
    weights = (random.integers(1, 6, first.size) / 8).astype(np.float32)
    edges = EdgeList(weights.view(np.int32), first, second).take(np.flatnonzero(chosen))
    nothing = np.empty(0, np.int32)
    forest = GrowingForest(np.arange(vertices), unique=unique, hints=EdgeList(nothing, nothing, nothing))
    for part in np.array_split(np.arange(edges.keys.size), 3):
        forest.bring(edges.take(part))
    kept = [(float(w), int(i), int(j)) for w, i, j in zip(forest.edges.keys.view(np.float32), *forest.edges[1:])]
    listed = [(float(w), int(i), int(j)) for w, i, j in zip(edges.keys.view(np.float32), *edges[1:])]
    expected = naive.unique_forest(listed)
    assert [edge[0] for edge in kept] == [edge[0] for edge in expected]
    if unique:
        assert kept == expected
    assert len(expected) < vertices - 1
    bounds = (2, 10, 10, 19)
    members = np.r_[2:10, 10:19]
    keys, ties = np.full(vertices, -7, np.int32), np.full(vertices, -7, np.int64)
    tile_floors(*forest.arrangement, bounds, 4, np.empty((3, members.size), np.int64), keys, ties)
    assert (keys[[0, 1, 19]] == -7).all()
    roots = members[keys[members] == LARGEST]
    assert roots.size == 1
    for vertex in members:
        weakest = naive.weakest_on_path(kept, int(roots[0]), int(vertex))
        if vertex == roots[0]:
            continue
        if weakest is None:
            assert keys[vertex] == ABSENT
        else:
            assert keys[vertex : vertex + 1].view(np.float32) == weakest[0]
            if unique:
                assert ties[vertex] == (weakest[1] << 32) | weakest[2]


def test_the_forest_equals_scipy() -> None:
    random = np.random.default_rng(2)
    first, second = (ends.astype(np.int32) for ends in np.triu_indices(40, 1))
    weights = random.permutation(np.arange(1, first.size + 1)).astype(np.float32)
    found = spanning_forest(EdgeList(weights.view(np.int32), first, second), 40)
    tree = -minimum_spanning_tree(coo_array((-weights, (first, second)), shape=(40, 40)).tocsr()).data
    np.testing.assert_array_equal(found.keys.view(np.float32), np.sort(tree)[::-1])


def test_a_scan_stops_where_edges_might_not_fit_and_goes_on_from_there() -> None:
    random = np.random.default_rng(4)
    product = random.uniform(-1.2, 1.2, size=(6, 5)).astype(np.float32)
    floors, ties, labels = np.full(11, ABSENT, np.int32), np.full(11, ABSENT, np.int64), np.arange(11)
    floors[3] = np.float32(0.5).view(np.int32)
    floors[6:] = np.float32(0.25).view(np.int32)
    counts = np.zeros(16, np.uint32)
    kept = [np.empty(12, np.int32) for _ in range(3)]
    found = []
    row = stops = 0
    while row < 6:
        row, filled = scan_tile(
            product, product.view(np.int32), row, (0, 6), labels, floors, ties, 0, np.empty(5, np.int32), counts,
            *kept, 0,
        )  # fmt: skip
        found += zip(kept[0][:filled].view(np.float32).tolist(), kept[1][:filled].tolist(), kept[2][:filled].tolist())
        stops += 1
    weights = np.minimum(np.abs(product), 1)
    expected = [
        (float(weights[i, j]), i, 6 + j)
        for i in range(6)
        for j in range(5)
        if i != 3 or weights[i, j] > np.float32(0.25)
    ]
    assert stops > 1
    assert found == expected
    assert counts.tolist() == naive.histogram(weights.ravel().tolist(), 16)


def test_columns_move_and_the_strongest_rows_are_found() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    permute_columns(matrix, np.array([2, 0]), np.empty(4, np.float32))
    assert matrix[:, :2].tolist() == [[2, 0], [6, 4], [10, 8]]
    rows, weights = np.empty(2, np.int32), np.empty(2, np.float32)
    strongest_rows(np.array([[0.5, -0.25], [-0.75, 0.25]], np.float32), rows, weights)
    assert rows.tolist() == [1, 0]
    assert weights.tolist() == [0.75, 0.25]


def test_landmarks_never_claim_more_than_a_product_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "LANDMARKS", 5)
    columns, dead = standardise(clustered(60, 4))
    assert not dead.any()
    for sides, offsets in (([columns], [0, 60]), ([columns[:, :22], columns[:, 22:]], [0, 22, 60])):
        monkeypatch.setattr(tiling, "LANDMARKS_PAY", 4)
        hints = tiling._landmark_forest(sides, np.array(offsets))
        weights = np.abs(columns.T.astype(float) @ columns)[hints.first, hints.second]
        assert hints.keys.size == 59
        assert (hints.keys.view(np.float32) < weights).all()
        np.testing.assert_allclose(hints.keys.view(np.float32), weights, atol=1e-4)
        if len(sides) == 2:
            assert ((hints.first < 22) != (hints.second < 22)).all()
        monkeypatch.setattr(tiling, "LANDMARKS_PAY", 100)
        assert tiling._landmark_forest(sides, np.array(offsets)).keys.size == 0


def test_the_route_follows_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    values = latent(30)
    needed = dense_bytes(30, 60)
    with caplog.at_level("INFO", logger="dynome_analysis.homology.routes"):
        assert choose_route(30, 60, needed) == "dense"
        assert choose_route(20_000, 1000, 3_000_000_000) == "streaming"
    assert "20000 units: the dense route needs 3280 MB, 3000 MB may be used: streaming" in caplog.text
    dense = activation_signature(values, memory_limit=needed)
    streamed = activation_signature(values, memory_limit=needed - 1, bins=BINS)
    assert (dense.route, streamed.route) == ("dense", "streaming")
    assert isinstance(dense.deaths, np.ndarray)
    assert isinstance(streamed.deaths, WeightHistogram)
    np.testing.assert_allclose(streamed.births, dense.births, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(streamed.dead, dense.dead)
    assert activation_signature(values, route="streaming").route == "streaming"
    assert activation_signature(values, route="dense", memory_limit=0).route == "dense"
    assert activation_signature(values).route == "dense"
    with pytest.raises(InvalidArgumentError, match="route must be"):
        activation_signature(values, route="sparse")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="shape"):
        activation_signature(values[0])


def test_memory_is_what_the_machine_or_its_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit, used = tmp_path / "meminfo", tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr(routes, "MEMINFO", meminfo)
    monkeypatch.setattr(routes, "GROUP_FILES", ((limit, used),))
    assert routes.available_memory() > 0
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n", encoding="ascii")
    assert routes.available_memory() == 51200
    limit.write_text("max\n", encoding="ascii")
    used.write_text("1000\n", encoding="ascii")
    assert routes.available_memory() == 51200
    limit.write_text("3000\n", encoding="ascii")
    assert routes.available_memory() == 2000
    limit.write_text("500\n", encoding="ascii")
    assert routes.available_memory() == 0
    monkeypatch.setattr(routes.os, "sysconf", lambda name: int("none"))
    limit.unlink()
    meminfo.unlink()
    assert routes.available_memory() == routes.ASSUMED


def test_partial_results_are_arrays(small_steps: None) -> None:
    found = pickle.loads(pickle.dumps(tile_homology(latent(30), bins=BINS)))
    assert isinstance(found, PartialHomology)
    assert (found.weights.dtype, found.edges.dtype, found.dead.dtype) == (np.float32, np.int32, np.int64)


@pytest.fixture
def wide_recording(make_recording: Callable[..., Path]) -> dya.Recording:
    return dya.open_recording(make_recording(epochs=2, sites={"first": 13, "second": 22, "third": 5}, dead_units=2))


@pytest.mark.parametrize("tile", [2, 3, 1024])
@pytest.mark.parametrize("edges", [False, True])
def test_a_tree_of_tasks_gives_the_same(wide_recording: dya.Recording, tile: int, edges: bool) -> None:
    values = wide_recording.activations()
    for position in (0, -1):
        expected = stream_homology(values.to_numpy()[position], bins=BINS, edges=edges)
        for source in (wide_recording, values, values.compute()):
            found = tiled_homology(source, position, tile=tile, bins=BINS, edges=edges)
            np.testing.assert_allclose(found.births, expected.births, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(found.dead, expected.dead)
            assert np.abs(np.cumsum(found.deaths.counts - expected.deaths.counts)).max() <= 2
            assert (found.edges is None) == (not edges)
    one = tiled_homology(values.isel(snapshot=1, drop=True), tile=tile, bins=BINS)
    assert one.deaths == tiled_homology(wide_recording, 1, tile=tile, bins=BINS).deaths
    chosen = tiled_homology(wide_recording, sites="second", tile=tile, bins=BINS)
    assert_streams(chosen, wide_recording.activations("second").to_numpy()[-1])


def test_the_tree_equals_the_whole_where_nothing_rounds() -> None:
    values = exact(50)
    values[:, [3, 40]] = 1
    reports: list[tuple[str, int, int]] = []
    found = tiled_homology(
        xr.DataArray(values, dims=("sample", "unit")),
        tile=3,
        edges=True,
        progress=lambda *report: reports.append(report),
    )
    expected = stream_homology(values, edges=True)
    np.testing.assert_array_equal(found.births, expected.births)
    np.testing.assert_array_equal(found.edges, expected.edges)
    assert found.deaths == expected.deaths
    assert reports[-1][1] == reports[-1][2] > 15


def test_workers_read_the_columns_they_need(wide_recording: dya.Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, object]] = []
    original = Piece.read

    def spy(piece: Piece, *out: Any) -> None:
        read.append((piece.path.parts[-3], piece.within[1]))
        original(piece, *out)

    monkeypatch.setattr(Piece, "read", spy)
    reader = wide_recording.reader()
    columns = tiles._read_columns(reader, 1, 10, 20)
    assert read == [("first", slice(10, 13, 1)), ("second", slice(0, 7, 1))]
    monkeypatch.undo()
    np.testing.assert_array_equal(columns, reader.joint(1)[:, 10:20])


def test_a_diverged_snapshot_is_named(make_recording: Callable[..., Path]) -> None:
    def diverge(moment: Moment) -> Moment:
        if moment.epoch == 1:
            moment.probe["first"][0, 4] = np.nan
        return moment

    recording = dya.open_recording(make_recording(epochs=1, sites={"first": 5, "second": 9}, change=diverge))
    with pytest.raises(InvalidDataError, match=r"activations of 'first' hold NaN .* at epoch 1 .*units 0 to 4"):
        tiled_homology(recording, sites="first")


def test_a_source_that_is_none_is_refused(wide_recording: dya.Recording) -> None:
    values = wide_recording.activations()
    with pytest.raises(InvalidArgumentError, match="DataArray"):
        tiled_homology(values.to_numpy())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="DataArray"):
        tiled_homology(values.transpose("unit", "sample", "snapshot"))
    with pytest.raises(InvalidArgumentError, match="chosen when"):
        tiled_homology(values, sites="first")
    with pytest.raises(InvalidArgumentError, match="from -3 to 2; got 3"):
        tiled_homology(wide_recording, 3)
    with pytest.raises(InvalidArgumentError, match="tile"):
        tiled_homology(values, tile=0)
    with pytest.raises(InvalidArgumentError, match="bins"):
        tiled_homology(values, bins=3)
