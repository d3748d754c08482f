"""Site selection: globs, classes, modules, exclusion, defaults, and what a wrong pattern is told."""

from __future__ import annotations

import pytest
import torch
from recorder_training import Convolution, Dropout, LeNet, Shared
from torch import nn
from torch.nn import functional

from dynome_recorder import InvalidArgumentError
from dynome_recorder.capture.probe import call_model
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.sites import Site, select_sites

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
