"""Inspecting a recording: is everything that was committed still there, bit for bit.

What is checked: ``run.json``; every copy of every commit record and the chain they form; every committed file (size;
`deep`: checksum); every view and every ``zarr.json`` against the log they derive from; what an interrupted write left.
The lock file, ``analysis.zarr`` and the quarantine are not part of what was recorded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynome_recorder.errors import CorruptRecordingError
from dynome_recorder.storage.files import check_file
from dynome_recorder.storage.format import COMMITS_FOLDER, STORE_FOLDER, Json
from dynome_recorder.storage.layout import check_node
from dynome_recorder.storage.logscan import Finding, problem_of, scan_log
from dynome_recorder.storage.manifest import check_fit
from dynome_recorder.storage.publish import node_documents, read_published
from dynome_recorder.storage.records import COMMITTED, CommitRecord, LogState, replay_log
from dynome_recorder.storage.run import layouts, read_run, streams
from dynome_recorder.storage.sweep import find_orphans, find_stale_views
from dynome_recorder.storage.views import Views, build_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Finding", "Verification", "inspect"]

ESSENTIAL = frozenset(
    {
        "zarr_format",
        "node_type",
        "data_type",
        "chunk_grid",
        "chunk_key_encoding",
        "fill_value",
        "codecs",
        "dimension_names",
    }
)
"""Members of a ``zarr.json`` that decide how data is read; the shape is checked apart, attributes may grow."""


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify.verify`.

    Attributes
    ----------
    path
        The recording's folder.
    deep
        Whether every byte was read.
    in_progress
        Whether a recorder was writing while it was verified.
    findings
        Everything found, damage first. After a repair: what is left.
    records, files, stored_bytes
        Commit records; committed files that must be there; their size in bytes.
    snapshots
        Per stream: number of snapshots that are neither superseded nor lost.
    lost
        Per stream: indices of snapshots that were committed and are recorded as lost.
    repairs
        What a repair did, in words, in order.
    """

    path: Path
    deep: bool
    in_progress: bool
    findings: tuple[Finding, ...]
    records: int = 0
    files: int = 0
    stored_bytes: int = 0
    snapshots: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()

    @property
    def damaged_files(self) -> frozenset[str]:
        """Paths below ``store.zarr`` of everything that damage was found in."""
        prefix = f"{STORE_FOLDER}/"
        return frozenset(
            finding.file.removeprefix(prefix)
            for finding in self.findings
            if finding.severity == "damage" and finding.file.startswith(prefix)
        )

    @property
    def clean(self) -> bool:
        """Whether nothing at all was found."""
        return not self.findings

    @property
    def valid(self) -> bool:
        """Whether no damage was found: everything committed (and not recorded as lost) is readable."""
        return all(finding.severity != "damage" for finding in self.findings)


