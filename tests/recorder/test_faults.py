"""What can go wrong around a run: training ends as without a recorder, the store is valid, one line says why.

Each fault is real where the machine allows it (a full tmpfs, one that is remounted read-only), and made by hand where
not. Every test trains twice, without and with the fault, and compares the weights bit by bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, Recorder, RecordingWarning, every
from dynome_recorder.storage import layout
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EPOCHS, STEPS, UNITS = 6, 4, 256


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, UNITS), nn.Tanh(), nn.Dropout(0.1), nn.Linear(UNITS, 3))


def train(
    recorder: Callable[[nn.Module], Recorder] | None,
    fault: Callable[[int, int], None] | None = None,
    *,
    workers: int = 0,
) -> tuple[bytes, Recorder | None]:
    """Train a fixed run; ``fault(epoch, step)`` is called before each step. Returns the final weights' bytes."""
    model = make_model()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = TensorDataset(torch.randn(STEPS * 8, 4, generator=torch.Generator().manual_seed(2)))
    loader = DataLoader(data, batch_size=8, num_workers=workers)
    made = recorder(model) if recorder is not None else None

    def run_epoch(epoch: int) -> None:
        for step, (x,) in enumerate(loader):
            if fault is not None:
                fault(epoch, step)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if made is not None:
                made.step(loss=loss)

    if made is None:
        for epoch in range(1, EPOCHS + 1):
            run_epoch(epoch)
    else:
        with made:
            for epoch in made.epochs(EPOCHS):
                run_epoch(epoch)
                made.epoch(value=float(epoch))
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values()), made


def recorder_at(path: Path, **options: Any) -> Callable[[nn.Module], Recorder]:
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    options = {"weights": every(epochs=1), "batches": every(steps=2), "batch_size": 8} | options
    return lambda model: Recorder(path, model, sites=["1"], probe=Probe(data, size=40), **options)


@pytest.fixture(scope="module")
def reference() -> bytes:
    return train(None)[0]


@contextlib.contextmanager
def one_line(match: str) -> Iterator[None]:
    """Expect exactly one warning, of one line."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    lines = [str(one.message) for one in told if issubclass(one.category, RecordingWarning)]
    assert len(lines) == 1, lines
    assert "\n" not in lines[0]
    assert match in lines[0], lines[0]
    assert "Training goes on" in lines[0]


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of so many bytes; where nobody may mount one, the same by a failing write."""
    place.mkdir()
    mounted = shutil.which("mount") is not None and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def is_mounted(place: Path) -> bool:
    return os.path.ismount(place)


