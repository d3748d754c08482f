"""Several processes, one recording: when what one of them wrote is committed by all.

A moment is committed when the records of all its ranks are there (FORMAT.md, "Ranks"). Rank 0 keeps the log and may
write ahead of the others; it shows no more than what is whole.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import SEGMENT_LENGTH, record_exists, record_path, segment_path
from dynome_recorder.storage.records import CommitRecord, join_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["AwaitedRanks", "folded_length"]


class AwaitedRanks:
    """Moments that this rank has committed, in order, from the first that not all others have.

    Parameters
    ----------
    folder
        The folder ``commits``.
    rank, world
        Which of how many processes this is.
    """

    def __init__(self, folder: Path, *, rank: int, world: int) -> None:
        self._folder = folder
        self._rank = rank
        self._others = tuple(other for other in range(world) if other != rank)
        self._awaited: deque[CommitRecord] = deque()
        self._known = -1  # everything up to this sequence is there from all ranks

    def __len__(self) -> int:
        """Return how many moments are not whole yet, as far as was looked."""
        return len(self._awaited)

    def add(self, record: CommitRecord) -> None:
        """Note a record that this rank committed."""
        self._awaited.append(record)

    def are_there(self, sequence: int) -> bool:
        """Return whether all ranks have committed everything that was noted here up to a record.

        Changes nothing but what it remembers, so that it may be asked by any thread, and be interrupted.
        """
        for record in tuple(self._awaited):
            if self._known < record.sequence <= sequence:
                if not all(record_exists(self._folder, record.sequence, other) for other in self._others):
                    return False
                self._known = record.sequence
        return True

    def take(self) -> Iterator[CommitRecord]:
        """Yield the records of moments that all ranks have by now: on rank 0 with what all wrote, else this rank's own.

        Raises
        ------
        CorruptRecordingError
            A rank has written something else under that number.
        """
        while self._awaited:
            whole = self._whole(self._awaited[0])
            if whole is None:
                return
            yield whole
            self._awaited.popleft()

    def _whole(self, record: CommitRecord) -> CommitRecord | None:
        if self._rank:
            return record if self.are_there(record.sequence) else None
        parts = {}
        for rank in self._others:
            path = record_path(self._folder, record.sequence, rank)
            try:
                part = CommitRecord.decode(path.read_bytes(), where=path)
            except FileNotFoundError:
                return None
            if (part.rank, part.epoch, part.step) != (rank, record.epoch, record.step):
                raise CorruptRecordingError(f"{path}: is of another moment than rank 0 has there.")
            parts[rank] = part
        return join_parts(record, parts)


def folded_length(folder: Path, start: int) -> int:
    """Return how many records rank 0 has folded, at least ``start``: the others fold behind it, never ahead.

    Rank 0 folds what all have committed, so that a segment never holds a record that is swept later.
    """
    length = start // SEGMENT_LENGTH * SEGMENT_LENGTH
    while segment_path(folder, length, length + SEGMENT_LENGTH - 1).exists():
        length += SEGMENT_LENGTH
    return length
