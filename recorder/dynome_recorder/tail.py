"""Following a recording while it is made: what is committed, and what becomes of its recorder. Needs no torch."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError
from dynome_recorder.shield import DEGRADED_FILE
from dynome_recorder.storage.following import LogFollower
from dynome_recorder.storage.format import RUN_FILE, decode_number, read_sealed
from dynome_recorder.storage.publish import read_published
from dynome_recorder.storage.run import read_run
from dynome_recorder.storage.verify import is_in_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynome_recorder.storage.records import CommitRecord

__all__ = ["event_line", "tail"]


def tail(
    path: str | os.PathLike[str],
    *,
    lines: int = 10,
    follow: bool = True,
    wait: bool = False,
    interval: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Yield what happens to a recording, as documents ready for JSON.

    Parameters
    ----------
    path
        The recording's folder.
    lines
        How many of the records that are there already to begin with.
    follow
        Go on until the recorder is gone; False ends after what is there.
    wait
        Wait for a recording that does not exist yet.
    interval
        Seconds between two looks.
    sleep
        What passes the time.

    Yields
    ------
    dict
        ``event`` says what it is:

        - ``"recording"``, first: ``path, run_id, created, recorder`` ("at work" or "gone"), ``commits``.
        - ``"commit"``: ``sequence, time, epoch, step, epoch_complete, snapshots`` (index per stream), ``skipped``
          (streams whose snapshot was left out), ``bytes``, ``epoch_metrics, step_metrics`` (per name the last ``step``
          and ``value`` and the ``count`` since the commit before), ``health`` (counts per site).
        - ``"rewind"``: ``sequence, time, epoch`` (the epoch that training went back to, None: the start).
        - ``"repair"``: ``sequence, time, lost`` (files) where a repair recorded a loss.
        - ``"degraded"``: ``epoch, step, time, reason``; recording has stopped and training goes on.
        - ``"end"``, last and only with ``follow``: ``recorder`` ("ended" or "killed"), ``commits, epoch, step``.

    Raises
    ------
    InvalidArgumentError
        If ``interval`` or ``lines`` is out of range.
    RecordingNotFoundError, CorruptRecordingError, UnsupportedVersionError
        There is no recording (and ``wait`` is False), or it is damaged.

    Notes
    -----
    A recorder that was killed is told from one that ended by what it left unpublished; one that was killed at a moment
    when all was published counts as ended. A look costs two file look-ups and one at the
    lock, however long the recording is.
    """
    if not interval > 0:
        raise InvalidArgumentError(f"interval must be a positive number of seconds; got {interval!r}.")
    if lines < 0:
        raise InvalidArgumentError(f"lines must be at least 0; got {lines!r}.")
    folder = Path(path)
    while wait and not (folder / RUN_FILE).exists():
        sleep(interval)
    run = read_run(folder)
    follower = LogFollower(folder)
    at_work = is_in_progress(folder)
    seen = follower.read()
    yield {
        "event": "recording",
        "path": os.fspath(folder),
        "run_id": run["run_id"],
        "created": run["created"],
        "recorder": "at work" if at_work else "gone",
        "commits": len(seen),
    }
    for record in seen[max(0, len(seen) - lines) :]:
        yield _event(record, follower.records)
    note = _degraded(folder)
    if note is not None:
        yield note
    while follow:
        at_work = is_in_progress(folder)  # asked before the log is read: a recorder that is gone adds nothing to it
        new = follower.read()
        for record in new:
            yield _event(record, follower.records)
        told, note = note, _degraded(folder)
        if note is not None and note != told:
            yield note
        if at_work:
            sleep(interval)
        elif not new:
            yield _end(folder, follower.records)
            return


