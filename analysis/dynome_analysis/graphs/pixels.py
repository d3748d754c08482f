"""Edges between single pixels, by arithmetic on whole images: convolution, linear layer, pooling, identity.

An unrolled graph has far more edges than weights, so none is ever written down. Each kind of connection knows how many
edges it has, and adds its part of the adjacency matrix times a vector to both ends. A convolution goes over the offsets
of its kernel: one matrix product per offset on a strided view, no copy of the image per offset (im2col).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Convolution", "Identity", "PixelConnection", "PixelLinear", "Pooling", "Window", "window"]

Floats: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Window:
    """One offset of a kernel along one axis: which outputs meet a real pixel there, and which pixels.

    Attributes
    ----------
    outputs, inputs
        Slices of equal length. Outputs whose pixel would be padding are left out: padding has no vertex.
    count
        Their length.
    """

    outputs: slice
    inputs: slice
    count: int


def window(offset: int, *, outputs: int, inputs: int, stride: int, padding: int, dilation: int) -> Window:
    """Return where output ``o`` reads pixel ``o * stride - padding + offset * dilation``."""
    shift = offset * dilation - padding
    first = max(0, -(shift // stride))  # the smallest o with o * stride + shift >= 0
    last = min(outputs - 1, (inputs - 1 - shift) // stride)
    count = max(0, last - first + 1)
    start = first * stride + shift
    stop = start + (count - 1) * stride + 1 if count else start
    return Window(slice(first, first + count), slice(start, stop, stride), count)


@dataclass(frozen=True)
class Convolution:
    """Edges of a convolution: one per multiplication with a real pixel, of weight ``|W|``.

    Attributes
    ----------
    layer, parameter
        Names of the layer and of its recorded weight.
    source, target
        Indices of vertex groups.
    source_shape, target_shape
        (channel, ...space).
    groups
        Of channels, side by side.
    windows
        Per axis of space, one per offset of the kernel.
    """

    layer: str
    parameter: str
    source: int
    target: int
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    groups: int
    windows: tuple[tuple[Window, ...], ...]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the recorded weight."""
        return (self.target_shape[0], self.source_shape[0] // self.groups, *map(len, self.windows))

    @property
    def n_edges(self) -> int:
        """Number of edges, weight zero or not."""
        meetings = prod(sum(window.count for window in axis) for axis in self.windows)
        return self.target_shape[0] * (self.source_shape[0] // self.groups) * meetings

    def prepare(self, weight: Floats) -> Floats:
        """Return ``|W|`` as one matrix per offset and group: (offset, group, target, source)."""
        taps = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)
        shape = (len(taps), self.groups, self.target_shape[0] // self.groups, -1)
        return np.ascontiguousarray(np.abs(taps)).reshape(shape)

    def multiply(self, taps: Floats, x: tuple[Floats, Floats], y: tuple[Floats, Floats]) -> None:
        """Add the edges' part of ``A x`` to the vectors ``y`` of source and target."""
        sources, targets = (self._image(vector, shape) for vector, shape in zip(x, self._shapes))
        to_sources, to_targets = (self._image(vector, shape) for vector, shape in zip(y, self._shapes))
        for tap, met in zip(taps, product(*self.windows)):
            if not all(axis.count for axis in met):
                continue
            space = tuple(axis.count for axis in met)
            inputs = (slice(None), slice(None), *(axis.inputs for axis in met))
            outputs = (slice(None), slice(None), *(axis.outputs for axis in met))
            read, written = sources[inputs], targets[outputs]
            flat = (self.groups, -1, prod(space))
            to_targets[outputs] += (tap @ read.reshape(flat)).reshape(written.shape)
            to_sources[inputs] += (tap.swapaxes(1, 2) @ written.reshape(flat)).reshape(read.shape)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.source_shape, self.target_shape

    def _image(self, vector: Floats, shape: tuple[int, ...]) -> Floats:
        return vector.reshape(self.groups, shape[0] // self.groups, *shape[1:])


@dataclass(frozen=True)
class PixelLinear:
    """Edges of a linear layer, ``|W[i, j]|``, the same for each of ``positions`` rows (tokens) that it reads."""

    layer: str
    parameter: str
    source: int
    target: int
    positions: int
    weight_shape: tuple[int, ...]

    @property
    def n_edges(self) -> int:
        """Number of edges, weight zero or not."""
        return self.positions * prod(self.weight_shape)

    def prepare(self, weight: Floats) -> Floats:
        """Return ``|W|``."""
        return np.abs(weight)

    def multiply(self, weight: Floats, x: tuple[Floats, Floats], y: tuple[Floats, Floats]) -> None:
        """Add the edges' part of ``A x`` to the vectors ``y`` of source and target."""
        sources, targets = (vector.reshape(self.positions, -1) for vector in x)
        y[0].reshape(self.positions, -1)[...] += targets @ weight
        y[1].reshape(self.positions, -1)[...] += sources @ weight.T


@dataclass(frozen=True)
class Pooling:
    """Edges of a pooled pixel with every real pixel that it covers: a product of one small matrix per axis of space.

    Attributes
    ----------
    layer, parameter
        The layer; no weight.
    source, target
        Indices of vertex groups.
    source_shape
        (channel, ...space).
    axes
        Per axis of space float64, shape (output, input): 1 / k where the window covers the pixel.
    """

    layer: str
    source: int
    target: int
    source_shape: tuple[int, ...]
    axes: tuple[Floats, ...]
    parameter: None = None

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.source_shape[0] * prod(int(np.count_nonzero(axis)) for axis in self.axes)

    def multiply(self, weight: None, x: tuple[Floats, Floats], y: tuple[Floats, Floats]) -> None:
        """Add the edges' part of ``A x`` to the vectors ``y`` of source and target."""
        target_shape = (self.source_shape[0], *map(len, self.axes))
        y[1][...] += _along_axes(x[0].reshape(self.source_shape), self.axes).ravel()
        y[0][...] += _along_axes(x[1].reshape(target_shape), [axis.T for axis in self.axes]).ravel()


@dataclass(frozen=True)
class Identity:
    """Edges of one weight between each pixel and the same pixel of another group: an identity shortcut."""

    layer: str
    source: int
    target: int
    size: int
    weight: float
    parameter: None = None

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.size

    def multiply(self, weight: None, x: tuple[Floats, Floats], y: tuple[Floats, Floats]) -> None:
        """Add the edges' part of ``A x`` to the vectors ``y`` of source and target."""
        y[1][...] += self.weight * x[0]
        y[0][...] += self.weight * x[1]


PixelConnection: TypeAlias = Convolution | PixelLinear | Pooling | Identity


def _along_axes(image: Floats, matrices: Sequence[Floats]) -> Floats:
    for axis, matrix in enumerate(matrices, start=1):
        image = np.moveaxis(np.moveaxis(image, axis, -1) @ matrix.T, -1, axis)
    return image
