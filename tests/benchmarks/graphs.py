"""Degree and eigenvector centrality of weight graphs, rolled and unrolled, against networkx."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import networkx
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from dynome_analysis.graphs.centrality import eigenvector_centrality
from dynome_analysis.graphs.layered import LayeredGraph, rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_analysis.graphs.unrolled import unrolled_graph, unrolled_structure
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.layers import describe_model

from .limited import limited
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTE = """\
Building the graph from the weights, degree and centrality to a residual of 1e-6, one thread, on freshly initialised
networks for 32 x 32 x 3 images. networkx builds its graph from an edge list and iterates at most 1000 times: it does
not converge on AlexNet, whose time is that of giving up. No library holds the edges of the unrolled graphs."""


def lenet() -> nn.Sequential:
    """Two convolutions, three fully connected layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def vgg() -> nn.Sequential:
    """Seven convolutions of 3 x 3 with padding, pooled after the first, third, fifth and seventh."""
    layers: list[nn.Module] = []
    channels = 3
    for position, width in enumerate((64, 128, 128, 256, 256, 256, 256)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        if position % 2 == 0:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def alexnet() -> nn.Sequential:
    """Five convolutions, pooled by overlapping 3 x 3 after the first two and the last."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 7, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(2304, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


NETWORKS = {"LeNet": lenet, "VGG": vgg, "AlexNet": alexnet}


def described(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a recording holds of a network: its description and its weights."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    trace = trace_model(model, torch.zeros(2, 3, 32, 32), forward=lambda net, batch: net(batch), samples=2)
    weights = {key: value.detach().numpy() for key, value in model.named_parameters()}
    return describe_model(model, trace.layers), weights


def edges(graph: LayeredGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every edge of a rolled graph: its two vertices and its weight."""
    identity = np.eye(graph.n_vertices)
    rows = np.stack([graph.multiply(column) for column in identity])
    first, second = np.nonzero(np.triu(rows))
    return first, second, rows[first, second]


def by_networkx(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> object:
    """Build, degree, and the library's power iteration."""
    graph = networkx.Graph()
    graph.add_weighted_edges_from(zip(first.tolist(), second.tolist(), weights.tolist(), strict=True))
    degree = dict(graph.degree(weight="weight"))
    try:
        return degree, networkx.eigenvector_centrality(graph, max_iter=1000, weight="weight")
    except networkx.PowerIterationFailedConvergence:
        return degree


def prepare(arm: str, name: str) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    model, weights = described(name)
    if arm == "unrolled":
        structure = unrolled_structure(model)
        return lambda: solved(unrolled_graph(structure, weights))
    rolled = rolled_structure(model)
    if arm == "rolled":
        solved(rolled_graph(rolled, weights))
        return lambda: solved(rolled_graph(rolled, weights))
    return partial(by_networkx, *edges(rolled_graph(rolled, weights)))


def solved(graph: Any) -> object:
    """Degree and centrality."""
    return graph.degree(), eigenvector_centrality(graph)


def rows() -> Iterator[Row]:
    """LeNet, VGG and AlexNet, rolled against networkx, then unrolled."""
    for name in NETWORKS:
        model, weights = described(name)
        structure = rolled_structure(model)
        with threadpool_limits(1):
            seconds = interleaved({"ours": lambda s=structure, w=weights: solved(rolled_graph(s, w))})
        outcomes = {arm: limited("benchmarks.graphs:prepare", arm, name) for arm in ("rolled", "networkx")}
        seconds["networkx"] = outcomes["networkx"].seconds
        memory = {"ours": outcomes["rolled"].memory, "networkx": outcomes["networkx"].memory}
        graph = rolled_graph(structure, weights)
        yield Row("rolled graph", f"{name}, {graph.n_vertices} vertices, {graph.n_edges} edges", seconds, memory)
    for name in NETWORKS:
        model, weights = described(name)
        graph = unrolled_graph(unrolled_structure(model), weights)
        outcome = limited("benchmarks.graphs:prepare", "unrolled", name)
        yield Row(
            "unrolled graph",
            f"{name}, {graph.n_vertices} vertices, {graph.n_edges} edges",
            {"ours": outcome.seconds},
            {"ours": outcome.memory},
        )