def event_line(event: dict[str, Any]) -> str:
    """Return an event of `tail` as one line for people."""
    kind = event["event"]
    if kind == "recording":
        return f"{event['path']}: {_count(event['commits'], 'commit')}, recorder {event['recorder']}"
    if kind == "end":
        where = "nothing is committed" if event["epoch"] is None else f"last commit at {_place(event)}"
        return f"recorder {event['recorder']}; {where}" + (
            "; call the training script again to continue" if event["recorder"] == "killed" else ""
        )
    clock = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    if kind == "degraded":
        return f"{clock}  recording stopped, training goes on: {event['reason']}"
    if kind == "rewind":
        target = "before the first epoch" if event["epoch"] is None else f"the end of epoch {event['epoch']}"
        return f"{clock}  went back to {target}; what was recorded after it is superseded"
    if kind == "repair":
        return f"{clock}  repaired: {_count(len(event['lost']), 'file')} recorded as lost"
    parts = [f"{clock}  {_place(event)}"]
    metrics = {name: entry["value"] for name, entry in event["step_metrics"].items()} | event["epoch_metrics"]
    if metrics:
        parts.append(" ".join(f"{name}={_number(value)}" for name, value in metrics.items()))
    if event["snapshots"]:
        snapshots = ", ".join(f"{stream} {index}" for stream, index in event["snapshots"].items())
        parts.append(f"[{snapshots}; {_bytes(event['bytes'])}]")
    if event["skipped"]:
        parts.append(f"! skipped: {', '.join(event['skipped'])}")
    for stream, health in (("", event["health"]), ("batches of ", event["batch_health"])):
        for site, counts in health.items():
            parts.append(f"! {stream}{site}: " + ", ".join(f"{count} {problem}" for problem, count in counts.items()))
    return "  ".join(parts)


def _event(record: CommitRecord, records: list[CommitRecord]) -> dict[str, Any]:
    base = {"sequence": record.sequence, "time": _iso(record.time)}
    if record.kind == "rewind":
        kept = [one for one in records if one.sequence == record.keep]
        return {"event": "rewind", **base, "epoch": kept[0].epoch if kept else None}
    if record.kind != "moment":
        return {"event": "repair", **base, "lost": list(record.lost)}
    return {
        "event": "commit",
        **base,
        "epoch": record.epoch,
        "step": record.step,
        "epoch_complete": record.epoch_complete,
        "snapshots": dict(record.snapshots),
        "skipped": list(record.skipped),
        "bytes": sum(size for size, _ in record.files.values()),
        "epoch_metrics": {name: decode_number(value) for name, value in record.metrics.get("epoch", {}).items()},
        "step_metrics": {
            name: {
                "step": int(series["step"][-1]),
                "value": decode_number(series["value"][-1]),
                "count": len(series["step"]),
            }
            for name, series in record.metrics.get("step", {}).items()
        },
        "health": {site: dict(counts) for site, counts in record.health.items()},
        "batch_health": {site: dict(counts) for site, counts in record.batch_health.items()},
    }


def _degraded(folder: Path) -> dict[str, Any] | None:
    """Return the recorder's note that it has stopped, None where there is none (or it is being written)."""
    try:
        note = read_sealed(folder / DEGRADED_FILE)
    except (CorruptRecordingError, OSError):
        return None
    return {
        "event": "degraded",
        "epoch": note.get("epoch"),
        "step": note.get("step"),
        "time": _iso(float(note.get("time", 0.0))),
        "reason": note.get("reason"),
    }


def _end(folder: Path, records: list[CommitRecord]) -> dict[str, Any]:
    published = read_published(folder)
    # Closing publishes everything and gives the lock back after it.
    closed = published is not None and published[0] == (records[-1].sequence if records else -1)
    moments = [record for record in records if record.kind == "moment"]
    return {
        "event": "end",
        "recorder": "ended" if closed else "killed",
        "commits": len(records),
        "epoch": moments[-1].epoch if moments else None,
        "step": moments[-1].step if moments else None,
        "epoch_complete": moments[-1].epoch_complete if moments else None,
    }


def _place(event: dict[str, Any]) -> str:
    epoch = f"epoch {event['epoch']}" if event["epoch_complete"] else f"in epoch {event['epoch'] + 1}"
    return f"{epoch}, step {event['step']:,}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _number(value: float) -> str:
    return f"{value:.4g}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
