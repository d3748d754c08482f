"""What the report says about one recording: figures with captions in plain words, and the numbers beside them.

Marks say how far a number is the papers': [P] stated by the paper or read in its authors' code, [G] from the same group's
earlier paper or code, [O] our own choice. They are never left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.report.document import Chapter, Drawing, Fact, Section, Table, number, percent, plural
from dynome_analysis.report.figures.axes import time_axis
from dynome_analysis.report.figures.learning_rate import constants_of, learning_rate_figure
from dynome_analysis.report.figures.stopping import metric_names, signal_figure, training_figure
from dynome_analysis.report.figures.topology import (
    change_figure,
    dead_units_figure,
    distance_matrix_figure,
    fan_figure,
    loops_figure,
    reconfiguration_figure,
)

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dynome_analysis.report.evidence import Evidence

__all__ = ["recording_chapter"]

RULE_WORDS = {
    "top": "TOP",
    "fp": "FP",
    "vl": "VL",
    "oracle": "oracle",
}
RULE_MEANINGS = {
    "top": "least change of the connectome's loops (deaths)",
    "fp": "strongest loops (functional persistence)",
    "vl": "lowest validation loss",
    "oracle": "highest test accuracy, known only afterwards",
}
RULE_SIGNALS = {
    "top": (
        "What TOP watches",
        "change of deaths",
        "Distance between the deaths of consecutive snapshots; small is good.",
    ),
    "fp": ("What FP watches", "functional persistence", "L2 norm of the lifetimes of the loops (H1); large is good."),
    "vl": ("What VL watches", "validation loss", "Loss on images that were held out of the training; small is good."),
}
RULE_MARKS = {"top": "[O: signal and rule could not be read in the paper]", "fp": "[P]", "vl": "[P]"}


def recording_chapter(evidence: Evidence, *, key: str, title: str) -> Chapter:
    """Return everything about one recording; ``key`` is the start of the page's anchors."""
    return Chapter(
        key=key,
        title=title,
        facts=_facts(evidence),
        findings=tuple(_findings(evidence)),
        sections=(
            _stopping_section(evidence, key),
            _reconfiguration_section(evidence, key),
            _homology_section(evidence, key),
            _matrix_section(evidence, key),
            _learning_rate_section(evidence, key),
            _dead_units_section(evidence, key),
            _recorded_section(evidence, key),
        ),
    )


def _facts(evidence: Evidence) -> tuple[Fact, ...]:
    recording, analysis = evidence.recording, evidence.analysis
    facts = [Fact(f"{len(recording.epochs):,}", "snapshots")]
    if len(recording.epochs):
        facts.append(Fact(f"{recording.epochs.max():,}", "epochs of training"))
    units = sum(int(site["shape"][-1]) for site in recording.manifest.sites.values())
    facts += [Fact(f"{units:,}", f"units at {plural(len(recording.sites), 'site')}")]
    if analysis is not None:
        facts.append(Fact(f"{int(analysis.attrs['samples']):,}", "samples in the probe"))
    accuracy = _series(evidence.metrics, "test_accuracy")
    if accuracy.size:
        facts.append(Fact(percent(float(accuracy[-1])), "test accuracy at the end"))
    return tuple(facts)


def _findings(evidence: Evidence) -> list[str]:
    findings = []
    stopping = evidence.stopping
    accuracy = _series(evidence.metrics, "test_accuracy")
    if stopping is not None and "oracle" in stopping["rule"]:
        oracle = stopping.sel(rule="oracle")
        findings.append(
            f"The best test accuracy, {percent(float(oracle['test_accuracy_best']))}, was reached after epoch "
            f"{number(float(oracle['best_epoch']), '.0f')}; at the end it was {percent(float(accuracy[-1]))}."
        )
    if stopping is not None:
        findings += [_rule_sentence(stopping, str(rule)) for rule in stopping["rule"].values if rule != "oracle"]
    if evidence.analysis is not None and evidence.analysis.sizes["snapshot"] > 1:
        changes = evidence.analysis["reconfiguration_deaths"].values[1:]
        floor = evidence.analysis["noise_floor_paired"].values[1:]
        findings.append(
            f"The connectome's loops moved by {number(changes[0])} in the first step and by {number(changes[-1])} in the "
            f"last; the noise floor there is {number(floor[-1])}."
        )
    return findings


