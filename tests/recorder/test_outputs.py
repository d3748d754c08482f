"""Outputs with several tensors: paths, extraction, selection, and what is said of what cannot be recorded."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from recorder_training import make_recorder
from torch import nn

from dynome_recorder import InvalidArgumentError, InvalidDataError, Probe
from dynome_recorder.capture.probe import call_model
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.outputs import extract_output, leaves, path_text
from dynome_recorder.tracing.sites import select_sites, site_name
from dynome_recorder.tracing.unhookable import list_unhookable

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]
    loss: torch.Tensor | None = None


class ModelOutput(collections.OrderedDict):
    """As that of Hugging Face: an ordered mapping that a position reaches too."""

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class Returns(nn.Module):
    """Returns what it is told to make of its input."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor):
        return self.make(x)


class Model(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.block = Returns(make)
        self.last = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.block(x)
        return self.last(x)


def trace(model: nn.Module, *shape: int):
    return trace_model(model, torch.randn(*shape), forward=call_model, samples=shape[0])


def select(model: nn.Module, *patterns, shape=(3, 6)) -> list[str]:
    return [site.name for site in select_sites(model, list(patterns), trace=trace(model, *shape))]


TREES = st.recursive(
    st.integers(0, 99),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(-3, 3)), inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Result, inner, inner, inner),
        st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3).map(ModelOutput),
    ),
    max_leaves=12,
)


@given(TREES)
def test_every_leaf_is_found_again_by_its_path_and_paths_have_different_names(tree) -> None:
    found = list(leaves(tree))
    for path, value in found:
        assert extract_output(tree, path) is value
        assert isinstance(value, int) or len(value) == 0
    names = [site_name("block", 0, path) for path, _ in found]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("path", "text"),
    [((1, 0), "1.0"), (("hidden_states", 3), "hidden_states.3"), (("a.b", "0", "x:y"), "'a.b'.'0'.'x:y'"), ((), "")],
)
def test_paths_have_a_text(path, text: str) -> None:
    assert path_text(path) == text


@pytest.mark.parametrize(
    ("output", "path", "text"),
    [
        ((1, 2), (2,), "no '2': a tuple came where 2 was looked for"),
        (None, (0,), "no '0': a NoneType came"),
        ({"a": 1}, ("b",), "no 'b': a dict came"),
        (Pair(1, 2), ("third",), "no 'third': a Pair came"),
        ((1, (2,)), (1, "x"), r"no '1.x': a tuple came where 'x'"),
    ],
)
def test_a_form_that_changed_is_told(output, path, text: str) -> None:
    with pytest.raises(InvalidDataError, match=text):
        extract_output(output, path)


