"""Committing a snapshot, against plain files made as durable: ``np.save``, a checksum, fsync."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from recordings import describe

from dynome_recorder.storage.writer import Moment, RecordingWriter

from .recording_arms import save_durably
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

NOTE = """\
The writer alone, in the calling thread: two sites, from arrays in memory to a commit that survives a crash. ReLU: half
of the values are zero. The bare write is the same bytes in one file, then fsync, without a checksum. Every arm writes
files of new names, as whoever keeps every snapshot does; writing over a file that is there takes half as long."""
SAMPLES = 1000
MEBIBYTES = (0.1, 1.0, 8.0, 32.0)
SITES = ("hidden1", "hidden2")
SECONDS = 2.5


def values(kind: str, samples: int, units: int) -> NDArray[np.float32]:
    """Independent normal values; of ``ReLU`` the negative ones are zero."""
    dense = np.random.default_rng(0).standard_normal((samples, units), dtype=np.float32)
    return np.maximum(dense, 0) if kind == "ReLU" else dense


def save_all(folder: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    """Write each array durably, to a new folder."""
    folder.mkdir()
    for name, array in arrays.items():
        save_durably(folder / f"{name}.npy", array)


def write_bare(path: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    """Write the values and wait for the disk."""
    with path.open("wb") as file:
        for array in arrays.values():
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def measure(kind: str, folder: Path, *, samples: int, units: int, seconds: float = SECONDS) -> Row:
    """Commit two sites over and over."""
    arrays = {site: values(kind, samples, units) for site in SITES}
    size = sum(array.nbytes for array in arrays.values())
    epochs, folders, files = itertools.count(), itertools.count(), itertools.count()
    description = describe(dict.fromkeys(arrays, units), samples=samples, weights=False)
    with RecordingWriter.open(folder / "recording", description) as writer:
        found = interleaved(
            {
                "ours": lambda: writer.commit(Moment(epoch=next(epochs), step=0, probe=arrays)),
                "np.save, fsync, crc32c": lambda: save_all(folder / f"saved-{next(folders)}", arrays),
                "a bare write, fsync": lambda: write_bare(folder / f"bare-{next(files)}", arrays),
            },
            seconds=seconds,
        )
    rates = {arm: value if isinstance(value, str) else size / value for arm, value in found.items()}
    label = f"{arrays[SITES[0]].nbytes / 2**20:.3g} MiB per site"
    return Row(f"commit of a snapshot, {kind}", label, rates, unit="MB/s")


def rows() -> Iterator[Row]:
    """Measure small and large snapshots, each in a folder of its own below the working directory (not a tmpfs)."""
    for kind in ("ReLU", "dense"):
        for size in MEBIBYTES:
            units = max(1, round(size * 2**20 / (4 * SAMPLES) / 8)) * 8
            with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
                yield measure(kind, Path(folder), samples=SAMPLES, units=units)
