"""What can go wrong around a run: training ends as without a recorder, the store is valid, one line says why.

Each fault is real where the machine allows it (a full tmpfs, one that is remounted read-only), and made by hand where
not. Every test trains with the fault, and compares the weights and the random state bit by bit with a run without a
recorder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faulty_training
import numpy as np
import pytest
import torch
from faulty_training import (
    EPOCHS,
    STEPS,
    check_store,
    fail_writes,
    make_model,
    mount,
    one_line,
    recorder_at,
    small_disk,
    train,
)
from killed_threads import raise_in, untraced
from torch import nn

from dynome_recorder import Probe, Recorder, shield
from dynome_recorder.background import _Call
from dynome_recorder.capture.reductions import SiteLayout
from dynome_recorder.capture.transfer import SlotPool
from dynome_recorder.errors import InvalidArgumentError, StorageError
from dynome_recorder.storage import bulk
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.showing import Showing
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faulty_training import Fault

    MonkeyPatch, Caplog = pytest.MonkeyPatch, pytest.LogCaptureFixture


OPTIONS_OF_OPENING: dict[str, Any] = RecordingWriter.open.__func__.__kwdefaults__  # type: ignore[attr-defined]
"""What a recorder does not choose itself; tests put other values there."""


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """End a test that hangs: a deadlock must be a failure, not a silence."""

    def end(number: int, frame: Any) -> None:
        raise TimeoutError("the training hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def reference() -> bytes:
    return train(None)[0]


# ---- disks


def test_a_disk_that_fills_up(tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        full = [False]
        if not os.path.ismount(disk):
            fail_writes(monkeypatch, errno.ENOSPC, lambda: full[0])

        def fault(epoch: int, step: int) -> None:
            full[0] = epoch >= 3

        with one_line("No space left on device", caplog):
            weights, recorder = train(recorder_at(disk / "run"), fault)
        assert weights == reference
        assert recorder is not None
        assert recorder.degraded is not None
        assert 1 <= check_store(disk / "run") < EPOCHS + 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_from_some_step_on(
    tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog, number: int
) -> None:
    broken = [False]
    recorders: list[Recorder] = []
    fail_writes(monkeypatch, number, lambda: broken[0])

    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            recorders[0].flush()
            broken[0] = True

    with one_line(os.strerror(number), caplog):
        weights, _ = train(kept(recorders, recorder_at(tmp_path / "run")), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") == 3


def kept(recorders: list[Recorder], make: Callable[[nn.Module], Recorder]) -> Callable[[nn.Module], Recorder]:
    def call(model: nn.Module) -> Recorder:
        recorders.append(make(model))
        return recorders[0]

    return call


def test_a_folder_that_turns_read_only(
    tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        locked, recorders = [False], []
        mounted = os.path.ismount(disk)
        if not mounted:
            fail_writes(monkeypatch, errno.EROFS, lambda: locked[0])

        def fault(epoch: int, step: int) -> None:
            if (epoch, step) == (4, 0):
                recorders[0].flush()
                locked[0] = True
                if mounted:
                    # Files that are open for writing forbid it; the lock is one. A new mount of the same place does it.
                    assert mount("--bind", str(disk), str(disk))
                    assert mount("-o", "remount,ro,bind", str(disk))

        try:
            with one_line("Read-only file system", caplog):
                weights, _ = train(kept(recorders, recorder_at(disk / "run")), fault)
            assert weights == reference
            assert check_store(disk / "run") == 4  # epochs 0 to 3
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_run_folder_that_is_removed(tmp_path: Path, reference: bytes, caplog: Caplog) -> None:
    recorders: list[Recorder] = []

    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            recorders[0].flush()  # else a commit under way may be writing while its folder goes
            shutil.rmtree(tmp_path / "run")

    with one_line("No such file or directory", caplog):
        weights, _ = train(kept(recorders, recorder_at(tmp_path / "run")), fault)
    assert weights == reference
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fails_at_the_very_end(
    tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog
) -> None:
    """All is committed and only the last publishing fails: nothing is lost, and it is told."""
    broken = [False]
    original = Showing.publish

    def publish(self: Showing) -> None:
        if broken[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self)

    monkeypatch.setattr(Showing, "publish", publish)
    monkeypatch.setitem(OPTIONS_OF_OPENING, "publish_interval", 1e9)

    def fault(epoch: int, step: int) -> None:
        broken[0] = epoch == EPOCHS

    with one_line("No space left on device", caplog):
        weights, _ = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") == EPOCHS + 1
    assert {finding.severity for finding in verify(tmp_path / "run", deep=True).findings} == {"harmless"}


def test_a_clock_that_jumps_back(tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch) -> None:
    shift = [0.0]
    recorders: list[Recorder] = []
    monkeypatch.setitem(OPTIONS_OF_OPENING, "clock", lambda: 1.8e9 + shift[0])

    def fault(epoch: int, step: int) -> None:
        recorders[0].flush()
        shift[0] = -1e6 if epoch % 2 else 1e6

    weights, recorder = train(kept(recorders, recorder_at(tmp_path / "run")), fault)
    assert weights == reference
    assert recorder is not None
    assert recorder.degraded is None
    assert check_store(tmp_path / "run") == EPOCHS + 1
    records = read_manifest(tmp_path / "run").records
    assert [record.sequence for record in records] == list(range(len(records)))
    assert {record.time for record in records} == {1.8e9, 1.8e9 - 1e6, 1.8e9 + 1e6}


# ---- threads and memory


@pytest.mark.parametrize("buffer_bytes", [2**28, 1])
@untraced()
def test_a_writer_thread_that_is_killed(tmp_path: Path, reference: bytes, caplog: Caplog, buffer_bytes: int) -> None:
    """With the smallest buffers the training thread waits for the dead one at every snapshot."""
    recorders: list[Recorder] = []

    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 1):
            session = recorders[0]._session
            assert session is not None
            raise_in(session.background._thread)
            session.background._queue.put(_Call(lambda: None))  # where it waits in C, nothing arrives

    with one_line("the thread that writes was ended by SystemExit", caplog):
        weights, _ = train(kept(recorders, recorder_at(tmp_path / "run", buffer_bytes=buffer_bytes)), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") <= EPOCHS


def test_no_thread_is_started_while_training(tmp_path: Path, reference: bytes) -> None:
    """Who is killed while it starts another thread may wait for that for ever."""
    seen: list[set[str]] = []

    def fault(epoch: int, step: int) -> None:
        seen.append({thread.name for thread in threading.enumerate() if thread.name.startswith("dynome")})

    assert train(recorder_at(tmp_path / "run"), fault)[0] == reference
    assert all(names == seen[0] for names in seen)
    assert {"dynome-writer", "dynome-worker_0"} <= seen[0]


def break_from(monkeypatch: MonkeyPatch, owner: Any, name: str, error: Exception) -> Fault:
    """Let a function raise from epoch 3 on; returns the fault that does so."""
    broken = [False]
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if broken[0]:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)

    def fault(epoch: int, step: int) -> None:
        broken[0] = epoch >= 3

    return fault


INSIDE = {
    "compress": (bulk, "compress", MemoryError("no memory for zstd"), "MemoryError: no memory for zstd."),
    "buffer": (SlotPool, "_find_memory", RuntimeError("cannot pin\nmemory"), "RuntimeError: cannot pin memory."),
    "commit": (RecordingWriter, "commit_all", OSError(errno.EIO, "Input/output error"), "Input/output error"),
    "hook": (SiteLayout, "apply", RuntimeError("a hook of ours"), "RuntimeError: a hook of ours."),
}


@pytest.mark.parametrize("where", INSIDE)
def test_an_error_inside(
    tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog, where: str
) -> None:
    owner, name, error, text = INSIDE[where]
    fault = break_from(monkeypatch, owner, name, error)
    with one_line(text, caplog):
        weights, recorder = train(recorder_at(tmp_path / "run"), fault)
    assert weights == reference
    assert 1 <= check_store(tmp_path / "run") <= 3
    assert recorder is not None
    assert recorder.degraded is not None
    assert (tmp_path / "run/degraded.json").is_file()


@pytest.mark.parametrize("where", INSIDE)
def test_strict_raises_what_would_have_been_told(tmp_path: Path, monkeypatch: MonkeyPatch, where: str) -> None:
    owner, name, error, _ = INSIDE[where]
    fault = break_from(monkeypatch, owner, name, error)
    with pytest.raises(type(error)) as raised:
        train(recorder_at(tmp_path / "run", strict=True), fault)
    assert raised.value is error
    assert 1 <= check_store(tmp_path / "run") <= 3


# ---- hooks, models, data


@pytest.mark.parametrize("where", ["probe", "batch", "gradient"])
def test_a_hook_that_raises(
    tmp_path: Path, reference: bytes, monkeypatch: MonkeyPatch, caplog: Caplog, where: str
) -> None:
    now = [(0, 0)]
    original = SiteLayout.apply

    def apply(self: SiteLayout, values: torch.Tensor) -> torch.Tensor:
        place = "gradient" if torch._C._current_graph_task_id() != -1 else "batch" if torch.is_grad_enabled() else ""
        if now[0] == (3, 1 if place else STEPS - 1) and (place or "probe") == where:
            raise RuntimeError("a hook of ours")
        return original(self, values)

    monkeypatch.setattr(SiteLayout, "apply", apply)

    def fault(epoch: int, step: int) -> None:
        now[0] = (epoch, step)

    with one_line("RuntimeError: a hook of ours", caplog):
        weights, _ = train(recorder_at(tmp_path / "run", gradients=where == "gradient"), fault)
    assert weights == reference
    assert check_store(tmp_path / "run") == 3


def test_a_model_that_loses_a_site(tmp_path: Path, caplog: Caplog) -> None:
    model = make_model()

    def fault(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 0):
            model[1] = nn.Identity()
        if (epoch, step) == (3, 1):
            del model[2]

    with one_line("weights: parameter '3.weight' was float32 of shape (3, 256)", caplog):
        train(recorder_at(tmp_path / "run"), fault, model=model)
    assert check_store(tmp_path / "run") == 3


class LateFault(torch.utils.data.Dataset[torch.Tensor]):
    """Samples that cannot be loaded any more once they are on a disk that is gone."""

    gone = False

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.gone:
            raise OSError(errno.ESTALE, "Stale file handle")
        return torch.full((4,), index / 40)


@pytest.mark.parametrize("strict", [False, True])
def test_a_probe_whose_data_set_is_gone_later(tmp_path: Path, caplog: Caplog, strict: bool) -> None:
    """It is loaded once; again only where a model turns out to change its input in place."""

    def faults(model: faulty_training.Net, data: LateFault) -> Fault:
        def fault(epoch: int, step: int) -> None:
            data.gone = epoch >= 2
            model.changes_input = epoch >= 3

        return fault

    model = make_model()
    expected, _ = train(None, faults(model, LateFault()), model=model)
    model, data = make_model(), LateFault()
    make = recorder_at(tmp_path / "run", probe=Probe(data, size=40), strict=strict)
    if strict:
        with pytest.raises(InvalidArgumentError.__mro__[1], match="Stale file handle"):
            train(make, faults(model, data), model=model)
    else:
        with one_line("the samples could not be loaded into batches, OSError: [Errno 116] Stale file handle", caplog):
            weights, _ = train(make, faults(model, data), model=model)
        assert weights == expected
    assert check_store(tmp_path / "run") == 4  # epoch 3 changed the probe's batches, epoch 4 misses them


class Unreadable:
    """A number that nobody can read."""

    numel = 1

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


STRANGE = {
    "nan": (torch.tensor(float("nan")), float("nan")),
    "infinite": (torch.tensor(float("-inf")), float("-inf")),
    "half": (torch.tensor([65504.0], dtype=torch.float16, requires_grad=True), 65504.0),
    "large": (1e308, 1e308),
    "flag": (torch.tensor(True), 1.0),
    "scalar": (np.float32(0.5), 0.5),
}
USELESS = {
    "too large for a float": 10**400,
    "many": torch.zeros(1000, 1000),
    "complex": torch.zeros((), dtype=torch.complex64),
    "text": "0.5",
    "nothing": None,
    "unreadable": Unreadable(),
}


def test_strange_metrics_are_kept(tmp_path: Path, reference: bytes) -> None:
    given = {name: value for name, (value, _) in STRANGE.items()}
    weights, _ = train(recorder_at(tmp_path / "run", strict=True), metrics=lambda epoch: given)
    assert weights == reference
    manifest = read_manifest(tmp_path / "run")
    for name, (_, expected) in STRANGE.items():
        for read, count in ((manifest.step_metrics(), EPOCHS * STEPS), (manifest.epoch_metrics(), EPOCHS)):
            np.testing.assert_array_equal(read[name][1], [expected] * count)
    assert check_store(tmp_path / "run") == EPOCHS + 1


@pytest.mark.parametrize("name", USELESS)
def test_a_metric_that_cannot_be_kept_is_told_once(tmp_path: Path, reference: bytes, caplog: Caplog, name: str) -> None:
    def metrics(epoch: int) -> dict[str, Any]:
        return {"odd": USELESS[name]} if epoch >= 3 else {}

    with one_line("odd", caplog, what="It is left out; training goes on."):
        weights, recorder = train(recorder_at(tmp_path / "run"), metrics=metrics)
    assert weights == reference
    assert recorder is not None
    assert recorder.degraded is None
    assert check_store(tmp_path / "run") == EPOCHS + 1
    assert "odd" not in read_manifest(tmp_path / "run").step_metrics()


def test_data_workers_that_are_forked_while_it_records(tmp_path: Path, reference: bytes) -> None:
    weights, recorder = train(recorder_at(tmp_path / "run"), workers=2)
    assert weights == train(None, workers=2)[0]
    assert recorder is not None
    assert recorder.degraded is None
    assert check_store(tmp_path / "run") == EPOCHS + 1


# ---- processes


class Children:
    """Runs training processes that end in some way."""

    def __init__(self) -> None:
        script = Path(faulty_training.__file__)
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=script.parent, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def live(self, folder: Path, way: str) -> tuple[int, str]:
        """Return the exit code of a child, and what it said on standard error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "way": way}) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, (folder / "stderr").read_text()

    def close(self) -> None:
        """End the nursery."""
        self.process.communicate()


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


