"""Both streams through the recorder: what is due, what is left out, where training may go on, how a run is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from dynome_recorder import FingerprintError, InvalidArgumentError, InvalidDataError, Probe, Recorder, at, every
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

SAMPLES = 20


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2))


def make_recorder(path: Path, model: nn.Module, **options: Any) -> Recorder:
    data = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))
    options = {"sites": ["1", "3"], "strict": True} | options
    return Recorder(path, model, probe=Probe(data, size=10, seed=0), **options)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(
    path: Path, *, epochs: int = 2, steps: int = 4, sizes: tuple[int, ...] = (5,), model: Any = None, **options: Any
) -> tuple[list[dict[str, np.ndarray]], Recorder]:
    """Train and return, per step, what plain hooks saw of the batch, in an equal second model."""
    model = model if model is not None else make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(5)
    seen: list[dict[str, np.ndarray]] = []
    with make_recorder(path, model, **options) as recorder:
        for _ in recorder.epochs(epochs):
            for step in range(steps):
                x = torch.randn(sizes[step % len(sizes)], 4, generator=generator)
                with torch.no_grad():
                    hidden = model[1](model[0](x))
                    seen.append({"1": hidden.numpy(), "3": model[3](model[2](hidden)).numpy()})
                loss = train_step(model, optimizer, x)
                recorder.step(loss=loss, sample_ids=torch.arange(len(x)) + 100 * len(seen))
            recorder.epoch(done=1.0)
    return seen, recorder


def test_both_streams_at_once_hold_what_plain_hooks_see(tmp_path: Path) -> None:
    seen, recorder = train(
        tmp_path / "run", sizes=(5, 5, 5, 3), batches=every(steps=2), batch_size=5, schedule=every(epochs=1)
    )
    manifest = read_manifest(tmp_path / "run")
    assert verify(tmp_path / "run", deep=True).clean
    assert [record.epoch for record, _ in manifest.snapshots("probe")] == [0, 1, 2]
    batches = manifest.snapshots("batches")
    assert [record.step for record, _ in batches] == [2, 4, 6, 8]
    assert [record.samples for record, _ in batches] == [(5,), (3,), (5,), (3,)]
    for record, index in batches:
        for site, entry in manifest.batches.items():
            recorded = manifest.array(entry["path"])[index]
            count = record.samples[0]
            np.testing.assert_allclose(recorded[:count], seen[record.step - 1][site], rtol=1e-6, atol=1e-7)
            assert np.isnan(recorded[count:]).all()
        ids = manifest.array("batches/sample_id")[index]
        assert ids[: record.samples[0]].tolist() == [100 * record.step + k for k in range(record.samples[0])]
        assert (ids[record.samples[0] :] == -1).all()
    assert recorder.statistics is not None
    assert recorder.statistics.snapshots == {"probe": 3, "batches": 4}
    assert recorder.statistics.blocked_seconds > 0
    with xr.open_zarr(tmp_path / "run" / "store.zarr", group="batches") as plain:
        assert plain["samples"].values.tolist() == [[5], [3], [5], [3]]
        assert plain["step"].values.tolist() == [2, 4, 6, 8]


def test_accumulated_batches_lie_one_behind_the_other(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    with make_recorder(tmp_path / "run", model, batches=every(steps=1), batch_size=6) as recorder:
        for _ in recorder.epochs(1):
            with torch.no_grad():
                expected = model[1](model[0](x)).numpy()
            for half in x.split(3):
                model(half).square().mean().backward()
            optimizer.step()
            recorder.step()
    manifest = read_manifest(tmp_path / "run")
    np.testing.assert_allclose(manifest.array(manifest.batches["1"]["path"])[0], expected, rtol=1e-5, atol=1e-7)


def test_gradients_are_those_of_autograd(tmp_path: Path) -> None:
    model = make_model()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    hidden = model[1](model[0](x))
    hidden.retain_grad()
    model[4](model[3](model[2](hidden))).square().mean().backward()
    assert hidden.grad is not None
    train_model = make_model()
    optimizer = torch.optim.SGD(train_model.parameters(), lr=0.1)
    with make_recorder(tmp_path / "run", train_model, batches=every(steps=1), batch_size=5, gradients=True) as recorder:
        for _ in recorder.epochs(1):
            train_step(train_model, optimizer, x)
            recorder.step()
    manifest = read_manifest(tmp_path / "run")
    recorded = manifest.array(manifest.gradients["1"]["path"])[0]
    np.testing.assert_allclose(recorded, hidden.grad.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("on_full", ["skip", "thin"])
def test_a_slow_disk_leaves_gaps_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_full: str
) -> None:
    original = RecordingWriter.commit_all

    def slow(self: RecordingWriter, moments: Any) -> Any:
        time.sleep(0.05)
        return original(self, moments)

    monkeypatch.setattr(RecordingWriter, "commit_all", slow)
    seen, recorder = train(
        tmp_path / "run", steps=30, batches=every(steps=1), batch_size=5, on_full=on_full, buffer_bytes=1500
    )
    assert recorder.statistics is not None
    skipped = recorder.statistics.skipped["batches"]
    assert skipped > 0
    assert recorder.degraded is None
    manifest = read_manifest(tmp_path / "run")
    assert verify(tmp_path / "run", deep=True).clean
    taken = manifest.snapshots("batches")
    assert len(taken) + len(manifest.gaps("batches")) == 60 == len(taken) + skipped
    for record, index in taken:  # what was taken is right, whatever was left out around it
        np.testing.assert_allclose(
            manifest.array(manifest.batches["1"]["path"])[index], seen[record.step - 1]["1"], rtol=1e-6, atol=1e-7
        )
    with xr.open_zarr(tmp_path / "run" / "store.zarr", group="batches") as plain:
        assert plain["step"].values.tolist() == list(range(1, 61))  # gaps know their moment too
        assert (plain["status"].values == 2).sum() == skipped
    steps, _ = manifest.step_metrics()["loss"]
    assert steps.tolist() == list(range(1, 61))  # metrics are never left out


def test_blocking_records_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecordingWriter.commit_all
    monkeypatch.setattr(
        RecordingWriter, "commit_all", lambda self, moments: (time.sleep(0.01), original(self, moments))[1]
    )
    _, recorder = train(tmp_path / "run", steps=20, batches=every(steps=1), batch_size=5, buffer_bytes=1500)
    assert recorder.statistics is not None
    assert recorder.statistics.skipped == {}
    assert recorder.statistics.waited_seconds > 0
    assert recorder.statistics.peak_buffer_bytes < 10_000
    assert len(read_manifest(tmp_path / "run").snapshots("batches")) == 40


def test_the_first_batch_is_a_canary(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidDataError, match=r"batch_size is 4, but the passes of this step hold 5 samples"),
        make_recorder(tmp_path / "run", make_model(), strict=False, batches=every(steps=1), batch_size=4) as recorder,
    ):
        for _ in recorder.epochs(1):
            recorder_model = recorder._settings.model
            recorder_model(torch.randn(5, 4)).square().mean().backward()
            recorder.step()
    assert verify(tmp_path / "run", deep=True).valid


def test_a_later_batch_that_does_not_fit_stops_recording_and_not_training(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="step 2: batch_size is 5, but the passes of this step hold 7"):
        _, recorder = train(
            tmp_path / "run", sizes=(5, 7), strict=False, batches=every(steps=1), batch_size=5, epochs=1
        )
    assert recorder.degraded is not None
    assert [record.step for record, _ in read_manifest(tmp_path / "run").snapshots("batches")] == [1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batches": every(steps=1)}, "batch_size is needed with batches="),
        ({"batch_size": 3}, "batch_size belongs to the batches stream"),
        ({"gradients": True}, "gradients belongs to the batches stream"),
        ({"batches": every(epochs=1), "batch_size": 3}, "batches must be a schedule of steps"),
        ({"autocast": torch.float32}, "autocast must be torch.bfloat16, torch.float16 or None"),
        ({"on_full": "drop"}, "on_full must be one of 'block', 'thin', 'skip'"),
        ({"buffer_bytes": 0}, "buffer_bytes must be an integer of at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_told(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        make_recorder(tmp_path / "run", make_model(), **options)


def test_models_whose_parameters_are_sharded_are_refused(tmp_path: Path) -> None:
    class FullyShardedDataParallel(nn.Sequential):
        """Named as torch's wrapper is, which needs a device and a process group to be made."""

    with pytest.raises(InvalidArgumentError, match="FullyShardedDataParallel"):
        make_recorder(tmp_path / "run", FullyShardedDataParallel(nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("ids", "got"),
    [
        ([1, 2], r"int64 of shape \(2,\)"),
        ([[1], [2, 3]], r"object of shape \(\)"),
        ([True] * 5, r"bool of shape \(5,\)"),
        (torch.ones(5, dtype=torch.bool), r"torch.bool of shape \(5,\)"),
        (torch.ones(5), r"torch.float32 of shape \(5,\)"),
        (np.full(5, 2**63, dtype=np.uint64), r"uint64 of shape \(5,\)"),  # as int64 it would be another number
    ],
)
def test_sample_ids_that_do_not_fit_are_told(ids: object, got: str, tmp_path: Path) -> None:
    model = make_model()
    with (
        pytest.raises(InvalidDataError, match=rf"whole number below 2\*\*63 for each of the 5 samples.*got {got}"),
        make_recorder(tmp_path / "run", model, batches=every(steps=1), batch_size=5) as recorder,
    ):
        for _ in recorder.epochs(1):
            model(torch.randn(5, 4)).square().mean().backward()
            recorder.step(sample_ids=ids)


@pytest.mark.parametrize("kind", [list, np.uint64, np.int8, torch.uint8, torch.int64])
def test_sample_ids_are_those_of_the_moment(kind: object, tmp_path: Path) -> None:
    model, numbers = make_model(), list(range(5))
    is_torch = isinstance(kind, torch.dtype)
    ids = (
        torch.tensor(numbers, dtype=kind) if is_torch else [*numbers] if kind is list else np.array(numbers, dtype=kind)
    )
    with make_recorder(tmp_path / "run", model, batches=every(steps=1), batch_size=5) as recorder:
        for _ in recorder.epochs(1):
            model(torch.randn(5, 4)).square().mean().backward()
            recorder.step(sample_ids=ids)
            ids[0] = 99  # a loop may use its memory again
    manifest = read_manifest(tmp_path / "run")
    (entry,) = manifest.run["fingerprint"]["samples"].values()
    assert manifest.array(entry["path"])[0].tolist() == numbers


# Where training may go on


def test_a_mark_within_an_epoch_is_a_place_to_go_on_from(tmp_path: Path) -> None:
    path, model = tmp_path / "run", make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make_recorder(path, model) as recorder:
        assert recorder.start() == 0
        recorder.begin(1)
        for step in range(3):
            recorder.step(loss=train_step(model, optimizer, torch.ones(5, 4)))
            recorder.note(extra=float(step))
            if step == 1:
                recorder.mark()
                state = {name: value.clone() for name, value in model.state_dict().items()}
    assert read_manifest(path).live[-1].step == 2
    model.load_state_dict(state)
    with make_recorder(path, model) as recorder:
        assert recorder.start(epoch=0, step=2) == 0
        recorder.begin(1)
        recorder.step(loss=7.0)
        recorder.epoch()
    steps, values = read_manifest(path).step_metrics()["loss"]
    assert steps.tolist() == [1, 2, 3]
    assert values[-1] == 7.0
    assert read_manifest(path).step_metrics()["extra"][1].tolist() == [0.0, 1.0]
    with make_recorder(path, model) as recorder, pytest.raises(FingerprintError, match="nothing is recorded at step 9"):
        recorder.start(epoch=0, step=9)


def test_an_epoch_that_a_crash_took_becomes_a_gap(tmp_path: Path) -> None:
    path, model = tmp_path / "run", make_model()
    with make_recorder(path, model, weights=every(epochs=1)) as recorder:
        list(recorder.epochs(2))
    with torch.no_grad():
        model[0].weight.add_(1.0)  # two more epochs were trained, and checkpointed, and never committed
    with make_recorder(path, model, weights=every(epochs=1)) as recorder:
        with pytest.raises(InvalidArgumentError, match=r"resume_from\(4, step=...\)"):
            recorder.resume_from(4)
        recorder.resume_from(4, step=40)
        assert list(recorder.epochs(5)) == [5]
    manifest = read_manifest(path)
    assert [record.epoch for record, _ in manifest.snapshots("probe")] == [0, 1, 2, 5]
    assert manifest.gaps("probe") == manifest.gaps("weights") == (3, 4)
    assert [(record.epoch, record.step) for record in manifest.live] == [
        (0, 0), (1, 0), (2, 0), (3, -1), (4, 40), (5, 40),
    ]  # fmt: skip
    assert verify(path, deep=True).clean


def test_the_probe_alone_and_the_batches_alone(tmp_path: Path) -> None:
    train(tmp_path / "run", schedule=at(0), batches=every(steps=4), batch_size=5)
    manifest = read_manifest(tmp_path / "run")
    assert [record.step for record, _ in manifest.snapshots("probe")] == [0]
    assert [record.step for record, _ in manifest.snapshots("batches")] == [4, 8]


# How a run is ended

ENDED = """
import os, signal, sys, threading, time, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from recorder.test_streams import make_model, make_recorder, train_step
from dynome_recorder import every
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with make_recorder(Path(sys.argv[1]), model, batches=every(steps=1), batch_size=5) as recorder:
    for epoch in recorder.epochs(3):
        for step in range(4):
            recorder.step(loss=train_step(model, optimizer, torch.ones(5, 4)))
            if (epoch, step) == (2, 1):
                os.kill(os.getpid(), int(sys.argv[2]))
        recorder.epoch()
print("went on")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_and_what_waits_is_committed(tmp_path: Path, number: int) -> None:
    script = ENDED.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run"), str(int(number))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 143 if number == signal.SIGTERM else "KeyboardInterrupt" in done.stderr, done.stderr
    assert "went on" not in done.stdout
    manifest = read_manifest(tmp_path / "run")
    assert [record.step for record, _ in manifest.snapshots("batches")] == [1, 2, 3, 4, 5, 6]
    assert verify(tmp_path / "run", deep=True).clean


def test_a_handler_of_the_users_own_stays(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    mine = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    try:
        with make_recorder(tmp_path / "run", make_model()) as recorder:
            assert signal.getsignal(signal.SIGTERM) is mine
            list(recorder.epochs(1))
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_default_handler_comes_back_and_threads_set_none(tmp_path: Path) -> None:
    with make_recorder(tmp_path / "run", make_model()) as recorder:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        list(recorder.epochs(1))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with make_recorder(tmp_path / "other", make_model()) as recorder:
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
                list(recorder.epochs(1))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failures == []
