"""The files of the commit log: the truth about what a recording holds.

One record per commit, each a sealed line of JSON that names the checksum of the record before it. A record in
``commits/00000012.json`` is committed by one rename. Whole blocks of :data:`SEGMENT_LENGTH` records are folded into
``commits/segment-00000000-00000063.jsonl``, the plain concatenation of their lines, so that thousands of commits stay
cheap to list. Rule for maintainers: nothing outside this module parses or names files of the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import sync_folder, write_atomically, write_file
from dynome_recorder.storage.format import PARTIAL_SUFFIX
from dynome_recorder.storage.records import LOG_KINDS, CommitRecord, check_chain, join_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["SEGMENT_LENGTH", "fold_segments", "read_log", "record_path", "write_record"]

SEGMENT_LENGTH = 64
_RECORD = re.compile(r"(\d{8,})(?:\.r(\d+))?\.json")
_SEGMENT = re.compile(r"segment-(\d{8,})-(\d{8,})(?:\.r(\d+))?\.jsonl")


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
            folded = set(segment.read_bytes().splitlines(keepends=True))
            for path in held:
                if path.read_bytes() in folded:
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
