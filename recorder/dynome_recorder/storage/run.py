"""``run.json``: what is fixed when a recording starts. Written once, compared when it is continued."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dynome_recorder.errors import CorruptRecordingError, FingerprintError, InvalidArgumentError, RecordingNotFoundError
from dynome_recorder.storage.format import (
    COMMITS_FOLDER,
    FORMAT_NAME,
    FORMAT_VERSION,
    RUN_FILE,
    STREAMS,
    Json,
    check_version,
    encode_component,
    read_sealed,
    seal,
    unseal,
)
from dynome_recorder.storage.layout import ArraySpec, BulkLayout, bulk_layout

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["RunDescription", "check_fingerprint", "layouts", "parts", "read_run", "run_document", "share_of", "streams"]

# What run.json says is joined to paths: nothing in it may lead out of the store.
_ARRAY_PATH = re.compile(
    r"probe/sites/(?!\.{1,2}/)[^/\\]+/activation|weights/(?!\.{1,2}/)[^/\\]+/weight|batches/sample_id"
    r"|batches/sites/(?!\.{1,2}/)[^/\\]+/(activation|gradient)"
)

# Near the top of run.json, readable also where the rest is damaged or of another version.
_DECLARED_VERSION = re.compile(rb'"version": "([0-9]+\.[0-9]+)"')
_PEEKED_BYTES = 200

RESERVED_PARAMETERS = frozenset({"epoch", "step", "time", "status"})
SAMPLE_ID = "sample_id"

# Kinds of arrays in ``fingerprint``: where they lie, and which names are taken there. The last two came with 1.1.
_KINDS: tuple[tuple[str, str, str, frozenset[str]], ...] = (
    ("sites", "probe/sites", "activation", frozenset()),
    ("weights", "weights", "weight", RESERVED_PARAMETERS),
    ("batches", "batches/sites", "activation", frozenset()),
    ("gradients", "batches/sites", "gradient", frozenset()),
)


@dataclass(frozen=True)
class RunDescription:
    """What a recording is of.

    Attributes
    ----------
    sites
        What is recorded at each site, in the order of the model's calls.
    weights
        What is recorded of each parameter; empty where no weights are recorded.
    batches, gradients
        What is recorded at each site of a training batch; empty where batches, or gradients, are not recorded.
    batch_size
        Samples of a training batch on one rank, at most; None without batches.
    parts
        Into how many parts the samples of a snapshot are cut, one per rank of the first session.
    probe
        Hash, size and seed of the probe, whatever makes two probes the same.
    model
        Class, parameters and layer graph.
    optimizer
        Its description, or None.
    hyperparameters
        Whatever the user wants to find again.
    schedules
        Text of the schedule of each stream.
    versions
        Versions of what recorded it.
    """

    sites: Mapping[str, ArraySpec]
    weights: Mapping[str, ArraySpec] = field(default_factory=dict)
    batches: Mapping[str, ArraySpec] = field(default_factory=dict)
    gradients: Mapping[str, ArraySpec] = field(default_factory=dict)
    batch_size: int | None = None
    parts: int = 1
    probe: Mapping[str, Json] = field(default_factory=dict)
    model: Mapping[str, Json] = field(default_factory=dict)
    optimizer: Mapping[str, Json] | None = None
    hyperparameters: Mapping[str, Json] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Json] = field(default_factory=dict)


def run_document(description: RunDescription, *, run_id: str, created: float) -> dict[str, Json]:
    """Return the content of ``run.json``, with the layout of every array chosen.

    Raises
    ------
    InvalidArgumentError
        A name, shape or dtype cannot be stored.
    """
    entries: dict[str, dict[str, Json]] = {}
    for kind, prefix, leaf, reserved in _KINDS:
        specs: Mapping[str, ArraySpec] = getattr(description, kind)
        if specs or kind in ("sites", "weights"):
            entries[kind] = {
                name: _entry(name, spec, f"{prefix}/{encode_component(name, reserved=reserved)}/{leaf}")
                for name, spec in specs.items()
            }
    fingerprint: dict[str, Json] = {**entries, "probe": dict(description.probe)}
    if description.batches:
        rows = description.batch_size
        if rows is None:
            raise InvalidArgumentError("batches need a batch_size, the largest number of samples in one.")
        for kind in ("batches", "gradients"):
            for name, spec in getattr(description, kind).items():
                _check_batch_spec(name, spec, batch_size=rows, parts=description.parts)
        spec = ArraySpec((rows * description.parts,), "int64", ("sample",), {"fill": -1}, rows=rows)
        fingerprint["samples"] = {SAMPLE_ID: _entry(SAMPLE_ID, spec, f"batches/{SAMPLE_ID}")}
        fingerprint["batch_size"] = rows
    if description.parts > 1:
        fingerprint["parts"] = description.parts
    return {
        "format": {"name": FORMAT_NAME, "version": FORMAT_VERSION},
        "run_id": run_id,
        "created": datetime.fromtimestamp(created, UTC).isoformat(timespec="microseconds"),
        "fingerprint": fingerprint,
        "model": dict(description.model),
        "optimizer": None if description.optimizer is None else dict(description.optimizer),
        "hyperparameters": dict(description.hyperparameters),
        "schedules": dict(description.schedules),
        "versions": dict(description.versions),
    }


def _check_batch_spec(name: str, spec: ArraySpec, *, batch_size: int, parts: int) -> None:
    """Raise InvalidArgumentError unless an array of batches has one file of whole samples for each rank."""
    spec.check(name)
    length = spec.shape[0] if spec.shape else 0
    each = spec.rows or length
    if not each or length != each * parts or each % batch_size:
        raise InvalidArgumentError(
            f"{name}: {length} rows in files of {each} are not {parts} parts of {batch_size} samples each."
        )
    if spec.dimensions[0] == "sample" and each != batch_size:
        # xarray opens a tree of groups only where an axis has one length from a group down to its children.
        raise InvalidArgumentError(
            f'{name}: has {each // batch_size} rows for each sample; call its first axis something else than "sample".'
        )


def _entry(name: str, spec: ArraySpec, path: str) -> dict[str, Json]:
    spec.check(name)
    layout = bulk_layout(path, spec, {"element": "bulk", "name": name})
    entry: dict[str, Json] = {
        "path": layout.path,
        "shape": list(layout.shape),
        "dtype": layout.dtype,
        "dimensions": list(layout.dimensions),
        "inner": list(layout.inner),
        "attributes": dict(spec.attributes),
    }
    if layout.chunk != layout.shape:
        entry["chunk"] = list(layout.chunk)
    return entry


def read_run(path: Path) -> dict[str, Json]:
    """Read and check ``run.json`` of the recording at `path`.

    Raises
    ------
    RecordingNotFoundError
        There is no recording.
    CorruptRecordingError
        ``run.json`` is damaged, or missing though there are commits.
    UnsupportedVersionError
        A format that this version does not know.
    """
    file = path / RUN_FILE
    if not file.is_file():
        commits = path / COMMITS_FOLDER
        if commits.is_dir() and any(entry.suffix in {".json", ".jsonl"} for entry in commits.iterdir()):
            raise CorruptRecordingError(f"{file}: missing, but there are commits; restore it from a copy.")
        what = "holds no run.json" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
        raise RecordingNotFoundError(f"{path}: not a recording ({what}); give the folder that a Recorder wrote.")
    try:
        document = read_sealed(file)
    except CorruptRecordingError as error:
        # Every version seals run.json alike (FORMAT.md), so this is damage; still say so where it looks like an update.
        declared = _DECLARED_VERSION.search(file.read_bytes()[:_PEEKED_BYTES]) if file.is_file() else None
        if declared is None or declared[1].decode() == FORMAT_VERSION:
            raise
        problem = (
            f"{error.problem} It declares format version {declared[1].decode()}, this dynome reads {FORMAT_VERSION}."
        )
        raise CorruptRecordingError(problem) from error
    check_version(document.get("format"), where=file)
    try:
        if not isinstance(document["run_id"], str):
            raise TypeError("run_id")
        for array in layouts(document):
            if not _ARRAY_PATH.fullmatch(array):
                raise ValueError(f"path {array!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptRecordingError(f"{file}: not a description of a recording ({error!r}).") from error
    return document


def layouts(run: Mapping[str, Json]) -> dict[str, BulkLayout]:
    """Return the layout of every bulk array of a recording, by path below ``store.zarr``, stream by stream."""
    return {
        entry["path"]: BulkLayout(
            path=entry["path"],
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            dimensions=tuple(entry["dimensions"]),
            inner=tuple(entry["inner"]),
            attributes={
                **entry["attributes"],
                "element": "bulk",
                "name": name,
                "logical_dtype": entry["dtype"],
            },
            chunk=tuple(entry.get("chunk", entry["shape"])),
        )
        for kind in ("sites", "weights", "batches", "gradients", "samples")
        for name, entry in run["fingerprint"].get(kind, {}).items()
    }


def streams(run: Mapping[str, Json]) -> tuple[str, ...]:
    """Return the streams that a recording shows: probe and weights always, batches where they are recorded."""
    return STREAMS if run["fingerprint"].get("batches") else STREAMS[:2]


def parts(run: Mapping[str, Json]) -> int:
    """Return into how many parts the samples of a snapshot are cut."""
    return int(run["fingerprint"].get("parts", 1))


def share_of(rank: int, world: int, count: int) -> range:
    """Return which of a probe snapshot's ``count`` parts a rank writes: neighbours, so that its rows lie together.

    As many parts as there were ranks when the recording was started; a session of another size shares them out. Of a
    batch, rank r has part r, and ranks beyond the parts have none.
    """
    return range(rank * count // world, (rank + 1) * count // world)


def check_fingerprint(stored: Mapping[str, Json], wanted: Mapping[str, Json], *, where: Path) -> None:
    """Raise FingerprintError, naming the first field that differs, unless a recording can be continued.

    Sites, weights, batches and gradients are compared by name, order, shape, dtype, dimensions and what their units
    are, probe and model's parameters whole. What may change between two sessions (schedules, hyper-parameters,
    versions, the optimizer) is not compared.
    """

    def differ(field_name: str, before: Json, now: Json) -> FingerprintError:
        return FingerprintError(
            f"{where}: cannot be continued, {field_name} was {before!r} and is {now!r} now; "
            "restore it, or record to another folder."
        )

    for kind in ("sites", "weights", "batches", "gradients"):
        before, now = (document["fingerprint"].get(kind, {}) for document in (stored, wanted))
        if list(before) != list(now):
            raise differ(kind, list(before), list(now))
        for name in before:
            for member in ("shape", "dtype", "dimensions"):
                if before[name][member] != now[name][member]:
                    raise differ(f"{member} of {name}", before[name][member], now[name][member])
            # Means and maxima of the same channels have one shape and one name, and are not the same units.
            for member in ("reduction", "chosen_units", "chosen_positions"):
                values = [entry[name]["attributes"].get(member) for entry in (before, now)]
                if values[0] != values[1]:
                    raise differ(f"{member.replace('_', ' ')} of {name}", *map(_shortened, values))
    for member in ("batch_size", "parts"):
        before, now = (document["fingerprint"].get(member) for document in (stored, wanted))
        if before != now:
            raise differ(member, before, now)
    for name in {**stored["fingerprint"]["probe"], **wanted["fingerprint"]["probe"]}:
        before, now = stored["fingerprint"]["probe"].get(name), wanted["fingerprint"]["probe"].get(name)
        if before != now:
            raise differ(f"probe {name}", before, now)
    before, now = stored["model"].get("parameters"), wanted["model"].get("parameters")
    if before != now:
        raise FingerprintError(
            f"{where}: cannot be continued, the model's parameters differ (names, shapes, dtypes or order); "
            "restore the model, or record to another folder."
        )


def _shortened(value: Json) -> Json:
    """Return a value that fits into a line: long lists by their beginning and length."""
    return f"{value[:3]} ... ({len(value)})" if isinstance(value, list) and len(value) > 6 else value


def normalised(document: Mapping[str, Json]) -> dict[str, Json]:
    """Return a document as it reads back from disk: tuples and numpy numbers then equal what was stored."""
    return unseal(seal(document), where="run.json")
