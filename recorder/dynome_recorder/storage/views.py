"""Views: the small arrays of ``store.zarr`` that are derived from the commit log and nothing else.

They let plain xarray show epochs, status and metrics beside the bulk arrays. They can be written again from the log at
any time, so a crash while they are written costs nothing. Rows are only ever appended; a rewind or a loss changes
``status``.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.storage.format import Json, decode_number, encode_component
from dynome_recorder.storage.layout import ViewLayout
from dynome_recorder.storage.records import COMMITTED, GAP, SUPERSEDED, CommitRecord, LogState
from dynome_recorder.storage.run import parts, streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["HEALTH_PROBLEMS", "Column", "Views", "build_views"]

HEALTH_PROBLEMS = ("nan", "inf", "overflow")
CHUNK_BYTES = 32768
SNAPSHOT_ROWS = 256
STEP_ROWS = 4096
RESERVED = {"step": frozenset({"step", "status"}), "epoch": frozenset({"epoch", "status"})}
"""Names in ``metrics/step`` and ``metrics/epoch`` that are taken; a metric of that name is percent-encoded."""


class Column:
    """One view while it grows: its layout, its rows, and the first row that is not published yet."""

    def __init__(self, layout: ViewLayout, *, rows: int = 0) -> None:
        self.layout = layout
        self.width = math.prod(layout.trailing)
        self._values = array("d" if layout.dtype == "float64" else "q")
        self.dirty = 0
        for _ in range(rows):
            self.append([math.nan if layout.dtype == "float64" else 0] * self.width)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._values) // self.width

    def append(self, row: Sequence[float]) -> None:
        """Add one row of :attr:`width` values."""
        self._values.extend(row)  # type: ignore[arg-type]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return a copy of some rows, shape (rows, *trailing)."""
        piece = self._values[start * self.width : stop * self.width]
        return np.frombuffer(piece, dtype="<" + self.layout.code).reshape(-1, *self.layout.trailing).copy()

    def chunks(self, *, dirty_only: bool) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield path below ``store.zarr`` and rows of each chunk that holds something (new)."""
        size = self.layout.rows
        for chunk in range(self.dirty // size if dirty_only else 0, -(-len(self) // size)):
            yield self.layout.file(chunk), self.rows(chunk * size, min((chunk + 1) * size, len(self)))


class Views:
    """All views of a recording, fed record by record in the order of the log."""

    def __init__(self, run: Mapping[str, Json]) -> None:
        fingerprint = run["fingerprint"]
        self.sites = {"probe": list(fingerprint["sites"]), "batches": list(fingerprint.get("batches", {}))}
        self.parts = parts(run)
        self.columns: dict[str, Column] = {}
        self.streams = streams(run)
        for stream in self.streams:
            for name, dtype in (("epoch", "int64"), ("step", "int64"), ("time", "float64"), ("status", "int64")):
                self._column(f"{stream}/{name}", dtype, ("snapshot",), SNAPSHOT_ROWS)
        for stream, sites in self.sites.items():
            if sites:
                attributes = {"sites": sites, "problems": list(HEALTH_PROBLEMS)}
                trailing = (len(sites), len(HEALTH_PROBLEMS))
                rows = max(1, min(SNAPSHOT_ROWS, CHUNK_BYTES // (8 * math.prod(trailing))))
                dimensions = ("snapshot", "site", "problem")
                self._column(f"{stream}/health", "int64", dimensions, rows, trailing=trailing, attributes=attributes)
        if "batches" in self.streams:
            self._column("batches/samples", "int64", ("snapshot", "part"), SNAPSHOT_ROWS, trailing=(self.parts,))
        for kind, rows in (("step", STEP_ROWS), ("epoch", SNAPSHOT_ROWS)):
            for name in (kind, "status"):
                self._column(f"metrics/{kind}/{name}", "int64", (kind,), rows)

    def _column(
        self,
        path: str,
        dtype: str,
        dimensions: tuple[str, ...],
        rows: int,
        *,
        trailing: tuple[int, ...] = (),
        attributes: Mapping[str, Json] | None = None,
        length: int = 0,
    ) -> Column:
        layout = ViewLayout(path, dtype, dimensions, trailing, rows, {"element": "view", **(attributes or {})})
        column = self.columns[path] = Column(layout, rows=length)
        return column

    def append(self, record: CommitRecord, *, superseded: bool = False, gaps: frozenset[str] = frozenset()) -> None:
        """Add the rows of one record.

        Parameters
        ----------
        record
            A record of any kind; those without snapshots and metrics add nothing.
        superseded
            Whether a later rewind leaves this record behind.
        gaps
            Streams whose snapshot in this record is lost.
        """
        status = SUPERSEDED if superseded else COMMITTED
        for stream in record.snapshots:
            if stream not in self.streams:
                continue  # a stream of a newer minor version
            lost = stream in gaps or stream in record.missing_streams
            row = {"epoch": record.epoch, "step": record.step, "time": record.time, "status": GAP if lost else status}
            for name, value in row.items():
                self.columns[f"{stream}/{name}"].append([value])
            if self.sites.get(stream):
                counted = record.health if stream == "probe" else record.batch_health
                health = [
                    counted.get(site, {}).get(problem, 0) for site in self.sites[stream] for problem in HEALTH_PROBLEMS
                ]
                self.columns[f"{stream}/health"].append(health)
            if stream == "batches":
                samples = [*record.samples, *(0 for _ in range(self.parts))]
                self.columns["batches/samples"].append([0] * self.parts if lost else samples[: self.parts])
        self._append_metrics("step", step_rows(record.metrics.get("step", {})), status, STEP_ROWS)
        epoch = {name: decode_number(value) for name, value in record.metrics.get("epoch", {}).items()}
        self._append_metrics("epoch", [(record.epoch, epoch)] if epoch else [], status, SNAPSHOT_ROWS)

    def _append_metrics(
        self, kind: str, rows: Sequence[tuple[int, Mapping[str, float]]], status: int, chunk_rows: int
    ) -> None:
        if not rows:
            return
        labels, statuses = self.columns[f"metrics/{kind}/{kind}"], self.columns[f"metrics/{kind}/status"]
        folder = f"metrics/{kind}/"
        for name in sorted({name for _, values in rows for name in values}):
            path = folder + encode_component(name, reserved=RESERVED[kind])
            if path not in self.columns:
                attributes = {"name": name}
                self._column(path, "float64", (kind,), chunk_rows, attributes=attributes, length=len(labels))
        metrics = [
            (column, column.layout.attributes["name"])
            for path, column in self.columns.items()
            if path.startswith(folder) and "name" in column.layout.attributes
        ]
        for label, values in rows:
            labels.append([label])
            statuses.append([status])
            for column, name in metrics:
                column.append([values.get(name, math.nan)])


def step_rows(metrics: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[tuple[int, dict[str, float]]]:
    """Return the step metrics of a record as rows: (step, value of each metric that has one), in order of step."""
    rows: dict[int, dict[str, float]] = {}
    for name, series in metrics.items():
        for step, value in zip(series["step"], series["value"], strict=True):
            rows.setdefault(int(step), {})[name] = decode_number(value)
    return sorted(rows.items())


def build_views(run: Mapping[str, Json], state: LogState) -> Views:
    """Return the views of a whole log, everything in them still to be published."""
    views = Views(run)
    live = {record.sequence for record in state.live}
    for record in state.records:
        gaps = frozenset(
            stream
            for stream, index in record.snapshots.items()
            if stream in state.status and state.status[stream][index] == GAP
        )
        views.append(record, superseded=record.kind == "moment" and record.sequence not in live, gaps=gaps)
    return views
