"""Measure the hot paths against named peers and write the page: ``make benchmark``."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import replace

import click

from . import machine, page

# Title, module, generator of rows. "loops-large" takes up to an hour the first time, so it runs only when named. Tables
# about models in training can run on another device; the page then holds both.
TABLES = {
    "connectomes": ("Connectomes", "connectomes", "rows"),
    "births": ("Births and deaths", "births", "rows"),
    "streaming": ("Beyond memory", "streaming", "rows"),
    "loops": ("Rips H1", "loops", "rows"),
    "loops-large": ("Rips H1 at the limits", "loops", "large"),
    "distances": ("Distances", "distances", "rows"),
    "centrality": ("Centrality of connectomes", "centrality", "rows"),
    "graphs": ("Weight graphs", "graphs", "rows"),
    "summaries": ("Summaries", "summaries", "rows"),
    "cluster": ("Analysis of a recording", "cluster", "rows"),
    "recording": ("Recording", "recording", "rows"),
    "commit": ("Committing a snapshot", "recording_commit", "rows"),
    "reading": ("Reading a recording", "recording_reading", "rows"),
    "overhead": ("What recording costs training", "overhead", "rows"),
}
ON_DEVICES = ("recording", "overhead")


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice(list(TABLES)))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(tables: tuple[str, ...], device: str) -> None:
    """Measure TABLES, by default all but loops-large; each replaces its section of the page, row by row."""
    chosen = tables or tuple(ON_DEVICES if device != "cpu" else (table for table in TABLES if table != "loops-large"))
    others = [table for table in chosen if device != "cpu" and table not in ON_DEVICES]
    if others:
        raise click.UsageError(f"{others[0]} does not train a model; on {device} run: {', '.join(ON_DEVICES)}.")
    place = machine.name_device(device)
    for name in chosen:
        title, module_name, generator = TABLES[name]
        start = time.perf_counter()
        module = importlib.import_module(f".{module_name}", __package__)
        found = []
        for row in getattr(module, generator)(**({"device": device} if name in ON_DEVICES else {})):
            found.append(replace(row, operation=f"{row.operation} ({place})") if place else row)
            print(page.line(row), file=sys.stderr, flush=True)
            page.update(f"{title} on {place}" if place else title, getattr(module, "NOTE", ""), found)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"written: {page.RESULTS}")


if __name__ == "__main__":
    main()
