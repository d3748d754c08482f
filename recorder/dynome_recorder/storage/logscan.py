"""Reading what can be read of a commit log, damaged or not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import StoredLine, folded_end, record_path, stored_lines, uncommitted_records
from dynome_recorder.storage.format import COMMITS_FOLDER, PARTIAL_SUFFIX
from dynome_recorder.storage.records import CommitRecord, check_chain, join_parts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Finding", "LogScan", "problem_of", "scan_log"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes
    ----------
    file
        Path below the recording's folder.
    problem
        What is wrong, in words.
    severity
        "damage": a reader may miss something or be stopped. "harmless": an interrupted write left it, nothing committed
        is affected, and opening the recording to continue (or ``--repair``) cleans it up.
    repairable
        Whether ``--repair`` makes the recording valid again; data that is gone becomes a recorded gap.
    """

    file: str
    problem: str
    severity: Literal["damage", "harmless"] = "damage"
    repairable: bool = True


@dataclass
class LogScan:
    """What can be read of a log, damaged or not.

    Attributes
    ----------
    lines
        A good copy of each record that has one, by sequence.
    records
        The same, decoded; each of the whole moment, as far as other ranks' records can be read.
    missing
        Sequences that must exist and have no good copy, in order.
    part_lines
        A good copy of each record of another rank, by rank and sequence.
    parts
        The same, decoded.
    missing_parts
        Rank and sequence of records of other ranks that must exist and have no good copy.
    length
        Where the committed log ends: what is behind it, not all ranks committed.
    damaged
        Files of the log that hold at least one bad copy.
    findings
        What was found.
    """

    lines: dict[int, StoredLine] = field(default_factory=dict)
    records: dict[int, CommitRecord] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    part_lines: dict[int, dict[int, StoredLine]] = field(default_factory=dict)
    parts: dict[int, dict[int, CommitRecord]] = field(default_factory=dict)
    missing_parts: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0
    damaged: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def scan_log(folder: Path, published: tuple[int, str] | None) -> LogScan:
    """Read whatever can be read of the log of the recording at `folder`.

    A line of a segment is known by the sequence it holds, not by its place, so that a lost newline costs two records
    and not the rest of the segment.
    """
    commits = folder / COMMITS_FOLDER
    scan = LogScan()
    try:
        stored = stored_lines(commits)
    except CorruptRecordingError as error:
        scan.findings.append(Finding(COMMITS_FOLDER, problem_of(error, commits)))
        stored = {0: []}
    last = max([-1 if published is None else published[0], *(line.last for line in stored[0])])
    scan.lines, scan.records = _good_records(folder, scan, stored[0], 0)
    for rank, lines in stored.items():
        if rank:
            scan.part_lines[rank], scan.parts[rank] = _good_records(folder, scan, lines, rank)
    for sequence in range(last + 1):
        if sequence not in scan.records:
            scan.missing.append(sequence)
            path = record_path(commits, sequence).relative_to(folder)
            scan.findings.append(Finding(str(path), f"record {sequence} is lost"))
    if published is not None and published[0] in scan.records:
        record = scan.records[published[0]]
        if published[1] not in (record.checksum, record.replaces):
            problem = f"record {record.sequence} is not the one that the store was published after"
            scan.findings.append(Finding(COMMITS_FOLDER, problem, repairable=False))
    published_end = 0 if published is None else published[0] + 1
    _join(folder, scan, last, whole=max(published_end, folded_end(stored[0])))
    _check_chains(folder, scan)
    for path in commits.glob(f"*{PARTIAL_SUFFIX}"):
        scan.findings.append(Finding(str(path.relative_to(folder)), "left by an interrupted write", "harmless"))
    return scan


def _good_records(
    folder: Path, scan: LogScan, lines: Sequence[StoredLine], rank: int
) -> tuple[dict[int, StoredLine], dict[int, CommitRecord]]:
    """Return a good copy of each of one rank's records, as stored and decoded; note what is damaged."""
    kept: dict[int, StoredLine] = {}
    records: dict[int, CommitRecord] = {}

    def damaged(path: Path, problem: str) -> None:
        if path not in scan.damaged:
            scan.damaged.append(path)
            scan.findings.append(Finding(str(path.relative_to(folder)), problem))

    for line in lines:
        try:
            record = CommitRecord.decode(line.data, where=line.path)
        except CorruptRecordingError as error:
            damaged(line.path, problem_of(error, line.path))
            continue
        if not line.first <= record.sequence <= line.last or record.rank != rank:
            damaged(line.path, f"holds record {record.sequence} of rank {record.rank}, which belongs elsewhere")
        elif record.sequence not in kept:
            kept[record.sequence], records[record.sequence] = line, record
        elif kept[record.sequence].data != line.data:
            damaged(line.path, f"holds another record {record.sequence} than {kept[record.sequence].path.name}")
        elif line.path != kept[record.sequence].path:
            # Names of single records sort before those of segments.
            single = min(line.path, kept[record.sequence].path)
            problem = "folded into a segment, not deleted yet"
            scan.findings.append(Finding(str(single.relative_to(folder)), problem, "harmless"))
    return kept, records


