"""The steps that make units of a module's output, as small frozen objects with a text that builds them again.

The text goes into ``run.json``; two recordings with equal texts have the same units.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.schedule import check_count

# What a name does with (sample, channel, position, ...): spatial_mean, max; with (sample, position, ..., feature):
# tokens, mean, last, first; flatten makes a unit of every value.
ReductionName = Literal["spatial_mean", "max", "flatten", "tokens", "mean", "last", "first"]

CHANNELS_FIRST = frozenset({"spatial_mean", "max", "flatten"})

_JOIN = " then "
_POSITION = re.compile(r"position\((\d+)\)", re.ASCII)
_SUBSET = re.compile(r"subset\((units|positions)=(\d+)(?:, seed=(\d+))?\)", re.ASCII)


@dataclass(frozen=True)
class Named:
    """A reduction that needs no number."""

    name: str

    def __str__(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True)
class Position:
    """One position of (sample, position, feature); make it with `position`."""

    index: int

    def __str__(self) -> str:
        """Return what builds it."""
        return f"position({self.index})"


@dataclass(frozen=True)
class Subset:
    """A seeded choice of units or of positions; make it with `subset`."""

    axis: Literal["units", "positions"]
    count: int
    seed: int

    def __str__(self) -> str:
        """Return what builds it."""
        return f"subset({self.axis}={self.count}, seed={self.seed})"


Step: TypeAlias = "Named | Position | Subset"
# A name, a step, the text of either, or a list of them in the order in which they run.
ReductionChoice: TypeAlias = "str | Step | Sequence[str | Step]"


def position(index: int) -> Position:
    """Keep one position (token) of an output (sample, position, feature); 0 is the first.

    Raises
    ------
    InvalidArgumentError
        If ``index`` is no integer of at least 0.
    """
    return Position(check_count("position()", index, least=0))


def subset(*, units: int | None = None, positions: int | None = None, seed: int = 0) -> Subset:
    """Keep a fixed, seeded choice of units, or of positions before they are reduced; all where there are no more.

    The same seed chooses the same ones in every run, under any version of numpy, and in their order in the output.

    Examples
    --------
    ::

        reduction=["flatten", subset(units=64)]
        reduction=[subset(positions=16, seed=1), "tokens"]

    Raises
    ------
    InvalidArgumentError
        Unless exactly one of the two is given, as an integer of at least 1.
    """
    if (units is None) == (positions is None):
        raise InvalidArgumentError("subset() needs exactly one of units= and positions=, e.g. subset(units=64).")
    seed = check_count("subset(): seed", seed, least=0)
    if units is not None:
        return Subset("units", check_count("subset(): units", units, least=1), seed)
    return Subset("positions", check_count("subset(): positions", positions, least=1), seed)


def parse_reduction(choice: Any) -> tuple[Step, ...]:
    """Return the steps of a reduction in the order in which they run: positions, name, units, each at most once.

    Raises
    ------
    InvalidArgumentError
        For anything else; says what is allowed.
    """
    if isinstance(choice, str):
        steps = tuple(_parse_step(text) for text in choice.split(_JOIN))
    elif isinstance(choice, (Named, Position, Subset)):
        steps = (choice,)
    elif isinstance(choice, Sequence) and choice:
        steps = tuple(step for part in choice for step in parse_reduction(part))
    else:
        raise _unknown(choice)
    order = [_rank(step) for step in steps]
    if any(first >= second for first, second in itertools.pairwise(order)):
        raise InvalidArgumentError(
            f"reduction: {reduction_text(steps)!r} is in no order that works; it is a subset of positions, then one of"
            f" {_names()}, then a subset of units, each at most once."
        )
    return steps


def reduction_text(steps: tuple[Step, ...]) -> str | None:
    """Return the text that `parse_reduction` reads; None where there are no steps."""
    return _JOIN.join(map(str, steps)) or None


def _parse_step(text: str) -> Step:
    text = text.strip()
    if text in get_args(ReductionName):
        return Named(text)
    found = _POSITION.fullmatch(text)
    if found is not None:
        return Position(int(found[1]))
    found = _SUBSET.fullmatch(text)
    if found is not None:
        return subset(**{found[1]: int(found[2])}, seed=int(found[3] or 0))
    raise _unknown(text)


def _rank(step: Step) -> int:
    return 1 if not isinstance(step, Subset) else 0 if step.axis == "positions" else 2


def _names() -> str:
    return ", ".join(map(repr, get_args(ReductionName))) + ", position(k)"


def _unknown(choice: Any) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"reduction must be one of {_names()}, subset(units=n), subset(positions=n), or a list of them; got {choice!r}."
    )