def _rule_sentence(stopping: xr.Dataset, rule: str) -> str:
    row = stopping.sel(rule=rule)
    best, trigger = float(row["best_epoch"]), float(row["trigger_epoch"])
    name = RULE_WORDS[rule]
    if not np.isfinite(best):
        return f"{name} had no epoch to judge."
    kept = f"the weights of its best epoch, {best:.0f}, score {percent(float(row['test_accuracy_best']))}"
    if not np.isfinite(trigger):
        return f"{name} would never have stopped this run; {kept}."
    return f"{name} would have stopped after epoch {trigger:.0f}; {kept}."


def _stopping_section(evidence: Evidence, key: str) -> Section:
    stopping = evidence.stopping
    missing = [f"{RULE_WORDS[rule]}: {why}" for rule, why in evidence.missing.items() if rule in RULE_WORDS]
    drawings = []
    losses, accuracies = (metric_names(evidence.metrics, kind) for kind in ("loss", "accuracy"))
    if losses or accuracies:
        drawings.append(
            Drawing(
                model=training_figure(evidence.metrics, stopping),
                title="Loss, accuracy, and where each rule would have stopped",
                caption="Dotted lines mark each rule's best epoch. In the lowest panel a circle is a rule's best epoch, whose "
                "weights it keeps, and a square the epoch after which it would have stopped; a line without a square "
                "runs to the end of the recording because the rule never stopped.",
                description=_describe_metrics(evidence, [*losses, *accuracies]),
            )
        )
    else:
        missing.append("no metric whose name ends in loss or accuracy was recorded with recorder.epoch(...)")
    tables = []
    if stopping is not None:
        tables.append(_stopping_table(stopping))
        for rule in stopping["rule"].values:
            if str(rule) in RULE_SIGNALS and np.isfinite(stopping["signal"].sel(rule=rule).values).any():
                title, label, meaning = RULE_SIGNALS[str(rule)]
                drawings.append(
                    Drawing(
                        model=signal_figure(stopping, str(rule), label),
                        title=title,
                        caption=f"{meaning} Circle: best epoch. Square: where the rule stops. {RULE_MARKS[str(rule)]}",
                        description=_describe(f"{title}: {label}", stopping["signal"].sel(rule=rule).values),
                        half=True,
                    )
                )
    tables.append(_metric_table(evidence, [*losses, *accuracies]))
    return Section(
        key=f"{key}-stopping",
        title="Where to stop",
        paragraphs=(
            "Each rule walks the recorded epochs, remembers the best score of what it watches, and stops when that has "
            "been strictly worse a number of times in a row [P: engine of the functional-persistence authors' code]. TOP and "
            "FP look at the connectome of training images and need no held-out data; VL needs a validation set. All rules "
            "are replayed on the same run here, so TOP and FP get no credit for the data that they would have freed.",
        ),
        drawings=tuple(drawings),
        tables=tuple(table for table in tables if table.rows),
        missing=tuple(missing),
    )


def _stopping_table(stopping: xr.Dataset) -> Table:
    oracle = (
        float(stopping["test_accuracy_best"].sel(rule="oracle"))
        if "oracle" in stopping["rule"].values
        else float("nan")
    )
    rows = []
    for rule in stopping["rule"].values:
        row = {name: float(stopping[name].sel(rule=rule)) for name in stopping.data_vars if name != "signal"}
        trigger = row["trigger_epoch"]
        if rule == "oracle":
            stopped = "–"
        else:
            stopped = f"{trigger:.0f}" if np.isfinite(trigger) else "never"
        rows.append(
            (
                f"{RULE_WORDS[str(rule)]}: {RULE_MEANINGS[str(rule)]}",
                number(row["best_epoch"], ".0f"),
                percent(row["test_accuracy_best"]),
                stopped,
                percent(row["test_accuracy_trigger"]),
                number(100 * (oracle - row["test_accuracy_best"]), ".1f"),
            )
        )
    return Table(
        caption="Best and last epoch of each rule, with the test accuracy of the weights there",
        header=(
            "Rule",
            "Best epoch",
            "Accuracy there",
            "Stops after",
            "Accuracy there",
            "Points below the oracle",
        ),
        rows=tuple(rows),
    )


