"""The commit log: the truth about what a recording holds.

One record per commit, each a sealed line of JSON that names the checksum of the record before it. A record in
``commits/00000012.json`` is committed by one rename. Whole blocks of :data:`SEGMENT_LENGTH` records are folded into
``commits/segment-00000000-00000063.jsonl``, the plain concatenation of their lines, so that thousands of commits stay
cheap to list. Rule for maintainers: nothing outside this module parses or names files of the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import sync_folder, write_atomically, write_file
from dynome_recorder.storage.format import PARTIAL_SUFFIX, STREAMS, Json, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["SEGMENT_LENGTH", "CommitRecord", "LogState", "fold_segments", "read_log", "replay_log", "write_record"]

SEGMENT_LENGTH = 64
GENESIS = "00000000"
"""What the first record names as the checksum of the record before it."""

Kind = Literal["moment", "rewind", "loss", "gap", "part"]
LOG_KINDS = frozenset(get_args(Kind)) - {"part"}
"""Kinds of records of rank 0; another rank has parts, and gaps that stand in for them."""
Status = Literal[0, 1, 2]
COMMITTED, SUPERSEDED, GAP = 0, 1, 2
PARTED_STREAMS = frozenset({"probe", "batches"})
"""Streams that every rank has a part of; weights are written by rank 0 alone."""

_RECORD = re.compile(r"(\d{8,})(?:\.r(\d+))?\.json")
_SEGMENT = re.compile(r"segment-(\d{8,})-(\d{8,})(?:\.r(\d+))?\.jsonl")


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
        the files in `lost` damaged), "gap" (stands in for a record that was lost), "part" (what another rank than 0
        wrote at a moment).
    rank
        Which process wrote it; 0 keeps the log.
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
    health, batch_health
        Non-zero counts of nan, inf and overflow per site, of the probe and of the batch.
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
    world
        Number of ranks that commit the moment, each with a record of its own; 1 where nothing is said.
    skipped
        Streams of which a snapshot was due and left out, because the buffers were full: gaps, with no file.
    samples
        Samples of a recorded batch: of this rank, in a record as it is stored; of each rank, 0 for none, in the record
        of the whole moment (`join_parts`).
    lost_ranks
        Never stored; in the record of a whole moment the ranks whose own record is lost, and with it every snapshot
        that has parts.
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
    batch_health: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    keep: int | None = None
    lost: tuple[str, ...] = ()
    replaces: str | None = None
    world: int = 1
    skipped: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    lost_ranks: tuple[int, ...] = ()
    checksum: str = ""

    @property
    def missing_streams(self) -> frozenset[str]:
        """Streams whose snapshot in this record holds no data: left out, or gone with the record of a rank."""
        gone = PARTED_STREAMS & self.snapshots.keys() if self.lost_ranks else frozenset()
        return gone | frozenset(self.skipped) | (frozenset(self.snapshots) if self.kind == "gap" else frozenset())

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
        if self.kind == "part":
            document |= {"epoch": self.epoch, "step": self.step}
        if self.world != 1:
            document["world"] = self.world
        optional: dict[str, Json] = {
            "skipped": self.skipped,
            "samples": self.samples,
            "snapshots": self.snapshots,
            "health": self.health,
            "batch_health": self.batch_health,
            "metrics": self.metrics,
            # A reader of 1.0 would take what rank 0 wrote for the whole; of this name it knows nothing, and refuses.
            "part_files" if self.kind == "part" or self.world > 1 else "files": self.files,
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
                batch_health=document.get("batch_health", {}),
                metrics=document.get("metrics", {}),
                files={
                    name: (int(size), str(crc))
                    for member in ("files", "part_files")
                    for name, (size, crc) in document.get(member, {}).items()
                },
                keep=document.get("keep"),
                lost=tuple(document.get("lost", ())),
                replaces=document.get("replaces"),
                world=int(document.get("world", 1)),
                skipped=tuple(str(stream) for stream in document.get("skipped", ())),
                samples=tuple(int(count) for count in document.get("samples", ())),
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

    def skipped(self, stream: str) -> tuple[int, ...]:
        """Return the indices of the snapshots of a stream that were due and left out."""
        return tuple(index for index, owner in enumerate(self.owners[stream]) if stream in owner.skipped)

    def lost(self, stream: str) -> tuple[int, ...]:
        """Return the indices of the snapshots of a stream that were committed, and whose loss a repair recorded."""
        return tuple(
            index
            for index, (value, owner) in enumerate(zip(self.status[stream], self.owners[stream], strict=True))
            if value == GAP and stream not in owner.skipped
        )


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
                gap = stream in damaged or stream in record.missing_streams
                status[stream].append(GAP if gap else SUPERSEDED if record.sequence in superseded else COMMITTED)
                owners[stream].append(record)
    return LogState(
        records=records,
        live=tuple(m for m in moments if m.sequence not in superseded),
        status={stream: tuple(values) for stream, values in status.items()},
        owners={stream: tuple(values) for stream, values in owners.items()},
        files={name: entry for name, entry in files.items() if name not in lost_files},
    )


def record_path(folder: Path, sequence: int, rank: int = 0) -> Path:
    """Return where a rank's record of a sequence number is stored before it is folded."""
    return folder / f"{sequence:08d}{_rank_suffix(rank)}.json"


