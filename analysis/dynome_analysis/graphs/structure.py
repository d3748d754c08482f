"""The rolled graph of a model, before any weight: which vertices there are, and which layer connects which.

Read from the layer graph that the recorder wrote (``run.json``, ``model``), so no model code is needed. Vertices: the
input's channels, the output channels of each convolution, the neurons of each fully connected layer. Everything else
(activation, pooling, normalisation, dropout, flatten) only passes vertices on. The rule to keep: what cannot be
followed is an error that names the layer, never a graph that is silently wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from dynome_analysis.graphs.vertices import Structure
from dynome_analysis.graphs.walk import CONVOLUTIONS, MODEL_INPUT, LayerWalk, layer_name
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = ["Connection", "LayeredStructure", "rolled_structure"]

Axis = Literal["first", "last"]


@dataclass(frozen=True)
class Connection:
    """All edges that one layer makes between two vertex groups.

    Attributes
    ----------
    layer
        Name of the layer; for an identity shortcut, of the vertices that it reaches.
    parameter
        Recorded weight; None for an identity shortcut, whose edges all weigh ``identity_weight``.
    source, target
        Indices of vertex groups.
    shape
        (partition, target, source): one dense block per partition. A grouped convolution has several, side by side.
    pixels
        How many weights one edge stands for in a fully connected layer after a flatten: the pixels of a channel.
    channel_axis
        Whether the flattened channels were the slow ("first") or the fast ("last") axis.
    """

    layer: str
    parameter: str | None
    source: int
    target: int
    shape: tuple[int, int, int]
    pixels: int = 1
    channel_axis: Axis = "first"
    identity_weight: float = 1.0

    @property
    def n_edges(self) -> int:
        """Number of edges, weight zero or not."""
        return prod(self.shape)


class LayeredStructure(Structure[Connection]):
    """Vertices and connections of a rolled graph."""


def rolled_structure(model: Mapping[str, Any], *, identity_weight: float | None = None) -> LayeredStructure:
    """Find vertices and connections of the rolled graph from a recording's layer graph.

    Parameters
    ----------
    model : mapping
        ``run.json``'s ``model``: ``layers`` in call order and ``parameters``, as the format specifies.
    identity_weight : float, optional
        Weight of an edge between each channel and itself across an identity shortcut. None, the default: no such edges.

    Returns
    -------
    LayeredStructure
        Groups in call order, the input first.

    Raises
    ------
    InvalidDataError
        The recording holds no layer graph; a layer or a parameter with weights is of a kind that has no rule; channels
        cannot be followed through a layer. The text names the layer.

    Notes
    -----
    Vahedian et al., arXiv 2111.05410: rolled graph [P]; projection shortcuts connect a block's input vertices
    with its output vertices [P]; identity shortcuts make no edges [P], or edges of a given weight [O]. Ours [O]: a
    module that is called twice has vertices for each call; an input that only fully connected layers read has one
    vertex per feature, not per channel (one vertex for a whole grey image would leave nothing of the first layer).
    Pooling by a function between a convolution and a flatten is allowed for, so two poolings that a function
    concatenates are taken for one [O]. Cost: O(layers^2), no weights read.
    """
    return _Builder(model, identity_weight).build()


@dataclass(frozen=True)
class _Signal:
    """What flows between layers: the vertices its channels are, and how the channels lie in the tensor.

    ``pixels`` is the number of values per channel, None while unknown, 0 where branches differ in it; ``joined`` tells
    that more than one layer's output met here.
    """

    group: int
    pixels: int | None
    axis: Axis = "first"
    joined: bool = False


class _Builder(LayerWalk):
    """One walk over the layers in call order."""

    def __init__(self, model: Mapping[str, Any], identity_weight: float | None) -> None:
        super().__init__(model)
        self.identity_weight = identity_weight
        self.signals: dict[int, _Signal] = {}
        self.connections: list[Connection] = []

    def build(self) -> LayeredStructure:
        size, axis = self.describe_input()
        self.signals[MODEL_INPUT] = _Signal(self.vertices.add("input", size), None, axis)
        for layer in self.layers:
            if self.is_weighted(layer):
                self.connect(layer)
            elif layer["sources"]:
                signal = self.incoming(layer)
                self.signals[layer["index"]] = self.follow(signal, layer["output_shape"], layer)
        return self.finish()

    # What flows into it

    def describe_input(self) -> tuple[int, Axis]:
        """Return the number of channels where a convolution reads the input, else of features, and their axis."""
        carriers = {MODEL_INPUT}
        features: int | None = None
        for layer in self.layers:
            if not carriers.intersection(layer["sources"]):
                continue
            if not self.is_weighted(layer):
                carriers.add(layer["index"])
                continue
            _, shape = self.weight_shape(layer)
            if layer["type"] in CONVOLUTIONS:
                return shape[1] * int(layer["configuration"].get("groups", 1)), "first"
            features = features or shape[1]
        if features is None:
            raise InvalidDataError(
                "model: no convolution or linear layer reads the model's input, so there is no weight graph"
            )
        return features, "last"

    def incoming(self, layer: Mapping[str, Any]) -> _Signal:
        """Join what reaches a layer: parallel branches share vertices; an addend from upstream is a shortcut."""
        signals = [self.signals[source] for source in self.sources(layer, self.signals)]
        head, shortcuts = self.join(layer, [signal.group for signal in signals])
        for group in shortcuts:
            if self.identity_weight is not None:
                name, shape = self.vertices.names[head], (self.vertices.sizes[head], 1, 1)
                self.connections.append(
                    Connection(name, None, group, head, shape, identity_weight=self.identity_weight)
                )
        axis = next(signal.axis for signal in signals if self.vertices.find(signal.group) == head)
        known = {signal.pixels for signal in signals if signal.pixels is not None}
        pixels = None if not known else known.pop() if len(known) == 1 else 0
        joined = len(signals) > 1 or signals[0].joined
        return self.follow(_Signal(head, pixels, axis, joined), layer["input_shape"], layer)

    def follow(self, signal: _Signal, shape: Sequence[int] | None, layer: Mapping[str, Any]) -> _Signal:
        """Find the channels again in a tensor of this shape (without the batch axis)."""
        channels = self.vertices.sizes[signal.group]
        if not shape:
            return signal
        values = prod(shape)
        if values == channels:
            return replace(signal, pixels=1)
        if len(shape) == 1:
            pixels, rest = divmod(values, channels)
            known = signal.pixels
            if rest == 0 and (known is None or pixels == known or (pixels < known and not signal.joined)):
                return replace(signal, pixels=pixels)
        elif channels in (shape[0], shape[-1]):
            ends: dict[Axis, int] = {"first": shape[0], "last": shape[-1]}
            other: Axis = "last" if signal.axis == "first" else "first"
            axis = signal.axis if ends[signal.axis] == channels else other
            return replace(signal, pixels=values // channels, axis=axis)
        raise InvalidDataError(
            f"layer {layer_name(layer)!r}: the {channels} channels of {self.vertices.names[signal.group]} cannot be"
            f" followed into a tensor of shape {tuple(shape)}; concatenations and reshapes that mix channels have no"
            " rule"
        )

    # Edges

    def connect(self, layer: Mapping[str, Any]) -> None:
        """Make the vertices of a convolution or linear layer and connect them with what it reads."""
        parameter, shape = self.weight_shape(layer)
        signal = self.incoming(layer)
        channels = self.vertices.sizes[signal.group]
        read = tuple(layer["input_shape"] or ())
        partitions, pixels = 1, 1
        axis: Axis = signal.axis
        if layer["type"] in CONVOLUTIONS:
            partitions = int(layer["configuration"].get("groups", 1))
            fits = channels == partitions * shape[1] and read[:1] == (channels,)
            axis = "first"
        elif len(read) == 1:
            pixels, rest = divmod(shape[1], channels)
            fits = rest == 0 and pixels == (signal.pixels or pixels)
        else:
            fits = channels == shape[1] and signal.axis == "last"
        if not fits:
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: its weight of shape {shape} does not fit the {channels} channels of"
                f" {self.vertices.names[signal.group]}, which reach it as {read}"
            )
        source = signal.group
        target = self.vertices.add(layer_name(layer), shape[0], parents=[source])
        block = (partitions, shape[0] // partitions, channels // partitions)
        self.connections.append(Connection(layer_name(layer), parameter, source, target, block, pixels, axis))
        output = layer["output_shape"] or (shape[0],)
        axis = "first" if layer["type"] in CONVOLUTIONS or len(output) == 1 else "last"
        self.signals[layer["index"]] = _Signal(target, prod(output) // shape[0], axis)

    def finish(self) -> LayeredStructure:
        """Let connections point at the groups that are left after merging."""
        groups, places = self.vertices.number()
        find = self.vertices.find
        connections = tuple(
            replace(link, source=places[find(link.source)], target=places[find(link.target)])
            for link in self.connections
        )
        return LayeredStructure(groups, connections)
