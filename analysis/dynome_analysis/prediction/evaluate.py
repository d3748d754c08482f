"""How well the first epochs predict the final performance, beside the baselines that the claim needs.

The rule to keep: every model and every baseline is judged on the same runs, split the same way, and a run that is left
out is named with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.prediction.estimators import Estimator, check_estimator_name, grouped_folds, predict_unseen
from dynome_analysis.prediction.features import EarlyRun, as_recordings, early_run, feature_table
from dynome_analysis.prediction.hyperparameters import configuration_of, hyperparameter_table
from dynome_analysis.prediction.recorded import UnusableRunError
from dynome_analysis.prediction.scores import Score, score
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from os import PathLike

    import pandas as pd
    from numpy.typing import NDArray

    from dynome_analysis.compute import Progress
    from dynome_analysis.recording import Recording

__all__ = ["Exclusion", "Prediction", "predict_performance"]

MINIMUM_RUNS = 8
OUTER_FOLDS = 5
# What scikit-learn takes.
SEED_LIMIT = 2**32
BASELINES = ("mean", "hyperparameters", "accuracy_at_T")


@dataclass(frozen=True)
class Exclusion:
    """A run that took no part, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Prediction:
    """Out-of-fold predictions of final performance; made by `predict_performance`.

    Attributes
    ----------
    target
        The epoch metric that is predicted.
    epochs_used
        The features are of epochs 1 to this one.
    estimator, seed, per_layer
        As called.
    table
        One row per recording id, in the order given: ``name`` (folder), ``true``, ``predicted``, ``final_epoch``,
        ``fold``, ``configuration`` (number of the group that is never split), ``predicted_mean``,
        ``predicted_hyperparameters``, ``predicted_accuracy_at_T``.
    score
        Of the weight-graph signature.
    baselines
        Scores of ``mean`` (of the training part), ``hyperparameters``, ``accuracy_at_T`` (the target itself at the
        last feature epoch); the latter two choose between ridge, SVR and gradient boosting. NaN where no
        hyper-parameter varies, or where a run lacks the target at that epoch.
    excluded
        Runs that took no part, each with its reason.
    """

    target: str
    epochs_used: int
    estimator: Estimator
    seed: int
    per_layer: bool
    table: pd.DataFrame
    score: Score
    baselines: Mapping[str, Score]
    excluded: tuple[Exclusion, ...]

    @property
    def n_runs(self) -> int:
        """Number of runs that were predicted."""
        return len(self.table)

    @property
    def r2(self) -> float:
        """Coefficient of determination of the weight-graph signature."""
        return self.score.r2

    @property
    def mae(self) -> float:
        """Mean absolute error of the weight-graph signature, in units of the target."""
        return self.score.mae

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain JSON values; null where undefined."""
        return {
            "target": self.target,
            "n_runs": self.n_runs,
            "epochs_used": self.epochs_used,
            "estimator": self.estimator,
            "per_layer": self.per_layer,
            "seed": self.seed,
            **self.score.summary(),
            "baselines": {name: baseline.summary() for name, baseline in self.baselines.items()},
            # Folder names and no ids or paths: a sweep that is repeated elsewhere has the same summary.
            "excluded": [{"run": Path(run.path).name, "reason": run.reason} for run in self.excluded],
        }


def predict_performance(
    recordings: Iterable[Recording | str | PathLike[str]],
    *,
    epochs: int = 5,
    target: str = "test_accuracy",
    estimator: Estimator = "ridge",
    per_layer: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Prediction:
    """Predict each run's final performance from its first epochs by models that have not seen the run.

    Parameters
    ----------
    recordings : iterable of Recording or path
        At least 8 usable runs. Their order has no influence on any number.
    epochs : int, default 5
        Features are of epochs 1 to this one.
    target : str, default "test_accuracy"
        Epoch metric; its last value is predicted.
    estimator : {"ridge", "svr", "random_forest", "hist_gradient_boosting", "strongest"}
        Model on the signatures; "strongest" chooses by inner cross-validation between ridge, svr and
        hist_gradient_boosting.
    per_layer : bool, default False
        One set of statistics per layer; all runs need the same layers then.
    seed : int, default 0
        Of splits, models and bootstrap.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    Prediction

    Raises
    ------
    InvalidDataError
        Fewer than 8 usable runs (the text tells why the others are not), or the same target in every run.
    InvalidArgumentError
        A recording is given twice, an unknown estimator, bad ``epochs`` or ``seed``.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    Runs that diverged within these epochs, lack weights at one of them, lack the target, or end within them are
    excluded and listed. Nested 5-fold cross-validation; runs whose hyper-parameters differ in the seed alone stay in
    one fold, unless all do [O]. Features: Vahedian et al., arXiv 2111.05410 [P]; statistics, models' grids and
    protocol [O]. Cost: reading ``epochs`` snapshots of the weights per run, then about two seconds of fitting for some
    dozens of runs.
    """
    # Before the limit below, which holds only for libraries that are loaded: on a busy machine the boosting of a few
    # runs by as many threads as there are cores took 30 s instead of 2.
    import sklearn.ensemble  # noqa: F401
    from threadpoolctl import threadpool_limits

    check_estimator_name(estimator)
    if not 0 <= seed < SEED_LIMIT:
        raise InvalidArgumentError(f"seed must be 0 or more, and less than 2^32; got {seed}")
    opened = as_recordings(recordings)
    # Small matrices: with more threads than one, starting them takes longer than the work.
    with threadpool_limits(limits=1):
        runs, excluded = _usable(opened, epochs=epochs, target=target, per_layer=per_layer, progress=progress)
        _check(runs, excluded, target=target)
        return _evaluate(
            runs, excluded, epochs=epochs, target=target, estimator=estimator, per_layer=per_layer, seed=seed,
            progress=progress,
        )  # fmt: skip


def _usable(
    recordings: Sequence[Recording], *, epochs: int, target: str, per_layer: bool, progress: Progress | None
) -> tuple[list[EarlyRun], list[Exclusion]]:
    runs, excluded = [], []
    for done, recording in enumerate(recordings, start=1):
        try:
            run = early_run(recording, epochs=epochs, target=target, per_layer=per_layer)
        except UnusableRunError as error:
            excluded.append(Exclusion(recording.id, str(recording.path), error.reason))
        else:
            if run.diverged_at is None:
                runs.append(run)
            else:
                excluded.append(Exclusion(run.id, run.path, run.divergence))
        if progress is not None:
            progress("weight graphs", done, len(recordings))
    return runs, excluded


def _check(runs: Sequence[EarlyRun], excluded: Sequence[Exclusion], *, target: str) -> None:
    if len(runs) < MINIMUM_RUNS:
        why = f"; {len(excluded)} excluded, {excluded[0].path} first: {excluded[0].reason}" if excluded else ""
        raise InvalidDataError(f"prediction needs at least {MINIMUM_RUNS} usable runs, got {len(runs)}{why}")
    finals = [run.final for run in runs]
    if max(finals) == min(finals):
        raise InvalidDataError(f"every run ends with the same {target}, {finals[0]:g}: there is nothing to predict")


def _evaluate(
    runs: Sequence[EarlyRun],
    excluded: Sequence[Exclusion],
    *,
    epochs: int,
    target: str,
    estimator: Estimator,
    per_layer: bool,
    seed: int,
    progress: Progress | None,
) -> Prediction:
    import pandas as pd

    order = _canonical_order(runs)
    ordered = [runs[position] for position in order]
    true = np.array([run.final for run in ordered])
    groups = _groups(ordered)
    folds = grouped_folds(groups, folds=OUTER_FOLDS, seed=seed)
    at_last = np.array([[run.at_last_feature_epoch] for run in ordered])
    hyperparameters = hyperparameter_table([run.hyperparameters for run in ordered]).to_numpy()
    questions: list[tuple[str, NDArray[np.float64], Estimator]] = [
        ("signature", feature_table(ordered).to_numpy(), estimator),
        ("mean", np.empty((len(true), 0)), estimator),
        ("hyperparameters", hyperparameters, "strongest"),
        ("accuracy_at_T", at_last, "strongest"),
    ]
    predicted = {}
    for done, (name, features, model) in enumerate(questions, start=1):
        if (name == "hyperparameters" and features.shape[1] == 0) or not np.isfinite(features).all():
            predicted[name] = np.full(len(true), np.nan)
        else:
            predicted[name] = predict_unseen(features, true, groups=groups, folds=folds, estimator=model, seed=seed)
        if progress is not None:
            progress("cross-validation", done, len(questions))
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    table = pd.DataFrame(
        {
            "name": [Path(run.path).name for run in ordered],
            "true": true,
            "predicted": predicted["signature"],
            "final_epoch": [run.final_epoch for run in ordered],
            "fold": folds,
            "configuration": [numbers[group] for group in groups],
            **{f"predicted_{name}": predicted[name] for name in BASELINES},
        },
        index=pd.Index([run.id for run in ordered], name="recording"),
    ).loc[[run.id for run in runs]]
    scores = {name: score(true, values, groups=groups, seed=seed) for name, values in predicted.items()}
    return Prediction(
        target=target,
        epochs_used=epochs,
        estimator=estimator,
        seed=seed,
        per_layer=per_layer,
        table=table,
        score=scores["signature"],
        baselines={name: scores[name] for name in BASELINES},
        excluded=tuple(excluded),
    )


def _canonical_order(runs: Sequence[EarlyRun]) -> list[int]:
    """Order runs by what they hold: ids are random, so a repeated sweep would be split in another way."""
    keys = [(configuration_of(run.hyperparameters), tuple(run.features.values()), run.final) for run in runs]
    return sorted(range(len(runs)), key=keys.__getitem__)


def _groups(runs: Sequence[EarlyRun]) -> list[str]:
    """Return each run's configuration; where there is but one, or none was given, each run stands for itself."""
    configurations = [configuration_of(run.hyperparameters) for run in runs]
    if len(set(configurations)) > 1:
        return configurations
    return [f"run {position:06d}" for position in range(len(runs))]
