"""Predicted against true performance, and how large the errors are beside the baselines'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.models import FactorRange, Slope

from dynome_analysis.report.figures.axes import frame, hover, source
from dynome_analysis.report.figures.style import LIGHT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bokeh.plotting import figure
    from numpy.typing import NDArray

__all__ = ["error_figure", "prediction_figure"]


def prediction_figure(names: Sequence[str], true: NDArray[Any], predicted: NDArray[Any], *, percent: bool) -> figure:
    """Draw a point per run; on the line the prediction is exact.

    Parameters
    ----------
    names : sequence of str
        Name of each run, shown when pointed at.
    true, predicted : ndarray of float64, shape (run,)
    percent : bool
        Whether the values are shares to be shown in percent.
    """
    scale, unit = (100.0, ", %") if percent else (1.0, "")
    true, predicted = scale * np.asarray(true, np.float64), scale * np.asarray(predicted, np.float64)
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    margin = 0.05 * max(high - low, 1e-3)
    both = (low - margin, high + margin)
    plot = frame(height=380, x_label=f"true{unit}", y_label=f"predicted{unit}", x_range=both, y_range=both)
    plot.xgrid.visible = True
    plot.add_layout(Slope(gradient=1, y_intercept=0, line_color=LIGHT["gray"], line_dash="dashed", line_width=1.5))
    points = plot.scatter(
        "true",
        "predicted",
        source=source({"run": list(names), "true": true, "predicted": predicted}),
        size=9,
        fill_color=LIGHT["blue"],
        fill_alpha=0.65,
        line_color=LIGHT["blue"],
    )
    hover(plot, [points], [("run", "@run"), ("true", "@true{0.0}"), ("predicted", "@predicted{0.0}")])
    return plot


def error_figure(methods: Sequence[str], errors: NDArray[Any], *, percent: bool) -> figure:
    """Draw the mean absolute error of each method, the first one in colour and the baselines in gray."""
    scale, unit = (100.0, ", points") if percent else (1.0, "")
    colors = [LIGHT["blue"], *[LIGHT["gray"]] * (len(methods) - 1)]
    values = scale * np.asarray(errors, np.float64)
    plot = frame(
        height=70 + 34 * len(methods),
        x_label=f"mean absolute error{unit}",
        y_label="",
        y_range=FactorRange(*list(methods)[::-1]),
        x_range=(0.0, float(np.nanmax(values)) * 1.08 or 1.0),
    )
    plot.xgrid.visible, plot.ygrid.visible = True, False
    bars = plot.hbar(
        y="method",
        right="error",
        height=0.6,
        source=source({"method": list(methods), "error": values, "color": colors}),
        color="color",
        fill_alpha=0.8,
    )
    hover(plot, [bars], [("method", "@method"), ("mean absolute error", "@error{0.00}")])
    return plot
