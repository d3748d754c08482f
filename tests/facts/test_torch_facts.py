"""What the design takes for granted of torch's modules, hooks, compiler and accelerators, one test per fact.

A test that fails here after an update says that torch changed, not that Dynome is wrong: read what the docstring says
rests on the fact, change that, then the test. Private names are used where the recorder uses them.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator


class Keep:
    """A hook that keeps copies of what a module gave."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.outputs.append(output.detach().clone())


class Count:
    """A hook that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        self.calls += 1


class Net(nn.Module):
    """A small net of a class of its own: what torch's own containers do is not compiled by ``.compile()``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call all three."""
        return self.last(self.act(self.first(x)))


def mlp() -> Net:
    """Return the net with fixed weights."""
    torch.manual_seed(0)
    return Net()


INPUT = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget what was compiled before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# ---- compiled modules


def how_to_compile(model: nn.Module, how: str) -> nn.Module:
    """Compile with the one or the other call; `aot_eager` runs all of the compiler but its code generator."""
    if how == "function":
        return torch.compile(model, backend="aot_eager", fullgraph=True)
    model.compile(backend="aot_eager", fullgraph=True)
    return model


@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.usefixtures("fresh_compiler")
def test_hooks_after_the_first_call_of_a_compiled_module_never_fire(how):
    """So batches of a compiled model need their hooks before the first step, and the probe runs the eager module."""
    model = mlp()
    compiled = how_to_compile(model, how)
    compiled(INPUT)
    count = Count()
    model.act.register_forward_hook(count)
    compiled(INPUT)
    assert count.calls == 0


@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.usefixtures("fresh_compiler")
def test_hooks_before_the_first_call_are_traced_without_a_graph_break(how):
    """`buffer.copy_()` in a hook works under `fullgraph=True`, at every call: the batches stream copies like this."""
    model = mlp()
    target = torch.zeros(3, 5)

    def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        target.copy_(output.detach())

    model.act.register_forward_hook(hook)
    compiled = how_to_compile(model, how)
    for scale in (1.0, -2.0):
        target.zero_()
        compiled(scale * INPUT)
        torch.testing.assert_close(target, torch.relu(model.first(scale * INPUT)))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_dictionary_in_a_hook_is_traced_too():
    """A dict write in a hook that was there before works as well, without a graph break."""
    model, seen = mlp(), {}

    def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        seen["relu"] = output.detach()

    model.act.register_forward_hook(hook)
    torch.compile(model, backend="aot_eager", fullgraph=True)(INPUT)
    torch.testing.assert_close(seen["relu"], torch.relu(model.first(INPUT)))


class Switch:
    """One boolean."""

    def __init__(self) -> None:
        self.on = False


class Switched:
    """A hook that keeps a copy where its switch is on."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.seen: dict[int, torch.Tensor] = {}

    def __call__(self, module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        if self.switch.on:
            self.seen[0] = output.detach().clone()


class Graphs:
    """A backend that runs what was traced, and keeps the size of each graph."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        self.sizes.append(len(graph.graph.nodes))
        return graph.forward


@pytest.mark.usefixtures("fresh_compiler")
def test_the_compiler_guards_on_a_boolean_of_a_hook():
    """Off and on are two graphs, so an ordinary step of a compiled model holds nothing of the hooks (`TracedHook`)."""
    model, switch, graphs = mlp(), Switch(), Graphs()
    hook = Switched(switch)
    model.act.register_forward_hook(hook)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    compiled(INPUT)
    assert hook.seen == {}
    switch.on = True
    compiled(INPUT)
    torch.testing.assert_close(hook.seen.pop(0), torch.relu(model.first(INPUT)))
    switch.on = False
    compiled(INPUT)  # finds its graph of before
    assert hook.seen == {}
    assert len(graphs.sizes) == 2
    torch.compiler.reset()
    bare = Graphs()
    torch.compile(mlp(), backend=bare, fullgraph=True)(INPUT)
    assert bare.sizes == graphs.sizes[:1] < graphs.sizes[1:]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_with_hooks_takes_the_graph_of_another_without():
    """Dynamo looks for hooks on a graph that it has only where `forward` is an attribute: hence `NewGuard`."""
    graphs, switch = Graphs(), Switch()
    switch.on = True
    torch.compile(mlp(), backend=graphs, fullgraph=True)(INPUT)
    fired = {}
    for own_forward in (False, True):
        model, hook = mlp(), Switched(switch)
        model.act.register_forward_hook(hook)
        if own_forward:
            vars(model.act)["forward"] = model.act.forward
        torch.compile(model, backend=graphs, fullgraph=True)(INPUT)
        fired[own_forward] = bool(hook.seen)
    assert fired == {False: False, True: True}


