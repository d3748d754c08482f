"""Figures for out-of-fold predictions, with intervals that respect repeated seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Score", "score"]

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """Errors of out-of-fold predictions, pooled over folds; NaN where there was nothing to predict from.

    Attributes
    ----------
    r2
        ``1 - sum (true - predicted)^2 / sum (true - mean true)^2``: 1 is perfect, 0 is the mean of the very runs that
        are judged, so that even the training mean is a little below it.
    mae, median_absolute_error
        Mean and median of ``|true - predicted|``, in units of the target.
    r2_interval, mae_interval
        95 % bootstrap percentiles over configurations, predictions held fixed.
    """

    r2: float
    mae: float
    median_absolute_error: float
    r2_interval: tuple[float, float]
    mae_interval: tuple[float, float]

    def summary(self) -> dict[str, float | list[float | None] | None]:
        """Return the figures as JSON values; null where undefined."""
        return {
            "r2": _finite(self.r2),
            "mae": _finite(self.mae),
            "median_absolute_error": _finite(self.median_absolute_error),
            "r2_interval": [_finite(bound) for bound in self.r2_interval],
            "mae_interval": [_finite(bound) for bound in self.mae_interval],
        }


def score(true: NDArray[np.float64], predicted: NDArray[np.float64], *, groups: Sequence[str], seed: int) -> Score:
    """Judge predictions; the bootstrap draws whole configurations, since seeds of one are not independent."""
    nothing = (float("nan"), float("nan"))
    if not np.isfinite(predicted).all():
        return Score(float("nan"), float("nan"), float("nan"), nothing, nothing)
    error = np.abs(true - predicted)
    members = [np.flatnonzero(np.array(groups) == group) for group in sorted(set(groups))]
    generator = np.random.default_rng(seed)
    r2s, maes = [], []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([members[group] for group in generator.integers(len(members), size=len(members))])
        r2s.append(_r2(true[drawn], predicted[drawn]))
        maes.append(error[drawn].mean())
    return Score(
        r2=_r2(true, predicted),
        mae=float(error.mean()),
        median_absolute_error=float(np.median(error)),
        r2_interval=_interval(r2s),
        mae_interval=_interval(maes),
    )


def _r2(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Return 1 - residual / total; NaN where the drawn runs all have one value."""
    total = float(((true - true.mean()) ** 2).sum())
    return 1.0 - float(((true - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    finite = np.array(values)[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (np.nan, np.nan)
    return float(low), float(high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