def inspect(
    folder: Path,
    *,
    deep: bool,
    in_progress: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Do the work of :func:`verify.verify` without repairing; the caller says whether a recorder may be writing."""
    try:
        run = read_run(folder)
    except CorruptRecordingError as error:
        finding = Finding("run.json", problem_of(error, folder / "run.json"), repairable=False)
        return Verification(folder, deep, in_progress, (finding,))
    published = read_published(folder)  # before the log: a recorder commits first and publishes later
    scan = scan_log(folder, published)
    findings = scan.findings
    # Behind a hole in the log nothing is certain about views, but the files that later records list still are.
    state = replay_log(record for _, record in sorted(scan.records.items()))
    has_hole = bool(scan.missing or scan.missing_parts)
    if not scan.missing:
        try:
            check_fit(folder, run, state)
        except CorruptRecordingError as error:
            findings.append(Finding(COMMITS_FOLDER, problem_of(error, folder / COMMITS_FOLDER), repairable=False))
    findings += check_bulk(folder, state.files, deep=deep, progress=progress)
    if not has_hole and all(finding.repairable for finding in findings):
        # Views derive from the log: where it has a hole, they can neither be judged nor trusted.
        findings += check_store(folder, run, state.records, published, in_progress=in_progress)
    if not in_progress:
        for path in find_orphans(folder, run, state):
            problem = "never committed, or its commit record is lost" if has_hole else "never committed"
            findings.append(Finding(str(path.relative_to(folder)), problem, "harmless"))
    else:
        findings = [finding for finding in findings if finding.severity == "damage"]
    return Verification(
        path=folder,
        deep=deep,
        in_progress=in_progress,
        findings=tuple(sorted(findings, key=lambda finding: (finding.severity, finding.file))),
        records=len(scan.records),
        files=len(state.files),
        stored_bytes=sum(size for size, _ in state.files.values()),
        snapshots={stream: state.status[stream].count(COMMITTED) for stream in streams(run)},
        lost={stream: state.lost(stream) for stream in streams(run)},
    )


def check_bulk(
    folder: Path,
    files: Mapping[str, tuple[int, str]],
    *,
    deep: bool,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[Finding]:
    """Yield what is wrong with the committed files."""
    store = folder / STORE_FOLDER
    for done, (name, (size, checksum)) in enumerate(files.items()):
        if progress is not None and done % 64 == 0:
            progress("Verifying", done, len(files))
        try:
            check_file(store / name, size=size, checksum=checksum if deep else None)
        except CorruptRecordingError as error:
            yield Finding(f"{STORE_FOLDER}/{name}", problem_of(error, store / name))
    if progress is not None:
        progress("Verifying", len(files), len(files))


def check_store(
    folder: Path,
    run: Mapping[str, Json],
    records: tuple[CommitRecord, ...],
    published: tuple[int, str] | None,
    *,
    in_progress: bool,
) -> Iterator[Finding]:
    """Yield what is wrong with views and metadata, all of which derive from the log.

    A publishing that was cut off leaves newer rows and newer array metadata beside the older root; so rows are compared
    as far as the root shows them, and a shape lies between what the root shows and what is committed.
    """
    store = folder / STORE_FOLDER
    arrays = layouts(run)
    shown = replay_log(records[: 0 if published is None else published[0] + 1])
    whole = replay_log(records)
    shown_views, whole_views = (
        build_views(run, shown),
        build_views(run, whole),
    )
    yield from _check_view_chunks(folder, shown_views, whole_views)
    expected = node_documents(arrays, shown_views, _lengths(shown))
    ceiling = node_documents(arrays, whole_views, _lengths(whole))
    root = _read_node(store / "zarr.json")
    if isinstance(root, str):
        yield Finding(f"{STORE_FOLDER}/zarr.json", root)
    else:
        consolidated = root.get("consolidated_metadata", {}).get("metadata", {})
        for path, document in expected.items():
            if problem := _compare_node(consolidated.get(path, {}), document, document):
                yield Finding(f"{STORE_FOLDER}/zarr.json", f"{path}: {problem}")
                break
        if root["attributes"].get("run_id") != run["run_id"]:
            yield Finding(f"{STORE_FOLDER}/zarr.json", "belongs to another run")
    for path, document in expected.items():
        node = _read_node(store / path / "zarr.json")
        problem = (
            node if isinstance(node, str) else _compare_node(node, document, None if in_progress else ceiling[path])
        )
        if problem:
            yield Finding(f"{STORE_FOLDER}/{path}/zarr.json", problem)
    behind = len(records) - len(shown.records)
    if behind and isinstance(root, dict):
        yield Finding(f"{STORE_FOLDER}/zarr.json", f"the last {behind} commits are not published yet", "harmless")
    if not in_progress:
        for stale in find_stale_views(store, whole_views):
            yield Finding(str(stale.relative_to(folder)), "beyond the end of its array", "harmless")


def _check_view_chunks(folder: Path, shown: Views, whole: Views) -> Iterator[Finding]:
    """Yield view chunks that do not hold what the log says; they may already say what a later record changed."""
    for path, column in shown.columns.items():
        chunks = zip(column.chunks(dirty_only=False), whole.columns[path].chunks(dirty_only=False), strict=False)
        for (name, rows), (_, later) in chunks:
            file = folder / STORE_FOLDER / name
            try:
                values = column.layout.decode(file.read_bytes())
            except OSError:
                yield Finding(f"{STORE_FOLDER}/{name}", "missing")
                continue
            if values is None:
                yield Finding(f"{STORE_FOLDER}/{name}", "damaged (its length or crc32c is wrong)")
                continue
            stored = values[: len(rows)]
            if not (
                np.array_equal(stored, rows, equal_nan=True)
                or np.array_equal(stored, later[: len(rows)], equal_nan=True)
            ):
                yield Finding(f"{STORE_FOLDER}/{name}", "does not hold what the commit log says")


def _read_node(path: Path) -> dict[str, Json] | str:
    """Return a ``zarr.json``, or what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError:
        return "missing"
    if not check_node(data):
        return "damaged (its checksum does not match)"
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return "not JSON"
    return document if isinstance(document, dict) else "not a JSON object"


def _compare_node(node: Mapping[str, Json], floor: Mapping[str, Json], ceiling: Mapping[str, Json] | None) -> str:
    """Return what is wrong with a node: it must read as `floor` does, its length between those of floor and ceiling."""
    for member in sorted(ESSENTIAL & floor.keys()):
        if node.get(member) != floor[member]:
            return f"{member} is {node.get(member)!r} in place of {floor[member]!r}"
    if "shape" in floor:
        shape = node.get("shape") or [-1]
        longest = shape[0] if ceiling is None else ceiling["shape"][0]
        if shape[1:] != floor["shape"][1:] or not floor["shape"][0] <= shape[0] <= longest:
            return f"shape is {node.get('shape')} in place of {floor['shape']}"
    return ""


def _lengths(state: LogState) -> dict[str, int]:
    return {stream: len(values) for stream, values in state.status.items()}
