"""Recording a probe's activations, against the ways people do it now: same model, same samples, same sites."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .recording_arms import ARMS, BARE_FORWARD, is_installed, title
from .recording_models import MODELS, SAMPLES, pictures
from .recording_worker import ArmError, Worker
from .timing import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOTE = f"""\
{SAMPLES} samples in one pass, float32, the outputs of all activation functions averaged over space or tokens. Each arm
has a process of its own; they take turns. End to end: ten snapshots back to back until the last is where the arm leaves
it (ours and the durable arm: on disk, synced, with checksums; the others: handed to the operating system), the forward
pass included. Blocked: the time of one snapshot in the training thread, the forward pass included, given apart in the
last line. Peak: resident memory above the model's over 100 snapshots (fewer where they take over 8 s), and how much of
it came after the first fifth. Reading: from the folder's name to the arrays of one snapshot, in the page cache; a
checkpoint has to run the model. What is read is compared with what hooks saw, bit by bit."""
SNAPSHOTS = 100
REMEMBERING_SECONDS = 8.0
ROUNDS = 5
ROUNDS_SECONDS = 30.0  # no round begins after them, but there are two
BLOCK = 10
READINGS = 9
MEASURES = ("end to end", "blocked", "reading", "size", "peak", "growth")


def measure(
    name: str,
    folder: Path,
    *,
    device: str = "cpu",
    samples: int = SAMPLES,
    snapshots: int = SNAPSHOTS,
    rounds: int = ROUNDS,
    block: int = BLOCK,
    arms: Sequence[str] = tuple(ARMS),
) -> dict[str, dict[str, float | str]]:
    """Let all arms record one model in turn; returns the measures per arm, or a text where an arm failed.

    An arm that is not installed, fails, or reads back other values than hooks saw, says so under every measure.
    """
    images, labels, _ = pictures(samples)
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    failures = {arm: "not installed" for arm in arms if not is_installed(arm)}
    workers = {arm: Worker() for arm in arms if arm not in failures}
    found: dict[str, dict[str, list[Any]]] = {arm: {} for arm in arms}

    def ask(arm: str, measure: str, command: str, *arguments: object) -> None:
        if arm in failures:
            return
        try:
            answer = workers[arm].ask(command, *arguments)
        except ArmError as error:
            failures[arm] = str(error)
        else:
            found[arm].setdefault(measure, []).extend(answer if isinstance(answer, list) else [answer])

    try:
        for number, arm in enumerate(arms):
            own = folder / str(number)
            own.mkdir()
            ask(arm, "opened", "open", arm, name, str(folder / "pictures.npz"), str(own), device)
        for arm in arms:
            ask(arm, "memory", "remember", snapshots, REMEMBERING_SECONDS)
        start = time.perf_counter()
        for done in range(rounds):
            if done >= 2 and time.perf_counter() - start > ROUNDS_SECONDS:
                break
            for arm in arms:
                ask(arm, "end to end", "block", block)
                ask(arm, "blocked", "blocked", max(1, block // 2))
        for arm in arms:
            ask(arm, "size", "close")
        for arm in arms:
            if arm != BARE_FORWARD:
                ask(arm, "reading", "read", READINGS)
    finally:
        for worker in workers.values():
            worker.stop()
    return {measure: {arm: failures.get(arm) or summary(found[arm], measure) for arm in arms} for measure in MEASURES}


def summary(found: dict[str, list[Any]], measure: str) -> float | str:
    """Return one number per measure; an empty text where the arm has none."""
    if measure in ("peak", "growth"):
        memory = found["memory"][0]
        return float(memory["peak"] if measure == "peak" else memory["late"] - memory["early"])
    return statistics.median(found[measure]) if measure in found else ""


def rows(*, device: str = "cpu") -> Iterator[Row]:
    """Measure every model, in folders below the working directory (not a tmpfs)."""
    for name in MODELS:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
            measures = measure(name, Path(folder), device=device)
        titled = {measure: {title(arm): value for arm, value in arms.items()} for measure, arms in measures.items()}
        yield Row("a snapshot, end to end", name, titled["end to end"])
        yield Row("training thread blocked per snapshot", name, titled["blocked"])
        stored = {measure: _without_forward(titled[measure]) for measure in ("reading", "size", "peak", "growth")}
        yield Row("reading one snapshot", name, stored["reading"])
        yield Row("on disk per snapshot", name, stored["size"], unit="MiB")
        yield Row(f"peak memory over {SNAPSHOTS} snapshots", name, stored["peak"], unit="MiB")
        grown = {arm: v if isinstance(v, str) else f"{v / 2**20:+.1f}" for arm, v in stored["growth"].items()}
        yield Row("memory added by the last four fifths of them, MiB", name, grown, unit="")


def _without_forward(values: dict[str, float | str]) -> dict[str, float | str]:
    return {arm: value for arm, value in values.items() if arm != BARE_FORWARD}
