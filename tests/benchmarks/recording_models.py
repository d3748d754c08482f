"""What is recorded: small models of four kinds, slightly trained on images, and the images."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dynome_analysis.datasets import ENVIRONMENT_VARIABLE, load_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SIDE = 28
CLASSES = 10
SAMPLES = 1000
MODELS = ("MLP, 8 x 64", "MLP, 2 x 512", "CNN", "transformer")


@dataclass(frozen=True)
class Subject:
    """A model with what is recorded of it.

    Attributes
    ----------
    model
        Maps images, shape (sample, row * column), to classes; in training mode.
    sites
        Paths of the modules whose outputs are recorded.
    inputs, labels
        The samples, on the model's device.
    axes
        Axes that the hand-made ways average over, so that (sample, unit) is left; per number of axes of an output.
    reduction
        The same as a `Recorder` takes it, per site that needs one.
    """

    name: str
    model: nn.Module
    sites: tuple[str, ...]
    inputs: torch.Tensor
    labels: torch.Tensor
    axes: dict[int, tuple[int, ...]]
    reduction: dict[str, str]

    def reduce(self, output: torch.Tensor) -> torch.Tensor:
        """Average an output to (sample, unit); what needs no average is returned as it is."""
        axes = self.axes.get(output.ndim)
        return output if axes is None else output.mean(dim=axes)

    def train(self, steps: int, *, batch_size: int = 100) -> None:
        """Take a few steps of gradient descent, the same in every process."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        for step in range(steps):
            start = step * batch_size % len(self.inputs)
            rows = slice(start, start + batch_size)
            loss = functional.cross_entropy(self.model(self.inputs[rows]), self.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def forward(self) -> None:
        """Run the samples through the model as a probe does, and record nothing."""
        with evaluating(self.model):
            self.model(self.inputs)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back."""
    model.eval()
    with torch.no_grad():
        yield
    model.train()


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixing, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(sample, token, feature) to the same shape."""
        samples, tokens, width = x.shape
        mixed = self.mixing(self.norm1(x)).view(samples, tokens, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.projection(attended.transpose(1, 2).reshape(samples, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Two blocks on the 16 patches of an image."""

    def __init__(self, *, width: int = 64, patch: int = 7) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(sample, pixel) to (sample, class)."""
        count = SIDE // self.patch
        patches = x.view(-1, count, self.patch, count, self.patch).transpose(2, 3).flatten(3).flatten(1, 2)
        hidden = self.embedding(patches) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(dim=1))


def perceptron(*widths: int) -> nn.Sequential:
    """A ReLU after every layer but the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip((SIDE * SIDE, *widths), (*widths, CLASSES), strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Sequential:
    """Two strided convolutions and a hidden layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU()),
        nn.Linear(64, CLASSES),
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "MLP, 8 x 64": partial(perceptron, *[64] * 8),
    "MLP, 2 x 512": partial(perceptron, 512, 512),
    "MLP, 1 x 1024": partial(perceptron, 1024),
    "CNN": convolutional,
    "transformer": Transformer,
}


def subject(
    name: str, images: NDArray[np.float32], labels: NDArray[np.int64], *, device: str = "cpu", seed: int = 0
) -> Subject:
    """Build one of the models; its sites are the outputs of its activation functions."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().to(device)
    sites = tuple(path for path, module in model.named_modules() if isinstance(module, nn.ReLU | nn.GELU))
    tokens = isinstance(model, Transformer)
    return Subject(
        name=name,
        model=model,
        sites=sites,
        inputs=torch.from_numpy(images).to(device),
        labels=torch.from_numpy(labels).to(device),
        axes={3: (1,)} if tokens else {4: (2, 3)},
        reduction=dict.fromkeys(sites, "mean") if tokens else {},
    )


@cache
def pictures(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """Return so many images (sample, pixel) of 28 x 28 in [0, 1], their labels, and what they are.

    MNIST where the data folder (`DYNOME_DATA`) holds it, else the digits that come with scikit-learn, enlarged; either
    is repeated where it has too few. Nothing is downloaded.
    """
    if _holds_mnist():
        found = load_dataset("mnist")
        images = np.concatenate([found.train.images, found.validation.images])
        labels = np.concatenate([found.train.labels, found.validation.labels])
        kind = "MNIST"
    else:
        split, kind = load_dataset("digits").train, "scikit-learn's digits, enlarged to 28 x 28 and repeated"
        images, labels = split.images.repeat(4, axis=1).repeat(4, axis=2)[:, 2:-2, 2:-2], split.labels
    rows = np.arange(count) % len(labels)
    return images[rows].reshape(count, SIDE * SIDE), labels[rows], kind


def _holds_mnist() -> bool:
    folder = Path(os.environ.get(ENVIRONMENT_VARIABLE) or "")
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return bool(os.environ.get(ENVIRONMENT_VARIABLE)) and all(
        any((place / (name + end)).is_file() for place in (folder / "mnist", folder) for end in (".gz", ""))
        for name in names
    )
