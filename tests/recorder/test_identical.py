"""Training with the recorder and without it gives the same losses and weights, to the last bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from recorder_training import MODELS, train

from dynome_recorder import every

if TYPE_CHECKING:
    from pathlib import Path


def check_same(one, other) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_recording_changes_no_bit(name: str, tmp_path: Path) -> None:
    plain = train(name, epochs=3)
    recorded = train(name, epochs=3, path=tmp_path / "run", schedule=every(epochs=1) | every(steps=2), sites=["*"])
    check_same(plain, recorded)


def test_a_recorder_that_fails_changes_no_bit_either(tmp_path: Path) -> None:
    calls = 0

    def forward(model, batch):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ValueError("no more")
        return model(batch[0])

    with pytest.warns(UserWarning, match="recording stopped at epoch 1: ValueError: no more"):
        recorded = train("Convolution", epochs=3, path=tmp_path / "run", forward=forward, strict=False)
    check_same(train("Convolution", epochs=3), recorded)


def test_the_comparison_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparison fails for a recorder that lets the probe run in training mode."""
    import contextlib

    import dynome_recorder.capture.probing as module

    plain = train("Convolution", epochs=2)
    monkeypatch.setattr(module, "undisturbed", lambda model, seed, autocast=None: contextlib.nullcontext())
    with torch.no_grad(), torch.enable_grad():
        careless = train("Convolution", epochs=2, path=tmp_path / "run")
    with pytest.raises(AssertionError):
        check_same(plain, careless)
