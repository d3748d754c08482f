"""One operation in a process of its own: how much memory it takes, and whether it ends within limits.

``python -m benchmarks.limited MODULE:FUNCTION ARGUMENTS`` calls the function with the JSON list of arguments; what it
returns is called once and timed. The parent watches.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from .timing import timed


@dataclass(frozen=True)
class Outcome:
    """Seconds and bytes beyond the input; or, where it did not end, which limit it ran into."""

    seconds: float | str
    memory: int


def limited(
    function: str, *arguments: object, cpu_seconds: float = 600, memory: int = 8 << 30, threads: int = 1
) -> Outcome:
    """Run ``MODULE:FUNCTION`` in a fresh process with a limit on processor time and on memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.limited", function, json.dumps(arguments), str(cpu_seconds)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = 0
    while child.poll() is None:
        most = max(most, resident(child.pid))
        if most > memory:
            child.kill()
            child.communicate()
            return Outcome(f"over {memory >> 30} GB", most)
        time.sleep(0.02)
    output, errors = child.communicate()
    if child.returncode != 0:
        # SIGXCPU: the limit on processor time.
        if child.returncode in (-24, -9):
            return Outcome(f"over {cpu_seconds:.0f} s", most)
        raise RuntimeError(f"{function}{arguments} failed: {errors.strip().splitlines()[-1:]}")
    found = json.loads(output.splitlines()[-1])
    return Outcome(found["seconds"], found["memory"])


def remembered(function: str, *arguments: object, cpu_seconds: float = 600, memory: int = 8 << 30) -> Outcome:
    """As `limited`, for peers that take minutes: what ran into a limit on this machine is not run again.

    Outcomes lie in ``.benchmark-limits.json`` in the working directory, keyed by the call, the limits and the versions
    of all that is installed; delete it to measure anew.
    """
    store = Path(".benchmark-limits.json")
    installed = sorted(f"{item.name}=={item.version}" for item in distributions() if item.name != "dynome")
    described = json.dumps([function, arguments, cpu_seconds, memory, installed])
    key = f"{function} {arguments} {hashlib.sha256(described.encode()).hexdigest()[:16]}"
    known = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    if key not in known:
        outcome = limited(function, *arguments, cpu_seconds=cpu_seconds, memory=memory)
        if not isinstance(outcome.seconds, str):
            return outcome
        known = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
        known[key] = [outcome.seconds, outcome.memory]
        store.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return Outcome(*known[key])


def resident(process: int, key: str = "VmRSS:") -> int:
    """Return the resident bytes of a process; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main() -> None:
    """Prepare, then measure one call."""
    module, _, name = sys.argv[1].partition(":")
    operation = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime)
    limit = spent + int(float(sys.argv[3])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of the preparation
    before = resident(os.getpid())
    seconds = timed(operation)
    print(json.dumps({"seconds": seconds, "memory": max(0, resident(os.getpid(), "VmHWM:") - before)}))


if __name__ == "__main__":
    main()
