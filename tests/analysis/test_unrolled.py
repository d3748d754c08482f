"""The unrolled graph, which never writes an edge, beside one that writes every edge, and beside torch."""

from __future__ import annotations

import itertools
from typing import Any

import layer_descriptions as describe
import naive_graph as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynome_analysis.graphs.centrality import RESIDUAL, eigenvector_centrality
from dynome_analysis.graphs.unrolled import UnrolledGraph, unrolled_graph, unrolled_structure
from dynome_analysis.prediction.signature import graph_signature, layer_signature
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.layers import describe_model

# An even kernel with padding="same" pads more behind than in front; torch warns of the copy that it makes.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def dense(graph: UnrolledGraph) -> np.ndarray:
    return np.stack([graph.multiply(column) for column in np.eye(graph.n_vertices)])


def of_model(model: nn.Module, shape: tuple[int, ...], **options: Any) -> UnrolledGraph:
    """The graph of a torch model as the recorder describes it."""
    model = model.double()
    batch = torch.zeros(2, *shape, dtype=torch.float64)
    trace = trace_model(model, batch, forward=lambda network, inputs: network(inputs), samples=2)
    structure = unrolled_structure(describe_model(model, trace.layers), **options)
    return unrolled_graph(structure, {name: value.detach().numpy() for name, value in model.named_parameters()})


def absolute(model: nn.Module) -> nn.Module:
    """The same layers with |W| and without biases."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.abs() if name.endswith("weight") else torch.zeros_like(parameter))
    return model


def assert_edges(graph: UnrolledGraph, n: int, edges: list[naive.Edge]) -> None:
    assert graph.n_vertices == n
    assert graph.n_edges == len(edges)
    np.testing.assert_allclose(dense(graph), naive.adjacency(n, edges), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(graph.degree(), naive.degrees(n, edges), rtol=1e-12, atol=1e-15)
    labels = graph.components()
    parts = {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}
    assert parts == set(map(frozenset, naive.components(n, edges)))
    assert [labels[min(part)] for part in sorted(parts, key=min)] == list(range(len(parts)))


@pytest.mark.parametrize(
    ("description", "vertices", "edges"),
    [
        (describe.lenet(), 11_166, 658_024),
        (describe.vgg(), 205_066, 114_653_184),
        (describe.alexnet(), 54_986, 43_475_680),
    ],
    ids=["lenet", "vgg", "alexnet"],
)
def test_published_sizes(description: describe.Description, vertices: int, edges: int) -> None:
    """The networks of the paper have exactly the vertices and edges that it reports."""
    structure = unrolled_structure(description.model())
    assert (structure.n_vertices, structure.n_edges) == (vertices, edges)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    padding = [draw(st.integers(0, 2)) for _ in range(axes)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    space = [draw(st.integers(max(1, r - 2 * p), max(1, r - 2 * p) + 3)) for r, p in zip(reach, padding)]
    return {
        "shape": [groups * draw(st.integers(1, 2)), *space],
        "outputs": groups * draw(st.integers(1, 2)),
        "kernel": kernel,
        "stride": [draw(st.integers(1, 3)) for _ in range(axes)],
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "zeros": draw(st.sampled_from([0.0, 0.5])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_convolution_has_the_edges_of_its_definition(drawn: dict[str, Any]) -> None:
    """One per multiplication with a real pixel, with any stride, padding, dilation and groups, over 1 to 3 axes."""
    options = {name: drawn[name] for name in ("stride", "padding", "dilation", "groups")}
    channels, *space = drawn["shape"]
    weight = np.random.default_rng(drawn["seed"]).normal(
        size=(drawn["outputs"], channels // drawn["groups"], *drawn["kernel"])
    )
    weight *= np.random.default_rng(1).random(weight.shape) >= drawn["zeros"]
    result, edges = naive.convolution_edges(weight, space, **options)
    description = describe.Description()
    description.add(
        f"Conv{len(space)}d", [drawn["outputs"], *result], reads=drawn["shape"], weight=weight.shape, name="conv",
        sources=[describe.INPUT], **options,
    )  # fmt: skip
    graph = unrolled_graph(unrolled_structure(description.model()), {"conv.weight": weight})
    assert_edges(graph, int(np.prod(drawn["shape"]) + np.prod([drawn["outputs"], *result])), edges)


POOLINGS = [
    (nn.MaxPool2d(2), (2, 4, 6)),
    (nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (1, 5, 5)),
    (nn.MaxPool2d(3, stride=2, ceil_mode=True), (2, 6, 4)),
    (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (1, 6, 6)),
    (nn.AvgPool1d(2), (3, 7)),
    (nn.MaxPool3d(2, stride=1), (1, 3, 2, 3)),
    (nn.LPPool2d(2, 2), (1, 4, 4)),
]


@pytest.mark.parametrize(("module", "shape"), POOLINGS, ids=[str(module) for module, _ in POOLINGS])
def test_a_pooled_pixel_has_an_edge_with_each_real_pixel_it_covers(module: nn.Module, shape: tuple[int, ...]) -> None:
    axes = len(shape) - 1
    result = module(torch.zeros(1, *shape)).shape[2:]

    def per_axis(name: str, default: int) -> list[int]:
        value = getattr(module, name, default)
        return list(value) if isinstance(value, tuple) else [default if value is None else value] * axes

    kernel = per_axis("kernel_size", 0)
    stride = per_axis("stride", kernel[0])
    padding, dilation = per_axis("padding", 0), per_axis("dilation", 1)
    windows = [
        [[o * stride[a] - padding[a] + t * dilation[a] for t in range(kernel[a])] for o in range(result[a])]
        for a in range(axes)
    ]
    edges = naive.pooling_edges(shape[0], shape[1:], result, windows)
    assert_edges(of_model(nn.Sequential(module), shape), int(np.prod(shape)) + shape[0] * int(np.prod(result)), edges)


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 7)), (nn.AdaptiveMaxPool1d(4), (1, 6))]
)
def test_adaptive_windows_overlap_where_they_must(module: nn.Module, shape: tuple[int, ...]) -> None:
    """torch's own rule: window o goes from floor(o n / m) to ceil((o + 1) n / m)."""
    result = module(torch.zeros(1, *shape)).shape[2:]
    windows = [
        [list(range(int(np.floor(o * n / m)), int(np.ceil((o + 1) * n / m)))) for o in range(m)]
        for n, m in zip(shape[1:], result)
    ]
    edges = naive.pooling_edges(shape[0], shape[1:], result, windows)
    assert_edges(of_model(nn.Sequential(module), shape), int(np.prod(shape)) + shape[0] * int(np.prod(result)), edges)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(6, 4, 2, padding="same"), nn.Tanh(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 5), nn.Dropout(), nn.Linear(5, 2),
    )  # fmt: skip


