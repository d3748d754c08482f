"""The learning rates that the connectome-guided rule would have chosen, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import BoxAnnotation, Span

from dynome_analysis.report.figures.axes import frame, hover, legend_above, scale_for, source, time_axis
from dynome_analysis.report.figures.style import LIGHT, STATE_COLORS

if TYPE_CHECKING:
    import xarray as xr
    from bokeh.models import LayoutDOM
    from bokeh.plotting import figure
    from numpy.typing import NDArray

__all__ = ["constants_of", "learning_rate_figure"]


def constants_of(replayed: xr.Dataset) -> dict[str, float]:
    """Return the rule's constants with which a trace was replayed."""
    constants: dict[str, float] = json.loads(replayed.attrs["parameters"])["replay_learning_rate"]
    return constants


def learning_rate_figure(
    replayed: xr.Dataset, trained_rate: tuple[NDArray[Any], NDArray[Any]] | None = None
) -> LayoutDOM:
    """Draw distance, robust z-score with its thresholds, and rate, with the gate's states behind them.

    Parameters
    ----------
    replayed : Dataset
        From `replay_learning_rate`.
    trained_rate : pair of arrays, optional
        Epochs, and the rate that the run was really trained with.
    """
    time, label = time_axis(replayed)
    data = source(
        {
            "time": time,
            "distance": replayed["distance"].values,
            "z": np.where(np.isfinite(replayed["z"].values), replayed["z"].values, np.nan),
            "rate": replayed["rate"].values,
            "envelope": replayed["envelope"].values,
            "gain": replayed["gain"].values,
            "state": [str(state) or "no decision yet" for state in replayed["state"].values],
            "color": [LIGHT[STATE_COLORS.get(str(state), "gray")] for state in replayed["state"].values],
        }
    )
    tips = [
        (label, "@time"),
        ("state", "@state"),
        ("distance", "@distance{0.0000}"),
        ("z", "@z{0.00}"),
        ("gain", "@gain{0.000}"),
        ("rate", "@rate{0.00000}"),
    ]
    distances = frame(height=170, x_label=label, y_label="distance", y_axis_type=scale_for(replayed["distance"].values))
    scores = frame(height=190, x_label=label, y_label="robust z", x_range=distances.x_range)
    rates = frame(height=230, x_label=label, y_label="learning rate", x_range=distances.x_range)

    line = distances.line("time", "distance", source=data, line_color=LIGHT["blue"], line_width=2)
    hover(distances, [line], tips, mode="vline")

    line = scores.line("time", "z", source=data, line_color=LIGHT["muted"], line_width=1.5)
    scores.scatter("time", "z", source=data, size=7, color="color")
    hover(scores, [line], tips, mode="vline")
    constants = constants_of(replayed)
    for name, color in (("unstable", "orange"), ("stable", "green")):
        for threshold, dash in (("on", "dashed"), ("off", "dotted")):
            level = float(constants[f"{name}_{threshold}"])
            scores.add_layout(Span(location=level, dimension="width", line_color=LIGHT[color], line_dash=dash))

    line = rates.line("time", "rate", source=data, line_color=LIGHT["blue"], line_width=2.5, legend_label="replayed")
    rates.line(
        "time",
        "envelope",
        source=data,
        line_color=LIGHT["gray"],
        line_dash="dashed",
        line_width=1.5,
        legend_label="envelope",
    )
    if trained_rate is not None:
        rates.line(
            *trained_rate,
            line_color=LIGHT["ink"],
            line_dash="dotted",
            line_width=1.5,
            legend_label="as trained",
        )
    hover(rates, [line], tips, mode="vline")
    legend_above(rates)
    for plot in (distances, scores, rates):
        _shade_states(plot, time, [str(state) for state in replayed["state"].values])
    for plot in (distances, scores):
        plot.xaxis.axis_label = None
    return column(distances, scores, rates, sizing_mode="stretch_width", spacing=4)


def _shade_states(plot: figure, time: NDArray[Any], states: list[str]) -> None:
    """Shade the time between a decision and the next by the state that it was made in; neutral stays blank."""
    for place, state in enumerate(states):
        if state in ("STABLE", "UNSTABLE"):
            end = float(time[place + 1]) if place + 1 < len(time) else float(time[place]) + 0.5
            plot.add_layout(
                BoxAnnotation(
                    left=float(time[place]),
                    right=end,
                    fill_color=LIGHT[STATE_COLORS[state]],
                    fill_alpha=0.13,
                    line_color=None,
                    level="underlay",
                )
            )
