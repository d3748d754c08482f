"""A fixed training run into which tests put faults, in their own process or in a child that ends in some way.

``train(None)`` is the same run without a recorder: what it returns must not differ. As a script it is a nursery: it
imports everything once, and for each job that it reads, forks a child that trains.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynome_recorder import Probe, Recorder, RecordingWarning, every
from dynome_recorder.storage import bulk, files
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    Fault = Callable[[int, int], None]
    Make = Callable[[nn.Module], Recorder]

EPOCHS, STEPS, UNITS = 6, 4, 256


class Net(nn.Sequential):
    """Dropout takes random numbers, so that a recorder that does too changes the weights."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, UNITS), nn.Tanh(), nn.Dropout(0.1), nn.Linear(UNITS, 3))
        self.changes_input = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call all of them; change the input in place where asked to."""
        return super().forward(x.mul_(0.5) if self.changes_input else x)


def make_model() -> Net:
    torch.manual_seed(0)
    return Net()


def train(
    make: Make | None,
    fault: Fault | None = None,
    *,
    model: Net | None = None,
    workers: int = 0,
    metrics: Callable[[int], dict[str, Any]] = lambda epoch: {},
) -> tuple[bytes, Recorder | None]:
    """Train; ``fault(epoch, step)`` is called before each step, from (1, 0) on.

    Returns
    -------
    bytes
        The final weights and the state of the random generator.
    Recorder or None
        Closed.
    """
    model = make_model() if model is None else model
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = TensorDataset(torch.randn(STEPS * 8, 4, generator=torch.Generator().manual_seed(2)))
    loader = DataLoader(data, batch_size=8, num_workers=workers)
    recorder = make(model) if make is not None else None

    def run_epoch(epoch: int) -> None:
        for step, (x,) in enumerate(loader):
            if fault is not None:
                fault(epoch, step)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.step(loss=loss, **metrics(epoch))

    if recorder is None:
        for epoch in range(1, EPOCHS + 1):
            run_epoch(epoch)
    else:
        with recorder:
            for epoch in recorder.epochs(EPOCHS):
                run_epoch(epoch)
                recorder.epoch(value=float(epoch), **metrics(epoch))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    values = [*model.state_dict().values(), torch.get_rng_state()]
    return b"".join(value.numpy().tobytes() for value in values), recorder


def recorder_at(path: Path, **options: Any) -> Make:
    """Return what makes a recorder of all streams there; ``options`` replace its own."""
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    options = {"weights": every(epochs=1), "batches": every(steps=2), "batch_size": 8} | options
    options = {"probe": Probe(data, size=40), "sites": ["1"]} | options
    return lambda model: Recorder(path, model, **options)


def check_store(run: Path) -> int:
    """Assert that all that is committed can be read; return how many epochs are complete."""
    result = verify(run, deep=True)
    assert result.valid, result.findings
    manifest = read_manifest(run)
    for path in manifest.layouts:
        for _, index in manifest.snapshots(path.partition("/")[0]):
            assert np.isfinite(np.asarray(manifest.array(path)[index])).all()
    complete = [record.epoch for record in manifest.live if record.epoch_complete]
    assert complete == list(range(len(complete)))
    return len(complete)


@contextlib.contextmanager
def one_line(match: str, caplog: pytest.LogCaptureFixture, *, what: str = "Training goes on") -> Iterator[None]:
    """Expect exactly one warning, of one line, both as a warning and in the log."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    lines = [str(one.message) for one in told if issubclass(one.category, RecordingWarning)]
    assert len(lines) == 1, lines
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == lines
    assert "\n" not in lines[0]
    assert match in lines[0], lines[0]
    assert what in lines[0]


# ---- disks


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of so many bytes; where nobody may mount one, a folder."""
    place.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def mount(*arguments: str) -> bool:
    """Return whether something could be mounted."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def fail_writes(monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[], bool]) -> None:
    """Let every write of the package fail with an error number while ``when`` says so."""
    for module in (bulk, files):
        for name in ("write_pieces", "write_file"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, failing(getattr(module, name), number, when))


def failing(write: Callable[..., Any], number: int, when: Callable[[], bool]) -> Callable[..., Any]:
    def call(path: Path, *arguments: Any, **named: Any) -> Any:
        if when():
            raise OSError(number, os.strerror(number), str(path))
        return write(path, *arguments, **named)

    return call


# ---- children


def live(folder: Path, way: str) -> None:
    """Train in this process, into ``folder/run``, until it ends in the given way; what is left says what happened."""
    made: list[Recorder] = []

    def make(model: nn.Module) -> Recorder:
        made.append(recorder_at(folder / "run")(model))
        return made[0]

    if way == "unclosed":
        recorder = make(make_model())
        recorder.__enter__()
        recorder.start()
        recorder.begin(1)
        recorder.epoch()
        return

    def fault(epoch: int, step: int) -> None:
        if way == "full" and (epoch, step) == (3, 0):
            made[0].flush()
            bulk.write_pieces = failing(bulk.write_pieces, errno.ENOSPC, lambda: True)
        if (epoch, step) != (3, 1):
            return
        if way.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, way.split()[0]))
        elif way == "raise":
            raise ZeroDivisionError("in the loop")
        elif way in ("exit", "flush and exit"):
            if way != "exit":
                made[0].flush()
            os._exit(7)
        elif way.startswith("fork"):
            child = os.fork()
            if child == 0 and way == "fork and unwind":
                sys.exit(3)
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (3 if "unwind" in way else 0)
            # "fork and train": the child trains on to the end, with a recorder that records nothing there.

    weights, _ = train(make if way != "SIGINT alone" else None, fault)
    with (folder / "weights").open("ab") as file:
        file.write(weights)


def main() -> None:
    """Fork a child per line of standard input, ``{"folder": ..., "way": ...}``; answer with its exit code."""
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(f"{job['folder']}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
            live(Path(job["folder"]), job["way"])
            return  # through the end of the interpreter, as any script
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
