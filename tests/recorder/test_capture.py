"""One run of the probe: right values, an untouched model, no hook left, honest health counts."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Convolution, Counting, Dropout, Shared, dataset
from torch import nn
from torch.utils.data import TensorDataset

from dynome_recorder import InvalidArgumentError, InvalidDataError, Probe
from dynome_recorder.capture.health import count_nonfinite, read_health
from dynome_recorder.capture.parameters import to_host_array
from dynome_recorder.capture.probe import call_model
from dynome_recorder.capture.probing import capture, site_specs
from dynome_recorder.capture.reductions import layout_site
from dynome_recorder.capture.transfer import BufferSpec, SlotPool
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.isolation import preserved_random_state
from dynome_recorder.tracing.sites import Site, select_sites

PROBE = Probe(dataset(), size=24, seed=3, batch_size=10)


class Captured(NamedTuple):
    activations: dict[str, np.ndarray]
    health: dict[str, dict[str, int]]


def run(
    model: nn.Module, plan, *, probe: Probe = PROBE, forward=call_model, rows: slice | None = None, autocast=None
) -> Captured:
    """What a writer thread finds in the slot."""
    start, stop = probe.span(rows)
    slot = SlotPool(0, device=torch.device("cpu")).acquire(site_specs(plan, stop - start), block=True)
    capture(model, plan, probe=probe, forward=forward, slot=slot, rows=rows, autocast=autocast)
    slot.send()
    return Captured(slot.arrays(), read_health(slot))


def take(
    model: nn.Module, patterns=None, *, probe: Probe = PROBE, forward=call_model, reduction=None, dtype="native"
) -> Captured:
    return run(model, layouts(model, patterns, probe, forward, reduction, dtype), probe=probe, forward=forward)


def layouts(model: nn.Module, patterns, probe: Probe = PROBE, forward=call_model, reduction=None, dtype="native"):
    trace = trace_model(model, probe.batches()[0], forward=forward, samples=probe.rows_per_batch()[0])
    calls = {(call.module, call.call): call for call in trace.calls}
    return [
        layout_site(
            site,
            output_shape=calls[site.module, site.call].output_shape[1:],
            native_dtype=calls[site.module, site.call].output_dtype,
            reduction=reduction,
            dtype=dtype,
        )
        for site in select_sites(model, patterns, trace=trace)
    ]


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_values_equal_a_plain_forward_pass_despite_inplace_modules() -> None:
    model = Dropout().train()
    with torch.no_grad():
        reference = copy.deepcopy(model).eval()
        x = dataset().tensors[0][torch.from_numpy(PROBE.indices)]
        linear = reference[1](reference[0](x))
        first = torch.relu(linear)
        second = torch.tanh(reference[4](first))
    found = take(model, ["1", "2", "5"]).activations
    # The linear layer's output is overwritten by the in-place ReLU after it: the copy must be older.
    np.testing.assert_allclose(found["1"], linear.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["2"], first.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["5"], second.numpy(), rtol=1e-5, atol=1e-6)
    assert found["1"].min() < 0


def test_reused_modules_give_each_call_its_own_rows() -> None:
    model = Shared()
    with torch.no_grad():
        x = dataset().tensors[0][torch.from_numpy(PROBE.indices)].flatten(1)
        first = torch.relu(model.first(x))
        second = torch.relu(model.shared(first))
        third = torch.relu(model.shared(second))
    found = take(model).activations
    for name, expected in (("act", first), ("act@1", second), ("act@2", third)):
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Dropout, Convolution, Shared, Counting])
def test_nothing_about_the_model_changes(kind: type[nn.Module]) -> None:
    model = kind().train()
    next(model.children()).eval()  # a mixed mode must come back mixed
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(buffer) for name, buffer in model.named_buffers()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == objects
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    assert hooks_of(model) == 0


def test_hooks_exist_only_during_the_probe_and_only_on_its_sites() -> None:
    model = Dropout()
    seen: list[tuple[int, bool, bool]] = []

    def forward(model: nn.Module, batch) -> torch.Tensor:
        seen.append((hooks_of(model), any(module.training for module in model.modules()), torch.is_grad_enabled()))
        return model(batch[0])

    plan = layouts(model, ["2", "5"])
    run(model, plan, forward=forward)
    assert seen == [(2, False, False)] * 3
    assert hooks_of(model) == 0


def test_evaluation_in_inference_mode_before_or_around_the_probe_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Counting()
    probe = Probe(dataset(), size=24, seed=3, batch_size=10)
    expected = take(model, ["act"], probe=PROBE).activations["act"]
    with torch.inference_mode():
        model(dataset().tensors[0])  # binds a buffer that was made in this mode
        model.mean.zero_()
        calls, before = model.calls, model.calls.clone()
        inside = take(model, ["act"], probe=probe).activations["act"]
        assert torch.is_inference_mode_enabled()
    outside = take(model, ["act"], probe=probe).activations["act"]
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(outside, expected)
    assert model.calls is calls
    assert torch.equal(calls, before)
    assert not model.mean.any()


def test_another_default_device_does_not_take_the_host_arrays() -> None:
    model = Dropout()
    expected = take(model, ["2"]).activations["2"]
    with torch.device("meta"):
        found = take(model, ["2"]).activations["2"]
    np.testing.assert_array_equal(found, expected)


def test_a_failing_pass_leaves_no_hook_and_restores_the_model() -> None:
    model = Dropout().train()
    plan = layouts(model, None)
    torch.manual_seed(1)
    state = torch.get_rng_state()

    def forward(model: nn.Module, batch) -> torch.Tensor:
        model(batch[0])
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(model, plan, probe=PROBE, forward=forward)
    assert hooks_of(model) == 0
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_random_layers_repeat_themselves() -> None:
    model = Counting()
    first = take(model, ["last"]).activations["last"]
    torch.rand(5)
    np.testing.assert_array_equal(take(model, ["last"]).activations["last"], first)


def test_convolutions_are_averaged_unless_told_otherwise() -> None:
    model = Convolution()
    assert take(model, ["conv1"]).activations["conv1"].shape == (24, 4)
    assert take(model, ["conv1"], reduction="flatten").activations["conv1"].shape == (24, 36)
    assert np.all(
        take(model, ["conv1"], reduction="max").activations["conv1"] >= take(model, ["conv1"]).activations["conv1"]
    )


def test_three_axes_demand_a_choice() -> None:
    site = Site("conv", "conv", 0, "Conv1d")
    text = r"'conv' returns three axes, \(sample, 4, 7\).*'max' over the last axis \(4 units\), or 'flatten' \(28"
    with pytest.raises(InvalidArgumentError, match=text):
        layout_site(site, output_shape=(4, 7), native_dtype="float32", reduction=None, dtype="native")
    chosen = layout_site(site, output_shape=(4, 7), native_dtype="float32", reduction="flatten", dtype="native")
    assert chosen.units == 28
    with pytest.raises(
        InvalidArgumentError, match="float8_e4m3fn, which a recording cannot hold; pass dtype='float32'"
    ):
        layout_site(site, output_shape=(4,), native_dtype="float8_e4m3fn", reduction=None, dtype="native")
    with pytest.raises(InvalidArgumentError, match="returns no units"):
        layout_site(site, output_shape=(0,), native_dtype="float32", reduction=None, dtype="native")


@pytest.mark.parametrize(("dtype", "bits"), [("float16", "float16"), ("float32", "float32"), ("bfloat16", "uint16")])
def test_dtypes_are_a_cast_of_the_native_values(dtype: str, bits: str) -> None:
    model = Dropout()
    native = torch.from_numpy(take(model, ["5"]).activations["5"])
    found = take(model, ["5"], dtype=dtype).activations["5"]
    assert found.dtype.name == bits
    expected = native.to(getattr(torch, dtype))
    assert np.array_equal(found.view(np.uint8), expected.contiguous().view(torch.uint8).numpy())


def test_bfloat16_models_are_recorded_as_their_bit_pattern() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(torch.bfloat16)
    x = torch.randn(8, 4).to(torch.bfloat16)
    probe = Probe(x, size=8)
    found = take(model, ["1"], probe=probe).activations["1"]
    expected = torch.relu(model[0](x[torch.from_numpy(probe.indices)])).detach()
    decoded = torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(decoded, expected)


class Constant(nn.Module):
    """Returns the given values, whatever comes in."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.values = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.values[: len(x)])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from([0.0, -1.5, 6e4, 7e4, -1e30, 3e38, float("nan"), float("inf"), -float("inf")]),
        min_size=4,
        max_size=4,
    ),
    st.sampled_from(["native", "float16", "bfloat16"]),
)
def test_health_counts_what_went_wrong_and_where(values: list[float], dtype: str) -> None:
    tensor = torch.tensor(values).reshape(4, 1)
    health = take(Constant(tensor), ["inner"], probe=Probe(torch.zeros(4, 1)), dtype=dtype).health
    expected = {
        "nan": sum(np.isnan(values)),
        "inf": sum(np.isinf(values)),
        "overflow": sum(65504 < abs(v) < float("inf") for v in values) if dtype == "float16" else 0,
    }
    assert health.get("inner", {}) == {name: count for name, count in expected.items() if count}


