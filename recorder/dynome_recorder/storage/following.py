"""Reading a commit log while it grows: only what is new is read.

Records have consecutive numbers and names that follow from them, so asking whether there is a next one costs two
look-ups, however long the log is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import (
    SEGMENT_LENGTH,
    CommitRecord,
    check_chain,
    read_log,
    record_path,
    segment_path,
)
from dynome_recorder.storage.format import COMMITS_FOLDER

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
        previous = self.records[-1]
        while (line := self._line(previous.sequence + 1)) is not None:
            data, path = line
            record = CommitRecord.decode(data, where=path)
            if record.sequence != previous.sequence + 1:
                raise CorruptRecordingError(
                    f"{path}: holds record {record.sequence} in place of {previous.sequence + 1}."
                )
            check_chain(previous, record, where=path)
            found.append(record)
            previous = record
        return found

    def _line(self, sequence: int) -> tuple[bytes, Path] | None:
        """Return a record as it is stored and where; None where it is not committed yet."""
        first = sequence // SEGMENT_LENGTH * SEGMENT_LENGTH
        segment = segment_path(self._folder, first, first + SEGMENT_LENGTH - 1)
        # The single file first: it is deleted only after its segment is there.
        for path in (record_path(self._folder, sequence), segment):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CorruptRecordingError(f"{path}: cannot be read ({error.strerror or error}).") from error
            if path is not segment:
                return data, path
            lines = data.split(b"\n")
            place = sequence - first
            return (lines[place] + b"\n" if place < len(lines) else b""), path
        return None
