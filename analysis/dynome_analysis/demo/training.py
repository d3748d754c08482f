"""Train one network and record it: the only module of the analysis that imports torch.

Every epoch seeds torch's generator anew, so an epoch depends on the state before it and on its number alone: a run that
is killed and resumed ends with the same bits as one that was not. The checkpoint of an epoch is stored before the epoch
is committed, so whatever epoch turns out to be committed has one.
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from dynome_recorder import Probe, Recorder, every
from dynome_recorder.errors import InvalidDataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dynome_analysis.datasets import Dataset, Split
    from dynome_analysis.demo.settings import RunSettings

__all__ = ["TensorSplits", "train"]

KEPT_CHECKPOINTS = 2  # the committed epoch's, and the next one's where the process died between the two


class TensorSplits:
    """The splits of a data set as tensors with flattened images: train, validation and test."""

    def __init__(self, dataset: Dataset) -> None:
        self.train = _tensors(dataset.train)
        self.validation = _tensors(dataset.validation)
        self.test = _tensors(dataset.test)
        self.classes = len(dataset.classes)


def train(
    run: RunSettings,
    data: TensorSplits,
    *,
    recording: Path,
    checkpoints: Path,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train a network to ``run.epochs`` epochs, recording each; go on where a recording ends.

    Parameters
    ----------
    run : RunSettings
        The network and its training.
    data : TensorSplits
        What it is trained on and judged by.
    recording, checkpoints : Path
        Where the recording is, and the checkpoints to go on from.
    on_epoch : callable
        Called with each epoch once it is committed.

    Raises
    ------
    InvalidDataError
        The recording goes further than the checkpoints.
    StorageError
        A checkpoint cannot be written.

    Notes
    -----
    One thread: the networks are tiny, and one thread also makes sums come out the same everywhere.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = build_model(data.train.tensors[0].shape[1], run.hidden, classes=data.classes, dropout=run.dropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=run.learning_rate, momentum=run.momentum)
        recorder = Recorder(
            recording,
            model,
            sites=[nn.ReLU],
            probe=Probe(data.train, size=run.probe_size, seed=run.seed),
            schedule=every(epochs=1),
            weights=every(epochs=1),
            optimizer=optimizer,
            hyperparameters=run.hyperparameters(),
            strict=True,  # a demo without its recording would be worth nothing
        )
        with recorder:
            committed = recorder.committed_epoch or 0
            if committed:
                _restore(checkpoints, committed, model=model, optimizer=optimizer)
            for epoch in recorder.epochs(run.epochs):
                torch.manual_seed(_epoch_seed(run.seed, epoch))
                train_loss = _train_epoch(model, optimizer, data.train, run.batch_size, recorder)
                metrics = {"train_loss": train_loss}
                for name, split in (("val", data.validation), ("test", data.test)):
                    metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = _evaluate(model, split)
                _save(checkpoints, epoch, model=model, optimizer=optimizer)
                recorder.epoch(**metrics)
                on_epoch(epoch)


def build_model(inputs: int, hidden: tuple[int, ...], *, classes: int, dropout: float) -> nn.Sequential:
    """Return an MLP with named layers: hidden1, relu1, dropout1, ..., output."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(itertools.pairwise((inputs, *hidden)), start=1):
        layers[f"hidden{number}"] = nn.Linear(before, after)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(hidden[-1], classes)
    return nn.Sequential(layers)


def _tensors(split: Split) -> TensorDataset:
    return TensorDataset(torch.from_numpy(split.images).flatten(1), torch.from_numpy(split.labels))


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch  # a prime apart, so that the epochs of two runs do not meet


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorDataset, batch_size: int, recorder: Recorder
) -> float:
    """Train for one pass; returns the mean loss over the images, as they were met."""
    images, labels = data.tensors
    model.train()
    total = torch.zeros(())
    for batch in torch.split(torch.randperm(len(labels)), batch_size):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(batch)
        recorder.step(loss=loss.detach(), lr=optimizer.param_groups[0]["lr"])
    return float(total) / len(labels)


@torch.no_grad()
def _evaluate(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    images, labels = data.tensors
    model.eval()
    scores = model(images)
    loss = nn.functional.cross_entropy(scores, labels)
    return float(loss), float((scores.argmax(1) == labels).double().mean())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:08d}.pt"


def _save(folder: Path, epoch: int, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint of an epoch whole or not at all, then drop those that no resume can need."""
    path = _checkpoint(folder, epoch)
    temporary = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _checkpoint(folder, epoch - KEPT_CHECKPOINTS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} cannot be written ({error.strerror}): make room there or choose another folder"
        ) from error


def _restore(folder: Path, epoch: int, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    path = _checkpoint(folder, epoch)
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InvalidDataError(
            f"the checkpoint {path} {what}, so training cannot go on after epoch {epoch}: start over with --fresh"
        ) from error
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