def steps_of_batches(run: Path) -> list[int]:
    return [record.step for record, _ in read_manifest(run).snapshots("batches")]


@pytest.mark.parametrize(
    ("way", "last"), [("SIGTERM", ""), ("SIGINT", "KeyboardInterrupt"), ("raise", "ZeroDivisionError: in the loop")]
)
def test_a_process_that_is_ended_in_mid_epoch(tmp_path: Path, children: Children, way: str, last: str) -> None:
    """It ends as it would have, and everything that was handed over is committed and published."""
    ended, said = children.live(tmp_path, way)
    assert (said.splitlines() or [""])[-1] == last
    assert "dynome" not in said.partition("Traceback")[0]
    assert check_store(tmp_path / "run") == 3
    assert steps_of_batches(tmp_path / "run") == [2, 4, 6, 8]
    assert verify(tmp_path / "run", deep=True).clean
    assert not (tmp_path / "weights").exists()
    if way == "SIGINT":
        (tmp_path / "alone").mkdir()
        assert ended == children.live(tmp_path / "alone", "SIGINT alone")[0]
    else:
        assert ended == {"SIGTERM": 128 + signal.SIGTERM, "raise": 1}[way]


@pytest.mark.parametrize(("way", "epochs"), [("flush and exit", {3}), ("exit", {0, 1, 2, 3})])
def test_a_process_that_leaves_by_os_exit(tmp_path: Path, children: Children, way: str, epochs: set[int]) -> None:
    """What was flushed is there; of the rest a beginning."""
    assert children.live(tmp_path, way) == (7, "")
    assert check_store(tmp_path / "run") in epochs
    assert all(f.severity == "harmless" for f in verify(tmp_path / "run", deep=True).findings)


