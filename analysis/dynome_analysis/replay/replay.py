"""Fold decision rules over recordings: where would each rule have stopped, which learning rates would it have chosen.

This module is the glue between labelled data and the rules, which know plain numbers only. The signals come from the
cached analysis of a recording and from its metrics; a rule that needs neither connectomes nor homology computes
neither.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, get_args

import numpy as np
import xarray as xr

from dynome_analysis.provenance import provenance
from dynome_analysis.replay.learning_rate import LearningRateDecision, LearningRateRule
from dynome_analysis.replay.stopping import (
    DEFAULT_BURN_IN,
    DEFAULT_PATIENCE,
    SIGNALS,
    Mode,
    Score,
    StoppingRule,
    StoppingState,
    stopping_rule,
)
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_analysis.compute import Progress
    from dynome_analysis.recording import Recording

__all__ = [
    "DEFAULT_RULES",
    "OPEN_LOOP",
    "Distance",
    "GateConstants",
    "Series",
    "fold_learning_rate",
    "fold_stopping",
    "recorded_rate",
    "replay_learning_rate",
    "replay_stopping",
]

Distance = Literal["top", "births", "deaths", "wasserstein"]
Series = dict[int, float]  # value by epoch

DEFAULT_RULES = ("top", "fp", "vl", "oracle")
OPEN_LOOP = "open loop: the run was trained with its own learning rates, not with these"


class GateConstants(TypedDict, total=False):
    """The [O] constants of `LearningRateRule`, which documents them and has their defaults."""

    alpha: float
    window: int
    warm_up: int | None
    guard: float
    unstable_on: float
    unstable_off: float
    stable_on: float
    stable_off: float
    down: float
    up: float
    gain_minimum: float
    gain_maximum: float


def replay_stopping(
    recording: Recording,
    *,
    rules: Sequence[str] | str = DEFAULT_RULES,
    patience: int = DEFAULT_PATIENCE,
    burn_in: int = DEFAULT_BURN_IN,
    test_metric: str | None = "test_accuracy",
    validation_metric: str = "val_loss",
    test_mode: Mode = "max",
    validation_mode: Mode = "min",
    sites: Sequence[str] | str | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Say where each rule would have stopped a recorded run, and what the network was worth there.

    Parameters
    ----------
    recording : Recording
    rules : sequence of str
        Names out of `SIGNALS`: "top" (deaths), "top-births", "top-both", "frobenius", "fp", "vl", "oracle".
    patience : int
        Strictly worse epochs that stop.
    burn_in : int
        First epoch that counts (the oracle always counts from epoch 1 at the latest).
    test_metric : str or None
        Recorded metric that tells what the network was worth; None where there is none (then no oracle).
    validation_metric : str
        Recorded metric of the rule "vl".
    test_mode, validation_mode : {"min", "max"}
        Whether small or large values of these metrics are good.
    sites : sequence of str, optional
        Sites of the connectomes; all by default.
    progress : callable, optional
        As for `compute`.

    Returns
    -------
    Dataset
        On dimension ``rule``, float64: ``best_epoch`` (NaN where no epoch counted), ``trigger_epoch`` (NaN: never
        triggered), ``test_accuracy_best`` and ``test_accuracy_trigger`` (the test metric there; NaN where undefined
        or not recorded). On (rule, epoch): ``signal``, NaN at epochs without a value. Epochs are those of the
        snapshots, the signals and the test metric together.

    Raises
    ------
    InvalidArgumentError
        An unknown rule or metric mode, or settings that have no meaning.
    InvalidDataError
        A metric was not recorded, or a rule on connectomes finds fewer than two snapshots.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    METHODS.md section 4. Where an epoch has several snapshots, the first one counts: the one at the epoch's end
    where the schedule has it; its change is then the change since the snapshot before, within the epoch. An epoch
    without a snapshot or a metric is not an observation; a value that was recorded as NaN is (see `PatienceRule`).
    Cost: that of `analyze` where it is not cached, then microseconds per epoch.
    """
    names = _choose_rules(rules)
    machines = {
        name: _rule(
            name, patience=patience, burn_in=burn_in, mode={"vl": validation_mode, "oracle": test_mode}.get(name)
        )
        for name in names
    }
    metrics = _metric_series(recording)
    test: Series = {}
    if test_metric is not None:
        test = _metric(recording, metrics, test_metric, "test metric", "test_metric")
    elif "oracle" in names:
        raise InvalidArgumentError(
            "the rule 'oracle' needs a test metric: name one with test_metric, or leave the oracle out"
        )
    signals = {"oracle": test}
    if "vl" in names:
        signals["vl"] = _metric(recording, metrics, validation_metric, "rule 'vl'", "validation_metric")
    # Metrics first: a missing one is told at once, connectomes take a while.
    variables = {name: variable for name in names if (variable := SIGNALS[name].variable) is not None}
    analysis = _analysis(recording, sites, progress) if variables else None
    if analysis is not None:
        for name, variable in variables.items():
            _check_loops(analysis, variable, f"rule {name!r}", recording)
        signals |= {name: _snapshot_series(analysis, variable) for name, variable in variables.items()}

    known = {*recording.epochs.tolist(), *test, *(epoch for name in names for epoch in signals[name])}
    epochs = np.array(sorted(known), np.int64)
    ends = {name: fold_stopping(machines[name], signals[name].items()) for name in names}
    best = [ends[name].best_epoch for name in names]
    trigger = [ends[name].trigger_epoch for name in names]
    return xr.Dataset(
        {
            "best_epoch": ("rule", _numbers(best)),
            "trigger_epoch": ("rule", _numbers(trigger)),
            "test_accuracy_best": ("rule", _values_at(test, best)),
            "test_accuracy_trigger": ("rule", _values_at(test, trigger)),
            "signal": (("rule", "epoch"), _on_axis([signals[name] for name in names], epochs)),
        },
        coords={"rule": list(names), "epoch": epochs},
        attrs=_attributes(
            "replay_stopping",
            recording,
            {
                "patience": patience,
                "burn_in": burn_in,
                "test_metric": test_metric,
                "validation_metric": validation_metric,
                "test_mode": test_mode,
                "validation_mode": validation_mode,
            },
            analysis,
        ),
    )


