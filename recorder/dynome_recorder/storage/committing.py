"""One commit, of one or several moments: their files, their records, and the renames that commit them."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from dynome_recorder.storage.bulk import BulkFiles
from dynome_recorder.storage.commits import StagedRecord, record_is_absent, stage_record
from dynome_recorder.storage.files import sync_folder
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER
from dynome_recorder.storage.publish import stream_of
from dynome_recorder.storage.records import CommitRecord, chain_link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dynome_recorder.storage.moment import CheckedMoment
    from dynome_recorder.storage.workers import Workers

__all__ = ["Commit"]


class Commit:
    """Moments that are committed together, in order; each is committed by a rename of its own.

    Parameters
    ----------
    path
        Folder of the recording.
    moments
        What is committed.
    sequence
        Of the first of them.
    previous
        The record of this rank that it follows; None: none.
    lengths
        Snapshots per stream before them.

    Attributes
    ----------
    lengths
        Snapshots per stream after them.
    """

    def __init__(
        self,
        path: Path,
        moments: Sequence[CheckedMoment],
        *,
        sequence: int,
        previous: CommitRecord | None,
        lengths: Mapping[str, int],
    ) -> None:
        self._commits = path / COMMITS_FOLDER
        self._moments = moments
        self._sequence = sequence
        self._previous = previous
        self._snapshots: list[dict[str, int]] = []
        self._names: list[list[str]] = []
        self._staged: list[StagedRecord] = []
        self.lengths = Counter(lengths)
        for checked in moments:
            self._snapshots.append({stream: self.lengths[stream] for stream in checked.streams})
            self._names.append(
                [
                    content.layout.file(self.lengths[stream_of(content.layout.path)], content.part)
                    for content in checked.contents
                ]
            )
            self.lengths.update(checked.streams)
        contents = [content for checked in moments for content in checked.contents]
        names = [name for of_moment in self._names for name in of_moment]
        self._files = BulkFiles(path / STORE_FOLDER, dict(zip(names, contents, strict=True)))

    def run(self, workers: Workers, *, rank: int, world: int, clock: Callable[[], float]) -> list[CommitRecord]:
        """Do it; when this returns, all is on disk.

        Returns
        -------
        list of CommitRecord
            This rank's records, one for each moment.

        Raises
        ------
        OSError
            The disk is full, read-only or failed. What was renamed by then is committed.
        """
        self._files.start(workers)
        entries = self._files.entries()
        previous = self._previous
        for number, checked in enumerate(self._moments):
            record = replace(
                moment_record(checked, self._snapshots[number], rank=rank, world=world, time=float(clock())),
                sequence=self._sequence + number,
                previous=chain_link(previous),
                files={name: entries[name] for name in self._names[number]},
            )
            staged = stage_record(self._commits, record)
            self._staged.append(staged)
            self._files.also(staged.write)
            previous = staged.record
        self._files.wait()
        # All that they list is on disk. In order, so that at any moment the log has no holes; one sync for all names.
        for staged in self._staged:
            staged.commit()
        sync_folder(self._commits)
        return [staged.record for staged in self._staged]

    def undo(self, *, rank: int) -> bool:
        """Delete what was written, if nothing of it is committed yet; returns whether that is so.

        What cannot be deleted is swept at the next opening.
        """
        if not record_is_absent(self._commits, self._sequence, rank):
            return False
        self._files.discard()
        for staged in self._staged:
            with contextlib.suppress(OSError):
                staged.temporary.unlink(missing_ok=True)
        return True


def moment_record(
    checked: CheckedMoment, snapshots: Mapping[str, int], *, rank: int, world: int, time: float
) -> CommitRecord:
    """Return a rank's record of a moment, without its place in the log and its files."""
    moment = checked.moment
    record = CommitRecord(
        sequence=-1,
        previous="",
        kind="part",
        time=time,
        rank=rank,
        epoch=int(moment.epoch),
        step=int(moment.step),
        skipped=tuple(stream for stream in checked.streams if stream in moment.skipped),
        samples=checked.samples,
        health=checked.health,
        batch_health=checked.batch_health,
    )
    if rank:
        return record
    return replace(
        record,
        kind="moment",
        world=world,
        epoch_complete=bool(moment.epoch_complete),
        parameters=moment.parameters,
        snapshots=snapshots,
        metrics=checked.metrics,
    )
