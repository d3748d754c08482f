"""The rolled graph: sizes, edges, shortcuts, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import layer_descriptions as describe
import naive_graph as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_analysis.graphs.layered import rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_recorder.errors import InvalidDataError

KINDS = {1: "Conv1d", 2: "Conv2d", 3: "Conv3d"}


def dense(graph: Any) -> np.ndarray:
    return np.stack([graph.multiply(column) for column in np.eye(graph.n_vertices)])


@pytest.mark.parametrize(
    ("description", "vertices", "edges"),
    [
        (describe.lenet(), 239, 12_954),
        (describe.vgg(), 1_613, 304_576),
        (describe.alexnet(), 2_925, 1_160_480),
    ],
    ids=["lenet", "vgg", "alexnet"],
)
def test_published_sizes(description: describe.Description, vertices: int, edges: int) -> None:
    """The networks of the paper have exactly the vertices and edges that it reports."""
    structure = rolled_structure(description.model())
    assert (structure.n_vertices, structure.n_edges) == (vertices, edges)
    graph = rolled_graph(structure, description.random_weights(0))
    assert graph.n_edges == sum(block.size for block in graph.blocks) == edges


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 3), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 2**32 - 1),
)
def test_edges_equal_the_naive_twin(factors: list[int], widths: list[int], axes: int, dtype: str, seed: int) -> None:
    """Convolutions of one to three axes, grouped or not, and linear layers after a flatten."""
    generator = np.random.default_rng(seed)
    groups = [int(generator.integers(1, 3)) for _ in factors]
    channels = [2 * factor for factor in factors]
    description, kinds, shares = describe.chain(channels, widths, axes=axes, side=3, groups=groups)
    weights = description.random_weights(seed, dtype=dtype, zeros=0.2)
    graph = rolled_graph(rolled_structure(description.model()), weights)
    n, edges = naive.chain_edges(list(weights.values()), kinds, shares)
    assert graph.n_vertices == n
    assert graph.n_edges == len(edges)
    np.testing.assert_allclose(dense(graph), naive.adjacency(n, edges), rtol=1e-12)
    np.testing.assert_allclose(graph.degree(), naive.degrees(n, edges), rtol=1e-12)
    expected = naive.components(n, edges)
    labels = graph.components()
    assert {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels)} == set(
        map(frozenset, expected)
    )


def test_values_of_a_small_network() -> None:
    """A kernel's norm, a flattened block's norm, a plain absolute value; recorded dtypes become float64."""
    description, _, _ = describe.chain([2], [1, 1], inputs=1, side=2)
    weights = {
        "conv0.weight": np.full((2, 1, 3, 3), -2.0, np.float32),
        "fc1.weight": np.array([[3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, -1.0]], np.float32),
        "fc2.weight": np.array([[-0.5]], np.float32),
    }
    graph = rolled_graph(rolled_structure(description.model()), weights)
    assert [block.tolist() for block in graph.blocks] == [[[[6.0], [6.0]]], [[[5.0, 1.0]]], [[[0.5]]]]
    assert graph.degree().tolist() == [12.0, 11.0, 7.0, 6.5, 0.5]
    assert graph.blocks[0].dtype == np.float64


def test_an_input_that_only_linear_layers_read_has_a_vertex_per_feature() -> None:
    description = describe.Description()
    description.linears([5, 2], reads=[1, 4, 4])
    structure = rolled_structure(description.model())
    assert [(group.name, group.start, group.size) for group in structure.groups] == [
        ("input", 0, 16),
        ("fc1", 16, 5),
        ("fc2", 21, 2),
    ]


def test_an_input_that_a_convolution_reads_too_has_a_vertex_per_channel() -> None:
    """A linear branch then reads it as a flattened image, and the branches' sum shares its vertices."""
    description = describe.Description()
    first = description.add("Linear", [2], reads=[48], weight=[2, 48], sources=[describe.INPUT], name="skip")
    description.conv(2, 3, reads=[3, 4, 4], sources=[describe.INPUT], name="conv")
    pooled = description.add("AdaptiveAvgPool2d", [2, 1, 1], reads=[2, 2, 2])
    description.add("Linear", [1], reads=[2], weight=[1, 2], sources=[first, pooled], name="head")
    structure = rolled_structure(description.model())
    assert [group.size for group in structure.groups] == [3, 2, 1]
    assert structure.groups[1].name == "skip+conv"
    assert structure.n_edges == 6 + 6 + 2
    assert structure.connections[0].pixels == 16


