"""The plan: right sizes, honest about what it cannot record, and it writes nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from recorder_training import Convolution, LeNet, Shared, dataset, make_recorder
from torch import nn

from dynome_recorder import InvalidArgumentError, Probe, every
from dynome_recorder.capture.probe import call_model
from dynome_recorder.capture.steps import subset
from dynome_recorder.description import describe_run
from dynome_recorder.plan import WRITE_BYTES_PER_SECOND, Plan
from dynome_recorder.plan_forms import _size, warnings
from dynome_recorder.planning import free_disk, make_plan
from dynome_recorder.storage.run import RunDescription, run_document

if TYPE_CHECKING:
    from pathlib import Path


def test_plan_writes_nothing_and_leaves_the_model(tmp_path: Path) -> None:
    model = Convolution()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    make_recorder(tmp_path / "run", model).plan()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not module._forward_hooks for module in model.modules())


def test_sizes_are_those_of_the_arrays(tmp_path: Path) -> None:
    model = Convolution()
    recorder = make_recorder(
        tmp_path / "run", model, sites=["conv1", "relu*"], dtype="float16", weights=every(epochs=2)
    )
    plan = recorder.plan(epochs=4)
    assert [(layout.site.name, layout.units, layout.dtype) for layout in plan.sites] == [
        ("conv1", 4, "float16"),
        ("relu", 4, "float16"),
        ("relu@1", 4, "float16"),
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert plan.units == 12
    assert plan.bytes_per_snapshot == {"probe": 24 * 12 * 2, "weights": 4 * parameters}
    assert plan.snapshots == {"probe": 5, "weights": 3}
    assert plan.bytes_per_run == 5 * 24 * 12 * 2 + 3 * 4 * parameters
    assert plan.files == 5 * 3 + 3 * len(list(model.parameters()))


def test_lengths_of_no_run_are_refused(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path / "run", Shared())
    for length, text in (({"epochs": "x"}, "epochs must be an integer"), ({"steps_per_epoch": 0}, "steps_per_epoch")):
        with pytest.raises(InvalidArgumentError, match=rf"plan\(\): {text}"):
            recorder.plan(**length)


def test_step_schedules_need_the_length_of_an_epoch(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path / "run", Convolution(), schedule=every(steps=5), weights=None)
    assert recorder.plan(epochs=4).bytes_per_run is None
    assert "unknown until plan(epochs=..., steps_per_epoch=...)" in str(recorder.plan(epochs=4))
    assert recorder.plan(epochs=4, steps_per_epoch=10).snapshots == {"probe": 9}


def test_tied_weights_count_once(tmp_path: Path) -> None:
    plan = make_recorder(tmp_path / "run", Shared()).plan()
    assert {weight.name: weight.aliases for weight in plan.weights}["shared.weight"] == ("alias.weight",)
    assert len(plan.weights) == 6


def test_text_and_html_hold_every_row_and_escape_names(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&[red]", nn.ReLU())
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(getattr(self, "<b>&[red]")(x))

    plan = make_recorder(tmp_path / "run", Holder(), probe=Probe(torch.randn(8, 4), size=8)).plan(epochs=20)
    text = str(plan)
    assert "<b>&[red]" in text
    assert "20 epochs: " in text
    assert "8 of 8 samples, random; every(epochs=1); 4 units, 128 bytes per snapshot" in text
    assert "2 tensors, 10 values" in text
    assert max(map(len, text.splitlines())) <= 110
    page = plan._repr_html_()
    assert "&lt;b&gt;&amp;[red]" in page
    assert "<b>" not in page


def test_what_cannot_be_hooked_is_listed_with_its_reason(tmp_path: Path) -> None:
    lenet = make_recorder(
        tmp_path / "run", LeNet(), sites=["fc*"], probe=Probe(torch.randn(4, 3, 32, 32), size=4)
    ).plan()
    assert lenet.unhookable == (
        ("relu in the model's own forward", "a function, which no hook sees; use a module (function, 4 times)"),
    )
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plan = make_recorder(
        tmp_path / "run", layer, sites=["linear1"], reduction="flatten", probe=Probe(torch.randn(6, 5, 8), size=6)
    ).plan()
    reasons = dict(plan.unhookable)
    assert "MultiheadAttention uses its weights through a function" in reasons["self_attn.out_proj"]
    assert reasons["self_attn:1"] == "returns None, no tensor"
    assert "self_attn.out_proj: MultiheadAttention uses its weights" in str(plan)
    assert "self_attn.out_proj: MultiheadAttention uses" in plan._repr_html_()


def test_unused_layers_and_direct_parameters_are_listed(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
            self.unused = nn.Sequential(nn.Linear(4, 4))
            self.scale = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x @ self.scale

    plan = make_recorder(tmp_path / "run", Mixed(), probe=Probe(torch.randn(6, 4), size=6)).plan()
    assert plan.unhookable == (
        ("unused.0", "the forward pass never calls it"),
        ("scale in the model's own forward", "used directly, not by a module (parameter, once)"),
    )


def test_three_axes_are_refused_in_the_plan_and_named_per_site(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))
    probe = Probe(torch.randn(6, 2, 5), size=6)
    with pytest.raises(InvalidArgumentError, match="'1' returns three axes"):
        make_recorder(tmp_path / "run", model, probe=probe).plan()
    plan = make_recorder(tmp_path / "run", model, probe=probe, reduction={"1": "max"}).plan()
    assert [(layout.units, layout.reduction) for layout in plan.sites] == [(3, "max"), (4, None)]
    with pytest.raises(InvalidArgumentError, match="reduction: 'nope' is no recorded site; the sites are '1', '4'"):
        make_recorder(tmp_path / "run", model, probe=probe, reduction={"nope": "max"}).plan()


def test_free_space_is_asked_where_the_folder_will_be(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet" / "there") > 0


def test_sizes_in_words() -> None:
    assert [_size(n) for n in (12, 1500, 2.5e6, 3e9)] == ["12 bytes", "1.50 kB", "2.50 MB", "3.00 GB"]


def test_totals_use_numpy_free_integers(tmp_path: Path) -> None:
    plan = make_recorder(tmp_path / "run", Convolution()).plan()
    assert not isinstance(plan.bytes_per_run, np.generic)


BATCHES = {"batch_size": 16, "gradients": True, "buffer_bytes": 10_000}


def plan_of(model: nn.Module, path: Path, schedules=None, **options) -> Plan:
    options = {"patterns": None, "reduction": None, "dtype": "native", "epochs": 4, "steps_per_epoch": 10, **options}
    probe = Probe(dataset(), size=24, seed=3, batch_size=10)
    schedules = schedules or {"probe": every(epochs=1), "batches": every(steps=5), "weights": every(epochs=2)}
    return make_plan(path, model, probe=probe, forward=call_model, schedules=schedules, **options)[0]


def test_both_streams_have_sizes_files_and_places_in_the_queue(tmp_path: Path) -> None:
    model = Convolution()
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    row = 2 * 4 * 4  # two calls of one ReLU, 4 channels, float32
    plan = plan_of(model, tmp_path, **BATCHES)
    batches = 16 * (2 * row + 8)  # activations, gradients, and which sample it was
    assert plan.bytes_per_snapshot == {"probe": 24 * row, "batches": batches, "weights": parameters}
    assert plan.snapshots == {"probe": 5, "batches": 9, "weights": 3}, "step 0 counts"
    assert plan.bytes_per_run == 5 * 24 * row + 9 * batches + 3 * parameters
    assert plan.files == 5 * 2 + 9 * (2 * 2 + 1) + 3 * len(plan.weights)
    assert plan.queue_depth == {
        "probe": 10_000 // (24 * row),
        "batches": 10_000 // batches,
        "weights": 10_000 // parameters,
    }
    assert plan_of(model, tmp_path, **{**BATCHES, "gradients": False}).bytes_per_snapshot["batches"] == 16 * (row + 8)


def test_processes_share_the_probe_and_record_their_own_batches(tmp_path: Path) -> None:
    row = 2 * 4 * 4
    plan = plan_of(Convolution(), tmp_path, parts=5, **BATCHES)
    assert plan.bytes_per_snapshot["probe"] == 24 * row
    assert plan.bytes_in_queue["probe"] == 5 * row, "24 samples in 5 parts: at most 5 in one"
    assert plan.bytes_per_snapshot["batches"] == 5 * plan.bytes_in_queue["batches"] == 5 * 16 * (2 * row + 8)
    assert plan.bytes_in_queue["weights"] == plan.bytes_per_snapshot["weights"]
    assert plan.files == 5 * (5 * 2 + 9 * 5) + 3 * len(plan.weights)
    assert plan_of(Convolution(), tmp_path, {"probe": every(epochs=9)}, parts=13).files == 1 * 2 * 12, (
        "parts of 2 samples"
    )
    assert "class-balanced in 5 processes" in str(plan)
    assert "16 samples per step of each in 5 processes" in str(plan)


def test_the_text_says_what_a_user_should_look_at(tmp_path: Path) -> None:
    options = {**BATCHES, "buffer_bytes": 1000, "dtype": "float32", "autocast": torch.bfloat16}
    plan = plan_of(Convolution(), tmp_path, measure=True, **options)
    flat = " ".join(str(plan).split())
    assert plan.autocast == "bfloat16"
    assert {(layout.native_dtype, layout.dtype) for layout in plan.sites} == {("bfloat16", "float32")}
    assert "under autocast to bfloat16; every(epochs=1)" in flat
    assert "batches activations and gradients of 16 samples per step; every(steps=5); 1.15 kB per snapshot" in flat
    assert "queue 1.00 kB hold 1 of probe, 0 of batches, 1 of weights if alone; training waits when it is full" in flat
    assert (
        "warning one snapshot of batches (1.15 kB) is larger than the queue (1.00 kB), and waits until it is empty;"
        " give buffer_bytes=2304, fewer samples or units, or a narrower dtype." in flat
    )
    assert "warning the parameters (" in flat
    assert "per snapshot of probe (forward passes, measured); about" in flat
    assert "to write a snapshot in the background (at 300 MB/s, assumed)" in flat
    assert "a batch has 16 rows for 8 units" not in flat
    assert "note relu: called 2 times in one pass, each call is a site: 'relu', 'relu@1'" in flat
    assert "disk" in flat and "free; enough" in flat
    page = plan._repr_html_()
    assert "<p>Warnings:</p><ul><li>one snapshot of batches (1.15 kB) is larger" in page
    assert "<th>MB per batch</th>" in page
    assert plan.write_seconds["batches"] == plan.bytes_in_queue["batches"] / WRITE_BYTES_PER_SECOND


def test_small_batches_and_small_disks_are_warned_of(tmp_path: Path) -> None:
    plan = plan_of(Convolution(), tmp_path, batch_size=4, gradients=False)
    assert warnings(plan) == [
        "a batch has 4 rows for 8 units: correlations within it are of low rank and noisy; for connectomes prefer the"
        " probe, schedule=every(steps=...)."
    ]
    full = dataclasses.replace(plan, free_bytes=100)
    assert full.fits is False
    assert "the disk has 100 bytes; choose a sparser schedule" in warnings(full)[0]
    assert "100 bytes free; not enough" in str(full)
    assert dataclasses.replace(plan, steps_per_epoch=None).fits is None


@pytest.mark.parametrize(
    ("on_full", "text", "warning"),
    [
        ("thin", "snapshots are taken less often when it is full", "finds no room unless it is empty"),
        ("skip", "a snapshot without room is left out", "finds no room unless it is empty"),
    ],
)
def test_what_happens_when_the_queue_is_full_is_said(on_full: str, text: str, warning: str, tmp_path: Path) -> None:
    plan = plan_of(Convolution(), tmp_path, on_full=on_full, **{**BATCHES, "buffer_bytes": 10})
    assert text in " ".join(str(plan).split())
    assert warning in warnings(plan)[0]


def test_a_plan_measures_only_when_asked(tmp_path: Path) -> None:
    assert plan_of(Convolution(), tmp_path, **BATCHES).forward_seconds is None
    passes = []

    class Slow(Convolution):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            passes.append(len(x))
            time.sleep(0.05)
            return super().forward(x)

    seconds = plan_of(Slow(), tmp_path, parts=2, measure=True, **BATCHES).forward_seconds
    assert passes == [10] * 4
    assert seconds is not None
    assert 0.06 <= seconds < 1, "24 samples are 2.4 batches of 10, in two processes"


def test_reductions_by_name_glob_class_and_module(tmp_path: Path) -> None:
    model = Convolution()
    reduction = {
        "relu@1": "flatten",
        "conv*": "max",
        nn.BatchNorm2d: ["flatten", subset(units=3)],
        model.projection: "max",
    }
    patterns = ["conv*", "norm1", "relu", "projection", "head"]
    sites = plan_of(model, tmp_path, patterns=patterns, reduction=reduction).sites
    assert {layout.site.name: layout.reduction for layout in sites} == {
        "conv1": "max",
        "norm1": "flatten then subset(units=3, seed=0)",
        "relu": "spatial_mean",
        "conv2": "max",
        "projection": "max",
        "relu@1": "flatten",
        "head": None,
    }
    first = plan_of(model, tmp_path, patterns=["conv1"], reduction={"*": "flatten", "conv*": "max"}).sites[0]
    assert first.reduction == "flatten", "the first key that matches counts"
    exact = plan_of(model, tmp_path, patterns=["conv1"], reduction={"*": "flatten", "conv1": "max"}).sites[0]
    assert exact.reduction == "max", "but the site's own name before any"
    with pytest.raises(InvalidArgumentError, match="reduction: Tanh is no recorded site; the sites are 'conv1'"):
        plan_of(model, tmp_path, patterns=["conv1"], reduction={nn.Tanh: "max"})


def test_tokens_and_their_rows_are_shown(tmp_path: Path) -> None:
    plan = plan_of(Convolution(), tmp_path, patterns=["conv1"], reduction="tokens", **BATCHES)
    layout = plan.sites[0]
    assert (layout.rows_per_sample, layout.units) == (4 * 3, 3)
    assert plan.bytes_per_snapshot["probe"] == 24 * 12 * 3 * 4
    assert "(12 rows per sample)" in " ".join(str(plan).split()) or "12 rows" in plan._repr_html_()


def test_the_description_holds_both_streams_in_parts(tmp_path: Path) -> None:
    model, probe = Convolution(), Probe(dataset(), size=23, seed=3, batch_size=10)
    options = {"epochs": 4, "steps_per_epoch": 10, "dtype": "float16", "forward": call_model, "probe": probe}
    schedules = {"probe": every(epochs=1), "batches": every(steps=5)}

    def describe(**more) -> RunDescription:
        plan, trace = make_plan(
            tmp_path,
            model,
            patterns=["conv1", "head"],
            reduction={"conv1": [subset(positions=2), "tokens"], "head": subset(units=3, seed=4)},
            schedules=schedules,
            **options,
            **more,
        )
        return describe_run(plan, trace, model=model, probe=probe, optimizer=None, hyperparameters={})

    found = describe(batch_size=8, gradients=True, parts=4)
    assert (found.batch_size, found.parts) == (8, 4)
    assert {name: (spec.shape, spec.rows) for name, spec in found.sites.items()} == {
        "conv1": ((23 * 2, 3), 6 * 2),
        "head": ((23, 3), 6),
    }
    expected = {"conv1": ((8 * 4 * 2, 3), 8 * 2), "head": ((8 * 4, 3), 8)}
    assert {name: (spec.shape, spec.rows) for name, spec in found.batches.items()} == expected
    assert {name: (spec.shape, spec.rows) for name, spec in found.gradients.items()} == expected
    assert {spec.dtype for spec in [*found.sites.values(), *found.batches.values()]} == {"float16"}
    attributes = found.sites["conv1"].attributes
    assert attributes["reduction"] == "subset(positions=2, seed=0) then tokens"
    assert (attributes["rows_per_sample"], len(attributes["chosen_positions"])) == (2, 2)
    assert len(found.sites["head"].attributes["chosen_units"]) == 3
    assert "chosen_units" not in attributes
    assert json.loads(json.dumps(run_document(found, run_id="x", created=0.0)))["fingerprint"]["batch_size"] == 8

    alone = describe(batch_size=8)
    assert (alone.parts, alone.gradients) == (1, {})
    assert {spec.rows for spec in alone.sites.values()} == {None}
    schedules.pop("batches")
    without = describe()
    assert (without.batches, without.gradients, without.batch_size) == ({}, {}, None)