def record_exists(folder: Path, sequence: int, rank: int = 0) -> bool:
    """Return whether a rank's record is there, alone or in a segment."""
    first = sequence // SEGMENT_LENGTH * SEGMENT_LENGTH
    # The single file first: it is deleted only after its segment is there.
    return (
        record_path(folder, sequence, rank).exists()
        or segment_path(folder, first, first + SEGMENT_LENGTH - 1, rank).exists()
    )


def record_is_absent(folder: Path, sequence: int, rank: int = 0) -> bool:
    """Return whether a rank's record is surely not there; False where nobody can tell."""
    try:
        return not record_exists(folder, sequence, rank)
    except OSError:
        return False


def segment_path(folder: Path, first: int, last: int, rank: int = 0) -> Path:
    """Return where the records of a block are stored together."""
    return folder / f"segment-{first:08d}-{last:08d}{_rank_suffix(rank)}.jsonl"


def _rank_suffix(rank: int) -> str:
    return f".r{rank}" if rank else ""


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


def stored_lines(folder: Path) -> dict[int, list[StoredLine]]:
    """Return every stored copy of every record by rank, in order of sequence; rank 0 is always there.

    A record that a concurrent writer folds while we read is found in its segment. In a segment of another rank an empty
    line stands for a record of the log at which that rank wrote nothing.

    Raises
    ------
    CorruptRecordingError
        The folder is missing.
    """
    for _attempt in range(5):
        found: dict[int, list[StoredLine]] = {0: []}
        try:
            for path in sorted(folder.iterdir()):
                if match := _RECORD.fullmatch(path.name):
                    sequence, rank = int(match.group(1)), int(match.group(2) or 0)
                    line = StoredLine(sequence, sequence, sequence, path.read_bytes(), path)
                    found.setdefault(rank, []).append(line)
                elif match := _SEGMENT.fullmatch(path.name):
                    first, last, rank = int(match.group(1)), int(match.group(2)), int(match.group(3) or 0)
                    pieces = [piece + b"\n" for piece in path.read_bytes().split(b"\n")]
                    if pieces[-1] == b"\n":
                        pieces.pop()
                    else:
                        pieces[-1] = pieces[-1][:-1]
                    pieces += [b""] * (last - first + 1 - len(pieces))
                    found.setdefault(rank, []).extend(
                        StoredLine(first + i, first, last, piece, path)
                        for i, piece in enumerate(pieces)
                        if rank == 0 or piece != b"\n"
                    )
        except FileNotFoundError:
            if not folder.is_dir():
                raise CorruptRecordingError(f"{folder}: missing.") from None
            continue  # folded and deleted between listing and reading
        except NotADirectoryError:
            raise CorruptRecordingError(f"{folder}: not a folder.") from None
        return {
            rank: sorted(lines, key=lambda line: (line.sequence, line.path.name))
            for rank, lines in sorted(found.items())
        }
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


