"""A slow twin of the reader of a log, written from FORMAT.md, sections 5.1 to 5.6: nothing of the package."""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def stored_records(commits: Path) -> tuple[dict[int, dict[int, dict[str, Any]]], int]:
    """Return every record by rank and sequence, and behind which record rank 0's segments end."""
    found: dict[int, dict[int, dict[str, Any]]] = {0: {}}
    folded = 0
    for path in commits.iterdir():
        if match := re.fullmatch(r"(\d{8,})(?:\.r([1-9]\d*))?\.json", path.name):
            lines = [(int(match[1]), path.read_bytes())]
        elif match := re.fullmatch(r"segment-(\d{8,})-(\d{8,})(?:\.r([1-9]\d*))?\.jsonl", path.name):
            lines = list(enumerate(path.read_bytes().splitlines(keepends=True), start=int(match[1])))
            if not match[3]:
                folded = max(folded, int(match[2]) + 1)
        else:
            continue
        rank = int(match[match.lastindex] if match.lastindex == len(match.groups()) else 0)
        for sequence, line in lines:
            if line != b"\n":
                body, checksum = line[: -len(',"checksum":"00000000"}\n')], json.loads(line)["checksum"]
                assert f"{zlib.crc32(body):08x}" == checksum, path
                found.setdefault(rank, {})[sequence] = json.loads(line)
    return found, folded


def read_committed(commits: Path) -> dict[str, Any]:
    """Return what a log says: the committed sequences, live ones, status per stream, files, samples of each batch."""
    ranks, _ = stored_records(commits)
    log = ranks[0]
    committed = []
    for sequence in range(len(log)):
        record = log[sequence]
        if record["kind"] == "moment":
            others = range(1, record.get("world", 1))
            if any(sequence not in ranks.get(rank, {}) for rank in others):
                break
        committed.append(sequence)

    def records_of(sequence: int) -> list[dict[str, Any]]:
        if log[sequence]["kind"] != "moment":
            return [log[sequence]]
        return [ranks[rank][sequence] for rank in range(log[sequence].get("world", 1))]

    superseded: set[int] = set()
    lost: set[str] = set()
    for sequence in committed:
        record = log[sequence]
        if record["kind"] == "rewind":
            superseded |= {s for s in range(sequence) if s > record["keep"] and log[s]["kind"] == "moment"}
        if record["kind"] == "loss":
            lost |= set(record["lost"])
    status: dict[str, list[int]] = {"probe": [], "weights": [], "batches": []}
    samples: list[list[int]] = []
    files: dict[str, tuple[int, str]] = {}
    for sequence in committed:
        record = log[sequence]
        records = records_of(sequence)
        names = {}
        for one in records:
            names.update(one.get("files", {}), **one.get("part_files", {}))
        for stream, index in sorted(record.get("snapshots", {}).items()):
            assert index == len(status[stream])
            is_gap = record["kind"] == "gap"
            for one in records:
                if stream in one.get("skipped", []) or (stream != "weights" and one["kind"] == "gap"):
                    is_gap = True
            if any(name in lost and name.startswith(stream + "/") for name in names):
                is_gap = True
            status[stream].append(2 if is_gap else 1 if sequence in superseded else 0)
            if stream == "batches":
                samples.append([0 if is_gap else one.get("samples", [0])[0] for one in records])
        files.update({name: tuple(entry) for name, entry in names.items()})
    return {
        "committed": committed,
        "live": [s for s in committed if log[s]["kind"] == "moment" and s not in superseded],
        "status": status,
        "files": {name: entry for name, entry in files.items() if name not in lost},
        "samples": samples,
    }
