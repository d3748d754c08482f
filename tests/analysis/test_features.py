"""From recordings to features: labelled, in order, and refused by name where something is missing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import naive_graph as naive
import numpy as np
import pytest
from recordings import describe, moments

import dynome_analysis as dya
from dynome_analysis.prediction.features import DivergedRunError
from dynome_analysis.prediction.hyperparameters import configuration_of, hyperparameter_table
from dynome_analysis.prediction.recorded import UnusableRunError
from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError, InvalidDataError
from dynome_recorder.storage.writer import RecordingWriter

if TYPE_CHECKING:
    from dynome_recorder.storage.writer import Moment

Make = Callable[..., Path]


def diverge(epoch: int) -> Callable[[Moment], Moment]:
    def change(moment: Moment) -> Moment:
        if moment.epoch < epoch or moment.weights is None:
            return moment
        weights = dict(moment.weights)
        weights["hidden1.linear.weight"] = np.full_like(weights["hidden1.linear.weight"], np.nan)
        return dataclasses.replace(moment, weights=weights)

    return change


def without_weights_at(*epochs: int) -> Callable[[Moment], Moment]:
    return lambda moment: dataclasses.replace(moment, weights=None) if moment.epoch in epochs else moment


def with_metric(name: str, value: Callable[[int], float | None]) -> Callable[[Moment], Moment]:
    def change(moment: Moment) -> Moment:
        metrics = {key: number for key, number in moment.epoch_metrics.items() if key != name}
        number = value(moment.epoch)
        return dataclasses.replace(moment, epoch_metrics=metrics if number is None else metrics | {name: number})

    return change


def test_signature_of_every_epoch_equals_the_naive_twin(make_recording: Make) -> None:
    recording = dya.open_recording(make_recording(epochs=3))
    found = dya.weight_signature(recording)
    assert found["epoch"].values.tolist() == [0, 1, 2, 3]
    assert not found["diverged"].any()
    names = ["hidden1.linear.weight", "hidden2.linear.weight", "head.weight"]
    for position in range(4):
        weights = [recording.weight(name)[position].values for name in names]
        n, edges = naive.chain_edges(weights, ["linear"] * 3, [1] * 3)
        expected = {f"degree_{k}": v for k, v in naive.moments(naive.degrees(n, edges)).items()}
        vector = naive.spectrum(n, edges)[1] * n**0.5
        expected |= {f"centrality_{k}": v for k, v in naive.moments([float(x) for x in vector]).items()}
        row = found["signature"][position]
        # Centrality is right to a residual of 1e-6, its fourth moment to somewhat less.
        assert dict(zip(row["feature"].values, row.values, strict=True)) == pytest.approx(expected, rel=1e-4)
    assert found.attrs["recording"] == recording.id
    assert (found.attrs["n_vertices"], found.attrs["n_edges"]) == (10 + 12 + 8 + 4, 120 + 96 + 32)
    assert json.loads(found.attrs["parameters"])["weight_signature"] == {"graph": "rolled", "per_layer": False}


def test_signature_of_chosen_epochs_per_layer(make_recording: Make) -> None:
    recording = dya.open_recording(make_recording(epochs=3))
    found = dya.weight_signature(recording, epochs=[3, 1], per_layer=True)
    assert found["signature"].shape == (2, 4 * 10)
    assert found["feature"].values[:2].tolist() == ["degree_median[input]", "degree_mean[input]"]
    forward = dya.weight_signature(recording, epochs=[1, 3], per_layer=True)
    assert (found["signature"].values[::-1] == forward["signature"].values).all()


def test_without_convolutions_the_unrolled_graph_is_the_rolled_one(make_recording: Make) -> None:
    recording = dya.open_recording(make_recording(epochs=2))
    rolled, unrolled = (dya.weight_signature(recording, graph=graph) for graph in ("rolled", "unrolled"))
    np.testing.assert_allclose(unrolled["signature"], rolled["signature"], rtol=1e-9)
    assert unrolled.attrs["n_edges"] == rolled.attrs["n_edges"]
    with pytest.raises(InvalidArgumentError, match="graph must be one of rolled, unrolled; got 'folded'"):
        dya.weight_signature(recording, graph="folded")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_activations_does_not_matter(make_recording: Make, dtype: str) -> None:
    recording = dya.open_recording(make_recording(epochs=1, dtype=dtype))
    assert np.isfinite(dya.weight_signature(recording)["signature"]).all()


def test_a_diverged_snapshot_is_labelled(make_recording: Make) -> None:
    found = dya.weight_signature(dya.open_recording(make_recording(epochs=3, change=diverge(2))))
    assert found["diverged"].values.tolist() == [False, False, True, True]
    assert np.isnan(found["signature"].values[2:]).all()
    assert np.isfinite(found["signature"].values[:2]).all()


def test_features_and_target_in_the_order_given(make_recording: Make) -> None:
    paths = [make_recording(epochs=4, seed=seed) for seed in (3, 1, 2)]
    recordings = [dya.open_recording(path) for path in paths]
    features, target = dya.early_features([paths[0], str(paths[1]), recordings[2]], epochs=2)
    assert features.index.tolist() == target.index.tolist() == [recording.id for recording in recordings]
    assert features.shape == (3, 2 * 10)
    assert features.columns[[0, 1, 10]].tolist() == [
        "degree_median@epoch1",
        "degree_mean@epoch1",
        "degree_median@epoch2",
    ]
    assert target.name == "test_accuracy"
    for recording in recordings:
        signature = dya.weight_signature(recording, epochs=[1, 2])["signature"]
        assert features.loc[recording.id].tolist() == signature.values.ravel().tolist()
        assert target[recording.id] == recording.epoch_metrics["test_accuracy"].values[-1]
    assert features.attrs["excluded"] == []


def test_only_the_first_epochs_are_looked_at(make_recording: Make) -> None:
    """What happens to the weights after epoch T is not read, so nothing of the future leaks into the features."""
    sound, _ = dya.early_features([make_recording(epochs=4, seed=1)], epochs=2)
    late, _ = dya.early_features([make_recording(epochs=4, seed=1, change=diverge(3))], epochs=2)
    assert sound.values.tolist() == late.values.tolist()


def test_the_target_is_the_last_value_that_was_given(make_recording: Make) -> None:
    path = make_recording(epochs=5, change=with_metric("score", lambda epoch: epoch / 10 if epoch in (1, 4) else None))
    _, target = dya.early_features([path], epochs=2, target="score")
    assert target.tolist() == [0.4]


def test_diverged_runs_by_explicit_policy(make_recording: Make) -> None:
    paths = [make_recording(epochs=4, seed=seed, change=diverge(2) if seed == 1 else None) for seed in range(3)]
    ids = [dya.open_recording(path).id for path in paths]
    with pytest.raises(DivergedRunError, match=f"{paths[1].name}: diverged: .* at epoch 2; pass diverged="):
        dya.early_features(paths, epochs=3)
    features, target = dya.early_features(paths, epochs=3, diverged="exclude")
    assert features.index.tolist() == target.index.tolist() == [ids[0], ids[2]]
    assert features.attrs["excluded"] == [ids[1]]
    features, target = dya.early_features(paths, epochs=3, diverged="keep")
    assert features.index.tolist() == ids
    assert features.loc[ids[1]].isna().tolist() == [False] * 10 + [True] * 20
    features, _ = dya.early_features(paths, epochs=1)
    assert features.notna().all(axis=None)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"weights": False}, {}, "no weights of epochs 1, 2, 3 were recorded .there are: none.; record with weights="),
        ({"change": without_weights_at(1, 3)}, {}, "no weights of epochs 1, 3 .* .there are: 0, 2, 4, 5, 6"),
        ({"epochs": 2}, {}, "test_accuracy ends at epoch 2, within the 3 epochs of the features"),
        ({}, {"target": "f1"}, "no epoch metric 'f1' was recorded; there is test_accuracy, val_accuracy, val_loss"),
        ({"metrics": False}, {}, "no epoch metric 'test_accuracy' was recorded; there is none"),
        (
            {"change": with_metric("val_loss", lambda _: float("nan"))},
            {"target": "val_loss"},
            "val_loss is nan at its last epoch, 6",
        ),
    ],
    ids=["no weights", "missing epochs", "too short", "unknown metric", "no metrics", "nan target"],
)
def test_an_unusable_run_is_named_with_the_reason(
    make_recording: Make, options: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    good, bad = make_recording(), make_recording(**options)
    with pytest.raises(UnusableRunError, match=f"{bad.name}: {message}") as caught:
        dya.early_features([bad, good], **({"epochs": 3} | arguments))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert str(bad) not in caught.value.reason


def test_a_mid_epoch_snapshot_is_not_taken_for_the_end_of_the_epoch(make_recording: Make) -> None:
    """A snapshot of epoch 2 that was taken on the way to epoch 3 has epoch 2 too, but is not complete."""
    path = make_recording(change=lambda m: dataclasses.replace(m, epoch_complete=False) if m.epoch == 2 else m)
    with pytest.raises(UnusableRunError, match="no weights of epochs 2 were"):
        dya.early_features([path], epochs=3)


def test_weights_that_are_all_zero(make_recording: Make) -> None:
    def zero(moment: Moment) -> Moment:
        return dataclasses.replace(moment, weights={k: np.zeros_like(v) for k, v in (moment.weights or {}).items()})

    path = make_recording(change=zero)
    with pytest.raises(
        UnusableRunError, match=f"{path.name}: epoch 1: the weight graph has no edge of non-zero weight"
    ):
        dya.early_features([path], epochs=3)


def test_a_recording_whose_layers_or_weights_are_not_all_there(tmp_path: Path) -> None:
    """Written by something else than the recorder: no layer graph, or some of the weights left out."""
    complete = describe({"hidden": 4}, samples=5)
    moment = next(iter(moments({"hidden": 4}, samples=5, epochs=0)))
    head = {name: value for name, value in (moment.weights or {}).items() if name.startswith("head")}
    cases = {
        "no-layers": (
            dataclasses.replace(complete, model={"class": "x"}),
            moment,
            "model: the recording holds no layer",
        ),
        "head-only": (
            dataclasses.replace(complete, weights={name: complete.weights[name] for name in head}),
            dataclasses.replace(moment, weights=head),
            "the weight 'hidden.linear.weight' was not recorded",
        ),
    }
    for name, (description, content, message) in cases.items():
        with RecordingWriter.open(tmp_path / name, description) as writer:
            writer.commit(content)
        with pytest.raises(UnusableRunError, match=f"{name}: {message}"):
            dya.weight_signature(dya.open_recording(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        ({"diverged": "drop"}, 'diverged must be "error", "keep" or "exclude", got \'drop\''),
    ],
)
def test_bad_arguments(make_recording: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        dya.early_features([make_recording()], **arguments)


def test_recordings_must_be_several_and_different(make_recording: Make) -> None:
    path = make_recording()
    with pytest.raises(InvalidArgumentError, match="put them in a list"):
        dya.early_features(path)
    with pytest.raises(InvalidArgumentError, match="put them in a list"):
        dya.early_features(dya.open_recording(path))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="recordings is empty"):
        dya.early_features([])
    with pytest.raises(InvalidArgumentError, match=r"is the same run as .*; give each run once"):
        dya.early_features([path, str(path)])


def test_statistics_per_layer_need_one_architecture(make_recording: Make) -> None:
    paths = [make_recording(epochs=3), make_recording(epochs=3, sites={"hidden1": 5})]
    features, _ = dya.early_features(paths, epochs=2)
    assert features.shape == (2, 20)
    with pytest.raises(InvalidDataError, match=r"have different layers \(only one has .*hidden2.linear\]@epoch\d\)"):
        dya.early_features(paths, epochs=2, per_layer=True)


def test_a_damaged_recording_is_an_error_not_a_missing_run(make_recording: Make) -> None:
    path = make_recording(epochs=4)
    recording = dya.open_recording(path)
    name = next(name for name in recording.manifest.state.files if name.startswith("weights/head.weight"))
    file = path / "store.zarr" / name
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(CorruptRecordingError):
        dya.weight_signature(recording)


def test_configuration_leaves_seeds_out() -> None:
    first = {"lr": 0.1, "seed": 1, "optimizer": {"name": "adam", "random_state": 4}, "widths": [8, 4]}
    second = {"widths": [8, 4], "optimizer": {"random_state": 5, "name": "adam"}, "lr": 0.1}
    assert configuration_of(first) == configuration_of(second)
    assert configuration_of(first) != configuration_of(first | {"widths": [4, 8]})
    assert configuration_of({}) == configuration_of({"seed": 3})


def test_hyperparameters_as_numbers() -> None:
    runs = [
        {"lr": 0.1, "dropout": 0.0, "optimizer": "adam", "widths": [8, 4], "nesterov": True, "seed": 0, "note": "x"},
        {"lr": 0.001, "dropout": 0.5, "optimizer": "sgd", "widths": [8, 2], "nesterov": False, "seed": 1, "note": "x"},
        {"lr": 0.01, "dropout": 0.5, "optimizer": "sgd", "widths": [8], "nesterov": False, "seed": 2, "note": "x"},
    ]
    table = hyperparameter_table(runs)
    assert table.to_dict("list") == {
        "dropout": [0.0, 0.5, 0.5],
        "log10(lr)": pytest.approx([-1, -3, -2]),
        "lr": [0.1, 0.001, 0.01],
        "nesterov": [1.0, 0.0, 0.0],
        "optimizer=adam": [1.0, 0.0, 0.0],
        "optimizer=sgd": [0.0, 1.0, 1.0],
        "widths.1=2": [0.0, 1.0, 0.0],
        "widths.1=4": [1.0, 0.0, 0.0],
        "widths.1=absent": [0.0, 0.0, 1.0],
    }
    assert hyperparameter_table([{"lr": 0.1, "seed": 1}, {"lr": 0.1, "seed": 2}]).shape == (2, 0)
    assert hyperparameter_table([{}, {}]).shape == (2, 0)


def test_an_integer_beyond_float64_and_beyond_int64() -> None:
    """A hash or a seed of 128 bits may stand among the hyper-parameters."""
    table = hyperparameter_table([{"hash": 2**70}, {"hash": 2**71}])
    assert table["hash"].tolist() == [2.0**70, 2.0**71]
    table = hyperparameter_table([{"hash": 10**400}, {"hash": 1}])
    assert table[f"hash={10**400}"].tolist() == [1, 0]
