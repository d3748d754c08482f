"""Analyse what a training run recorded: connectomes, signatures, reconfiguration.

Names are imported when they are first used, so that a command which needs none of the heavy libraries starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynome_analysis.labelled.centralities import connectome_centrality
    from dynome_analysis.labelled.centroids import topological_centroid
    from dynome_analysis.labelled.changes import distance_matrix, noise_floor, reconfiguration
    from dynome_analysis.labelled.connectomes import connectomes, site_blocks
    from dynome_analysis.labelled.diagrams import rips
    from dynome_analysis.labelled.exchange import export_diagrams, import_diagrams
    from dynome_analysis.labelled.homology import graph_homology
    from dynome_analysis.labelled.layer_persistence import neural_persistence
    from dynome_analysis.labelled.summaries import diagram_summaries
    from dynome_analysis.labelled.tiles import tiled_homology
    from dynome_analysis.persistence.transformers import Connectome, VietorisRipsPersistence
    from dynome_analysis.pipeline.analysis import analyze
    from dynome_analysis.prediction.evaluate import Prediction, predict_performance
    from dynome_analysis.prediction.features import early_features
    from dynome_analysis.prediction.recorded import weight_signature
    from dynome_analysis.recording import Recording, open_recording
    from dynome_analysis.replay.replay import replay_learning_rate, replay_stopping

__all__ = [
    "Connectome",
    "Prediction",
    "Recording",
    "VietorisRipsPersistence",
    "analyze",
    "connectome_centrality",
    "connectomes",
    "diagram_summaries",
    "distance_matrix",
    "early_features",
    "export_diagrams",
    "graph_homology",
    "import_diagrams",
    "neural_persistence",
    "noise_floor",
    "open_recording",
    "predict_performance",
    "reconfiguration",
    "replay_learning_rate",
    "replay_stopping",
    "rips",
    "site_blocks",
    "tiled_homology",
    "topological_centroid",
    "weight_signature",
]

# Where each public name lives. No module may be called like a name below: importing it would put the module in the
# function's place.
_HOMES = {
    "Connectome": "persistence.transformers",
    "Prediction": "prediction.evaluate",
    "Recording": "recording",
    "VietorisRipsPersistence": "persistence.transformers",
    "analyze": "pipeline.analysis",
    "connectome_centrality": "labelled.centralities",
    "connectomes": "labelled.connectomes",
    "diagram_summaries": "labelled.summaries",
    "distance_matrix": "labelled.changes",
    "early_features": "prediction.features",
    "export_diagrams": "labelled.exchange",
    "graph_homology": "labelled.homology",
    "import_diagrams": "labelled.exchange",
    "neural_persistence": "labelled.layer_persistence",
    "noise_floor": "labelled.changes",
    "open_recording": "recording",
    "predict_performance": "prediction.evaluate",
    "reconfiguration": "labelled.changes",
    "replay_learning_rate": "replay.replay",
    "replay_stopping": "replay.replay",
    "rips": "labelled.diagrams",
    "site_blocks": "labelled.connectomes",
    "tiled_homology": "labelled.tiles",
    "topological_centroid": "labelled.centroids",
    "weight_signature": "prediction.recorded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
