"""Neural persistence of the weights that a recording holds, snapshot by snapshot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dask
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, compute
from dynome_analysis.graphs.walk import CONVOLUTIONS, LINEAR
from dynome_analysis.persistence.layer_persistence import (
    Scale,
    check_order,
    check_scale,
    layer_edges,
    layer_tree,
    network_persistence,
)
from dynome_analysis.provenance import provenance
from dynome_analysis.reading import SnapshotReader
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynome_analysis.recording import Recording

__all__ = ["neural_persistence"]


def neural_persistence(
    recording: Recording,
    *,
    order: float = 2.0,
    scale: Scale = "network",
    normalise: bool = True,
    count_unpaired: bool = False,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Compute the neural persistence of every recorded snapshot of the weights (Rieck et al., ICLR 2019).

    Parameters
    ----------
    recording : Recording
        With weights and a layer graph.
    order : float
        p of the norm over persistences, at least 1; infinity is allowed.
    scale : {"network", "layer"}
        Whose largest edge counts as 1: the network's [P], or each layer's own [O].
    normalise : bool, default True
        Divide each layer by its upper bound ``(vertex - 1)^(1/p)`` [P].
    count_unpaired : bool, default False
        Count the one component per layer that never merges, as the authors' code does; see
        `dynome_analysis.persistence.layer_persistence.tree_persistence`.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Dataset
        In memory: ``neural_persistence`` float64 (snapshot), the mean over layers [P]; ``layer_persistence`` float64
        (snapshot, layer); ``diverged`` bool (snapshot): weights hold NaN or infinity, and so both are NaN. They are NaN
        also where all weights are 0. Coordinates ``epoch`` and ``step`` on snapshot, ``layer`` and ``vertices`` on
        layer. The attribute ``left_out`` lists, as JSON, parameters of two or more axes that no layer of a known kind
        holds.

    Raises
    ------
    InvalidArgumentError
        An order below 1, an unknown scale.
    InvalidDataError
        The recording holds no layer graph, no linear layer or convolution, or not their weights.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    METHODS.md section 3. Layers are fully connected ones, ``|W|`` [P], and convolutions, one edge per pair of channels
    [O]; a weight that several layers share counts once. O(weights) time per snapshot and, for each worker, one snapshot
    of the weights and two copies of the largest layer.
    """
    check_order(order)
    check_scale(scale)
    layers, left_out = _layers(recording)
    described = recording.manifest.weights
    reader = SnapshotReader.of(
        recording.manifest, "weights", {layer.parameter: described[layer.parameter] for layer in layers}
    )
    count = len(reader.indices)
    lazy = [dask.delayed(_snapshot_trees)(reader, layers, position) for position in range(count)]
    trees = compute(lazy, description="neural persistence", progress=progress)
    options = {"order": order, "scale": scale, "normalise": normalise, "count_unpaired": count_unpaired}
    values = np.full((count, len(layers)), np.nan)
    for row, found in zip(values, trees):
        if found:
            row[:] = network_persistence(
                found, scale=scale, order=order, normalise=normalise, count_unpaired=count_unpaired
            )
    parameters = options | {"order": str(order)} if np.isinf(order) else options
    return xr.Dataset(
        {
            "neural_persistence": ("snapshot", values.mean(axis=1)),
            "layer_persistence": (("snapshot", "layer"), values),
            "diverged": ("snapshot", np.array([not found for found in trees])),
        },
        coords={
            "epoch": ("snapshot", np.array(reader.epochs, np.int64)),
            "step": ("snapshot", np.array(reader.steps, np.int64)),
            "layer": [layer.name for layer in layers],
            "vertices": ("layer", np.array([layer.vertices for layer in layers], np.int64)),
        },
        attrs=provenance("neural_persistence", parameters, recording=recording.id) | {"left_out": json.dumps(left_out)},
    )


@dataclass(frozen=True)
class _Layer:
    name: str
    parameter: str
    groups: int
    vertices: int


def _layers(recording: Recording) -> tuple[list[_Layer], list[str]]:
    """Find the layers with a rule, in call order, and the names of weights without one."""
    model = recording.manifest.run["model"]
    described = recording.manifest.weights
    if not model.get("layers"):
        raise InvalidDataError(
            f"{recording.path}: the recording holds no layer graph, so its layers are unknown; record with Recorder"
        )
    listed = {entry["name"]: entry for entry in model["parameters"]}
    found: dict[str, _Layer] = {}
    for entry in model["layers"]:
        name = entry["parameters"].get("weight")
        if entry["type"] not in CONVOLUTIONS | LINEAR or name not in listed:
            continue
        parameter = listed[name].get("alias_of") or name
        groups = int(entry["configuration"].get("groups", 1))
        shape = listed[parameter]["shape"]
        if parameter not in described:
            raise InvalidDataError(
                f"{recording.path}: the weight {parameter!r} was not recorded; record with weights=every(epochs=1)"
            )
        found.setdefault(parameter, _Layer(str(entry["module"]), parameter, groups, shape[0] + groups * shape[1]))
    if not found:
        raise InvalidDataError(f"{recording.path}: no linear layer or convolution is among the model's layers")
    others = [name for name, entry in listed.items() if len(entry["shape"]) >= 2 and not entry.get("alias_of")]
    return list(found.values()), [name for name in others if name not in found]


def _snapshot_trees(reader: SnapshotReader, layers: list[_Layer], position: int) -> list[NDArray[np.float32]]:
    """Return the tree of every layer at one snapshot, or nothing where its weights are not finite."""
    trees = []
    for layer in layers:
        weight = reader.read(layer.parameter, position)
        if not np.isfinite(weight).all():
            return []
        trees.append(layer_tree(layer_edges(weight, groups=layer.groups)))
    return trees
