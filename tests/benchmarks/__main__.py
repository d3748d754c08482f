"""Measure the hot paths against named peers and write the table: ``make benchmark``."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from . import graphs, kernels, recording
from .timing import as_markdown, machine

RESULTS = Path(__file__).with_name("RESULTS.md")
TABLES = {"Kernels": kernels.rows, "Recording": recording.rows, "Weight graphs": graphs.rows}


def main() -> None:
    """Print each table as it is ready; write all of them at the end, so that an interrupted run leaves the old page."""
    parts = [
        "# Benchmarks\n",
        f"Written by `make benchmark` on {datetime.date.today()}: medians of interleaved runs on one machine. "
        "Only ratios carry over.\n",
        f"Machine: {machine()}.\n",
    ]
    for title, rows in TABLES.items():
        found = []
        for row in rows():
            print(
                row.operation,
                row.size,
                {name: f"{value * 1e3:.3g} ms" for name, value in row.medians.items()},
                file=sys.stderr,
            )
            found.append(row)
        parts += [f"## {title}\n", as_markdown(found)]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
