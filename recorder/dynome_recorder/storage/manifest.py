"""Reading what a recording holds: the committed part, as the log says it, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError
from dynome_recorder.storage.commits import read_log
from dynome_recorder.storage.files import check_file
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER, Json, decode_number
from dynome_recorder.storage.publish import check_published, read_published, stream_of
from dynome_recorder.storage.records import COMMITTED, GAP, CommitRecord, LogState, replay_log
from dynome_recorder.storage.run import layouts, parts, read_run
from dynome_recorder.storage.store import CommittedArray

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from dynome_recorder.storage.layout import BulkLayout

__all__ = ["Manifest", "read_manifest"]


@dataclass(frozen=True)
class Manifest:
    """What a recording held when it was read. It does not change when more is recorded; read it again for that.

    Attributes
    ----------
    path
        The recording's folder.
    run
        Content of ``run.json``.
    state
        What the commit log says.
    """

    path: Path
    run: Mapping[str, Json]
    state: LogState

    @property
    def records(self) -> tuple[CommitRecord, ...]:
        """Every record of the log, superseded ones, rewinds and repairs too."""
        return self.state.records

    @property
    def live(self) -> tuple[CommitRecord, ...]:
        """The moments that no rewind left behind, in the order of recording."""
        return self.state.live

    @property
    def run_id(self) -> str:
        """Identity of the run, 32 hexadecimal digits."""
        return str(self.run["run_id"])

    @property
    def digest(self) -> str:
        """Text that changes whenever anything is committed (or repaired): run id and checksum of the last record."""
        last = self.records[-1].checksum if self.records else "empty"
        return f"{self.run_id}-{len(self.records)}-{last}"

    @property
    def sites(self) -> dict[str, dict[str, Json]]:
        """Per site, in the model's order: path, shape [sample, unit], dtype, dimensions, attributes."""
        return dict(self.run["fingerprint"]["sites"])

    @property
    def weights(self) -> dict[str, dict[str, Json]]:
        """Per recorded parameter: path, shape, dtype, dimensions, attributes. Empty where no weights were recorded."""
        return dict(self.run["fingerprint"]["weights"])

    @property
    def batches(self) -> dict[str, dict[str, Json]]:
        """Per site that is recorded of training batches: the same. Empty where batches were not recorded."""
        return dict(self.run["fingerprint"].get("batches", {}))

    @property
    def gradients(self) -> dict[str, dict[str, Json]]:
        """Per site whose gradient is recorded of training batches: the same."""
        return dict(self.run["fingerprint"].get("gradients", {}))

    def batch_rows(self, record: CommitRecord) -> NDArray[np.bool_]:
        """Return which samples of a recorded batch are there, shape (sample,): a smaller batch fills less than all.

        Samples of one rank lie together; those of the next begin at the next multiple of the batch size.
        """
        size = int(self.run["fingerprint"].get("batch_size", 0))
        there = np.zeros(size * parts(self.run), dtype=np.bool_)
        for part, samples in enumerate(record.samples):
            there[part * size : part * size + samples] = True
        return there

    @cached_property
    def layouts(self) -> dict[str, BulkLayout]:
        """Layout of every bulk array, by path below ``store.zarr``."""
        return layouts(self.run)

    def snapshots(self, stream: str) -> tuple[tuple[CommitRecord, int], ...]:
        """Return record and snapshot index of what a stream holds: neither superseded nor lost, in order.

        Parameters
        ----------
        stream
            "probe", "weights" or "batches".
        """
        if stream not in self.state.status:
            raise InvalidArgumentError(f"stream {stream!r} is unknown; use one of {', '.join(self.state.status)}.")
        status, owners = self.state.status[stream], self.state.owners[stream]
        return tuple((owners[index], index) for index, value in enumerate(status) if value == COMMITTED)

    def gaps(self, stream: str) -> tuple[int, ...]:
        """Return the indices of the snapshots of a stream that were due and left out, or committed and then lost."""
        return tuple(index for index, value in enumerate(self.state.status[stream]) if value == GAP)

    def array(self, path: str) -> CommittedArray:
        """Open a bulk array, with the committed length.

        Parameters
        ----------
        path
            Path below ``store.zarr``, as in ``manifest.sites[site]["path"]``.

        Returns
        -------
        CommittedArray
            Shape (snapshot, ...), lazy. A missing or damaged chunk raises CorruptRecordingError when it is read, and
            never reads as fill value. Rows of superseded snapshots are there; those of gaps must not be read.
        """
        path = path.strip("/")
        if path not in self.layouts:
            raise InvalidArgumentError(f"{self.path}: has no array {path!r}; it has {', '.join(self.layouts)}.")
        prefix = path + "/"
        return CommittedArray(
            (self.path / STORE_FOLDER).absolute(),
            self.layouts[path],
            length=len(self.state.status[stream_of(path)]),
            files={name: entry for name, entry in self.state.files.items() if name.startswith(prefix)},
        )

    def epoch_metrics(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return per metric the epochs it was given for, and its values (NaN only where NaN was given)."""
        series: dict[str, dict[int, float]] = {}
        for record in self.live:
            for name, value in record.metrics.get("epoch", {}).items():
                series.setdefault(name, {})[record.epoch] = decode_number(value)
        return _arrays(series)

    def step_metrics(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return per metric the steps it was given for, and its values (NaN only where NaN was given)."""
        series: dict[str, dict[int, float]] = {}
        for record in self.live:
            for name, entry in record.metrics.get("step", {}).items():
                values = series.setdefault(name, {})
                values.update((int(s), decode_number(v)) for s, v in zip(entry["step"], entry["value"], strict=True))
        return _arrays(series)

    def check_files(self, paths: Iterable[str] | None = None, *, deep: bool = False) -> None:
        """Check the size (`deep`: the crc32 too, which reads everything) of committed files.

        Parameters
        ----------
        paths
            Files or arrays below ``store.zarr``; None for all.

        Raises
        ------
        CorruptRecordingError
            A file is missing, truncated or damaged; the message names it.
        """
        files = self.state.files
        if paths is not None:
            wanted = tuple(path.strip("/") for path in paths)
            files = {
                name: entry for name, entry in files.items() if name in wanted or name.rpartition("/")[0] in wanted
            }
        store = self.path / STORE_FOLDER
        for name, (size, checksum) in files.items():
            check_file(store / name, size=size, checksum=checksum if deep else None)


def _arrays(series: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return each series as two arrays in order of its keys."""
    return {
        name: (
            np.array(sorted(values), dtype=np.int64),
            np.array([values[key] for key in sorted(values)], dtype=np.float64),
        )
        for name, values in series.items()
    }


def read_manifest(path: str | os.PathLike[str], *, check: bool = True) -> Manifest:
    """Read what a recording holds.

    Parameters
    ----------
    path
        The recording's folder.
    check
        Also check that every committed file is there with its size (one ``stat`` per file).

    Returns
    -------
    Manifest
        The committed part, also of a run that is being recorded or was killed.

    Raises
    ------
    RecordingNotFoundError
        There is no recording.
    CorruptRecordingError
        Something stored is missing, truncated or damaged; the message names the file.
    UnsupportedVersionError
        A format that this version does not know.
    """
    folder = Path(path)
    run = read_run(folder)
    published = read_published(folder)  # before the log: a recorder commits first and publishes later
    manifest = Manifest(path=folder, run=run, state=committed_state(folder, run))
    if check:
        check_published(folder, published, manifest.state)
        manifest.check_files()
    return manifest


def committed_state(folder: Path, run: Mapping[str, Json]) -> LogState:
    """Read the log and hold it against ``run.json``.

    Raises
    ------
    CorruptRecordingError
        The log is damaged, or does not fit the run.
    """
    state = replay_log(read_log(folder / COMMITS_FOLDER))
    check_fit(folder, run, state)
    return state


def check_fit(folder: Path, run: Mapping[str, Json], state: LogState) -> None:
    """Raise CorruptRecordingError unless each snapshot of a log has its index and exactly the files of its arrays."""
    arrays = layouts(run)
    sites = run["fingerprint"]["sites"]
    batch_size = int(run["fingerprint"].get("batch_size", 0))
    counts: dict[str, int] = {}
    for record in state.records:
        where = f"{folder / COMMITS_FOLDER}: record {record.sequence}"
        expected: set[str] = set()
        optional: set[str] = set()
        for stream, index in record.snapshots.items():
            if index != counts.get(stream, 0):
                raise CorruptRecordingError(f"{where} has {stream} snapshot {index}, not {counts.get(stream, 0)}.")
            counts[stream] = index + 1
            whole = {
                (part, layout.file(index, part))
                for path, layout in arrays.items()
                if stream_of(path) == stream
                for part in range(layout.parts)
            }
            if record.kind != "moment":
                continue
            if stream in record.missing_streams:
                optional |= {name for _, name in whole}  # what the other ranks wrote of it
            elif stream == "batches":  # a rank without samples has no file
                expected |= {name for part, name in whole if part < len(record.samples) and record.samples[part]}
            else:
                expected |= {name for _, name in whole}
        if any(count > batch_size for count in record.samples):
            raise CorruptRecordingError(f"{where} does not fit run.json (a batch of {max(record.samples)} samples).")
        if any(".." in name.split("/") or name.startswith("/") for name in record.files):
            raise CorruptRecordingError(f"{where} names a file outside the store.")
        # Files of a stream that only a newer minor version knows are its own matter.
        known = {name for name in record.files if stream_of(name) in state.status} - optional
        if known != expected:
            raise CorruptRecordingError(f"{where} does not fit run.json ({sorted(known ^ expected)[0]}).")
        batches = run["fingerprint"].get("batches", {})
        if unknown := (record.health.keys() - sites.keys()) | (record.batch_health.keys() - batches.keys()):
            raise CorruptRecordingError(f"{where} does not fit run.json (site {sorted(unknown)[0]!r}).")
