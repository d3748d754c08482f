"""From recordings to one row of features each: the signatures of the weight graphs of the first epochs.

The rule to keep: a run without the data that was asked for is an error or is reported by name, and a diverged run is
labelled; nothing is filled in and nothing disappears.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynome_analysis.prediction.recorded import UnusableRunError, weight_signature
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from dynome_analysis.recording import Recording

__all__ = [
    "DivergedRunError",
    "EarlyRun",
    "as_recordings",
    "early_features",
    "early_run",
    "feature_table",
]


class DivergedRunError(UnusableRunError):
    """The weights of a run hold NaN or infinity within the epochs that were asked for."""


@dataclass(frozen=True)
class EarlyRun:
    """What prediction needs of one run.

    Attributes
    ----------
    id, path
        The recording.
    features
        ``degree_mean@epoch3`` and so on.
    final, final_epoch
        The target: its value at the last epoch, and that epoch.
    at_last_feature_epoch
        The same metric at the last epoch that the features know; NaN where it was not given.
    hyperparameters
        As the user gave them.
    diverged_at
        First of the feature epochs whose weights hold NaN or infinity; None for a sound run.
    """

    id: str
    path: str
    features: Mapping[str, float]
    final: float
    final_epoch: int
    at_last_feature_epoch: float
    hyperparameters: Mapping[str, Any]
    diverged_at: int | None = None

    @property
    def divergence(self) -> str:
        """What to say about a diverged run."""
        return f"diverged: the weights hold NaN or infinity at epoch {self.diverged_at}"


def early_features(
    recordings: Iterable[Recording | str | PathLike[str]],
    *,
    epochs: int = 5,
    target: str = "test_accuracy",
    per_layer: bool = False,
    diverged: Literal["error", "keep", "exclude"] = "error",
) -> tuple[pd.DataFrame, pd.Series[float]]:
    """Return a feature table of the first epochs and the final value of a metric, for any scikit-learn estimator.

    Parameters
    ----------
    recordings : iterable of Recording or path
        Each with weights at epochs 1 to ``epochs`` and epoch metrics that go further.
    epochs : int, default 5
        Features are of epochs 1 to this one. Epoch 0, the untrained network, is left out.
    target : str, default "test_accuracy"
        Epoch metric; its last value is what is to be predicted.
    per_layer : bool, default False
        One set of statistics per layer; then all runs need the same layers.
    diverged : {"error", "keep", "exclude"}
        What happens with runs whose weights hold NaN or infinity within these epochs: an error that names the first;
        NaN in their rows from there on; or no row, and their ids in ``X.attrs["excluded"]``.

    Returns
    -------
    X : DataFrame
        float64, one row per recording id in the order given, columns ``degree_mean@epoch3``
        (``degree_mean[fc1]@epoch3``).
    y : Series
        float64, named as the target, the same rows.

    Raises
    ------
    UnusableRunError
        A run lacks weights at some of the epochs, or the metric, or ended within these epochs; the text names the run.
    DivergedRunError
        A run has diverged and ``diverged`` is "error".
    InvalidArgumentError
        Nothing given, a recording given twice, or bad ``epochs`` or ``diverged``.

    Notes
    -----
    Concatenated signatures of the first T snapshots: Vahedian et al., arXiv 2111.05410 [P]; which statistics:
    METHODS.md section 6. Cost: that of `weight_signature` on ``epochs`` snapshots of every recording.
    """
    import pandas as pd

    if diverged not in ("error", "keep", "exclude"):
        raise InvalidArgumentError(f'diverged must be "error", "keep" or "exclude", got {diverged!r}')
    runs, excluded = [], []
    for recording in as_recordings(recordings):
        run = early_run(recording, epochs=epochs, target=target, per_layer=per_layer)
        if run.diverged_at is not None and diverged == "error":
            way_out = 'pass diverged="exclude" to leave such runs out, or "keep" for rows with NaN'
            raise DivergedRunError(recording.path, f"{run.divergence}; {way_out}")
        if run.diverged_at is not None and diverged == "exclude":
            excluded.append(run.id)
        else:
            runs.append(run)
    features = feature_table(runs)
    features.attrs["excluded"] = excluded
    return features, pd.Series([run.final for run in runs], index=features.index, name=target, dtype=np.float64)


def feature_table(runs: Sequence[EarlyRun]) -> pd.DataFrame:
    """Return the features of runs as a table, one row per recording id.

    Raises
    ------
    InvalidDataError
        The runs do not have the same features (per-layer statistics of different networks).
    """
    import pandas as pd

    for run in runs[1:]:
        if run.features.keys() != runs[0].features.keys():
            odd = next(iter(run.features.keys() ^ runs[0].features.keys()))
            raise InvalidDataError(
                f"{run.path} and {runs[0].path} have different layers (only one has {odd}): statistics per layer need"
                " one architecture; use per_layer=False"
            )
    index = pd.Index([run.id for run in runs], name="recording")
    return pd.DataFrame([dict(run.features) for run in runs], index=index, dtype=np.float64)


def early_run(recording: Recording, *, epochs: int, target: str, per_layer: bool = False) -> EarlyRun:
    """Gather features, target and hyper-parameters of one recording; a diverged one has NaN features and says so.

    Raises
    ------
    UnusableRunError, InvalidArgumentError
        As `early_features`.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 1:
        raise InvalidArgumentError(f"epochs must be a whole number of at least 1, got {epochs!r}")
    final_epoch, final, at_last = _target(recording, target, epochs)
    signature = weight_signature(recording, epochs=range(1, epochs + 1), per_layer=per_layer)
    names, values = signature["feature"].values.tolist(), signature["signature"].values
    broken = np.flatnonzero(signature["diverged"].values)
    return EarlyRun(
        id=recording.id,
        path=str(recording.path),
        features={
            f"{name}@epoch{epoch + 1}": float(values[epoch, column])
            for epoch in range(epochs)
            for column, name in enumerate(names)
        },
        final=final,
        final_epoch=final_epoch,
        at_last_feature_epoch=at_last,
        hyperparameters=recording.hyperparameters,
        diverged_at=int(broken[0]) + 1 if broken.size else None,
    )