def test_a_script_that_never_closes(tmp_path: Path, children: Children) -> None:
    assert children.live(tmp_path, "unclosed") == (0, "")
    assert check_store(tmp_path / "run") == 2
    assert verify(tmp_path / "run", deep=True).clean


@pytest.mark.parametrize(("way", "processes"), [("fork and unwind", 1), ("fork and train", 2)])
def test_a_fork_in_mid_epoch(tmp_path: Path, children: Children, reference: bytes, way: str, processes: int) -> None:
    """The child has a copy of the recorder, which records nothing there and leaves the recording alone."""
    assert children.live(tmp_path, way) == (0, "")
    assert (tmp_path / "weights").read_bytes() == processes * reference
    assert check_store(tmp_path / "run") == EPOCHS + 1
    assert steps_of_batches(tmp_path / "run") == list(range(2, EPOCHS * STEPS + 1, 2))
    assert verify(tmp_path / "run", deep=True).clean


def test_what_a_user_sees_of_a_full_disk(tmp_path: Path, children: Children, reference: bytes) -> None:
    """On a terminal, with Python's own settings of warnings and logging."""
    code, said = children.live(tmp_path, "full")
    assert code == 0
    assert (tmp_path / "weights").read_bytes() == reference
    assert said.count("recording stopped at") == 1, said
    assert said.count("No space left on device") == 1
    assert said.count(str(tmp_path)) == 1
    assert check_store(tmp_path / "run") == 3


