"""Signatures of the weights that a recording holds, snapshot by snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_analysis.graphs.layered import rolled_graph
from dynome_analysis.graphs.structure import rolled_structure
from dynome_analysis.graphs.unrolled import UnrolledStructure, unrolled_graph, unrolled_structure
from dynome_analysis.prediction.signature import feature_names, graph_signature, layer_signature
from dynome_analysis.provenance import provenance
from dynome_analysis.reading import SnapshotReader, distinct_snapshots
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dynome_analysis.graphs.layered import LayeredGraph
    from dynome_analysis.graphs.structure import LayeredStructure
    from dynome_analysis.graphs.unrolled import UnrolledGraph
    from dynome_analysis.recording import Recording

    Structure = LayeredStructure | UnrolledStructure

__all__ = ["UnusableRunError", "weight_signature"]

GraphKind = Literal["rolled", "unrolled"]


class UnusableRunError(InvalidDataError):
    """A run lacks what prediction needs.

    Attributes
    ----------
    reason
        Why, without the run's path: the same for a copy elsewhere.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def weight_signature(
    recording: Recording, *, graph: GraphKind = "rolled", epochs: Sequence[int] | None = None, per_layer: bool = False
) -> xr.Dataset:
    """Summarise the weight graph of every recorded snapshot.

    Parameters
    ----------
    recording : Recording
        With weights and a layer graph.
    graph : {"rolled", "unrolled"}
        One vertex per channel, or one per pixel of every channel; the latter asks that pooling is done by modules.
    epochs : sequence of int, optional
        Completed epochs, each with a snapshot of the weights; by default every complete epoch that has one.
    per_layer : bool, default False
        One set of statistics per layer instead of one for all vertices.

    Returns
    -------
    Dataset
        ``signature`` float64 (snapshot, feature): median, mean, std, skewness, kurtosis of weighted degree and of
        eigenvector centrality, as `graph_signature` defines them; ``diverged`` bool (snapshot): the weights hold NaN
        or infinity, and the row of ``signature`` is NaN. Coordinates ``epoch`` (snapshot) and ``feature``; attributes
        say which recording, how many vertices and edges.

    Raises
    ------
    InvalidArgumentError
        Another kind of graph.
    UnusableRunError
        Epochs without a snapshot, weights or layers that make no graph; the text names the recording.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    METHODS.md section 6. Cost: reads the weights of each snapshot once, one snapshot in memory at a time; some ten
    milliseconds per snapshot for a million edges, about a second for the hundred million of an unrolled VGG.
    """
    import xarray as xr

    if graph not in get_args(GraphKind):
        raise InvalidArgumentError(f"graph must be one of {', '.join(get_args(GraphKind))}; got {graph!r}")
    structure = _structure(recording, graph)
    chosen = _complete_epochs(recording) if epochs is None else [int(epoch) for epoch in epochs]
    rows = [
        _summarise(recording, structure, weights, epoch=epoch, per_layer=per_layer)
        for epoch, weights in zip(chosen, _weights(recording, structure, chosen))
    ]
    names = feature_names(structure, per_layer=per_layer)
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows]).reshape(len(rows), len(names))
    return xr.Dataset(
        {
            "signature": (("snapshot", "feature"), values),
            "diverged": ("snapshot", np.array([not row for row in rows])),
        },
        coords={"epoch": ("snapshot", np.array(chosen, dtype=np.int64)), "feature": names},
        attrs=provenance("weight_signature", {"graph": graph, "per_layer": per_layer}, recording=recording.id)
        | {"n_vertices": structure.n_vertices, "n_edges": structure.n_edges},
    )


def _structure(recording: Recording, graph: GraphKind) -> Structure:
    describe = rolled_structure if graph == "rolled" else unrolled_structure
    try:
        return describe(recording.manifest.run["model"])
    except InvalidDataError as error:
        raise UnusableRunError(recording.path, str(error)) from error


def _complete_epochs(recording: Recording) -> list[int]:
    return sorted({record.epoch for record, _ in recording.manifest.snapshots("weights") if record.epoch_complete})


def _weights(
    recording: Recording, structure: Structure, epochs: Sequence[int]
) -> Iterator[dict[str, NDArray[np.floating[Any]]]]:
    """Yield the weights at the end of each epoch."""
    positions = {
        record.epoch: position
        for position, (record, _) in enumerate(distinct_snapshots(recording.manifest, "weights"))
        if record.epoch_complete
    }
    missing = [epoch for epoch in epochs if epoch not in positions]
    if missing or not positions:
        what = f"epochs {', '.join(map(str, missing))}" if missing else "a complete epoch"
        has = ", ".join(map(str, sorted(positions))) or "none"
        reason = f"no weights of {what} were recorded (there are: {has}); record with weights=every(epochs=1)"
        raise UnusableRunError(recording.path, reason)
    described = recording.manifest.weights
    unrecorded = [parameter for parameter in structure.parameters if parameter not in described]
    if unrecorded:
        raise UnusableRunError(recording.path, f"the weight {unrecorded[0]!r} was not recorded")
    reader = SnapshotReader.of(recording.manifest, "weights", {name: described[name] for name in structure.parameters})
    for epoch in epochs:
        yield {name: reader.read(name, positions[epoch]) for name in structure.parameters}


def _summarise(
    recording: Recording,
    structure: Structure,
    weights: Mapping[str, NDArray[np.floating[Any]]],
    *,
    epoch: int,
    per_layer: bool,
) -> dict[str, float]:
    """Return one snapshot's signature, or nothing where the weights are not finite."""
    if not all(np.isfinite(weight).all() for weight in weights.values()):
        return {}
    try:
        graph: LayeredGraph | UnrolledGraph = (
            unrolled_graph(structure, weights)
            if isinstance(structure, UnrolledStructure)
            else rolled_graph(structure, weights)
        )
        return layer_signature(graph) if per_layer else graph_signature(graph)
    except InvalidDataError as error:
        raise UnusableRunError(recording.path, f"epoch {epoch}: {error}") from error
