"""Site selection: globs, classes, modules, exclusion, defaults, and what a wrong pattern is told."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import zarr
from recorder_training import Convolution, Dropout, LeNet, Shared, make_recorder
from torch import nn
from torch.nn import functional

from dynome_recorder import InvalidArgumentError, InvalidDataError, Probe
from dynome_recorder.capture.probe import call_model
from dynome_recorder.tracing.canary import missing_call, time_forward, trace_model
from dynome_recorder.tracing.sites import Site, select_sites
from dynome_recorder.tracing.unhookable import list_unhookable

IMAGES = (3, 1, 6, 6)


def select(model: nn.Module, patterns=None, shape: tuple[int, ...] = IMAGES) -> list[str]:
    return [site.name for site in sites(model, patterns, shape)]


def sites(model: nn.Module, patterns=None, shape: tuple[int, ...] = IMAGES) -> tuple[Site, ...]:
    trace = trace_model(model, torch.randn(*shape), forward=call_model, samples=shape[0])
    return select_sites(model, patterns, trace=trace)


def test_default_is_every_activation_with_one_site_per_call() -> None:
    assert select(Dropout()) == ["2", "5"]
    assert select(Convolution()) == ["relu", "relu@1"]
    assert select(Shared()) == ["act", "act@1", "act@2"]


def test_default_leaves_out_the_activation_of_the_output() -> None:
    for output in (nn.Sigmoid(), nn.Softmax(1), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3))):
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), output)
        assert select(model, shape=(4, 4)) == ["1"]


def test_default_keeps_a_hidden_activation_that_also_reaches_the_output() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.second = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.act(self.first(x))
            return hidden + self.second(hidden)

    assert select(Skip(), shape=(3, 4)) == ["act"]


def test_default_sees_weights_that_functions_use() -> None:
    class Graph(nn.Module):
        """Two layers whose weight matrices belong to modules that call a dropout, so they are no leaves."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.two = Layer(), nn.ReLU(), Layer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.act(self.one(x)))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.randn(4, 4)), nn.Dropout()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(x @ self.weight)

    assert select(Graph(), shape=(3, 4)) == ["act"]


def test_patterns_name_paths_calls_classes_and_modules() -> None:
    model = Convolution()
    assert select(model, ["conv*"]) == ["conv1", "conv2"]
    assert select(model, ["relu@1"]) == ["relu@1"]
    assert select(model, ["relu@0"]) == ["relu"]
    assert select(model, ["relu@*"]) == ["relu", "relu@1"]
    assert select(model, [nn.BatchNorm2d]) == ["norm1", "norm2"]
    assert select(model, ["Conv2d"]) == ["conv1", "conv2", "projection"]
    assert select(model, [model.projection, "head"]) == ["projection", "head"]


def test_exclusion_holds_wherever_it_stands_and_alone_starts_from_the_default() -> None:
    model = Convolution()
    assert select(model, ["!norm2", "*", "!Conv2d", "!relu@1"]) == ["norm1", "relu", "pool", "head"]
    assert select(model, ["!relu@0"]) == ["relu@1"]


def test_wildcards_match_leaves_and_exact_names_match_containers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(36, 4), nn.ReLU()), nn.Linear(4, 2))
    assert select(model, ["*"]) == ["0", "1.0", "1.1", "2"]
    assert select(model, ["1"]) == ["1"]
    assert select(model, [model[1]]) == ["1"]
    with pytest.raises(InvalidArgumentError, match=r"'\[1\]' matches only modules that call others, such as '1'"):
        select(model, ["[1]"])


def test_shared_module_has_one_site_per_call_and_lists_its_other_names() -> None:
    found = sites(Shared(), ["alias"])
    assert [(site.name, site.module, site.call, site.aliases) for site in found] == [
        ("shared", "shared", 0, ("alias",)),
        ("shared@1", "shared", 1, ("alias",)),
    ]