@pytest.mark.usefixtures("fresh_compiler")
def test_the_limit_of_graphs_is_a_setting():
    """At the limit `fullgraph=True` ends the training: `RoomForGraphs` raises it while a compiled model is recorded."""
    from torch._dynamo import config

    assert isinstance(getattr(config, "recompile_limit", None) or config.cache_size_limit, int)
    model, switch, graphs = mlp(), Switch(), Graphs()
    model.act.register_forward_hook(Switched(switch))
    with config.patch(recompile_limit=1):
        compiled = torch.compile(model, backend=graphs, fullgraph=True)
        compiled(INPUT)
        switch.on = True
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            compiled(INPUT)
    compiled(INPUT)
    assert len(graphs.sizes) == 2


@pytest.mark.parametrize("how", ["function", "method", "part"])
@pytest.mark.usefixtures("fresh_compiler")
def test_force_eager_runs_hooks_of_a_compiled_module(how):
    """`set_stance("force_eager")`: the probe has hooks on a compiled model only for its pass, and compiles nothing."""
    model, graphs = mlp(), Graphs()
    compiled: nn.Module = nn.Sequential(nn.Identity(), model)
    if how == "function":
        compiled = torch.compile(model, backend=graphs)
    elif how == "method":
        model.compile(backend=graphs)
        compiled = model
    else:
        model.compile(backend=graphs)
    compiled(INPUT)
    before, count = len(graphs.sizes), Count()
    handle = model.act.register_forward_hook(count)
    with torch.compiler.set_stance("force_eager"):
        compiled(INPUT)
    handle.remove()
    compiled(INPUT)
    assert (before, len(graphs.sizes), count.calls) == (1, 1, 1)


def test_a_compiled_module_is_known_by_what_the_recorder_looks_at():
    """`_orig_mod` behind `torch.compile`, `_compiled_call_impl` behind `.compile()`: so it is found."""
    model = mlp()
    assert torch.compile(model, backend="eager")._orig_mod is model
    assert model._compiled_call_impl is None
    model.compile(backend="eager")
    assert callable(vars(model)["_compiled_call_impl"])
    assert callable(model._call_impl)


# ---- which hooks fire, and what they are given