def test_a_site_that_stops_firing_or_changes_its_shape_is_an_error() -> None:
    model = Shared()
    plan = layouts(model, None)
    with pytest.raises(InvalidDataError, match=r"act@1: the forward pass called it 1 times, planned were at least 2"):
        run(model, plan, probe=PROBE, forward=lambda model, batch: model.act(model.first(batch[0].flatten(1))))
    with pytest.raises(InvalidDataError, match=r"act: returned float32 of shape \(5, 10\), planned.*\(10, 10\)"):
        run(model, plan, probe=PROBE, forward=lambda model, batch: model(batch[0][:5]))
    with pytest.raises(InvalidDataError, match=r"act: returned float64 of shape \(10, 10\), planned was float32"):
        run(model.double(), plan, probe=PROBE, forward=lambda model, batch: model(batch[0].double()))
    assert hooks_of(model) == 0


def test_transductive_probe_keeps_the_rows_of_its_nodes() -> None:
    features, adjacency = torch.randn(30, 5), (torch.rand(30, 30) > 0.8).float()
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    probe = Probe(features, size=6, seed=1, transductive=True)

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(adjacency @ x)

    found = take(model, probe=probe, forward=forward).activations["1"]
    expected = torch.relu(model[0](adjacency @ features)).detach()[torch.from_numpy(probe.indices)]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_generators_come_back_after_an_error_too() -> None:
    model = nn.Linear(2, 2)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), preserved_random_state(seed=0, model=model):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_takes_any_data_set_without_labels() -> None:
    found = take(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)),
        probe=Probe(TensorDataset(torch.randn(9, 2)), size=5),
    )
    assert found.activations["1"].shape == (5, 3)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_accelerators_are_seeded_and_restored_device_by_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in backend, so that the path runs on a machine without an accelerator."""
    log: list[tuple] = []

    def entering(place):
        log.append(("enter", place))
        return contextlib.nullcontext()

    backend = SimpleNamespace(
        get_rng_state=lambda *place: log.append(("get", *place)) or "state",
        set_rng_state=lambda state, *place: log.append(("set", state, *place)),
        manual_seed=lambda seed: log.append(("seed", seed)),
        device=entering,
    )
    monkeypatch.setattr(torch, kind, backend)
    place = torch.device(kind, 0)
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=place)], buffers=list)
    with preserved_random_state(seed=5, model=model):
        log.append(("run",))
    if kind == "mps":  # one device: its functions take no place
        assert log == [("get",), ("seed", 5), ("run",), ("set", "state")]
    else:
        assert log == [("get", place), ("enter", place), ("seed", 5), ("run",), ("set", "state", place)]


# Parts of the probe


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 30), st.booleans())
def test_parts_of_the_rows_are_the_rows_of_the_whole(parts: int, batch_size: int, transductive: bool) -> None:
    torch.manual_seed(0)
    model = Dropout()
    probe = Probe(dataset(), size=24, seed=3, batch_size=batch_size, transductive=transductive)
    plan = layouts(model, ["1", "5"], probe)
    size = -(-probe.size // parts)
    pieces = [run(model, plan, probe=probe, rows=slice(part * size, (part + 1) * size)) for part in range(parts)]
    whole = run(model, plan, probe=probe)
    for name, values in whole.activations.items():
        joined = np.concatenate([piece.activations[name] for piece in pieces])
        np.testing.assert_allclose(joined, values, rtol=1e-5, atol=1e-6)
    # A part is the same whoever runs it, whatever was run before.
    again = run(model, plan, probe=probe, rows=slice(0, size))
    np.testing.assert_array_equal(again.activations["5"], pieces[0].activations["5"])


def test_a_part_without_rows_runs_nothing() -> None:
    model = Dropout()
    found = run(model, layouts(model, ["5"]), forward=lambda model, batch: 1 / 0, rows=slice(24, 30))
    assert found.activations["5"].shape == (0, 12)
    assert found.health == {}


def test_a_transductive_part_without_rows_runs_nothing() -> None:
    model, probe = Dropout(), Probe(dataset(), size=24, transductive=True)
    found = run(
        model, layouts(model, ["5"], probe), probe=probe, forward=lambda model, batch: 1 / 0, rows=slice(24, 30)
    )
    assert found.activations["5"].shape == (0, 12)


def test_tokens_have_their_rows_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    data = torch.randn(11, 3, 5)
    probe = Probe(data, size=7, batch_size=2)
    plan = layouts(model, ["1"], probe, reduction="tokens")
    expected = model[1](model[0](data[torch.from_numpy(probe.indices)])).detach()
    whole = run(model, plan, probe=probe).activations["1"]
    np.testing.assert_allclose(whole, expected.reshape(21, 4).numpy(), rtol=1e-5, atol=1e-6)
    part = run(model, plan, probe=probe, rows=slice(2, 5)).activations["1"]
    np.testing.assert_allclose(part, expected[2:5].reshape(9, 4).numpy(), rtol=1e-5, atol=1e-6)


class ChangesItsInput(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ReLU(inplace=True), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(0.5))


def test_a_model_that_changes_its_input_gets_the_same_input_every_time() -> None:
    torch.manual_seed(0)
    model, data = ChangesItsInput(), torch.randn(20, 4)
    probe = Probe(data, size=12, batch_size=5)
    digest = Probe(data, size=12, batch_size=5).hash()
    plan = layouts(model, ["2"], probe)  # the canary changes the first batch
    expected = model[2](model[1](torch.relu(data[torch.from_numpy(probe.indices)] - 0.5))).detach()
    for _ in range(3):
        found = run(model, plan, probe=probe).activations["2"]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert probe.hash() == digest


def test_a_data_set_is_loaded_twice_at_most_where_the_model_changes_its_input() -> None:
    loaded: list[int] = []

    class Slow(TensorDataset):
        def __getitem__(self, index):
            loaded.append(index)
            return self.tensors[0][index]

    probe = Probe(Slow(torch.randn(20, 4)), size=12, batch_size=12)
    model = ChangesItsInput()
    plan = layouts(model, ["2"], probe)
    for _ in range(4):
        run(model, plan, probe=probe)
    assert len(loaded) == 24


def test_a_module_that_is_gone_is_told() -> None:
    model = Dropout()
    plan = layouts(model, ["5"])
    shorter = nn.Sequential(*list(model)[:4])
    with pytest.raises(InvalidDataError, match="5: the model has no module '5' any more"):
        run(shorter, plan)


# Health, counted without torch


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1e-45, -1e-8, 65504.0, -3e38, 1e300]),
            st.sampled_from([float("nan"), float("inf"), -float("inf")]),
            st.floats(width=16),
        ),
        max_size=12,
    ),
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    st.booleans(),
)
def test_counting_bits_is_counting_values(values: list[float], dtype: str, negative_nan: bool) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    if negative_nan and len(values):
        tensor[0] = torch.copysign(torch.tensor(float("nan"), dtype=tensor.dtype), torch.tensor(-1.0))
    found = count_nonfinite(to_host_array(tensor), dtype)
    assert found == (int(tensor.isnan().sum()), int(tensor.isinf().sum()))


def test_health_of_some_sites_and_rows() -> None:
    specs = {"a": BufferSpec((4, 2), "float32"), "b": BufferSpec((4, 2), "float16")}
    slot = SlotPool(0, device=torch.device("cpu")).acquire(specs, block=True)
    slot.targets["a"].copy_(torch.tensor([[1.0, 2.0], [float("inf"), 0.0], [float("nan")] * 2, [float("nan")] * 2]))
    slot.targets["b"].copy_(torch.full((4, 2), float("inf")))
    slot.extras["b"] = torch.tensor(3)
    slot.send()
    assert read_health(slot) == {"a": {"nan": 4, "inf": 1}, "b": {"inf": 3, "overflow": 5}}
    assert read_health(slot, sites=["a"], rows={"a": 2}) == {"a": {"inf": 1}}
    assert read_health(slot, sites=["a"], rows={"a": 1}) == {}