def test_products_equal_torch_layer_by_layer() -> None:
    """A vector on one group only comes out at the next as the layer with |W| gives it, and the matrix is symmetric."""
    torch.manual_seed(0)
    model, shape = absolute(convolutional()), (3, 9, 10)
    graph = of_model(model, shape)
    layers = [
        module for module in model if isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Linear)
    ]
    generator = np.random.default_rng(0)
    assert [group.name for group in graph.structure.groups] == ["input", "0", "3", "4", "6", "8", "10"]
    for (source, target), layer in zip(itertools.pairwise(graph.structure.groups), layers, strict=True):
        values = generator.random(source.size)
        image = torch.tensor(values).reshape(1, *shape)
        with torch.no_grad():
            expected = layer(image.flatten(1) if isinstance(layer, nn.Linear) else image)
        shape = tuple(expected.shape[1:])
        x = np.zeros(graph.n_vertices)
        x[source.vertices] = values
        np.testing.assert_allclose(graph.multiply(x)[target.vertices], expected.numpy().ravel(), rtol=1e-12)
    matrix = dense(graph)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12)
    assert graph.n_edges == np.count_nonzero(np.triu(matrix))
    assert graph.components().max() == 0


def test_degree_and_centrality_equal_a_dense_solver() -> None:
    torch.manual_seed(1)
    graph = of_model(convolutional(), (3, 9, 10))
    matrix = dense(graph)
    np.testing.assert_allclose(graph.degree(), matrix.sum(axis=1), rtol=1e-12)
    found = eigenvector_centrality(graph, tolerance=1e-11)
    values, vectors = np.linalg.eigh(matrix)
    assert found.eigenvalue == pytest.approx(values[-1])
    np.testing.assert_allclose(found.values, np.abs(vectors[:, -1]), atol=1e-8)


def test_lenet_to_the_residual_that_is_promised() -> None:
    description = describe.lenet()
    graph = unrolled_graph(unrolled_structure(description.model()), description.random_weights(3))
    found = eigenvector_centrality(graph)
    product = graph.multiply(found.values)
    assert np.linalg.norm(product - found.eigenvalue * found.values) <= RESIDUAL * found.eigenvalue
    assert (found.values >= 0).all()
    assert found.components == 1


class Residual(nn.Module):
    """An identity shortcut inside, a projection around, and a pooled branch that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.down = nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=False)
        self.pooled = nn.AvgPool2d(2)
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + torch.relu(self.inner(x))
        return self.head((self.down(x) + self.pooled(x)).flatten(1))


def test_added_branches_share_pixels_and_identity_shortcuts_make_edges_only_when_asked() -> None:
    plain, weighted = (of_model(Residual(), (2, 4, 4), **options) for options in ({}, {"identity_weight": 0.5}))
    groups = plain.structure.groups
    assert [(group.name, group.size) for group in groups] == [
        ("input", 32), ("first", 48), ("inner", 48), ("down+pooled", 12), ("head", 2),
    ]  # fmt: skip
    assert weighted.n_edges == plain.n_edges + 48
    matrix = dense(weighted)
    assert (matrix[groups[1].vertices, groups[2].vertices] >= 0.5 * np.eye(48)).all()
    names = [(groups[link.source].name, groups[link.target].name) for link in plain.structure.connections]
    assert names == [
        ("input", "first"), ("first", "inner"), ("inner", "down+pooled"), ("inner", "down+pooled"),
        ("down+pooled", "head"),
    ]  # fmt: skip


def test_tokens_have_a_vertex_per_position() -> None:
    """A linear layer over tokens repeats its edges at every position, and a flatten joins them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    graph = of_model(model, (2, 4))
    weights = [np.abs(model[position].weight.detach().numpy()) for position in (0, 3)]
    matrix = np.zeros((16, 16))
    for token in range(2):
        matrix[8 + 3 * token : 11 + 3 * token, 4 * token : 4 + 4 * token] = weights[0]
    matrix[14:, 8:14] = weights[1]
    np.testing.assert_allclose(dense(graph), matrix + matrix.T)
    assert graph.n_edges == 2 * 12 + 12


