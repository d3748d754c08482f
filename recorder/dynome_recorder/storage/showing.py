"""What a recording shows while it grows: the committed log as views, published now and then, its records folded.

None of it can lose anything: it is derived from the log, and made again when the recording is opened.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from dynome_recorder.storage.commits import SEGMENT_LENGTH, fold_segments
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER, STREAMS, Json
from dynome_recorder.storage.publish import Publisher
from dynome_recorder.storage.ranks import folded_length
from dynome_recorder.storage.run import layouts
from dynome_recorder.storage.sweep import find_stale_views
from dynome_recorder.storage.views import build_views

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dynome_recorder.storage.records import CommitRecord, LogState

__all__ = ["Showing"]

logger = logging.getLogger(__name__)


class Showing:
    """The committed part of a recording, as rank 0 shows it; other ranks follow it and show nothing.

    Parameters
    ----------
    path
        Folder of the recording.
    run
        Content of ``run.json``.
    state
        What the log says.
    rank
        Of this process.
    interval
        Seconds between publishings; 0 publishes whenever something is committed.

    Attributes
    ----------
    last
        The last live moment, or None.
    last_complete_epoch
        The last epoch that is committed as complete, or None.
    tail
        The newest record of any kind that is committed by all ranks, or None.
    """

    def __init__(self, path: Path, run: Mapping[str, Json], state: LogState, *, rank: int, interval: float) -> None:
        self._path = path
        self._run = run
        self._rank = rank
        self._interval = interval
        self._publisher = Publisher(path / STORE_FOLDER, run_id=run["run_id"], layouts=layouts(run))
        self._published_at = -float("inf")
        self._folded = 0
        self.adopt(state)

    def adopt(self, state: LogState) -> None:
        """Take place at the end of a log."""
        self.last: CommitRecord | None = state.live[-1] if state.live else None
        complete = [record.epoch for record in state.live if record.epoch_complete]
        self.last_complete_epoch: int | None = complete[-1] if complete else None
        self.tail: CommitRecord | None = state.records[-1] if state.records else None
        self._lengths = Counter({stream: len(state.status[stream]) for stream in STREAMS})
        self._views = build_views(self._run, state)

    def add(self, record: CommitRecord) -> None:
        """Show one more moment, with what all ranks wrote; on another rank than 0 its own record."""
        self.last = record
        if self._rank:
            return
        if record.epoch_complete:
            self.last_complete_epoch = record.epoch
        self.tail = record
        self._lengths.update(record.snapshots.keys())
        self._views.append(record)

    def begin(self) -> None:
        """Publish when a recording is opened, over whatever a crash or a repair left."""
        for stale in find_stale_views(self._path / STORE_FOLDER, self._views):
            stale.unlink()
        self.publish()

    def publish(self) -> None:
        """Let plain Zarr readers see what is committed."""
        if self._rank == 0:
            self._publisher.publish(self._views, self._lengths, self.tail)
            self._published_at = time.monotonic()

    def sync(self) -> None:
        """Make what was published durable against a power cut."""
        self._publisher.sync()

    def tidy(self, next_sequence: int) -> None:
        """Fold and publish when it is time; a failure waits for the next time."""
        try:
            if next_sequence - self._folded >= SEGMENT_LENGTH:
                self._fold()
            if time.monotonic() - self._published_at >= self._interval:
                self.publish()
        except OSError as error:
            logger.warning("%s: committed, but not published yet (%s)", self._path, error)

    def _fold(self) -> None:
        commits = self._path / COMMITS_FOLDER
        if self._rank:
            length = folded_length(commits, self._folded)
        else:  # only what is committed by all: a segment must never hold a record that is swept later
            length = 0 if self.tail is None else self.tail.sequence + 1
        if length - self._folded >= SEGMENT_LENGTH:
            fold_segments(commits, length=length, rank=self._rank)
            self._folded = length // SEGMENT_LENGTH * SEGMENT_LENGTH
