"""The commit log: the truth about what a recording holds.

One record per commit, each a sealed line of JSON that names the checksum of the record before it. A record in
``commits/00000012.json`` is committed by one rename. Whole blocks of :data:`SEGMENT_LENGTH` records are folded into
``commits/segment-00000000-00000063.jsonl``, the plain concatenation of their lines, so that thousands of commits stay
cheap to list. Rule for maintainers: nothing outside this module parses or names files of the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import sync_folder, write_atomically
from dynome_recorder.storage.format import PARTIAL_SUFFIX, STREAMS, Json, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["SEGMENT_LENGTH", "CommitRecord", "LogState", "fold_segments", "read_log", "replay_log", "write_record"]

SEGMENT_LENGTH = 64
GENESIS = "00000000"
"""What the first record names as the checksum of the record before it."""

Kind = Literal["moment", "rewind", "loss", "gap"]
Status = Literal[0, 1, 2]
COMMITTED, SUPERSEDED, GAP = 0, 1, 2

_RECORD = re.compile(r"(\d{8,})\.json")
_SEGMENT = re.compile(r"segment-(\d{8,})-(\d{8,})\.jsonl")


@dataclass(frozen=True)
class CommitRecord:
    """One committed record of the log. FORMAT.md, section "Commit records", says what each member means.

    Attributes
    ----------
    sequence
        0, 1, 2, ... without gaps.
    previous
        Checksum of the record before; eight zeros in the first.
    kind
        "moment" (something was recorded), "rewind" (later moments than `keep` are superseded), "loss" (a repair found
        the files in `lost` damaged), "gap" (stands in for a record that was lost).
    epoch, step
        What was completed at the moment; -1 where a record has none.
    time
        Unix time in seconds.
    epoch_complete
        Whether the epoch of the moment is complete, so that training can resume after it.
    parameters
        Hash of the model's parameters, or "".
    snapshots
        Index of the snapshot of each stream that has one in this commit.
    health
        Non-zero counts of nan, inf and overflow per site.
    metrics
        ``{"step": {name: {"step": [...], "value": [...]}}, "epoch": {name: value}}``; NaN and infinities as strings.
    files
        Size in bytes and crc32 of every file of this commit, by its path below ``store.zarr``.
    keep
        Of a rewind: the last sequence that is kept, -1 for none.
    lost
        Of a loss: the paths below ``store.zarr`` that no longer hold their data.
    replaces
        Of a gap: the checksum that the lost record had, "" when no record after it says so.
    """

    sequence: int
    previous: str
    kind: Kind
    time: float
    rank: int = 0
    epoch: int = -1
    step: int = -1
    epoch_complete: bool = False
    parameters: str = ""
    snapshots: Mapping[str, int] = field(default_factory=dict)
    health: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    keep: int | None = None
    lost: tuple[str, ...] = ()
    replaces: str | None = None
    checksum: str = ""

    def encode(self) -> bytes:
        """Return the sealed line that stores this record; members that say nothing are left out."""
        document: dict[str, Json] = {
            "sequence": self.sequence,
            "previous": self.previous,
            "kind": self.kind,
            "time": self.time,
            "rank": self.rank,
        }
        if self.kind == "moment":
            document |= {
                "epoch": self.epoch,
                "step": self.step,
                "epoch_complete": self.epoch_complete,
                "parameters": self.parameters,
            }
        optional: dict[str, Json] = {
            "snapshots": self.snapshots,
            "health": self.health,
            "metrics": self.metrics,
            "files": self.files,
            "lost": self.lost,
        }
        document |= {name: value for name, value in optional.items() if value}
        if self.keep is not None:
            document["keep"] = self.keep
        if self.replaces is not None:
            document["replaces"] = self.replaces
        return seal(document)

    @classmethod
    def decode(cls, line: bytes, *, where: Path) -> CommitRecord:
        """Check and decode a sealed line; unknown members (a newer minor version) are ignored.

        Raises
        ------
        CorruptRecordingError
            The line is damaged, or is no commit record.
        """
        document = unseal(line, where=where)
        try:
            return cls(
                sequence=int(document["sequence"]),
                previous=str(document["previous"]),
                kind=document["kind"],
                time=float(document["time"]),
                rank=int(document.get("rank", 0)),
                epoch=int(document.get("epoch", -1)),
                step=int(document.get("step", -1)),
                epoch_complete=bool(document.get("epoch_complete", False)),
                parameters=str(document.get("parameters", "")),
                snapshots={stream: int(index) for stream, index in document.get("snapshots", {}).items()},
                health=document.get("health", {}),
                metrics=document.get("metrics", {}),
                files={name: (int(size), str(crc)) for name, (size, crc) in document.get("files", {}).items()},
                keep=document.get("keep"),
                lost=tuple(document.get("lost", ())),
                replaces=document.get("replaces"),
                checksum=document["checksum"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptRecordingError(f"{where}: not a commit record ({error!r}).") from error


@dataclass(frozen=True)
class LogState:
    """What a log says when it is read from its first record to its last.

    Attributes
    ----------
    records
        Every record, in order.
    live
        The moments that are neither superseded nor replaced by a gap, in order.
    status
        Per stream, the status of each snapshot: 0 committed, 1 superseded, 2 gap.
    owners
        Per stream, the record that committed each snapshot.
    files
        Size and crc32 of every file that must be there, by path below ``store.zarr``; lost files are not in it.
    """

    records: tuple[CommitRecord, ...]
    live: tuple[CommitRecord, ...]
    status: Mapping[str, tuple[int, ...]]
    owners: Mapping[str, tuple[CommitRecord, ...]]
    files: Mapping[str, tuple[int, str]]


def replay_log(records: Iterable[CommitRecord]) -> LogState:
    """Fold the records of a log into the state they describe. Cost: linear in records and files."""
    records = tuple(records)
    superseded: set[int] = set()
    moments: list[CommitRecord] = []
    files: dict[str, tuple[int, str]] = {}
    lost_files: set[str] = set()
    for record in records:
        files.update(record.files)
        if record.kind == "moment":
            moments.append(record)
        elif record.kind == "rewind" and record.keep is not None:
            superseded.update(m.sequence for m in moments if m.sequence > record.keep)
        elif record.kind == "loss":
            lost_files.update(record.lost)
    status: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    owners: dict[str, list[CommitRecord]] = {stream: [] for stream in STREAMS}
    for record in records:
        damaged = {name.partition("/")[0] for name in record.files if name in lost_files} if lost_files else set()
        for stream in STREAMS:
            if stream in record.snapshots:
                gap = record.kind == "gap" or stream in damaged
                status[stream].append(GAP if gap else SUPERSEDED if record.sequence in superseded else COMMITTED)
                owners[stream].append(record)
    return LogState(
        records=records,
        live=tuple(m for m in moments if m.sequence not in superseded),
        status={stream: tuple(values) for stream, values in status.items()},
        owners={stream: tuple(values) for stream, values in owners.items()},
        files={name: entry for name, entry in files.items() if name not in lost_files},
    )


def record_path(folder: Path, sequence: int) -> Path:
    """Return where the record of a sequence number is stored before it is folded."""
    return folder / f"{sequence:08d}.json"


def segment_path(folder: Path, first: int, last: int) -> Path:
    """Return where the records of a block are stored together."""
    return folder / f"segment-{first:08d}-{last:08d}.jsonl"


@dataclass(frozen=True)
class StoredLine:
    """One stored copy of a record, not judged yet.

    Attributes
    ----------
    sequence
        The record that should be here by the name of the file and the place in it.
    first, last
        The range of records that the file is for; both equal `sequence` in a file of one record.
    data
        The bytes as they lie on disk; empty where a segment ends too early.
    path
        The file.
    """

    sequence: int
    first: int
    last: int
    data: bytes
    path: Path


def stored_lines(folder: Path) -> list[StoredLine]:
    """Return every stored copy of every record, in order of sequence.

    A record that a concurrent writer folds while we read is found in its segment.

    Raises
    ------
    CorruptRecordingError
        The folder is missing.
    """
    for _attempt in range(5):
        lines: list[StoredLine] = []
        try:
            for path in sorted(folder.iterdir()):
                if match := _RECORD.fullmatch(path.name):
                    sequence = int(match.group(1))
                    lines.append(StoredLine(sequence, sequence, sequence, path.read_bytes(), path))
                elif match := _SEGMENT.fullmatch(path.name):
                    first, last = int(match.group(1)), int(match.group(2))
                    pieces = [piece + b"\n" for piece in path.read_bytes().split(b"\n")]
                    if pieces[-1] == b"\n":
                        pieces.pop()
                    else:
                        pieces[-1] = pieces[-1][:-1]
                    pieces += [b""] * (last - first + 1 - len(pieces))
                    lines += [StoredLine(first + i, first, last, piece, path) for i, piece in enumerate(pieces)]
        except FileNotFoundError:
            if not folder.is_dir():
                raise CorruptRecordingError(f"{folder}: missing.") from None
            continue  # folded and deleted between listing and reading
        except NotADirectoryError:
            raise CorruptRecordingError(f"{folder}: not a folder.") from None
        return sorted(lines, key=lambda line: (line.sequence, line.path.name))
    raise CorruptRecordingError(f"{folder}: files keep disappearing while they are read.")


def chain_link(previous: CommitRecord | None) -> str:
    """Return what the record after `previous` (None: the first) must name as the checksum of the record before it."""
    if previous is None:
        return GENESIS
    # A gap stands in for a record whose checksum is already named by the next.
    return previous.replaces or previous.checksum


def check_chain(previous: CommitRecord | None, record: CommitRecord, *, where: Path) -> None:
    """Raise CorruptRecordingError unless `record` follows `previous` (None: is the first)."""
    expected = chain_link(previous)
    if record.previous != expected:
        raise CorruptRecordingError(
            f"{where}: the chain of commits is broken "
            f"(record {record.sequence} follows {record.previous}, found {expected})."
        )


def read_log(folder: Path) -> tuple[CommitRecord, ...]:
    """Read and check the whole log.

    Parameters
    ----------
    folder
        The folder ``commits``.

    Returns
    -------
    tuple of CommitRecord
        Records 0, 1, 2, ... in order.

    Raises
    ------
    CorruptRecordingError
        A record is missing, damaged, or does not follow the one before it. The message names the file.
    """
    records: list[CommitRecord] = []
    copy = b""
    for line in stored_lines(folder):
        if records and line.sequence == records[-1].sequence:
            if line.data != copy:
                raise CorruptRecordingError(f"{line.path}: two different copies of record {line.sequence} exist.")
            continue
        if line.sequence != len(records):
            raise CorruptRecordingError(f"{record_path(folder, len(records))}: missing.")
        record = CommitRecord.decode(line.data, where=line.path)
        if record.sequence != line.sequence:
            raise CorruptRecordingError(f"{line.path}: holds record {record.sequence} in place of {line.sequence}.")
        if record.kind not in get_args(Kind):
            raise CorruptRecordingError(f"{line.path}: unknown kind of record {record.kind!r}.")
        check_chain(records[-1] if records else None, record, where=line.path)
        records.append(record)
        copy = line.data
    return tuple(records)


def write_record(folder: Path, record: CommitRecord) -> CommitRecord:
    """Commit a record: when this returns, it is on disk under its name. Returns it with its checksum filled in.

    Raises
    ------
    OSError
        The disk is full, read-only or failed.
    """
    data = record.encode()
    path = record_path(folder, record.sequence)
    write_atomically(path, data, sync=True)
    return CommitRecord.decode(data, where=path)


def fold_segments(folder: Path, *, length: int) -> None:
    """Fold every whole block of the first `length` records into one segment, and delete the single files it covers.

    A crash in between leaves both, equal; folding again finishes the work.
    """
    singles = {int(match.group(1)): path for path in folder.iterdir() if (match := _RECORD.fullmatch(path.name))}
    if not singles:
        return
    for first in range(min(singles) // SEGMENT_LENGTH * SEGMENT_LENGTH, length - SEGMENT_LENGTH + 1, SEGMENT_LENGTH):
        block = range(first, first + SEGMENT_LENGTH)
        segment = segment_path(folder, block[0], block[-1])
        if not segment.exists() and all(sequence in singles for sequence in block):
            write_atomically(segment, b"".join(singles[sequence].read_bytes() for sequence in block), sync=True)
        if segment.exists():
            for sequence in block:
                if sequence in singles:
                    singles[sequence].unlink()


def sweep_partial(folder: Path) -> None:
    """Delete what an interrupted write left in the folder of the log."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink()
    sync_folder(folder)
