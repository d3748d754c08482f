"""The five statistics, and what a weight graph's signature is made of."""

from __future__ import annotations

import layer_descriptions as describe
import naive_graph as naive
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynome_analysis.graphs.layered import rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_analysis.prediction.signature import (
    MEASURES,
    STATISTICS,
    distribution,
    feature_names,
    graph_signature,
    layer_signature,
)

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_statistics_equal_the_naive_twin_and_scipy(values: list[float]) -> None:
    spread = max(values) - min(values)
    assume(spread == 0 or spread > 1e-3 * max(map(abs, values)))
    found, expected = distribution(np.array(values)), naive.moments(values)
    assert list(found) == list(STATISTICS)
    for name in STATISTICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-9 * (1 + abs(expected["mean"]))), name
    if spread > 0:
        assert found["skewness"] == pytest.approx(scipy.stats.skew(values), rel=1e-6, abs=1e-9)
        assert found["kurtosis"] == pytest.approx(scipy.stats.kurtosis(values), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-300, 1e200])
def test_equal_values_have_no_spread_skewness_or_kurtosis(value: float) -> None:
    """Summing 0.1 seven times rounds; the noise must not become a skewness."""
    found = distribution(np.full(7, value))
    assert (found["median"], found["skewness"], found["kurtosis"]) == (value, 0.0, 0.0)
    assert found["std"] <= 1e-15 * abs(value)


@pytest.mark.parametrize("factor", [1e-150, 1e150])
def test_tiny_and_huge_values_keep_their_shape(factor: float) -> None:
    """Fourth powers of them underflow or overflow."""
    values = np.array([1.0, 2.0, 4.0, 9.0])
    plain, scaled = distribution(values), distribution(values * factor)
    assert scaled["std"] == pytest.approx(plain["std"] * factor)
    assert scaled["skewness"] == pytest.approx(plain["skewness"])
    assert scaled["kurtosis"] == pytest.approx(plain["kurtosis"])


def test_float32_values_are_summed_in_float64() -> None:
    values = np.full(10_001, 0.1, np.float32)
    values[0] = 0.2
    assert distribution(values)["mean"] == pytest.approx(float(values.astype(np.float64).mean()), rel=1e-14)


def test_signature_of_a_network() -> None:
    """Degree and centrality times sqrt(n), over all vertices and per layer, as the twin computes them."""
    description, kinds, groups = describe.chain([3, 5], [6, 2], inputs=2)
    weights = description.random_weights(4)
    graph = rolled_graph(rolled_structure(description.model()), weights)
    n, edges = naive.chain_edges(list(weights.values()), kinds, groups)
    per_vertex = {"degree": naive.degrees(n, edges), "centrality": naive.spectrum(n, edges)[1] * n**0.5}
    expected = {f"{m}_{s}": v for m in MEASURES for s, v in naive.moments([float(x) for x in per_vertex[m]]).items()}
    found = graph_signature(graph)
    assert list(found) == list(expected) == feature_names(graph.structure)
    assert found == pytest.approx(expected, rel=1e-6)
    layers = layer_signature(graph)
    assert list(layers) == feature_names(graph.structure, per_layer=True)
    assert len(layers) == 5 * 10
    fc1 = graph.structure.groups[3]
    assert fc1.name == "fc1"
    assert layers["degree_mean[fc1]"] == pytest.approx(np.mean(per_vertex["degree"][fc1.start : fc1.start + fc1.size]))
    assert layers["centrality_std[fc1]"] == pytest.approx(np.std(per_vertex["centrality"][fc1.vertices]))


def test_vertices_outside_the_largest_component_count_as_zero() -> None:
    description, _, _ = describe.chain([], [4, 1], inputs=3)
    weights = description.random_weights(0)
    weights["fc1.weight"][0] = 0.0
    weights["fc2.weight"][0, 0] = 0.0
    graph = rolled_graph(rolled_structure(description.model()), weights)
    n, edges = naive.chain_edges(list(weights.values()), ["linear"] * 2, [1, 1])
    vector = naive.spectrum(n, edges)[1] * n**0.5
    assert vector[3] == 0.0
    signature = layer_signature(graph)
    assert signature["centrality_mean[fc1]"] == pytest.approx(vector[3:7].sum() / 4)
    assert signature["centrality_kurtosis[fc2]"] == 0.0  # a single vertex


def test_units_that_are_permuted_have_the_same_signature() -> None:
    description, _, _ = describe.chain([], [8, 3], inputs=5)
    weights = description.random_weights(1)
    order = np.random.default_rng(0).permutation(8)
    permuted = {"fc1.weight": weights["fc1.weight"][order], "fc2.weight": weights["fc2.weight"][:, order]}
    structure = rolled_structure(description.model())
    first, second = (graph_signature(rolled_graph(structure, w)) for w in (weights, permuted))
    assert first == pytest.approx(second, rel=1e-9)
