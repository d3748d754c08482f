"""What the demo found, as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

__all__ = ["closing_table"]

RULES = {
    "top": "TOP: least change",
    "fp": "FP: strongest loops",
    "vl": "VL: validation loss",
    "oracle": "oracle",
}
ESTIMATORS = {
    "mean": "mean of the other runs",
    "hyperparameters": "hyper-parameters only",
    "accuracy_at_T": "accuracy at the last epoch seen",
}


def closing_table(summary: Mapping[str, Any]) -> RenderableType:
    """Return the stopping and the prediction results of a demo's summary for a rich console."""
    stopping = Table(title="Where each rule would have stopped, and the test accuracy there", title_justify="left")
    stopping.add_column("rule")
    for name in ("best epoch", "accuracy", "stops after", "accuracy"):
        stopping.add_column(name, justify="right")
    for rule, row in summary["stopping"].items():
        stopping.add_row(
            RULES.get(rule, rule),
            _number(row["best_epoch"], "d"),
            _number(row["test_accuracy_best"], ".1%"),
            # The oracle looks back over the whole run: it does not stop.
            "never" if row["trigger_epoch"] is None and rule != "oracle" else _number(row["trigger_epoch"], "d"),
            _number(row["test_accuracy_trigger"], ".1%"),
        )
    predicted = summary["prediction"]
    prediction = Table(
        title=f"Final accuracy of {predicted['n_runs']} short runs from their first {predicted['epochs_used']} epochs",
        title_justify="left",
    )
    prediction.add_column("predicted from")
    prediction.add_column("R²", justify="right")
    prediction.add_column("mean error, points", justify="right")
    prediction.add_row("weight graph", *_scores(predicted))
    for name, scores in predicted["baselines"].items():
        prediction.add_row(ESTIMATORS.get(name, name), *_scores(scores))
    counts = Text(
        f"{summary['snapshots']} snapshots of {summary['units']} units at {summary['sites']} sites; "
        f"at most {max(summary['dead_units'])} dead units; {summary['timings']['total']:.0f} s"
    )
    return Group(stopping, prediction, counts)


def _scores(scores: Mapping[str, Any]) -> tuple[str, str]:
    return _number(scores["r2"], ".2f"), _number(None if scores["mae"] is None else 100 * scores["mae"], ".1f")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