def test_tokens_flattened_with_features_last() -> None:
    """After a linear layer over tokens, a flatten interleaves the features: w[token * features + feature]."""
    description = describe.Description()
    description.add("Linear", [3, 2], reads=[3, 4], weight=[2, 4], name="embed")
    description.add("Flatten", [6], reads=[3, 2])
    description.add("Linear", [1], reads=[6], weight=[1, 6], name="head")
    structure = rolled_structure(description.model())
    weights = {"embed.weight": np.ones((2, 4)), "head.weight": np.array([[1.0, 10.0, 2.0, 20.0, 2.0, 20.0]])}
    assert rolled_graph(structure, weights).blocks[1].tolist() == [[[3.0, 30.0]]]


def residual(*, projection: bool, functional: bool = False) -> describe.Description:
    """conv0, a block of two convolutions with a shortcut, another with an identity, a pool, and a linear head."""
    description = describe.Description()
    shape = [4, 6, 6]
    description.conv(4, 3, reads=[3, 6, 6], padding=1, name="conv0")
    description.conv(4, 3, reads=shape, padding=1, sources=[0], name="conv1")
    description.conv(4, 3, reads=shape, padding=1, sources=[1], name="conv2")
    shortcut = 0
    if projection:
        description.conv(4, 1, reads=shape, sources=[0], name="shortcut")
        shortcut = 3
    joined = [2, shortcut]
    if not functional:
        joined = [description.add("ReLU", shape, reads=shape, sources=joined)]
    inner = len(description.layers)
    description.conv(4, 3, reads=shape, padding=1, sources=joined, name="conv3")
    description.conv(4, 3, reads=shape, padding=1, sources=[inner], name="conv4")
    last = [inner + 1, *joined]
    pool = description.add("AdaptiveAvgPool2d", [4, 1, 1], reads=shape, sources=last)
    description.add("Linear", [2], reads=[4], weight=[2, 4], sources=[pool], name="head")
    return description


@pytest.mark.parametrize("functional", [False, True])
def test_a_projection_connects_the_block_s_input_with_its_output(functional: bool) -> None:
    structure = rolled_structure(residual(projection=True, functional=functional).model())
    names = [group.name for group in structure.groups]
    assert names == ["input", "conv0", "conv1", "conv2+shortcut", "conv3", "conv4", "head"]
    ends = {link.layer: (names[link.source], names[link.target]) for link in structure.connections}
    assert ends["shortcut"] == ("conv0", "conv2+shortcut")
    assert ends["conv3"] == ("conv2+shortcut", "conv3")
    assert ends["head"] == ("conv4", "head")
    assert structure.n_vertices == 3 + 5 * 4 + 2
    assert structure.n_edges == 12 + 5 * 16 + 8


@pytest.mark.parametrize("functional", [False, True])
def test_identity_shortcuts_make_edges_only_when_asked(functional: bool) -> None:
    """Also where functions hide the sums, each block's shortcut is one diagonal, not a fan to every earlier block."""
    model = residual(projection=False, functional=functional).model()
    plain = rolled_structure(model)
    assert plain.n_edges == 12 + 4 * 16 + 8
    weighted = rolled_structure(model, identity_weight=0.5)
    diagonals = [link for link in weighted.connections if link.parameter is None]
    names = [group.name for group in weighted.groups]
    assert [(names[link.source], names[link.target]) for link in diagonals] == [("conv0", "conv2"), ("conv2", "conv4")]
    graph = rolled_graph(weighted, residual(projection=False).random_weights(1))
    matrix = dense(graph)
    source, target = weighted.groups[1].vertices, weighted.groups[3].vertices
    assert (matrix[source, target] == 0.5 * np.eye(4)).all()
    assert (matrix == matrix.T).all()


def test_a_shared_module_has_vertices_for_each_call_and_a_tied_weight_one_name() -> None:
    description = describe.Description()
    description.add("Linear", [3], reads=[3], weight=[3, 3], name="cell")
    description.add("Linear", [3], reads=[3], weight=[3, 3], name="cell", call=1)
    description.add("Linear", [3], reads=[3], weight=[3, 3], name="tied")
    description.parameters[-1]["alias_of"] = "cell.weight"
    structure = rolled_structure(description.model())
    assert [group.name for group in structure.groups] == ["input", "cell", "cell@1", "tied"]
    assert structure.parameters == ("cell.weight",)
    assert structure.n_edges == 27


