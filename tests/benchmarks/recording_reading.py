"""Reading a recording back: a few units over all snapshots, one whole snapshot; from memory and from the disk."""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

import dynome_analysis as dya
from dynome_recorder import Recorder
from dynome_recorder.storage.format import STORE_FOLDER

from .recording_arms import activation_path, probe_of
from .recording_models import pictures, subject
from .timing import Row, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
40 snapshots of 4096 (or 128) samples x 1024 units of a network in training, recorded once by ours and kept in two plain
ways: Zarr's defaults with a chunk per snapshot, and `np.save` files opened with `mmap_mode`, which are not compressed
and check nothing. Every time is from the folder's name to the values in memory: ours reads and checks the commit log
and the size of every file, and decodes what it reads to float32; by plain Zarr it is read without the log, as stored.
The smallest unit of reading is an inner chunk near 1 MiB: of 4096 samples 64 units of float32 or 128 of float16, so
that 64 units of float16 decode twice as many; 128 samples of all units are one chunk. From the disk: the system was
told to forget the files first, as after training on another day."""
SNAPSHOTS, SAMPLES, FEW_SAMPLES, UNITS, CHOSEN = 40, 4096, 128, 1024, 64
ROUNDS = 7
MODEL = "MLP, 1 x 1024"


class Copies:
    """The same snapshots in every way, under one folder."""

    def __init__(self, folder: Path, *, snapshots: int, samples: int, dtype: str) -> None:
        images, labels, _ = pictures(samples)
        self.folder, self.snapshots = folder, snapshots
        self.recording, self.zarr, self.files = folder / "recording", folder / "plain.zarr", folder / "files"
        self.files.mkdir(parents=True)
        trained = subject(MODEL, images, labels)
        (self.site,) = trained.sites
        probe = probe_of(trained.inputs)
        recorder = Recorder(self.recording, trained.model, sites=[self.site], probe=probe, dtype=dtype, strict=True)
        with recorder:
            for _ in recorder.epochs(snapshots - 1):
                trained.train(2)
                recorder.epoch()
        recorded = self.recorded()
        plain = zarr.create_array(
            self.zarr, shape=recorded.shape, chunks=(1, *recorded.shape[1:]), dtype=recorded.dtype
        )
        for index in range(snapshots):
            snapshot = recorded[index]
            assert np.any(snapshot)
            plain[index] = snapshot
            np.save(self.files / f"{index:06}.npy", snapshot)

    def recorded(self) -> Any:
        """Our array, as any reader of Zarr opens it."""
        return zarr.open_group(self.recording / STORE_FOLDER, mode="r")[activation_path(self.site)]

    def mapped(self, rows: slice, units: slice) -> NDArray[Any]:
        """Snapshots of the ``np.save`` files."""
        paths = sorted(self.files.iterdir())[rows]
        return np.stack([np.load(path, mmap_mode="r")[:, units] for path in paths])

    def ways(self, rows: slice, units: slice) -> dict[str, Callable[[], NDArray[Any]]]:
        """Every way to read (snapshot, sample, unit)."""
        return {
            "ours": lambda: dya.open_recording(self.recording).activations()[rows, :, units].to_numpy(),
            "ours, by plain Zarr": lambda: self.recorded()[rows, :, units],
            "zarr, chunk per snapshot": lambda: zarr.open_array(self.zarr, mode="r")[rows, :, units],
            "np.save files, mmap": lambda: self.mapped(rows, units),
        }

    def forget(self) -> None:
        """Write everything to the disk, and ask the system to keep none of it in memory."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    def sizes(self) -> dict[str, float | str]:
        """Bytes of each way."""
        return {
            name: float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            for name, folder in (
                ("ours", self.recording),
                ("zarr, chunk per snapshot", self.zarr),
                ("np.save files, mmap", self.files),
            )
        }


def measure(copies: Copies, rows: slice, units: slice, *, cold: bool, rounds: int = ROUNDS) -> dict[str, float | str]:
    """Return the median seconds of every way, in turns, after comparing what they read."""
    ways = copies.ways(rows, units)
    wanted = ways["ours"]()
    for name, way in ways.items():
        np.testing.assert_array_equal(way(), wanted, err_msg=name)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if cold:
                copies.forget()
            times[name].append(timed(way))
    return {name: statistics.median(values) for name, values in times.items()}


def rows(*, snapshots: int = SNAPSHOTS, samples: int = SAMPLES, rounds: int = ROUNDS) -> Iterator[Row]:
    """Measure both dtypes and small snapshots, in a folder below the working directory (not a tmpfs)."""
    few = min(samples, FEW_SAMPLES)
    for size, dtype, count in (
        ("float32", "float32", samples),
        ("float16", "float16", samples),
        (f"float32, {few} samples", "float32", few),
    ):
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
            copies = Copies(Path(folder), snapshots=snapshots, samples=count, dtype=dtype)
            middle = snapshots // 2
            for cold, place in ((False, "from memory"), (True, "from the disk")):
                read = partial(measure, copies, cold=cold, rounds=rounds)
                units = slice(UNITS // 2, UNITS // 2 + CHOSEN)
                yield Row(f"{CHOSEN} units over all snapshots, {place}", size, read(slice(None), units))
                yield Row(f"one snapshot, {place}", size, read(slice(middle, middle + 1), slice(None)))
            yield Row("on disk", size, copies.sizes(), unit="MiB")
