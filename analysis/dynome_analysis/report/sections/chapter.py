"""Everything about one recording: what it is, what came out in a few sentences, then section by section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynome_analysis.report.document import Chapter, Fact, number, percent, plural
from dynome_analysis.report.sections.learning_rate import learning_rate_section
from dynome_analysis.report.sections.recorded import recorded_section
from dynome_analysis.report.sections.stopping import RULE_WORDS, stopping_section
from dynome_analysis.report.sections.topology import (
    dead_units_section,
    homology_section,
    matrix_section,
    reconfiguration_section,
)

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dynome_analysis.report.evidence import Evidence

__all__ = ["recording_chapter"]


def recording_chapter(evidence: Evidence, *, key: str, title: str) -> Chapter:
    """Return everything about one recording; ``key`` is the start of the page's anchors."""
    return Chapter(
        key=key,
        title=title,
        facts=tuple(_facts(evidence)),
        findings=tuple(_findings(evidence)),
        sections=tuple(
            section(evidence, key)
            for section in (
                recorded_section,
                stopping_section,
                reconfiguration_section,
                homology_section,
                matrix_section,
                learning_rate_section,
                dead_units_section,
            )
        ),
    )


def _facts(evidence: Evidence) -> list[Fact]:
    recording, analysis = evidence.recording, evidence.analysis
    facts = [Fact(f"{len(recording.epochs):,}", "snapshots")]
    if len(recording.epochs):
        facts.append(Fact(f"{recording.epochs.max():,}", "epochs of training"))
    units = sum(int(site["shape"][-1]) for site in recording.manifest.sites.values())
    facts.append(Fact(f"{units:,}", f"units at {plural(len(recording.sites), 'site')}"))
    if analysis is not None:
        facts.append(Fact(f"{int(analysis.attrs['samples']):,}", "samples in the probe"))
    accuracy = _test_accuracy(evidence)
    if accuracy.size:
        facts.append(Fact(percent(float(accuracy[-1])), "test accuracy at the end"))
    return facts


def _findings(evidence: Evidence) -> list[str]:
    findings = []
    stopping, analysis = evidence.stopping, evidence.analysis
    if stopping is not None and "oracle" in stopping["rule"].values:
        oracle = stopping.sel(rule="oracle")
        accuracy = _test_accuracy(evidence)
        if np.isfinite(accuracy).any():
            end = percent(float(accuracy[-1])) if np.isfinite(accuracy[-1]) else "not a number"
            findings.append(
                f"The best test accuracy, {percent(float(oracle['test_accuracy_best']))}, was reached after epoch "
                f"{number(float(oracle['best_epoch']), '.0f')}; at the end it was {end}."
            )
    if stopping is not None:
        findings += [_rule_sentence(stopping, str(rule)) for rule in stopping["rule"].values if rule != "oracle"]
    if analysis is not None and analysis.sizes["snapshot"] > 1:
        changes = analysis["reconfiguration_deaths"].values[1:]
        floor = float(analysis["noise_floor_paired"].values[-1])
        beside = f", where the noise floor is {number(floor)}" if np.isfinite(floor) else ""
        findings.append(
            f"The connectome's loops moved by {number(float(changes[0]))} in the first recorded step and by "
            f"{number(float(changes[-1]))} in the last{beside}."
        )
    return findings


def _rule_sentence(stopping: xr.Dataset, rule: str) -> str:
    row = stopping.sel(rule=rule)
    best, trigger = float(row["best_epoch"]), float(row["trigger_epoch"])
    if not np.isfinite(best):
        return f"{RULE_WORDS[rule]} had no epoch to judge."
    accuracy = float(row["test_accuracy_best"])
    kept = f"its best epoch is {best:.0f}"
    if np.isfinite(accuracy):
        kept += f", with a test accuracy of {percent(accuracy)}"
    if not np.isfinite(trigger):
        return f"{RULE_WORDS[rule]} would not have stopped this run; {kept}."
    return f"{RULE_WORDS[rule]} would have stopped after epoch {trigger:.0f}; {kept}."


def _test_accuracy(evidence: Evidence) -> NDArray[np.float64]:
    """Return the test accuracies that were recorded, NaN where that was given: a diverged run ends with it."""
    epochs, values = evidence.recording.manifest.epoch_metrics().get("test_accuracy", (np.empty(0), np.empty(0)))
    recorded: NDArray[np.float64] = values[np.argsort(epochs)]
    return recorded