def test_pixels_that_nothing_reads_are_components_of_their_own() -> None:
    """A stride of 2 with a kernel of 1 leaves three of four pixels unread; groups stay apart."""
    graph = of_model(nn.Sequential(nn.Conv2d(2, 2, 1, stride=2, groups=2, bias=False)), (2, 4, 4))
    labels = graph.components()
    assert labels.max() + 1 == 8 + 24
    found = eigenvector_centrality(graph)
    assert (found.components, found.outside) == (32, 40 - 2)


def test_signatures_take_an_unrolled_graph() -> None:
    description = describe.lenet()
    graph = unrolled_graph(unrolled_structure(description.model()), description.random_weights(0))
    assert graph_signature(graph)["degree_mean"] == pytest.approx(graph.degree().mean())
    pool = graph.structure.groups[2]
    layers = layer_signature(graph)
    assert layers[f"degree_mean[{pool.name}]"] == pytest.approx(graph.degree()[pool.vertices].mean())


def broken(change: str) -> describe.Description:
    description = describe.Description()
    shape = description.conv(4, 3, reads=[1, 8, 8], name="conv")
    layers = description.layers
    if change == "pooled by a function":
        description.conv(2, 3, reads=[4, 3, 3], name="second")
    elif change == "reflected":
        layers[0]["configuration"]["padding_mode"] = "reflect"
    elif change == "shuffled":
        description.add("ChannelShuffle", shape, reads=shape, name="mixer")
    elif change == "fractional":
        description.add("FractionalMaxPool2d", [4, 3, 3], reads=shape, name="mixer")
    elif change == "tokens":
        description.add("Linear", [36, 2], reads=[36, 4], weight=[2, 4], name="mixer")
    elif change == "transposed":
        description.add("Linear", [4, 6, 2], reads=shape, weight=[2, 5], name="mixer")
    elif change == "no kernel size":
        description.add("MaxPool2d", [4, 3, 3], reads=shape, name="mixer")
    elif change == "pooled across channels":
        description.add("MaxPool3d", [2, 3, 3], reads=shape, name="mixer", kernel_size=2)
    elif change == "output":
        layers[0]["output_shape"] = [5, 6, 6]
    elif change == "recurrent":
        description.add("LSTM", [2], reads=[4], weight=[8, 4], name="mixer")
    elif change == "unread":
        layers[0]["sources"], layers[0]["input_shape"] = [describe.INPUT], None
    elif change == "no source":
        layers[0]["sources"] = []
        description.add("ReLU", [2], reads=[2], sources=[describe.INPUT])
    return description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "pooled by a function",
            r"layer 'second': the pixels of conv, .* \(4, 6, 6\), .* \(4, 3, 3\); pooling must be",
        ),
        ("reflected", "layer 'conv' pads by 'reflect'"),
        ("shuffled", "layer 'mixer' is a ChannelShuffle"),
        ("fractional", r"layer 'mixer': the pixels of conv"),
        ("tokens", r"layer 'mixer': the pixels of conv"),
        ("transposed", r"layer 'mixer': its weight of shape \(2, 5\) does not fit the shape \(4, 6, 6\)"),
        ("no kernel size", "layer 'mixer': the recording does not say its kernel size"),
        ("pooled across channels", r"layer 'mixer': a MaxPool3d from shape \(4, 6, 6\) to \(2, 3, 3\)"),
        ("output", r"layer 'conv': its weight of shape \(4, 1, 3, 3\) does not fit"),
        ("recurrent", "layer 'mixer' is a LSTM with weights"),
        ("unread", "no layer reads the model's input"),
        ("no source", "layer 'conv': the recording does not say which layers' outputs reach it"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message) as caught:
        unrolled_structure(broken(change).model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "weight 'conv.weight' of layer 'conv' was not recorded"),
        ({"conv.weight": np.ones((4, 1, 9))}, "has shape .4, 1, 9., which its layer graph"),
        ({"conv.weight": np.full((4, 1, 3, 3), np.nan)}, "'conv.weight' .* NaN or infinity"),
    ],
)
def test_weights_that_make_no_graph_are_refused_by_name(weights: dict[str, np.ndarray], message: str) -> None:
    description = describe.Description()
    description.conv(4, 3, reads=[1, 8, 8], name="conv")
    with pytest.raises(InvalidDataError, match=message):
        unrolled_graph(unrolled_structure(description.model()), weights)
