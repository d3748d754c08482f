"""Regressors by name, and predictions for runs that the regressor has not seen.

Splits are by configuration: runs that differ in their seed alone are nearly copies, and one of them in the training
part would tell the other's result. The same splits serve every model and every baseline. scikit-learn is imported
where it is used: it takes a second.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Estimator", "check_estimator_name", "grouped_folds", "predict_unseen"]

Estimator = Literal["ridge", "svr", "random_forest", "hist_gradient_boosting", "strongest"]
STRONGEST: tuple[Estimator, ...] = ("ridge", "svr", "hist_gradient_boosting")
INNER_FOLDS = 3


def check_estimator_name(name: str) -> None:
    """Raise InvalidArgumentError for a name that is none of `Estimator`."""
    if name not in get_args(Estimator):
        raise InvalidArgumentError(f"estimator must be one of {', '.join(get_args(Estimator))}; got {name!r}")


def grouped_folds(groups: Sequence[str], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Deal groups out to folds, at random, keeping folds alike in size.

    Parameters
    ----------
    groups : sequence of str, shape (run,)
        Runs with the same text stay together.
    folds : int
        At most as many as there are groups.
    seed : int
        Of the shuffle.

    Returns
    -------
    int64, shape (run,)
        Fold of each run, from 0; no fold is empty. Depends on the set of runs, not on their order.
    """
    sizes = Counter(groups)
    shuffled = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    filled = [0] * min(folds, len(sizes))
    fold_of: dict[str, int] = {}
    # Largest first, else the last group may be too large for any fold; sorting is stable, so the shuffle decides ties.
    for group in sorted(shuffled, key=lambda name: -sizes[name]):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


def predict_unseen(
    features: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    groups: Sequence[str],
    folds: NDArray[np.int64],
    estimator: Estimator,
    seed: int,
) -> NDArray[np.float64]:
    """Predict each run with a model that was fitted, hyper-parameters included, without its fold.

    Parameters
    ----------
    features : float64, shape (run, feature)
        Finite. With no feature at all the prediction is the mean of the training part.
    target : float64, shape (run,)
        Finite.
    groups : sequence of str, shape (run,)
        For the inner splits.
    folds : int64, shape (run,)
        From `grouped_folds`.
    estimator : Estimator
        "strongest" lets the inner cross-validation choose between ridge, svr and hist_gradient_boosting.
    seed : int
        Of inner splits and random models.

    Returns
    -------
    float64, shape (run,)

    Notes
    -----
    Nested cross-validation: hyper-parameters are chosen inside the training part by grouped folds and squared
    error. Cost: outer folds x inner folds x grid size fits.
    """
    predicted = np.empty(len(target))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if features.shape[1] == 0:
            predicted[test] = target[train].mean()
            continue
        inner = grouped_folds([groups[run] for run in train], folds=INNER_FOLDS, seed=seed)
        model = _tune(features[train], target[train], folds=inner, estimator=estimator, seed=seed)
        predicted[test] = model.predict(features[test])
    return predicted


def _tune(
    features: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    folds: NDArray[np.int64],
    estimator: Estimator,
    seed: int,
) -> Any:
    """Return the best of an estimator's grid, fitted to everything given."""
    from sklearn.model_selection import GridSearchCV

    candidates = [_make(name, seed) for name in (STRONGEST if estimator == "strongest" else (estimator,))]
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    # A single candidate, or a single configuration to train on, leaves nothing to choose or nothing to choose by.
    if len(splits) < 2 or (len(candidates) == 1 and not candidates[0][1]):
        return candidates[0][0].fit(features, target)
    searches = []
    for model, grid in candidates:
        search = GridSearchCV(
            model, grid, scoring="neg_mean_squared_error", cv=splits, refit=False, error_score="raise"
        )
        search.fit(features, target)
        searches.append((search.best_score_, model, search.best_params_))
    _, model, chosen = max(searches, key=lambda entry: entry[0])
    return model.set_params(**chosen).fit(features, target)


def _make(name: Estimator, seed: int) -> tuple[Any, dict[str, list[Any]]]:
    """Return an unfitted regressor and the grid of its hyper-parameters [O]."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    if name == "ridge":
        return make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]}
    if name == "svr":
        scaled = make_pipeline(StandardScaler(), SVR(kernel="rbf", epsilon=0.05))
        # The tube's width is in units of the target's spread, so the target is standardised too.
        model = TransformedTargetRegressor(scaled, transformer=StandardScaler())
        return model, {"regressor__svr__C": [0.3, 3.0, 30.0], "regressor__svr__gamma": [0.003, 0.03, 0.3]}
    if name == "random_forest":
        return RandomForestRegressor(100, random_state=seed), {"max_features": [1.0, 0.33]}
    # The default of 20 runs per leaf could not split a sweep of 24 runs at all.
    model = HistGradientBoostingRegressor(min_samples_leaf=4, early_stopping=False, random_state=seed)
    return model, {}
