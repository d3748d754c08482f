"""What the report says about predicting final performance from the first epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.report.document import Drawing, Section, Table, number, plural
from dynome_analysis.report.figures.prediction import error_figure, prediction_figure

if TYPE_CHECKING:
    from dynome_analysis.prediction import Prediction, Score

__all__ = ["prediction_section"]

KEY = "prediction"
TITLE = "Predicting the end from the beginning"
METHODS = {
    "signature": "weight-graph signature",
    "mean": "mean of the other runs",
    "hyperparameters": "hyper-parameters only",
    "accuracy_at_T": "metric at the last epoch seen",
}


def prediction_section(prediction: Prediction | None) -> Section:
    """Return the section; without a prediction it says how to get one."""
    if prediction is None:
        return Section(
            key=KEY,
            title=TITLE,
            missing=("a prediction needs several recorded runs: give their folders to dynome predict",),
        )
    scores = {"signature": prediction.score, **prediction.baselines}
    known = [name for name, score in scores.items() if np.isfinite(score.mae)]
    table = prediction.table
    share = prediction.target.endswith("accuracy")
    best = min(known, key=lambda name: scores[name].mae)
    excluded = tuple(
        f"{plural(len(prediction.excluded), 'run')} took no part: {run.reason}" for run in prediction.excluded[:1]
    )
    return Section(
        key=KEY,
        title=TITLE,
        paragraphs=(
            f"The final {prediction.target.replace('_', ' ')} of {plural(prediction.n_runs, 'run')}, predicted from "
            f"the weights of their first {plural(prediction.epochs_used, 'epoch')} by models that have not seen the "
            "run. The weights are read as a graph of neurons; its degrees and eigenvector centralities are summed up "
            "in a few statistics [P: graph and centrality; O: which statistics, models and splits].",
            f"The smallest error here is that of “{METHODS[best]}”. A graph signature is worth something only where it "
            "beats the baselines, and few runs leave wide intervals.",
        ),
        drawings=(
            Drawing(
                model=prediction_figure(
                    [str(name) for name in table["name"]],
                    table["true"].to_numpy(),
                    table["predicted"].to_numpy(),
                    percent=share,
                ),
                title="Predicted against true",
                caption="A point per run, predicted from its weight graph; on the dashed line the prediction is exact.",
                description=f"Scatter plot of {plural(prediction.n_runs, 'run')}: R squared "
                f"{number(prediction.r2, '.2f')}, mean absolute error {_error(prediction.mae, share=share)}.",
                size="half",
            ),
            Drawing(
                model=error_figure(
                    [METHODS[name] for name in known],
                    np.array([scores[name].mae for name in known]),
                    percent=share,
                ),
                title="Error beside the baselines",
                caption="Mean absolute error of each way to predict, on the same runs and splits; shorter is better.",
                description="; ".join(f"{METHODS[name]} {_error(scores[name].mae, share=share)}" for name in known)
                + ".",
                size="half",
            ),
        ),
        tables=(
            Table(
                caption="Out-of-fold predictions with 95 % bootstrap intervals over configurations",
                header=(
                    "Predicted from",
                    "R²",
                    "R² interval",
                    "Mean absolute error" + (", points" if share else ""),
                    "Error interval",
                ),
                rows=tuple(_score_row(METHODS[name], score, share=share) for name, score in scores.items()),
            ),
            Table(
                caption="Every run, as numbers",
                header=("Run", "True", *(METHODS[name].capitalize() for name in scores)),
                rows=tuple(
                    (
                        str(row["name"]),
                        _value(row["true"], share=share),
                        _value(row["predicted"], share=share),
                        *(_value(row[f"predicted_{name}"], share=share) for name in prediction.baselines),
                    )
                    for _, row in table.iterrows()
                ),
                folded=True,
            ),
        ),
        missing=excluded,
    )


def _score_row(method: str, score: Score, *, share: bool) -> tuple[str, ...]:
    scale = 100.0 if share else 1.0
    form = ".1f" if share else ".4g"
    low, high = score.mae_interval
    return (
        method,
        number(score.r2, ".2f"),
        f"{number(score.r2_interval[0], '.2f')} to {number(score.r2_interval[1], '.2f')}",
        number(scale * score.mae, form),
        f"{number(scale * low, form)} to {number(scale * high, form)}",
    )


def _value(value: float, *, share: bool) -> str:
    return number(100 * value, ".1f") if share else number(value)


def _error(value: float, *, share: bool) -> str:
    return f"{number(100 * value, '.1f')} points" if share else number(value)