def fail_writes(monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[], bool]) -> None:
    """Let every write of the package fail with an error number while ``when`` says so."""
    from dynome_recorder.storage import bulk, files

    for module in (bulk, files):
        original = module.os.open

        def opening(path: Any, flags: int, *arguments: Any, _original: Any = original, **named: Any) -> int:
            if when() and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(number, os.strerror(number), str(path))
            return _original(path, flags, *arguments, **named)

        monkeypatch.setattr(module.os, "open", opening)
    writing = Path.open

    def open_path(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if when() and "w" in mode:
            raise OSError(number, os.strerror(number), str(self))
        return writing(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", open_path)


def check_store(run: Path) -> int:
    """Return how many epochs are complete; all that is committed can be read."""
    result = verify(run, deep=True)
    assert result.valid, result.findings
    manifest = read_manifest(run)
    for path in manifest.layouts:
        for _, index in manifest.snapshots(path.partition("/")[0]):
            assert np.asarray(manifest.array(path)[index]).size
    complete = [record.epoch for record in manifest.live if record.epoch_complete]
    assert complete == list(range(len(complete)))
    return len(complete)


def test_a_disk_that_fills_up(tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        full = [False]
        if not is_mounted(disk):
            fail_writes(monkeypatch, errno.ENOSPC, lambda: full[0])

        def fault(epoch: int, step: int) -> None:
            full[0] = epoch >= 3

        with one_line("No space left on device"):
            weights, recorder = train(recorder_at(disk / "run"), fault)
        assert weights == reference
        assert recorder is not None
        assert recorder.degraded is not None
        assert 1 <= check_store(disk / "run") < EPOCHS + 1


def test_a_folder_that_turns_read_only(tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        locked = [False]
        mounted = is_mounted(disk)
        if not mounted:
            fail_writes(monkeypatch, errno.EROFS, lambda: locked[0])
        recorders: list[Recorder] = []

        def make(model: nn.Module) -> Recorder:
            recorders.append(recorder_at(disk / "run")(model))
            return recorders[0]

        def fault(epoch: int, step: int) -> None:
            if (epoch, step) == (4, 0):
                recorders[0].flush()
                locked[0] = True
                if mounted:
                    # Files that are open for writing forbid it; the lock is one. A new mount of the same place does it.
                    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
                    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)

        try:
            with one_line("Read-only file system"):
                weights, _ = train(make, fault)
            assert weights == reference
            assert check_store(disk / "run") == 4  # epochs 0 to 3
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_run_folder_that_is_removed(tmp_path: Path, reference: bytes) -> None:
    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    with one_line("No such file or directory"):
        weights, _ = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference


def test_a_clock_that_jumps_back(tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])

    def fault(epoch: int, step: int) -> None:
        shift[0] = -1e6 if epoch % 2 else 1e6

    weights, recorder = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference
    assert recorder is not None
    assert recorder.degraded is None
    assert check_store(tmp_path / "run") == EPOCHS + 1
    assert [record.sequence for record in read_manifest(tmp_path / "run").records] == list(
        range(len(read_manifest(tmp_path / "run").records))
    )


def test_a_writer_thread_that_is_killed(tmp_path: Path, reference: bytes) -> None:
    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            for thread in threading.enumerate():
                if thread.name.startswith("dynome-writer"):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                    )

    with one_line("the thread that writes was ended by SystemExit"):
        weights, _ = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") <= EPOCHS


def test_an_error_while_compressing(tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynome_recorder.storage import bulk

    broken = [False]
    original = layout.compress

    def compress(piece: Any) -> bytes:
        if broken[0]:
            raise MemoryError("no memory for zstd")
        return original(piece)

    monkeypatch.setattr(bulk, "compress", compress)

    def fault(epoch: int, step: int) -> None:
        broken[0] = epoch >= 3

    with one_line("MemoryError: no memory for zstd"):
        weights, _ = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference
    assert 1 <= check_store(tmp_path / "run") <= EPOCHS


@pytest.mark.parametrize("where", ["probe", "batch"])
def test_a_hook_that_raises(tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from dynome_recorder.capture.reductions import SiteLayout

    broken = [False]
    original = SiteLayout.apply

    def apply(self: SiteLayout, values: torch.Tensor) -> torch.Tensor:
        if broken[0]:
            raise RuntimeError("a hook of ours")
        return original(self, values)

    monkeypatch.setattr(SiteLayout, "apply", apply)

    def fault(epoch: int, step: int) -> None:
        broken[0] = epoch == 3 and (step > 0) == (where == "batch")

    options = {"batches": None, "batch_size": None} if where == "probe" else {}
    if where == "probe":
        options["schedule"] = every(steps=1)
    with one_line("RuntimeError: a hook of ours"):
        weights, _ = train(recorder_at(tmp_path / "run", **options), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") == 3


def test_a_model_that_loses_a_site(tmp_path: Path) -> None:
    model_of: list[nn.Module] = []

    def make(model: nn.Module) -> Recorder:
        model_of.append(model)
        return recorder_at(tmp_path / "run")(model)

    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 0):
            model_of[0][1] = nn.Identity()
        if (epoch, step) == (3, 1):
            del model_of[0][2]

    with one_line("a moment must hold each of its weights once"):
        train(make, fault)
    assert check_store(tmp_path / "run") == 3


def test_data_workers_that_are_forked_while_it_records(tmp_path: Path, reference: bytes) -> None:
    weights, recorder = train(recorder_at(tmp_path / "run"), workers=2)
    assert weights == reference
    assert recorder is not None
    assert recorder.degraded is None
    assert check_store(tmp_path / "run") == EPOCHS + 1


def test_strict_raises_what_would_have_been_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynome_recorder.storage import bulk

    monkeypatch.setattr(bulk, "compress", lambda piece: (_ for _ in ()).throw(MemoryError("no memory for zstd")))
    with pytest.raises(MemoryError, match="no memory for zstd"):
        train(recorder_at(tmp_path / "run", strict=True))


LEFT = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from recorder.test_faults import recorder_at, make_model
model = make_model()
recorder = recorder_at(Path(sys.argv[1]))(model)
recorder.__enter__()
recorder.start()
recorder.begin(1)
recorder.epoch()
if sys.argv[2] == "flushed":
    recorder.flush()
if sys.argv[2] != "return":
    os._exit(7)
"""


@pytest.mark.parametrize(("way", "complete"), [("flushed", 2), ("return", 2)])
def test_a_process_that_leaves_without_closing(tmp_path: Path, way: str, complete: int) -> None:
    """What was flushed survives os._exit; an interpreter that ends in order commits what waits."""
    script = LEFT.format(tests=str(Path(__file__).parents[1]))
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), way], timeout=60, check=way == "return")
    assert check_store(tmp_path / "run") == complete


def test_a_recording_that_was_cut_off_by_a_fault_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RecordingWriter.commit_all
    calls = [0]

    def commit_all(self: RecordingWriter, moments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, moments)

    with monkeypatch.context() as patch, one_line("Input/output error"):
        patch.setattr(RecordingWriter, "commit_all", commit_all)
        train(recorder_at(tmp_path / "run"))
    assert (tmp_path / "run" / "degraded.json").is_file()
    complete = check_store(tmp_path / "run")
    model = make_model()
    manifest = read_manifest(tmp_path / "run")
    _, index = manifest.snapshots("weights")[-1]
    state = {name: torch.as_tensor(manifest.array(entry["path"])[index]) for name, entry in manifest.weights.items()}
    model.load_state_dict(state)
    with recorder_at(tmp_path / "run", strict=True)(model) as recorder:
        for _ in recorder.epochs(complete):
            model(torch.ones(8, 4)).mean().backward()
            recorder.step()
    assert check_store(tmp_path / "run") == complete + 1
    assert not (tmp_path / "run" / "degraded.json").exists()