class Odd(nn.Module):
    """One module of every kind that cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.swap = nn.Flatten(0, 1)
        self.unused = nn.Linear(2, 2)
        self.round = Round()
        self.last = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(x)
        self.round(x)
        self.swap(hidden)
        return self.last(hidden[:, -1])


class Round(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.round().long()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("lst", r"'lst' matches no module; did you mean 'last', 'lstm'\?|did you mean 'lstm', 'last'\?"),
        ("zzzzzz", r"'zzzzzz' matches no module; the modules are 'lstm', 'swap'"),
        ("!zzzzzz", r"'!zzzzzz' matches no module"),
        (nn.GELU, "GELU matches no module; it is none of this model's modules"),
        (nn.Linear(1, 1), "Linear matches no module"),
        (
            "lstm:1.0",
            r"'lstm:1.0', which returns shape \(1, 3, 3\), whose first axis is not the batch's 3 samples",
        ),
        ("lstm:1.7", r"'lstm:1.7' matches no module; did you mean 'lstm"),
        ("swap", r"'swap', which returns shape \(15, 3\), whose first axis is not the batch's 3 samples"),
        ("round", "'round', which returns int64 values, not floating-point ones"),
        ("unused", "'unused', but the forward pass never calls it; name a module around it"),
    ],
)
def test_what_cannot_be_recorded_is_said_with_its_reason(pattern, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text) as error:
        sites(Odd(), ["last", pattern], shape=(3, 5, 4))
    assert "\n" not in str(error.value)


def test_a_glob_takes_what_can_be_recorded() -> None:
    assert select(Odd(), ["*"], shape=(3, 5, 4)) == ["lstm:0", "last"]


def test_functional_activations_are_the_reason_when_nothing_is_left() -> None:
    text = r"calls relu as functions, which no hook sees.*sites=\['conv1', 'conv2', 'fc1', 'fc2'\]"
    with pytest.raises(InvalidArgumentError, match=text):
        sites(LeNet(), shape=(2, 3, 32, 32))
    with pytest.raises(InvalidArgumentError, match="none is called on the way to a weight"):
        sites(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))


def test_nothing_left_after_exclusion_raises() -> None:
    with pytest.raises(InvalidArgumentError, match="the exclusions leave no site"):
        sites(Dropout(), ["2", "!2"])


@pytest.mark.parametrize("patterns", ["relu", nn.ReLU, [3], [int]])
def test_patterns_of_the_wrong_kind_raise(patterns) -> None:
    with pytest.raises(InvalidArgumentError, match="pattern"):
        sites(Dropout(), patterns)


def test_softmax_inside_attention_is_no_default_site() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.softmax, self.act, self.last = nn.Linear(4, 4), nn.Softmax(-1), nn.GELU(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.softmax(self.mix(x))
            return self.last(self.act(scores * functional.normalize(x)))

    assert select(Attention(), shape=(3, 4)) == ["act"]


def test_a_parametrized_layer_is_a_site_and_hides_no_activation() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    assert select(model, shape=(3, 6)) == ["1"]
    assert select(model, ["Linear"], shape=(3, 6)) == ["0", "2"]
    assert select(model, ["*"], shape=(3, 6)) == ["0", "1", "2"]
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)))
    assert select(model, shape=(3, 6)) == ["1"]


def test_names_with_an_at_sign_do_not_meet_those_of_second_calls() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.acts = nn.ModuleDict({"a": nn.ReLU(), "a@1": nn.Tanh()})
            self.last = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.acts["a@1"](self.acts["a"](self.acts["a"](x) - 1)))

    assert select(Model(), shape=(3, 6)) == ["acts.a", "acts.a@1", "acts.a@1@0"]


def test_predicates_are_asked_about_every_called_module() -> None:
    model = Convolution()
    assert select(model, [lambda path, module: "norm" in path and module.num_features == 4]) == ["norm1", "norm2"]
    assert select(Shared(), [lambda path, module: path == "alias"]) == ["shared", "shared@1"]

    def broken(path: str, module: nn.Module) -> bool:
        raise KeyError(path)

    with pytest.raises(InvalidArgumentError, match="sites: broken failed on 'conv1' with KeyError: 'conv1'"):
        select(model, [broken])
    with pytest.raises(InvalidArgumentError, match="sites: <lambda> matches no module; it was false for all"):
        select(model, [lambda path, module: False])


class Parts(nn.Module):
    """Two parts, each of which may be compiled or scripted."""

    def __init__(self, wrap=lambda module: module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = wrap(nn.Sequential(nn.Linear(6, 5), nn.ReLU()))
        self.blocks = nn.ModuleList([wrap(nn.Tanh())])
        self.last = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks[0](self.encoder(x)))


def compile_eagerly(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    model.encoder.compile(backend="eager")
    return model


COMPILED = {
    "parts": lambda: Parts(compile_eagerly),
    "whole": lambda: compile_eagerly(Parts()),
    "both": lambda: compile_eagerly(Parts(compile_eagerly)),
    "in place": lambda: compiled_in_place(Parts()),
}


@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.parametrize("ran_before", [False, True])
def test_compiled_models_have_the_names_and_calls_of_plain_ones(kind: str, ran_before: bool) -> None:
    model = COMPILED[kind]()
    if ran_before:
        with torch.no_grad():
            model(torch.randn(3, 6))
    for patterns in (None, ["*"], ["encoder"], ["encoder.0", "blocks.*"], [nn.Linear]):
        assert sites(model, patterns, (3, 6)) == sites(Parts(), patterns, (3, 6))
    with pytest.raises(InvalidArgumentError, match="'_orig_mod' matches no module"):
        select(model, ["_orig_mod"], (3, 6))


@pytest.mark.parametrize("kind", ["parts", "in place"])
def test_a_compiled_model_is_recorded_like_the_plain_one(kind: str, tmp_path) -> None:
    probe, stored = Probe(torch.randn(8, 6), size=8), []
    for number, model in enumerate((Parts(), COMPILED[kind]())):
        with torch.no_grad():
            model(torch.randn(3, 6))
        path = tmp_path / str(number)
        with make_recorder(path, model, probe=probe, sites=["*"], weights=None) as recorder:
            list(recorder.epochs(1))
            recorder.flush()
        store = zarr.open_group(path / "store.zarr", mode="r")
        stored.append({name: array[:] for name, array in store["probe/sites"].members(max_depth=None) if "/" in name})
    assert len(stored[0]) == 4
    for name, values in stored[0].items():
        np.testing.assert_array_equal(stored[1][name], values)


def test_tracing_and_timing_compile_nothing() -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    whole, inside = (
        torch.compile(Parts(), backend=backend),
        Parts(lambda module: torch.compile(module, backend=backend)),
    )
    in_place = Parts()
    in_place.compile(backend=backend)
    for model in (whole, inside, in_place):
        for forward in (call_model, lambda _, x, model=model: model(x)):
            trace_model(model, torch.randn(3, 6), forward=forward, samples=3)
            time_forward(model, torch.randn(3, 6), forward=forward)
    assert graphs == []
    with torch.no_grad():
        inside(torch.randn(3, 6))
    assert len(graphs) == 2, "and training compiles as ever"


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_parts_are_told_and_hide_nothing_else() -> None:
    model = Parts(lambda module: torch.jit.script(module) if isinstance(module, nn.Sequential) else module)
    trace = trace_model(model, torch.randn(3, 6), forward=call_model, samples=3)
    assert dict(list_unhookable(model, trace))["encoder"] == "it is TorchScript, which takes no hooks"
    assert "encoder.0" not in dict(list_unhookable(model, trace))
    assert select(model, None, (3, 6)) == ["blocks.0"]
    with pytest.raises(InvalidArgumentError, match="matches 'encoder', but it is TorchScript, which takes no hooks"):
        select(model, ["encoder"], (3, 6))
    with pytest.raises(InvalidArgumentError, match="it is a part of the TorchScript module 'encoder', where no hook"):
        select(model, ["encoder.1"], (3, 6))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("script", [torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(3, 6))])
def test_a_scripted_model_is_refused(script) -> None:
    with pytest.raises(InvalidArgumentError, match="model: it is TorchScript, whose modules take no hooks; give the"):
        select(script(nn.Sequential(nn.Linear(6, 2))), None, (3, 6))


class Ensemble(nn.Module):
    """Three members that run as one by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(6, 4), nn.ReLU()) for _ in range(3))
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parameters, buffers = torch.func.stack_module_state(list(self.members))

        def run(parameters, buffers):
            return torch.func.functional_call(self.members[0], (parameters, buffers), (x,))

        return self.last(torch.func.vmap(run)(parameters, buffers).mean(0))


