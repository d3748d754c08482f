"""Where each rule would have stopped the run, and what it watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.report.document import Drawing, Section, Table, describe, number, percent
from dynome_analysis.report.figures.stopping import metric_names, signal_figure, training_figure

if TYPE_CHECKING:
    import xarray as xr

    from dynome_analysis.report.evidence import Evidence

__all__ = ["RULE_WORDS", "stopping_section"]

RULE_WORDS = {"top": "TOP", "fp": "FP", "vl": "VL", "oracle": "oracle"}
_MEANINGS = {
    "top": "least change of the connectome's loops (deaths)",
    "fp": "strongest loops (functional persistence)",
    "vl": "lowest validation loss",
    "oracle": "highest test accuracy, known only afterwards",
}
# Label of the axis, whether it is logarithmic, what it is, and its mark; stopping by validation loss is no paper's.
_SIGNALS = {
    "top": (
        "change of deaths",
        True,
        "Distance between the deaths of consecutive snapshots; small is good.",
        "[O: signal and rule could not be read in the paper]",
    ),
    "fp": ("functional persistence", False, "L2 norm of the lifetimes of the loops (H1); large is good.", "[P]"),
    "vl": (
        "validation loss",
        True,
        "Loss on images that were held out of the training; small is good.",
        "",
    ),  # common practice, no paper's
}


def stopping_section(evidence: Evidence, key: str) -> Section:
    """Return the section."""
    stopping = evidence.stopping
    missing = [f"{RULE_WORDS[rule]}: {why}" for rule, why in evidence.missing.items() if rule in RULE_WORDS]
    names = [name for kind in ("loss", "accuracy") for name in metric_names(evidence.metrics, kind)]
    drawings = []
    if names:
        drawings.append(
            Drawing(
                model=training_figure(evidence.metrics, stopping),
                title="Loss, accuracy, and where each rule would have stopped",
                caption="Dotted lines mark each rule's best epoch. In the lowest panel a circle is the best epoch, "
                "whose weights a rule keeps, and a square the epoch after which it would have stopped. A line "
                "without a square runs to the end of the recording: that rule did not stop.",
                description=" ".join(describe(name, evidence.metrics[name].values) for name in names),
            )
        )
    else:
        missing.append("no metric whose name ends in loss or accuracy was recorded with recorder.epoch(...)")
    tables = [_metric_table(evidence.metrics, names)] if names else []
    if stopping is not None:
        tables.insert(0, _rule_table(stopping))
        drawings += [
            _signal_drawing(stopping, str(rule))
            for rule in stopping["rule"].values
            if str(rule) in _SIGNALS and np.isfinite(stopping["signal"].sel(rule=rule).values).any()
        ]
    return Section(
        key=f"{key}-stopping",
        title="Where to stop",
        paragraphs=(
            "Each rule walks the recorded epochs, remembers the best score of what it watches, and stops when the "
            "score has been strictly worse a number of times since [P: the functional-persistence authors' code]. "
            "TOP and FP look at the connectome of training images and need no held-out data; VL needs a validation "
            "set. All rules are replayed on the same run here, so TOP and FP get no credit for the data that they "
            "would have freed.",
        ),
        drawings=tuple(drawings),
        tables=tuple(tables),
        missing=tuple(missing),
    )


def _signal_drawing(stopping: xr.Dataset, rule: str) -> Drawing:
    label, logarithmic, meaning, mark = _SIGNALS[rule]
    title = f"What {RULE_WORDS[rule]} watches"
    return Drawing(
        model=signal_figure(stopping, rule, label, logarithmic=logarithmic),
        title=title,
        caption=f"{meaning} Circle: best epoch. Square: where the rule stops. {mark}".rstrip(),
        description=describe(f"{title}, {label}", stopping["signal"].sel(rule=rule).values),
        size="third",
    )


def _rule_table(stopping: xr.Dataset) -> Table:
    rules = [str(rule) for rule in stopping["rule"].values]
    oracle = float(stopping["test_accuracy_best"].sel(rule="oracle")) if "oracle" in rules else float("nan")
    rows = []
    for rule in rules:
        row = {str(name): float(stopping[name].sel(rule=rule)) for name in stopping.data_vars if name != "signal"}
        trigger = row["trigger_epoch"]
        never = "–" if rule == "oracle" else "never"
        rows.append(
            (
                f"{RULE_WORDS[rule]}: {_MEANINGS[rule]}",
                number(row["best_epoch"], ".0f"),
                percent(row["test_accuracy_best"]),
                f"{trigger:.0f}" if np.isfinite(trigger) else never,
                percent(row["test_accuracy_trigger"]),
                number(100 * (oracle - row["test_accuracy_best"]), ".1f"),
            )
        )
    return Table(
        caption="Best epoch and stop of each rule, with the test accuracy of the weights there",
        header=("Rule", "Best epoch", "Test accuracy", "Stops after", "Test accuracy", "Points below oracle"),
        rows=tuple(rows),
    )


def _metric_table(metrics: xr.Dataset, names: list[str]) -> Table:
    rows = tuple(
        (f"{int(epoch)}", *(number(float(metrics[name].values[place]), ".4f") for name in names))
        for place, epoch in enumerate(metrics["epoch"].values)
    )
    return Table(caption="The metrics of every epoch, as numbers", header=("Epoch", *names), rows=rows, folded=True)
