"""Models as ``run.json`` describes them, written by hand: what the recorder would have found, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

INPUT = -1


@dataclass
class Description:
    """Layers in call order; by default a layer reads the one before."""

    layers: list[dict[str, Any]] = field(default_factory=list)
    parameters: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        output: Sequence[int],
        *,
        reads: Sequence[int],
        weight: Sequence[int] | None = None,
        sources: Sequence[int] | None = None,
        name: str | None = None,
        call: int = 0,
        **configuration: Any,
    ) -> int:
        """Add a layer and return its index, for others to name in ``sources``."""
        index = len(self.layers)
        name = name or f"{kind.lower()}{index}"
        own: dict[str, str] = {}
        if weight is not None:
            own["weight"] = f"{name}.weight"
            if call == 0:
                self.parameters.append(
                    {"name": own["weight"], "shape": list(weight), "dtype": "float32", "alias_of": None}
                )
        self.layers.append(
            {"index": index, "module": name, "type": kind, "call": call, "parameters": own}
            | {"input_shape": list(reads), "output_shape": list(output), "configuration": dict(configuration)}
            | {"sources": [index - 1] if sources is None else list(sources)}
        )
        return index

    def conv(
        self,
        channels: int,
        size: int,
        *,
        reads: Sequence[int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        sources: Sequence[int] | None = None,
        name: str | None = None,
    ) -> list[int]:
        """Add a convolution over as many spatial axes as ``reads`` has, and return its output shape."""
        axes = len(reads) - 1
        output = [channels, *((side + 2 * padding - size) // stride + 1 for side in reads[1:])]
        self.add(
            f"Conv{axes}d", output, reads=reads, weight=[channels, reads[0] // groups, *[size] * axes],
            sources=sources, name=name, groups=groups, stride=[stride] * axes, padding=[padding] * axes,
        )  # fmt: skip
        return output

    def pool(self, size: int, stride: int, *, reads: Sequence[int]) -> list[int]:
        output = [reads[0], *((side - size) // stride + 1 for side in reads[1:])]
        self.add("MaxPool2d", output, reads=reads, kernel_size=size, stride=stride)
        return output

    def linears(self, widths: Sequence[int], *, reads: Sequence[int]) -> None:
        """Add a flatten where needed, then linear layers with ReLUs between them."""
        features = int(np.prod(reads))
        if len(reads) > 1:
            self.add("Flatten", [features], reads=reads)
        for position, width in enumerate(widths):
            self.add("Linear", [width], reads=[features], weight=[width, features], name=f"fc{position + 1}")
            if position + 1 < len(widths):
                self.add("ReLU", [width], reads=[width])
            features = width

    def model(self) -> dict[str, Any]:
        return {"class": "tests.Model", "layers": self.layers, "parameters": self.parameters}

    def random_weights(self, seed: int, *, dtype: str = "float32", zeros: float = 0.0) -> dict[str, np.ndarray]:
        """Weights for every parameter; ``zeros`` is the share of output channels whose weights are all zero."""
        generator = np.random.default_rng(seed)
        weights = {}
        for parameter in self.parameters:
            weight = generator.normal(size=parameter["shape"])
            weight[generator.random(len(weight)) < zeros] = 0.0
            weights[parameter["name"]] = weight.astype(dtype)
        return weights


def lenet() -> Description:
    """conv 6, 16 of 5x5, each with a 2x2 pool; FC 120, 84, 10; on 32x32x3."""
    description = Description()
    shape = description.pool(2, 2, reads=description.conv(6, 5, reads=[3, 32, 32]))
    shape = description.pool(2, 2, reads=description.conv(16, 5, reads=shape))
    description.linears([120, 84, 10], reads=shape)
    return description


def vgg() -> Description:
    """conv 64, 128, 128, 256 x 4 of 3x3 padding 1, 2x2 pools after 1, 3, 5, 7; FC 128, 128, 10; on 32x32x3."""
    description = Description()
    shape = [3, 32, 32]
    for position, channels in enumerate([64, 128, 128, 256, 256, 256, 256]):
        shape = description.conv(channels, 3, reads=shape, padding=1)
        description.add("ReLU", shape, reads=shape)
        if position % 2 == 0:
            shape = description.pool(2, 2, reads=shape)
    description.linears([128, 128, 10], reads=shape)
    return description


def alexnet() -> Description:
    """conv 96 of 7x7 stride 2, 256 of 5x5, 384, 384, 256 of 3x3, 3x3 stride-2 pools after 1, 2; FC 1024, 512, 10."""
    description = Description()
    shape = description.pool(3, 2, reads=description.conv(96, 7, reads=[3, 32, 32], stride=2, padding=2))
    shape = description.pool(3, 2, reads=description.conv(256, 5, reads=shape, padding=2))
    for channels in (384, 384, 256):
        shape = description.conv(channels, 3, reads=shape, padding=1)
    description.linears([1024, 512, 10], reads=shape)
    return description


def chain(
    channels: Sequence[int],
    widths: Sequence[int],
    *,
    inputs: int = 2,
    side: int = 4,
    axes: int = 2,
    groups: Sequence[int] | None = None,
) -> tuple[Description, list[str], list[int]]:
    """Convolutions of 3, padding 1, then linear layers; also the kinds and groups of the weighted layers in order."""
    description = Description()
    shape = [inputs, *[side] * axes] if channels else [inputs]
    groups = list(groups or [1] * len(channels))
    for count, share in zip(channels, groups, strict=True):
        shape = description.conv(count, 3, reads=shape, padding=1, groups=share, name=f"conv{len(description.layers)}")
        description.add("BatchNorm2d", shape, reads=shape)
    description.linears(widths, reads=shape)
    return description, ["conv"] * len(channels) + ["linear"] * len(widths), groups + [1] * len(widths)
