"""What was recorded: the sites, the run, and what it was recorded with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.report.document import Section, Table, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynome_analysis.report.evidence import Evidence

__all__ = ["recorded_section"]


def recorded_section(evidence: Evidence, key: str) -> Section:
    """Return the section."""
    recording = evidence.recording
    run = recording.manifest.run
    probe = run.get("fingerprint", {}).get("probe", {})
    parameters = sum(int(np.prod(spec["shape"])) for spec in recording.manifest.weights.values())
    weights = f"{parameters:,} parameters in {plural(len(recording.parameters), 'array')}, "
    facts = (
        ("Folder", str(recording.path)),
        ("Run id", recording.id),
        ("Made", str(run.get("created", "–")).split(".")[0].replace("T", " ") + " UTC"),
        ("Model", str(run.get("model", {}).get("class", "–"))),
        ("Weights", weights + plural(len(recording.weights_epochs), "snapshot") if parameters else "not recorded"),
        ("Optimizer", _optimizer(run.get("optimizer"))),
        ("Hyper-parameters", _pairs(recording.hyperparameters)),
        ("Probe", _probe(probe)),
        ("Schedules", _pairs(run.get("schedules") or {})),
        ("Metrics per epoch", ", ".join(str(name) for name in evidence.metrics.data_vars) or "none"),
        ("Metrics per step", ", ".join(str(name) for name in evidence.step_metrics.data_vars) or "none"),
        ("Recorded with", _pairs(run.get("versions") or {})),
    )
    sites = tuple(
        (name, str(site["shape"][-1]), " × ".join(str(size) for size in site["shape"]), str(site["dtype"]))
        for name, site in recording.manifest.sites.items()
    )
    return Section(
        key=f"{key}-recorded",
        title="What was recorded",
        tables=(
            Table(caption="Recorded sites", header=("Site", "Units", "Samples × units", "Stored as"), rows=sites),
            Table(caption="The run in detail", header=("", "As recorded"), rows=facts, words=True, folded=True),
        ),
    )


def _probe(probe: Mapping[str, Any]) -> str:
    parts = [f"{probe['size']:,} samples"] if "size" in probe else []
    if "population" in probe:
        parts.append(f"out of {probe['population']:,}")
    if probe.get("balanced"):
        parts.append("balanced over classes")
    if "seed" in probe:
        parts.append(f"seed {probe['seed']}")
    return ", ".join(parts) or "–"


def _optimizer(optimizer: Mapping[str, Any] | None) -> str:
    """Return class and settings; what is off or zero says nothing and is left out."""
    if not optimizer:
        return "not described"
    groups = [
        _pairs({name: value for name, value in group.items() if value and name != "parameters"})
        for group in optimizer.get("groups", [])
    ]
    return f"{optimizer.get('class', 'unknown')}: {'; '.join(groups)}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "–"