def as_recordings(recordings: Iterable[Recording | str | PathLike[str]]) -> list[Recording]:
    """Open what is given by path, and refuse a recording that is given twice (a copy would tell its twin's result).

    Raises
    ------
    InvalidArgumentError
        Nothing given, one path instead of several, or a recording twice.
    """
    from dynome_analysis.recording import Recording, open_recording

    if isinstance(recordings, str | PathLike | Recording):
        raise InvalidArgumentError("recordings must be several recordings or paths, got one; put them in a list")
    opened = [item if isinstance(item, Recording) else open_recording(Path(item)) for item in recordings]
    if not opened:
        raise InvalidArgumentError("recordings is empty; give the folders of the runs")
    first: dict[str, Recording] = {}
    for recording in opened:
        twin = first.setdefault(recording.id, recording)
        if twin is not recording:
            raise InvalidArgumentError(
                f"recordings: {recording.path} is the same run as {twin.path}; give each run once"
            )
    return opened


def _target(recording: Recording, target: str, epochs: int) -> tuple[int, float, float]:
    """Return the last epoch of a metric, its value there, and its value at the last epoch of the features (or NaN)."""
    metrics = recording.manifest.epoch_metrics()
    if target not in metrics or not metrics[target][0].size:
        has = ", ".join(sorted(metrics)) or "none"
        raise UnusableRunError(recording.path, f"no epoch metric {target!r} was recorded; there is {has}")
    at, values = metrics[target]
    last, final = int(at[-1]), float(values[-1])
    if not np.isfinite(final):
        raise UnusableRunError(recording.path, f"{target} is {final} at its last epoch, {last}")
    if last <= epochs:
        reason = (
            f"{target} ends at epoch {last}, within the {epochs} epochs of the features; nothing is left to predict"
        )
        raise UnusableRunError(recording.path, reason)
    known = values[at == epochs]
    return last, final, float(known[0]) if known.size else float("nan")
