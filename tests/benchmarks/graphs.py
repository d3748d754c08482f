"""Degree and eigenvector centrality of a rolled weight graph, against networkx."""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx
import numpy as np
import torch
from torch import nn

from dynome_analysis.graphs.centrality import eigenvector_centrality
from dynome_analysis.graphs.layered import LayeredGraph, rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_recorder.canary import trace_model
from dynome_recorder.layers import describe_model

from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator


def lenet() -> nn.Module:
    """LeNet on 32 x 32 x 3 images: 239 vertices, 12,954 edges."""
    return nn.Sequential(
        *(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        ),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def edge_list(graph: LayeredGraph) -> networkx.Graph:
    """The same graph with every edge written out."""
    explicit = networkx.Graph()
    identity = np.eye(graph.n_vertices)
    for vertex in range(graph.n_vertices):
        row = graph.multiply(identity[vertex])
        explicit.add_weighted_edges_from((vertex, int(other), row[other]) for other in np.flatnonzero(row))
    return explicit


def rows() -> Iterator[Row]:
    """Measure LeNet; networkx does not converge on the larger graphs of the paper."""
    torch.manual_seed(0)
    model = lenet()
    trace = trace_model(model, torch.zeros(2, 3, 32, 32), forward=lambda net, batch: net(batch), samples=2)
    structure = rolled_structure(describe_model(model, trace.layers))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    graph = rolled_graph(structure, weights)
    explicit = edge_list(graph)
    yield interleaved(
        "degree and centrality",
        f"LeNet, {graph.n_vertices} vertices, {graph.n_edges} edges",
        {
            "ours, graph built from weights": lambda: (
                (built := rolled_graph(structure, weights)).degree(),
                eigenvector_centrality(built),
            ),
            "networkx, graph prebuilt": lambda: (
                dict(explicit.degree(weight="weight")),
                networkx.eigenvector_centrality_numpy(explicit, weight="weight"),
            ),
        },
    )
