"""The page of results: one section per table, each replaced when its table is measured anew."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING

from . import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .timing import Row

RESULTS = Path(__file__).with_name("RESULTS.md")
UNITS = {"ms": 1e-3, "MiB": 2.0**20, "MB/s": 1e6, "": 1.0}
HEAD = """# Benchmarks

Written by `make benchmark`, a section per table (`make benchmark ARGS="births loops"` measures only these).
Milliseconds, medians of runs that take turns in one process; in brackets how many times as long as ours. Arms slower
than two seconds ran twice, those slower than eight once. Only ratios carry over to another machine. Memory is what the
peak lies above the input, in a fresh process.
"""


def update(title: str, note: str, rows: Sequence[Row]) -> None:
    """Put a section into the page, in place of the one with its title, or after the others."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = {part.split("\n", 1)[0]: f"## {part}" for part in re.split(r"^## ", text, flags=re.M)[1:]}
    measured = f"*{datetime.date.today()}, {machine.describe()}.*"
    sections[title] = "\n\n".join([f"## {title}", *([note] if note else []), *tables(rows), measured]) + "\n"
    RESULTS.write_text("\n".join([HEAD, *(part.rstrip() + "\n" for part in sections.values())]), encoding="utf-8")


def tables(rows: Sequence[Row]) -> list[str]:
    """One table per operation: arms down, sizes across."""
    operations = list(dict.fromkeys(row.operation for row in rows))
    return [table(operation, [row for row in rows if row.operation == operation]) for operation in operations]


def table(operation: str, rows: Sequence[Row]) -> str:
    """Arms down, sizes across; below them the memory and the share of the machine's limit, where measured."""
    unit = rows[0].unit
    lines = [[f"{operation}, {unit}" if unit else operation, *(row.size for row in rows)], ["---"] * (len(rows) + 1)]
    arms = list(dict.fromkeys(arm for row in rows for arm in row.values))
    lines += [[f"**{arm}**" if arm == arms[0] else arm, *(cell(row, arm) for row in rows)] for arm in arms]
    held = list(dict.fromkeys(arm for row in rows for arm in row.memory))
    lines += [[f"memory, {arm}", *(megabytes(row.memory.get(arm)) for row in rows)] for arm in held]
    for name in dict.fromkeys(row.limit_name for row in rows if row.limit is not None):
        lines.append([f"{name} as a share of ours", *(share(row) if row.limit_name == name else "" for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Row, arm: str) -> str:
    """An arm's milliseconds with its ratio to ours."""
    value = row.values.get(arm, "")
    if isinstance(value, str):
        return value
    ratio = row.ratio(arm)
    text = number(value / UNITS[row.unit])
    return text if ratio is None or arm == next(iter(row.values)) else f"{text} ({number(ratio)}x)"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def megabytes(value: int | None) -> str:
    """Mebibytes of a number of bytes."""
    return "" if value is None else f"{number(value / 2**20)} MiB"


def share(row: Row) -> str:
    """How much of our time the limit is."""
    ours = next(iter(row.values.values()))
    return "" if row.limit is None or isinstance(ours, str) else f"{row.limit / ours:.0%}"


def line(row: Row) -> str:
    """One line for the terminal while measuring."""
    return f"{row.operation}, {row.size}: " + "; ".join(f"{arm} {cell(row, arm)}" for arm in row.values)
