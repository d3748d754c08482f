"""A small LightningModule, and one training run that tests compare, kill and resume."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, every
from dynome_recorder.integrations.lightning import DynomeCallback

STEPS = 6


def dataset(samples: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 12, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


class Classifier(LightningModule):
    """An MLP with dropout; logs like a tutorial does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 6), nn.Tanh())
        self.head = nn.Linear(6, 2)
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", functional.cross_entropy(logits, batch[1]))
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Stop(Callback):
    """Ends the process, or raises, after so many batches."""

    def __init__(self, batches: int, *, kill: bool) -> None:
        self.left = batches
        self.kill = kill

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.left -= 1
        if self.left == 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("stopped by the test")


def make_callback(path: Path | str, **options) -> DynomeCallback:
    options.setdefault("probe", Probe(dataset(), size=16, seed=3))
    options.setdefault("weights", every(epochs=1))
    options.setdefault("strict", True)
    return DynomeCallback(path, **options)


def fit(
    *callbacks: Callback,
    epochs: int = 2,
    ckpt_path: Path | str | None = None,
    checkpoints: ModelCheckpoint | None = None,
    **options,
) -> tuple[Classifier, Trainer]:
    seed_everything(1, verbose=False)
    module = Classifier()
    arguments = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": checkpoints is not None,
        "callbacks": [*callbacks, *([checkpoints] if checkpoints is not None else [])],
    } | options
    trainer = Trainer(**arguments)
    train = DataLoader(dataset(), batch_size=8, shuffle=True)
    validation = DataLoader(dataset(), batch_size=24)
    trainer.fit(module, train, validation, ckpt_path=ckpt_path)
    return module, trainer


def every_steps(folder: Path | str, steps: int) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)


def every_epoch(folder: Path | str) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)


if __name__ == "__main__":
    # A child process: train on so many devices, and die by SIGKILL after so many batches (0: live).
    root, batches, steps, devices = Path(sys.argv[1]), *map(int, sys.argv[2:])
    saving = every_steps(root / "checkpoints", steps) if steps else every_epoch(root / "checkpoints")
    several = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    fit(make_callback(root / "run"), Stop(batches, kill=True), epochs=4, checkpoints=saving, **several)
