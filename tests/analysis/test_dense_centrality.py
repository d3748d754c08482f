"""Strength and eigenvector centrality of connectomes, beside float64 solvers, networkx and a naive twin."""

from __future__ import annotations

import connectome_strategies as strategies
import naive_graph as naive
import networkx as nx
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.graphs.centrality import RESIDUAL, eigenvector_centrality
from dynome_analysis.graphs.dense import DenseGraph, dense_centrality, dense_graph
from dynome_analysis.labelled.centralities import connectome_centrality
from dynome_analysis.labelled.connectomes import connectomes
from dynome_analysis.prediction.signature import graph_signature
from dynome_analysis.recording import open_recording
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError


def edges_of(matrix: np.ndarray) -> list[naive.Edge]:
    n = len(matrix)
    return [(i, j, float(matrix[i, j])) for i in range(n) for j in range(i + 1, n)]


def true_residual(matrix: np.ndarray, vector: np.ndarray) -> float:
    """In float64 throughout, with the Rayleigh quotient."""
    product = matrix.astype(np.float64) @ vector
    value = vector @ product
    return float(np.linalg.norm(product - value * vector) / value)


def structured(kind: str, units: int, *, seed: int = 0, samples: int = 300) -> np.ndarray:
    """Connectomes of units in clusters, of units that share factors, of independent ones, and two traps."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(samples, units))
    if kind.startswith("clusters"):
        count = int(kind.removeprefix("clusters "))
        return correlate(
            0.8 * random.normal(size=(samples, count))[:, np.arange(units) * count // units] + 0.6 * noise
        )[0]
    if kind == "latent":
        mixed = random.normal(size=(samples, 12)) @ random.normal(size=(12, units))
        return correlate(np.maximum(mixed + noise, 0))[0]
    if kind == "null":
        return correlate(noise)[0]
    matrix = np.triu(random.random((units, units)), 1)
    half = units // 2
    if kind == "two nearly equal":
        matrix[half:, half:] = matrix[:half, :half]
        matrix[:half, half:] *= 0.003
    elif kind == "bipartite":
        matrix[:half, :half] = matrix[half:, half:] = 0
    return (matrix + matrix.T).astype(np.float32)


KINDS = ["clusters 2", "clusters 5", "clusters 10", "clusters 30", "latent", "null", "two nearly equal", "bipartite"]


@pytest.mark.parametrize("units", [150, 334])
@pytest.mark.parametrize("kind", KINDS)
def test_structured_connectomes_reach_the_residual_in_truth(kind: str, units: int) -> None:
    """Float32 products, but a residual that float64 confirms; the vector is as good as the gap lets it be."""
    matrix = structured(kind, units)
    strength, found = dense_centrality(matrix)
    np.testing.assert_allclose(strength, matrix.astype(np.float64).sum(axis=1), rtol=1e-6)
    assert true_residual(matrix, found.values) <= RESIDUAL
    assert found.residual <= RESIDUAL
    assert found.products <= 20
    assert (found.values >= 0).all()
    assert np.linalg.norm(found.values) == pytest.approx(1, abs=1e-12)
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-6)
    gap = 1 - values[-2] / values[-1]
    np.testing.assert_allclose(found.values, np.abs(vectors[:, -1]), atol=2 * RESIDUAL / gap)
    if kind == "two nearly equal":
        assert gap < 0.01
    if kind == "bipartite":
        assert values[0] == pytest.approx(-values[-1])


@settings(deadline=None, max_examples=150)
@given(strategies.weights(largest=14))
def test_any_weights_equal_the_naive_twin(matrix: np.ndarray) -> None:
    """Ties, zeros, dead units, several parts, subnormal weights."""
    n, edges = len(matrix), edges_of(matrix)
    graph = dense_graph(matrix)
    np.testing.assert_allclose(graph.degree(), naive.degrees(n, edges), rtol=1e-6)
    parts = naive.components(n, edges)
    labels = graph.components()
    assert labels.tolist() == [sorted(map(min, parts)).index(min(next(p for p in parts if v in p))) for v in range(n)]
    if len(parts[0]) < 2:
        with pytest.raises(InvalidDataError, match="no edge of non-zero weight"):
            eigenvector_centrality(graph)
        return
    found = eigenvector_centrality(graph)
    values, vector = naive.spectrum(n, edges)
    assert (found.components, found.outside) == (len(parts), n - len(parts[0]))
    assert (found.values >= 0).all()
    assert (found.values[sorted(set(range(n)) - parts[0])] == 0).all()
    members = sorted(parts[0])
    part = matrix[np.ix_(members, members)].astype(np.float64) / values[-1]
    assert true_residual(part, found.values[members]) <= 1.2 * RESIDUAL
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-5)
    gap = 1 - values[-2] / values[-1]
    if gap > 1e-3:
        np.testing.assert_allclose(found.values, vector, atol=4 * RESIDUAL / gap)


def test_equals_networkx() -> None:
    matrix = structured("latent", 60)
    outside = nx.from_numpy_array(matrix)
    strength, found = dense_centrality(matrix)
    solved = nx.eigenvector_centrality_numpy(outside, weight="weight", tol=1e-12)
    np.testing.assert_allclose(found.values, [solved[v] for v in range(60)], atol=1e-6)
    np.testing.assert_allclose(strength, [outside.degree(v, weight="weight") for v in range(60)], rtol=1e-6)


@pytest.mark.parametrize("units", [1, 2, 3, 31, 63, 64, 65, 97, 130, 300])
def test_a_product_reads_the_upper_triangle_alone(units: int) -> None:
    """At every remainder of panels and lanes; the diagonal may hold anything."""
    random = np.random.default_rng(units)
    matrix = np.triu(random.random((units, units)), 1).astype(np.float32)
    matrix += matrix.T
    x = random.normal(size=units)
    expected = matrix.astype(np.float64) @ x
    np.fill_diagonal(matrix, np.nan)
    size = np.abs(matrix[~np.isnan(matrix)]).sum() if units > 1 else 1.0
    np.testing.assert_allclose(DenseGraph(matrix).multiply(x), expected, atol=1e-7 * size)
    assert DenseGraph(matrix).components().tolist() == [0] * units


def test_several_tiles_and_any_number_of_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = structured("clusters 5", 300)
    monkeypatch.setattr("dynome_analysis.graphs.dense.SHARED_FROM", 1)
    one, two, eight = (dense_centrality(matrix, threads=threads) for threads in (1, 2, 8))
    for other in (two, eight):
        assert (one[0] == other[0]).all()
        assert (one[1].values == other[1].values).all()
    np.testing.assert_allclose(one[0], matrix.astype(np.float64).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("tile", [64, 70, 200])
def test_more_columns_than_one_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = structured("latent", 300)
    expected = dense_centrality(matrix)
    monkeypatch.setattr("dynome_analysis.graphs.dense.SPAN", tile)
    strength, found = dense_centrality(matrix)
    np.testing.assert_allclose(strength, matrix.astype(np.float64).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.values, expected[1].values, atol=2e-6)


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-60, 2.0**100, 2.0**127])
def test_weights_of_any_magnitude(scale: float) -> None:
    matrix = structured("clusters 2", 40)
    coarse = np.round(matrix * 64) / 64  # so that the smallest scale, subnormal in float32, loses no bit
    plain, scaled = dense_centrality(coarse)[1], dense_centrality((coarse * scale).astype(np.float32))[1]
    assert scaled.eigenvalue == pytest.approx(plain.eigenvalue * scale, rel=1e-6)
    np.testing.assert_allclose(scaled.values, plain.values, atol=1e-5)


def test_permuted_units_permute_the_result() -> None:
    matrix = structured("latent", 200)
    order = np.random.default_rng(0).permutation(200)
    plain, permuted = dense_centrality(matrix)[1].values, dense_centrality(matrix[np.ix_(order, order)])[1].values
    np.testing.assert_allclose(permuted, plain[order], atol=2e-6)


def test_dead_units_have_zero_and_do_not_change_the_rest() -> None:
    activations = np.random.default_rng(0).normal(size=(100, 50)).astype(np.float32)
    plain = dense_centrality(correlate(activations)[0])
    activations = np.insert(activations, [0, 20, 50], 1.0, axis=1)
    matrix, dead = correlate(activations)
    strength, found = dense_centrality(matrix)
    assert dead.sum() == found.outside == 3
    assert found.components == 4
    assert (strength[dead] == 0).all()
    assert (found.values[dead] == 0).all()
    np.testing.assert_allclose(found.values[~dead], plain[1].values, atol=2e-6)


def test_entries_that_rounding_makes_negative_are_zero() -> None:
    """Along a tail behind a clique the vector falls below the residual, where the search leaves either sign."""
    matrix = np.zeros((60, 60))
    matrix[:30, :30] = 1 - np.eye(30)
    tail = np.arange(29, 59)
    matrix[tail, tail + 1] = matrix[tail + 1, tail] = 1.0
    found = dense_centrality(matrix)[1]
    assert (found.values >= 0).all()
    assert (found.values == 0).any()
    assert found.components == 1
    assert true_residual(matrix, found.values) <= RESIDUAL


def test_a_start_from_the_snapshot_before_saves_products_and_changes_nothing() -> None:
    random = np.random.default_rng(1)
    activations = 0.8 * random.normal(size=(200, 30))[:, np.arange(240) // 8] + 0.6 * random.normal(size=(200, 240))
    before = dense_centrality(correlate(activations)[0])[1]
    matrix = correlate(activations + 0.001 * random.normal(size=activations.shape))[0]
    cold, warm = dense_centrality(matrix)[1], dense_centrality(matrix, start=before.values)[1]
    assert warm.products < cold.products
    assert true_residual(matrix, warm.values) <= RESIDUAL
    np.testing.assert_allclose(warm.values, cold.values, atol=1e-5)


def test_what_is_no_connectome_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="square floating matrix"):
        dense_centrality(np.ones((2, 3)))
    with pytest.raises(InvalidDataError, match="negative"):
        dense_centrality(-np.ones((3, 3)))


def test_the_signature_of_a_connectome() -> None:
    """The same statistics as of a weight graph, on the complete graph over the units."""
    graph = dense_graph(structured("latent", 80))
    assert graph.n_edges == 80 * 79 // 2
    signature = graph_signature(graph)
    assert signature["degree_mean"] == pytest.approx(graph.degree().mean())
    values = eigenvector_centrality(graph).values * np.sqrt(80)
    assert signature["centrality_std"] == pytest.approx(values.std())


def test_snapshots_of_a_recording_lazily_and_at_once(make_recording) -> None:
    graphs = connectomes(open_recording(make_recording()))
    lazy = connectome_centrality(graphs)
    assert lazy["centrality"].chunks is not None
    assert {name: variable.dtype.name for name, variable in lazy.items()} == {
        "strength": "float64", "centrality": "float64", "eigenvalue": "float64", "residual": "float64",
        "components": "int64",
    }  # fmt: skip
    assert lazy["strength"].dims == lazy["centrality"].dims == ("snapshot", "unit")
    assert set(lazy.coords) >= {"epoch", "step", "site"}
    done = connectome_centrality(graphs.load())
    xr.testing.assert_identical(lazy.compute().drop_attrs(), done.drop_attrs())
    for position, matrix in enumerate(graphs.to_numpy()):
        strength, found = dense_centrality(matrix)
        assert (done["strength"][position] == strength).all()
        assert (done["centrality"][position] == found.values).all()
    assert (done["residual"] <= RESIDUAL).all()


def test_a_snapshot_without_edges_has_strength_zero_and_no_centrality() -> None:
    values = np.zeros((2, 3, 3), np.float32)
    values[1] = 0.5 * (1 - np.eye(3))
    found = connectome_centrality(xr.DataArray(values, dims=("snapshot", "unit", "unit_")))
    assert np.isnan(found["centrality"][0]).all()
    assert np.isnan(found["eigenvalue"][0])
    assert (found["strength"][0] == 0).all()
    assert found["components"].values.tolist() == [3, 1]
    np.testing.assert_allclose(found["centrality"][1], 3**-0.5, rtol=1e-6)


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"DataArray \(snapshot, unit, unit_\)"):
        connectome_centrality(xr.DataArray(np.zeros((3, 3)), dims=("unit", "unit_")))
