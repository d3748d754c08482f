"""The plan: right sizes, honest about what it cannot record, and it writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from recorder_training import Convolution, LeNet, Shared, make_recorder
from torch import nn

from dynome_recorder import InvalidArgumentError, Probe, every
from dynome_recorder.plan_forms import _size
from dynome_recorder.planning import free_disk

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