FORMS = {
    "tuple": (lambda x: (x, (x * 2, x * 3)), ["block:0", "block:1.0", "block:1.1"]),
    "list": (lambda x: [x, x * 2], ["block:0", "block:1"]),
    "dict": (lambda x: {"a": x, "b": {"c": x * 2}}, ["block:a", "block:b.c"]),
    "named tuple": (lambda x: Pair(x, x * 2), ["block:first", "block:second"]),
    "dataclass": (lambda x: Result(x, (x, x)), ["block:logits", "block:hidden_states.0", "block:hidden_states.1"]),
    "model output": (lambda x: ModelOutput(logits=x, hidden=(x,)), ["block:logits", "block:hidden.0"]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_tensors_as_sites(form: str) -> None:
    make, names = FORMS[form]
    assert select(Model(make), "block:*") == names
    assert select(Model(make), names[-1]) == names[-1:]
    assert select(Model(make), f"Returns:{names[-1].partition(':')[2]}") == names[-1:]
    assert select(Model(make), f"block@0:{names[0].partition(':')[2]}") == names[:1]


@pytest.mark.parametrize("pattern", ["block", "bl*", Returns, lambda path, module: path == "block"])
def test_several_tensors_are_never_chosen_among_silently(pattern) -> None:
    model = Model(FORMS["tuple"][0])
    text = r"'block' returns 3 tensors; name those to record: 'block:0' \(sample x 6\), 'block:1.0' .* or 'block:\*'"
    with pytest.raises(InvalidArgumentError, match=text):
        select(model, pattern, "last")
    assert select(model, pattern, "!block:1.*") == ["block:0"]
    assert select(model, pattern, "block:1.1", "last") == ["block:1.1", "last"]
    assert select(model, pattern, "!block", "last") == ["last"]
    assert select(model, "block:*", "!block:1.*") == ["block:0"]
    assert select(model, "block:*", "!block", "last") == ["last"]


def test_the_only_tensor_is_taken_and_said(tmp_path) -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
            self.last = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden, _ = self.lstm(x)
            return self.last(self.attention(hidden, hidden, hidden, need_weights=False)[0])

    probe = Probe(torch.randn(6, 5, 4), size=6)
    reduction = {"lstm:*": "last", "*": "tokens"}
    recorder = make_recorder(
        tmp_path / "run", Sequence(), probe=probe, sites=["lstm", "attention"], reduction=reduction
    )
    plan = recorder.plan()
    assert [layout.site.name for layout in plan.sites] == ["lstm:0", "attention:0"]
    assert plan.notes == (
        ("lstm:0", "the only one of 3 outputs that can be recorded"),
        ("attention:0", "the only one of 2 outputs that can be recorded"),
    )
    reasons = dict(plan.unhookable)
    assert reasons["lstm:1.0"].startswith("returns shape (1, 6, 3), whose first axis is not the batch's 6 samples (its")
    assert reasons["attention:1"] == "returns None, no tensor"
    assert "note          lstm:0: the only one of 3" in str(plan)
    assert "<li>lstm:0: the only one of 3" in plan._repr_html_()
    with recorder:
        list(recorder.epochs(1))
    described = read_manifest(tmp_path / "run").run["fingerprint"]["sites"]
    assert described["lstm:0"]["shape"] == [6, 3]
    assert described["attention:0"]["shape"] == [30, 3]
    assert described["lstm:0"]["attributes"]["output"] == [0]


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (lambda x: None, "block", "returns None, no tensor"),
        (lambda x: (), "block", "returns an empty tuple, no tensor"),
        (lambda x: {}, "block", "returns an empty dict, no tensor"),
        (lambda x: object(), "block", "returns an object, no tensor"),
        (lambda x: {(1, 2): x}, "block", "returns a dict with keys that are neither texts nor integers, no tensor"),
        (lambda x: (x, 3), "block:1", "returns an int, no tensor"),
        (lambda x: (x, "text"), "block:1", "returns a str, no tensor"),
        (lambda x: (x, x.long()), "block:1", "returns int64 values, not floating-point ones"),
        (lambda x: (x, x > 0), "block:1", "returns bool values, not floating-point ones"),
        (
            lambda x: (x, torch.fft.fft(x)),
            "block:1",
            "returns complex64 values, not floating-point ones; record its real and imaginary parts, or its magnitude,"
            " by a module",
        ),
        (
            lambda x: (x, x.mean()),
            "block:1",
            "returns shape (), whose first axis is not the batch's 3 samples; only outputs with one row per sample can"
            " be recorded",
        ),
        (lambda x: (x, x.to_sparse()), "block:1", "returns a sparse_coo tensor; only dense ones can be recorded"),
        (
            lambda x: (x, torch.nested.as_nested_tensor([x[0], x[1]], layout=torch.jagged)),
            "block:1",
            "returns a nested tensor; only dense ones can be recorded",
        ),
    ],
)
def test_each_output_that_cannot_be_recorded_is_listed(make, name: str, why: str) -> None:
    model = Model(make)
    assert dict(list_unhookable(model, trace(model, 3, 6)))[name] == why
    with pytest.raises(InvalidArgumentError, match=f"'{name}' matches '{name}', which returns"):
        select(model, name, "last")


def test_outputs_of_recorded_containers_are_listed_too() -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor):
            return self.inner(x), None

    model = nn.Sequential(Container(), Returns(lambda pair: pair[0]))
    found = trace(model, 3, 6)
    assert list_unhookable(model, found) == ()
    assert list_unhookable(model, found, chosen={("0", 0)}) == (("0:1", "returns None, no tensor"),)
    assert [site.name for site in select_sites(model, ["0:0", "*"], trace=found)] == ["0.inner", "0:0", "1"]


def test_the_layer_graph_follows_tensors_through_dataclasses() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.last = Returns(lambda x: Result(x * 2, (x * 3,))), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.block(x).hidden_states[0])

    found = trace(Through(), 3, 6)
    assert [(layer.module, layer.sources) for layer in found.layers] == [("block", (-1,)), ("last", (0,))]


def test_a_path_that_is_not_there_is_answered_with_those_that_are() -> None:
    model = nn.Sequential(nn.Sequential(Returns(lambda x: {"hidden": x, "other": x})), Returns(lambda x: x["hidden"]))
    with pytest.raises(InvalidArgumentError, match="'0:hiden' matches no module; did you mean '0:hidden'"):
        select(model, "0:hiden")


def test_names_with_a_colon_do_not_meet_those_of_outputs() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a": Returns(lambda x: (x, x)), "a:0": nn.ReLU()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["a:0"](self.parts["a"](x)[0])

    assert select(Odd(), "parts.a:*") == ["parts.a:0", "parts.a:1", "parts.a:0@0"]
    assert select(Odd(), "ReLU") == ["parts.a:0@0"]


def test_the_values_are_those_of_the_named_output(tmp_path) -> None:
    model = Model(lambda x: {"twice": 2 * x, "deep": [None, 3 * x]})
    data = torch.randn(8, 6)
    probe = Probe(data, size=8)
    recorder = make_recorder(tmp_path / "run", model, probe=probe, sites=["block:*"])
    with recorder:
        list(recorder.epochs(1))
        recorder.flush()
    manifest = read_manifest(tmp_path / "run")
    assert list(manifest.sites) == ["block:twice", "block:deep.1"]
    store = zarr.open_group(tmp_path / "run" / "store.zarr", mode="r")
    entries = manifest.run["fingerprint"]["sites"]
    for name, factor in (("block:twice", 2), ("block:deep.1", 3)):
        np.testing.assert_array_equal(store[entries[name]["path"]][0], (factor * data[probe.indices]).numpy())
