"""How the connectome changed: reconfiguration and its noise, births and deaths, all epochs against all, dead units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.homology.births import number_of_deaths
from dynome_analysis.report.document import Drawing, Section, Table, describe, number
from dynome_analysis.report.figures.axes import time_axis
from dynome_analysis.report.figures.topology import (
    QUANTILES,
    dead_units_figure,
    distance_matrix_figure,
    fan_figure,
    reconfiguration_figure,
    series_figure,
    spread,
)

if TYPE_CHECKING:
    import xarray as xr

    from dynome_analysis.report.evidence import Evidence

__all__ = ["dead_units_section", "homology_section", "matrix_section", "reconfiguration_section"]


def reconfiguration_section(evidence: Evidence, key: str) -> Section:
    """Return how far each snapshot is from the one before, beside what chance alone gives."""
    title = "How much the network reconfigured"
    analysis = evidence.analysis
    if analysis is None or analysis.sizes["snapshot"] < 2:
        return Section(key=f"{key}-reconfiguration", title=title, missing=(_why_no_change(evidence),))
    floor = analysis["noise_floor_paired"].values
    loops = Drawing(
        model=series_figure(analysis, "reconfiguration_wasserstein", "Wasserstein distance", "green"),
        title="Change of the loops (H1)",
        caption="Wasserstein distance between the H1 diagrams of consecutive snapshots. [P names the "
        "distance; O: which diagram]",
        description=describe("Wasserstein distance", analysis["reconfiguration_wasserstein"].values),
        size="half",
    )
    left_out = _why_no_loops(analysis)
    return Section(
        key=f"{key}-reconfiguration",
        title=title,
        paragraphs=(
            "The connectome of a snapshot holds the absolute Pearson correlation of every pair of units over the probe "
            "[P]. A rising threshold takes its edges away, weakest first: components are born and loops die [G]. The "
            "distance between two snapshots compares their sorted births and deaths one by one, which is the exact "
            "2-Wasserstein distance [G].",
        ),
        drawings=(
            Drawing(
                model=reconfiguration_figure(analysis),
                title="Distance to the snapshot before, and its noise floors",
                caption="How far births and deaths moved since the snapshot before. A change near the dashed line "
                "cannot be told from the chance of which samples are in the probe: the paired floor compares two "
                "halves of the probe on the same step. The dotted floor is the distance between the halves at one "
                "snapshot; it is too high for a probe that stays the same, and is shown for comparison. [O]",
                description=describe("Distance of deaths", analysis["reconfiguration_deaths"].values)
                + " "
                + describe("Distance of births", analysis["reconfiguration_births"].values)
                + " "
                + describe("Paired noise floor", floor),
            ),
            Drawing(
                model=series_figure(analysis, "reconfiguration_frobenius", "Frobenius distance", "sky"),
                title="Plain change of the connectome",
                caption="Frobenius norm of the difference of consecutive connectomes: the control that knows which "
                "units changed. Births and deaths forget that. [O]",
                description=describe("Frobenius distance", analysis["reconfiguration_frobenius"].values),
                size="half",
            ),
            *(() if left_out else (loops,)),
        ),
        tables=(_change_table(analysis),),
        missing=left_out,
    )


def homology_section(evidence: Evidence, key: str) -> Section:
    """Return the spread of births and deaths, and the loops."""
    title = "Births, deaths and loops"
    analysis = evidence.analysis
    if analysis is None:
        return Section(key=f"{key}-homology", title=title, missing=(evidence.missing["analysis"],))
    units = int(analysis.attrs["units"])
    kinds = (
        ("births", units - 1, "components", "orange", "High births: every unit is strongly tied to some other."),
        ("deaths", number_of_deaths(units), "loops", "blue", "High deaths: the rest of the graph is dense too."),
    )
    fans = [
        Drawing(
            model=fan_figure(analysis, name, "absolute correlation", color),
            title=f"{name.capitalize()} ({what})",
            caption=f"{count:,} {name} per snapshot: the line is the median, the bands hold the "
            f"middle half and the middle nine tenths. {meaning} [G]",
            description=describe(f"Median of the {name}", spread(analysis, name)[QUANTILES.index(0.5)]),
            size="half",
        )
        for name, count, what, color, meaning in kinds
        if count
    ]
    mean = Drawing(
        model=series_figure(analysis, "mean_absolute_correlation", "mean correlation", "sky"),
        title="Mean absolute correlation",
        caption="Mean of all edges: how much of a change in births and deaths is a shift of the whole. [O]",
        description=describe("Mean absolute correlation", analysis["mean_absolute_correlation"].values),
        size="half",
    )
    loops = Drawing(
        model=series_figure(analysis, "functional_persistence", "functional persistence", "green"),
        title="Functional persistence",
        caption="L2 norm of the lifetimes of the loops in the Rips filtration on 1 − |correlation|. These are not the "
        "deaths above: here a loop counts only until something fills it. [P: the functional-persistence authors' code]",
        description=describe("Functional persistence", analysis["functional_persistence"].values),
        size="half",
    )
    left_out = _why_no_loops(analysis)
    return Section(
        key=f"{key}-homology",
        title=title,
        paragraphs=(
            "Births are the edges of the maximum spanning tree, deaths are all other edges [G]: together they are "
            "every correlation in the network, sorted.",
        ),
        drawings=(*fans, mean, *(() if left_out else (loops,))),
        missing=left_out,
    )


def matrix_section(evidence: Evidence, key: str) -> Section:
    """Return the distances between all pairs of snapshots."""
    title = "Every epoch against every other"
    analysis = evidence.analysis
    if analysis is None or analysis.sizes["snapshot"] < 2:
        return Section(key=f"{key}-matrix", title=title, missing=(_why_no_change(evidence),))
    matrix = analysis["distance_matrix"].values
    row, column = np.unravel_index(int(np.argmax(matrix)), matrix.shape)
    time, label = time_axis(analysis)
    return Section(
        key=f"{key}-matrix",
        title=title,
        drawings=(
            Drawing(
                model=distance_matrix_figure(analysis),
                title="Distance between all pairs of snapshots",
                caption="Dark: alike; the colours are logarithmic. A dark block on the diagonal is a stage in which "
                "the network hardly reorganised; a sharp edge between two blocks is a transition. Distance on births "
                "and deaths together. [G: the distance; O: reading stages from it]",
                description="A square image with a row and a column per snapshot, zero on the diagonal. The largest "
                f"distance, {number(float(matrix[row, column]))}, is between {label} {time[row]} and {label} "
                f"{time[column]}.",
                size="square",
            ),
        ),
    )


def dead_units_section(evidence: Evidence, key: str) -> Section:
    """Return how many units gave the same value on all samples."""
    title = "Dead units"
    analysis = evidence.analysis
    if analysis is None:
        return Section(key=f"{key}-dead-units", title=title, missing=(evidence.missing["analysis"],))
    counts = analysis["dead_units"].values
    meaning = (
        "A unit that gives the same value on every sample of the probe has no correlation. It stays in the connectome "
        "without edges, and is counted here. [O]"
    )
    if counts.max() == 0:
        said = f"No unit was dead in any snapshot. {meaning}"
        return Section(key=f"{key}-dead-units", title=title, paragraphs=(said,))
    return Section(
        key=f"{key}-dead-units",
        title=title,
        paragraphs=(meaning,),
        drawings=(
            Drawing(
                model=dead_units_figure(analysis),
                title="Dead units over training",
                caption=f"Out of {int(analysis.attrs['units']):,} units: {int(counts[0])} in the first snapshot, "
                f"{int(counts[-1])} in the last.",
                description=describe("Dead units", counts),
            ),
        ),
    )


def _change_table(analysis: xr.Dataset) -> Table:
    time, label = time_axis(analysis)
    columns = {
        "Deaths": "reconfiguration_deaths",
        "Births": "reconfiguration_births",
        "Both": "reconfiguration_top",
        "Frobenius": "reconfiguration_frobenius",
        "Wasserstein H1": "reconfiguration_wasserstein",
        "Paired floor": "noise_floor_paired",
        "Two-halves floor": "noise_floor_two_halves",
    }
    return Table(
        caption="Distances to the snapshot before and noise floors, as numbers",
        header=(label.capitalize(), *columns),
        rows=tuple(
            (f"{int(time[place])}", *(number(float(analysis[name].values[place])) for name in columns.values()))
            for place in range(1, len(time))
        ),
        folded=True,
    )


def _why_no_loops(analysis: xr.Dataset) -> tuple[str, ...]:
    return () if analysis.attrs["h1"] == "computed" else (f"H1 is {analysis.attrs['h1']}",)


def _why_no_change(evidence: Evidence) -> str:
    if evidence.analysis is None:
        return evidence.missing["analysis"]
    return "the recording has one snapshot, and a change needs two: record more epochs"
