"""The layer graph, against graphs written by hand from the models' code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from recorder_training import Convolution, LeNet, Shared
from torch import nn
from torch.nn import functional

from dynome_recorder import InvalidArgumentError, InvalidDataError
from dynome_recorder.capture.probe import call_model
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.layers import describe_model, describe_parameters

if TYPE_CHECKING:
    from dynome_recorder.tracing.trace import Trace


def trace(model: nn.Module, *shape: int) -> Trace:
    return trace_model(model, torch.randn(*shape), forward=call_model, samples=shape[0])


def graph(found: Trace) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(layer.module, layer.call, layer.sources) for layer in found.layers]


def test_sequential_with_inplace_relu_dropout_and_identity() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(), nn.Identity(), nn.Linear(5, 2))
    found = trace(model, 3, 6)
    assert graph(found) == [("0", 0, (-1,)), ("1", 0, (0,)), ("2", 0, (1,)), ("3", 0, (2,)), ("4", 0, (3,))]
    assert found.output_sources == (4,)
    assert found.layers[4].parameters == {"weight": "4.weight", "bias": "4.bias"}
    assert (found.layers[4].input_shape, found.layers[4].output_shape) == ((5,), (2,))


def test_lenet_with_functional_relu_pool_and_flatten() -> None:
    found = trace(LeNet(), 2, 3, 32, 32)
    assert graph(found) == [
        ("conv1", 0, (-1,)),
        ("conv2", 0, (0,)),
        ("fc1", 0, (1,)),
        ("fc2", 0, (2,)),
        ("fc3", 0, (3,)),
    ]
    assert [layer.output_shape for layer in found.layers] == [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)]
    assert [layer.input_shape for layer in found.layers] == [(3, 32, 32), (6, 14, 14), (400,), (120,), (84,)]
    assert [(use.function, use.count) for use in found.functions] == [("relu", 4)]
    assert found.layers[1].configuration["kernel_size"] == [5, 5]
    assert found.layers[1].configuration["groups"] == 1
    assert found.layers[2].configuration["in_features"] == 400


def test_residual_block_with_projection_and_reused_inplace_relu() -> None:
    found = trace(Convolution(), 3, 1, 6, 6)
    assert graph(found) == [
        ("conv1", 0, (-1,)),
        ("norm1", 0, (0,)),
        ("relu", 0, (1,)),
        ("conv2", 0, (2,)),
        ("norm2", 0, (3,)),
        ("projection", 0, (-1,)),
        ("relu", 1, (4, 5)),
        ("pool", 0, (6,)),
        ("head", 0, (7,)),
    ]
    assert found.layers[7].configuration["output_size"] == [1, 1]


def test_shared_module_called_twice_names_the_same_parameters() -> None:
    model = Shared()
    found = trace(model, 3, 1, 6, 6)
    assert graph(found) == [
        ("first", 0, (-1,)),
        ("act", 0, (0,)),
        ("shared", 0, (1,)),
        ("act", 1, (2,)),
        ("shared", 1, (3,)),
        ("act", 2, (4,)),
        ("last", 0, (5,)),
    ]
    assert (
        found.layers[2].parameters == found.layers[4].parameters == {"weight": "shared.weight", "bias": "shared.bias"}
    )
    aliases = {entry["name"]: entry["alias_of"] for entry in describe_parameters(model)}
    assert aliases["alias.weight"] == "shared.weight"
    assert aliases["shared.weight"] is None


def test_identity_shortcut_adds_an_edge_around_the_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.shortcut = nn.Identity()
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shortcut = self.shortcut(x)  # called first: the inner layer must still read the model's input
            return self.last(functional.relu(self.inner(x) + shortcut))

    assert graph(trace(Block(), 3, 4)) == [("shortcut", 0, (-1,)), ("inner", 0, (-1,)), ("last", 0, (0, 1))]


def test_sources_follow_views_written_in_place_and_concatenation() -> None:
    class Assembled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Linear(4, 2)
            self.right = nn.Linear(4, 2)
            self.last = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = torch.zeros(len(x), 4)
            both[:, :2] = self.left(x)
            both[:, 2:].add_(self.right(x))
            return self.last(torch.cat([both, x[:, :2]], dim=1))

    assert graph(trace(Assembled(), 3, 4))[-1] == ("last", 0, (-1, 0, 1))


def test_inplace_relu_renames_whoever_holds_its_memory() -> None:
    class Preactivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.relu = nn.ReLU(inplace=True)
            self.second = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x)
            self.relu(hidden)  # the result is dropped: hidden itself now holds the ReLU's output
            return self.second(hidden)

    assert graph(trace(Preactivation(), 3, 4))[-1] == ("second", 0, (1,))


def test_attention_is_one_leaf_and_its_projection_is_never_called() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = trace(layer, 4, 5, 8)
    assert graph(found)[:3] == [("self_attn", 0, (-1,)), ("dropout1", 0, (0,)), ("norm1", 0, (-1, 1))]
    assert graph(found)[-1] == ("norm2", 0, (2, 6))
    assert "self_attn.out_proj" in found.never_called
    attention = next(call for call in found.calls if call.module == "self_attn")
    assert [(output.path, output.shape, output.problem) for output in attention.outputs] == [
        ((0,), (4, 5, 8), None),
        ((1,), None, "returns None, no tensor"),
    ]


def test_weights_used_by_a_function_count_as_weights() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.drop = nn.Dropout()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(functional.linear(self.act(x), self.weight))

    found = trace(Functional(), 2, 4)
    assert found.weighted_sources == (0,)
    assert [(use.module, use.function, use.is_activation) for use in found.functions] == [("", "weight", False)]


def test_a_parametrized_layer_is_one_leaf_with_its_weights() -> None:
    parametrizations = nn.utils.parametrizations
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(5, 2))
    )
    found = trace(model, 3, 6)
    assert graph(found) == [("0", 0, (-1,)), ("1", 0, (0,)), ("2", 0, (1,))]
    assert [layer.type for layer in found.layers] == ["Linear", "ReLU", "Linear"]
    assert found.layers[2].parameters == {
        "bias": "2.bias",
        "parametrizations.weight.original": "2.parametrizations.weight.original",
    }
    assert found.weighted_sources == (-1, 1)
    assert (found.functions, found.never_called) == ((), ())


def test_padding_and_pooling_are_numbers_per_axis() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, (3, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(2, 2, 3, padding="valid"),
        nn.MaxPool2d(2, stride=1),
    )
    same, valid, pool = (layer.configuration for layer in trace(model, 2, 1, 9, 9).layers)
    assert (same["padding"], same["padding_end"], same["dilation"]) == ([1, 3], [1, 3], [1, 2])
    assert valid["padding"] == [0, 0]
    assert (pool["kernel_size"], pool["stride"], pool["padding"]) == ([2, 2], [1, 1], [0, 0])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_same_padding_places_as_torch_does() -> None:
    convolution = nn.Conv1d(1, 1, 4, padding="same", bias=False)
    configuration = trace(nn.Sequential(convolution), 2, 1, 7).layers[0].configuration
    x = torch.randn(2, 1, 7)
    padded = functional.pad(x, (configuration["padding"][0], configuration["padding_end"][0]))
    torch.testing.assert_close(convolution(x), functional.conv1d(padded, convolution.weight))


def test_model_record_is_plain_json() -> None:
    model = Convolution()
    record = describe_model(model, trace(model, 3, 1, 6, 6).layers)
    assert json.loads(json.dumps(record)) == record
    assert record["class"] == "recorder_training.Convolution"
    assert set(record["layers"][0]) == {
        "index", "module", "type", "call", "parameters", "input_shape", "output_shape", "configuration", "sources",
    }  # fmt: skip


def test_tracing_leaves_no_hook_and_no_trace_in_the_model() -> None:
    model = Convolution().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, 3, 1, 6, 6)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_forward_with_mappings_and_a_custom_call() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *, values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(values)}

    found = trace_model(Named(), {"values": torch.randn(3, 4), "labels": torch.zeros(3)}, forward=call_model, samples=3)
    assert (graph(found), found.output_sources) == ([("layer", 0, (-1,))], (0,))


def test_failures_are_one_line_with_the_way_out() -> None:
    with pytest.raises(
        InvalidDataError, match=r"forward pass on the probe failed with RuntimeError.*pass forward="
    ) as error:
        trace(nn.Linear(5, 2), 3, 4)
    assert "\n" not in str(error.value)
    with pytest.raises(InvalidArgumentError, match=r"'weight' is not initialised yet; run one forward pass"):
        trace(nn.LazyLinear(3), 2, 4)
    with pytest.raises(InvalidArgumentError, match=r"'weight' is on the meta device and has no values; load them"):
        trace(nn.Linear(4, 2, device="meta"), 2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
def test_a_pass_that_changes_a_parameter_in_place_is_refused(dtype: torch.dtype) -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.estimate = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.estimate.data[1] = 0
            return self.layer(x)

    with pytest.raises(
        InvalidDataError, match=r"changes the model's parameter 'estimate'.*`if self.training:`"
    ) as error:
        trace(Changing(), 3, 4)
    assert "\n" not in str(error.value)