def replay_learning_rate(
    recording: Recording,
    *,
    distance: Distance = "top",
    base_rate: float | None = None,
    horizon: float | None = None,
    sites: Sequence[str] | str | None = None,
    progress: Progress | None = None,
    **constants: Unpack[GateConstants],
) -> xr.Dataset:
    """Say which learning rates the connectome-guided rule would have chosen on a recorded run: an open-loop trace.

    Open loop: the run was trained with its own learning rates, so the trace tells what the rule sees and answers, not
    how a run that obeys it would go.

    Parameters
    ----------
    recording : Recording
    distance : {"top", "births", "deaths", "wasserstein"}
        Distance between consecutive snapshots; "wasserstein" compares H1 diagrams.
    base_rate : float, optional
        ``lr_0``; by default the rate that the run was recorded with.
    horizon : float, optional
        ``T_0`` in decisions; a fifth of the recorded decisions by default [O].
    sites : sequence of str, optional
        Sites of the connectomes; all by default.
    progress : callable, optional
        As for `compute`.
    **constants
        Constants of `LearningRateRule`, all [O].

    Returns
    -------
    Dataset
        On dimension ``epoch`` (one entry per probe snapshot, with coordinate ``step``; where an epoch has several
        snapshots it repeats): ``distance``, ``z``, ``gain``, ``envelope``, ``rate`` (float64, NaN where undefined)
        and ``state`` ("NEUTRAL", "STABLE", "UNSTABLE", or "" where there is no decision). ``rate`` is what the rule
        would set for the training after the snapshot. Attribute ``loop`` is "open"; ``note`` says so in words.

    Raises
    ------
    InvalidArgumentError
        Constants that break the rule's promises, or no base rate, neither given nor recorded.
    InvalidDataError
        Fewer than two snapshots.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    METHODS.md section 5. Every snapshot but the first is one decision: epochs or iterations, as recorded.
    """
    if distance not in get_args(Distance):
        raise InvalidArgumentError(f"distance must be one of {', '.join(get_args(Distance))}; got {distance!r}")
    unknown = sorted(set(constants) - set(GateConstants.__annotations__))
    if unknown:
        raise InvalidArgumentError(
            f"{unknown[0]!r} is no constant of the rule; there are {', '.join(GateConstants.__annotations__)}"
        )
    rate = recorded_rate(recording) if base_rate is None else base_rate
    analysis = _analysis(recording, sites, progress)
    _check_loops(analysis, f"reconfiguration_{distance}", f"distance {distance!r}", recording)
    distances = np.asarray(analysis[f"reconfiguration_{distance}"].values, np.float64)
    try:
        rule = LearningRateRule(
            base_rate=rate, horizon=(distances.size - 1) / 5 if horizon is None else horizon, **constants
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error
    # The first snapshot has nothing before it: no distance and no decision.
    decisions = [None, *fold_learning_rate(rule, distances[1:].tolist())]
    columns = {
        name: ("epoch", np.array([np.nan if made is None else getattr(made, name) for made in decisions], np.float64))
        for name in ("z", "gain", "envelope", "rate")
    }
    settings = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return xr.Dataset(
        {
            "distance": ("epoch", distances),
            "state": ("epoch", np.array(["" if made is None else made.gate for made in decisions])),
            **columns,
        },
        coords={
            "epoch": np.asarray(analysis["epoch"].values, np.int64),
            "step": ("epoch", np.asarray(analysis["step"].values, np.int64)),
        },
        attrs=_attributes("replay_learning_rate", recording, {"distance": distance, **settings}, analysis)
        | {"loop": "open", "note": OPEN_LOOP},
    )


def fold_stopping(rule: StoppingRule, observations: Iterable[tuple[int, float]]) -> StoppingState:
    """Walk (epoch, value) pairs in order and return the rule's last state."""
    state = rule.start()
    for epoch, value in observations:
        state, decision = rule.update(state, Score(int(epoch), float(value)))
        if decision.stop:
            break
    return state


def fold_learning_rate(rule: LearningRateRule, distances: Iterable[float]) -> list[LearningRateDecision]:
    """Return the decision that the rule makes after each distance."""
    state = rule.start()
    decisions = []
    for value in distances:
        state, decision = rule.update(state, value)
        decisions.append(decision)
    return decisions


def recorded_rate(recording: Recording) -> float:
    """Return the learning rate that a run says it was trained with: its hyperparameters', else its optimizer's.

    Raises
    ------
    InvalidArgumentError
        The recording names none, or one that is not a positive number.
    """
    groups = (recording.manifest.run.get("optimizer") or {}).get("groups") or [{}]
    for place in (recording.hyperparameters, groups[0]):
        for name in ("learning_rate", "lr"):
            value = place.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf:
                return float(value)
    raise InvalidArgumentError(
        f"{recording.path} does not say which learning rate it was trained with: give base_rate (--base-rate), or "
        "record hyperparameters={'learning_rate': ...}"
    )


def _choose_rules(rules: Sequence[str] | str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys([rules] if isinstance(rules, str) else rules))
    if not names:
        raise InvalidArgumentError(f"name at least one stopping rule out of {', '.join(SIGNALS)}")
    return names


def _rule(name: str, *, patience: int, burn_in: int, mode: Mode | None) -> StoppingRule:
    try:
        return stopping_rule(name, patience=patience, burn_in=burn_in, mode=mode)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error


def _analysis(recording: Recording, sites: Sequence[str] | str | None, progress: Progress | None) -> xr.Dataset:
    """Return the analysis of a recording, once it is clear that it has two snapshots to compare."""
    snapshots = len(recording.epochs)
    if snapshots < 2:
        raise InvalidDataError(
            f"{recording.path} has {snapshots} probe snapshot{'s'[: snapshots != 1]}; a change between snapshots "
            "needs at least 2: record more epochs"
        )
    from dynome_analysis.pipeline.analysis import analyze  # late: a rule on metrics alone needs none of it

    return analyze(recording, sites=sites, progress=progress)


def _check_loops(analysis: xr.Dataset, variable: str, purpose: str, recording: Recording) -> None:
    """Refuse a signal of loops where the analysis had to leave H1 out: NaN would be passed over without a word."""
    if variable in ("functional_persistence", "reconfiguration_wasserstein") and analysis.attrs["h1"] != "computed":
        raise InvalidDataError(
            f"{purpose} needs H1 of every snapshot of {recording.path}; it is {analysis.attrs['h1']}"
        )


def _snapshot_series(analysis: xr.Dataset, variable: str) -> Series:
    """Return one value per epoch, its first snapshot's; the very first has no change: NaN, which rules pass over."""
    series: Series = {}
    for epoch, value in zip(analysis["epoch"].values.tolist(), analysis[variable].values.tolist()):
        series.setdefault(epoch, float(value))
    return series


def _metric_series(recording: Recording) -> dict[str, Series]:
    """Return every epoch metric by epoch, without the epochs at which it was not given (a NaN that was given stays)."""
    return {
        name: {int(epoch): float(value) for epoch, value in sorted(zip(epochs.tolist(), values.tolist()))}
        for name, (epochs, values) in recording.manifest.epoch_metrics().items()
    }


def _metric(recording: Recording, metrics: Mapping[str, Series], name: str, purpose: str, argument: str) -> Series:
    if name in metrics:
        return metrics[name]
    listed = ", ".join(sorted(metrics)) or "none"
    raise InvalidDataError(
        f"{purpose}: {recording.path} has no metric {name!r} (metrics there: {listed}); name another with {argument} "
        f"(--{argument.replace('_', '-')}), leave it out, or record it with recorder.epoch({name}=...)"
    )


def _on_axis(series: Sequence[Series], epochs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the series as rows on one epoch axis, NaN where a series has no value."""
    table = np.full((len(series), epochs.size), np.nan)
    for row, values in zip(table, series):
        row[np.searchsorted(epochs, list(values))] = list(values.values())
    return table


def _numbers(epochs: Sequence[int | None]) -> NDArray[np.float64]:
    return np.array([np.nan if epoch is None else epoch for epoch in epochs], np.float64)


def _values_at(series: Series, epochs: Sequence[int | None]) -> NDArray[np.float64]:
    return np.array([np.nan if epoch is None else series.get(epoch, np.nan) for epoch in epochs], np.float64)


def _attributes(
    operation: str, recording: Recording, parameters: Mapping[str, object], analysis: xr.Dataset | None
) -> dict[str, str]:
    source = {str(name): value for name, value in analysis.attrs.items()} if analysis is not None else None
    return provenance(operation, parameters, source=source, recording=recording.id)
