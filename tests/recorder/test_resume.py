"""Resuming: a killed run ends as an uninterrupted one; wrong parameters are told what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import recorder_training
import torch
from recorder_training import Dropout, make_recorder, train
from torch import nn

from dynome_recorder import FingerprintError, InvalidArgumentError, Probe, RecordingWarning, every
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

EPOCHS = 4


def contents(path: Path) -> dict[str, np.ndarray]:
    """Everything live in a recording but times: activations, weights, metrics, epochs, steps, hashes."""
    manifest = read_manifest(path)
    found: dict[str, np.ndarray] = {}
    for stream, entries in (("probe", manifest.sites), ("weights", manifest.weights)):
        snapshots = manifest.snapshots(stream)
        found[f"{stream}/moments"] = np.array([(record.epoch, record.step) for record, _ in snapshots])
        for name, entry in entries.items():
            array = manifest.array(entry["path"])
            found[f"{stream}/{name}"] = np.stack([np.asarray(array[index]) for _, index in snapshots])
    for kind, metrics in (("epoch", manifest.epoch_metrics()), ("step", manifest.step_metrics())):
        for name, (counter, values) in metrics.items():
            found[f"metrics/{kind}/{name}"] = np.stack([np.asarray(counter, dtype=float), np.asarray(values)])
    found["hashes"] = np.array([record.parameters for record in manifest.live])
    return found


def check_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype, name
        assert values.shape == other[name].shape, name
        assert values.tobytes() == other[name].tobytes(), name


def kill_in(folder: Path, name: str, epoch: int, step: int, counter: str) -> None:
    """Train in another process until it kills itself in that epoch and step."""
    script = recorder_training.__file__
    command = [sys.executable, script, name, str(folder), str(EPOCHS), str(epoch), str(step), counter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the child processes
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "counter", "deaths"), [("Dropout", "epochs", [(3, 5)]), ("Convolution", "steps", [(2, 5), (4, 0)])]
)
def test_a_killed_run_equals_one_that_was_not(
    name: str, counter: str, deaths: list[tuple[int, int]], tmp_path: Path
) -> None:
    schedule = every(epochs=1) | every(steps=4) if counter == "steps" else every(epochs=1)
    _, reference = train(name, epochs=EPOCHS, path=tmp_path / "whole", schedule=schedule)
    folder = tmp_path / "killed"
    for epoch, step in deaths:
        kill_in(folder, name, epoch, step, counter)
        assert read_manifest(folder / "run").live[-1].epoch == epoch - 1
    _, final = train(name, epochs=EPOCHS, path=folder / "run", checkpoints=folder / "checkpoints", schedule=schedule)
    check_same(contents(folder / "run"), contents(tmp_path / "whole"))
    assert all(torch.equal(final[key], value) for key, value in reference.items())


def run_epochs(path: Path, model: nn.Module, count: int, *, limit: int | None = None, **options) -> list[int]:
    """Run the loop with a stand-in for training; leave it in the middle of epoch ``limit``."""
    done = []
    with make_recorder(path, model, **options) as recorder:
        for epoch in recorder.epochs(count):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * epoch)
            recorder.step(loss=1.0 / epoch)
            if epoch == limit:
                break
            recorder.epoch(val_loss=float(epoch))
            done.append(epoch)
    return done


def test_epochs_start_at_the_first_that_is_not_recorded(tmp_path: Path) -> None:
    model = Dropout()
    assert run_epochs(tmp_path / "run", model, 3) == [1, 2, 3]
    assert run_epochs(tmp_path / "run", model, 5) == [4, 5]
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1, 2, 3, 4, 5]


def test_a_finished_run_yields_nothing_whatever_the_model_holds(tmp_path: Path) -> None:
    run_epochs(tmp_path / "run", Dropout(), 2)
    before = read_manifest(tmp_path / "run").digest
    assert run_epochs(tmp_path / "run", Dropout(), 2) == []
    assert read_manifest(tmp_path / "run").digest == before


def test_what_follows_the_loop_of_a_finished_run_is_told_and_ignored(tmp_path: Path) -> None:
    def script() -> None:
        with make_recorder(tmp_path / "run", model, strict=False) as recorder:
            for _ in recorder.epochs(1):
                recorder.step(loss=1.0)
            recorder.note(test_loss=0.5)
            recorder.mark()

    model = Dropout()
    script()
    before = read_manifest(tmp_path / "run").digest
    with pytest.warns(RecordingWarning) as told:
        script()
    assert [str(warning.message).partition(": ")[2].partition("()")[0] for warning in told] == ["note", "mark"]
    assert read_manifest(tmp_path / "run").digest == before


def test_leaving_the_loop_early_leaves_the_epoch_out(tmp_path: Path) -> None:
    model = Dropout()
    run_epochs(tmp_path / "run", model, 3, limit=2)
    assert [record.epoch for record in read_manifest(tmp_path / "run").live] == [0, 1]


def test_metrics_of_an_epoch_that_was_left_early_are_not_kept(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(2):
            recorder.step(loss=1.0)
            break
        for _ in recorder.epochs(2):
            recorder.step(loss=2.0)
    records = read_manifest(tmp_path / "run").live
    assert [record.metrics["step"]["loss"] for record in records[1:]] == [
        {"step": [1], "value": [2.0]},
        {"step": [2], "value": [2.0]},
    ]


def test_other_parameters_are_refused_naming_both_ways_out(tmp_path: Path) -> None:
    run_epochs(tmp_path / "run", Dropout(), 2)
    before = read_manifest(tmp_path / "run").digest
    text = (
        r"not those recorded after epoch 2; restore the checkpoint of epoch 2 .*committed_epoch.*resume_from\(epoch\)"
    )
    with pytest.raises(FingerprintError, match=text) as error:
        run_epochs(tmp_path / "run", Dropout(), 4)
    assert "\n" not in str(error.value)
    assert read_manifest(tmp_path / "run").digest == before


def test_resume_from_supersedes_later_epochs_and_keeps_their_data(tmp_path: Path) -> None:
    path, model = tmp_path / "run", Dropout()
    states = []
    with make_recorder(path, model) as recorder:
        for epoch in recorder.epochs(3):
            with torch.no_grad():
                model[1].weight.add_(0.1)
            recorder.epoch(value=epoch)
            states.append({key: value.clone() for key, value in model.state_dict().items()})
    model.load_state_dict(states[0])
    with make_recorder(path, model) as recorder:
        assert recorder.committed_epoch == 3
        recorder.resume_from(1)
        assert recorder.committed_epoch == 1
        for epoch in recorder.epochs(2):
            with torch.no_grad():
                model[1].weight.sub_(0.1)
            recorder.epoch(value=-epoch)
    manifest = read_manifest(path)
    assert [record.epoch for record in manifest.live] == [0, 1, 2]
    assert len(manifest.records) == 6  # four moments, one rewind, one moment
    np.testing.assert_array_equal(manifest.epoch_metrics()["value"][1], [1, -2])
    with (
        make_recorder(path, model) as recorder,
        pytest.raises(InvalidArgumentError, match="ends after epoch 2; to go on after epoch 7"),
    ):
        recorder.resume_from(7)


def test_resume_from_an_epoch_that_the_model_is_not_of_supersedes_nothing(tmp_path: Path) -> None:
    path, model = tmp_path / "run", Dropout()
    with make_recorder(path, model) as recorder:
        for _ in recorder.epochs(3):
            with torch.no_grad():
                model[1].weight.add_(0.1)
    with make_recorder(path, model) as recorder:
        with pytest.raises(FingerprintError, match="not those recorded after epoch 2"):
            recorder.resume_from(2)
        recorder.resume_from(3)
        assert list(recorder.epochs(4)) == [4]
    assert [record.kind for record in read_manifest(path).records] == ["moment"] * 5


@pytest.mark.parametrize("step", [11, -1, 1.5, "12"])
def test_a_gap_ends_at_a_step_that_may_be(step: object, tmp_path: Path) -> None:
    path, model = tmp_path / "run", Dropout()
    with make_recorder(path, model) as recorder:
        for _ in recorder.epochs(3):
            for _ in range(4):
                recorder.step()
    before = read_manifest(path).digest
    match = rf"resume_from\(\): step must be an integer of at least 12; got {step!r}"
    with make_recorder(path, model) as recorder, pytest.raises(InvalidArgumentError, match=match):
        recorder.resume_from(5, step=step)
    assert read_manifest(path).digest == before


def test_where_training_goes_on_is_checked(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", Dropout()) as recorder:
        for place in ({"epoch": "2"}, {"epoch": 2, "step": -1}, {"step": 2.5}):
            with pytest.raises(InvalidArgumentError, match=r"start\(\): (epoch|step) must be an integer of at least 0"):
                recorder.start(**place)


def test_what_a_loop_leaves_behind_is_told(tmp_path: Path) -> None:
    model = Dropout()
    with pytest.warns(RecordingWarning) as told:
        with make_recorder(tmp_path / "run", model) as recorder:
            for epoch in recorder.epochs(5):
                recorder.step(loss=1.0)
                if epoch == 2:
                    break
        with make_recorder(tmp_path / "run", model) as recorder:
            for _ in recorder.epochs(2):
                recorder.step(loss=1.0)
            recorder.note(test_loss=0.5)
        with make_recorder(tmp_path / "run", model) as recorder:  # says nothing: all is recorded
            for _ in recorder.epochs(3):
                recorder.step(loss=1.0)
            recorder.note(test_loss=0.5)
            recorder.mark()
    first, second = (str(warning.message) for warning in told)
    assert "the loop was left in epoch 2, " in first
    assert "which is not recorded as complete; call epoch() before break if it is" in first
    assert "what was noted after epoch 2 is not recorded; call mark() behind note()." in second
    assert "\n" not in first + second
    assert read_manifest(tmp_path / "run").step_metrics()["test_loss"][1].tolist() == [0.5]


def test_an_error_of_the_loop_says_enough(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ZeroDivisionError), make_recorder(tmp_path / "run", Dropout()) as recorder:
        for _ in recorder.epochs(1):
            recorder.step(loss=1.0)
            raise ZeroDivisionError
    assert not recwarn.list


def test_step_snapshots_of_an_unfinished_epoch_are_superseded(tmp_path: Path) -> None:
    path, model = tmp_path / "run", Dropout()
    options = {"schedule": every(epochs=1) | every(steps=1)}
    run_epochs(path, model, 3, limit=2, **options)
    assert [(r.epoch, r.step, r.epoch_complete) for r in read_manifest(path).live][-1] == (1, 2, False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.02)
    # Arithmetic undoes the step only nearly, so the exact state comes from the recording's own weights.
    manifest = read_manifest(path)
    index = [i for record, i in manifest.snapshots("weights") if record.epoch == 1][-1]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.asarray(manifest.array(manifest.weights[name]["path"])[index])))
    assert make_recorder(path, model, **options).committed_epoch == 1
    assert run_epochs(path, model, 2, **options) == [2]
    assert [(r.epoch, r.step, r.epoch_complete) for r in read_manifest(path).live] == [
        (0, 0, True), (0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True),
    ]  # fmt: skip


def test_step_snapshots_without_an_epoch_to_resume_from_are_superseded(tmp_path: Path) -> None:
    path, model = tmp_path / "run", Dropout()
    options = {"schedule": every(epochs=1) | every(steps=1)}
    with make_recorder(path, model, **options) as recorder:
        for _ in recorder.epochs(1):
            recorder.step()
            break
    (path / "commits" / "00000000.json").unlink()  # of epoch 0
    assert verify(path, deep=True, repair=True).valid
    with make_recorder(path, model, **options) as recorder:
        assert recorder.committed_epoch is None
        for _ in recorder.epochs(1):
            recorder.step()
    assert [(r.epoch, r.step) for r in read_manifest(path).live] == [(0, 0), (0, 1), (1, 1)]
    assert verify(path, deep=True).clean


@pytest.mark.parametrize(
    "changed",
    [
        {"sites": ["2"]},
        {"dtype": "float16"},
        {"probe": Probe(recorder_training.dataset(), size=20, seed=3, batch_size=10)},
        {"probe": Probe(recorder_training.dataset(), size=24, seed=4, batch_size=10)},
        {"weights": None},
    ],
)
def test_another_recording_in_the_same_folder_is_refused(changed: dict, tmp_path: Path) -> None:
    model = Dropout()
    run_epochs(tmp_path / "run", model, 1)
    with pytest.raises(FingerprintError):
        run_epochs(tmp_path / "run", model, 2, **changed)


def test_committed_epoch_before_and_without_opening(tmp_path: Path) -> None:
    model = Dropout()
    assert make_recorder(tmp_path / "run", model).committed_epoch is None
    run_epochs(tmp_path / "run", model, 2)
    assert make_recorder(tmp_path / "run", model).committed_epoch == 2
    with make_recorder(tmp_path / "run", model) as recorder:
        assert recorder.committed_epoch == 2