def join_parts(
    record: CommitRecord, parts: Mapping[int, CommitRecord], *, lost: frozenset[int] = frozenset()
) -> CommitRecord | None:
    """Return the record of a whole moment, with what every rank wrote; None where a rank's part is not there.

    Parameters
    ----------
    record
        A record of rank 0.
    parts
        What other ranks have of the same sequence, by rank.
    lost
        Ranks that must have had a record and have none any more.

    Returns
    -------
    CommitRecord
        The record itself where one rank commits alone. A stream that one rank left out is left out of the whole.

    Raises
    ------
    CorruptRecordingError
        A part is of another moment.
    """
    if record.kind != "moment" or record.world == 1:
        return record
    others = range(1, record.world)
    if any(rank not in parts and rank not in lost for rank in others):
        return None
    ranks = [record]
    for rank in (rank for rank in others if rank not in lost and parts[rank].kind != "gap"):
        part = parts[rank]
        if (part.sequence, part.epoch, part.step) != (record.sequence, record.epoch, record.step):
            raise CorruptRecordingError(
                f"record {record.sequence} of rank {rank} is of another moment than rank 0 has there "
                f"(epoch {part.epoch}, step {part.step} in place of {record.epoch}, {record.step})."
            )
        ranks.append(part)
    present = {part.rank: part for part in ranks}
    files = {name: entry for part in ranks for name, entry in part.files.items()}
    skipped = {stream for part in ranks for stream in part.skipped}
    samples = tuple(next(iter(present[rank].samples), 0) if rank in present else 0 for rank in range(record.world))
    return replace(
        record,
        files=files,
        health=_sum_counts(part.health for part in ranks),
        batch_health=_sum_counts(part.batch_health for part in ranks),
        skipped=tuple(stream for stream in record.snapshots if stream in skipped),
        samples=samples if any(samples) else (),
        lost_ranks=tuple(rank for rank in others if rank not in present),
    )


