"""Training with the recorder and without it is the same to the last bit, in every situation that people train in."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from works_with import BATCH, DUE, SITUATIONS, Nobody, Recorded, Situation, Watched, Witness, train

from dynome_recorder import InvalidArgumentError, InvalidDataError
from dynome_recorder.capture.batches import gradient_key

if TYPE_CHECKING:
    from pathlib import Path

# What torch itself says where a compiled block feeds the next.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


@functools.cache
def alone(name: str):
    result = train(SITUATIONS[name], Nobody(SITUATIONS[name]))
    torch._dynamo.reset()
    return result


@functools.cache
def witnessed(name: str) -> list[dict[str, torch.Tensor]]:
    """What plain hooks saw at the due steps, of an eager model that runs the same training."""
    witness = Witness(SITUATIONS[name])
    train(SITUATIONS[name], witness)
    return witness.steps[DUE - 1 :: DUE]


def check_same(one, other) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name


def check_recorded(situation: Situation, recorded, seen, *, gradients: bool) -> None:
    assert len(recorded) == len(seen) == 4
    for ours, theirs in zip(recorded, seen, strict=True):
        wanted = {key for site in situation.sites for key in (site, gradient_key(site))[: 1 + gradients]}
        assert ours.keys() == wanted
        for name in wanted:
            assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name


MODES = {
    "probe": {"probe": True, "batches": False, "gradients": False},
    "batches": {"probe": False, "batches": True, "gradients": False},
    "both": {"probe": True, "batches": True, "gradients": False},
    "gradients": {"probe": True, "batches": True, "gradients": True},
}


# Compiling takes most of the time here: "both" says what "batches" would.
MATRIX = [(name, mode) for name in SITUATIONS for mode in MODES if not (mode == "batches" and "compiled" in name)]


@pytest.mark.parametrize(("name", "mode"), MATRIX)
def test_a_recorder(name: str, mode: str, tmp_path: Path) -> None:
    situation = SITUATIONS[name]
    recorded = Recorded(situation, tmp_path / "run", **MODES[mode])
    if mode == "gradients" and not situation.has_gradients:
        with pytest.raises((InvalidArgumentError, InvalidDataError), match=r"compiled model|use_reentrant=False"):
            train(situation, recorded)
        return
    check_same(alone(name), train(situation, recorded))
    if MODES[mode]["batches"]:
        check_recorded(situation, recorded.due, witnessed(name), gradients=MODES[mode]["gradients"])


@pytest.mark.parametrize("name", ["checkpointed, reentrant"])
def test_a_recorder_that_is_stopped_by_what_it_cannot_record_changes_no_bit(name: str, tmp_path: Path) -> None:
    situation = SITUATIONS[name]
    recorded = Recorded(situation, tmp_path / "run", **MODES["gradients"])
    recorded.options["strict"] = False
    with pytest.warns(UserWarning, match="use_reentrant=False"):
        result = train(situation, recorded)
    check_same(alone(name), result)


@pytest.mark.parametrize("mode", ["both", "gradients"])
def test_a_recorder_beside_workers_that_start_anew(mode: str, tmp_path: Path) -> None:
    situation = dataclasses.replace(SITUATIONS["plain"], workers="spawn")
    recorded = Recorded(situation, tmp_path / "run", **MODES[mode])
    check_same(alone("forked workers"), train(situation, recorded))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["batch norm", "shared", "in place"])
def test_generated_kernels(name: str) -> None:
    """Inductor, which needs a C++ compiler: with batches of one size, the graph that records rounds as the other one.

    With several sizes it may not: dynamo makes graphs general when a second size comes, and the one that records is
    made later than the one that does not.
    """
    situation = dataclasses.replace(SITUATIONS[name], prepare=generate, one_size=True)
    plain = train(situation, Nobody(situation))
    torch._dynamo.reset()
    watched = Watched(situation)
    check_same(plain, train(situation, watched))
    assert [{len(values) for values in due.values()} for due in watched.due] == [{BATCH}] * 4
    if name != "in place":  # that one has dropout, which inductor draws from a generator of its own
        seen = Witness(situation)
        train(situation, seen)
        for ours, theirs in zip(watched.due, seen.steps[DUE - 1 :: DUE], strict=True):
            for site in situation.sites:
                torch.testing.assert_close(ours[site], theirs[site], rtol=1e-3, atol=1e-4)


def generate(model: nn.Module) -> nn.Module:
    return torch.compile(model, fullgraph=True, backend="inductor")