def test_an_in_place_relu_overwrites_a_capture_that_is_no_copy():
    """A hook copies at once: what it was given may be something else when the forward pass ends."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True))
    held: list[torch.Tensor] = []
    keep = Keep()
    model[0].register_forward_hook(lambda module, arguments, output: held.append(output.detach()))
    model[0].register_forward_hook(keep)
    with torch.no_grad():
        model(INPUT)
        expected = model[0](INPUT)
    assert (expected < 0).any()
    torch.testing.assert_close(keep.outputs[0], expected)
    torch.testing.assert_close(held[0], torch.relu(expected))


def test_a_cast_to_another_dtype_is_a_copy_and_to_the_same_is_none():
    """ "The cast is the copy" holds only where the dtype changes: hooks use `copy_` into a buffer of their own."""
    values = torch.ones(3)
    assert values.to(torch.float32).data_ptr() == values.data_ptr()
    assert values.to(torch.bfloat16).data_ptr() != values.data_ptr()
    target = torch.zeros(3, dtype=torch.float16)
    target.copy_(values)
    values.zero_()
    assert target.tolist() == [1, 1, 1]


class Reused(nn.Module):
    """One module, called twice, registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.alias = self.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it twice."""
        return self.alias(2 * self.act(x))


def test_a_reused_module_fires_once_per_call():
    """A site is (module path, call index), not a module."""
    model, keep = Reused(), Keep()
    model.act.register_forward_hook(keep)
    model(INPUT)
    first, second = keep.outputs
    torch.testing.assert_close(first, torch.tanh(INPUT))
    torch.testing.assert_close(second, torch.tanh(2 * torch.tanh(INPUT)))


def test_aliases_are_listed_only_when_asked_for():
    """`named_modules(remove_duplicate=False)` gives every name, so that patterns for sites see aliases."""
    model = Reused()
    assert [name for name, _ in model.named_modules()] == ["", "act"]
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == ["", "act", "alias"]


def outputs_of(module: nn.Module, *inputs: torch.Tensor) -> Any:
    """Return what the forward hook of a module is given."""
    seen: list[Any] = []
    module.register_forward_hook(lambda module, arguments, output: seen.append(output))
    module(*inputs)
    return seen[0]


def test_recurrent_modules_give_tuples():
    """LSTM: (Tensor, tuple of two); GRU: (Tensor, Tensor): a site names which output it takes."""
    sequence = torch.zeros(2, 3, 4)
    output, state = outputs_of(nn.LSTM(4, 5, batch_first=True), sequence)
    assert (output.shape, type(state), len(state)) == ((2, 3, 5), tuple, 2)
    output, state = outputs_of(nn.GRU(4, 5, batch_first=True), sequence)
    assert (output.shape, state.shape) == ((2, 3, 5), (1, 2, 5))


def test_attention_gives_a_tensor_and_none_and_its_projection_never_fires():
    """`MultiheadAttention` gives (Tensor, None), and of `out_proj` only the weights are used: it is no site."""
    attention, count = nn.MultiheadAttention(4, 2, batch_first=True), Count()
    attention.out_proj.register_forward_hook(count)
    sequence = torch.zeros(2, 3, 4)
    seen: list[Any] = []
    attention.register_forward_hook(lambda module, arguments, output: seen.append(output))
    attention(sequence, sequence, sequence, need_weights=False)
    output, weights = seen[0]
    assert (output.shape, weights, count.calls) == ((2, 3, 4), None, 0)


class Functional(nn.Module):
    """A ReLU module that is there and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 5), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use the function in place of the module."""
        return nn.functional.relu(self.linear(x))


def test_functional_relu_never_fires():
    """A function has no hook: the canary finds a site that stays silent before the first step."""
    model, count = Functional(), Count()
    model.act.register_forward_hook(count)
    model(INPUT)
    assert count.calls == 0


def test_autocast_decides_dtypes_per_operation():
    """Linear gives bfloat16, LayerNorm what it is given (on CUDA float32): a dtype is known only after one forward."""
    layers, dtypes = [nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)], []
    for layer in layers:
        layer.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nn.Sequential(*layers)(INPUT)
    assert dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize(("use_reentrant", "times"), [(True, 2), (False, 1)])
def test_checkpointing_fires_a_hook_twice(use_reentrant, times):
    """The second time inside of backward, where a graph task is running: by that the repeat is known and dropped.

    Without reentrance the repeat stops early, as soon as everything that backward needs is there: the last module of a
    part fires once. So nothing may count on a second time, either.
    """
    model, calls = mlp(), {"act": [], "last": []}
    for name, seen in calls.items():

        def hook(module: nn.Module, arguments: Any, output: torch.Tensor, *, seen: list[Any] = seen) -> None:
            seen.append((torch._C._current_graph_task_id() != -1, torch.is_grad_enabled()))

        model.get_submodule(name).register_forward_hook(hook)
    checkpoint(model, INPUT.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
    assert calls["act"] == [(False, not use_reentrant), (True, True)]
    assert calls["last"] == calls["act"][:times]


# ---- what hooks do to training


def test_an_exception_in_a_hook_kills_training():
    """It comes out of the forward pass: every hook of the batches stream catches and remembers."""
    model = mlp()

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        raise RuntimeError("in the hook")

    model.act.register_forward_hook(hook)
    with pytest.raises(RuntimeError, match="in the hook"):
        model(INPUT)


def test_what_a_hook_returns_replaces_the_output():
    """So a hook of ours returns nothing, ever."""
    model = mlp()
    model.last.register_forward_hook(lambda module, arguments, output: output + 1)
    torch.testing.assert_close(model(INPUT), mlp()(INPUT) + 1)


def test_deepcopy_copies_hooks():
    """An average of weights (EMA) is a deep copy, hooks included: copies of ours are inert."""
    model, count = mlp(), Count()
    model.act.register_forward_hook(count)
    twin = copy.deepcopy(model)
    twin(INPUT)
    (copied,) = twin.act._forward_hooks.values()
    assert (count.calls, copied.calls) == (0, 1)


def test_closures_do_not_pickle_and_classes_of_a_module_do():
    """A model with a closure for a hook cannot be saved: hooks are objects of classes at module level."""
    model = mlp()
    handle = model.act.register_forward_hook(lambda module, arguments, output: None)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(model)
    handle.remove()
    model.act.register_forward_hook(torch.nn.Identity())
    assert len(pickle.loads(pickle.dumps(model)).act._forward_hooks) == 1


def test_a_probe_in_training_mode_changes_batch_norm():
    """Even without gradients: the probe runs in evaluation mode, and buffers are put back."""
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm(INPUT)
    assert norm.running_mean.any()
    assert norm.num_batches_tracked == 1
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(INPUT)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_dropout_advances_the_random_state():
    """In training mode only: the probe runs in evaluation mode, with a random state of its own."""
    dropout = nn.Dropout()
    before = torch.get_rng_state()
    dropout.eval()(INPUT)
    assert torch.equal(torch.get_rng_state(), before)
    dropout.train()(INPUT)
    assert not torch.equal(torch.get_rng_state(), before)


def test_eval_asks_the_model_and_the_flag_does_not():
    """`eval()` may be overridden with side effects (adapters merge there): the probe sets `training` instead."""

    class Loud(nn.Module):
        """Says when it is asked."""

        asked = 0

        def train(self, mode: bool = True) -> Loud:
            """Count."""
            self.asked += 1
            return super().train(mode)

    model = nn.Sequential(Loud(), nn.Dropout(1.0))
    model.eval()
    assert model[0].asked == 1
    model.train()
    for module in model.modules():
        module.training = False
    assert model[0].asked == 2
    torch.testing.assert_close(model[1](INPUT), INPUT)


def test_a_tensor_counts_its_changes_in_place():
    """`_version`: by it the probe knows which buffers a forward pass wrote to, without reading their values."""
    buffer = torch.zeros(3)
    before = buffer._version
    _ = buffer + 1
    assert buffer._version == before
    buffer.add_(1)
    assert buffer._version > before
    with torch.inference_mode():
        made_there = torch.zeros(3)
    assert made_there.is_inference()
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensors do not track version"):
        _ = made_there._version


def test_a_hook_on_a_tensor_gets_the_whole_gradient():
    """`Tensor.register_hook` fires once, with the sum over all uses: the gradients of the batches stream."""
    seen: list[torch.Tensor] = []
    hidden = torch.relu(INPUT.clone().requires_grad_())
    hidden.register_hook(lambda gradient: seen.append(gradient.clone()))
    (2 * hidden.sum() + 3 * hidden.sum()).backward()
    (gradient,) = seen
    torch.testing.assert_close(gradient, torch.full((3, 4), 5.0))


# ---- accelerators


def interface(function: Any, *arguments: Any, **options: Any) -> None:
    """Raise TypeError unless a function takes these arguments."""
    inspect.signature(function).bind(*arguments, **options)


def test_the_interface_of_streams_is_the_one_that_slots_use():
    """capture/backends.py calls these with these arguments; they are there without a device too."""
    device = torch.device("cuda", 0)
    interface(torch.cuda.current_stream, device)
    interface(torch.cuda.stream, None)
    interface(torch.cuda.Stream.__new__, torch.cuda.Stream, device=device)
    interface(torch.cuda.Event.__new__, torch.cuda.Event, blocking=True)
    interface(torch.cuda.Event.record, None, None)
    interface(torch.cuda.Event.synchronize, None)
    interface(torch.cuda.Stream.wait_event, None, None)
    interface(torch.cuda.get_rng_state, device)
    interface(torch.cuda.set_rng_state, torch.get_rng_state(), device)
    for name in ("current_stream", "current_device", "stream", "Stream", "Event", "get_rng_state", "manual_seed"):
        assert callable(getattr(torch.xpu, name)), name
    assert "non_blocking" in (torch.Tensor.copy_.__doc__ or "")
    assert callable(torch.Tensor.record_stream)
    assert "pin_memory" in (torch.empty.__doc__ or "")


def copied_behind_an_event() -> torch.Tensor:
    """Copy ones from the device into pinned memory on a side stream, behind long work; wait for the event.

    Without a device the same tensors travel without streams.
    """
    if not torch.cuda.is_available():
        host = torch.zeros(1 << 20)
        host.copy_(torch.ones(1 << 20), non_blocking=True)  # on a CPU the copy has happened when this returns
        return host
    host = torch.zeros(1 << 20, pin_memory=True)
    device = torch.device("cuda", torch.cuda.current_device())
    side, current = torch.cuda.Stream(device=device), torch.cuda.current_stream(device)
    values = torch.zeros(1 << 20, device=device)
    torch.cuda._sleep(200_000_000)  # cycles, about a tenth of a second
    values.fill_(1)
    ready = torch.cuda.Event(blocking=True)
    ready.record(current)
    side.wait_event(ready)
    with torch.cuda.stream(side):
        host.copy_(values, non_blocking=True)
    values.record_stream(side)
    copied = torch.cuda.Event(blocking=True)
    copied.record(side)
    assert not host.any()  # the copy goes on: who reads now reads what was there before
    copied.synchronize()
    return host


def test_a_copy_to_the_host_needs_an_event_before_it_is_read():
    """On a device the copy returns at once and the host holds old values; on a CPU there is nothing to wait for."""
    assert copied_behind_an_event().all()
