"""What a recording will hold and cost, before anything is written.

A plan is frozen data; its text, rich and HTML forms show the same rows.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console, ConsoleOptions, RenderResult

    from dynome_recorder.capture.reductions import SiteLayout
    from dynome_recorder.schedule import Schedule

_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class PlannedWeight:
    """One recorded parameter: its first name, shape, dtype, and the other names of a tied one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a `Recorder` is going to write; sizes are before compression.

    Attributes
    ----------
    path
        The run directory.
    continues
        Whether a recording is there already.
    sites
        The recorded sites with their shapes, units and dtypes.
    weights
        The recorded parameters; empty where weights are not recorded.
    probe
        Text of the probe; ``samples`` is its size.
    schedules
        Per stream, when it is recorded.
    epochs, steps_per_epoch
        Length of the run that the totals are for; ``steps_per_epoch`` None where unknown.
    unhookable
        What cannot be recorded, with the reason.
    free_bytes
        Free space where the run directory is or will be.
    """

    path: Path
    continues: bool
    sites: tuple[SiteLayout, ...]
    weights: tuple[PlannedWeight, ...]
    samples: int
    probe: str
    schedules: Mapping[str, Schedule]
    epochs: int
    steps_per_epoch: int | None
    unhookable: tuple[tuple[str, str], ...]
    free_bytes: int

    @property
    def units(self) -> int:
        """Units of all sites together, which is the size of the joint connectome."""
        return sum(layout.units for layout in self.sites)

    @property
    def bytes_per_snapshot(self) -> dict[str, int]:
        """Bytes of one snapshot of each stream."""
        sizes = {
            "probe": self.samples * sum(layout.bytes_per_sample for layout in self.sites),
            "weights": sum(weight.bytes for weight in self.weights),
        }
        return {stream: sizes[stream] for stream in self.schedules}

    @property
    def snapshots(self) -> dict[str, int | None]:
        """Snapshots of each stream in the whole run; None where that needs unknown ``steps_per_epoch``."""
        return {
            stream: schedule.count(epochs=self.epochs, steps_per_epoch=self.steps_per_epoch)
            for stream, schedule in self.schedules.items()
        }

    @property
    def bytes_per_run(self) -> int | None:
        """Bytes of the whole run; None where the number of snapshots is unknown."""
        return self._total(self.bytes_per_snapshot)

    @property
    def files(self) -> int | None:
        """Data files of the whole run, one per snapshot and array; None where the number of snapshots is unknown."""
        arrays = {"probe": len(self.sites), "weights": len(self.weights)}
        return self._total({stream: arrays[stream] for stream in self.schedules})

    def _total(self, per_snapshot: Mapping[str, int]) -> int | None:
        total = 0
        for stream, count in self.snapshots.items():
            if count is None:
                return None
            total += count * per_snapshot[stream]
        return total

    def __str__(self) -> str:
        """Return the plan as plain text, 110 columns wide."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=110, color_system=None, legacy_windows=False)
        console.print(self)
        text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
        return "\n".join(line.rstrip() for line in text.splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a table of sites, the totals, and what cannot be hooked."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(f"Plan of {self.path}"), title_justify="left", pad_edge=False)
        for number, name in enumerate(_HEADER):
            table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
        for row in self._rows():
            table.add_row(*(Text(cell) for cell in row))
        yield table
        for name, value in self._facts():
            yield Text.assemble((f"{name:<14}", "bold"), value)
        for what, why in self.unhookable:
            yield Text.assemble(("not recorded  ", "yellow"), f"{what}: {why}")

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        sites = row(_HEADER, "th") + "".join(row(cells, "td") for cells in self._rows())
        facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in self._facts())
        missing = "".join(f"<li>{html.escape(what)}: {html.escape(why)}</li>" for what, why in self.unhookable)
        return f"<p>Plan of <code>{html.escape(str(self.path))}</code></p><table>{sites}</table><dl>{facts}</dl>" + (
            f"<p>Not recorded:</p><ul>{missing}</ul>" if missing else ""
        )

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                layout.site.name,
                layout.site.type,
                _shape(layout.output_shape),
                layout.reduction or "",
                str(layout.units),
                layout.dtype,
                f"{self.samples * layout.bytes_per_sample / _MEGABYTE:.3f}",
            )
            for layout in self.sites
        ]

    def _facts(self) -> list[tuple[str, str]]:
        run, files = self.bytes_per_run, self.files
        per_snapshot = self.bytes_per_snapshot
        facts = [
            (
                "probe",
                f"{self.probe}; {self.schedules['probe']}; {self.units} units,"
                f" {_size(per_snapshot['probe'])} per snapshot",
            )
        ]
        if "weights" in self.schedules:
            count = sum(_count(weight.shape) for weight in self.weights)
            facts.append(
                (
                    "weights",
                    f"{len(self.weights)} tensors, {count:,} values; {self.schedules['weights']};"
                    f" {_size(per_snapshot['weights'])} per snapshot",
                )
            )
        length = f"{self.epochs} epochs" + (f" of {self.steps_per_epoch} steps" if self.steps_per_epoch else "")
        if run is None or files is None:
            facts.append(("per run", "unknown until plan(epochs=..., steps_per_epoch=...) says how long it is"))
        else:
            facts.append(("per run", f"{length}: {_size(run)} before compression, {files:,} data files"))
        facts.append(
            ("disk", f"{_size(self.free_bytes)} free" + ("; not enough" if (run or 0) > self.free_bytes else ""))
        )
        facts.append(("folder", "holds a recording, which is continued" if self.continues else "new"))
        return facts


_HEADER = ("site", "module", "output per sample", "reduction", "units", "dtype", "MB per snapshot")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _size(count: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} bytes"
