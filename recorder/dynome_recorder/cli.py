"""The command line ``dynome``: what the base install can do, and room for what dynome_analysis adds.

Commands of other packages come from the entry-point group ``dynome.commands``: each entry is a function
``register(group)`` that adds click commands and is cheap, because it runs for every command that is not ours.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynome_recorder.console import CommandGroup, json_option, missing_extra, show, show_progress, stream_lines, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["main"]

ANALYSIS_COMMANDS = {
    "analyze": "Compute connectomes, signatures and reconfiguration.",
    "demo": "Train on real data, record, analyse, replay, predict, report.",
    "predict": "Predict final performance from early epochs.",
    "replay": "Replay stopping and learning-rate rules.",
    "report": "Write a self-contained HTML report.",
}
"""Commands of the "analysis" extra, known by name so that a base install can say what brings them."""


class DynomeGroup(CommandGroup):
    """The top-level group; asks other packages for commands only when it has to."""

    _asked = False

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return our own command, else one of another package."""
        return super().get_command(ctx, cmd_name) or self._others().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self._others()})

    def _others(self) -> Mapping[str, click.Command]:
        if not self._asked:
            self._asked = True
            for entry in entry_points(group="dynome.commands"):
                try:
                    entry.load()(self)
                except ModuleNotFoundError as error:
                    for name, text in ANALYSIS_COMMANDS.items():
                        if name not in self.commands:
                            self.add_command(_unavailable(name, text, (error.name or "").partition(".")[0]))
        for name, text in ANALYSIS_COMMANDS.items():
            if name not in self.commands:
                self.add_command(_unavailable(name, text, "dynome_analysis"))
        return self.commands


