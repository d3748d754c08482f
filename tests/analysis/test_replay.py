"""Rules folded over recordings: the right signals at the right epochs, and one line where something is missing."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from naive_replay import best_of, learning_rates, patience_walk

import dynome_analysis as dya
from dynome_analysis.replay import replay as replay_module
from dynome_analysis.replay.learning_rate import LearningRateRule
from dynome_analysis.replay.replay import GateConstants, recorded_rate, replay_learning_rate, replay_stopping
from dynome_analysis.replay.stopping import SIGNALS
from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, InvalidDataError

RULES = tuple(SIGNALS)
MISSING = (
    r"^rule 'vl': .* has no metric 'loss' \(metrics there: test_accuracy, val_accuracy, val_loss\); "
    r"name another with validation_metric \(--validation-metric\), .* record it with recorder\.epoch\(loss=\.\.\.\)$"
)


@pytest.fixture
def recording(make_recording) -> dya.Recording:
    return dya.open_recording(make_recording(epochs=8))


def change_metrics(**values):
    """Make a change of moments that sets epoch metrics; a function takes the epoch, None drops the metric."""

    def change(moment):
        metrics = dict(moment.epoch_metrics)
        for name, value in values.items():
            value = value(moment.epoch) if callable(value) else value
            if value is None:
                metrics.pop(name, None)
            else:
                metrics[name] = value
        return dataclasses.replace(moment, epoch_metrics=metrics)

    return change


def test_stopping_equals_the_rules_restated_over_the_analysis(recording) -> None:
    result = replay_stopping(recording, rules=RULES, patience=2)
    analysis, metrics = dya.analyze(recording), recording.epoch_metrics
    test = dict(zip(metrics.epoch.values.tolist(), metrics.test_accuracy.values.tolist()))
    for name in RULES:
        variable, mode = SIGNALS[name].variable, SIGNALS[name].mode
        column = (
            metrics[{"vl": "val_loss", "oracle": "test_accuracy"}[name]] if variable is None else analysis[variable]
        )
        series = [(e, v) for e, v in zip(column.epoch.values.tolist(), column.values.tolist()) if not math.isnan(v)]
        epochs, values = [e for e, _ in series], [v for _, v in series]
        row = result.sel(rule=name)
        best, trigger = patience_walk(epochs, values, mode, 2, 1)
        if name == "oracle":
            best, trigger = best_of(epochs, values, mode, 1), None
        np.testing.assert_equal(float(row.best_epoch), math.nan if best is None else best)
        np.testing.assert_equal(float(row.trigger_epoch), math.nan if trigger is None else trigger)
        np.testing.assert_equal(float(row.test_accuracy_best), test.get(best, math.nan))
        np.testing.assert_equal(float(row.test_accuracy_trigger), test.get(trigger, math.nan))
        np.testing.assert_array_equal(row.signal.dropna("epoch").epoch.values, epochs)
        np.testing.assert_array_equal(row.signal.dropna("epoch").values, values)


def test_stopping_is_labelled_and_knows_where_it_comes_from(recording) -> None:
    result = replay_stopping(recording)
    assert list(result.rule.values) == ["top", "fp", "vl", "oracle"]
    assert result.epoch.values.tolist() == list(range(9))
    assert dict(result.signal.sizes) == {"rule": 4, "epoch": 9}
    assert np.isnan(result.signal.sel(rule="top", epoch=0))
    assert result.attrs["recording"] == recording.id
    parameters = json.loads(result.attrs["parameters"])
    assert parameters["replay_stopping"]["patience"] == 5
    assert "analyze" in parameters
    assert {result[name].dtype for name in result.data_vars} == {np.dtype(np.float64)}


def test_rules_start_at_epoch_1_unless_told_otherwise(make_recording) -> None:
    path = make_recording(
        change=change_metrics(val_loss=lambda epoch: float(epoch), test_accuracy=lambda epoch: 1.0 - epoch / 10)
    )
    recording = dya.open_recording(path)
    result = replay_stopping(recording, rules=["vl", "oracle"])
    assert result.best_epoch.values.tolist() == [1, 1]
    assert result.trigger_epoch.values[0] == 6
    assert replay_stopping(recording, rules=["vl", "oracle"], burn_in=0).best_epoch.values.tolist() == [0, 0]
    assert replay_stopping(recording, rules=["vl", "oracle"], burn_in=3).best_epoch.values.tolist() == [3, 1]


def test_metrics_may_be_large_or_small_when_good(make_recording) -> None:
    path = make_recording(
        change=change_metrics(val_accuracy=lambda epoch: float(epoch), test_loss=lambda epoch: abs(epoch - 2.0))
    )
    result = replay_stopping(
        dya.open_recording(path),
        rules=["vl", "oracle"],
        validation_metric="val_accuracy",
        validation_mode="max",
        test_metric="test_loss",
        test_mode="min",
    )
    assert result.best_epoch.values.tolist() == [6, 2]
    assert np.isnan(result.trigger_epoch.values).all()
    assert result.test_accuracy_best.values.tolist() == [4.0, 0.0]


def test_a_rule_on_metrics_computes_no_connectome(recording, monkeypatch) -> None:
    monkeypatch.setattr(replay_module, "_analysis", lambda *_: pytest.fail("connectomes were asked for"))
    assert list(replay_stopping(recording, rules="vl").rule.values) == ["vl"]


def test_metrics_and_snapshots_with_gaps(make_recording) -> None:
    """Snapshots every other epoch, a metric every third: each rule walks its own, one axis holds all."""

    def change(moment):
        keep = moment if moment.epoch % 2 else dataclasses.replace(moment, probe=None, health={})
        return change_metrics(val_loss=lambda epoch: 5.0 + epoch if epoch % 3 == 0 else None)(keep)

    recording = dya.open_recording(make_recording(epochs=9, change=change))
    result = replay_stopping(recording, patience=2)
    assert result.epoch.values.tolist() == list(range(10))
    signal = {name: result.signal.sel(rule=name).dropna("epoch").epoch.values.tolist() for name in ("top", "fp", "vl")}
    assert signal == {"top": [3, 5, 7, 9], "fp": [1, 3, 5, 7, 9], "vl": [0, 3, 6, 9]}
    assert result.sel(rule="vl").best_epoch == 3
    assert result.sel(rule="vl").trigger_epoch == 9
    trace = replay_learning_rate(recording)
    assert trace.epoch.values.tolist() == [1, 3, 5, 7, 9]
    assert np.isnan(trace.rate.values).tolist() == [True, False, False, False, False]


def test_several_snapshots_in_an_epoch(make_recording) -> None:
    """Snapshots within epochs: stopping takes the first of each epoch, the learning rate decides at every one."""

    def change(moment):
        # Six moments become the ends of epochs 0, 1, 2 and moments half-way.
        return dataclasses.replace(
            moment, epoch=moment.epoch // 2, epoch_complete=moment.epoch % 2 == 0, step_metrics={}
        )

    recording = dya.open_recording(make_recording(epochs=5, change=change))
    analysis = dya.analyze(recording)
    assert analysis.epoch.values.tolist() == [0, 0, 1, 1, 2, 2]
    top = replay_stopping(recording, rules="top").signal.sel(rule="top")
    assert np.isnan(top.sel(epoch=0))
    assert top.sel(epoch=[1, 2]).values.tolist() == analysis.reconfiguration_deaths.values[[2, 4]].tolist()
    trace = replay_learning_rate(recording)
    assert trace.epoch.values.tolist() == [0, 0, 1, 1, 2, 2]
    assert trace.step.values.tolist() == analysis.step.values.tolist()
    assert np.isfinite(trace.rate.values[1:]).all()


def test_a_recorded_nan_is_an_observation(make_recording) -> None:
    path = make_recording(change=change_metrics(val_loss=lambda epoch: math.nan if epoch > 2 else 1.0))
    result = replay_stopping(dya.open_recording(path), rules="vl", patience=3)
    assert (float(result.best_epoch[0]), float(result.trigger_epoch[0])) == (2, 5)


def test_a_test_metric_may_be_absent(make_recording) -> None:
    recording = dya.open_recording(make_recording(metrics=False))
    result = replay_stopping(recording, rules=["top", "fp"], test_metric=None, patience=1)
    assert np.isfinite(result.best_epoch).all()
    assert np.isnan(result.test_accuracy_best).all()
    with pytest.raises(InvalidArgumentError, match="'oracle' needs a test metric"):
        replay_stopping(recording, rules=["oracle"], test_metric=None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rules": ["vl"], "validation_metric": "loss"}, InvalidDataError, MISSING),
        ({"test_metric": "test_f1"}, InvalidDataError, "test metric: .* 'test_f1' .*--test-metric"),
        ({"rules": ["early"]}, InvalidArgumentError, "'early' is no stopping rule; there are top, "),
        ({"rules": []}, InvalidArgumentError, "name at least one stopping rule"),
        ({"patience": 0}, InvalidArgumentError, "patience must be at least 1"),
        ({"burn_in": -1}, InvalidArgumentError, "burn_in must be"),
        ({"validation_mode": "best"}, InvalidArgumentError, "mode must be 'min' or 'max'"),
        ({"sites": ["nothing*"]}, InvalidArgumentError, "matches no site"),
    ],
)  # fmt: skip
def test_wrong_stopping_calls_get_one_line(recording, arguments, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        replay_stopping(recording, **arguments)
    assert "\n" not in str(caught.value)


def test_no_metrics_at_all_is_said(make_recording) -> None:
    with pytest.raises(InvalidDataError, match=r"metrics there: none"):
        replay_stopping(dya.open_recording(make_recording(metrics=False)), rules=["vl"], test_metric=None)


def test_one_snapshot_is_not_enough(make_recording) -> None:
    recording = dya.open_recording(make_recording(epochs=0))
    for replay in (lambda: replay_stopping(recording, rules="fp"), lambda: replay_learning_rate(recording)):
        with pytest.raises(InvalidDataError, match=r"has 1 probe snapshot; .* needs at least 2") as caught:
            replay()
        assert "\n" not in str(caught.value)


def test_a_missing_chunk_is_no_signal(make_recording) -> None:
    path = make_recording()
    recording = dya.open_recording(path)
    name = next(name for name in recording.manifest.live[3].files if name.startswith("probe/"))
    (path / "store.zarr" / name).unlink()
    with pytest.raises(CorruptRecordingError, match="missing"):
        replay_stopping(recording)


@pytest.mark.parametrize("distance", ["top", "births", "deaths", "wasserstein"])
def test_the_trace_equals_the_rule_restated(make_recording, distance) -> None:
    recording = dya.open_recording(make_recording(epochs=14))
    trace = replay_learning_rate(recording, distance=distance, base_rate=0.2, window=4, up=1.3)
    measured = dya.analyze(recording)[f"reconfiguration_{distance}"].values
    np.testing.assert_array_equal(trace.distance.values, measured)
    expected = learning_rates(measured[1:].tolist(), 0.2, 14 / 5, w=4, up=1.3)
    assert trace.state.values.tolist() == ["", *(state for _, state, _, _ in expected)]
    for name, column in (("z", 0), ("gain", 2), ("rate", 3)):
        np.testing.assert_allclose(trace[name].values, [np.nan, *(row[column] for row in expected)], rtol=1e-12)
    assert "UNSTABLE" in trace.state or "STABLE" in trace.state


def test_the_trace_says_open_loop_and_its_constants(recording) -> None:
    trace = replay_learning_rate(recording, horizon=3, alpha=0.9)
    assert trace.attrs["loop"] == "open"
    assert trace.attrs["note"].startswith("open loop")
    settings = json.loads(trace.attrs["parameters"])["replay_learning_rate"]
    assert settings["alpha"] == 0.9
    assert settings["horizon"] == 3
    assert settings["base_rate"] == 0.05
    assert set(GateConstants.__annotations__) < set(settings)
    assert {trace[name].dims for name in trace.data_vars} == {("epoch",)}


def test_the_base_rate_is_the_one_of_the_run(make_recording) -> None:
    assert recorded_rate(dya.open_recording(make_recording())) == 0.05
    named = dya.open_recording(make_recording(hyperparameters={"learning_rate": 0.3}))
    assert recorded_rate(named) == 0.3
    from_optimizer = dya.open_recording(make_recording(hyperparameters={"lr": None}))
    assert recorded_rate(from_optimizer) == 0.05
    for value in (True, 0, -1.0, "0.1"):
        assert recorded_rate(dya.open_recording(make_recording(hyperparameters={"learning_rate": value}))) == 0.05


def test_no_base_rate_anywhere_is_said(recording) -> None:
    run = {**recording.manifest.run, "hyperparameters": {}, "optimizer": None}
    silent = dya.Recording(recording.path, dataclasses.replace(recording.manifest, run=run))
    with pytest.raises(InvalidArgumentError, match=r"does not say which learning rate .*--base-rate"):
        replay_learning_rate(silent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": "far"}, "distance must be one of top, births, deaths, wasserstein; got 'far'"),
        ({"momentum": 0.9}, "'momentum' is no constant of the rule; there are alpha, window, "),
        ({"alpha": 0.4}, r"alpha must lie in \(1/2, 1\]"),
        ({"window": 1}, "window must be at least 2"),
        ({"base_rate": 0}, "base_rate must be positive"),
    ],
)
def test_wrong_learning_rate_calls_get_one_line(recording, arguments, message) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        replay_learning_rate(recording, **arguments)
    assert "\n" not in str(caught.value)


def test_constants_of_replay_are_those_of_the_rule() -> None:
    fields = {field.name for field in dataclasses.fields(LearningRateRule)}
    assert set(GateConstants.__annotations__) == fields - {"base_rate", "horizon"}


def test_results_survive_a_file(recording, tmp_path: Path) -> None:
    for name, result in {"stopping": replay_stopping(recording), "rate": replay_learning_rate(recording)}.items():
        result.to_netcdf(tmp_path / f"{name}.nc", engine="scipy")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="scipy") as read:
            assert read.load().attrs["recording"] == recording.id
