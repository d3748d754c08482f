"""Eigenvector centrality of layered graphs, beside a dense solver, networkx, and the traps."""

from __future__ import annotations

from dataclasses import dataclass

import layer_descriptions as describe
import naive_graph as naive
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_analysis.graphs import centrality as module
from dynome_analysis.graphs.centrality import RESIDUAL, eigenvector_centrality
from dynome_analysis.graphs.layered import LayeredGraph, rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError


@dataclass(frozen=True)
class DenseGraph:
    """Any symmetric matrix as a graph."""

    matrix: np.ndarray

    @property
    def n_vertices(self) -> int:
        return len(self.matrix)

    @property
    def n_edges(self) -> int:
        return int(np.count_nonzero(np.triu(self.matrix)))

    def degree(self) -> np.ndarray:
        return self.matrix.sum(axis=1)

    def multiply(self, x: np.ndarray) -> np.ndarray:
        return self.matrix @ x

    def components(self) -> np.ndarray:
        labels = np.full(len(self.matrix), -1, dtype=np.int32)
        graph = nx.from_numpy_array(self.matrix != 0)
        for label, part in enumerate(nx.connected_components(graph)):
            labels[list(part)] = label
        return labels


def layered(channels: list[int], widths: list[int], *, seed: int, zeros: float = 0.0) -> tuple[LayeredGraph, list, int]:
    description, kinds, groups = describe.chain(channels, widths, inputs=4)
    weights = description.random_weights(seed, zeros=zeros)
    n, edges = naive.chain_edges(list(weights.values()), kinds, groups)
    return rolled_graph(rolled_structure(description.model()), weights), edges, n


def to_networkx(n: int, edges: list[naive.Edge]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from(edges)
    return graph


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 12), max_size=2),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.integers(0, 2**32 - 1),
)
def test_equals_a_dense_solver_on_the_largest_component(
    channels: list[int], widths: list[int], zeros: float, seed: int
) -> None:
    """Dead output channels split the graph; what is outside the largest part is 0 and counted."""
    graph, edges, n = layered(channels, widths, seed=seed, zeros=zeros)
    parts = naive.components(n, edges)
    if len(parts[0]) < 2:
        with pytest.raises(InvalidDataError, match="no edge of non-zero weight"):
            eigenvector_centrality(graph)
        return
    found = eigenvector_centrality(graph, tolerance=1e-12)
    values, vector = naive.spectrum(n, edges)
    assert found.outside == n - len(parts[0])
    assert found.components == len(parts)
    assert (found.values[sorted(set(range(n)) - parts[0])] == 0).all()
    assert (found.values >= 0).all()
    assert np.linalg.norm(found.values) == pytest.approx(1, abs=1e-12)
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-9)
    assert found.residual <= 1e-12
    gap = (values[-1] - values[-2]) / values[-1]
    np.testing.assert_allclose(found.values, vector, atol=1e-12 / gap)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("channels", "widths"), [([], [30, 20, 10]), ([6, 16], [40, 10]), ([], [3, 1])])
def test_degree_and_centrality_equal_networkx(channels: list[int], widths: list[int], seed: int) -> None:
    graph, edges, n = layered(channels, widths, seed=seed)
    outside = to_networkx(n, edges)
    found = eigenvector_centrality(graph, tolerance=1e-12)
    np.testing.assert_allclose(graph.degree(), [outside.degree(v, weight="weight") for v in range(n)], rtol=1e-12)
    iterated = nx.eigenvector_centrality(outside, max_iter=100_000, tol=1e-12, weight="weight")
    solved = nx.eigenvector_centrality_numpy(outside, weight="weight", tol=1e-12) if n > 20 else iterated
    np.testing.assert_allclose(found.values, [iterated[v] for v in range(n)], atol=1e-9)
    np.testing.assert_allclose(found.values, [solved[v] for v in range(n)], atol=1e-9)


def test_lenet_equals_networkx() -> None:
    description = describe.lenet()
    graph = rolled_graph(rolled_structure(description.model()), description.random_weights(5))
    outside = nx.Graph()
    for link, block in zip(graph.structure.connections, graph.blocks, strict=True):
        source, target = graph.structure.groups[link.source].start, graph.structure.groups[link.target].start
        for (_, i, j), weight in np.ndenumerate(block):
            outside.add_edge(source + j, target + i, weight=weight)
    assert (outside.number_of_nodes(), outside.number_of_edges()) == (239, 12_954)
    solved = nx.eigenvector_centrality_numpy(outside, weight="weight", tol=1e-12)
    np.testing.assert_allclose(
        eigenvector_centrality(graph, tolerance=1e-12).values, [solved[v] for v in range(239)], atol=1e-9
    )
    np.testing.assert_allclose(graph.degree(), [outside.degree(v, weight="weight") for v in range(239)], rtol=1e-12)


def test_a_bipartite_graph_on_which_power_iteration_oscillates_for_ever() -> None:
    """Without shortcuts minus lambda_1 is an eigenvalue too; the twin's iterates swing, ours is the eigenvector."""
    graph, edges, n = layered([], [20, 20], seed=1)
    matrix = naive.adjacency(n, edges)
    iterates = naive.power_iteration(matrix, 501)
    assert np.linalg.norm(iterates[-1] - iterates[-2]) > 0.1
    np.testing.assert_allclose(iterates[-1], iterates[-3], atol=1e-9)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] == pytest.approx(-values[-1])
    found = eigenvector_centrality(graph, tolerance=1e-12)
    np.testing.assert_allclose(matrix @ found.values, values[-1] * found.values, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3, 31, 32, 33, 60])
