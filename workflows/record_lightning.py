"""Record a training run under Lightning: copy this file and put your module and data in.

The script can be killed at any moment and called again: it goes on from the latest checkpoint, and the recording goes
on where that checkpoint is.

    python record_lightning.py RUN [EPOCHS]
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, every
from dynome_recorder.integrations.lightning import DynomeCallback


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(run: Path, epochs: int) -> None:
    seed_everything(0, verbose=False)
    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    train, test = TensorDataset(x[:1400].float() / 16, y[:1400]), TensorDataset(x[1400:].float() / 16, y[1400:])
    checkpoints = run.with_name(run.name + "-checkpoints")
    latest = max(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="auto",
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            DynomeCallback(
                run,
                probe=Probe(train, size=500, seed=0),  # fixed: row 7 is the same image in every snapshot
                schedule=every(epochs=1),
                weights=every(epochs=1),
                hyperparameters={"lr": 0.05, "dropout": 0.1},
            ),
            # Only a checkpoint that is still there can be continued from: keep more than one.
            ModelCheckpoint(checkpoints, filename="{epoch}", save_top_k=-1),
        ],
    )
    trainer.fit(
        Digits(),
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(test, batch_size=512),
        ckpt_path=latest,
    )
    print(
        f"epoch {trainer.current_epoch}: test accuracy {trainer.callback_metrics.get('test_accuracy', torch.nan):.3f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
