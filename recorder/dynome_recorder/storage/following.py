"""Reading a commit log while it grows: only what is new is read.

Records have consecutive numbers and names that follow from them, so asking whether there is a next one costs two
look-ups per rank, however long the log is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import SEGMENT_LENGTH, read_log, record_path, segment_path
from dynome_recorder.storage.format import COMMITS_FOLDER
from dynome_recorder.storage.records import CommitRecord, check_chain, join_parts

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LogFollower"]


class LogFollower:
    """The records of a log, read once and then as they are committed.

    Parameters
    ----------
    path
        The recording's folder.

    Attributes
    ----------
    records
        Everything read so far, in order.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path / COMMITS_FOLDER
        self.records: list[CommitRecord] = []

    def read(self) -> list[CommitRecord]:
        """Return the records that were committed since the last call, the first time all of them.

        Raises
        ------
        CorruptRecordingError
            A record is missing, damaged, or does not follow the one before it.
        """
        new = self._following() if self.records else list(read_log(self._folder))
        self.records += new
        return new

    def _following(self) -> list[CommitRecord]:
        found: list[CommitRecord] = []
        last = self.records[-1]
        while (record := self._record(last.sequence + 1, 0)) is not None:
            check_chain(last, record, where=record_path(self._folder, record.sequence))
            parts = {rank: part for rank in range(1, record.world) if (part := self._record(record.sequence, rank))}
            whole = join_parts(record, parts)
            if whole is None:
                break  # another rank has not committed yet
            found.append(whole)
            last = whole
        return found

    def _record(self, sequence: int, rank: int) -> CommitRecord | None:
        """Return what a rank committed; None where it has not yet."""
        first = sequence // SEGMENT_LENGTH * SEGMENT_LENGTH
        segment = segment_path(self._folder, first, first + SEGMENT_LENGTH - 1, rank)
        # The single file first: it is deleted only after its segment is there.
        for path in (record_path(self._folder, sequence, rank), segment):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CorruptRecordingError(f"{path}: cannot be read ({error.strerror or error}).") from error
            if path is segment:
                lines = data.split(b"\n")
                data = lines[sequence - first] + b"\n" if sequence - first < len(lines) else b""
                if rank and data == b"\n":
                    return None  # that rank wrote nothing at this record
            record = CommitRecord.decode(data, where=path)
            if (record.sequence, record.rank) != (sequence, rank):
                raise CorruptRecordingError(
                    f"{path}: holds record {record.sequence} of rank {record.rank} in place of {sequence} of {rank}."
                )
            return record
        return None
