"""A recording opens lazily, labelled, decoded, and only as far as it is committed."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask
import format_golden
import numpy as np
import pytest
import xarray as xr
from recordings import describe, moments

import dynome_analysis as dya
from dynome_analysis.reading import decoded_dtype
from dynome_recorder.errors import (
    CorruptRecordingError,
    InvalidArgumentError,
    InvalidDataError,
    RecordingNotFoundError,
)
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter

MakeRecording = Callable[..., Path]
SITES = {"hidden1": 12, "hidden2": 8}


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("something was computed")


def stored_files(path: Path, site: str) -> list[Path]:
    folder = path / "store.zarr" / "probe" / "sites" / site / "activation"
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "zarr.json")


def test_activations_are_lazy_labelled_and_what_was_recorded(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=3))
    with dask.config.set(scheduler=refuse):
        activations = recording.activations()
    assert activations.dims == ("snapshot", "sample", "unit")
    assert activations.shape == (4, 40, 20)
    assert activations.chunks == ((1,) * 4, (40,), (20,))
    assert activations.dtype == np.float32
    assert activations.coords["epoch"].to_numpy().tolist() == [0, 1, 2, 3]
    assert activations.coords["step"].to_numpy().tolist() == [0, 3, 6, 9]
    assert activations.coords["site"].to_numpy().tolist() == ["hidden1"] * 12 + ["hidden2"] * 8
    assert activations.attrs["recording"] == recording.id
    for position, moment in enumerate(moments(SITES, samples=40, epochs=3)):
        expected = np.concatenate([moment.probe["hidden1"], moment.probe["hidden2"]], axis=1)
        np.testing.assert_array_equal(activations[position], expected)


def test_weights_and_metrics_are_labelled(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=2))
    weight = recording.weight("hidden2.linear.weight")
    assert weight.dims == ("snapshot", "output", "input")
    assert weight.chunks == ((1, 1, 1), (8,), (12,))
    expected = [moment.weights["hidden2.linear.weight"] for moment in moments(SITES, samples=40, epochs=2)]
    np.testing.assert_array_equal(weight, expected)
    assert recording.weight("head.bias").dims == ("snapshot", "output")
    assert recording.weights_epochs.tolist() == recording.epochs.tolist() == [0, 1, 2]
    assert "head.bias" in recording.parameters
    assert recording.hyperparameters["lr"] == 0.05
    assert recording.epoch_metrics.sizes == {"epoch": 3}
    assert set(recording.epoch_metrics) == {"val_loss", "val_accuracy", "test_accuracy"}
    assert recording.step_metrics["loss"].sizes == {"step": 6}
    assert recording.step_metrics["lr"].to_numpy().tolist() == [0.05] * 6


def test_a_metric_that_was_given_late_is_nan_before(make_recording: MakeRecording) -> None:
    def late(moment):
        return replace(moment, epoch_metrics={"a": 1.0} | ({"b": 2.0} if moment.epoch == 2 else {}))

    metrics = dya.open_recording(make_recording(epochs=2, change=late)).epoch_metrics
    np.testing.assert_array_equal(metrics["b"], [np.nan, np.nan, 2.0])
    empty = dya.open_recording(make_recording(metrics=False)).step_metrics
    assert empty.sizes == {"step": 0}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_is_widened_without_loss(make_recording: MakeRecording, dtype: str) -> None:
    activations = dya.open_recording(make_recording(epochs=1, dtype=dtype)).activations("hidden1")
    stored = moments(SITES, samples=40, epochs=1, dtype=dtype)[1].probe["hidden1"]
    expected = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored
    assert activations.dtype == (np.float64 if dtype == "float64" else np.float32)
    np.testing.assert_array_equal(activations[1], expected)


def test_integers_that_float32_cannot_hold_become_float64() -> None:
    assert decoded_dtype("int32") == np.float64
    assert decoded_dtype("bool") == np.float32


def test_sites_are_chosen_by_name_and_pattern_in_recorded_order(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=1, sites={"b": 3, "a[0]": 4, "a0": 5}))
    assert recording.sites == ("b", "a[0]", "a0")
    assert recording.choose_sites() == recording.sites
    assert recording.choose_sites("a[0]") == ("a[0]", "a0")
    assert recording.choose_sites(["a*", "b"]) == recording.sites
    with pytest.raises(InvalidArgumentError, match="sites must be a name, a pattern, or a list of them; got 5"):
        recording.choose_sites(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"'c\*' matches no site of .*; it has b, a"):
        recording.choose_sites(["b", "c*"])
    with pytest.raises(InvalidArgumentError, match="at least one site"):
        recording.activations([])
    with pytest.raises(InvalidArgumentError, match=r"parameter 'nope' was not recorded in .*; it has"):
        recording.weight("nope")


def test_a_parameter_of_one_number_is_read(tmp_path: Path) -> None:
    format_golden.write(tmp_path / "run")
    scale = dya.open_recording(tmp_path / "run").weight("scale")
    assert scale.dims == ("snapshot",)
    assert scale.shape == (3,)
    np.testing.assert_array_equal(scale, np.load(tmp_path / "run-expected.npz")["array scale"])
    assert float(scale[1]) == scale.to_numpy()[1]


def test_a_recording_without_weights_says_how_to_record_them(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=1, weights=False))
    with pytest.raises(InvalidArgumentError, match=r"record them with weights="):
        recording.weight("head.weight")


def test_what_is_not_there_yet_is_said(make_recording: MakeRecording, tmp_path: Path) -> None:
    with pytest.raises(RecordingNotFoundError):
        dya.open_recording(tmp_path / "nowhere")
    empty = dya.open_recording(make_recording(epochs=-1))
    assert "0 snapshots" in repr(empty)
    with pytest.raises(InvalidDataError, match="no committed snapshot"):
        empty.activations()


def test_damage_after_opening_is_never_read_as_numbers(make_recording: MakeRecording) -> None:
    path = make_recording(epochs=2)
    recording = dya.open_recording(path)
    activations = recording.activations()
    damaged, missing = stored_files(path, "hidden1")[1], stored_files(path, "hidden2")[2]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    missing.unlink()
    assert np.isfinite(activations[0].to_numpy()).all()
    with pytest.raises(CorruptRecordingError, match=str(damaged)):
        activations[1].compute()
    with pytest.raises(CorruptRecordingError, match=str(missing)):
        activations[2].compute()
    with pytest.raises(CorruptRecordingError):
        dya.open_recording(path)


def test_superseded_snapshots_are_not_seen(make_recording: MakeRecording) -> None:
    path = make_recording(epochs=3)
    again = moments(SITES, samples=40, epochs=2, seed=1)[2]
    with RecordingWriter.open(path, describe(SITES, samples=40)) as writer:
        writer.rewind(1)
        writer.commit(again)
    recording = dya.open_recording(path)
    assert recording.epochs.tolist() == recording.weights_epochs.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(recording.activations("hidden2")[2], again.probe["hidden2"])
    np.testing.assert_array_equal(recording.weight("head.bias")[2], again.weights["head.bias"])
    assert recording.epoch_metrics["val_loss"][2] == again.epoch_metrics["val_loss"]


def test_a_reader_travels_to_another_process(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=1))
    reader = pickle.loads(pickle.dumps(recording.reader()))
    np.testing.assert_array_equal(reader.joint(1), recording.activations()[1])
    assert reader.moment(1) == "epoch 1 (step 3)"


def test_sites_that_do_not_make_one_matrix_are_refused(tmp_path: Path) -> None:
    shapes = {"tokens": (5, 3, 4), "few": (5, 4), "many": (6, 4)}
    specs = {
        site: ArraySpec(shape, "float32", ("sample", "token", "unit") if len(shape) == 3 else ("sample", "unit"), {})
        for site, shape in shapes.items()
    }
    described = replace(describe({"h": 2}, samples=5, weights=False), sites=specs)
    with RecordingWriter.open(tmp_path / "run", described) as writer:
        values = {site: np.zeros(shape, np.float32) for site, shape in shapes.items()}
        writer.commit(Moment(0, 0, probe=values))
    recording = dya.open_recording(tmp_path / "run")
    with pytest.raises(
        InvalidDataError, match=r"must be \(sample, unit\) at each snapshot, not \('sample', 'token', 'unit'\)"
    ):
        recording.activations("tokens")
    with pytest.raises(InvalidDataError, match=r"differ in their samples, choose sites that agree: few \(5, 4\), many"):
        recording.activations(["few", "many"])


def test_representations_name_the_essentials_and_escape_them(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=3, sites={"<b>": 3}))
    assert "4 snapshots, epochs 0 to 3" in repr(recording)
    html = recording._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_metrics_are_datasets_with_provenance(make_recording: MakeRecording) -> None:
    recording = dya.open_recording(make_recording(epochs=1))
    assert isinstance(recording.epoch_metrics, xr.Dataset)
    assert recording.epoch_metrics.attrs["recording"] == recording.id


def test_the_last_step_of_an_epoch_that_was_recorded_twice_is_one_snapshot(tmp_path: Path) -> None:
    """Under ``every(steps=3) | every(epochs=1)`` step 3 is a step within an epoch and its end."""
    with RecordingWriter.open(tmp_path / "run", describe(SITES, samples=40)) as writer:
        for moment in moments(SITES, samples=40, epochs=4):
            if moment.epoch == 3:  # something changed the parameters between the step and the epoch's end
                writer.commit(replace(moment, epoch=2, epoch_complete=False, parameters="other", epoch_metrics={}))
            elif moment.epoch:
                writer.commit(replace(moment, epoch=moment.epoch - 1, epoch_complete=False, epoch_metrics={}))
            writer.commit(replace(moment, step_metrics={}) if moment.epoch else moment)
    recording = dya.open_recording(tmp_path / "run")
    assert recording.epochs.tolist() == recording.weights_epochs.tolist() == [0, 1, 2, 2, 3, 4]
    assert recording.activations().coords["epoch"].to_numpy().tolist() == [0, 1, 2, 2, 3, 4]
    for position, epoch in ((1, 1), (5, 4)):
        moment = list(moments(SITES, samples=40, epochs=4))[epoch]
        np.testing.assert_array_equal(recording.activations("hidden1")[position], moment.probe["hidden1"])
        np.testing.assert_array_equal(recording.weight("head.weight")[position], moment.weights["head.weight"])
    change = dya.analyze(recording)["reconfiguration_deaths"].values
    assert change[4] == 0  # another moment by its parameters, although the test gave it the same activations
    assert (change[[1, 2, 3, 5]] > 0).all()
    assert dya.weight_signature(recording).epoch.values.tolist() == [0, 1, 2, 3, 4]


def test_a_relative_path_is_read_from_any_folder(
    make_recording: MakeRecording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a cluster stands in another folder: it must not take an intact recording for a damaged one."""
    make_recording(tmp_path / "run", epochs=2)
    monkeypatch.chdir(tmp_path)
    recording = dya.open_recording("run")
    activations, reader = recording.activations(), recording.reader()
    expected = activations.to_numpy()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(activations.to_numpy(), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).joint(0), expected[0])


