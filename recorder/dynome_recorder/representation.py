"""How the recorder's objects look in a terminal and in a notebook: one `Display`, three forms.

The rule to keep: showing an object never changes it, never raises, and reads nothing from disk.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console, ConsoleOptions, RenderResult

    from dynome_recorder.capture.probe import Probe
    from dynome_recorder.schedule import Schedule

_WIDTH = 110


@dataclass(frozen=True)
class Display:
    """What is shown of an object: a title, named facts, a table.

    Attributes
    ----------
    title
        The first line.
    facts
        Pairs of name and value, one per line; values that are empty are left out.
    headings, rows
        The table; no headings, no table. The first column is aligned to the left, the others to the right.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        """Return plain text, 110 columns wide."""
        from rich.console import Console

        stream = io.StringIO()
        Console(file=stream, width=_WIDTH, color_system=None, legacy_windows=False).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, facts and table."""
        from rich.table import Table
        from rich.text import Text

        yield Text(self.title, style="bold")
        facts = self._told()
        width = max((len(name) for name, _ in facts), default=0) + 2
        for name, value in facts:
            yield Text.assemble((f"{name:<{width}}", "bold"), value)
        if self.headings:
            table = Table(pad_edge=False)
            for number, name in enumerate(self.headings):
                table.add_column(name, justify="right" if number else "left", overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(cell) for cell in row))
            yield table

    def _repr_html_(self) -> str:
        import html

        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in self._told())
        table = row(self.headings, "th") + "".join(row(cells, "td") for cells in self.rows) if self.headings else ""
        return (
            f"<p><code>{html.escape(self.title)}</code></p>"
            + (f"<dl>{facts}</dl>" if facts else "")
            + (f"<table>{table}</table>" if table else "")
        )

    def _told(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.facts if value]


def show_recorder(
    *,
    path: object,
    model: str,
    state: str,
    completed: int | None,
    step: int,
    schedules: Mapping[str, Schedule],
    sites: int | None = None,
    probe: Probe | None = None,
    degraded: str | None = None,
    statistics: Mapping[str, float] | None = None,
) -> Display:
    """Return what is shown of a recorder.

    Parameters
    ----------
    path, model
        The run directory and the class of the model.
    state
        ``"not open"``, ``"recording"``, ``"closed"``.
    completed, step
        Epochs (None: not started) and optimizer steps done.
    schedules
        Per stream, when it is recorded.
    sites
        How many sites are recorded; None before the plan is made.
    probe
        The probe.
    degraded
        Why recording stopped, None where it did not.
    statistics
        What the recorder measured of itself, by name.
    """
    done = "" if completed is None else f"epoch {completed}, step {step:,}"
    return Display(
        title=f"Recorder of {model} in {path}",
        facts=(
            ("state", f"stopped: {degraded}" if degraded else state),
            ("done", done),
            ("sites", "" if sites is None else f"{sites}"),
            *((stream, str(schedule)) for stream, schedule in schedules.items()),
            ("samples", "" if probe is None else _probe_text(probe)),
            *((name.replace("_", " "), f"{value:,.4g}") for name, value in (statistics or {}).items()),
        ),
    )


def show_probe(probe: Probe) -> Display:
    """Return what is shown of a probe; loads nothing."""
    return Display(
        title="Probe",
        facts=(
            ("samples", _probe_text(probe)),
            ("batches", f"{len(probe.batch_sizes())} of up to {probe.batch_size} samples"),
            ("rows", "all of the data in every pass" if probe.transductive else ""),
        ),
    )


def show_schedule(schedule: Schedule, *, epochs: int = 20) -> Display:
    """Return what is shown of a schedule: what makes it, and the first moments that it makes due."""
    due = [str(epoch) for epoch in range(epochs + 1) if schedule.due_epoch(epoch)]
    steps = [str(step) for step in range(1, 1001) if schedule.due_step(step)]
    return Display(
        title=str(schedule),
        facts=(
            ("epochs", _series(due, f"up to {epochs}")),
            ("steps", _series(steps, "up to 1,000")),
        ),
    )


def _probe_text(probe: Probe) -> str:
    choice = "class-balanced" if probe.balanced else "random"
    return f"{probe.size:,} of {probe.population:,}, {choice}, seed {probe.seed}"


def _series(moments: list[str], reach: str) -> str:
    if not moments:
        return ""
    shown = ", ".join(moments[:12]) + (", ..." if len(moments) > 12 else "")
    return f"{shown} ({len(moments)} {reach})"
