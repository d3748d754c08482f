"""A probe in the middle of training: whatever is global, and whatever is the model's, is as if it had not run."""

from __future__ import annotations

import collections
import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Convolution, Counting, Dropout, Shared, dataset
from torch import nn

from dynome_recorder import Probe
from dynome_recorder.capture.probe import call_model
from dynome_recorder.capture.probing import capture, site_specs
from dynome_recorder.capture.reductions import layout_site
from dynome_recorder.capture.transfer import SlotPool
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.isolation import undisturbed
from dynome_recorder.tracing.sites import select_sites

PROBE = Probe(dataset(), size=24, seed=3, batch_size=10)
CPU = torch.device("cpu")


def plan_of(model: nn.Module) -> list:
    trace = trace_model(model, PROBE.batches()[0], forward=call_model, samples=10)
    calls = {(call.module, call.call): call for call in trace.calls}
    return [
        layout_site(
            site,
            output_shape=calls[site.module, site.call].output_shape[1:],
            native_dtype=calls[site.module, site.call].output_dtype,
            reduction=None,
            dtype="native",
        )
        for site in select_sites(model, None, trace=trace)
    ]


def probe(model: nn.Module, plan: list, *, forward=call_model, autocast: Any = None) -> dict[str, np.ndarray]:
    slot = SlotPool(0, device=CPU).acquire(site_specs(plan, PROBE.size), block=True)
    capture(model, plan, probe=PROBE, forward=forward, slot=slot, autocast=autocast)
    slot.send()
    return slot.arrays()


def surroundings(model: nn.Module) -> dict[str, Any]:
    """All that a probe could disturb, as something that can be compared."""
    cudnn = torch.backends.cudnn
    return {
        "python": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "gradients are on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cuda"),
        ),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.mkldnn.enabled,
        ),
        "dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "anomalies": torch.is_anomaly_enabled(),
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
        "objects": [id(value) for value in (*model.parameters(), *model.buffers())],
        "values": [value.detach().clone().tolist() for value in (*model.parameters(), *model.buffers())],
        "versions": [value._version for value in model.parameters()],
        "needs gradients": [value.requires_grad for value in model.parameters()],
        "gradients": [None if value.grad is None else value.grad.tolist() for value in model.parameters()],
    }


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from([Dropout, Convolution, Shared, Counting]),
    gradients=st.booleans(),
    inference=st.booleans(),
    outer=st.sampled_from([None, torch.bfloat16, torch.float16]),
    autocast=st.sampled_from([None, torch.bfloat16]),
    deterministic=st.booleans(),
    fails=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_nothing_around_a_probe_changes(
    kind: type[nn.Module],
    gradients: bool,
    inference: bool,
    outer,
    autocast,
    deterministic: bool,
    fails: bool,
    seed: int,
) -> None:
    model = kind().train()
    plan = plan_of(model)
    if autocast is not None:
        plan = plan_under(model, autocast)
    next(model.children()).eval()
    model(dataset().tensors[0][:8]).sum().backward()
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)

    def forward(model: nn.Module, batch: Any) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu") == (autocast is not None)
        # Older versions of torch would hand training the casts that were made here, which have no gradients.
        assert autocast is None or not torch.is_autocast_cache_enabled()
        assert not any(module.training for module in model.modules())
        if fails:
            raise RuntimeError("half way")
        return model(batch[0])

    torch.use_deterministic_algorithms(deterministic)
    try:
        with (
            torch.set_grad_enabled(gradients),
            torch.inference_mode(inference),
            torch.autocast("cpu", dtype=outer or torch.bfloat16, enabled=outer is not None),
        ):
            before = surroundings(model)
            if fails:
                with pytest.raises(RuntimeError, match="half way"):
                    probe(model, plan, forward=forward, autocast=autocast)
            else:
                probe(model, plan, forward=forward, autocast=autocast)
            after = surroundings(model)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in before.items():
        assert after[name] == value, name


def plan_under(model: nn.Module, autocast: torch.dtype) -> list:
    trace = trace_model(model, PROBE.batches()[0], forward=call_model, samples=10, autocast=autocast)
    calls = {(call.module, call.call): call for call in trace.calls}
    return [
        layout_site(
            site,
            output_shape=calls[site.module, site.call].output_shape[1:],
            native_dtype=calls[site.module, site.call].output_dtype,
            reduction=None,
            dtype="native",
        )
        for site in select_sites(model, None, trace=trace)
    ]


