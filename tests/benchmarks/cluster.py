"""A whole analysis: two workers against one, memory of a worker for few and many snapshots, reading it again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from recordings import describe

import dynome_analysis as dya
from dynome_recorder.storage.writer import Moment, RecordingWriter

from .limited import resident
from .timing import Row, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = 2048
SAMPLES = 1000
SNAPSHOTS = 64
FEW_SNAPSHOTS = 16
FACTORS = 12


def record(folder: Path, snapshots: int, *, units: int = UNITS) -> Path:
    """Write a run whose ReLU units are driven by a few factors, which turn slowly from snapshot to snapshot."""
    generator = np.random.default_rng(0)
    drive = generator.standard_normal((SAMPLES, FACTORS))
    start, goal = generator.standard_normal((2, FACTORS, units))
    own = generator.standard_normal((SAMPLES, units))
    path = folder / f"run-{snapshots}"
    description = describe({"hidden": units}, samples=SAMPLES, dtype="float16", weights=False)
    with RecordingWriter.open(path, description) as writer:
        for epoch in range(snapshots):
            angle = 0.5 * np.pi * epoch / SNAPSHOTS
            hidden = np.maximum(drive @ (np.cos(angle) * start + np.sin(angle) * goal) + own, 0)
            writer.commit(Moment(epoch=epoch, step=epoch, probe={"hidden": hidden.astype(np.float16)}))
    return path


def seconds_on_threads(path: Path, workers: int, **options: Any) -> float:
    """Return how long the analysis takes on so many of Dask's threads."""
    recording = dya.open_recording(path)
    with dask.config.set(scheduler="threads", num_workers=workers):
        return timed(lambda: dya.analyze(recording, refresh=True, **options))


def seconds_in_processes(path: Path, workers: int, **options: Any) -> tuple[float, int]:
    """Return how long it takes in so many processes that are started and warm, and the peak memory of one in bytes."""
    from distributed import Client, LocalCluster

    recording = dya.open_recording(path)
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(dya.analyze, dya.open_recording(_small(path.parent)), **options)  # imports, and loads kernels
        before = client.run(_peak_memory)
        seconds = timed(lambda: dya.analyze(recording, refresh=True, **options))
        after = client.run(_peak_memory)
        return seconds, max(after[worker] - before[worker] for worker in after)


def rows(*, rounds: int = 2) -> Iterator[Row]:
    """Measure with and without H1; every arm in turn, the fastest of each counts."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
        many, few = record(Path(folder), SNAPSHOTS), record(Path(folder), FEW_SNAPSHOTS)
        size = f"{SNAPSHOTS} snapshots of {UNITS} units, {SAMPLES} samples"
        for name, options in (("without H1", {"engine": "none"}), ("with H1", {"engine": "dynome"})):
            threads: dict[str, list[float]] = {"two workers": [], "one worker": []}
            processes: dict[str, list[tuple[float, int]]] = {"two workers": [], "one worker": []}
            for _ in range(rounds if name == "without H1" else 1):
                for workers, arm in ((2, "two workers"), (1, "one worker")):
                    threads[arm].append(seconds_on_threads(many, workers, **options))
                    processes[arm].append(seconds_in_processes(many, workers, **options))
            yield Row(f"analysis {name}, threads", size, {arm: min(found) for arm, found in threads.items()})
            yield Row(
                f"analysis {name}, processes",
                size,
                {arm: min(found)[0] for arm, found in processes.items()},
                memory={arm: min(found)[1] for arm, found in processes.items()},
            )
        seconds, memory = seconds_in_processes(few, 2, engine="none")
        yield Row(
            "analysis without H1, processes",
            f"{FEW_SNAPSHOTS} snapshots of {UNITS} units, {SAMPLES} samples",
            {"two workers": seconds},
            memory={"two workers": memory},
        )
        recording = dya.open_recording(many)
        computed = min(found[0] for found in processes["two workers"])
        read = min(timed(lambda: dya.analyze(recording, engine="dynome")) for _ in range(3))
        yield Row("the same analysis again", size, {"read": read, "computed": computed})


def _small(folder: Path) -> Path:
    path = folder / "run-2"
    return path if path.exists() else record(folder, 2, units=64)


def _peak_memory() -> int:
    # Not getrusage: its peak begins with that of the process that started this one.
    return resident(os.getpid(), "VmHWM:")