def _metric_table(evidence: Evidence, names: list[str]) -> Table:
    metrics = evidence.metrics
    rows = [
        (f"{int(epoch)}", *(number(float(metrics[name].values[place]), ".4f") for name in names))
        for place, epoch in enumerate(metrics["epoch"].values)
    ]
    return Table(
        caption="The metrics of every epoch, as numbers",
        header=("Epoch", *names),
        rows=tuple(rows) if names else (),
        folded=True,
    )


def _reconfiguration_section(evidence: Evidence, key: str) -> Section:
    title = "How much the network reconfigured"
    analysis = evidence.analysis
    if analysis is None or analysis.sizes["snapshot"] < 2:
        return Section(key=f"{key}-reconfiguration", title=title, missing=(_why_no_change(evidence),))
    deaths = analysis["reconfiguration_deaths"].values
    time, label = time_axis(analysis)
    names = ("deaths", "births", "top", "frobenius", "wasserstein")
    rows = tuple(
        (
            f"{int(time[place])}",
            *(number(float(analysis[f"reconfiguration_{name}"].values[place])) for name in names),
            number(float(analysis["noise_floor_paired"].values[place])),
            number(float(analysis["noise_floor_two_halves"].values[place])),
        )
        for place in range(1, len(time))
    )
    return Section(
        key=f"{key}-reconfiguration",
        title=title,
        paragraphs=(
            "The connectome of a snapshot holds the absolute Pearson correlation of every pair of units over the probe [P]. "
            "Raising a threshold on it splits the graph apart (births of components) and breaks its loops (deaths) [G]. "
            "The distance between two snapshots compares the sorted births and deaths one by one, which is the exact "
            "2-Wasserstein distance [G].",
        ),
        drawings=(
            Drawing(
                model=reconfiguration_figure(analysis),
                title="Distance to the snapshot before, and its noise floors",
                caption="How far births and deaths moved since the snapshot before. A change near the dashed line cannot be "
                "told from the chance of which images are in the probe: the paired floor compares two halves of the probe on "
                "the same step. The dotted two-halves floor is the distance between the halves at one snapshot; it is "
                "too high for a probe that stays the same, and shown for comparison. [O]",
                description=_describe("Distance of deaths to the snapshot before", deaths)
                + " "
                + _describe("Paired noise floor", analysis["noise_floor_paired"].values),
            ),
            Drawing(
                model=change_figure(analysis, "frobenius", "Frobenius distance", "sky"),
                title="Plain change of the connectome",
                caption="Frobenius norm of the difference of consecutive connectomes: the control that knows which units "
                "changed. Births and deaths forget that. [O]",
                description=_describe("Frobenius distance", analysis["reconfiguration_frobenius"].values),
                half=True,
            ),
            Drawing(
                model=change_figure(analysis, "wasserstein", "Wasserstein distance", "green"),
                title="Change of the loops (H1)",
                caption="Wasserstein distance between the H1 diagrams of consecutive snapshots. [P names the distance; O: "
                "which diagram]",
                description=_describe("Wasserstein distance", analysis["reconfiguration_wasserstein"].values),
                half=True,
            ),
        ),
        tables=(
            Table(
                caption="Distances to the snapshot before and noise floors, as numbers",
                header=(
                    label.capitalize(),
                    "Deaths",
                    "Births",
                    "Both (TOP)",
                    "Frobenius",
                    "Wasserstein H1",
                    "Paired floor",
                    "Two-halves floor",
                ),
                rows=rows,
                folded=True,
            ),
        ),
    )


