"""Weight graphs of real torch models, described by the recorder's own trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dynome_analysis.graphs.layered import rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.layers import describe_model


class FunctionalLeNet(nn.Module):
    """As tutorials write it: pooling, activation and flatten are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


def structure_of(model: nn.Module, shape: tuple[int, ...], **options: Any) -> Any:
    batch = torch.zeros(2, *shape)
    trace = trace_model(model, batch, forward=lambda network, inputs: network(inputs), samples=2)
    return rolled_structure(describe_model(model, trace.layers), **options)


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def test_lenet_with_functions_has_the_published_size_and_its_weights() -> None:
    model = FunctionalLeNet()
    structure = structure_of(model, (3, 32, 32))
    assert (structure.n_vertices, structure.n_edges) == (239, 12_954)
    graph = rolled_graph(structure, weights_of(model))
    kernel, flat = weights_of(model)["conv2.weight"], weights_of(model)["fc1.weight"]
    np.testing.assert_allclose(graph.blocks[1][0, 3, 4], np.linalg.norm(kernel[3, 4]), rtol=1e-6)
    np.testing.assert_allclose(graph.blocks[2][0, 7, 2], np.linalg.norm(flat[7, 50:75]), rtol=1e-6)


def test_residual_network_with_batch_norm_and_both_kinds_of_shortcut() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), Block(4, 4, 1), Block(4, 8, 2), Block(8, 8, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    structure = structure_of(model, (3, 8, 8), identity_weight=1.0)
    names = [group.name for group in structure.groups]
    assert names == [
        "input", "0", "1.conv1", "1.conv2", "2.conv1", "2.conv2+2.shortcut", "3.conv1", "3.conv2", "6",
    ]  # fmt: skip
    ends = [(names[link.source], names[link.target]) for link in structure.connections if link.parameter is None]
    assert ends == [("0", "1.conv2"), ("2.conv2+2.shortcut", "3.conv2")]
    assert rolled_graph(structure, weights_of(model)).components().max() == 0


def test_grouped_convolutions_and_tied_weights() -> None:
    first, second = nn.Linear(12, 12), nn.Linear(12, 12)
    second.weight = first.weight
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 12, 1), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    model.extend([first, nn.Dropout(), nn.ReLU(), second])
    structure = structure_of(model, (4, 10))
    assert [link.shape for link in structure.connections] == [(4, 1, 1), (1, 12, 4), (1, 12, 12), (1, 12, 12)]
    assert structure.connections[2].parameter == structure.connections[3].parameter == "4.weight"


def test_attention_is_refused_by_name() -> None:
    with pytest.raises(InvalidDataError, match="layer 'attention' is a MultiheadAttention with weights"):
        structure_of(Attention(), (3, 8))
