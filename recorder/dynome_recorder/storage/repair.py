"""Repairing a recording: everything that can still be read becomes readable, everything that is lost is said to be.

Order, so that a repair that is cut off can be repeated: copy what is damaged to the quarantine, complete the log, move
damaged and unlisted files away, record the losses, publish. Committed data is moved, never deleted.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.commits import fold_segments, record_path, sweep_partial, uncommitted_records, write_record
from dynome_recorder.storage.files import sync_folder, write_atomically
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER, STREAMS, Json
from dynome_recorder.storage.inspection import Verification, inspect
from dynome_recorder.storage.lifecycle import acquire_lock, others_gone, storage_errors
from dynome_recorder.storage.logscan import LogScan, scan_log
from dynome_recorder.storage.manifest import committed_state
from dynome_recorder.storage.publish import Publisher, read_published, stream_of
from dynome_recorder.storage.records import CommitRecord, LogState, chain_link, replay_log
from dynome_recorder.storage.run import layouts, read_run
from dynome_recorder.storage.sweep import find_stale_views, quarantine, sweep_orphans
from dynome_recorder.storage.views import build_views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["repair_recording"]


def repair_recording(
    folder: Path, *, deep: bool, progress: Callable[[str, int, int], None] | None = None
) -> Verification:
    """Repair a recording and verify it again; see :func:`dynome_recorder.storage.verify.verify`."""
    try:
        run = read_run(folder)
    except CorruptRecordingError:
        return inspect(folder, deep=deep, in_progress=False)  # nothing can be done without it; say what is wrong
    with storage_errors(folder):
        lock = acquire_lock(folder)
        try:
            with others_gone(folder):
                before = inspect(folder, deep=deep, in_progress=False, progress=progress)
                if before.clean or not all(finding.repairable for finding in before.findings):
                    return before
                repairs = _repair(folder, run, damaged=before.damaged_files)
                # What is still committed was read above, and a repair changes none of it.
                after = inspect(folder, deep=False, in_progress=False)
        finally:
            lock.release()
    return replace(after, deep=deep, repairs=tuple(repairs))


def _repair(folder: Path, run: Mapping[str, Json], *, damaged: frozenset[str]) -> list[str]:
    commits = folder / COMMITS_FOLDER
    published = read_published(folder)
    commits.mkdir(exist_ok=True)
    sweep_partial(commits)
    scan = scan_log(folder, published)
    repairs = complete_log(folder, run, scan, published)
    state = committed_state(folder, run)
    for rank in range(max((record.world for record in state.records), default=1)):
        fold_segments(commits, length=len(state.records), rank=rank)

    # Where the log or the root is damaged, what no record lists may be what a lost record listed.
    doubtful = bool(scan.missing or scan.missing_parts or scan.damaged) or published is None
    if orphans := sweep_orphans(folder, run, state, keep=doubtful):
        done = "moved to quarantine" if doubtful else "deleted"
        repairs.append(f"{done} {len(orphans)} files that no commit record lists")

    state, lost = record_losses(folder, state, damaged)
    repairs += [f"{name}: damaged or missing, its snapshot is recorded as lost" for name in lost]

    views = build_views(run, state)
    for path in find_stale_views(folder / STORE_FOLDER, views):
        path.unlink()
    publisher = Publisher(folder / STORE_FOLDER, run_id=run["run_id"], layouts=layouts(run))
    lengths = {stream: len(state.status[stream]) for stream in STREAMS}
    publisher.publish(views, lengths, state.records[-1] if state.records else None)
    publisher.sync()
    repairs.append(f"published {len(state.records)} commit records")
    return repairs


def complete_log(folder: Path, run: Mapping[str, Json], scan: LogScan, published: tuple[int, str] | None) -> list[str]:
    """Give every sequence a good record: good lines of damaged segments are kept, gaps stand in for what is lost."""
    commits = folder / COMMITS_FOLDER
    repairs: list[str] = []
    for path in scan.damaged:
        quarantine(folder, path, keep=True)
        repairs.append(f"{path.relative_to(folder)}: damaged, copied to quarantine")
    for rank, lines in {0: scan.lines, **scan.part_lines}.items():
        for sequence, line in lines.items():
            single = record_path(commits, sequence, rank)
            if line.path in scan.damaged:
                write_atomically(single, line.data, sync=True)
            elif single in scan.damaged:
                single.unlink()
    for path in scan.damaged:
        if path.name.startswith("segment-"):
            path.unlink()
    for path in uncommitted_records(commits, scan.length):
        quarantine(folder, path)
        repairs.append(f"{path.relative_to(folder)}: not committed by all ranks, moved to quarantine")
    for rank, sequence in scan.missing_parts:
        write_record(commits, part_gap(scan, rank, sequence))
        repairs.append(f"record {sequence} of rank {rank} is lost, and the activations of that moment with it")
    sync_folder(commits)
    for gap in gaps(folder, run, scan, published):
        write_record(commits, gap)
        lost = " and ".join(f"{stream} snapshot {index}" for stream, index in gap.snapshots.items()) or "no snapshot"
        repairs.append(f"record {gap.sequence} is lost, and {lost} with it")
    return repairs


def part_gap(scan: LogScan, rank: int, sequence: int) -> CommitRecord:
    """Return the record that stands in for a lost one of another rank; it is kept, so that the next may follow it."""
    chain = scan.parts.setdefault(rank, {})
    later = min((number for number in chain if number > sequence), default=None)
    # The next record names the lost one only where no other of the same rank is lost between them.
    is_next = later is not None and not any(r == rank and sequence < s < later for r, s in scan.missing_parts)
    after = chain[later] if later is not None and is_next else None
    before = next((chain[earlier] for earlier in sorted(chain, reverse=True) if earlier < sequence), None)
    gap = CommitRecord(
        sequence=sequence,
        previous=chain_link(before),
        kind="gap",
        time=time.time(),
        rank=rank,
        replaces=after.previous if after is not None else "",
    )
    chain[sequence] = gap = CommitRecord.decode(gap.encode(), where=record_path(Path(COMMITS_FOLDER), sequence, rank))
    return gap


def gaps(folder: Path, run: Mapping[str, Json], scan: LogScan, published: tuple[int, str] | None) -> list[CommitRecord]:
    """Return the records that stand in for the lost ones.

    Which snapshots they held follows from the indices around them; at the end of the log, from the files on disk.
    """
    known = dict(scan.records)
    counts = dict.fromkeys(STREAMS, 0)
    result = []
    for sequence in range(max([*known, *scan.missing], default=-1) + 1):
        if sequence not in known:
            after = known.get(sequence + 1)
            replaces = after.previous if after is not None else ""
            if not replaces and published is not None and published[0] == sequence:
                replaces = published[1]
            snapshots = {
                stream: counts[stream] for stream in STREAMS if _had(folder, run, scan, stream, sequence, counts)
            }
            gap = CommitRecord(
                sequence=sequence,
                previous=chain_link(known.get(sequence - 1)),
                kind="gap",
                time=time.time(),
                snapshots=snapshots,
                replaces=replaces,
            )
            # Encoded once to learn its checksum, which the next gap names.
            known[sequence] = gap = CommitRecord.decode(gap.encode(), where=folder)
            result.append(gap)
        for stream, index in known[sequence].snapshots.items():
            counts[stream] = index + 1
    return result


def _had(
    folder: Path, run: Mapping[str, Json], scan: LogScan, stream: str, sequence: int, counts: Mapping[str, int]
) -> bool:
    """Return whether a lost record may have held the next snapshot of a stream."""
    for later in sorted(number for number in scan.records if number > sequence):
        if stream in scan.records[later].snapshots:
            return scan.records[later].snapshots[stream] > counts[stream]
    return any(
        (folder / STORE_FOLDER / name).exists()
        for path, layout in layouts(run).items()
        if stream_of(path) == stream
        for name in layout.files(counts[stream])
    )


def record_losses(folder: Path, state: LogState, damaged: frozenset[str]) -> tuple[LogState, list[str]]:
    """Move committed files that were found damaged to the quarantine, and commit a record that names what is lost."""
    store = folder / STORE_FOLDER
    lost = [name for name in state.files if name in damaged]
    if not lost:
        return state, []
    for name in lost:
        if (store / name).exists():
            quarantine(folder, store / name)
    last = state.records[-1]
    record = CommitRecord(
        sequence=last.sequence + 1, previous=chain_link(last), kind="loss", time=time.time(), lost=tuple(lost)
    )
    record = write_record(folder / COMMITS_FOLDER, record)
    return replay_log([*state.records, record]), lost
