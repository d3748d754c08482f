"""One way of recording in a process of its own, so that arms take turns but share neither memory nor patched libraries.

``python -m benchmarks.recording_worker`` answers a JSON line per line of commands; `Worker` is the other end. TorchLens
and nnsight change torch for the whole process: beside them no arm would be itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .limited import resident
from .timing import timed

PATIENCE = 60.0
"""Seconds that a command may take before its arm is left out."""
KEPT = 4
"""So many snapshots are kept in memory, to compare with what is read back."""


class ArmError(Exception):
    """An arm failed or took too long; the text is what the table shows."""


class Worker:
    """A process for one arm. Every command may raise `ArmError`, and none is answered after that."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        module = [sys.executable, "-m", "benchmarks.recording_worker"]
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            module,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def ask(self, command: str, *arguments: object) -> Any:
        """Run one command of the `Session` and return its answer; "open" with the session's arguments comes first."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died: what it last said is told below
            self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
            self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.stop()
            raise ArmError(f"over {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise ArmError(f"fails: {last[:90]}".replace("|", "/"))
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


class Session:
    """What the process does on command."""

    def __init__(self, arm: str, model: str, pictures: Path, folder: Path, device: str) -> None:
        import torch

        from .recording_arms import ARMS, by_hooks
        from .recording_models import subject

        with np.load(pictures) as data:
            self.subject = subject(model, data["images"], data["labels"], device=device)
        self.by_hooks, self.folder = by_hooks, folder
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.subject.train(20)
        for _ in range(3):
            self.subject.forward()  # threads and scratch memory of the pass belong to no arm
        self.before = resident(os.getpid())
        self.arm = ARMS[arm][0](self.subject, folder)
        self.count = 0
        self.kept: dict[int, dict[str, np.ndarray]] = {}

    def remember(self, count: int, seconds: float) -> dict[str, int]:
        """Record up to ``count`` snapshots within a time; returns resident bytes above the start, and how many."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        start, early = time.perf_counter(), 0
        for done in range(1, count + 1):
            self.arm.snapshot()
            self.arm.finish()
            self.count += 1
            if done == max(1, count // 5):
                early = self.above("VmRSS:")
            if time.perf_counter() - start > seconds and early:
                break
        return {"snapshots": done, "early": early, "late": self.above("VmRSS:"), "peak": self.above("VmHWM:")}

    def above(self, key: str) -> int:
        """Resident bytes of this process, above those before the arm was opened."""
        return resident(os.getpid(), key) - self.before

    def block(self, count: int) -> float:
        """Train a step (not counted), then return seconds per snapshot until all of them are written."""
        self.prepare(count)
        start = time.perf_counter()
        for _ in range(count):
            self.arm.snapshot()
        self.arm.finish()
        self.synchronize()
        self.count += count
        return (time.perf_counter() - start) / count

    def blocked(self, count: int) -> list[float]:
        """Return the seconds of each snapshot in the training thread; what is left to other threads is waited for."""
        self.prepare(count)
        seconds = []
        for _ in range(count):
            seconds.append(timed(self.arm.snapshot))
            self.arm.finish()
            self.synchronize()
        self.count += count
        return seconds

    def prepare(self, count: int) -> None:
        """Move the model on and keep what the first and the last of the next snapshots must hold."""
        self.subject.train(1)
        self.kept[self.count] = self.kept[self.count + count - 1] = self.by_hooks(self.subject)
        while len(self.kept) > KEPT:
            self.kept.pop(next(iter(self.kept)))
        self.synchronize()

    def close(self) -> float:
        """Close the arm; returns bytes on disk per snapshot."""
        self.arm.close()
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) / max(1, self.count)

    def read(self, times: int) -> list[float]:
        """Check that kept snapshots are read back equal, then return the seconds of reading one."""
        for index, activations in self.kept.items():
            found = self.arm.read(index)
            assert found.keys() == activations.keys()
            for site, array in activations.items():
                if not np.array_equal(np.asarray(found[site]), array):
                    raise AssertionError(f"{site} of snapshot {index} is read back differently")
        last = next(reversed(self.kept))
        return [timed(lambda: self.arm.read(last)) for _ in range(times)]


def main() -> None:
    """Open a session on the first line, then answer a command per line until standard input ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        from . import recording_arms  # noqa: F401  torch loads while other processes start; models wait for their turn

        session = None
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            if session is None:
                arm, model, pictures, folder, device = arguments
                session, answer = Session(arm, model, Path(pictures), Path(folder), device), True
            else:
                answer = getattr(session, command)(*arguments)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
