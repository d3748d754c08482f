"""The training batches' own activations and gradients: right rows, no trace in training, precise errors."""

from __future__ import annotations

import copy
import functools
import io
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Convolution, Dropout, Shared, dataset
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from works_with import Block, Checkpointed, Plain, Recurrent, count_hooks, layouts_of, load, make_slot, save

from dynome_recorder import InvalidArgumentError, InvalidDataError
from dynome_recorder.capture.batch_hooks import InertHook
from dynome_recorder.capture.batches import BatchWatcher, gradient_key
from dynome_recorder.capture.steps import position, subset

# What torch itself says where a compiled block feeds the next.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

X = dataset().tensors[0]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


def watch(model: nn.Module, sites, *, of: nn.Module | None = None, rows: int = 16, gradients: bool = False, **options):
    """Return an attached watcher and a slot for it; ``of`` is the plain model where ``model`` is a wrapper."""
    layouts = layouts_of(of or model, sites, **options)
    watcher = BatchWatcher(model, layouts, gradients=gradients, rows=rows)
    watcher.attach()
    return watcher, make_slot(layouts, rows=rows, gradients=gradients)


def run(model: nn.Module, *batches: torch.Tensor) -> None:
    for batch in batches:
        model(batch).square().sum().backward()


def seeded(kind, *arguments, **options) -> nn.Module:
    torch.manual_seed(0)
    return kind(*arguments, **options)


# Values


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    room=st.integers(0, 5),
    dtype=st.sampled_from(["native", "float32", "float16", "bfloat16"]),
    case=st.sampled_from(
        [
            (Plain, ("1", "2"), None, 1),
            (Convolution, ("conv1", "relu@1"), "spatial_mean", 1),
            (Convolution, ("conv1", "relu@1"), "max", 1),
            (Convolution, ("conv1",), "flatten", 1),
            (Convolution, ("conv1",), [subset(positions=4, seed=3), "flatten", subset(units=7, seed=1)], 1),
            (Recurrent, ("lstm:0",), "tokens", 6),
        ]
    ),
)
def test_passes_lie_row_after_row(sizes, room, dtype, case) -> None:
    kind, sites, reduction, per_sample = case
    model = seeded(kind).eval()  # so that a whole batch and its parts agree
    total = sum(sizes)
    watcher, slot = watch(model, sites, rows=total + room, reduction=reduction, dtype=dtype)
    watcher.arm(slot)
    run(model, *X[:total].split(sizes))
    assert watcher.collect().rows == total
    whole, at_once = watch(model, sites, rows=total, reduction=reduction, dtype=dtype)
    whole.arm(at_once)
    run(model, X[:total])
    whole.collect()
    for site, values in slot.targets.items():
        torch.testing.assert_close(values[: total * per_sample], at_once.targets[site], rtol=2e-2, atol=2e-5)
        assert values[total * per_sample :].isnan().all()


def test_in_place_operations_do_not_reach_the_copy() -> None:
    model = seeded(Dropout).eval()
    watcher, slot = watch(model, ["1", "2"])
    watcher.arm(slot)
    run(model, X[:16])
    watcher.collect()
    linear = model[1](X[:16].flatten(1))
    assert torch.equal(slot.targets["1"], linear) and linear.min() < 0
    assert torch.equal(slot.targets["2"], linear.relu())


def test_infinities_before_a_narrowing_cast_are_counted_where_they_are() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1", "3"], dtype="float16")
    with torch.no_grad():
        model[1].weight.mul_(1e6)
        model[1].bias[0] = torch.inf
    watcher.arm(slot)
    run(model, X[:4], X[4:7])
    extras = watcher.collect().extras
    assert extras["1"].item() == 7 and extras["3"].item() == 0
    assert slot.targets["1"][:7].isinf().sum() > 7
    plain, slot = watch(model, ["1"])
    plain.arm(slot)
    run(model, X[:4])
    assert plain.collect().extras == {}


def test_a_batch_of_another_dtype_than_the_probe_is_cast() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["3"])
    watcher.arm(slot)
    with torch.autocast("cpu", torch.bfloat16):
        output = model[3](model[2](model[1](X[:5].flatten(1))))
        model(X[:5]).sum().backward()
    watcher.collect()
    assert output.dtype is torch.bfloat16 and slot.targets["3"].dtype is torch.float32
    assert torch.equal(slot.targets["3"][:5], output.float())


