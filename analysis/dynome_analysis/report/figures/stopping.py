"""Loss and accuracy over epochs, and where each stopping rule would have ended the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import FactorRange, Range1d, Span

from dynome_analysis.report.figures.axes import frame, hover, legend_above, scale_for, source
from dynome_analysis.report.figures.style import LIGHT, RULE_COLORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from bokeh.models import LayoutDOM
    from bokeh.plotting import figure

__all__ = ["metric_names", "signal_figure", "training_figure"]

# Colour and dash of the known metrics, by the split that they judge; the rest is drawn in gray.
_SPLITS = {"train": ("gray", "dashed"), "val": ("sky", "solid"), "test": ("ink", "solid")}
_LABELS = {"train": "training", "val": "validation", "test": "test"}


def metric_names(metrics: xr.Dataset, kind: str) -> list[str]:
    """Return the recorded metrics of a kind ("loss" or "accuracy") that hold a number: training first, test last."""
    order = {name: place for place, name in enumerate(_SPLITS)}
    names = [
        str(name)
        for name, series in metrics.data_vars.items()
        if str(name).split("_")[-1] == kind and np.isfinite(series.values).any()
    ]
    return sorted(names, key=lambda name: (order.get(_split_of(name), len(order)), name))


def training_figure(metrics: xr.Dataset, stopping: xr.Dataset | None) -> LayoutDOM:
    """Draw loss, accuracy and, below them on the same epochs, best and trigger epoch of each rule.

    Parameters
    ----------
    metrics : Dataset
        Epoch metrics on dimension ``epoch``; names end in ``loss`` or ``accuracy``.
    stopping : Dataset, optional
        From `replay_stopping`.
    """
    epochs = metrics["epoch"].values
    x_range = Range1d(float(epochs.min()) - 0.5, float(epochs.max()) + 0.5)
    panels = []
    for kind, label in (("loss", "loss"), ("accuracy", "accuracy, %")):
        names = metric_names(metrics, kind)
        if names:
            panels.append(_metric_panel(metrics, names, label, x_range, percent=kind == "accuracy"))
    if stopping is not None and stopping.sizes["rule"]:
        for panel in panels:
            _mark_best_epochs(panel, stopping)
        panels.append(_rule_panel(stopping, x_range))
    for panel in panels[:-1]:
        panel.xaxis.axis_label = None
    return column(*panels, sizing_mode="stretch_width", spacing=4)


def signal_figure(stopping: xr.Dataset, rule: str, y_label: str, *, logarithmic: bool) -> figure:
    """Draw what one rule watches over the epochs, with its best epoch and the epoch at which it would have stopped."""
    row = stopping.sel(rule=rule)
    values = row["signal"].values
    shown = np.isfinite(values)
    epochs, values = stopping["epoch"].values[shown], values[shown]
    color = LIGHT[RULE_COLORS.get(rule, "gray")]
    plot = frame(height=210, x_label="epoch", y_label=y_label, y_axis_type=scale_for(values) if logarithmic else "auto")
    line = plot.line(
        "epoch", "value", source=source({"epoch": epochs, "value": values}), line_color=color, line_width=2
    )
    hover(plot, [line], [("epoch", "@epoch"), (y_label, "@value{0.0000}")], mode="vline")
    for name, marker, fill in (("best_epoch", "circle", color), ("trigger_epoch", "square", LIGHT["paper"])):
        epoch = float(row[name])
        if epoch in epochs:
            at = float(values[epochs == epoch][0])
            plot.scatter([epoch], [at], marker=marker, size=10, line_color=color, line_width=2, fill_color=fill)
    return plot


def _metric_panel(
    metrics: xr.Dataset, names: Sequence[str], y_label: str, x_range: Range1d, *, percent: bool
) -> figure:
    scale = 100.0 if percent else 1.0
    values = np.concatenate([metrics[name].values for name in names])
    plot = frame(
        height=230,
        x_label="epoch",
        y_label=y_label,
        x_range=x_range,
        y_axis_type="auto" if percent else scale_for(values),
    )
    columns: dict[str, Any] = {"epoch": metrics["epoch"].values}
    columns |= {f"metric{place}": scale * metrics[name].values for place, name in enumerate(names)}
    data = source(columns)
    lines = []
    for place, name in enumerate(names):
        color, dash = _SPLITS.get(_split_of(name), ("gray", "dotted"))
        line = plot.line(
            "epoch",
            f"metric{place}",
            source=data,
            line_color=LIGHT[color],
            line_dash=dash,
            line_width=2,
            legend_label=_label_of(name, place),
        )
        lines.append(line)
    form = "{0.0}" if percent else "{0.000}"
    tips = [(_label_of(name, place), f"@metric{place}{form}") for place, name in enumerate(names)]
    hover(plot, lines[-1:], [("epoch", "@epoch"), *tips], mode="vline")
    legend_above(plot)
    return plot


def _mark_best_epochs(plot: figure, stopping: xr.Dataset) -> None:
    for rule in stopping["rule"].values:
        epoch = float(stopping["best_epoch"].sel(rule=rule))
        if np.isfinite(epoch):
            plot.add_layout(
                Span(
                    location=epoch,
                    dimension="height",
                    line_color=LIGHT[RULE_COLORS.get(str(rule), "gray")],
                    line_dash="dotted",
                    line_width=1.5,
                )
            )


def _rule_panel(stopping: xr.Dataset, x_range: Range1d) -> figure:
    """A row per rule: a filled circle at its best epoch, a square where it would have stopped, a line between."""
    rules = [str(rule) for rule in stopping["rule"].values]
    names = [rule.upper() if rule in ("top", "fp", "vl") else rule for rule in rules]
    colors = [LIGHT[RULE_COLORS.get(rule, "gray")] for rule in rules]
    best, trigger = stopping["best_epoch"].values, stopping["trigger_epoch"].values
    last = float(stopping["epoch"].values.max())
    data = source(
        {
            "rule": names,
            "color": colors,
            "best": best,
            "trigger": trigger,
            # A rule that never triggered went on to the end of the recording.
            "end": np.where(np.isfinite(trigger), trigger, np.where([rule == "oracle" for rule in rules], best, last)),
            "best_accuracy": 100 * stopping["test_accuracy_best"].values,
            "trigger_accuracy": 100 * stopping["test_accuracy_trigger"].values,
        }
    )
    plot = frame(
        height=64 + 26 * len(rules), x_label="epoch", y_label="rule", x_range=x_range, y_range=FactorRange(*names[::-1])
    )
    plot.segment("best", "rule", "end", "rule", source=data, line_color="color", line_width=3, line_alpha=0.5)
    circles = plot.scatter("best", "rule", source=data, marker="circle", size=11, color="color")
    squares = plot.scatter(
        "trigger",
        "rule",
        source=data,
        marker="square",
        size=10,
        line_color="color",
        line_width=2,
        fill_color=LIGHT["paper"],
    )
    tips = [
        ("rule", "@rule"),
        ("best epoch", "@best"),
        ("test accuracy there", "@best_accuracy{0.0} %"),
        ("would have stopped at", "@trigger"),
        ("test accuracy there", "@trigger_accuracy{0.0} %"),
    ]
    hover(plot, [circles, squares], tips)
    return plot


def _split_of(name: str) -> str:
    start = name.split("_")[0]
    return {"validation": "val", "training": "train"}.get(start, start)


def _label_of(name: str, place: int) -> str:
    """Return our word for a known split; a user's name stays out of canvas text, which could be read as mathematics."""
    return _LABELS.get(_split_of(name), f"metric {place + 1}")