def broken(change: str) -> describe.Description:
    description, _, _ = describe.chain([4], [3, 2], inputs=1)
    layers = description.layers
    if change == "no layers":
        layers.clear()
    elif change == "attention":
        description.add("MultiheadAttention", [2], reads=[2], weight=[6, 2], name="attention")
    elif change == "function":
        description.parameters.append({"name": "loose", "shape": [2, 2], "dtype": "float32", "alias_of": None})
    elif change == "weight norm":
        layers[3]["parameters"] = {"parametrizations.weight.original1": "fc1.weight"}
    elif change == "unequal branches":
        layers[-1]["sources"] = [0, 4]
    elif change == "concatenation of equals":
        branch = description.add("Linear", [3], reads=[16], weight=[3, 16], sources=[2], name="branch")
        description.add("Linear", [2], reads=[6], weight=[2, 6], sources=[branch, 3], name="both")
    elif change == "concatenation, pooled":
        description.conv(4, 3, reads=[1, 4, 4], padding=1, sources=[describe.INPUT], name="branch")
        branch = len(layers) - 1
        description.add("Linear", [2], reads=[32], weight=[2, 32], sources=[0, branch], name="both")
    elif change == "reshape":
        description.add("Unflatten", [3, 5], reads=[3, 5])
    elif change == "pixels":
        description.add("Linear", [2], reads=[4, 4, 4], weight=[2, 4], sources=[0], name="mixer")
    elif change == "unknown source":
        layers[-1]["sources"] = [77]
    elif change == "nothing reads the input":
        layers[0]["sources"] = [0]
    return description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no layers", "holds no layer graph"),
        ("attention", "layer 'attention' is a MultiheadAttention with weights"),
        ("function", "parameter 'loose' belongs to no layer"),
        ("weight norm", "layer 'fc1' has no plain parameter 'weight'"),
        ("unequal branches", r"layer 'fc2' reads conv0 \(4\), fc1 \(3\) together"),
        ("concatenation of equals", r"layer 'both': the 3 channels of fc1\+branch cannot be followed into a tensor"),
        ("concatenation, pooled", r"layer 'both': the 4 channels of conv0\+branch cannot be followed into a tensor"),
        ("reshape", r"layer 'unflatten\d+': the 2 channels of fc2 cannot be followed into a tensor of shape \(3, 5\)"),
        ("pixels", r"layer 'mixer': its weight of shape \(2, 4\) does not fit the 4 channels of conv0"),
        ("unknown source", "layer 'fc2': the recording does not say which layers' outputs reach it"),
        ("nothing reads the input", "no convolution or linear layer reads the model's input"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message) as caught:
        rolled_structure(broken(change).model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("fc1.weight"), "weight 'fc1.weight' of layer 'fc1' was not recorded"),
        (lambda weights: weights.update({"fc2.weight": np.ones((2, 4))}), "has shape .2, 4., which its layer graph"),
        (
            lambda weights: weights["conv0.weight"].__setitem__((0, 0, 1, 1), np.nan),
            "'conv0.weight' .* NaN or infinity",
        ),
        (lambda weights: weights["fc1.weight"].__setitem__((2, 5), -np.inf), "'fc1.weight' .* NaN or infinity"),
    ],
    ids=["missing", "shape", "nan", "infinity"],
)
def test_weights_that_make_no_graph_are_refused_by_name(change: Any, message: str) -> None:
    description, _, _ = describe.chain([4], [3, 2], inputs=1)
    weights = description.random_weights(0)
    change(weights)
    with pytest.raises(InvalidDataError, match=message):
        rolled_graph(rolled_structure(description.model()), weights)


def test_a_layer_whose_output_is_no_tensor_passes_its_input_on() -> None:
    description = describe.Description()
    description.add("Linear", [3], reads=[2], weight=[3, 2])
    description.add("Wrapper", [], reads=[3])
    description.layers[-1]["output_shape"] = None
    description.add("Linear", [1], reads=[3], weight=[1, 3])
    assert rolled_structure(description.model()).n_edges == 9


def test_the_description_is_not_changed() -> None:
    model = residual(projection=True).model()
    before = copy.deepcopy(model)
    rolled_structure(model, identity_weight=1.0)
    assert model == before