def test_a_star_of_any_size(size: int) -> None:
    """Its adjacency matrix has rank 2, which ends a Krylov space at once; known in closed form."""
    matrix = np.zeros((size, size))
    matrix[0, 1:] = matrix[1:, 0] = 3.0
    found = eigenvector_centrality(DenseGraph(matrix), tolerance=1e-12)
    assert found.eigenvalue == pytest.approx(3 * np.sqrt(size - 1))
    np.testing.assert_allclose(found.values[0], np.sqrt(0.5), atol=1e-9)
    np.testing.assert_allclose(found.values[1:], np.sqrt(0.5 / (size - 1)), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_weights_of_any_magnitude(scale: float) -> None:
    matrix = np.abs(np.random.default_rng(0).normal(size=(50, 50)))
    matrix = (matrix + matrix.T) * scale
    found = eigenvector_centrality(DenseGraph(matrix), tolerance=1e-12)
    assert found.residual <= 1e-12
    again = eigenvector_centrality(DenseGraph(matrix / scale), tolerance=1e-12)
    np.testing.assert_allclose(found.values, again.values, atol=1e-9)


@pytest.mark.parametrize("size", [6, 40])
def test_among_equal_components_the_one_with_the_lowest_vertex_counts(size: int) -> None:
    """Even where the other one has the larger eigenvalue, so that the choice does not depend on rounding."""
    block = np.ones((size, size)) - np.eye(size)
    matrix = np.kron(np.diag([1.0, 2.0]), block)
    found = eigenvector_centrality(DenseGraph(matrix))
    assert found.outside == size
    assert (found.values[:size] > 0).all()
    assert (found.values[size:] == 0).all()
    assert found.eigenvalue == pytest.approx(size - 1)


def test_two_nearly_separate_parts_still_converge() -> None:
    """The two largest eigenvalues differ by 1e-5 of themselves: a larger Krylov space is taken."""
    generator = np.random.default_rng(3)
    block = np.abs(generator.normal(size=(100, 100)))
    matrix = np.kron(np.eye(2), block + block.T)
    matrix[0, 150] = matrix[150, 0] = 1e-3
    found = eigenvector_centrality(DenseGraph(matrix))
    assert found.residual <= RESIDUAL
    assert (found.values >= 0).all()


def test_the_same_graph_gives_the_same_bits() -> None:
    graph, _, _ = layered([6], [40, 10], seed=2)
    first, second = eigenvector_centrality(graph), eigenvector_centrality(graph)
    assert (first.values == second.values).all()


def test_what_does_not_converge_is_an_error() -> None:
    """A residual above the limit is never returned."""
    graph, _, _ = layered([], [40, 10], seed=2)
    with pytest.raises(InvalidDataError, match=r"did not converge on 54 vertices .*two largest eigenvalues"):
        eigenvector_centrality(graph, tolerance=-1.0)


def test_where_the_search_gives_up_arpack_is_asked_with_ever_larger_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.sparse import linalg

    sizes: list[int] = []

    def give_up(operator: object, **options: int) -> object:
        sizes.append(options["ncv"])
        raise linalg.ArpackNoConvergence("gave up", np.empty(0), np.empty(0))

    graph, _, _ = layered([], [400, 10], seed=2)
    monkeypatch.setattr(module, "PRODUCTS", 0)
    expected = eigenvector_centrality(graph)
    assert expected.products > 20
    monkeypatch.setattr(linalg, "eigsh", give_up)
    with pytest.raises(InvalidDataError, match="did not converge"):
        eigenvector_centrality(graph)
    assert sizes == [80, 320]


def test_a_restarted_search_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a few vectors only, the leading ones are kept again and again."""
    block = np.abs(np.random.default_rng(0).normal(size=(60, 60)))
    matrix = np.kron(np.diag([1.0, 0.999, 0.99]), block + block.T) + 1e-3
    expected = eigenvector_centrality(DenseGraph(matrix), tolerance=1e-10)
    monkeypatch.setattr(module, "BASIS", 6)
    monkeypatch.setattr(module, "KEPT", 3)
    found = eigenvector_centrality(DenseGraph(matrix), tolerance=1e-10)
    assert found.products > 6
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    np.testing.assert_allclose(found.values, np.abs(np.linalg.eigh(matrix)[1][:, -1]), atol=1e-6)


def test_a_start_near_the_result_saves_products_and_changes_nothing() -> None:
    graph, _, _ = layered([], [80, 40, 10], seed=5)
    plain = eigenvector_centrality(graph, tolerance=1e-8)
    warm = eigenvector_centrality(graph, tolerance=1e-8, start=plain.values)
    assert warm.products <= 2 < plain.products
    np.testing.assert_allclose(warm.values, plain.values, atol=1e-6)


@pytest.mark.parametrize("start", [np.zeros(50), np.full(50, np.nan), -np.ones(50), np.eye(50)[3]])
def test_a_bad_start_changes_nothing(start: np.ndarray) -> None:
    matrix = np.abs(np.random.default_rng(0).normal(size=(50, 50)))
    graph = DenseGraph(matrix + matrix.T)
    plain, started = eigenvector_centrality(graph), eigenvector_centrality(graph, start=start)
    assert (started.values >= 0).all()
    np.testing.assert_allclose(started.values, plain.values, atol=1e-5)


def test_a_start_for_another_graph_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"start must have one value for each of the 5 vertices; got .*4"):
        eigenvector_centrality(DenseGraph(np.ones((5, 5))), start=np.ones(4))


def test_no_weights_at_all() -> None:
    with pytest.raises(InvalidDataError, match="no edge of non-zero weight"):
        eigenvector_centrality(DenseGraph(np.zeros((5, 5))))
