"""Connectomes to measure on: independent units, units driven by latent factors, units of a network that was trained."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.connectome.correlation import correlate

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = 1000
KINDS = ("null", "latent", "recorded")


def activations(kind: str, units: int, *, samples: int = SAMPLES) -> NDArray[np.float32]:
    """Return activations (sample, unit) of one of `KINDS`; ``recorded`` is the last recorded epoch."""
    if kind == "null":
        return np.random.default_rng(0).standard_normal((samples, units), dtype=np.float32)
    if kind == "latent":
        return latent_activations(units, samples=samples)
    return recorded_activations(units)[-1]


@cache
def connectome(kind: str, units: int) -> NDArray[np.float32]:
    """Return |correlation| (unit, unit) of `activations`."""
    return correlate(activations(kind, units))[0]


def latent_activations(units: int, *, samples: int = SAMPLES, factors: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """ReLU units driven by a few shared factors: correlations spread as those of trained layers do."""
    generator = np.random.default_rng(seed)
    drive = generator.standard_normal((samples, factors)) @ generator.standard_normal((factors, units))
    return np.maximum(drive + generator.standard_normal((samples, units)), 0).astype(np.float32)


@cache
def recorded_activations(units: int, *, epochs: int = 10) -> NDArray[np.float32]:
    """Train a network of two hidden layers on handwritten digits, record it, and read back what was recorded.

    float32, shape (snapshot, sample, unit): the units of both hidden layers side by side, for the untrained network and
    after each epoch. ReLU leaves some units dead, as in any network.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    import dynome_analysis as dya
    from dynome_recorder import Probe, Recorder

    torch.manual_seed(0)
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    data = torch.utils.data.TensorDataset(images.float() / 16, labels)
    model = nn.Sequential(
        nn.Linear(64, units // 2),
        nn.ReLU(),
        nn.Linear(units // 2, units - units // 2),
        nn.ReLU(),
        nn.Linear(units - units // 2, 10),
    )
    optimizer = torch.optim.Adam(model.parameters())
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
        recorder = Recorder(Path(folder) / "run", model, probe=Probe(data, size=SAMPLES, seed=0))
        with recorder:
            for _ in recorder.epochs(epochs):
                for batch, target in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True):
                    loss = nn.functional.cross_entropy(model(batch), target)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    recorder.step(loss=loss)
                recorder.epoch()
        return dya.open_recording(Path(folder) / "run").activations().to_numpy()
