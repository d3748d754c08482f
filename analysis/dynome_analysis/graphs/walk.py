"""What the rolled and the unrolled graph have in common: which layers make edges, and what reaches each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynome_analysis.graphs.vertices import VertexForest
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

__all__ = ["CONVOLUTIONS", "LINEAR", "MODEL_INPUT", "LayerWalk", "layer_name"]

MODEL_INPUT = -1
CONVOLUTIONS = frozenset({"Conv1d", "Conv2d", "Conv3d"})
LINEAR = frozenset({"Linear", "NonDynamicallyQuantizableLinear"})
# Their parameters scale and shift single channels, so they are no edges; the paper leaves batch norm out.
NORMALISATIONS = frozenset(
    {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "LayerNorm", "GroupNorm", "RMSNorm"}
    | {"InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "PReLU"}
)


class LayerWalk:
    """The layers of ``run.json``'s ``model``, checked: each with weights is of a kind that has a rule.

    Raises
    ------
    InvalidDataError
        No layers; a layer or a parameter with weights has no rule.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.layers: list[dict[str, Any]] = list(model.get("layers") or ())
        if not self.layers:
            raise InvalidDataError(
                "model: the recording holds no layer graph, so there is no weight graph; record with Recorder, not with"
                " the bare writer"
            )
        listed = {entry["name"]: entry for entry in model.get("parameters") or ()}
        self.first_name = {name: entry.get("alias_of") or name for name, entry in listed.items()}
        self.shapes = {name: tuple(entry["shape"]) for name, entry in listed.items()}
        self.vertices = VertexForest()
        for layer in self.layers:
            self.check_kind(layer)
        self.check_every_matrix_has_a_layer()

    @staticmethod
    def is_weighted(layer: Mapping[str, Any]) -> bool:
        """Say whether the layer makes edges that weigh what its weights say."""
        return layer["type"] in CONVOLUTIONS | LINEAR

    def check_kind(self, layer: Mapping[str, Any]) -> None:
        """Refuse a layer with weights that no rule knows."""
        if layer["parameters"] and not self.is_weighted(layer) and layer["type"] not in NORMALISATIONS:
            raise InvalidDataError(
                f"layer {layer_name(layer)!r} is a {layer['type']} with weights, which weight graphs have no rule"
                " for; they know Linear, Conv1d, Conv2d, Conv3d and normalisations"
            )

    def check_every_matrix_has_a_layer(self) -> None:
        """Refuse a weight matrix that is used by a function, unseen."""
        used = {self.first_name.get(name, name) for layer in self.layers for name in layer["parameters"].values()}
        for name, shape in self.shapes.items():
            if len(shape) >= 2 and self.first_name[name] not in used:
                raise InvalidDataError(
                    f"parameter {name!r} belongs to no layer that the model calls, so its edges are unknown;"
                    " weights must be used through modules (nn.Linear, nn.Conv2d), not through functions"
                )

    def weight_shape(self, layer: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
        """Return the name under which the layer's weight is recorded, and its shape."""
        name = self.first_name.get(layer["parameters"].get("weight", ""), "")
        if name not in self.shapes:
            raise InvalidDataError(
                f"layer {layer_name(layer)!r} has no plain parameter 'weight'; remove its parametrization to record it"
            )
        return name, self.shapes[name]

    @staticmethod
    def sources(layer: Mapping[str, Any], walked: Container[int]) -> Sequence[int]:
        """Return the layers whose outputs reach this one; all must have been walked over."""
        sources: list[int] = layer["sources"]
        if not sources or any(source not in walked for source in sources):
            raise InvalidDataError(
                f"layer {layer_name(layer)!r}: the recording does not say which layers' outputs reach it"
            )
        return sources

    def join(self, layer: Mapping[str, Any], reached_by: Sequence[int]) -> tuple[int, list[int]]:
        """Let parallel branches share their vertices, and find what else is added to them.

        Returns
        -------
        head : int
            The group that the branches are now.
        shortcuts : list of int
            Groups upstream of it whose values are added without a layer between, each named once in the whole walk.
        """
        groups = sorted({self.vertices.find(group) for group in reached_by})
        if len({self.vertices.sizes[group] for group in groups}) > 1:
            parts = ", ".join(f"{self.vertices.names[group]} ({self.vertices.sizes[group]})" for group in groups)
            raise InvalidDataError(
                f"layer {layer_name(layer)!r} reads {parts} together: only sums of equal numbers of channels can be"
                " followed, not concatenations"
            )
        shortcuts = {group for other in groups for group in self.vertices.upstream(other)}.intersection(groups)
        head = self.vertices.merge([group for group in groups if group not in shortcuts])
        return head, [group for group in sorted(shortcuts, reverse=True) if self.vertices.bypass(group, head)]


def layer_name(layer: Mapping[str, Any]) -> str:
    """Return the layer's name, like a site's: module path, ``@call`` from the second call on."""
    call = int(layer.get("call", 0))
    return f"{layer['module']}@{call}" if call else str(layer["module"])