def _homology_section(evidence: Evidence, key: str) -> Section:
    title = "Births, deaths and loops"
    analysis = evidence.analysis
    if analysis is None:
        return Section(key=f"{key}-homology", title=title, missing=(evidence.missing["analysis"],))
    drawings = [
        Drawing(
            model=fan_figure(analysis, name, "absolute correlation", color),
            title=f"{name.capitalize()} ({what})",
            caption=f"{count:,} {name} per snapshot, from the weakest to the strongest: the line is the median, the bands hold "
            f"the middle half and nine tenths. {meaning} [G]",
            description=_describe(f"Median of the {name}", np.median(analysis[name].values, axis=1)),
            half=True,
        )
        for name, what, meaning, color, count in (
            (
                "births",
                "components",
                "High births: every unit is strongly tied to some other.",
                "orange",
                analysis.sizes["birth"],
            ),
            (
                "deaths",
                "loops",
                "High deaths: the rest of the graph is dense too.",
                "blue",
                analysis.sizes["death"],
            ),
        )
        if count
    ]
    drawings.append(
        Drawing(
            model=loops_figure(analysis),
            title="Functional persistence",
            caption="L2 norm of the lifetimes of the loops in the Rips filtration on 1 − |correlation|. Not the deaths "
            "above: a loop counts here only until something fills it. [P: the functional-persistence authors' code]",
            description=_describe("Functional persistence", analysis["functional_persistence"].values),
        )
    )
    return Section(
        key=f"{key}-homology",
        title=title,
        paragraphs=(
            "Births are the edges of the maximum spanning tree, deaths all other edges [G]: together, every correlation in "
            "the network, sorted.",
        ),
        drawings=tuple(drawings),
    )


def _matrix_section(evidence: Evidence, key: str) -> Section:
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
                caption="Dark: alike. A dark block on the diagonal is a stage in which the network hardly reorganised; a sharp "
                "edge between two blocks is a transition. Distance on births and deaths together. [G: the distance; O: "
                "reading stages from it]",
                description=f"A square image with a row and a column per snapshot, zero on the diagonal. The largest distance, "
                f"{number(float(matrix[row, column]))}, is between {label} {time[row]} and {label} {time[column]}.",
            ),
        ),
    )


def _learning_rate_section(evidence: Evidence, key: str) -> Section:
    title = "Which learning rate the connectome would have chosen"
    replayed = evidence.learning_rate
    if replayed is None:
        why = evidence.missing.get("learning_rate") or evidence.missing.get("analysis", "nothing was replayed")
        return Section(key=f"{key}-learning-rate", title=title, missing=(why,))
    constants = constants_of(replayed)
    states = [str(state) for state in replayed["state"].values]
    counts = {state: states.count(state) for state in ("STABLE", "NEUTRAL", "UNSTABLE")}
    rates = replayed["rate"].values
    time, label = time_axis(replayed)
    return Section(
        key=f"{key}-learning-rate",
        title=title,
        paragraphs=(
            "Open loop: the run was trained with its own learning rate, not with these. The trace shows what the rule sees and "
            "would answer, not how a run that obeys it would go.",
            "The rule slows down while the connectome reconfigures and speeds up when it is stable, by a median-MAD robust "
            "score with hysteresis, inside a Robbins-Monro envelope [P]. The exact form and every constant are ours [O].",
        ),
        drawings=(
            Drawing(
                model=learning_rate_figure(replayed, _trained_rate(evidence)),
                title="Distance, its robust score, and the replayed rate",
                caption="Orange background: unstable, the rate is cut. Green: stable, the rate grows. None: neutral. Dashed "
                "lines are the thresholds that switch a state on, dotted ones those that switch it off. There is no score "
                f"before {number(constants['warm_up'] or np.ceil(constants['window'] / 2), '.0f')} distances exist. Open loop.",
                description=f"{plural(sum(counts.values()), 'decision')}: {counts['STABLE']} stable, {counts['NEUTRAL']} "
                f"neutral, {counts['UNSTABLE']} unstable. " + _describe("Replayed learning rate", rates),
            ),
        ),
        tables=(
            Table(
                caption="Every decision, as numbers (open loop)",
                header=(label.capitalize(), "Distance", "z", "State", "Gain", "Rate"),
                rows=tuple(
                    (
                        f"{int(time[place])}",
                        *(number(float(replayed[name].values[place])) for name in ("distance", "z")),
                        states[place] or "–",
                        *(number(float(replayed[name].values[place])) for name in ("gain", "rate")),
                    )
                    for place in range(len(time))
                ),
                folded=True,
            ),
            Table(
                caption="Constants of the rule [O]",
                header=("Constant", "Value"),
                rows=tuple((name.replace("_", " "), str(value)) for name, value in constants.items()),
                folded=True,
            ),
        ),
    )


