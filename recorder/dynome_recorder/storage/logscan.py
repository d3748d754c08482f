"""Reading what can be read of a commit log, damaged or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import CommitRecord, StoredLine, check_chain, record_path, stored_lines
from dynome_recorder.storage.format import COMMITS_FOLDER, PARTIAL_SUFFIX

if TYPE_CHECKING:
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
        The same, decoded.
    missing
        Sequences that must exist and have no good copy, in order.
    damaged
        Files of the log that hold at least one bad copy.
    findings
        What was found.
    """

    lines: dict[int, StoredLine] = field(default_factory=dict)
    records: dict[int, CommitRecord] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def scan_log(folder: Path, published: tuple[int, str] | None) -> LogScan:
    """Read whatever can be read of the log of the recording at `folder`.

    A line of a segment is known by the sequence it holds, not by its place, so that a lost newline costs two records
    and not the rest of the segment.
    """
    commits = folder / COMMITS_FOLDER
    scan = LogScan()

    def damaged(path: Path, problem: str) -> None:
        if path not in scan.damaged:
            scan.damaged.append(path)
            scan.findings.append(Finding(str(path.relative_to(folder)), problem))

    last = -1 if published is None else published[0]
    try:
        lines = stored_lines(commits)
    except CorruptRecordingError as error:
        scan.findings.append(Finding(COMMITS_FOLDER, problem_of(error, commits)))
        lines = []
    for line in lines:
        last = max(last, line.last)
        try:
            record = CommitRecord.decode(line.data, where=line.path)
        except CorruptRecordingError as error:
            damaged(line.path, problem_of(error, line.path))
            continue
        if not line.first <= record.sequence <= line.last:
            damaged(line.path, f"holds record {record.sequence}, which belongs elsewhere")
        elif record.sequence not in scan.lines:
            scan.lines[record.sequence], scan.records[record.sequence] = line, record
        elif scan.lines[record.sequence].data != line.data:
            damaged(line.path, f"holds another record {record.sequence} than {scan.lines[record.sequence].path.name}")
        elif line.path != scan.lines[record.sequence].path:
            # Names of single records sort before those of segments.
            single = min(line.path, scan.lines[record.sequence].path)
            problem = "folded into a segment, not deleted yet"
            scan.findings.append(Finding(str(single.relative_to(folder)), problem, "harmless"))
    for sequence in range(last + 1):
        if sequence not in scan.records:
            scan.missing.append(sequence)
            path = record_path(commits, sequence).relative_to(folder)
            scan.findings.append(Finding(str(path), f"record {sequence} is lost"))
    for sequence in range(1, last + 1):
        if sequence in scan.records and sequence - 1 in scan.records:
            path = scan.lines[sequence].path
            try:
                check_chain(scan.records[sequence - 1], scan.records[sequence], where=path)
            except CorruptRecordingError as error:
                scan.findings.append(Finding(str(path.relative_to(folder)), problem_of(error, path), repairable=False))
    if published is not None and published[0] in scan.records:
        record = scan.records[published[0]]
        if published[1] not in (record.checksum, record.replaces):
            problem = f"record {record.sequence} is not the one that the store was published after"
            scan.findings.append(Finding(COMMITS_FOLDER, problem, repairable=False))
    for path in commits.glob(f"*{PARTIAL_SUFFIX}"):
        scan.findings.append(Finding(str(path.relative_to(folder)), "left by an interrupted write", "harmless"))
    return scan


def problem_of(error: CorruptRecordingError, path: Path) -> str:
    """Return the text of an error without the path, which a finding names already."""
    return error.problem.removeprefix(f"{path}: ").removesuffix(".")
