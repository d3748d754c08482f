"""What a report is made of, as plain data between the sections that say something and the template that shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM
    from numpy.typing import NDArray

__all__ = ["Chapter", "Drawing", "Fact", "Section", "Table", "describe", "number", "percent", "plural"]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes
    ----------
    caption : str
        What the rows and columns are.
    header : tuple of str
    rows : tuple of tuple of str
        Texts as shown.
    folded : bool
        Whether it is folded away until asked for, as the numbers behind a figure are.
    words : bool
        Whether it holds words, which start at the left, and not numbers.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    words: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes
    ----------
    model : LayoutDOM
        The Bokeh figure.
    title : str
        A short title.
    caption : str
        What one sees, in plain words, with its marks.
    description : str
        The same for a reader who cannot see it: what the curves do, in numbers.
    size : {"whole", "half", "third", "square"}
        Share of the page's width where there is room.
    """

    model: LayoutDOM
    title: str
    caption: str
    description: str
    size: Literal["whole", "half", "third", "square"] = "whole"


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, figures and tables; ``missing`` says why something is not there."""

    key: str
    title: str
    paragraphs: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A number that is shown large, with what it counts."""

    value: str
    label: str


@dataclass(frozen=True)
class Chapter:
    """All sections about one recording, or about several together."""

    key: str
    title: str
    facts: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


def number(value: float | None, form: str = ".3g") -> str:
    """Return a number as text, a dash where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else format(value, form).replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe(name: str, values: NDArray[Any]) -> str:
    """Return a curve in words, for a reader who cannot see it."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return f"{name}: no values."
    first, last, lowest, highest = (
        number(float(value)) for value in (finite[0], finite[-1], finite.min(), finite.max())
    )
    return f"{name}: from {first} to {last}, lowest {lowest}, highest {highest}."
