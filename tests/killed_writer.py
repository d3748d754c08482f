"""A process that records until it is killed: ``python killed_writer.py RUN SEED``.

The content of a moment follows from its epoch alone, so whoever looks knows what every row must hold. Each committed
epoch is acknowledged on standard output. From time to time a session goes back a few epochs first.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np

from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter, RunDescription

UNITS = {"small": 7, "wide": 40_000}
SAMPLES = 20
DESCRIPTION = RunDescription(
    sites={site: ArraySpec((SAMPLES, units), "float32", ("sample", "unit")) for site, units in UNITS.items()},
    weights={"w": ArraySpec((5, 3), "bfloat16", ("output", "input"))},
)


def activations(epoch: int) -> dict[str, np.ndarray]:
    """Return what every site holds at an epoch; "wide" (a shard of inner chunks) only in few distinct values."""
    rng = np.random.default_rng(epoch)
    wide = np.tile(rng.normal(size=(SAMPLES, 400)).astype(np.float32), 100)
    return {"small": rng.normal(size=(SAMPLES, UNITS["small"])).astype(np.float32), "wide": wide}


def weights(epoch: int) -> np.ndarray:
    """Return the bit patterns of the recorded weight at an epoch."""
    return np.random.default_rng(-epoch - 1 & 0xFFFF).integers(0, 2**16, size=(5, 3)).astype(np.uint16)


def moment(epoch: int) -> Moment:
    """Return the moment of an epoch; every third has a probe snapshot, every second weights."""
    return Moment(
        epoch=epoch,
        step=10 * epoch,
        parameters=f"hash-{epoch}",
        probe=activations(epoch) if epoch % 3 == 0 else None,
        weights={"w": weights(epoch)} if epoch % 2 == 0 else None,
        step_metrics={"loss": ([10 * epoch - 1, 10 * epoch], [epoch + 0.25, epoch + 0.5])},
        epoch_metrics={"accuracy": epoch / 1000},
    )


def main() -> None:
    """Record until killed."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    choices = random.Random(seed)
    with RecordingWriter.open(path, DESCRIPTION, publish_interval=choices.choice([0.0, 0.02, 0.2])) as recording:
        last = recording.last_complete_epoch
        if last is not None and last > 20 and choices.random() < 0.5:
            last -= choices.randrange(1, 10)
            recording.rewind(last)
        os.write(1, f"start {last}\n".encode())
        for epoch in range(0 if last is None else last + 1, 100_000):
            recording.commit(moment(epoch))
            os.write(1, f"{epoch}\n".encode())


if __name__ == "__main__":
    main()
