"""Analyse what a training run recorded: connectomes, signatures, reconfiguration.

Names are imported when they are first used, so that a command which needs none of the heavy libraries starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynome_analysis.labelled.changes import distance_matrix, noise_floor, reconfiguration
    from dynome_analysis.labelled.connectomes import connectomes
    from dynome_analysis.labelled.diagrams import rips
    from dynome_analysis.labelled.homology import graph_homology
    from dynome_analysis.pipeline import analyze
    from dynome_analysis.prediction.evaluate import Prediction, predict_performance
    from dynome_analysis.prediction.features import early_features
    from dynome_analysis.prediction.recorded import weight_signature
    from dynome_analysis.recording import Recording, open_recording
    from dynome_analysis.replay.replay import replay_learning_rate, replay_stopping

__all__ = [
    "Prediction",
    "Recording",
    "analyze",
    "connectomes",
    "distance_matrix",
    "early_features",
    "graph_homology",
    "noise_floor",
    "open_recording",
    "predict_performance",
    "reconfiguration",
    "replay_learning_rate",
    "replay_stopping",
    "rips",
    "weight_signature",
]

# Where each public name lives. No module may be called like a name below: importing it would put the module in the
# function's place.
_HOMES = {
    "Prediction": "prediction.evaluate",
    "Recording": "recording",
    "analyze": "pipeline",
    "connectomes": "labelled.connectomes",
    "distance_matrix": "labelled.changes",
    "early_features": "prediction.features",
    "graph_homology": "labelled.homology",
    "noise_floor": "labelled.changes",
    "open_recording": "recording",
    "predict_performance": "prediction.evaluate",
    "reconfiguration": "labelled.changes",
    "replay_learning_rate": "replay.replay",
    "replay_stopping": "replay.replay",
    "rips": "labelled.diagrams",
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
