"""Committing a snapshot, against plain files made as durable: ``np.save``, a checksum, fsync."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from recordings import describe

from dynome_recorder.storage.writer import Moment, RecordingWriter

from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def save_durably(folder: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    """Write each array with ``np.save``, checksum its bytes, and wait for the disk."""
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        google_crc32c.value(array.tobytes())


def measure(folder: Path, samples: int, units: int) -> Row:
    """Commit two sites, half of the values zero, as after a ReLU."""
    generator = np.random.default_rng(0)
    arrays = {
        site: np.maximum(generator.standard_normal((samples, units)), 0).astype(np.float32)
        for site in ("hidden1", "hidden2")
    }
    plain = folder / "plain"
    plain.mkdir()
    epochs = itertools.count()
    description = describe(dict.fromkeys(arrays, units), samples=samples, weights=False)
    with RecordingWriter.open(folder / "recording", description) as writer:
        seconds = interleaved(
            {
                "ours": lambda: writer.commit(Moment(epoch=next(epochs), step=0, probe=arrays)),
                "np.save, crc32c, fsync": lambda: save_durably(plain, arrays),
            }
        )
        return Row("commit of a snapshot", f"2 sites of {samples} x {units} float32", seconds)


def rows() -> Iterator[Row]:
    """Measure small and large snapshots, each in a folder of its own below the working directory (not a tmpfs)."""
    for samples, units in ((500, 64), (1000, 256), (2048, 1024)):
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
            yield measure(Path(folder), samples, units)