def test_parts_inside_torch_func_are_told() -> None:
    model = Ensemble()
    text = r"runs inside torch.func \(vmap, grad\): its values exist only there; record around it"
    with pytest.raises(InvalidArgumentError, match=f"no hidden activation module to record.*'members.0.1' {text}"):
        select(model, None, (3, 6))
    with pytest.raises(InvalidArgumentError, match=text):
        select(model, ["members.0.0"], (3, 6))
    assert select(model, ["*"], (3, 6)) == ["last"]


def test_parameters_that_functional_call_replaces_keep_their_names() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"0.weight": torch.ones(4, 6)}, (x,))

    trace = trace_model(model, torch.randn(3, 6), forward=forward, samples=3)
    assert trace.layers[0].parameters == {"weight": "0.weight", "bias": "0.bias"}


def test_a_pass_that_calls_no_module_is_refused_with_the_way_out() -> None:
    other = nn.Linear(6, 2)
    with pytest.raises(InvalidDataError, match="called no module of the model, so no hook can fire; forward="):
        trace_model(nn.Linear(6, 2), torch.randn(3, 6), forward=lambda model, x: other(x), samples=3)


def test_lazy_buffers_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match=r"buffer '0.running_mean' is not initialised yet; run one"):
        select(nn.Sequential(nn.LazyBatchNorm1d(affine=False)), None, (3, 6))