# What counts as a pass


def test_only_training_counts() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"])
    watcher.arm(slot)
    with torch.no_grad():
        model(X[:16])
    with torch.inference_mode():
        model(X[:16])
    run(model, X[:5])
    with torch.no_grad():
        model(X[:16])
    assert watcher.collect().rows == 5


def test_a_pass_that_failed_is_forgotten() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1", "2"], gradients=True)
    watcher.arm(slot)
    run(model, X[:3])
    model[4].register_forward_pre_hook(fail_on(12))
    with pytest.raises(MemoryError):
        model(X[:12])
    run(model, X[3:9])
    assert watcher.collect().rows == 9
    assert torch.equal(slot.targets["1"][:9], model[1](X[:9].flatten(1)))


def test_a_pass_that_failed_last_is_forgotten_too() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1", "2"], gradients=True)
    watcher.arm(slot)
    run(model, X[:3])
    model[4].register_forward_pre_hook(fail_on(12))
    with pytest.raises(MemoryError):
        model(X[:12])
    assert watcher.collect().rows == 3
    assert slot.targets["1"][3:].isnan().all()


def fail_on(size: int):
    def hook(module, arguments) -> None:
        if len(arguments[0]) == size:
            raise MemoryError("out of memory")

    return hook


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_activations_are_no_second_pass(use_reentrant: bool) -> None:
    model = seeded(Checkpointed, use_reentrant=use_reentrant)
    watcher, slot = watch(model, ["first.2", "second.0"])
    watcher.arm(slot)
    run(model, X[:4], X[4:9])
    assert watcher.collect().rows == 9
    hidden = model.first(X[:9])
    assert torch.equal(slot.targets["first.2"][:9], hidden)
    assert torch.equal(slot.targets["second.0"][:9], model.second[0](hidden))


def test_a_model_that_is_checkpointed_whole_is_recorded_once() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"], rows=16)
    watcher.arm(slot)
    checkpoint(model, X[:9], use_reentrant=False).sum().backward()
    assert watcher.collect().rows == 9
    watcher.arm(slot)
    checkpoint(model, X[:9].clone().requires_grad_(), use_reentrant=True).sum().backward()
    with pytest.raises(InvalidDataError, match=r"no forward pass of the model .* not as one checkpointed whole"):
        watcher.collect()


