"""The forms of a plan: plain text, rich and HTML, made of the same rows, facts and warnings."""

from __future__ import annotations

import html
import io
import math
from typing import TYPE_CHECKING

from dynome_recorder.plan import WRITE_BYTES_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dynome_recorder.plan import Plan

_MEGABYTE = 1_000_000
_WHEN_FULL = {
    "block": "training waits when it is full",
    "thin": "snapshots are taken less often when it is full",
    "skip": "a snapshot without room is left out",
}


def to_text(plan: Plan) -> str:
    """Return plain text, 110 columns wide."""
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=110, color_system=None, legacy_windows=False).print(plan)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def to_rich(plan: Plan) -> Iterator[RenderableType]:
    """Yield the table and the lines below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Plan of {plan.path}"), title_justify="left", pad_edge=False)
    for number, name in enumerate(_header(plan)):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    for row in _rows(plan):
        table.add_row(*(Text(cell) for cell in row))
    yield table
    for name, value in facts(plan):
        yield Text.assemble((f"{name:<14}", "bold"), value)
    for text in warnings(plan):
        yield Text.assemble(("warning       ", "bold yellow"), text)
    for what, why in plan.notes:
        yield Text.assemble(("note          ", "cyan"), f"{what}: {why}")
    for what, why in plan.unhookable:
        yield Text.assemble(("not recorded  ", "yellow"), f"{what}: {why}")


def to_html(plan: Plan) -> str:
    """Return a fragment of HTML, every text escaped."""

    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    def listed(title: str, lines: list[str]) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        return f"<p>{title}:</p><ul>{items}</ul>" if lines else ""

    sites = row(_header(plan), "th") + "".join(row(cells, "td") for cells in _rows(plan))
    told = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts(plan))
    return (
        f"<p>Plan of <code>{html.escape(str(plan.path))}</code></p><table>{sites}</table><dl>{told}</dl>"
        + listed("Warnings", warnings(plan))
        + listed("Notes", [f"{what}: {why}" for what, why in plan.notes])
        + listed("Not recorded", [f"{what}: {why}" for what, why in plan.unhookable])
    )


def facts(plan: Plan) -> list[tuple[str, str]]:
    """Return what the plan says in words, as pairs of name and text."""
    sizes = {stream: _size(count) for stream, count in plan.bytes_per_snapshot.items()}
    shared = f" in {plan.parts} processes" if plan.parts > 1 else ""
    under = f", under autocast to {plan.autocast}" if plan.autocast else ""
    found = [
        (
            "probe",
            f"{plan.probe}{shared}{under}; {plan.schedules['probe']}; {plan.units} units,"
            f" {sizes['probe']} per snapshot",
        )
    ]
    if "batches" in plan.schedules:
        what = "activations and gradients" if plan.gradients else "activations"
        found.append(
            (
                "batches",
                f"{what} of {plan.batch_size} samples per step{' of each' if shared else ''}{shared};"
                f" {plan.schedules['batches']}; {sizes['batches']} per snapshot",
            )
        )
    if "weights" in plan.schedules:
        count = sum(math.prod(weight.shape) for weight in plan.weights)
        found.append(
            (
                "weights",
                f"{len(plan.weights)} tensors, {count:,} values; {plan.schedules['weights']};"
                f" {sizes['weights']} per snapshot",
            )
        )
    found += _costs(plan)
    if plan.buffer_bytes is not None:
        depths = ", ".join(f"{depth:,} of {stream}" for stream, depth in plan.queue_depth.items())
        found.append(
            (
                "queue",
                f"{_size(plan.buffer_bytes)} hold {depths} if alone; {_WHEN_FULL.get(plan.on_full, plan.on_full)}",
            )
        )
    run, files = plan.bytes_per_run, plan.files
    length = f"{plan.epochs} epochs" + (f" of {plan.steps_per_epoch} steps" if plan.steps_per_epoch else "")
    if run is None or files is None:
        found.append(("per run", "unknown until plan(epochs=..., steps_per_epoch=...) says how long it is"))
    else:
        found.append(("per run", f"{length}: {_size(run)} before compression, {files:,} data files"))
    enough = {None: "", True: "; enough", False: "; not enough"}[plan.fits]
    found.append(("disk", f"{_size(plan.free_bytes)} free{enough}"))
    found.append(("folder", "holds a recording, which is continued" if plan.continues else "new"))
    return found


def warnings(plan: Plan) -> list[str]:
    """Return what the user should look at before training, one line each."""
    found = []
    for stream, depth in plan.queue_depth.items():
        size, room = plan.bytes_in_queue[stream], _size(plan.buffer_bytes or 0)
        if depth == 0:
            then = "waits until it is empty" if plan.on_full == "block" else "finds no room unless it is empty"
            found.append(
                f"one snapshot of {stream} ({_size(size)}) is larger than the queue ({room}), and {then}; give"
                f" buffer_bytes={2 * size}, fewer samples or units, or a narrower dtype."
            )
    if plan.buffer_bytes is not None and plan.state_bytes > plan.buffer_bytes:
        found.append(
            f"the parameters ({_size(plan.state_bytes)}), which are digested after each epoch, are larger than the"
            f" queue ({_size(plan.buffer_bytes)}); give buffer_bytes={2 * plan.state_bytes}."
        )
    if plan.fits is False:
        found.append(
            f"the run needs {_size(plan.bytes_per_run or 0)} before compression and the disk has"
            f" {_size(plan.free_bytes)}; choose a sparser schedule, fewer units, a smaller probe or another disk."
        )
    rows = (plan.batch_size or 0) * plan.parts * min((layout.rows_per_sample for layout in plan.sites), default=1)
    if "batches" in plan.schedules and rows < plan.units:
        found.append(
            f"a batch has {rows} rows for {plan.units} units: correlations within it are of low rank and noisy; for"
            " connectomes prefer the probe, schedule=every(steps=...)."
        )
    return found


def _costs(plan: Plan) -> list[tuple[str, str]]:
    speed = f"at {WRITE_BYTES_PER_SECOND / _MEGABYTE:.0f} MB/s"
    writing = ", ".join(f"{_seconds(seconds)} for {stream}" for stream, seconds in plan.write_seconds.items())
    written = f"about {writing} to write a snapshot in the background ({speed}, assumed)"
    if plan.forward_seconds is None:
        return [("cost", written)]
    pauses = f"about {_seconds(plan.forward_seconds)} of training per snapshot of probe (forward passes, measured)"
    return [("cost", f"{pauses}; {written}")]


def _header(plan: Plan) -> tuple[str, ...]:
    header = ("site", "module", "output per sample", "reduction", "units", "dtype", "MB per snapshot")
    return (*header, "MB per batch") if "batches" in plan.schedules else header


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for layout in plan.sites:
        rows = f" ({layout.rows_per_sample} rows per sample)" if layout.rows_per_sample > 1 else ""
        cells: tuple[str, ...] = (
            layout.site.name,
            layout.site.type,
            " x ".join(map(str, layout.output_shape)) or "1",
            (layout.reduction or "") + rows,
            str(layout.units),
            layout.dtype,
            f"{plan.samples * layout.bytes_per_sample / _MEGABYTE:.3f}",
        )
        if "batches" in plan.schedules:
            count = (plan.batch_size or 0) * plan.parts * (2 if plan.gradients else 1)
            cells = (*cells, f"{count * layout.bytes_per_sample / _MEGABYTE:.3f}")
        found.append(cells)
    return found


def _size(count: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} bytes"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{1e3 * seconds:.2g} ms" if seconds >= 1e-4 else "0.1 ms"
