"""Predicted performance: judged fairly, beside its baselines, the same however the runs are given."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import write_recording
from sklearn.dummy import DummyRegressor

import dynome_analysis as dya
from dynome_analysis.prediction import estimators
from dynome_analysis.prediction.estimators import grouped_folds, predict_unseen
from dynome_analysis.prediction.scores import score
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynome_recorder.storage.writer import Moment

SCALES = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
SEEDS = 2
T = 2


def outcome(scale: float, seed: int) -> float:
    """Final accuracy of an imagined run: better for larger weights, and a little luck."""
    return 0.4 + 0.05 * scale + 0.002 * seed


def imagined(scale: float, seed: int, final: float | None = None) -> Callable[[Moment], Moment]:
    """Make weights ``scale`` times as large, and let accuracy end where `outcome` says."""
    final = outcome(scale, seed) if final is None else final

    def change(moment: Moment) -> Moment:
        weights = {name: value * np.float32(scale) for name, value in (moment.weights or {}).items()}
        accuracy = final - 0.3 * math.exp(-moment.epoch) * (moment.epoch < 4)
        return dataclasses.replace(moment, weights=weights, epoch_metrics={"test_accuracy": accuracy})

    return change


def write_run(
    folder: Path,
    scale: float,
    seed: int,
    *,
    change: Callable[[Moment], Moment] | None = None,
    hyperparameters: dict[str, Any] | None = None,
    epochs: int = 4,
) -> Path:
    return write_recording(
        folder, sites={"hidden": 6}, samples=4, epochs=epochs, seed=seed, steps_per_epoch=1,
        hyperparameters={"scale": scale, "kind": "wide" if scale > 1 else "narrow"} | (hyperparameters or {}),
        change=change or imagined(scale, seed),
    )  # fmt: skip


def write_sweep(folder: Path) -> list[Path]:
    return [write_run(folder / f"sweep-{s}-{seed}", s, seed) for s in SCALES for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def prediction(sweep: list[Path]) -> dya.Prediction:
    return dya.predict_performance(sweep, epochs=T, seed=0)


def test_a_dependence_that_is_there_is_found(prediction: dya.Prediction) -> None:
    assert prediction.n_runs == 12
    assert prediction.baselines["accuracy_at_T"].r2 > 0.9  # imagined accuracy at T is the final one minus a constant
    assert prediction.r2 > 0.5
    assert prediction.mae < prediction.baselines["mean"].mae
    assert prediction.baselines["mean"].r2 < 0
    assert prediction.score.mae_interval[0] < prediction.mae < prediction.score.mae_interval[1]
    assert prediction.excluded == ()


def test_the_table_holds_what_the_scores_are_made_of(prediction: dya.Prediction, sweep: list[Path]) -> None:
    table = prediction.table
    assert table.index.tolist() == [dya.open_recording(path).id for path in sweep]
    assert table["name"].tolist() == [path.name for path in sweep]
    assert table["true"].tolist() == pytest.approx([outcome(s, seed) for s in SCALES for seed in range(SEEDS)])
    assert set(table["final_epoch"]) == {4}
    assert table.groupby("configuration")["fold"].nunique().tolist() == [1] * len(SCALES)
    assert table["fold"].nunique() == 5
    scores = {"predicted": prediction.score}
    scores |= {f"predicted_{name}": found for name, found in prediction.baselines.items()}
    for name, found in scores.items():
        assert found.r2 == pytest.approx(sklearn.metrics.r2_score(table["true"], table[name])), name
        assert found.mae == pytest.approx(sklearn.metrics.mean_absolute_error(table["true"], table[name]))
        assert found.median_absolute_error == pytest.approx((table["true"] - table[name]).abs().median())
    for fold, rows in table.groupby("fold"):
        training_mean = table.loc[table["fold"] != fold, "true"].mean()
        assert rows["predicted_mean"].tolist() == pytest.approx([training_mean] * len(rows))


def test_summary_is_strict_json_with_the_promised_members(prediction: dya.Prediction) -> None:
    summary = json.loads(json.dumps(prediction.summary(), allow_nan=False))
    assert {"target", "r2", "mae", "n_runs", "epochs_used", "baselines", "excluded"} <= summary.keys()
    assert summary["target"] == "test_accuracy"
    assert summary["epochs_used"] == T
    assert set(summary["baselines"]) == {"mean", "hyperparameters", "accuracy_at_T"}
    for entry in [summary, *summary["baselines"].values()]:
        assert entry["r2"] == pytest.approx(entry["r2"])
        assert entry["mae"] > 0
        assert len(entry["mae_interval"]) == 2


def test_order_has_no_influence(prediction: dya.Prediction, sweep: list[Path]) -> None:
    shuffled = [sweep[position] for position in np.random.default_rng(1).permutation(len(sweep))]
    again = dya.predict_performance(shuffled, epochs=T, seed=0)
    assert again.summary() == prediction.summary()
    pd.testing.assert_frame_equal(again.table.loc[prediction.table.index], prediction.table)
    assert again.table["name"].tolist() == [path.name for path in shuffled]


def test_a_sweep_repeated_elsewhere_has_the_same_summary(prediction: dya.Prediction, tmp_path: Path) -> None:
    """Run ids are random and folders differ; neither may decide how runs are split."""
    again = dya.predict_performance(write_sweep(tmp_path), epochs=T, seed=0)
    assert again.summary() == prediction.summary()


def test_another_seed_splits_differently(prediction: dya.Prediction, sweep: list[Path]) -> None:
    other = dya.predict_performance(sweep, epochs=T, seed=1)
    assert other.table["fold"].tolist() != prediction.table["fold"].tolist()
    assert other.table["true"].tolist() == prediction.table["true"].tolist()


def test_no_run_tells_its_own_result_or_its_twins(
    prediction: dya.Prediction, sweep: list[Path], tmp_path: Path
) -> None:
    """With another outcome, the predictions of that run and of all runs in its fold stay as they are, others change."""
    changed = [*sweep]
    position = 5
    scale, seed = SCALES[position // SEEDS], position % SEEDS
    changed[position] = write_run(tmp_path / "other", scale, seed, change=imagined(scale, seed, final=0.2))
    other = dya.predict_performance(changed, epochs=T, seed=0)
    before, after = (frame.reset_index(drop=True) for frame in (prediction.table, other.table))
    assert after.loc[position, "true"] == pytest.approx(0.2)
    assert before["fold"].tolist() == after["fold"].tolist()
    same_fold = before["fold"] == before.loc[position, "fold"]
    for column in ("predicted", "predicted_mean", "predicted_hyperparameters"):
        assert (before[column] == after[column])[same_fold].all(), column
    assert (before["predicted_mean"] != after["predicted_mean"])[~same_fold].all()
    assert same_fold[position ^ 1]  # the other seed of the configuration


@pytest.mark.parametrize("estimator", ["ridge", "svr", "random_forest", "hist_gradient_boosting", "strongest"])
def test_every_estimator_learns_and_gives_the_same_twice(estimator: Any) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 2))
    target = 2 * features[:, 0] + 0.1 * generator.normal(size=60)
    groups = [f"{position:02d}" for position in range(60)]
    folds = grouped_folds(groups, folds=2, seed=0)
    first, second = (
        predict_unseen(features, target, groups=groups, folds=folds, estimator=estimator, seed=0) for _ in range(2)
    )
    assert (first == second).all()
    assert sklearn.metrics.r2_score(target, first) > 0.7


def test_the_estimator_asked_for_is_used(prediction: dya.Prediction, sweep: list[Path]) -> None:
    other = dya.predict_performance(sweep, epochs=T, estimator="svr")
    assert other.summary()["estimator"] == "svr"
    assert other.table["predicted"].tolist() != prediction.table["predicted"].tolist()
    assert other.baselines == prediction.baselines


def test_statistics_per_layer(sweep: list[Path]) -> None:
    found = dya.predict_performance(sweep, epochs=T, per_layer=True)
    assert found.summary()["per_layer"] is True
    assert np.isfinite(found.r2)


def diverging(moment: Moment) -> Moment:
    weights = {name: np.full_like(value, np.inf) for name, value in (moment.weights or {}).items()}
    return dataclasses.replace(imagined(1.0, 0)(moment), weights=weights if moment.epoch > 1 else moment.weights)


def test_runs_that_cannot_take_part_are_named_with_their_reason(
    prediction: dya.Prediction, sweep: list[Path], tmp_path: Path
) -> None:
    diverged = write_run(tmp_path / "diverged", 1.0, 7, change=diverging)
    silent = write_run(tmp_path / "silent", 1.0, 8, change=lambda m: dataclasses.replace(m, epoch_metrics={}))
    short = write_run(tmp_path / "short", 1.0, 9, epochs=T)
    found = dya.predict_performance([diverged, *sweep[:5], silent, *sweep[5:], short], epochs=T, seed=0)
    assert [(Path(run.path).name, run.reason) for run in found.excluded] == [
        ("diverged", "diverged: the weights hold NaN or infinity at epoch 2"),
        ("silent", "no epoch metric 'test_accuracy' was recorded; there is none"),
        ("short", "test_accuracy ends at epoch 2, within the 2 epochs of the features; nothing is left to predict"),
    ]
    assert found.excluded[0].id == dya.open_recording(diverged).id
    assert found.summary()["excluded"][0] == {"run": "diverged", "reason": found.excluded[0].reason}
    assert found.summary() | {"excluded": []} == prediction.summary()
    with pytest.raises(
        InvalidDataError, match=r"at least 8 usable runs, got 5; 1 excluded, .*diverged first: diverged"
    ):
        dya.predict_performance([diverged, *sweep[:5]], epochs=T)


def test_too_few_runs_and_nothing_to_predict(sweep: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"at least 8 usable runs, got 7$"):
        dya.predict_performance(sweep[:7], epochs=T)
    same = [write_run(tmp_path / f"{seed}", 1.0, seed, change=imagined(1.0, seed, final=0.5)) for seed in range(8)]
    with pytest.raises(InvalidDataError, match=r"every run ends with the same test_accuracy, 0.5"):
        dya.predict_performance(same, epochs=T)


def test_bad_calls(sweep: list[Path]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"estimator must be one of ridge, svr, .*; got 'lasso'"):
        dya.predict_performance(sweep, estimator="lasso")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="give each run once"):
        dya.predict_performance([*sweep, sweep[3]], epochs=T)
    with pytest.raises(InvalidArgumentError, match="epochs must be a whole number"):
        dya.predict_performance(sweep, epochs=0)
    for seed in (-1, 2**32):
        with pytest.raises(InvalidArgumentError, match=f"seed must be 0 or more, and less than .*; got {seed}"):
            dya.predict_performance(sweep, epochs=T, seed=seed)


def test_baselines_that_have_nothing_to_go_by_are_undefined(tmp_path: Path) -> None:
    """One configuration: each run stands for itself, hyper-parameters tell nothing; one run lacks accuracy at T."""

    def lose_accuracy_at_t(moment: Moment) -> Moment:
        moment = imagined(1.0, 3)(moment)
        return dataclasses.replace(moment, epoch_metrics={} if moment.epoch == T else moment.epoch_metrics)

    paths = [
        write_run(tmp_path / f"{seed}", 1.0, seed, change=lose_accuracy_at_t if seed == 3 else imagined(1.0, seed))
        for seed in range(8)
    ]
    found = dya.predict_performance(paths, epochs=T)
    summary = found.summary()
    assert found.table["configuration"].nunique() == 8
    for name in ("hyperparameters", "accuracy_at_T"):
        assert math.isnan(found.baselines[name].r2)
        assert found.table[f"predicted_{name}"].isna().all()
        assert summary["baselines"][name]["r2"] is summary["baselines"][name]["mae"] is None
        assert summary["baselines"][name]["mae_interval"] == [None, None]
    assert math.isfinite(found.r2)


def test_two_configurations_leave_nothing_to_tune_by(sweep: list[Path], tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{s}-{seed}", s, seed) for s in (0.5, 2.0) for seed in range(4)]
    found = dya.predict_performance(paths, epochs=T)
    assert found.table["fold"].nunique() == 2
    assert found.table["predicted"].notna().all()


def test_progress_is_told(sweep: list[Path]) -> None:
    told: list[tuple[str, int, int]] = []
    dya.predict_performance(sweep[:8], epochs=T, progress=lambda *step: told.append(step))
    assert told[:8] == [("weight graphs", done, 8) for done in range(1, 9)]
    assert told[8:] == [("cross-validation", done, 4) for done in range(1, 5)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 1000))
def test_folds_keep_groups_whole_and_are_alike_in_size(groups: list[str], folds: int, seed: int) -> None:
    found = grouped_folds(groups, folds=folds, seed=seed)
    used = min(folds, len(set(groups)))
    assert set(found.tolist()) == set(range(used))
    for group in set(groups):
        assert len({fold for fold, name in zip(found, groups, strict=True) if name == group}) == 1
    sizes = Counter(found.tolist())
    assert max(sizes.values()) - min(sizes.values()) <= max(Counter(groups).values())
    backwards = grouped_folds(groups[::-1], folds=folds, seed=seed)
    assert backwards.tolist() == found.tolist()[::-1]


def test_outer_and_inner_splits_keep_groups_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the model nor the choice of its hyper-parameters sees a twin of a run that it is judged by."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 4)
    order = generator.permutation(48)
    features = np.column_stack([group, np.arange(48)]).astype(float)[order]
    names = [f"g{number:02d}" for number in group[order]]
    folds = grouped_folds(names, folds=4, seed=0)
    seen: list[np.ndarray] = []

    def watch(train: np.ndarray, target: np.ndarray, *, folds: np.ndarray, **options: Any) -> Any:
        table = pd.DataFrame({"group": train[:, 0], "inner": folds})
        assert table.groupby("group")["inner"].nunique().max() == 1
        assert table["inner"].nunique() == 3
        seen.append(train[:, 0])
        return DummyRegressor().fit(train, target)

    monkeypatch.setattr(estimators, "_tune", watch)
    predict_unseen(features, generator.normal(size=48), groups=names, folds=folds, estimator="ridge", seed=0)
    assert [len(set(groups)) for groups in seen] == [9] * 4
    assert [len(groups) for groups in seen] == [36] * 4


def test_scores_against_scikit_learn_and_by_hand() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=30)
    predicted = true + 0.3 * generator.normal(size=30)
    singles = [f"{position:02d}" for position in range(30)]
    found = score(true, predicted, groups=singles, seed=0)
    assert found.r2 == pytest.approx(sklearn.metrics.r2_score(true, predicted))
    assert found.r2_interval[0] < found.r2 < found.r2_interval[1]
    # Copies of runs in one configuration add no certainty.
    copies = score(np.repeat(true, 5), np.repeat(predicted, 5), groups=np.repeat(singles, 5).tolist(), seed=0)
    assert copies.mae_interval == pytest.approx(found.mae_interval)
    assert copies.r2 == pytest.approx(found.r2)
    exact = score(true, true, groups=singles, seed=0)
    assert (exact.r2, exact.mae, exact.mae_interval) == (1.0, 0.0, (0.0, 0.0))
