"""The unrolled graph: one vertex per (layer, channel, pixel), one edge per multiplication, and no edge ever written.

Read from the same layer graph as the rolled one (`structure`). Here pixels must be followed, not only channels, so
every pooling must be a module: what a function does between two layers is not recorded, and is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.graphs.layered import check_finite, recorded_weight
from dynome_analysis.graphs.pixels import Convolution, Identity, PixelConnection, PixelLinear, Pooling, window
from dynome_analysis.graphs.vertices import Structure
from dynome_analysis.graphs.walk import CONVOLUTIONS, MODEL_INPUT, LayerWalk, layer_name
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


__all__ = ["UnrolledGraph", "UnrolledStructure", "unrolled_graph", "unrolled_structure"]

POOLINGS = frozenset(
    f"{kind}Pool{axes}d" for kind in ("Max", "Avg", "LP", "AdaptiveMax", "AdaptiveAvg") for axes in (1, 2, 3)
)
# Other modules keep every value in its place, or are refused by the shape of what they give out; these two do neither.
MIXERS = frozenset({"ChannelShuffle", "PixelShuffle", "PixelUnshuffle"})


class UnrolledStructure(Structure[PixelConnection]):
    """Vertices and connections of an unrolled graph."""


@dataclass(frozen=True)
class UnrolledGraph:
    """An undirected weighted graph over pixels, as an operator.

    Attributes
    ----------
    structure
        Vertices and connections.
    weights
        One per connection, as its kind keeps them: float64, finite, not negative; None where there are none.
    """

    structure: UnrolledStructure
    weights: tuple[NDArray[np.float64] | None, ...]

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return self.structure.n_vertices

    @property
    def n_edges(self) -> int:
        """Number of edges; those of weight zero count."""
        return self.structure.n_edges

    def degree(self) -> NDArray[np.float64]:
        """Return the weighted degree, the sum of a vertex's edge weights; float64, shape (vertex,). One product."""
        return self.multiply(np.ones(self.n_vertices))

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the adjacency matrix times ``x``; float64, shape (vertex,).

        As many multiplications as a forward pass has, twice; memory of a few images.
        """
        y = np.zeros(self.n_vertices)
        groups = self.structure.groups
        for link, weight in zip(self.structure.connections, self.weights, strict=True):
            ends = groups[link.source].vertices, groups[link.target].vertices
            link.multiply(weight, (x[ends[0]], x[ends[1]]), (y[ends[0]], y[ends[1]]))  # type: ignore[arg-type]
        return y

    def components(self) -> NDArray[np.int32]:
        """Label the connected components, edges of weight zero being none; int32, shape (vertex,), numbered from 0.

        Sweeps from layer to layer and back until nothing new is reached: the cost of some 5 products per component of
        two vertices or more.
        """
        pattern = replace(self, weights=tuple(None if w is None else (w != 0).astype(float) for w in self.weights))
        neighbours = pattern.degree()
        labels = np.full(self.n_vertices, -1, dtype=np.int32)
        parts = 0
        while (unreached := (labels < 0) & (neighbours > 0)).any():
            # From the vertex with most neighbours, which lies in the largest component nearly always.
            reached = np.zeros(self.n_vertices)
            reached[np.argmax(np.where(unreached, neighbours, -1.0))] = 1.0
            pattern._spread(reached, int(np.count_nonzero(unreached)))
            labels[reached > 0] = parts
            parts += 1
        isolated = labels < 0
        labels[isolated] = parts + np.arange(np.count_nonzero(isolated))
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        order: NDArray[np.int32] = np.argsort(np.argsort(first)).astype(np.int32)[inverse.ravel()]
        return order

    def _spread(self, reached: NDArray[np.float64], most: int) -> None:
        """Set ``reached`` to 1 on the whole component, until a sweep adds nothing or ``most`` vertices are reached."""
        count, groups = 0, self.structure.groups
        links = list(zip(self.structure.connections, self.weights, strict=True))
        while count < (count := int(np.count_nonzero(reached))) < most:
            for link, weight in (*links, *reversed(links)):
                ends = reached[groups[link.source].vertices], reached[groups[link.target].vertices]
                met = np.zeros_like(ends[0]), np.zeros_like(ends[1])
                link.multiply(weight, ends, met)  # type: ignore[arg-type]
                for end, hit in zip(ends, met):
                    end[hit > 0] = 1.0


def unrolled_structure(model: Mapping[str, Any], *, identity_weight: float | None = None) -> UnrolledStructure:
    """Find vertices and connections of the unrolled graph from a recording's layer graph.

    Parameters
    ----------
    model, identity_weight
        As for `rolled_structure`.

    Returns
    -------
    UnrolledStructure
        Groups in call order, the input first; in each group channels first, then space, as the tensors lie.

    Raises
    ------
    InvalidDataError
        As `rolled_structure`; and a layer whose pixels cannot be followed: pooling or reshaping by a function,
        concatenation, padding by other values than zero. The text names the layer.

    Notes
    -----
    Vahedian et al., arXiv 2111.05410, unrolled graph [P; authors' code]: one edge per multiplication with a real pixel,
    padding being no vertex; pooled pixels are vertices. An edge between a pooled pixel and one that it covers weighs
    1 / k^2, max and average alike [O; the authors' code copies the smallest incoming weight]; adaptive windows by their
    own size; at a border fewer pixels are covered and the weight stays [O]. Branches that are added share their
    vertices, as in the rolled graph. Cost: O(layers^2), no weights read.
    """
    return _Builder(model, identity_weight).build()


def unrolled_graph(structure: UnrolledStructure, weights: Mapping[str, NDArray[np.floating[Any]]]) -> UnrolledGraph:
    """Put one snapshot's weights on the unrolled graph.

    Parameters
    ----------
    structure : UnrolledStructure
        From `unrolled_structure`.
    weights : mapping of str to floating array
        By parameter name, as recorded: (output, input, ...kernel) or (output, input).

    Returns
    -------
    UnrolledGraph
        Every edge weighs ``|w|`` of its multiplication, in float64.

    Raises
    ------
    InvalidDataError
        A weight is missing, has another shape than the layer graph says, or holds NaN or infinity.

    Notes
    -----
    O(weights) time and 8 bytes per weight, whatever the number of edges.
    """
    prepared: list[NDArray[np.float64] | None] = []
    for link in structure.connections:
        if isinstance(link, Convolution | PixelLinear):
            weight = recorded_weight(weights, parameter=link.parameter, layer=link.layer, shape=link.weight_shape)
            check_finite(weight, parameter=link.parameter, layer=link.layer)
            prepared.append(link.prepare(weight))
        else:
            prepared.append(None)
    return UnrolledGraph(structure, tuple(prepared))


@dataclass(frozen=True)
class _Signal:
    """What flows between layers: the vertices that its values are, and the tensor's shape without the batch axis."""

    group: int
    shape: tuple[int, ...]


class _Builder(LayerWalk):
    """One walk over the layers in call order."""

    def __init__(self, model: Mapping[str, Any], identity_weight: float | None) -> None:
        super().__init__(model)
        self.identity_weight = identity_weight
        self.signals: dict[int, _Signal] = {}
        self.connections: list[PixelConnection] = []

    def build(self) -> UnrolledStructure:
        shape = self.input_shape()
        self.signals[MODEL_INPUT] = _Signal(self.vertices.add("input", prod(shape)), shape)
        for layer in self.layers:
            if not layer["sources"] and not self.is_weighted(layer):
                continue
            signal = self.incoming(layer)
            if layer["type"] in CONVOLUTIONS:
                signal = self.convolve(layer, signal)
            elif self.is_weighted(layer):
                signal = self.connect(layer, signal)
            elif layer["type"] in POOLINGS:
                signal = self.pool(layer, signal)
            else:
                signal = self.pass_on(layer, signal)
            self.signals[layer["index"]] = signal
        groups, places = self.vertices.number()
        find = self.vertices.find
        connections = tuple(
            replace(link, source=places[find(link.source)], target=places[find(link.target)])
            for link in self.connections
        )
        return UnrolledStructure(groups, connections)

    def input_shape(self) -> tuple[int, ...]:
        """Return the shape in which the model's input is read; the one with most axes, where a flat one occurs too."""
        shapes = [
            tuple(layer["input_shape"])
            for layer in self.layers
            if MODEL_INPUT in layer["sources"] and layer["input_shape"]
        ]
        if not shapes:
            raise InvalidDataError("model: no layer reads the model's input, so there is no weight graph")
        return max(shapes, key=len)

    def incoming(self, layer: Mapping[str, Any]) -> _Signal:
        """Join what reaches a layer: parallel branches share vertices; an addend from upstream is a shortcut."""
        signals = [self.signals[source] for source in self.sources(layer, self.signals)]
        shape = tuple(layer["input_shape"] or signals[0].shape)
        for signal in signals:
            self.follow(signal, shape, layer)
        head, shortcuts = self.join(layer, [signal.group for signal in signals])
        for group in shortcuts:
            if self.identity_weight is not None:
                name, size = self.vertices.names[head], self.vertices.sizes[head]
                self.connections.append(Identity(name, group, head, size, self.identity_weight))
        return _Signal(head, shape)

    def follow(self, signal: _Signal, shape: tuple[int, ...], layer: Mapping[str, Any]) -> _Signal:
        """Find the pixels again in a tensor of this shape: the same one, or flattened, or one that was flat."""
        flat = len(shape) == 1 or len(signal.shape) == 1
        if shape != signal.shape and not (flat and prod(shape) == prod(signal.shape)):
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: the pixels of {self.vertices.names[signal.group]}, a tensor of shape"
                f" {signal.shape}, cannot be followed into one of shape {shape}; pooling must be a module"
                " (nn.MaxPool2d, nn.AdaptiveAvgPool2d), and concatenations and transpositions have no rule"
            )
        return _Signal(signal.group, shape)

    def pass_on(self, layer: Mapping[str, Any], signal: _Signal) -> _Signal:
        if layer["type"] in MIXERS:
            raise InvalidDataError(f"layer {layer_name(layer)!r} is a {layer['type']}, which has no rule")
        return self.follow(signal, tuple(layer["output_shape"] or signal.shape), layer)

    # Edges

    def convolve(self, layer: Mapping[str, Any], signal: _Signal) -> _Signal:
        parameter, weight = self.weight_shape(layer)
        space, kernel = signal.shape[1:], weight[2:]
        target_shape = tuple(layer["output_shape"] or ())
        groups = int(layer["configuration"].get("groups", 1))
        if (
            len(space) != len(kernel)
            or len(target_shape) != len(weight) - 1
            or (target_shape[0], signal.shape[0]) != (weight[0], weight[1] * groups)
        ):
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: its weight of shape {weight} does not fit the shapes {signal.shape} and"
                f" {target_shape} of its input and output"
            )
        if layer["configuration"].get("padding_mode", "zeros") != "zeros":
            raise InvalidDataError(
                f"layer {layer_name(layer)!r} pads by {layer['configuration']['padding_mode']!r}; the unrolled graph"
                " has no rule for padding other than by zeros"
            )
        options = self.geometry(layer, len(space))
        windows = tuple(
            tuple(
                window(offset, outputs=outputs, inputs=inputs, **{name: each[axis] for name, each in options.items()})
                for offset in range(size)
            )
            for axis, (size, outputs, inputs) in enumerate(zip(kernel, target_shape[1:], space))
        )
        target = self.vertices.add(layer_name(layer), prod(target_shape), parents=[signal.group])
        self.connections.append(
            Convolution(layer_name(layer), parameter, signal.group, target, signal.shape, target_shape, groups, windows)
        )
        return _Signal(target, target_shape)

    def connect(self, layer: Mapping[str, Any], signal: _Signal) -> _Signal:
        parameter, weight = self.weight_shape(layer)
        if signal.shape[-1] != weight[1]:
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: its weight of shape {weight} does not fit the shape {signal.shape} of"
                " its input"
            )
        positions = prod(signal.shape[:-1])
        target = self.vertices.add(layer_name(layer), positions * weight[0], parents=[signal.group])
        self.connections.append(PixelLinear(layer_name(layer), parameter, signal.group, target, positions, weight))
        return _Signal(target, (*signal.shape[:-1], weight[0]))

    def pool(self, layer: Mapping[str, Any], signal: _Signal) -> _Signal:
        target_shape = tuple(layer["output_shape"] or ())
        space = signal.shape[1:]
        if not target_shape or target_shape[0] != signal.shape[0] or len(target_shape) != len(signal.shape):
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: a {layer['type']} from shape {signal.shape} to {target_shape} has no"
                " rule"
            )
        if layer["type"].startswith("Adaptive"):
            axes = tuple(_adaptive_axis(outputs, inputs) for outputs, inputs in zip(target_shape[1:], space))
        else:
            sizes = _per_axis(layer["configuration"].get("kernel_size"), len(space), layer)
            options = self.geometry(layer, len(space), default_stride=sizes)
            axes = tuple(
                _window_axis(size, outputs, inputs, **{name: each[axis] for name, each in options.items()})
                for axis, (size, outputs, inputs) in enumerate(zip(sizes, target_shape[1:], space))
            )
        target = self.vertices.add(layer_name(layer), prod(target_shape), parents=[signal.group])
        self.connections.append(Pooling(layer_name(layer), signal.group, target, signal.shape, axes))
        return _Signal(target, target_shape)

    @staticmethod
    def geometry(
        layer: Mapping[str, Any], axes: int, *, default_stride: tuple[int, ...] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Return stride, padding in front, and dilation per axis of space."""
        settings = layer["configuration"]
        stride = settings.get("stride") or default_stride or 1
        return {
            "stride": _per_axis(stride, axes, layer),
            "padding": _per_axis(settings.get("padding", 0), axes, layer),
            "dilation": _per_axis(settings.get("dilation", 1), axes, layer),
        }


def _per_axis(value: Any, axes: int, layer: Mapping[str, Any]) -> tuple[int, ...]:
    numbers = (value,) * axes if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(numbers) != axes or not all(isinstance(number, int) for number in numbers):
        raise InvalidDataError(
            f"layer {layer_name(layer)!r}: the recording does not say its kernel size, stride, padding or dilation"
            f" along {axes} axes"
        )
    return numbers


def _window_axis(
    size: int, outputs: int, inputs: int, *, stride: int, padding: int, dilation: int
) -> NDArray[np.float64]:
    """Return 1 / size where a pooling window covers a real pixel; (output, input)."""
    matrix = np.zeros((outputs, inputs))
    for offset in range(size):
        met = window(offset, outputs=outputs, inputs=inputs, stride=stride, padding=padding, dilation=dilation)
        matrix[range(*met.outputs.indices(outputs)), range(*met.inputs.indices(inputs))] = 1 / size
    return matrix


def _adaptive_axis(outputs: int, inputs: int) -> NDArray[np.float64]:
    """Return 1 / size where an adaptive window, from floor(o n / m) to ceil((o + 1) n / m), covers a pixel."""
    matrix = np.zeros((outputs, inputs))
    for output in range(outputs):
        start, stop = output * inputs // outputs, -(-(output + 1) * inputs // outputs)
        matrix[output, start:stop] = 1 / (stop - start)
    return matrix
