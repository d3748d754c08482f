"""Record a training run of your own model: copy this file and put your model, data and loop in.

The script can be killed at any moment and called again: it restores the checkpoint that matches the last committed
epoch and goes on from there.

    python record.py RUN [EPOCHS]
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, Recorder, every


def main(run: Path, epochs: int) -> None:
    torch.manual_seed(0)
    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    train, test = TensorDataset(x[:1400].float() / 16, y[:1400]), TensorDataset(x[1400:].float() / 16, y[1400:])
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    recorder = Recorder(
        run,
        model,
        probe=Probe(train, size=500, seed=0),  # fixed: row 7 is the same image in every snapshot
        schedule=every(epochs=1),
        weights=every(epochs=1),
        optimizer=optimizer,
        hyperparameters={"lr": 0.05, "dropout": 0.1},
    )
    print(recorder.plan())
    checkpoint = run.with_name(run.name + "-checkpoints")
    with recorder:
        if recorder.committed_epoch:  # neither a fresh run nor the untrained network alone
            state = torch.load(checkpoint / f"epoch-{recorder.committed_epoch}.pt")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for epoch in recorder.epochs(epochs):
            torch.manual_seed(epoch)  # a resumed run shuffles as the uninterrupted one would have
            model.train()
            for images, labels in DataLoader(train, batch_size=64, shuffle=True):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.step(loss=loss.detach())
            model.eval()
            with torch.no_grad():
                accuracy = (model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean()
            # The checkpoint comes first, so that there is one for whatever epoch ends up committed.
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint / f"epoch-{epoch}.pt"
            )
            recorder.epoch(test_accuracy=accuracy)
            print(f"epoch {epoch}: test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