@pytest.mark.parametrize("inner", [None, torch.bfloat16])
def test_a_probe_inside_the_autocast_of_training_leaves_its_cast_weights_their_gradients(inner) -> None:
    """Autocast keeps a cast of each weight; one that was made without gradients must not be found by training."""
    torch.manual_seed(0)
    model, x = Dropout().eval(), dataset().tensors[0][:8]
    plan = plan_under(model, inner) if inner else plan_of(model)

    def gradient(recorded: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if recorded:
                probe(model, plan, autocast=inner)
            first = model(x).float().square().sum()
            if recorded:
                probe(model, plan, autocast=inner)
            second = model(2 * x).float().sum()
            (first + second).backward()
        return model[1].weight.grad.clone()

    assert torch.equal(gradient(True), gradient(False))


def test_the_probe_has_its_own_autocast_wherever_it_is_called() -> None:
    torch.manual_seed(0)
    model = Dropout().eval()
    plan, cast = plan_of(model), plan_under(model, torch.bfloat16)
    assert [layout.native_dtype for layout in cast] == ["bfloat16", "bfloat16"]
    x = dataset().tensors[0][torch.from_numpy(PROBE.indices)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.cat([model[2](model[1](model[0](part))) for part in x.split(10)])
        inside, plain = probe(model, cast, autocast=torch.bfloat16), probe(model, plan)
    for found in (inside, probe(model, cast, autocast=torch.bfloat16)):
        assert torch.equal(torch.from_numpy(found["2"]).view(torch.bfloat16), expected)
    np.testing.assert_array_equal(plain["2"], probe(model, plan)["2"])


class Branching(nn.Module):
    """Copies a part of itself in its forward pass, and runs the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = False
        self.first, self.act, self.last = nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.first(x.flatten(1)))
        twin = pickle.loads(pickle.dumps(copy.deepcopy(self.act))) if self.copies else torch.relu
        return self.last(twin(hidden - 1))


def test_copies_of_a_model_that_is_being_probed_record_nothing() -> None:
    model = Branching()
    plan = plan_of(model)
    model.copies = True
    found = probe(model, plan)
    x = dataset().tensors[0][torch.from_numpy(PROBE.indices)].flatten(1)
    with torch.no_grad():
        expected = torch.cat([model.act(model.first(part)) for part in x.split(10)])
    np.testing.assert_array_equal(found["act"], expected.numpy())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.parametrize("form", ["wrapped", "in place", "a part"])
def test_a_compiled_model_is_probed_eagerly_and_keeps_its_graphs(form: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Shared().train()
    expected = probe(model, plan_of(model))
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]):
        compilations.append(len(inputs))
        return graph.forward

    called: nn.Module = model
    if form == "wrapped":
        called = torch.compile(model, backend=backend)
    elif form == "in place":
        model.compile(backend=backend)
    else:
        model.shared = torch.compile(model.shared, backend=backend)
    x = dataset().tensors[0][:8]
    for training in (True, False, True):
        called.train(training)
        called(x).sum().backward()
    graphs = len(compilations)
    assert graphs > 0
    for _ in range(2):
        found = probe(called, plan_of(called))
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
        assert called.training
        called(x).sum().backward()
        assert len(compilations) == graphs, "training is compiled again"
    torch._dynamo.reset()


def test_what_is_never_compiled_never_imports_the_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from torch import nn; from dynome_recorder.tracing.isolation import undisturbed\n"
        "had = 'torch._dynamo' in sys.modules\n"
        "with undisturbed(nn.Linear(2, 2), seed=0): pass\n"
        "assert had or 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_buffers_come_back_as_objects_and_values() -> None:
    model = Counting()
    model(dataset().tensors[0])
    mean, calls = model.mean, model.calls
    before = mean.clone(), calls.clone()
    with undisturbed(model, seed=0):
        model(dataset().tensors[0])
        model.mean = torch.full((8,), 3.0)
        assert not torch.equal(model.calls, before[1])
    assert model.mean is mean
    assert model.calls is calls
    assert torch.equal(mean, before[0])
    assert torch.equal(calls, before[1])


class Stateful(nn.Module):
    """Keeps what the last pass left in every place that a module has for it, and uses it in the next."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.is_initialised = False
        self.calls = 0
        self.hidden = torch.zeros(4)
        self.last: torch.Tensor | None = None
        self.history: list[float] = [1.0]
        self.recent: collections.deque[float] = collections.deque([0.0], maxlen=2)
        self.counts: collections.Counter[str] = collections.Counter(calls=1)
        self.table: dict[str, torch.Tensor] = {}
        self.sizes: set[int] = set()
        self.own = torch.Generator().manual_seed(1)
        self.numpy_own = np.random.default_rng(1)
        self.old_numpy_own = np.random.RandomState(1)
        self.python_own = random.Random(1)
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("swapped", torch.zeros(()))
        self.register_buffer("absent", None)
        self.register_buffer("wide", torch.ones(1).expand(4))
        self.register_buffer("sparse", torch.eye(2).to_sparse())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(torch.flatten(x, 1))
        if not self.is_initialised:  # as normalising flows do
            self.scale.data = (1 / hidden.std(0)).detach()
            self.is_initialised = True
            self.register_buffer("late", hidden.detach().mean(0), persistent=False)
        self.calls += 1
        self.hidden.mul_(0.5).add_(hidden.detach().mean(0))
        self.history.append(0.5)
        self.recent.append(self.numpy_own.random() + self.old_numpy_own.random() + self.python_own.random())
        self.counts["calls"] += 1
        self.sizes.add(self.calls)
        self.total.data += 1
        self.swapped.data = self.swapped + 1
        self.sparse.mul_(2)
        self.table[str(self.calls)] = self.last = hidden.mean(0)
        factor = len(self.history) + sum(self.recent) + self.counts["calls"] + len(self.table) + len(self.sizes)
        noise = torch.randn(4, generator=self.own)
        return (hidden * self.scale + self.hidden + noise + self.late) * factor * self.total + self.swapped * self.calls


def test_what_modules_keep_between_passes_comes_back() -> None:
    torch.manual_seed(0)
    model = Stateful()
    torch.manual_seed(0)
    twin = Stateful()
    inputs = dataset().tensors[0]
    for _ in range(3):
        with undisturbed(model, seed=0):
            model(inputs[:7])
            model(inputs[7:9])
        assert torch.equal(model(inputs), twin(inputs))
    assert [*vars(model)] == [*vars(twin)]
    assert model.recent.maxlen == 2
    for name in ("scale", "total", "swapped", "late", "hidden", "last"):
        assert torch.equal(getattr(model, name), getattr(twin, name)), name
    assert torch.equal(model.sparse.to_dense(), twin.sparse.to_dense())


def test_what_has_not_changed_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer may lie in a file that is mapped to be read: who writes to it ends the process."""
    model = Counting()
    model.register_buffer("steady", torch.ones(4))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    written = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda tensor, values: written.append(tensor))
    with undisturbed(model, seed=0):
        model(dataset().tensors[0])
    assert [tensor.data_ptr() for tensor in written] == [model.mean.data_ptr()]


def test_parts_that_a_pass_makes_are_gone_after_it() -> None:
    model = Dropout()

    def make(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        module.register_module("late", nn.Linear(4, 4))
        module.register_parameter("later", nn.Parameter(torch.ones(4)))
        module.note = "made"

    model.register_forward_hook(make)
    names = [name for name, _ in model.named_parameters()]
    with undisturbed(model, seed=0):
        model(dataset().tensors[0])
        assert len(list(model.parameters())) == len(names) + 3
    assert [name for name, _ in model.named_parameters()] == names
    assert not hasattr(model, "note")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_buffers_of_a_scripted_part_come_back() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bound", torch.zeros(()))
            self.register_buffer("changed", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.bound = self.bound + 1
            self.changed.add_(1)
            return x

    part = torch.jit.script(Part())
    model = nn.Sequential(part, Dropout())
    model(dataset().tensors[0])
    with undisturbed(model, seed=0):
        model(dataset().tensors[0])
    assert (part.bound.item(), part.changed.item(), part.training) == (1, 1, True)