def _broken_links(
    records: Mapping[int, CommitRecord], lost: Collection[int], lines: Mapping[int, StoredLine]
) -> Iterator[tuple[int, int, CorruptRecordingError]]:
    """Yield where a record does not follow the one before it, though none between them is lost: both, and the error.

    -1 stands for the one before the first.
    """
    for before, sequence in itertools.pairwise([-1, *sorted(records)]):
        if not any(before < number < sequence for number in lost):
            try:
                check_chain(records.get(before), records[sequence], where=lines[sequence].path)
            except CorruptRecordingError as error:
                yield before, sequence, error


def _check_chains(folder: Path, scan: LogScan) -> None:
    """Note where a chain is broken by something else than a loss, which no repair can mend."""
    for rank in (0, *scan.parts):
        lines, records = (scan.part_lines[rank], scan.parts[rank]) if rank else (scan.lines, scan.records)
        lost = [sequence for other, sequence in scan.missing_parts if other == rank] if rank else scan.missing
        for before, sequence, error in list(_broken_links(records, lost, lines)):
            # Where rank 0's record is lost too, nothing else says that this rank had one.
            unknown = [number for number in scan.missing if before < number < sequence] if rank else []
            path = record_path(folder / COMMITS_FOLDER, unknown[0], rank) if unknown else lines[sequence].path
            if unknown:
                scan.missing_parts.append((rank, unknown[0]))
                problem = f"record {unknown[0]} of rank {rank} is lost"
            else:
                problem = problem_of(error, path)
            scan.findings.append(Finding(str(path.relative_to(folder)), problem, repairable=bool(unknown)))
    scan.missing_parts.sort()


def _join(folder: Path, scan: LogScan, last: int, *, whole: int) -> None:
    """Join the ranks' records, find what is lost of other ranks, and where the committed log ends.

    Everything before ``whole`` is known to have been committed by all ranks.
    """
    scan.length = last + 1
    for sequence in sorted(scan.records):
        record = scan.records[sequence]
        parts = {rank: chain[sequence] for rank, chain in scan.parts.items() if sequence in chain}
        lost = frozenset(range(1, record.world)) - parts.keys() if record.kind == "moment" else frozenset()
        if lost and sequence >= whole and not any(_reaches(scan, rank, sequence) for rank in lost):
            scan.length = sequence
            break
        for rank in sorted(lost):
            path = record_path(folder / COMMITS_FOLDER, sequence, rank).relative_to(folder)
            scan.missing_parts.append((rank, sequence))
            scan.findings.append(Finding(str(path), f"record {sequence} of rank {rank} is lost"))
        try:
            scan.records[sequence] = join_parts(record, parts, lost=lost) or record
        except CorruptRecordingError as error:
            scan.findings.append(Finding(COMMITS_FOLDER, error.problem.removesuffix("."), repairable=False))
    for path in uncommitted_records(folder / COMMITS_FOLDER, scan.length) if scan.length <= last else ():
        scan.findings.append(Finding(str(path.relative_to(folder)), "not committed by all ranks", "harmless"))
    for sequence in [number for number in scan.records if number >= scan.length]:
        del scan.records[sequence], scan.lines[sequence]
    scan.missing = [sequence for sequence in scan.missing if sequence < scan.length]


def _reaches(scan: LogScan, rank: int, sequence: int) -> bool:
    """Return whether a rank has committed later moments: what it lacks before them is lost, not still to come."""
    return any(later > sequence for later in scan.parts.get(rank, ()))


def problem_of(error: CorruptRecordingError, path: Path) -> str:
    """Return the text of an error without the path, which a finding names already."""
    return error.problem.removeprefix(f"{path}: ").removesuffix(".")
