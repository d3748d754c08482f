"""What a recording holds, in one plain document."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.shield import DEGRADED_FILE
from dynome_recorder.storage.format import ANALYSIS_FOLDER, read_sealed
from dynome_recorder.storage.manifest import Manifest, read_manifest
from dynome_recorder.storage.publish import stream_of
from dynome_recorder.storage.records import COMMITTED, SUPERSEDED
from dynome_recorder.storage.run import streams
from dynome_recorder.storage.verify import is_in_progress

__all__ = ["describe_recording"]


def describe_recording(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a recording holds, ready for JSON.

    Parameters
    ----------
    path
        The recording's folder.

    Returns
    -------
    dict
        ``path, run_id, format, created, status`` ("recording" or "idle"), ``degraded`` (when and why recording stopped
        although training went on, or None), ``commits, last_commit, epochs, snapshots, skipped`` (snapshots that were
        due and left out), ``ranks`` (numbers of processes that recorded), ``sites, weights, batches, metrics, health,
        size, model, probe, optimizer, hyperparameters, schedules, versions, analysed``.

    Raises
    ------
    RecordingNotFoundError, CorruptRecordingError, UnsupportedVersionError
        As :func:`dynome_recorder.storage.manifest.read_manifest`; sizes of all committed files are checked.
    """
    manifest = read_manifest(path)
    run, state = manifest.run, manifest.state
    stored = _stored_bytes(manifest)
    moments = manifest.live
    return {
        "path": os.fspath(manifest.path),
        "run_id": manifest.run_id,
        "format": run["format"]["version"],
        "created": run["created"],
        "status": "recording" if is_in_progress(manifest.path) else "idle",
        "degraded": _degraded(manifest),
        "commits": len(state.records),
        "last_commit": datetime.fromtimestamp(moments[-1].time, UTC).isoformat(timespec="seconds") if moments else None,
        "epochs": {
            "first": moments[0].epoch if moments else None,
            "last": moments[-1].epoch if moments else None,
            "last_complete": max((record.epoch for record in moments if record.epoch_complete), default=None),
            "last_step": moments[-1].step if moments else None,
        },
        "snapshots": {
            stream: {
                "committed": state.status[stream].count(COMMITTED),
                "superseded": state.status[stream].count(SUPERSEDED),
                "lost": len(state.lost(stream)),
            }
            for stream in streams(run)
        },
        "skipped": {stream: len(state.skipped(stream)) for stream in streams(run)},
        "ranks": sorted({record.world for record in state.records if record.kind == "moment"}),
        "sites": [_array(manifest, name, entry, stored) for name, entry in manifest.sites.items()],
        "weights": [_array(manifest, name, entry, stored) for name, entry in manifest.weights.items()],
        "batches": [
            _array(manifest, name, entry, stored)
            for kind in (manifest.batches, manifest.gradients)
            for name, entry in kind.items()
        ],
        "metrics": {
            "epoch": _metrics(manifest.epoch_metrics(), "epoch"),
            "step": _metrics(manifest.step_metrics(), "step"),
        },
        "health": _health(manifest),
        "size": {
            "files": len(state.files),
            "stored_bytes": sum(stored.values()),
            "uncompressed_bytes": sum(
                layout.nbytes * (len(state.status[stream_of(path)]) - len(manifest.gaps(stream_of(path))))
                for path, layout in manifest.layouts.items()
            ),
        },
        "model": {name: value for name, value in run["model"].items() if name not in {"layers", "parameters"}}
        | {"parameter_count": _parameter_count(run["model"])},
        "probe": run["fingerprint"]["probe"],
        "optimizer": run["optimizer"],
        "hyperparameters": run["hyperparameters"],
        "schedules": run["schedules"],
        "versions": run["versions"],
        "analysed": (manifest.path / ANALYSIS_FOLDER).is_dir(),
    }


def _degraded(manifest: Manifest) -> str | None:
    """Return when and why recording stopped although training went on, None where it did not."""
    note = manifest.path / DEGRADED_FILE
    if not note.is_file():
        return None
    try:
        return str(read_sealed(note).get("reason"))
    except CorruptRecordingError:
        return f"{DEGRADED_FILE} is there, and damaged."


def _stored_bytes(manifest: Manifest) -> dict[str, int]:
    """Return the bytes on disk of each bulk array."""
    stored = dict.fromkeys(manifest.layouts, 0)
    for name, (size, _) in manifest.state.files.items():
        stored[name.rpartition("/")[0]] = stored.get(name.rpartition("/")[0], 0) + size
    return stored


def _array(manifest: Manifest, name: str, entry: dict[str, Any], stored: dict[str, int]) -> dict[str, Any]:
    layout = manifest.layouts[entry["path"]]
    return {
        "name": name,
        "path": layout.path,
        "shape": list(layout.shape),
        "dimensions": list(layout.dimensions),
        "dtype": layout.dtype,
        "bytes_per_snapshot": layout.nbytes,
        "stored_bytes": stored[layout.path],
        "attributes": entry["attributes"],
    }


def _metrics(series: dict[str, Any], label: str) -> dict[str, Any]:
    return {
        name: {"count": len(values), f"last_{label}": int(labels[-1]), "last": float(values[-1])}
        for name, (labels, values) in series.items()
    }


def _health(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Return the counts of NaN, infinite and overflown activations per site over all live snapshots."""
    totals: dict[str, dict[str, int]] = {}
    for record in manifest.live:
        for site, counts in (*record.health.items(), *record.batch_health.items()):
            for problem, count in counts.items():
                site_totals = totals.setdefault(site, {})
                site_totals[problem] = site_totals.get(problem, 0) + count
    return totals


def _parameter_count(model: dict[str, Any]) -> int | None:
    """Return the number of weights of the model, shared ones once."""
    parameters = model.get("parameters")
    if not isinstance(parameters, list):
        return None
    count = 0
    for parameter in parameters:
        if not parameter.get("alias_of"):
            size = 1
            for length in parameter.get("shape", ()):
                size *= length
            count += size
    return count
