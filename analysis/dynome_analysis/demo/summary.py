"""The demo's results as one plain document: ``summary.json``.

Everything but ``timings`` depends on the settings alone, so an interrupted and resumed demo gives the same document as
one that ran through. What is not defined is null, never NaN.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

    from dynome_analysis.prediction import Prediction

__all__ = ["encode_summary", "package_versions", "summarize"]

PACKAGES = (
    "dynome",
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "zarr",
    "xarray",
    "dask",
    "numba",
    "giotto-tda",
    "giotto-ph",
    "ripser",
    "bokeh",
)


def summarize(
    analysis: xr.Dataset,
    stopping: xr.Dataset,
    learning_rate: xr.Dataset,
    prediction: Prediction,
    *,
    settings: Mapping[str, Any],
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Return the summary.

    Parameters
    ----------
    analysis, stopping, learning_rate : Dataset
        Of the main run: from `analyze`, `replay_stopping` and `replay_learning_rate`.
    prediction : Prediction
        Over the sweep.
    settings : mapping
        The demo's data set, seed and the like, taken over as they are.
    timings : mapping
        Seconds by part of the work.

    Returns
    -------
    dict
        Strict JSON values: ``snapshots``, ``sites``, ``units`` (numbers), ``site_names``, ``dead_units`` (one count per
        snapshot), ``stopping`` by rule, ``learning_rate`` as lists of one length, ``prediction`` with its baselines,
        ``settings``, ``versions``, ``timings``.
    """
    names = json.loads(analysis.attrs["sites"])
    summary = {
        "snapshots": analysis.sizes["snapshot"],
        "sites": len(names),
        "units": int(analysis.attrs["units"]),
        "site_names": names,
        "dead_units": analysis["dead_units"].values.tolist(),
        "stopping": {str(rule): _stopping_of(stopping.sel(rule=rule)) for rule in stopping["rule"].values},
        "learning_rate": {
            "loop": "open",
            "epochs": learning_rate["epoch"].values.tolist(),
            **{name: learning_rate[name].values.tolist() for name in ("distance", "z", "gain", "envelope", "rate")},
            "state": [str(state) or None for state in learning_rate["state"].values],
        },
        "prediction": _prediction_of(prediction),
        "settings": dict(settings),
        "versions": package_versions(),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
    }
    plain: dict[str, Any] = _plain(summary)
    return plain


def encode_summary(summary: Mapping[str, Any]) -> str:
    """Return the summary as strict JSON text."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def package_versions() -> dict[str, str | None]:
    """Return the versions of what the numbers may depend on; None where a package is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _prediction_of(prediction: Prediction) -> dict[str, Any]:
    """Return the prediction's summary with runs named by their folder: ids and whole paths differ from demo to demo."""
    excluded = [Path(run.path).name for run in prediction.excluded]
    return {**prediction.summary(), "excluded": excluded}


def _stopping_of(rule: xr.Dataset) -> dict[str, float | int | None]:
    epochs = {name: _epoch(float(rule[name])) for name in ("best_epoch", "trigger_epoch")}
    return {**epochs, **{name: float(rule[name]) for name in ("test_accuracy_best", "test_accuracy_trigger")}}


def _epoch(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _plain(value: Any) -> Any:
    """Return nested containers with Python numbers for numpy's and None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
