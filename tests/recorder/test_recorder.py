"""The recorder's own promises: what it records, when it raises, how it degrades."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import typing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from recorder_training import Convolution, Counting, Dropout, Shared, dataset, make_recorder, train
from torch import nn

from dynome_recorder import (
    FingerprintError,
    InvalidArgumentError,
    InvalidDataError,
    Probe,
    Recorder,
    RecordingLockedError,
    RecordingWarning,
    StorageError,
    at,
    every,
)
from dynome_recorder.capture.parameters import hash_parameters
from dynome_recorder.description import describe_optimizer
from dynome_recorder.metrics import StepMetrics
from dynome_recorder.shield import DEGRADED_FILE
from dynome_recorder.storage.format import read_sealed
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

if TYPE_CHECKING:
    from pathlib import Path


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_run_holds_what_was_asked_for(tmp_path: Path) -> None:
    train(
        "Dropout",
        epochs=3,
        path=tmp_path / "run",
        weights=at(0, 3),
        hyperparameters={"lr": np.float32(0.5), "seed": np.int64(1), "widths": (16, 12), "decay": None},
    )
    manifest = read_manifest(tmp_path / "run")
    assert list(manifest.sites) == ["2", "5"]
    assert manifest.sites["2"]["shape"] == [24, 16]
    assert [(record.epoch, record.step) for record, _ in manifest.snapshots("probe")] == [
        (0, 0),
        (1, 6),
        (2, 12),
        (3, 18),
    ]
    assert [record.epoch for record, _ in manifest.snapshots("weights")] == [0, 3]
    assert len(manifest.step_metrics()["loss"][0]) == 18
    assert manifest.epoch_metrics()["mean_loss"][0].tolist() == [1, 2, 3]
    run = manifest.run
    assert run["hyperparameters"] == {"lr": 0.5, "seed": 1, "widths": [16, 12], "decay": None}
    assert [layer["module"] for layer in run["model"]["layers"]] == ["0", "1", "2", "3", "4", "5", "6"]
    assert run["fingerprint"]["probe"]["size"] == 24
    assert {"python", "torch", "numpy"} <= set(run["versions"])


def test_snapshots_hold_the_model_of_their_moment(tmp_path: Path) -> None:
    model = Shared()
    states, hashes = [], []
    with make_recorder(tmp_path / "run", model) as recorder:
        for epoch in recorder.epochs(3):
            with torch.no_grad():
                model.first.weight.add_(epoch)
            states.append(model.first.weight.detach().clone().numpy())
            hashes.append(hash_parameters(model))
            recorder.epoch()
    manifest = read_manifest(tmp_path / "run")
    weight = manifest.array(manifest.weights["first.weight"]["path"])
    np.testing.assert_array_equal(np.asarray(weight[1:4]), np.stack(states))
    assert [record.parameters for record in manifest.live][1:] == hashes
    with torch.no_grad():
        x = dataset().tensors[0][torch.from_numpy(Probe(dataset(), size=24, seed=3).indices)]
        expected = torch.relu(model.first(x.flatten(1))).numpy()
    found = np.asarray(manifest.array(manifest.sites["act"]["path"])[3])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_hook_is_attached_while_training(tmp_path: Path) -> None:
    model = Convolution()
    with make_recorder(tmp_path / "run", model, schedule=every(epochs=1) | every(steps=1)) as recorder:
        assert hooks_of(model) == 0
        for _ in recorder.epochs(2):
            assert hooks_of(model) == 0
            recorder.step()
            assert hooks_of(model) == 0
            recorder.epoch()
            assert hooks_of(model) == 0


def test_an_epoch_without_a_call_is_committed_when_the_next_begins(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        seen = [(epoch, recorder.flush() or recorder.committed_epoch) for epoch in recorder.epochs(3)]
        assert seen == [(1, 0), (2, 1), (3, 2)]
        recorder.flush()
        assert recorder.committed_epoch == 3


def test_every_epoch_is_committed_even_where_no_snapshot_is_due(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), schedule=every(epochs=2), weights=None) as recorder:
        for _ in recorder.epochs(3):
            recorder.epoch(value=1.0)
    manifest = read_manifest(tmp_path / "run")
    assert [record.epoch for record in manifest.live] == [0, 1, 2, 3]
    assert [record.epoch for record, _ in manifest.snapshots("probe")] == [0, 2]
    assert manifest.snapshots("weights") == ()


def test_flush_publishes_for_plain_readers(tmp_path: Path) -> None:
    import zarr

    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(2):
            recorder.epoch()
        recorder.flush()
        group = zarr.open_group(str(tmp_path / "run" / "store.zarr"), mode="r")
        assert group["probe/epoch"][:].tolist() == [0, 1, 2]


# Metrics


class OnDevice(torch.Tensor):
    """A CPU tensor that says it lies on an accelerator: reading it there would wait for the device."""

    reads: typing.ClassVar[list[str]] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @property
    def is_cpu(self) -> bool:
        return False

    def _read(name: str) -> typing.Any:
        def read(self: torch.Tensor, *arguments: typing.Any, **named: typing.Any) -> typing.Any:
            if threading.current_thread() is threading.main_thread():
                OnDevice.reads.append(name)
            return getattr(torch.Tensor, name)(self.as_subclass(torch.Tensor), *arguments, **named)

        return read

    item, tolist, cpu, numpy, __float__ = map(_read, ("item", "tolist", "cpu", "numpy", "__float__"))


def test_metrics_of_a_device_are_read_by_the_writer_thread_alone(tmp_path: Path) -> None:
    OnDevice.reads.clear()
    running = torch.zeros(()).as_subclass(OnDevice)
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(1):
            for step in range(2500):
                running += 1.0  # updated in place: what was recorded must not follow
                recorder.step(loss=running, lr=step)
            recorder.epoch(final=running)
    assert OnDevice.reads == []
    steps, values = read_manifest(tmp_path / "run").step_metrics()["loss"]
    np.testing.assert_array_equal(steps, np.arange(1, 2501))
    np.testing.assert_array_equal(values, np.arange(1, 2501))
    assert read_manifest(tmp_path / "run").epoch_metrics()["final"][1].tolist() == [2500]


def test_mixed_kinds_of_numbers_are_kept_in_order() -> None:
    metrics = StepMetrics()
    given = [1, 2.5, torch.tensor(3), torch.tensor([4.0], dtype=torch.float64), np.float32(5), np.array(6), True]
    for step, value in enumerate(given, start=1):
        assert metrics.add(step, {"m": value}) == {}
    assert metrics.drain() == {"m": (list(range(1, 8)), [1.0, 2.5, 3.0, 4.0, 5.0, 6.0, 1.0])}
    assert metrics.drain() == {}


@pytest.mark.parametrize("value", ["text", None, torch.zeros(2), np.zeros(2), 1j, torch.tensor(1j)])
def test_a_metric_that_is_no_number_is_left_out_once_told(value, tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), strict=False) as recorder:
        for _ in recorder.epochs(1):
            with pytest.warns(
                RecordingWarning, match="'bad' must be one real number.*left out; training goes on"
            ) as told:
                recorder.step(bad=value, good=1.0)
                recorder.step(bad=value, good=2.0)
            assert len(told) == 1
            recorder.epoch(good=1.0)
        assert recorder.degraded is None
    metrics = read_manifest(tmp_path / "run").step_metrics()
    assert list(metrics) == ["good"]


@pytest.mark.parametrize("name", ["", "n" * 300])
def test_a_metric_whose_name_cannot_be_stored_is_left_out(name: str, tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), strict=False) as recorder:
        for _ in recorder.epochs(1):
            with pytest.warns(RecordingWarning, match="left out; training goes on"):
                recorder.step(**{name: 1.0, "good": 1.0})
            recorder.epoch(**{name: 1.0, "good": 1.0})
        assert recorder.degraded is None
    assert list(read_manifest(tmp_path / "run").step_metrics()) == ["good"]
    assert verify(tmp_path / "run").clean


def test_reserved_metric_names_and_strictness(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(1):
            with pytest.raises(InvalidArgumentError, match="'epoch' is the recording's own counter"):
                recorder.step(epoch=3)
            break


# Errors before training raise


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sites": ["nothing"]}, InvalidArgumentError, "'nothing' matches no module"),
        ({"forward": lambda model, batch: model(batch)}, InvalidDataError, "forward pass on the probe failed"),
    ],
)
def test_a_wrong_plan_raises_on_entering_and_writes_nothing(options, error, text: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=text), make_recorder(tmp_path / "run", Dropout(), strict=False, **options):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_raises_on_entering(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises((StorageError, InvalidArgumentError)) as error,
        make_recorder(tmp_path / "file" / "run", Dropout(), strict=False),
    ):
        pytest.fail("entered")
    assert "\n" not in str(error.value)


def test_a_failing_first_snapshot_raises(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch) -> torch.Tensor:
        # The first batch alone is what the plan sees; the second has another number of rows.
        return model(batch[0]) if len(batch[0]) == 10 else model(batch[0][:2])

    recorder = make_recorder(tmp_path / "run", Dropout(), strict=False, forward=forward)
    with recorder, pytest.raises(InvalidDataError, match=r"planned was float32 of shape \(4, 16\)"):
        next(recorder.epochs(2))


def test_two_recorders_do_not_share_a_folder(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout()), pytest.raises(RecordingLockedError):
        make_recorder(tmp_path / "run", Dropout()).__enter__()


@pytest.mark.parametrize("what", ["SlotPool", "MomentTaker"])
def test_whatever_fails_while_opening_gives_the_folder_back(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dynome_recorder.session as module

    def fail(*arguments: object, **named: object) -> typing.NoReturn:
        raise MemoryError("no room")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, what, fail)
        make_recorder(tmp_path / "run", Dropout()).__enter__()
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        assert list(recorder.epochs(1)) == [1]


def test_on_existing_error_refuses_a_recording(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), on_existing="error") as recorder:
        list(recorder.epochs(1))
    with pytest.raises(InvalidArgumentError, match="holds a recording already"):
        make_recorder(tmp_path / "run", Dropout(), on_existing="error").__enter__()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no module"}, "model must be a torch.nn.Module; got str"),
        ({"probe": dataset()}, "probe must be a Probe"),
        ({"schedule": 1}, "schedule must be a schedule"),
        ({"weights": 1}, "weights must be a schedule"),
        ({"dtype": "int8"}, "dtype must be one of 'native'"),
        ({"reduction": "average"}, r"reduction must be one of 'spatial_mean', 'max', .*, position\(k\).*got 'average'"),
        ({"reduction": {"2": "average"}}, "reduction must be one of"),
        ({"hyperparameters": {"a": [1, {"x": object()}]}}, "hyperparameters: 'a.x' must be a number.*got object"),
        ({"hyperparameters": [("lr", 1)]}, r"hyperparameters must be a mapping.*got list. vars\(args\) makes one"),
        ({"on_existing": "replace"}, "on_existing must be one of"),
        ({"path": None}, "path must be the folder of the recording.*got None"),
        ({"path": "a\0b"}, "path must be the folder of the recording"),
        ({"optimizer": ["adam"]}, "optimizer must be one torch.optim.Optimizer.*got list. Leave it out"),
        ({"forward": "call"}, "forward must be a function.*got str"),
    ],
)
def test_wrong_arguments_are_named(change: dict, text: str, tmp_path: Path) -> None:
    options = {"path": tmp_path / "run", "model": Dropout(), "probe": Probe(dataset(), size=8), **change}
    with pytest.raises(InvalidArgumentError, match=text) as error:
        Recorder(**options)
    assert "\n" not in str(error.value)


def test_names_of_hyperparameters_may_be_numbers(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), hyperparameters={3: {4: 5}}):
        pass
    assert read_manifest(tmp_path / "run").run["hyperparameters"] == {"3": {"4": 5}}


def test_calls_outside_their_place_raise(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path / "run", Dropout())
    for call in (lambda: next(recorder.epochs(1)), recorder.flush, lambda: recorder.resume_from(0)):
        with pytest.raises(InvalidArgumentError, match="inside `with recorder:`"):
            call()
    with recorder:
        with pytest.raises(InvalidArgumentError, match="open already"):
            recorder.__enter__()
        for call in (recorder.step, recorder.epoch):
            with pytest.raises(InvalidArgumentError, match="belongs in the loop"):
                call()
        with pytest.raises(InvalidArgumentError, match=r"epochs\(\) must be an integer of at least 0; got -1"):
            next(recorder.epochs(-1))
        for _ in recorder.epochs(1):
            with pytest.raises(InvalidArgumentError, match="before the loop"):
                recorder.resume_from(0)


# Errors during training degrade


def failing_commits(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    original, calls = RecordingWriter.commit_all, [0]

    def commit_all(self, moments):
        fitting = moments[: max(0, after - calls[0])]
        calls[0] += len(moments)
        records = original(self, fitting)
        if len(fitting) < len(moments):
            raise StorageError("RUN: No space left on device; free some space.")
        return records

    monkeypatch.setattr(RecordingWriter, "commit_all", commit_all)


def test_a_full_disk_stops_recording_and_not_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_commits(monkeypatch, after=2)
    recorder = make_recorder(tmp_path / "run", Dropout(), strict=False)
    done = []
    with caplog.at_level(logging.WARNING), pytest.warns(RecordingWarning, match="No space left") as told, recorder:
        for epoch in recorder.epochs(5):
            recorder.step(loss=1.0)
            recorder.epoch(value=2.0)
            done.append(epoch)
        recorder.flush()
    assert done == [1, 2, 3, 4, 5]
    assert len(told) == len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert "\n" not in str(told[0].message)
    assert recorder.degraded is not None and recorder.degraded.startswith("epoch 2: ")
    note = read_sealed(tmp_path / "run" / DEGRADED_FILE)
    assert (note["epoch"], note["step"], note["reason"]) == (2, 2, recorder.degraded)
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1]


def test_warnings_as_errors_do_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_commits(monkeypatch, after=1)
    with make_recorder(tmp_path / "run", Dropout(), strict=False) as recorder:
        assert list(recorder.epochs(3)) == [1, 2, 3]  # this suite turns warnings into errors


def test_a_degraded_run_heals_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing_commits(patch, after=2)
        model = Dropout()
        with make_recorder(tmp_path / "run", model, strict=False) as recorder:
            list(recorder.epochs(3))
    with make_recorder(tmp_path / "run", model) as recorder:
        assert recorder.degraded is None
        assert not (tmp_path / "run" / DEGRADED_FILE).exists()
        assert list(recorder.epochs(3)) == [2, 3]


def test_training_goes_on_in_a_second_loop_after_recording_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_commits(monkeypatch, after=2)
    model = Dropout()
    with make_recorder(tmp_path / "run", model, strict=False) as recorder:
        done = []
        for epoch in [*recorder.epochs(2), *recorder.epochs(4)]:
            done.append(epoch)
            with torch.no_grad():
                model[1].weight.add_(1)
    assert done == [1, 2, 3, 4]


def test_a_loop_of_ones_own_goes_on_after_recording_stopped(tmp_path: Path) -> None:
    model = Dropout()
    with make_recorder(tmp_path / "run", model, strict=False) as recorder:
        assert recorder.start() == 0
        recorder.begin(1)
        model[5] = nn.Flatten(0)
        with pytest.warns(RecordingWarning, match="recording stopped at epoch 1: 5: returned"):
            recorder.epoch()
        degraded = recorder.degraded
        with torch.no_grad():
            model[1].weight.add_(1)
        assert recorder.start() == 1  # refuses the model no more: nothing is recorded of it
        recorder.begin(2)
        recorder.epoch()
        assert recorder.degraded == degraded


def test_strict_raises_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_commits(monkeypatch, after=1)
    with pytest.raises(StorageError, match="No space left"), make_recorder(tmp_path / "run", Dropout()) as recorder:
        list(recorder.epochs(3))


def test_a_second_epoch_call_is_told_and_ignored(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), strict=False) as recorder:
        for _ in recorder.epochs(2):
            recorder.epoch()
            with pytest.warns(RecordingWarning, match="epoch.. belongs in the loop") if _ == 1 else _nothing():
                recorder.epoch()
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1, 2]


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_an_error_of_the_loop_is_not_hidden_by_one_of_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecordingWriter.close

    def close(self):
        original(self)
        raise StorageError("RUN: gone")

    monkeypatch.setattr(RecordingWriter, "close", close)
    with pytest.raises(ZeroDivisionError), make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(2):
            raise ZeroDivisionError
    with pytest.raises(StorageError, match="gone"), make_recorder(tmp_path / "run2", Dropout()):
        pass
    with (
        pytest.warns(RecordingWarning, match="closing the recording"),
        make_recorder(tmp_path / "run3", Dropout(), strict=False),
    ):
        pass


# The model and its description


def test_compiled_models_are_probed_through_their_eager_module(tmp_path: Path) -> None:
    model = Dropout()
    compiled = torch.compile(model, backend="eager")
    recorder = make_recorder(tmp_path / "run", compiled)
    assert [layout.site.name for layout in recorder.plan().sites] == ["2", "5"]


def test_steps_inside_an_autocast_block_record_what_epochs_outside_do(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), sites=["1"], schedule=every(steps=1) | every(epochs=1)) as recorder:
        for _ in recorder.epochs(1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                recorder.step()
                assert torch.is_autocast_enabled("cpu")
    manifest = read_manifest(tmp_path / "run")
    inside, outside = (np.asarray(manifest.array(manifest.sites["1"]["path"])[index]) for index in (1, 2))
    np.testing.assert_array_equal(inside, outside)


def test_the_working_folder_may_change_in_mid_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    recorder = make_recorder("run", Dropout())
    with recorder:
        for _ in recorder.epochs(2):
            monkeypatch.chdir(tmp_path / "elsewhere")
            recorder.step()
    assert recorder.committed_epoch == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_models_with_random_and_stateful_passes_can_be_recorded(tmp_path: Path) -> None:
    model = Counting()
    with make_recorder(tmp_path / "run", model) as recorder:
        list(recorder.epochs(2))
    assert float(model.calls) == 0
    manifest = read_manifest(tmp_path / "run")
    array = manifest.array(manifest.sites["act"]["path"])
    np.testing.assert_array_equal(np.asarray(array[0]), np.asarray(array[2]))


def test_health_is_recorded(tmp_path: Path) -> None:
    model = Dropout()
    with make_recorder(tmp_path / "run", model) as recorder:
        for _ in recorder.epochs(1):
            with torch.no_grad():
                model[4].weight[0, 0] = float("nan")
    records = read_manifest(tmp_path / "run").live
    assert [dict(record.health) for record in records] == [{}, {"5": {"nan": 24}}]


def test_bfloat16_run_opens_again(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout(), dtype="bfloat16") as recorder:
        list(recorder.epochs(1))
    manifest = read_manifest(tmp_path / "run")
    assert manifest.sites["2"]["dtype"] == "bfloat16"
    assert np.asarray(manifest.array(manifest.sites["2"]["path"])[1]).dtype == np.uint16


def test_optimizer_is_described_and_in_the_run_file(tmp_path: Path) -> None:
    model = Dropout()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), betas=(0.8, 0.9))
    described = describe_optimizer(optimizer)
    assert described["class"] == "Adam"
    assert described["groups"][0] | {"lr": 0.5, "betas": [0.8, 0.9], "parameters": 6} == described["groups"][0]
    with make_recorder(tmp_path / "run", model, optimizer=optimizer):
        pass
    assert json.loads((tmp_path / "run" / "run.json").read_text())["optimizer"]["class"] == "Adam"


def test_import_needs_neither_torch_nor_zarr() -> None:
    code = (
        "import sys, dynome_recorder\n"
        "loaded = [name for name in ('torch', 'zarr', 'rich', 'click', 'xarray') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "names = dynome_recorder.__all__\n"
        "assert list(names) == sorted(names) and all(hasattr(dynome_recorder, name) for name in names)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dynome_recorder import MissingExtraError

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r'pip install "dynome\[torch\]"'):
        Recorder(tmp_path / "run", None, probe=None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: nn.utils.parametrizations.weight_norm(model[1]), r"'1.weight' was float32 .*, and is not there"),
        (lambda model: model.append(nn.Linear(4, 4)), r"'7.weight' was not there .*, and is float32 of shape \(4, 4\)"),
        (
            lambda model: model.__setitem__(6, nn.Linear(12, 5)),
            r"shape \(4, 12\) .*, and is .* of shape \(5, 12\)",
        ),
    ],
)
def test_a_model_whose_parameters_change_is_told(change, told: str, tmp_path: Path) -> None:
    model = Dropout()
    text = rf"recording stopped at epoch 2: weights: parameter .*{told}; .* change it before entering the recorder\."
    recorder = make_recorder(tmp_path / "run", model, strict=False)
    with pytest.warns(RecordingWarning, match=text), recorder:
        for epoch in recorder.epochs(3):
            if epoch == 2:
                change(model)
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1]


def test_changed_model_between_plan_and_run_is_noticed(tmp_path: Path) -> None:
    model = Dropout()
    recorder = make_recorder(tmp_path / "run", model)
    with recorder:
        list(recorder.epochs(1))
    with pytest.raises(FingerprintError):
        make_recorder(tmp_path / "run", model.double(), forward=lambda m, batch: m(batch[0].double())).__enter__()
