"""Which learning rates the connectome-guided rule would have chosen on the recorded run: open loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.report.document import Drawing, Section, Table, describe, number, plural
from dynome_analysis.report.figures.axes import time_axis
from dynome_analysis.report.figures.learning_rate import constants_of, learning_rate_figure

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dynome_analysis.report.evidence import Evidence

__all__ = ["learning_rate_section"]


def learning_rate_section(evidence: Evidence, key: str) -> Section:
    """Return the section."""
    title = "Which learning rate the connectome would have chosen"
    replayed = evidence.learning_rate
    if replayed is None:
        why = evidence.missing.get("learning_rate") or evidence.missing["analysis"]
        return Section(key=f"{key}-learning-rate", title=title, missing=(why,))
    constants = constants_of(replayed)
    first = int(constants["warm_up"] or np.ceil(constants["window"] / 2))
    states = [str(state) for state in replayed["state"].values]
    counts = {state: states.count(state) for state in ("STABLE", "NEUTRAL", "UNSTABLE")}
    return Section(
        key=f"{key}-learning-rate",
        title=title,
        paragraphs=(
            "Open loop: the run was trained with its own learning rate, not with these. The trace shows what the rule "
            "sees and would answer, not how a run that obeys it would go.",
            "The rule slows down while the connectome reconfigures and speeds up when it is stable, by a median-MAD "
            "robust score with hysteresis, inside a Robbins-Monro envelope [P]. The exact form and every constant are "
            "our own [O].",
        ),
        drawings=(
            Drawing(
                model=learning_rate_figure(replayed, _trained_rate(evidence)),
                title="Distance, its robust score, and the replayed rate (open loop)",
                caption="Orange ground: unstable, the rate is cut. Green ground: stable, the rate grows. No ground: "
                "neutral. Among the scores, dashed lines are the thresholds that switch a state on, dotted ones those "
                f"that switch it off; there is no score before {plural(first, 'distance')} exist. Below, the "
                "envelope is the rate without any gate, and the dotted line is the rate that the run was trained "
                "with. [O]",
                description=f"{plural(sum(counts.values()), 'decision')}: {counts['STABLE']} stable, "
                f"{counts['NEUTRAL']} neutral, {counts['UNSTABLE']} unstable. "
                + describe("Replayed learning rate", replayed["rate"].values),
            ),
        ),
        tables=(
            _decision_table(replayed),
            Table(
                caption="Constants of the rule [O]",
                header=("Constant", "Value"),
                rows=tuple((name.replace("_", " "), str(value)) for name, value in constants.items()),
                folded=True,
            ),
        ),
    )


def _decision_table(replayed: xr.Dataset) -> Table:
    time, label = time_axis(replayed)
    texts = {
        name: [number(float(value)) for value in replayed[name].values] for name in ("distance", "z", "gain", "rate")
    }
    states = [str(state).lower() or "–" for state in replayed["state"].values]
    return Table(
        caption="Every decision, as numbers (open loop)",
        header=(label.capitalize(), "Distance", "z", "State", "Gain", "Rate"),
        rows=tuple(
            (str(int(moment)), *rest)
            for moment, *rest in zip(time, texts["distance"], texts["z"], states, texts["gain"], texts["rate"])
        ),
        folded=True,
    )


def _trained_rate(evidence: Evidence) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the rate that the run trained with after each snapshot, where it was recorded per step."""
    steps, analysis = evidence.step_metrics, evidence.analysis
    name = next((name for name in ("lr", "learning_rate") if name in steps), None)
    if name is None or analysis is None:
        return None
    time, _ = time_axis(analysis)
    after = np.asarray(analysis["step"].values, np.int64) + 1
    places = np.searchsorted(steps["step"].values, after)
    known = places < steps.sizes["step"]
    return time[known], np.asarray(steps[name].values, np.float64)[places[known]]