def _dead_units_section(evidence: Evidence, key: str) -> Section:
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
        return Section(
            key=f"{key}-dead-units", title=title, paragraphs=(f"No unit was dead in any snapshot. {meaning}",)
        )
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
                description=_describe("Dead units", counts),
            ),
        ),
    )


def _recorded_section(evidence: Evidence, key: str) -> Section:
    recording = evidence.recording
    run = recording.manifest.run
    model, probe = run.get("model") or {}, run.get("probe") or {}
    parameters = sum(int(np.prod(spec["shape"])) for spec in recording.manifest.weights.values())
    facts: list[tuple[str, str]] = [
        ("Recording", str(recording.path)),
        ("Run id", recording.id),
        ("Made", str(run.get("created", "–"))),
        ("Model", _words(model.get("class", "–"))),
        ("Recorded parameters", f"{parameters:,} in {plural(len(recording.parameters), 'array')}"),
        ("Optimizer", _words(run.get("optimizer"))),
        ("Hyper-parameters", _words(recording.hyperparameters)),
        ("Probe", _words({name: value for name, value in probe.items() if name != "hash"})),
        ("Schedules", _words(run.get("schedules"))),
        ("Epoch metrics", ", ".join(str(name) for name in evidence.metrics.data_vars) or "none"),
        ("Step metrics", ", ".join(str(name) for name in evidence.step_metrics.data_vars) or "none"),
        ("Recorded with", _words(run.get("versions"))),
    ]
    sites = tuple(
        (
            name,
            *(str(size) for size in site["shape"][-1:]),
            " × ".join(str(size) for size in site["shape"]),
            str(site["dtype"]),
        )
        for name, site in recording.manifest.sites.items()
    )
    return Section(
        key=f"{key}-recorded",
        title="What was recorded",
        tables=(
            Table(caption="Recorded sites", header=("Site", "Units", "Shape", "Stored as"), rows=sites),
            Table(caption="The run", header=("", "As recorded"), rows=tuple(facts)),
        ),
    )


def _why_no_change(evidence: Evidence) -> str:
    if evidence.analysis is None:
        return evidence.missing["analysis"]
    return "the recording has one snapshot, and a change needs two: record more epochs"


def _trained_rate(evidence: Evidence) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the recorded rate at the first step of each epoch, if the rate was recorded per step."""
    steps, analysis = evidence.step_metrics, evidence.analysis
    if "lr" not in steps or analysis is None:
        return None
    ends = np.asarray(analysis["step"].values, np.int64)
    time, _ = time_axis(analysis)
    # Snapshot k trains on with the rate of the step after its own.
    places = np.searchsorted(steps["step"].values, ends[:-1] + 1)
    known = places < steps.sizes["step"]
    return time[:-1][known], np.asarray(steps["lr"].values, np.float64)[places[known]]


def _series(metrics: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Return the values of a metric where it has any."""
    if name not in metrics:
        return np.empty(0)
    values = np.asarray(metrics[name].values, np.float64)
    return values[np.isfinite(values)]


def _describe_metrics(evidence: Evidence, names: list[str]) -> str:
    return " ".join(_describe(name, evidence.metrics[name].values) for name in names)


def _describe(name: str, values: NDArray[Any]) -> str:
    """Return a curve in words."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return f"{name}: no values."
    return (
        f"{name}: from {number(float(finite[0]))} to {number(float(finite[-1]))}, lowest {number(float(finite.min()))}, "
        f"highest {number(float(finite.max()))}."
    )


def _words(value: Any) -> str:
    """Return plain JSON data as a short text."""
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {_words(member)}" for name, member in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_words(member) for member in value)
    return str(value)
