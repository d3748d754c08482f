"""Small models and one training loop, shared by the recorder's tests and by the processes that they start and kill.

The loop leans on every global generator on purpose: a recorder that touches one changes the losses.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, Recorder, every


class Dropout(nn.Sequential):
    """An MLP with dropout and an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(36, 16),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(16, 12),
            nn.Tanh(),
            nn.Linear(12, 4),
        )


class Convolution(nn.Module):
    """Batch norm, a residual block with projection, and one ReLU module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.projection = nn.Conv2d(1, 4, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.norm1(self.conv1(x)))
        hidden = self.norm2(self.conv2(hidden))
        hidden += self.projection(x)
        return self.head(torch.flatten(self.pool(self.relu(hidden)), 1))


class Shared(nn.Module):
    """A linear layer called twice, registered under two names, with its weight tied to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 10)
        self.shared = nn.Linear(10, 10)
        self.alias = self.shared
        self.act = nn.ReLU()
        self.last = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.first(torch.flatten(x, 1)))
        hidden = self.act(self.shared(hidden))
        return self.last(self.act(self.shared(hidden)))


class LeNet(nn.Module):
    """LeNet with functional relu, pooling and flatten, on 3 x 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(functional.relu(self.fc2(x)))


class Counting(nn.Module):
    """Changes a buffer and draws random numbers in every forward pass, evaluation mode or not."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(36, 8)
        self.act = nn.ReLU()
        self.last = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.hidden(torch.flatten(x, 1)))
        self.mean.mul_(0.9).add_(0.1 * hidden.detach().mean(0))
        self.calls = self.calls + 1
        return self.last(functional.dropout(hidden - self.mean, 0.2, training=True))


MODELS = {model.__name__: model for model in (Dropout, Convolution, Shared, Counting)}


def dataset(samples: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(samples, 1, 6, 6, generator=generator)
    labels = (images.sum((1, 2, 3)) > 0).long() + 2 * (images[:, 0, 0, 0] > 0).long()
    return TensorDataset(images, labels)


def make_recorder(path: Path | str, model: nn.Module, **options) -> Recorder:
    options.setdefault("probe", Probe(dataset(), size=24, seed=3, batch_size=10))
    options.setdefault("weights", every(epochs=1))
    options.setdefault("strict", True)
    return Recorder(path, model, **options)


def train(
    name: str, *, epochs: int, path: Path | str | None = None, checkpoints: Path | None = None, on_step=None, **options
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train with the recorder (``path``) or without; returns losses and final state. Continues from a checkpoint."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    model = MODELS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(dataset(), batch_size=16, shuffle=True)
    recorder = make_recorder(path, model, **options) if path is not None else None
    losses: list[float] = []

    def run_epoch(epoch: int) -> None:
        model.train()
        for step, (x, y) in enumerate(loader):
            x = x + 0.01 * np.random.standard_normal() + 0.01 * random.random() + 0.01 * torch.rand(1)
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if recorder is not None:
                recorder.step(loss=loss, lr=0.05)
            if on_step is not None:
                on_step(epoch, step)

    if recorder is None:
        for epoch in range(1, epochs + 1):
            run_epoch(epoch)
        return losses, model.state_dict()
    with recorder:
        if checkpoints is not None and recorder.committed_epoch:
            restore(checkpoints / f"{recorder.committed_epoch}.pt", model, optimizer)
        for epoch in recorder.epochs(epochs):
            run_epoch(epoch)
            if checkpoints is not None:
                save(checkpoints / f"{epoch}.pt", model, optimizer)
            recorder.epoch(mean_loss=sum(losses[-6:]) / 6)
            if checkpoints is not None:
                recorder.flush()  # what is killed later was trained after a commit that a test can rely on
    return losses, model.state_dict()


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "torch": torch.get_rng_state()}
    torch.save(state, path)
    numpy_state = np.random.get_state()
    random_state = [random.getstate(), [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]]]
    path.with_suffix(".json").write_text(json.dumps(random_state))


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch"])
    (version, internal, gauss), numpy_state = json.loads(path.with_suffix(".json").read_text())
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((numpy_state[0], np.array(numpy_state[1], dtype=np.uint32), *numpy_state[2:]))


if __name__ == "__main__":
    # A child process: train, and die by SIGKILL in the given epoch and step.
    name, folder, epochs, fatal_epoch, fatal_step, counter = sys.argv[1:]
    schedule = every(epochs=1) | every(steps=4) if counter == "steps" else every(epochs=1)

    def die(epoch: int, step: int) -> None:
        if (epoch, step) == (int(fatal_epoch), int(fatal_step)):
            os.kill(os.getpid(), signal.SIGKILL)

    root = Path(folder)
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    train(name, epochs=int(epochs), path=root / "run", checkpoints=root / "checkpoints", on_step=die, schedule=schedule)