@pytest.mark.parametrize(
    ("action", "has_log", "in_log"),
    [("always", True, 1), ("always", False, 0), ("error", True, 1), ("error", False, 1), ("ignore", False, 0)],
)
def test_a_line_is_told_once_wherever_it_goes(
    tmp_path: Path, monkeypatch: MonkeyPatch, caplog: Caplog, action: Any, has_log: bool, in_log: int
) -> None:
    """Where nobody set up logging, it prints to the terminal, as warnings do; who ignores warnings wants silence."""
    monkeypatch.setattr(shield.logger, "hasHandlers", lambda: has_log)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter(action)
        shielding = shield.Shield(tmp_path)
        shielding.tell("key", f"{action} {has_log}")
        shielding.tell("key", "another text")
    assert len(told) == (action == "always")
    assert len(caplog.records) == in_log
    if told:
        assert Path(told[0].filename) == Path(__file__)  # the line of the caller, not one of ours


# ---- afterwards


def test_a_recording_that_was_cut_off_by_a_fault_goes_on(
    tmp_path: Path, monkeypatch: MonkeyPatch, caplog: Caplog
) -> None:
    with monkeypatch.context() as patch, one_line("Input/output error", caplog):
        fault = break_from(patch, RecordingWriter, "commit_all", StorageError("RUN: Input/output error"))
        train(recorder_at(tmp_path / "run"), fault)
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
