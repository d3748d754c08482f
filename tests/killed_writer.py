"""Processes that record until they are killed, and what they record.

The content of a moment follows from its epoch, rank and number of ranks alone: who looks knows what a row must hold.
``python killed_writer.py`` is a nursery: it has imported everything, and forks one recording process for each
line of JSON that it reads, so that a campaign kills a process a second and not one in five. With RUN and SEED given it
is one such process itself.

A recording process writes lines to a file of its own: ``start EPOCH`` when it goes on after an epoch, ``submit EPOCH
HELD`` when it has handed a moment over (HELD: whether it holds a buffer), ``commit EPOCH`` when that is acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from dynome_recorder.background import BackgroundWriter, Pending
from dynome_recorder.errors import RecordingLockedError
from dynome_recorder.storage.run import share_of
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription

SAMPLES = 20
UNITS = {"small": 7, "wide": 40_000}
BATCH = 4
BATCH_UNITS = {"small": 7, "tokens": 3}
ROWS_PER_SAMPLE = {"small": 1, "tokens": 2}
QUEUE = 3
"""Moments that the bounded queue of a recording process holds."""


def describe(mode: str, parts: int) -> RunDescription:
    """Return what a mode ("single", "batches", "skip", "ranks") records."""
    rows = None if parts == 1 else -(-SAMPLES // parts)
    batches = {
        site: ArraySpec(
            (BATCH * parts * ROWS_PER_SAMPLE[site], units),
            "float32",
            ("sample" if ROWS_PER_SAMPLE[site] == 1 else "row", "unit"),
            rows=BATCH * ROWS_PER_SAMPLE[site],
        )
        for site, units in BATCH_UNITS.items()
    }
    return RunDescription(
        sites={
            site: ArraySpec((SAMPLES, units), "float32", ("sample", "unit"), rows=rows) for site, units in UNITS.items()
        },
        weights={"w": ArraySpec((5, 3), "bfloat16", ("output", "input"))},
        batches={} if mode == "single" else batches,
        gradients={} if mode == "single" else batches,
        batch_size=None if mode == "single" else BATCH,
        parts=parts,
    )


def activations(epoch: int) -> dict[str, np.ndarray]:
    """Return what every site holds at an epoch; "wide" only in few distinct values."""
    rng = np.random.default_rng(epoch)
    wide = np.tile(rng.normal(size=(SAMPLES, 400)).astype(np.float32), 100)
    return {"small": rng.normal(size=(SAMPLES, UNITS["small"])).astype(np.float32), "wide": wide}


def weights(epoch: int) -> np.ndarray:
    """Return the bit patterns of the recorded weight at an epoch."""
    return np.random.default_rng(-epoch - 1 & 0xFFFF).integers(0, 2**16, size=(5, 3)).astype(np.uint16)


def batch_samples(epoch: int, rank: int) -> int:
    """Return how many samples a rank's batch has at an epoch; now and then none."""
    return (7 * epoch + 3 * rank) % (BATCH + 1)


def sample_ids(epoch: int, rank: int) -> np.ndarray:
    """Return the ids of a rank's samples."""
    return 1000 * epoch + 100 * rank + np.arange(batch_samples(epoch, rank))


def batch(epoch: int, rank: int, kind: str) -> dict[str, np.ndarray]:
    """Return a rank's "activation" or "gradient" of every site at an epoch."""
    rng = np.random.default_rng([epoch, rank, len(kind)])
    return {
        site: rng.normal(size=(batch_samples(epoch, rank) * ROWS_PER_SAMPLE[site], units)).astype(np.float32)
        for site, units in BATCH_UNITS.items()
    }


def whole_batch(epoch: int, world: int, parts: int, kind: str) -> dict[str, np.ndarray]:
    """Return what a reader must find of a batch at an epoch: each rank's part in its place, the rest NaN."""
    whole = {
        site: np.full((BATCH * parts * ROWS_PER_SAMPLE[site], units), np.nan, np.float32)
        for site, units in BATCH_UNITS.items()
    }
    for rank in range(min(world, parts)):
        for site, values in batch(epoch, rank, kind).items():
            start = rank * BATCH * ROWS_PER_SAMPLE[site]
            whole[site][start : start + len(values)] = values
    return whole


def due(mode: str, epoch: int) -> set[str]:
    """Return the streams that have a snapshot at an epoch."""
    streams = {"probe"} if epoch % 3 == 0 else set()
    streams |= {"weights"} if epoch % 2 == 0 else set()
    return streams | ({"batches"} if mode != "single" and epoch % 4 else set())