def _sum_counts(counted: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for health in counted:
        for site, counts in health.items():
            merged = total.setdefault(site, {})
            for problem, count in counts.items():
                merged[problem] = merged.get(problem, 0) + count
    return total


def read_log(folder: Path) -> tuple[CommitRecord, ...]:
    """Read and check the committed log: as far as every rank has committed.

    Parameters
    ----------
    folder
        The folder ``commits``.

    Returns
    -------
    tuple of CommitRecord
        Records 0, 1, 2, ... in order, each of the whole moment (`join_parts`).

    Raises
    ------
    CorruptRecordingError
        A record is missing, damaged, or does not follow the one before it. The message names the file.
    """
    for _attempt in range(5):
        stored = stored_lines(folder)
        try:
            return _join_log(folder, stored)
        except CorruptRecordingError:
            # A folder that is written to while it is listed may show a newer record and not an older one.
            if {line.path for lines in stored_lines(folder).values() for line in lines} == {
                line.path for lines in stored.values() for line in lines
            }:
                raise
    return _join_log(folder, stored_lines(folder))


def _join_log(folder: Path, stored: Mapping[int, Sequence[StoredLine]]) -> tuple[CommitRecord, ...]:
    parts = {rank: _read_chain(folder, lines, rank) for rank, lines in stored.items() if rank}
    log = _read_chain(folder, stored[0], 0)
    folded = folded_end(stored[0])
    records: list[CommitRecord] = []
    for sequence, record in log.items():
        present = {rank: chain[sequence] for rank, chain in parts.items() if sequence in chain}
        whole = join_parts(record, present)
        if whole is None and sequence < folded:
            rank = next(rank for rank in range(1, record.world) if rank not in present)
            raise CorruptRecordingError(f"{record_path(folder, sequence, rank)}: missing.")
        if whole is None:
            break  # not committed by all ranks yet, nor is anything after it
        records.append(whole)
    return tuple(records)


def folded_end(lines: Iterable[StoredLine]) -> int:
    """Return behind which record rank 0's segments end: only what all ranks have committed is folded."""
    return max((line.last + 1 for line in lines if line.last > line.first), default=0)


def _read_chain(folder: Path, lines: Sequence[StoredLine], rank: int) -> dict[int, CommitRecord]:
    """Return one rank's records by sequence, checked; only rank 0's have no holes."""
    records: dict[int, CommitRecord] = {}
    previous: CommitRecord | None = None
    copy = b""
    for line in lines:
        if previous is not None and line.sequence == previous.sequence:
            if line.data != copy:
                raise CorruptRecordingError(f"{line.path}: two different copies of record {line.sequence} exist.")
            continue
        if rank == 0 and line.sequence != len(records):
            raise CorruptRecordingError(f"{record_path(folder, len(records))}: missing.")
        record = CommitRecord.decode(line.data, where=line.path)
        if (record.sequence, record.rank) != (line.sequence, rank):
            raise CorruptRecordingError(
                f"{line.path}: holds record {record.sequence} in place of {line.sequence}"
                + (f", of rank {record.rank} in place of {rank}." if record.rank != rank else ".")
            )
        if record.kind not in (("part", "gap") if rank else LOG_KINDS):
            raise CorruptRecordingError(f"{line.path}: unknown kind of record {record.kind!r}.")
        check_chain(previous, record, where=line.path)
        records[record.sequence] = previous = record
        copy = line.data
    return records


@dataclass(frozen=True)
class StagedRecord:
    """A record on its way into the log: written under a temporary name first, committed by a rename.

    Several may be written side by side; they are renamed in order, and then the folder is synced once.

    Attributes
    ----------
    record
        The record, with its checksum.
    path
        Where it goes.
    data
        Its bytes.
    """

    record: CommitRecord
    path: Path
    data: bytes

    @property
    def temporary(self) -> Path:
        """Where it is before it is committed."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    def write(self) -> None:
        """Write and sync the content under the temporary name."""
        write_file(self.temporary, self.data, sync=True)

    def commit(self) -> None:
        """Give it its name. All that it lists must be on disk by now."""
        self.temporary.replace(self.path)


def stage_record(folder: Path, record: CommitRecord) -> StagedRecord:
    """Return a record as it will be stored, with its checksum filled in; writes nothing."""
    data = record.encode()
    path = record_path(folder, record.sequence, record.rank)
    return StagedRecord(CommitRecord.decode(data, where=path), path, data)


def write_record(folder: Path, record: CommitRecord) -> CommitRecord:
    """Commit a record: when this returns, it is on disk under its name. Returns it with its checksum filled in.

    Raises
    ------
    OSError
        The disk is full, read-only or failed.
    """
    staged = stage_record(folder, record)
    write_atomically(staged.path, staged.data, sync=True)
    return staged.record


def last_part(folder: Path, rank: int) -> CommitRecord | None:
    """Return the newest record of a rank above 0, checked as `read_log` does; None where it has none."""
    return next(reversed(_read_chain(folder, stored_lines(folder).get(rank, []), rank).values()), None)


def fold_segments(folder: Path, *, length: int, rank: int = 0) -> None:
    """Fold every whole block of the first `length` records into one segment, and delete the single files it covers.

    A crash in between leaves both, equal; folding again finishes the work. Of a rank above 0 a block may have holes.
    """
    singles = _single_records(folder, rank)
    if not singles:
        return
    for first in range(min(singles) // SEGMENT_LENGTH * SEGMENT_LENGTH, length - SEGMENT_LENGTH + 1, SEGMENT_LENGTH):
        block = range(first, first + SEGMENT_LENGTH)
        segment = segment_path(folder, block[0], block[-1], rank)
        held = [singles[sequence] for sequence in block if sequence in singles]
        if held and not segment.exists() and (rank or len(held) == SEGMENT_LENGTH):
            lines = [singles[sequence].read_bytes() if sequence in singles else b"\n" for sequence in block]
            write_atomically(segment, b"".join(lines), sync=True)
        if segment.exists():
            for path in held:
                path.unlink()


def uncommitted_records(folder: Path, length: int) -> list[Path]:
    """Return the files of records that not all ranks committed: those behind the `length` that `read_log` returns."""
    paths = [path for path in folder.iterdir() if (match := _RECORD.fullmatch(path.name)) and int(match[1]) >= length]
    return sorted(paths, reverse=True)


def _single_records(folder: Path, rank: int) -> dict[int, Path]:
    return {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _RECORD.fullmatch(path.name)) and int(match[2] or 0) == rank
    }


def sweep_partial(folder: Path) -> None:
    """Delete what an interrupted write left in the folder of the log."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        path.unlink()
    sync_folder(folder)
