"""What every figure shares: its frame, its time axis, its lines with something to hover."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["frame", "hover", "legend_above", "scale_for", "source", "time_axis"]

# No wheel: a figure must not catch the reader who scrolls the page.
TOOLS = "pan,box_zoom,reset,save"


def frame(
    *,
    height: int | None,
    x_label: str,
    y_label: str,
    x_range: Any = None,
    y_range: Any = None,
    y_axis_type: str = "auto",
    aspect_ratio: float | None = None,
) -> figure:
    """Return an empty figure as wide as its place on the page.

    Parameters
    ----------
    height : int or None
        Pixels; None where ``aspect_ratio`` (width over height) says it.
    x_label, y_label : str
        Axis labels: words of ours, never a name from a recording.
    x_range, y_range : optional
        A range of another figure to move with, or a pair of numbers.
    y_axis_type : {"auto", "log"}
        Scale of the vertical axis.
    """
    ranges = {name: value for name, value in (("x_range", x_range), ("y_range", y_range)) if value is not None}
    plot = figure(
        height=height,
        aspect_ratio=aspect_ratio,
        sizing_mode="stretch_width" if aspect_ratio is None else "scale_width",
        tools=TOOLS,
        toolbar_location="right",
        x_axis_label=x_label,
        y_axis_label=y_label,
        y_axis_type=y_axis_type,
        **ranges,
    )
    plot.toolbar.autohide = True
    plot.toolbar.logo = None
    plot.xgrid.visible = False
    return plot


def hover(plot: figure, renderers: Sequence[Any], tooltips: Sequence[tuple[str, str]], *, mode: str = "mouse") -> None:
    """Show values of the renderers' data where the reader points; ``mode`` "vline" reads along the time axis."""
    plot.add_tools(HoverTool(renderers=list(renderers), tooltips=list(tooltips), mode=mode, visible=False))


def legend_above(plot: figure, *, columns: int | Literal["auto"] = "auto") -> None:
    """Move the legend above the lines, where it hides none of them; a click on an entry hides its line."""
    legend = plot.legend[0]
    plot.center = [item for item in plot.center if item is not legend]
    legend.orientation = "horizontal"
    legend.ncols = columns
    legend.click_policy = "hide"
    plot.add_layout(legend, "above")


def source(columns: Mapping[str, Any]) -> ColumnDataSource:
    """Return columns for a figure; numbers travel as float64 or int64, everything else as lists."""
    plain = {}
    for name, values in columns.items():
        array = np.asarray(values)
        plain[name] = array if array.dtype.kind in "fi" else [str(value) for value in array]
    return ColumnDataSource(plain)


def scale_for(values: NDArray[Any]) -> str:
    """Return "log" where all values are positive: it shows what is small beside what is large. Else "auto"."""
    finite = values[np.isfinite(values)]
    return "log" if finite.size and finite.min() > 0 else "auto"


def time_axis(dataset: xr.Dataset) -> tuple[NDArray[np.int64], str]:
    """Return the position of each snapshot in time and the axis label: epochs, or steps where epochs repeat."""
    epochs = np.asarray(dataset["epoch"].values, np.int64)
    if len(np.unique(epochs)) == len(epochs):
        return epochs, "epoch"
    return np.asarray(dataset["step"].values, np.int64), "optimizer step"