def moment(
    epoch: int, *, mode: str = "single", rank: int = 0, world: int = 1, parts: int = 1, skipped: tuple[str, ...] = ()
) -> Moment:
    """Return a rank's moment of an epoch."""
    streams = due(mode, epoch) - set(skipped)
    probe = None
    if "probe" in streams:
        rows = -(-SAMPLES // parts)
        share = share_of(rank, world, parts)
        cut = slice(share.start * rows, share.stop * rows)
        probe = {site: values[cut] for site, values in activations(epoch).items()} if share else {}
    has_batch = "batches" in streams
    samples = batch_samples(epoch, rank)
    return Moment(
        epoch=epoch,
        step=10 * epoch,
        parameters=f"hash-{epoch}",
        probe=probe,
        weights={"w": weights(epoch)} if "weights" in streams else None,
        batches=(batch(epoch, rank, "activation") if samples else {}) if has_batch else None,
        gradients=(batch(epoch, rank, "gradient") if samples else {}) if has_batch else None,
        sample_ids=sample_ids(epoch, rank) if has_batch and epoch % 5 else None,
        rows=samples if has_batch else 0,
        step_metrics={"loss": ([10 * epoch - 1, 10 * epoch], [epoch + 0.25, epoch + 0.5])},
        epoch_metrics={"accuracy": epoch / 1000},
        health={"small": {"nan": epoch}} if probe and epoch else {},
        batch_health={"tokens": {"inf": samples}} if has_batch else {},
        skipped=skipped,
    )


def record(job: dict[str, object], out: int) -> None:
    """Record until killed."""
    path, mode = Path(str(job["path"])), str(job["mode"])
    rank, world, parts = int(job["rank"]), int(job["world"]), int(job["parts"])  # type: ignore[call-overload]
    choices = random.Random(int(job["seed"]))  # type: ignore[call-overload]
    gate = Path(str(job["gate"]))  # where the ranks of one session meet
    interval = choices.choice([0.0, 0.02, 0.2])
    first, keep, last = None, None, None
    if rank:
        while not (gate / "0").exists():
            time.sleep(0.001)
        first, keep, last = json.loads((gate / "0").read_text())
    recording = RecordingWriter.open(
        path, describe(mode, parts), rank=rank, world=world, first_sequence=first, publish_interval=interval
    )
    if rank == 0:
        first, last = recording.next_sequence, recording.last_complete_epoch
        keep = recording.last.sequence if recording.last is not None else -1
        if last is not None and last > 20 and choices.random() < 0.5:
            last -= choices.randrange(1, 10)
            keep = next(one.sequence for one in reversed(recording.live) if one.epoch == last)
    (gate / f"{rank}.partial").write_text(json.dumps([first, keep, last]))
    (gate / f"{rank}.partial").rename(gate / str(rank))
    while not all((gate / str(other)).exists() for other in range(world)):
        time.sleep(0.001)
    recording.rewind_to(int(keep))  # type: ignore[call-overload]
    writer = BackgroundWriter(recording)
    buffers = threading.Semaphore(QUEUE)
    os.write(out, f"start {-1 if last is None else last}\n".encode())
    for epoch in range(0 if last is None else int(last) + 1, 100_000):  # type: ignore[call-overload]
        held = True
        if mode == "skip":
            held = buffers.acquire(blocking=False)
        else:
            buffers.acquire()
        skipped = () if held else tuple(sorted(due(mode, epoch)))

        def build(epoch: int = epoch, skipped: tuple[str, ...] = skipped) -> Moment:
            return moment(epoch, mode=mode, rank=rank, world=world, parts=parts, skipped=skipped)

        release = buffers.release if held else lambda: None
        writer.submit(Pending(epoch, 10 * epoch, True, build, release, nbytes=int(held)))
        os.write(out, f"submit {epoch} {int(held)}\n".encode())
        if mode == "skip":
            time.sleep(choices.random() * 0.004)
        if choices.random() < 0.3:
            writer.drain()
            if recording.wait_committed(recording.next_sequence - 1, 0.2):
                os.write(out, f"commit {epoch}\n".encode())


def main() -> None:
    """Fork a process for each line and print its process id; with RUN and SEED given, record there instead."""
    if len(sys.argv) == 3:
        job = {"path": sys.argv[1], "seed": sys.argv[2], "mode": "single", "rank": 0, "world": 1, "parts": 1}
        with tempfile.TemporaryDirectory() as gate:
            record({**job, "gate": gate}, 1)
    from numcodecs import zstd  # noqa: F401 - before the forks

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 2)
            try:
                record(job, out)
            except RecordingLockedError:
                os.write(out, b"locked\n")
            finally:
                os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    main()
