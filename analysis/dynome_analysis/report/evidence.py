"""Everything that a report says of one recording, gathered first; what cannot be had is named with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xarray as xr

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from dynome_analysis.compute import Progress
    from dynome_analysis.recording import Recording

__all__ = ["RULES", "Evidence", "gather"]

RULES = ("top", "fp", "vl", "oracle")


@dataclass(frozen=True)
class Evidence:
    """What is known of a recording.

    Attributes
    ----------
    recording : Recording
    metrics, step_metrics : Dataset
        On ``epoch`` and on ``step``.
    analysis, stopping, learning_rate : Dataset or None
        From `analyze`, `replay_stopping` and `replay_learning_rate`.
    missing : dict of str
        Why something is None, or a rule is not in ``stopping``, by its name.
    """

    recording: Recording
    metrics: xr.Dataset
    step_metrics: xr.Dataset
    analysis: xr.Dataset | None
    stopping: xr.Dataset | None
    learning_rate: xr.Dataset | None
    missing: dict[str, str] = field(default_factory=dict)


def gather(recording: Recording, *, patience: int, progress: Progress | None = None) -> Evidence:
    """Analyse a recording and replay every rule that it has the data for.

    Raises
    ------
    CorruptRecordingError
        A stored file is missing, truncated or changed: nothing can be said then.
    """
    from dynome_analysis.pipeline.analysis import analyze
    from dynome_analysis.replay import replay_learning_rate

    missing: dict[str, str] = {}
    analysis = learning_rate = None
    try:
        analysis = analyze(recording, progress=progress)
    except InvalidDataError as error:
        missing["analysis"] = str(error)
    if analysis is not None:
        try:
            learning_rate = replay_learning_rate(recording)
        except (InvalidDataError, InvalidArgumentError) as error:
            missing["learning_rate"] = str(error)
    return Evidence(
        recording=recording,
        metrics=recording.epoch_metrics,
        step_metrics=recording.step_metrics,
        analysis=analysis,
        stopping=_replay_rules(recording, analysis, patience=patience, missing=missing),
        learning_rate=learning_rate,
        missing=missing,
    )


def _replay_rules(
    recording: Recording, analysis: xr.Dataset | None, *, patience: int, missing: dict[str, str]
) -> xr.Dataset | None:
    """Replay each rule by itself, so that one without data does not take the others with it."""
    from dynome_analysis.replay import replay_stopping

    test_metric = "test_accuracy" if "test_accuracy" in recording.epoch_metrics else None
    replayed = []
    for rule in RULES:
        if rule in ("top", "fp") and analysis is None:
            missing[rule] = missing["analysis"]
            continue
        if rule == "oracle" and test_metric is None:
            missing[rule] = "no test accuracy was recorded: record it with recorder.epoch(test_accuracy=...)"
            continue
        try:
            replayed.append(replay_stopping(recording, rules=(rule,), patience=patience, test_metric=test_metric))
        except InvalidDataError as error:
            missing[rule] = str(error)
    if not replayed:
        return None
    return xr.concat(replayed, dim="rule", join="outer", combine_attrs="drop_conflicts")
