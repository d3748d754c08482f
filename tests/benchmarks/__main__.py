"""Measure the hot paths against named peers and write the page: ``make benchmark``."""

from __future__ import annotations

import importlib
import sys
import time

import click

from . import page

# Title, module, generator of rows. "loops-large" takes up to an hour the first time, so it runs only when named.
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
}


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice(list(TABLES)))
def main(tables: tuple[str, ...]) -> None:
    """Measure TABLES, by default all but loops-large; each replaces its section of the page, row by row."""
    for name in tables or [table for table in TABLES if table != "loops-large"]:
        title, module_name, generator = TABLES[name]
        start = time.perf_counter()
        module = importlib.import_module(f".{module_name}", __package__)
        found = []
        for row in getattr(module, generator)():
            found.append(row)
            print(page.line(row), file=sys.stderr, flush=True)
            page.update(title, getattr(module, "NOTE", ""), found)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"written: {page.RESULTS}")


if __name__ == "__main__":
    main()