def test_a_site_that_stops_firing_is_told_by_its_call() -> None:
    site = Site("act@1", "act", 1, "ReLU")
    assert missing_call(site, 1) == (
        "act@1: the forward pass called it 1 times, planned were at least 2; sites must fire in every batch: leave out"
        " what only some batches reach."
    )
    assert "no hook fires where forward= runs a compiled, exported or scripted copy" in missing_call(site, 0)


def test_autocast_decides_the_types_and_changes_no_source() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    batch = torch.randn(3, 6)
    plain = trace_model(model, batch, forward=call_model, samples=3)
    under = trace_model(model, batch, forward=call_model, samples=3, autocast=torch.bfloat16)
    assert {call.output_dtype for call in plain.calls} == {"float32"}
    assert [call.output_dtype for call in under.calls][:3] == ["float32", "bfloat16", "bfloat16"]
    assert [layer.sources for layer in under.layers] == [layer.sources for layer in plain.layers]
    assert under.weighted_sources == plain.weighted_sources
    with torch.autocast("cpu", dtype=torch.bfloat16):  # and the training loop's own does not reach the probe
        inside = trace_model(model, batch, forward=call_model, samples=3)
    assert {call.output_dtype for call in inside.calls} == {"float32"}


def test_casts_of_a_probe_do_not_stay_in_the_cache_of_training() -> None:
    model, batch = nn.Linear(6, 2), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace_model(model, batch, forward=call_model, samples=3, autocast=torch.bfloat16)
        time_forward(model, batch, forward=call_model, autocast=torch.bfloat16)
        model(batch).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_measured_time_is_that_of_the_pass_and_nothing_changes(repeats: int) -> None:
    model = Convolution().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes = []

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        passes.append(any(module.training for module in model.modules()))
        time.sleep(0.02)
        return model(x)

    assert 0.02 <= time_forward(model, torch.randn(*IMAGES), forward=forward, repeats=repeats) < 2
    assert passes == [False] * repeats
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_activations_of_transformers_are_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    class GELUActivation(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.gelu(x)

    model = nn.Sequential(nn.Linear(6, 4), GELUActivation(), nn.Linear(4, 2))
    with pytest.raises(InvalidArgumentError, match="no hidden activation module"):
        select(model, None, (3, 6))
    monkeypatch.setattr(GELUActivation, "__module__", "transformers.activations")
    assert select(model, None, (3, 6)) == ["1"]
