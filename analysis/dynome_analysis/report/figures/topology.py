"""How the connectome changed: reconfiguration, births and deaths, loops, the matrix of all distances, dead units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, FixedTicker, LinearColorMapper, LogColorMapper
from bokeh.palettes import Viridis256

from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.report.figures.axes import frame, hover, legend_above, scale_for, source, time_axis
from dynome_analysis.report.figures.style import LIGHT

if TYPE_CHECKING:
    import xarray as xr
    from bokeh.plotting import figure
    from numpy.typing import NDArray

__all__ = [
    "QUANTILES",
    "dead_units_figure",
    "distance_matrix_figure",
    "fan_figure",
    "reconfiguration_figure",
    "series_figure",
    "spread",
]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def reconfiguration_figure(analysis: xr.Dataset) -> figure:
    """Draw the distance between consecutive snapshots on births and on deaths, above the noise floors of the latter."""
    time, label = time_axis(analysis)
    columns: dict[str, Any] = {
        "time": time,
        "deaths": analysis["reconfiguration_deaths"].values,
        "births": analysis["reconfiguration_births"].values,
        "paired": analysis["noise_floor_paired"].values,
        "halves": analysis["noise_floor_two_halves"].values,
    }
    values = np.concatenate([columns[name] for name in ("deaths", "births", "paired", "halves")])
    plot = frame(height=320, x_label=label, y_label="distance to the snapshot before", y_axis_type=scale_for(values))
    data = source(columns)
    styles = {
        "deaths": ("blue", "solid", 2.5, "deaths (loops)"),
        "births": ("orange", "solid", 1.5, "births (components)"),
        "paired": ("gray", "dashed", 1.5, "paired floor of deaths"),
        "halves": ("gray", "dotted", 1.5, "two-halves floor of deaths"),
    }
    lines = {
        name: plot.line(
            "time",
            name,
            source=data,
            line_color=LIGHT[color],
            line_dash=dash,
            line_width=width,
            legend_label=words,
        )
        for name, (color, dash, width, words) in styles.items()
    }
    tips = [(words, f"@{name}{{0.0000}}") for name, (*_, words) in styles.items()]
    hover(plot, [lines["deaths"]], [(label, "@time"), *tips], mode="vline")
    legend_above(plot)
    return plot


def spread(analysis: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Return the `QUANTILES` of ``births`` or ``deaths`` of each snapshot; float64 (quantile, snapshot).

    One snapshot at a time, since all deaths together may not fit in memory; counted deaths are within half a bin.
    """
    rows = range(analysis.sizes["snapshot"])
    if name in analysis:
        return np.column_stack([np.quantile(analysis[name][row].values, QUANTILES) for row in rows])
    counted = analysis["death_counts"]
    return np.column_stack([WeightHistogram(counted[row].values).quantile(QUANTILES) for row in rows]).astype(float)


def fan_figure(analysis: xr.Dataset, name: str, y_label: str, color: str) -> figure:
    """Draw the spread of ``births`` or ``deaths`` of each snapshot: the median and the middle half and nine tenths."""
    time, label = time_axis(analysis)
    low, quarter, median, three_quarters, high = spread(analysis, name)
    data = source(
        {"time": time, "low": low, "quarter": quarter, "median": median, "three_quarters": three_quarters, "high": high}
    )
    plot = frame(height=260, x_label=label, y_label=y_label, y_range=(0, 1))
    plot.varea("time", "low", "high", source=data, fill_color=LIGHT[color], fill_alpha=0.18, legend_label="5 to 95 %")
    plot.varea(
        "time",
        "quarter",
        "three_quarters",
        source=data,
        fill_color=LIGHT[color],
        fill_alpha=0.3,
        legend_label="25 to 75 %",
    )
    line = plot.line("time", "median", source=data, line_color=LIGHT[color], line_width=2.5, legend_label="median")
    tips = [
        ("95 %", "@high{0.000}"),
        ("75 %", "@three_quarters{0.000}"),
        ("median", "@median{0.000}"),
        ("25 %", "@quarter{0.000}"),
        ("5 %", "@low{0.000}"),
    ]
    hover(plot, [line], [(label, "@time"), *tips], mode="vline")
    legend_above(plot, columns=2)
    return plot


def series_figure(analysis: xr.Dataset, name: str, y_label: str, color: str) -> figure:
    """Draw one number per snapshot, such as ``functional_persistence`` or ``reconfiguration_frobenius``."""
    time, label = time_axis(analysis)
    return _line_figure(time, analysis[name].values, label, y_label, color)


def dead_units_figure(analysis: xr.Dataset) -> figure:
    """Draw how many units were constant over the probe."""
    time, label = time_axis(analysis)
    counts = analysis["dead_units"].values
    top = max(1.0, float(counts.max()) * 1.1)
    return _line_figure(time, counts, label, "dead units", "purple", y_range=(0, top), form="0")


def distance_matrix_figure(analysis: xr.Dataset) -> figure:
    """Draw the distances between all pairs of snapshots as an image."""
    time, label = time_axis(analysis)
    matrix = np.asarray(analysis["distance_matrix"].values, np.float32)
    count = len(time)
    rows, columns = np.meshgrid(time.astype(np.int32), time.astype(np.int32), indexing="ij")
    mapper = _color_mapper(matrix)
    plot = frame(
        height=None,
        aspect_ratio=1.16,
        x_label=label,
        y_label=label,
        x_range=(-0.5, count - 0.5),
        # Downwards, as a matrix is read.
        y_range=(count - 0.5, -0.5),
    )
    data = ColumnDataSource({"matrix": [matrix], "row": [rows], "column": [columns]})
    image = plot.image(
        "matrix", source=data, x=-0.5, y=-0.5, dw=count, dh=count, color_mapper=mapper, origin="bottom_left"
    )
    places = _tick_places(count)
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = FixedTicker(ticks=places)
        axis.major_label_overrides = {place: str(time[place]) for place in places}
    plot.grid.visible = False
    plot.add_layout(ColorBar(color_mapper=mapper, title="distance", width=14), "right")
    hover(plot, [image], [(label, "@row and @column"), ("distance", "@matrix{0.000}")])
    return plot


def _color_mapper(matrix: NDArray[np.float32]) -> LinearColorMapper | LogColorMapper:
    """Return logarithmic colours from the smallest distance up, so that small changes show; zeros stay darkest."""
    positive = matrix[matrix > 0]
    if not positive.size or positive.min() == positive.max():
        return LinearColorMapper(palette=Viridis256, low=0.0, high=float(max(matrix.max(), 1e-9)))
    return LogColorMapper(palette=Viridis256, low=float(positive.min()), high=float(positive.max()))


def _line_figure(
    time: NDArray[np.int64],
    values: NDArray[Any],
    x_label: str,
    y_label: str,
    color: str,
    *,
    y_range: tuple[float, float] | None = None,
    form: str = "0.0000",
) -> figure:
    plot = frame(height=220, x_label=x_label, y_label=y_label, y_range=y_range)
    line = plot.line(
        "time", "value", source=source({"time": time, "value": values}), line_color=LIGHT[color], line_width=2
    )
    hover(plot, [line], [(x_label, "@time"), (y_label, f"@value{{{form}}}")], mode="vline")
    return plot


def _tick_places(count: int) -> list[int]:
    """Return about nine evenly spaced positions out of ``count``."""
    stride = max(1, int(np.ceil(count / 9)))
    nice = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, stride) if step >= stride)
    return list(range(0, count, nice))
