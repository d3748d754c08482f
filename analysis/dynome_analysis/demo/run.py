"""The demo from nothing to a report, or from wherever an earlier call of it was interrupted."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dynome_analysis.datasets import DatasetName, load_dataset
from dynome_analysis.demo.folder import open_demo_folder
from dynome_analysis.demo.settings import demo_settings
from dynome_analysis.demo.summary import encode_summary, summarize
from dynome_analysis.files import write_text
from dynome_recorder.errors import InvalidArgumentError, RecordingNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from dynome_analysis.compute import Progress
    from dynome_analysis.datasets import Dataset
    from dynome_analysis.demo.folder import DemoFolder
    from dynome_analysis.demo.settings import DemoSettings, RunSettings

__all__ = ["run_demo", "run_demo_with"]


def run_demo(
    out: str | os.PathLike[str] = "demo-output",
    *,
    dataset: str = "digits",
    quick: bool = False,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train, record, analyse, replay and predict on real data; write a summary and a report.

    Parameters
    ----------
    out : path
        Folder for the recordings (``runs/main``, ``runs/sweep-*``), ``summary.json`` and ``report.html``.
    dataset : {"digits", "mnist", "fashion-mnist"}
        What to train on.
    quick : bool
        Fewer epochs and runs, on the same way.
    seed : int
        Seed of everything, from 0.
    data_dir : path, optional
        Folder with the files of MNIST or Fashion-MNIST, see `load_dataset`.
    fresh : bool
        Delete what an earlier demo left in ``out`` and start over, instead of going on with it.
    progress : callable, optional
        Called as ``progress(description, done, total)``.
    tell : callable
        Called with a line for people: whether the demo starts, goes on, or reuses what is complete.

    Returns
    -------
    dict
        What ``summary.json`` holds, see `summarize`.

    Raises
    ------
    InvalidArgumentError
        Unknown data set, a seed that is negative or too large, or an ``out`` that is not the demo's to write.
    InvalidDataError, CorruptRecordingError, RecordingLockedError, StorageError
        A file that is missing, changed, in use, or cannot be written; each says which and the way out.

    Notes
    -----
    Measured on two cores: 25 s of computing (a minute beside other work), ``quick`` 12 s, 0.7 GB of memory at most.
    MNIST and Fashion-MNIST have ten times as many images and take minutes.
    """
    if dataset not in get_args(DatasetName):
        raise InvalidArgumentError(f"unknown data set {dataset!r}: choose one of {', '.join(get_args(DatasetName))}")
    if not 0 <= seed < 2**32:
        raise InvalidArgumentError(f"seed must be 0 or more, and less than 2^32; got {seed}")
    name: DatasetName = dataset  # type: ignore[assignment]  # checked above
    return run_demo_with(
        demo_settings(name, quick=quick, seed=seed), out, data_dir=data_dir, fresh=fresh, progress=progress, tell=tell
    )


def run_demo_with(
    settings: DemoSettings,
    out: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the demo with any settings; see `run_demo`."""
    report_progress = progress or _silent
    watch = _Stopwatch()
    with open_demo_folder(Path(out), settings, fresh=fresh) as folder:
        with watch("data"):
            data = load_dataset(
                settings.dataset,
                data_dir,
                train_size=settings.train_size,
                validation_size=settings.validation_size,
                seed=settings.seed,
            )
        with watch("training"):
            _train_all(settings, data, folder, fresh=fresh, progress=report_progress, tell=tell)
        summary = _conclude(settings, folder, watch, report_progress)
        write_text(folder.summary, encode_summary(summary))
    return summary


def _train_all(
    settings: DemoSettings,
    data: Dataset,
    folder: DemoFolder,
    *,
    fresh: bool,
    progress: Progress,
    tell: Callable[[str], None],
) -> None:
    runs = (settings.main, *settings.sweep)
    done = {run.name: _last_epoch(folder.recording(run.name)) for run in runs}
    open_runs = [run for run in runs if done[run.name] < run.epochs]
    tell(_state_of(folder, runs, done, fresh=fresh))
    if not open_runs:
        return
    from dynome_analysis.demo.training import TensorSplits, train  # late: a complete demo needs no torch

    tensors = TensorSplits(data)
    total = sum(run.epochs for run in runs)
    finished = sum(run.epochs for run in runs) - sum(run.epochs for run in open_runs)
    for run in open_runs:
        train(
            run,
            tensors,
            recording=folder.recording(run.name),
            checkpoints=folder.checkpoints(run.name),
            on_epoch=partial(_report_epoch, progress, finished, total),
        )
        finished += run.epochs
        shutil.rmtree(folder.checkpoints(run.name), ignore_errors=True)
    shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)


def _report_epoch(progress: Progress, before: int, total: int, epoch: int) -> None:
    progress("training", before + epoch, total)


def _last_epoch(recording: Path) -> int:
    """Return the last committed epoch of a recording, -1 where there is none."""
    from dynome_recorder.storage.manifest import read_manifest

    try:
        return max((record.epoch for record in read_manifest(recording).live if record.epoch_complete), default=-1)
    except RecordingNotFoundError:
        return -1


def _state_of(folder: DemoFolder, runs: Sequence[RunSettings], done: dict[str, int], *, fresh: bool) -> str:
    """Say what this call finds: nothing, a part, or everything."""
    complete = [run for run in runs if done[run.name] >= run.epochs]
    partial = [f"{run.name} at epoch {done[run.name]}" for run in runs if 0 <= done[run.name] < run.epochs]
    if len(complete) == len(runs):
        return f"complete: reused {len(runs)} recordings in {folder.path}"
    if complete or partial:
        where = ", ".join(partial) or f"run {len(complete) + 1}"
        return f"resumed {where}: reused {len(complete)} complete recordings of {len(runs)} in {folder.path}"
    return f"{'started over' if fresh else 'started'} in {folder.path}: {len(runs)} networks to train"


def _conclude(settings: DemoSettings, folder: DemoFolder, watch: _Stopwatch, progress: Progress) -> dict[str, Any]:
    """Analyse, replay, predict, and write the report."""
    from dynome_analysis.pipeline.analysis import analyze
    from dynome_analysis.prediction import predict_performance
    from dynome_analysis.recording import open_recording
    from dynome_analysis.replay import replay_learning_rate, replay_stopping
    from dynome_analysis.report import write_report

    main = open_recording(folder.recording(settings.main.name))
    sweep = [open_recording(folder.recording(run.name)) for run in settings.sweep]
    with watch("analysis"):
        analysis = analyze(main, progress=progress)
    with watch("replay"):
        stopping = replay_stopping(main, patience=settings.patience)
        learning_rate = replay_learning_rate(main)
    with watch("prediction"):
        prediction = predict_performance(
            sweep, epochs=settings.prediction_epochs, seed=settings.seed, progress=progress
        )
    with watch("report"):
        write_report([main], folder.report, prediction=prediction, patience=settings.patience)
    described = {
        "dataset": settings.dataset,
        "quick": settings.quick,
        "seed": settings.seed,
        "epochs": settings.main.epochs,
        "train_size": settings.train_size,
        "validation_size": settings.validation_size,
        "learning_rate": settings.main.learning_rate,
        "patience": settings.patience,
        "sweep_epochs": settings.sweep[0].epochs,
    }
    return summarize(analysis, stopping, learning_rate, prediction, settings=described, timings=watch.seconds())


@dataclass
class _Stopwatch:
    """Seconds by part of the work, and in total since it was made."""

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "total": time.perf_counter() - self._begin}


def _silent(description: str, done: int, total: int) -> None:
    """Report to nobody."""