def _unavailable(name: str, text: str, module: str) -> click.Command:
    """Return a command that takes anything and answers which extra it needs."""

    @click.command(
        name,
        help=f'{text} (Not installed: pip install "dynome[analysis]")',
        short_help=f"{text} (not installed)",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=True,
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise missing_extra(module)

    return command


@click.group(cls=DynomeGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dynome", prog_name="dynome")
def main() -> None:
    """Record what a network does while it trains, once; analyse it many times."""


@main.command()
@click.argument("recording", type=click.Path(path_type=Path))
@json_option
def info(recording: Path, *, as_json: bool) -> None:
    """Show what a recording holds."""
    from dynome_recorder.info import describe_recording

    document = describe_recording(recording)
    show(document, as_json=as_json, table=lambda: info_table(document))


@main.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte and compare checksums, not only sizes.")
@click.option("--repair", is_flag=True, help="Publish, sweep, quarantine what is damaged, record what is lost.")
@json_option
def verify(recording: Path, *, deep: bool, repair: bool, as_json: bool) -> int:
    """Check that everything that was committed is still there.

    Exits with 1 when damage is found (and left); what an interrupted write left behind is harmless and exits with 0.
    """
    from dynome_recorder.storage.verify import verify as verify_recording

    with show_progress() as progress:
        result = verify_recording(recording, deep=deep, repair=repair, progress=progress)
    document = {
        "path": str(result.path),
        "valid": result.valid,
        "clean": result.clean,
        "deep": result.deep,
        "in_progress": result.in_progress,
        "records": result.records,
        "files": result.files,
        "stored_bytes": result.stored_bytes,
        "snapshots": result.snapshots,
        "lost": result.lost,
        "findings": [
            {
                "file": finding.file,
                "problem": finding.problem,
                "severity": finding.severity,
                "repairable": finding.repairable,
            }
            for finding in result.findings
        ],
        "repairs": list(result.repairs),
    }
    show(document, as_json=as_json, table=lambda: verification_table(document))
    return 0 if result.valid else 1


@main.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--follow/--no-follow", default=True, help="Go on until the recorder is gone.", show_default=True)
@click.option("--wait", is_flag=True, help="Wait for a recording that does not exist yet.")
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(min=0), help="Commits to begin with.")
@click.option("--interval", default=1.0, show_default=True, type=float, help="Seconds between two looks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, as things happen.")
def tail(recording: Path, *, follow: bool, wait: bool, lines: int, interval: float, as_json: bool) -> None:
    """Follow a recording while it is made.

    One line per commit, and one where the recorder goes back, stops recording, ends or was killed. Ctrl-C ends it. Of
    all commands, this one alone prints more than one JSON object: one per line.
    """
    from dynome_recorder.tail import event_line
    from dynome_recorder.tail import tail as events

    with stream_lines() as write:
        for event in events(recording, lines=lines, follow=follow, wait=wait, interval=interval):
            write(to_json(event) if as_json else event_line(event))


def info_table(document: Mapping[str, Any]) -> RenderableType:
    """Return what :func:`dynome_recorder.info.describe_recording` says, for people."""
    epochs, size = document["epochs"], document["size"]
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    snapshots = "; ".join(
        f"{stream}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "committed")
        for stream, counts in (
            (stream, {**counts, "skipped": document["skipped"][stream]})
            for stream, counts in document["snapshots"].items()
        )
    )
    first, last, complete = epochs["first"], epochs["last"], epochs["last_complete"]
    span = "none yet" if last is None else f"{first} to {last} (complete to {'none' if complete is None else complete})"
    ratio = size["uncompressed_bytes"] / size["stored_bytes"] if size["stored_bytes"] else 1.0
    parameter_count = document["model"]["parameter_count"]
    model = str(document["model"].get("class", "unknown"))
    for name, value in (
        ("recording", document["path"]),
        ("status", f"{document['status']}, last commit {document['last_commit'] or 'none'}"),
        *([("stopped at", document["degraded"])] if document["degraded"] else []),
        ("run id", document["run_id"]),
        ("format", document["format"]),
        ("created", document["created"]),
        ("model", model if parameter_count is None else f"{model}, {parameter_count:,} parameters"),
        ("epochs", span),
        ("snapshots", snapshots),
        *([("processes", ", ".join(map(str, document["ranks"])))] if document["ranks"] not in ([], [1]) else []),
        ("schedules", _pairs(document["schedules"])),
        ("probe", _pairs(document["probe"])),
        ("hyper-parameters", _pairs(document["hyperparameters"])),
        ("optimizer", _pairs(document["optimizer"] or {})),
        ("size", f"{_bytes(size['stored_bytes'])} in {size['files']:,} files ({ratio:.2f}x compressed)"),
        ("analysed", "yes" if document["analysed"] else "no"),
    ):
        facts.add_row(name, Text(str(value)))
    arrays = Table(title="Recorded arrays", title_justify="left")
    for heading in ("array", "shape", "dtype"):
        arrays.add_column(heading, overflow="fold")
    arrays.add_column("per snapshot", justify="right")
    arrays.add_column("on disk", justify="right")
    batches = [
        {**entry, "name": f"{entry['name']} ({'gradients' if entry['path'].endswith('/gradient') else 'batches'})"}
        for entry in document["batches"]
    ]
    for entry in [*document["sites"], *batches, *document["weights"]]:
        shape = (
            " x ".join(f"{n} {axis}" for n, axis in zip(entry["shape"], entry["dimensions"], strict=True)) or "scalar"
        )
        sizes = (_bytes(entry["bytes_per_snapshot"]), _bytes(entry["stored_bytes"]))
        arrays.add_row(Text(entry["name"]), Text(shape), entry["dtype"], *sizes)
    parts: list[RenderableType] = [facts, Text(), arrays]
    rows = [(kind, name, entry) for kind in ("epoch", "step") for name, entry in document["metrics"][kind].items()]
    if rows:
        metrics = Table("metric", "per", "values", "last", title="Metrics", title_justify="left")
        for kind, name, entry in rows:
            metrics.add_row(
                Text(name), kind, f"{entry['count']:,}", f"{entry['last']:.6g} at {entry[f'last_{kind}']:,}"
            )
        parts += [Text(), metrics]
    for site, counts in document["health"].items():
        parts.append(
            Text(f"{site}: " + ", ".join(f"{count} {problem}" for problem, count in counts.items()), style="yellow")
        )
    return Group(*parts)


def verification_table(document: Mapping[str, Any]) -> RenderableType:
    """Return the result of a verification, for people."""
    parts: list[RenderableType] = [Text(f"repair: {action}") for action in document["repairs"]]
    if document["findings"]:
        table = Table("file", "problem", "severity", "repairable")
        for finding in document["findings"]:
            repairable = "yes" if finding["repairable"] else "no"
            table.add_row(Text(finding["file"]), Text(finding["problem"]), finding["severity"], repairable)
        parts.append(table)
    for stream, indices in document["lost"].items():
        if not indices:
            continue
        parts.append(Text(f"{stream}: snapshots {', '.join(map(str, indices))} are recorded as lost"))
    verdict = "clean" if document["clean"] else "valid" if document["valid"] else "damaged"
    depth = "every byte read" if document["deep"] else "sizes only, --deep reads every byte"
    amount = f"{document['records']:,} commit records, {document['files']:,} files, {_bytes(document['stored_bytes'])}"
    busy = "; being recorded now" if document["in_progress"] else ""
    way_out = ""
    if not document["valid"]:
        can_repair = all(finding["repairable"] for finding in document["findings"])
        way_out = "; 'dynome verify --deep --repair' makes it valid again" if can_repair else "; restore it from a copy"
    parts.append(Text(f"{document['path']}: {verdict} ({amount}; {depth}{busy}){way_out}"))
    return Group(*parts)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