def test_arrays_of_one_name_in_two_streams_are_computed_together(tmp_path: Path) -> None:
    """Dask knows work by its name: a site is recorded in both streams, and here a parameter is called as it is."""
    description = describe({"a": 3}, samples=4, weights=False)
    spec = ArraySpec((2, 3), "float32", ("sample", "unit"))
    description = replace(
        description,
        batches={"a": spec},
        batch_size=2,
        weights={"activations": spec, "a": ArraySpec((2,), "float32", ("row",))},
    )
    probe, batch, weight = (np.full(shape, value, np.float32) for value, shape in enumerate([(4, 3), (2, 3), (2, 3)]))
    with RecordingWriter.open(tmp_path / "run", description) as writer:
        writer.commit(
            Moment(
                epoch=0, step=0, probe={"a": probe}, batches={"a": batch}, rows=2,
                weights={"activations": weight, "a": np.full(2, 3, np.float32)},
            )
        )  # fmt: skip
    recording, batches = dya.open_recording(tmp_path / "run"), dya.open_recording(tmp_path / "run", stream="batches")
    lazy = [recording.activations(), batches.activations(), recording.weight("activations"), recording.weight("a")]
    for value, computed in enumerate(dask.compute(*lazy, scheduler="synchronous")):
        assert (computed.to_numpy() == value).all()
        assert computed.shape == computed.to_numpy().shape
