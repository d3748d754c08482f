"""What commands say: results as plain documents for ``--json``, and the same documents as tables for people."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from rich.console import RenderableType

    from dynome_analysis.prediction import Prediction
    from dynome_analysis.recording import Recording

__all__ = [
    "analysis_document",
    "analysis_table",
    "demo_table",
    "learning_rate_document",
    "learning_rate_tables",
    "prediction_document",
    "prediction_tables",
    "stopping_document",
    "stopping_tables",
]

NOTHING = "–"
NEVER = "never triggered"
BASELINES = {
    "mean": "mean of the other runs",
    "hyperparameters": "hyper-parameters only",
    "accuracy_at_T": "the target at the last epoch seen",
}


def analysis_document(recording: Recording, analysis: xr.Dataset) -> dict[str, Any]:
    """Return one analysis without its large arrays: every series over snapshots, by its name."""
    series = {str(name): array.values for name, array in analysis.data_vars.items() if array.dims == ("snapshot",)}
    return {
        **_identity(recording),
        "snapshots": analysis.sizes["snapshot"],
        "sites": json.loads(analysis.attrs["sites"]),
        "units": int(analysis.attrs["units"]),
        "epoch": analysis["epoch"].values,
        "step": analysis["step"].values,
        **series,
    }


def analysis_table(document: Mapping[str, Any]) -> RenderableType:
    """Return one row per analysed recording."""
    table = Table(
        title="Analysed; cached in analysis.zarr beside each recording that can be written", title_justify="left"
    )
    table.add_column("recording", overflow="fold")
    for name in ("snapshots", "epochs", "units", "dead", "last change of deaths", "paired noise", "FP"):
        table.add_column(name, justify="right")
    for row in document["recordings"]:
        table.add_row(
            Text(str(row["path"])),
            str(row["snapshots"]),
            f"{row['epoch'][0]} to {row['epoch'][-1]}",
            str(row["units"]),
            str(max(row["dead_units"])),
            *(
                _number(float(row[name][-1]))
                for name in ("reconfiguration_deaths", "noise_floor_paired", "functional_persistence")
            ),
        )
    return table


def stopping_document(recording: Recording, result: xr.Dataset) -> dict[str, Any]:
    """Return one recording's replayed stopping rules."""
    rules = [str(rule) for rule in result["rule"].values]
    return {
        **_identity(recording),
        "stopping": {
            rule: {
                name: _epoch(row[name].item()) if name.endswith("_epoch") else row[name].item()
                for name in ("best_epoch", "trigger_epoch", "test_accuracy_best", "test_accuracy_trigger")
            }
            for rule, row in ((rule, result.sel(rule=rule)) for rule in rules)
        },
        "epochs": result["epoch"].values,
        "signal": {rule: result["signal"].sel(rule=rule).values for rule in rules},
        "parameters": json.loads(result.attrs["parameters"])["replay_stopping"],
    }


def stopping_tables(document: Mapping[str, Any]) -> RenderableType:
    """Return one table per recording; a rule that never stopped says so."""
    tables: list[RenderableType] = []
    for one in document["recordings"]:
        settings = one["parameters"]
        metric = settings["test_metric"] or "no test metric"
        tables.append(Text(f"{one['path']}: patience {settings['patience']}, burn-in {settings['burn_in']}", "bold"))
        table = Table()
        table.add_column("rule")
        for name in ("best epoch", "stopped at", f"{metric}, best epoch", f"{metric}, stop"):
            table.add_column(name, justify="right")
        for rule, row in one["stopping"].items():
            never = NOTHING if rule == "oracle" else NEVER
            table.add_row(
                rule,
                NOTHING if row["best_epoch"] is None else str(row["best_epoch"]),
                never if row["trigger_epoch"] is None else str(row["trigger_epoch"]),
                _number(row["test_accuracy_best"]),
                _number(row["test_accuracy_trigger"]),
            )
        tables.append(table)
    return Group(*tables)


def learning_rate_document(recording: Recording, result: xr.Dataset) -> dict[str, Any]:
    """Return one recording's replayed learning rates, as lists of one length."""
    return {
        **_identity(recording),
        "epochs": result["epoch"].values,
        "steps": result["step"].values,
        **{name: result[name].values for name in ("distance", "z", "gain", "envelope", "rate")},
        "state": [str(state) or None for state in result["state"].values],
        "parameters": json.loads(result.attrs["parameters"])["replay_learning_rate"],
    }


def learning_rate_tables(document: Mapping[str, Any]) -> RenderableType:
    """Return one table per recording, and that the loop is open."""
    parts: list[RenderableType] = [Text(str(document["note"]).capitalize() + ".", style="bold")]
    for one in document["recordings"]:
        settings = one["parameters"]
        settled = f"distance {settings['distance']}, base rate {settings['base_rate']:g}, open loop"
        parts.append(Text(f"{one['path']}: {settled}", "bold"))
        table = Table()
        for name in ("epoch", "step", "distance", "z", "state", "gain", "rate"):
            table.add_column(name, justify="left" if name == "state" else "right")
        columns = [one[name] for name in ("epochs", "steps", "distance", "z", "state", "gain", "rate")]
        for epoch, step, distance, z, state, gain, rate in zip(*columns):
            table.add_row(
                str(epoch), str(step), _number(distance), _number(z), state or NOTHING, _number(gain), _number(rate)
            )
        parts.append(table)
    return Group(*parts)


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """Return the figures of a prediction with its runs."""
    runs = prediction.table.reset_index().to_dict(orient="records")
    return {**prediction.summary(), "runs": runs}


def prediction_tables(document: Mapping[str, Any]) -> RenderableType:
    """Return scores beside baselines, the runs, and who took no part."""
    scores = Table(
        title=Text(
            f"Final {document['target']} of {document['n_runs']} runs, from epochs 1 to {document['epochs_used']}"
        ),
        title_justify="left",
    )
    scores.add_column("predicted from")
    for name in ("R²", "95 %", "mean error", "95 %"):
        scores.add_column(name, justify="right")
    rows = {f"weight graphs ({document['estimator']})": document}
    rows |= {BASELINES.get(name, name): row for name, row in document["baselines"].items()}
    for name, row in rows.items():
        scores.add_row(
            name, _number(row["r2"]), _interval(row["r2_interval"]), _number(row["mae"]), _interval(row["mae_interval"])
        )
    runs = Table(title="Each run", title_justify="left")
    runs.add_column("run", overflow="fold")
    for name in ("true", "predicted"):
        runs.add_column(name, justify="right")
    for run in document["runs"]:
        runs.add_row(Text(str(run["name"])), _number(run["true"]), _number(run["predicted"]))
    left_out = [Text(f"left out: {one['run']}: {one['reason']}") for one in document["excluded"]]
    return Group(scores, runs, *left_out)


def demo_table(document: Mapping[str, Any]) -> RenderableType:
    """Return the demo's closing table and where its files are."""
    from dynome_analysis.demo import closing_table

    where = Text(f"summary: {document['summary']}\nreport:  {document['report']}")
    return Group(closing_table(document), where)


def _identity(recording: Recording) -> dict[str, Any]:
    return {"path": str(recording.path), "id": recording.id}


def _epoch(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


def _number(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.4g}"


def _interval(bounds: list[float | None]) -> str:
    return f"{_number(bounds[0])} to {_number(bounds[1])}"