class Selective(nn.Module):
    """Recomputes but what a policy saves: all means, in the order in which the forward pass calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 4)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.conv(x))
        return torch.tanh(hidden.mean((2, 3)) * 2) + torch.sin(hidden.mean(2)).mean(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def policy(context, operation, *arguments, **named):
            return CheckpointPolicy.MUST_SAVE

        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return self.head(checkpoint(self.inner, x, use_reentrant=False, context_fn=contexts))


@pytest.mark.parametrize("gradients", [False, True])
def test_selective_checkpointing_does_not_count_the_recorder(gradients: bool) -> None:
    model = seeded(Selective)
    run(model, X[:8])
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    watcher, slot = watch(model, ["act"], gradients=gradients, dtype="float16")
    watcher.arm(slot)
    run(model, X[:8])
    watcher.collect()
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(expected, model.parameters()))


# Hooks


def test_an_eager_model_carries_hooks_for_one_step_only() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1", "2"])
    assert count_hooks(model) == 0
    watcher.arm(slot)
    assert count_hooks(model) == 4  # two sites, and the model itself before and after
    run(model, X[:4])
    watcher.collect()
    assert count_hooks(model) == 0
    watcher.arm(slot)
    with pytest.raises(InvalidDataError):
        watcher.collect()
    assert count_hooks(model) == 0
    watcher.arm(slot)
    watcher.arm(slot)
    assert count_hooks(model) == 4
    watcher.disarm()
    watcher.disarm()
    assert count_hooks(model) == 0
    with pytest.raises(InvalidArgumentError, match=r"call arm\(slot\) before its forward pass"):
        watcher.collect()


def test_a_module_that_is_gone_is_told_and_leaves_no_hook() -> None:
    model = seeded(Shared)
    watcher, slot = watch(model, ["first", "act"])
    del model.act
    with pytest.raises(InvalidDataError, match="act: the model has no module 'act' any more"):
        watcher.arm(slot)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("prepare", ["eager", "compiled"])
def test_copies_of_a_model_do_nothing(prepare: str) -> None:
    model = seeded(Shared)
    called = torch.compile(model, backend="aot_eager", fullgraph=True) if prepare == "compiled" else model
    watcher, slot = watch(called, ["act", "shared@1"], of=model)
    watcher.arm(slot)
    run(called, X[:4])
    before = {name: values.clone() for name, values in slot.targets.items()}
    copies = [copy.deepcopy(model), load(save(model))]
    if prepare == "compiled":
        copies.append(copy.deepcopy(called))
    for other in copies:
        with torch.no_grad():
            assert torch.equal(other(X), model(X))
        run(other, X[4:9])
        hooks = [hook for module in other.modules() for hook in module._forward_hooks.values()]
        assert hooks and {type(hook) for hook in hooks} == {InertHook}
    assert all(torch.equal(values, slot.targets[name]) for name, values in before.items())
    assert watcher.collect().rows == 4


def test_a_pickled_model_loads_where_only_the_recorder_is(tmp_path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU())
    watcher, slot = watch(model, ["1"])
    watcher.arm(slot)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch; model = torch.load(sys.argv[1], weights_only=False); print(model(torch.ones(2, 36)).shape);"
        "print('zarr' in sys.modules, 'dynome_analysis' in sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "model.pt"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["torch.Size([2, 4])", "False False"]


def test_weights_that_were_saved_meanwhile_are_plain() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1"])
    names = list(model.state_dict())
    watcher.arm(slot)
    assert list(model.state_dict()) == names
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert list(torch.load(buffer, weights_only=True)) == names


# What goes wrong


def test_more_rows_than_the_batch_size_are_refused_with_the_way_out() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"], rows=8)
    watcher.arm(slot)
    run(model, X[:6], X[:6])
    with pytest.raises(InvalidDataError, match=r"batch_size is 8, but .* hold 12 samples .* under torch\.no_grad\(\)"):
        watcher.collect()


class Fickle(nn.Module):
    """Does what ``mode`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 8)
        self.act = nn.ReLU()
        self.other = nn.ReLU()
        self.head = nn.Linear(8, 4)
        self.mode = "usual"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.first(torch.flatten(x, 1)))
        if self.mode == "shape":
            self.other(hidden[:, :5])
        elif self.mode == "rows":
            self.other(torch.cat([hidden, hidden]))
        elif self.mode == "axes":
            self.other(hidden.sum())
        elif self.mode != "silent":
            hidden = self.other(hidden)
        return self.head(hidden)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("shape", r"other: returned float32 of shape \(6, 5\), planned was float32 of shape \(6, 8\)"),
        ("rows", r"other: returned float32 of shape \(12, 8\), planned was float32 of shape \(6, 8\)"),
        ("axes", r"other: returned float32 of shape \(\), planned was float32 of shape \(6, 8\)"),
        ("silent", r"other: did not fire in the forward pass of a training batch, other was called 0 times"),
    ],
)
def test_a_site_that_changes_is_told(mode: str, text: str) -> None:
    model = seeded(Fickle)
    watcher, slot = watch(model, ["act", "other"])
    model.mode = mode
    watcher.arm(slot)
    run(model, X[:6])
    with pytest.raises(InvalidDataError, match=text):
        watcher.collect()


@pytest.mark.parametrize("mode", ["shape", "rows", "axes", "silent"])
def test_a_site_that_changes_in_a_compiled_model_is_told(mode: str) -> None:
    model = seeded(Fickle)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    watcher, slot = watch(compiled, ["act", "other"], of=model)
    model.mode = mode
    watcher.arm(slot)
    run(compiled, X[:6])
    with pytest.raises(InvalidDataError, match=r"^other: .*(planned was|than planned|did not fire)"):
        watcher.collect()
    model.mode = "usual"
    watcher.arm(slot)
    run(compiled, X[:6])
    assert watcher.collect().rows == 6


class Shrinking(nn.Module):
    """Sums over tokens, as many as come."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x[:, 0]).sum(1))


@pytest.mark.parametrize("prepare", ["eager", "compiled"])
def test_a_token_that_is_not_there_is_told(prepare: str) -> None:
    model = seeded(Shrinking)
    called = torch.compile(model, backend="aot_eager", fullgraph=True) if prepare == "compiled" else model
    watcher, slot = watch(called, ["linear"], of=model, reduction=position(4))
    watcher.arm(slot)
    run(called, X[:6])
    assert watcher.collect().rows == 6
    watcher.arm(slot)
    run(called, X[:6, :, :3])
    with pytest.raises(InvalidDataError, match=r"^linear: returned .* planned"):
        watcher.collect()


class Several(nn.Module):
    """Returns as many outputs as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Repeat()
        self.head = nn.Linear(36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.part(torch.flatten(x, 1))["outputs"][0])


class Repeat(nn.Module):
    count = 2

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"outputs": [x * number for number in range(1, self.count + 1)]}


@pytest.mark.parametrize("prepare", ["eager", "compiled"])
def test_an_output_that_is_no_longer_there_is_told(prepare: str) -> None:
    model = seeded(Several)
    called = torch.compile(model, backend="aot_eager", fullgraph=True) if prepare == "compiled" else model
    watcher, slot = watch(called, ["part:outputs.1"], of=model)
    for count, text in ((2, None), (1, r"^part:outputs\.1: "), (3, None)):
        model.part.count = count
        watcher.arm(slot)
        run(called, X[:6])
        if text is not None:
            with pytest.raises(InvalidDataError, match=text):
                watcher.collect()
        else:
            assert watcher.collect().rows == 6
            assert torch.equal(slot.targets["part:outputs.1"][:6], 2 * X[:6].flatten(1))


def test_an_error_inside_a_hook_is_kept_for_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["1", "2"])
    run(model, X[:6])
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    def broken(*arguments):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(type(watcher._layouts[0]), "apply", broken)
    watcher.arm(slot)
    run(model, X[:6])
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(expected, model.parameters()))
    with pytest.raises(RuntimeError, match="no such luck"):
        watcher.collect()


def test_transformed_and_traced_passes_do_not_break_training() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"])
    watcher.arm(slot)
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, X[:5])
    assert per_sample["1.weight"].shape == (5, 16, 36)
    with pytest.raises((InvalidDataError, RuntimeError)):
        watcher.collect()


def test_several_threads_are_refused() -> None:
    model = seeded(Plain)
    parallel = nn.DataParallel(model)
    watcher, slot = watch(parallel, ["2"], of=model)
    watcher.arm(slot)
    run(parallel, X[:5])
    assert watcher.collect().rows == 5
    parallel.device_ids = [0, 1]
    with pytest.raises(InvalidArgumentError, match="DataParallel, which runs several passes at once"):
        watcher.attach()


# Gradients


def test_the_gradient_of_a_known_loss() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
    watcher, slot = watch(model, ["1", "2", "3"], gradients=True)
    weights = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    watcher.arm(slot)
    (model(X[:7]) * weights).sum().backward()
    watcher.collect()
    behind = weights @ model[3].weight
    hidden = torch.tanh(model[1](X[:7].flatten(1)))
    torch.testing.assert_close(slot.targets[gradient_key("3")][:7], weights)
    torch.testing.assert_close(slot.targets[gradient_key("2")][:7], behind.detach())
    torch.testing.assert_close(slot.targets[gradient_key("1")][:7], (behind * (1 - hidden**2)).detach())
    assert slot.targets[gradient_key("1")][7:].isnan().all()


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), late=st.booleans())
def test_gradients_lie_row_after_row_whenever_backward_runs(sizes, late: bool) -> None:
    model = seeded(Convolution).eval()
    watcher, slot = watch(model, ["relu", "norm2"], gradients=True, rows=20)
    watcher.arm(slot)
    parts = X[: sum(sizes)].split(sizes)
    if late:
        sum(model(part).square().sum() for part in parts).backward()
    else:
        run(model, *parts)
    watcher.collect()
    whole, at_once = watch(model, ["relu", "norm2"], gradients=True, rows=20)
    whole.arm(at_once)
    run(model, X[: sum(sizes)])
    whole.collect()
    for name, values in slot.targets.items():
        torch.testing.assert_close(values, at_once.targets[name], equal_nan=True)


def test_several_backward_passes_add_up() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"], gradients=True)
    watcher.arm(slot)
    output = model(X[:6])
    output.square().sum().backward(retain_graph=True)
    once = slot.targets[gradient_key("2")][:6].clone()
    output.square().sum().mul(3).backward()
    watcher.collect()
    torch.testing.assert_close(slot.targets[gradient_key("2")][:6], 4 * once)


def test_a_gradient_that_comes_after_collect_is_dropped() -> None:
    model = seeded(Plain)
    watcher, slot = watch(model, ["2"], gradients=True)
    watcher.arm(slot)
    loss = model(X[:6]).square().sum()
    loss.backward(retain_graph=True)
    watcher.collect()
    before = slot.targets[gradient_key("2")].clone()
    loss.backward()
    assert torch.equal(slot.targets[gradient_key("2")].nan_to_num(9), before.nan_to_num(9))


def test_the_gradient_before_an_in_place_operation() -> None:
    model = seeded(Dropout).eval()
    watcher, slot = watch(model, ["1", "2"], gradients=True)
    watcher.arm(slot)
    run(model, X[:8])
    watcher.collect()
    linear = slot.targets["1"][:8]
    before, after = slot.targets[gradient_key("1")][:8], slot.targets[gradient_key("2")][:8]
    assert torch.equal(before, after * (linear > 0)) and not torch.equal(before, after)


def test_a_scaled_loss_scales_the_gradient() -> None:
    model = seeded(Plain)
    found = []
    for scale in (1.0, 1024.0):
        watcher, slot = watch(model, ["2"], gradients=True)
        watcher.arm(slot)
        torch.amp.GradScaler("cpu", init_scale=scale).scale(model(X[:4]).square().sum()).backward()
        watcher.collect()
        found.append(slot.targets[gradient_key("2")][:4])
    assert torch.equal(found[0] * 1024, found[1])


class View(nn.Module):
    """A site whose output is a view, changed in place after it; one that the loss leaves out; one without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 8)
        self.view = nn.Flatten()
        self.unused = nn.Tanh()
        self.quiet = nn.Tanh()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.view(self.first(torch.flatten(x, 1)).unflatten(1, (2, 4)))
        hidden.relu_()
        self.unused(hidden)
        with torch.no_grad():
            self.quiet(hidden)
        return self.head(hidden)


@pytest.mark.parametrize(
    ("site", "text"),
    [
        ("view", "gradients: view got none in the backward pass: the loss does not depend on it, or it is a view"),
        ("unused", "gradients: unused got none in the backward pass"),
        ("quiet", r"gradients: quiet has none: .* with gradients off; .* run under torch\.no_grad\(\)"),
    ],
)
def test_a_site_without_gradient_is_told(site: str, text: str) -> None:
    model = seeded(View)
    watcher, slot = watch(model, [site], gradients=True)
    watcher.arm(slot)
    run(model, X[:4])
    with pytest.raises(InvalidDataError, match=text):
        watcher.collect()


def test_a_frozen_site_has_no_gradient() -> None:
    model = seeded(Plain)
    model[1].requires_grad_(False)
    watcher, slot = watch(model, ["2"], gradients=True)
    watcher.arm(slot)
    run(model, X[:4])
    with pytest.raises(InvalidDataError, match="2 has none: its output depends on nothing that requires one"):
        watcher.collect()


def test_reentrant_checkpointing_has_no_gradients_to_record() -> None:
    model = seeded(Checkpointed, use_reentrant=True)
    watcher, slot = watch(model, ["second.2"], gradients=True)
    watcher.arm(slot)
    run(model, X[:4])
    with pytest.raises(InvalidDataError, match=r"second\.2 has none: .* pass use_reentrant=False"):
        watcher.collect()


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_of_a_compiled_model_are_refused_before_training(in_place: bool) -> None:
    model = seeded(Shared)
    layouts = layouts_of(model, ["act"])
    called = torch.compile(model, backend="aot_eager") if not in_place else model
    if in_place:
        model.compile(backend="aot_eager")
    watcher = BatchWatcher(called, layouts, gradients=True, rows=4)
    with pytest.raises(InvalidArgumentError, match="cannot be recorded from a compiled model"):
        watcher.attach()
    assert count_hooks(model) == 0


# Compiled models


def compiled(form: str, model: nn.Module) -> nn.Module:
    if form == "wrapped":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    if form == "in place":
        model.compile(backend="aot_eager", fullgraph=True)
        return model
    if form == "wrapped inside":
        return nn.DataParallel(torch.compile(model, backend="aot_eager", fullgraph=True))
    assert form == "parts"
    model.act.compile(backend="eager")
    model.shared = torch.compile(model.shared, backend="aot_eager", fullgraph=True)
    return model


FORMS = ["wrapped", "in place", "wrapped inside", "parts"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["recorder", "call", "a twin's call"])
def test_a_compiled_model_is_recorded_whenever_the_recorder_comes(form: str, first: str) -> None:
    if first == "a twin's call":  # dynamo keeps graphs per class, and asks not whether there are hooks
        run(compiled(form, seeded(Shared)), X[:8], X[:5])
    model = seeded(Shared)
    layouts = layouts_of(model, ["act", "act@1", "shared@1"])
    called = compiled(form, model)
    if first == "call":
        run(called, X[:8], X[:5])
    watcher, slot = BatchWatcher(called, layouts, gradients=False, rows=16), make_slot(layouts, rows=16)
    watcher.attach()
    for sizes in ((8,), (5,), (3, 6, 2)):
        run(called, X[:7])
        watcher.arm(slot)
        with torch.no_grad():
            called(X)
        run(called, *X[: sum(sizes)].split(sizes))
        assert watcher.collect().rows == sum(sizes)
        twin, other = watch(seeded(Shared), ["act", "act@1", "shared@1"])
        twin.arm(other)
        run(twin._model, *X[: sum(sizes)].split(sizes))
        twin.collect()
        for name, values in slot.targets.items():
            assert torch.equal(values.nan_to_num(9), other.targets[name].nan_to_num(9)), name
    watcher.detach()
    assert count_hooks(called) == 0
    assert "forward" not in vars(model.act)
    run(called, X[:7])


def test_what_a_graph_costs() -> None:
    """Unarmed steps run the graphs that there are without a recorder; recording adds one, validation none."""

    def graphs(*, record: bool) -> int:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = seeded(Shared)
        called = compiled("wrapped", model)
        watcher, slot = watch(called, ["act", "act@2"], of=model)
        for number in range(6):
            if record and number % 3 == 2:
                watcher.arm(slot)
            with torch.no_grad():
                called(X[:7])
            run(called, X[:8])
            if record and number % 3 == 2:
                watcher.collect()
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert graphs(record=True) == graphs(record=False) + 1


def test_blocks_that_are_compiled_one_by_one_go_on_sharing_their_graph() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 12), *(Block(12, 12) for _ in range(9))))
    layouts = layouts_of(model, [f"{number}.act" for number in range(2, 11)])
    for block in list(model)[2:]:
        block.compile(backend="aot_eager", fullgraph=True)
    watcher, slot = BatchWatcher(model, layouts, gradients=False, rows=8), make_slot(layouts, rows=8)
    watcher.attach()
    run(model, X[:8])
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    watcher.arm(slot)
    run(model, X[:8])
    assert watcher.collect().rows == 8
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_there_is_room_for_the_graphs_that_record() -> None:
    config = torch._dynamo.config
    with config.patch(recompile_limit=2):
        model = seeded(Shared)
        called = compiled("wrapped", model)
        watcher, slot = watch(called, ["act"], of=model)
        run(called, X[:8], X[:5])  # one graph for this size, one for all
        watcher.arm(slot)
        run(called, X[:8])
        assert watcher.collect().rows == 8
        watcher.detach()
        assert config.recompile_limit == 2


def test_the_plain_model_where_the_compiled_one_is_trained_is_told() -> None:
    model = seeded(Shared)
    called = torch.compile(model, backend="aot_eager", fullgraph=True)
    for x in (X[:8], X[:5]):
        run(called, x)
    watcher, slot = watch(model, ["act"])
    watcher.arm(slot)
    run(called, X[:8])
    with pytest.raises(InvalidDataError, match="give the compiled model to the recorder, and enter it, before"):
        watcher.collect()


def test_a_compiled_training_step_is_told_and_runs_on() -> None:
    losses = []
    for record in (False, True):
        torch._dynamo.reset()
        model = seeded(Shared)

        def step(x, model=model):
            return model(x).square().sum()

        call = torch.compile(step, backend="aot_eager", fullgraph=True)
        watcher, slot = watch(model, ["act"])
        if record:
            watcher.arm(slot)
        for _ in range(2):
            loss = call(X[:8])
            loss.backward()
            losses.append(loss.item())
        if record:
            with pytest.raises(InvalidDataError, match=r"no forward pass of the model .* if it is compiled"):
                watcher.collect()
    assert losses[:2] == losses[2:]


def test_a_model_that_is_compiled_during_training_is_recorded() -> None:
    model = seeded(Shared)
    watcher, slot = watch(model, ["act"])
    run(model, X[:8])
    model.compile(backend="aot_eager", fullgraph=True)
    run(model, X[:8])
    watcher.arm(slot)
    run(model, X[:6])
    assert watcher.collect().rows == 6
    assert torch.equal(slot.targets["act"][:6], torch.relu(model.first(X[:6].flatten(1))))


def test_a_part_that_is_compiled_within_a_step_is_told() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), Block(36, 12), Block(12, 4)))
    watcher, slot = watch(model, ["1.act", "2.act"])
    watcher.arm(slot)
    model[1].compile(backend="aot_eager", fullgraph=True)
    run(model, X[:8])
    with pytest.raises(InvalidDataError, match=r"^1\.act: did not fire"):
        watcher.collect()
    watcher.arm(slot)
    run(model, X[:8])
    assert watcher.collect().rows == 8


@pytest.mark.parametrize("form", ["wrapped", "in place", "part"])
def test_what_cannot_be_traced_with_hooks_is_told_and_runs_on(form: str) -> None:
    """Dynamo takes no side effects within checkpointed activations; with ``fullgraph=True`` it raises."""
    gradients = []
    for record in (False, True):
        torch._dynamo.reset()
        model = seeded(Checkpointed, use_reentrant=False)
        model = nn.Sequential(model, nn.Identity()) if form == "part" else model
        sites = ["0.first.2", "0.second.0"] if form == "part" else ["first.2", "second.0"]
        layouts = layouts_of(model, sites)
        called = compiled(form, model) if form != "part" else model
        if form == "part":
            model[0].compile(backend="aot_eager", fullgraph=True)
        watcher, slot = BatchWatcher(called, layouts, gradients=False, rows=16), make_slot(layouts, rows=16)
        if record:
            watcher.attach()
            watcher.arm(slot)
        torch.manual_seed(3)
        run(called, X[:8], X[8:16])
        if record:
            with pytest.raises(InvalidDataError, match="cannot be traced with its sites recorded"):
                watcher.collect()
            watcher.detach()
        run(called, X[:8])
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("form", ["wrapped", "in place"])
def test_an_error_of_a_compiled_model_is_its_own(form: str) -> None:
    model = seeded(Shared)
    watcher, slot = watch(compiled(form, model), ["act"], of=model)
    watcher.arm(slot)
    with pytest.raises(Exception, match=r"shape|size") as caught:
        watcher._model(X[:, :, :3])
    assert type(caught.value).__module__.startswith(("torch", "builtins"))
    with pytest.raises(InvalidDataError):
        watcher.collect()


def test_an_operation_in_place_does_not_reach_the_copy_in_a_graph() -> None:
    model = seeded(Block, 36, 12).eval()
    called = torch.compile(model, backend="aot_eager", fullgraph=True)
    layouts = layouts_of(model, ["norm", "act"], batch=X[:4].flatten(1))
    watcher, slot = BatchWatcher(called, layouts, gradients=False, rows=8), make_slot(layouts, rows=8)
    watcher.attach()
    watcher.arm(slot)
    run(called, X[:8].flatten(1))
    watcher.collect()
    before = model.norm(model.linear(X[:8].flatten(1)))
    assert torch.equal(slot.targets["norm"], before) and before.min() < 0
    assert torch.equal(slot.targets["act"], before.relu())


def test_a_site_with_a_forward_of_its_own_is_told_where_its_graph_is_older() -> None:
    model = seeded(Shared)
    model.act.forward = torch.relu
    called = compiled("wrapped", model)
    run(called, X[:8])
    watcher, slot = watch(called, ["act"], of=model)
    watcher.arm(slot)
    run(called, X[:8])
    with pytest.raises(InvalidDataError, match="attached after compile: make the recorder, and enter it, before"):
        watcher.collect()
    watcher.detach()
    assert model.act.forward is torch.relu
