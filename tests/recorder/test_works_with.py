"""Training with the recorder and without it is the same to the last bit, in every situation that people train in."""

from __future__ import annotations

import functools

import pytest
import torch
from works_with import DUE, SITUATIONS, Nobody, Situation, Watched, Witness, train

from dynome_recorder.capture.batches import gradient_key

# What torch itself says where a compiled block feeds the next.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

WITH_GRADIENTS = [name for name, situation in SITUATIONS.items() if situation.has_gradients]


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


@pytest.mark.parametrize("name", SITUATIONS)
def test_batches(name: str) -> None:
    watched = Watched(SITUATIONS[name])
    check_same(alone(name), train(SITUATIONS[name], watched))
    check_recorded(SITUATIONS[name], watched.due, witnessed(name), gradients=False)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name: str) -> None:
    watched = Watched(SITUATIONS[name], gradients=True)
    check_same(alone(name), train(SITUATIONS[name], watched))
    check_recorded(SITUATIONS[name], watched.due, witnessed(name), gradients=True)
