"""Records of the commit log, and what a log says when it is read through: which snapshots there are, and their files.

FORMAT.md, sections 5.1 to 5.6. Nothing here touches a disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.format import STREAMS, Json, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["CommitRecord", "LogState", "chain_link", "check_chain", "join_parts", "replay_log"]

GENESIS = "00000000"
"""What the first record names as the checksum of the record before it."""

Kind = Literal["moment", "rewind", "loss", "gap", "part"]
LOG_KINDS = frozenset(get_args(Kind)) - {"part"}
"""Kinds of records of rank 0; another rank has parts, and gaps that stand in for them."""
Status = Literal[0, 1, 2]
COMMITTED, SUPERSEDED, GAP = 0, 1, 2
PARTED_STREAMS = frozenset({"probe", "batches"})
"""Streams that every rank has a part of; weights are written by rank 0 alone."""


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
