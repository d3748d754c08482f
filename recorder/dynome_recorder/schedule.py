"""When a snapshot is due: small frozen rules that compose with ``|``.

A schedule knows nothing of models or files; it answers two questions, one per counter, and has a text that says what it
is (the text goes into ``run.json``). Epochs count completed passes, so epoch 0 is the untrained network; steps count
completed optimizer steps and start at 1.
"""

from __future__ import annotations

import ast
import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

Counter = Literal["epoch", "step"]


@dataclass(frozen=True)
class Schedule:
    """A set of rules, any of which makes a snapshot due. Build one with `every`, `at`, `log_spaced` or `never`."""

    rules: tuple[_Rule, ...]

    def due_epoch(self, epoch: int) -> bool:
        """Whether a snapshot is due when ``epoch`` passes are completed; before training both counters are 0."""
        return any((rule.counter == "epoch" or epoch == 0) and rule.is_due(epoch) for rule in self.rules)

    def due_step(self, step: int) -> bool:
        """Whether a snapshot is due when ``step`` optimizer steps are completed (the first step is 1)."""
        return any(rule.counter == "step" and rule.is_due(step) for rule in self.rules)

    @property
    def counts_steps(self) -> bool:
        """Whether any rule looks at the step counter."""
        return any(rule.counter == "step" for rule in self.rules)

    def count(self, *, epochs: int, steps_per_epoch: int | None = None) -> int | None:
        """Return how many snapshots a run of ``epochs`` passes takes; None where that needs unknown
        ``steps_per_epoch``.

        Cost: one test per epoch, and one per step where a rule counts steps.
        """
        due_epochs = {epoch for epoch in range(epochs + 1) if self.due_epoch(epoch)}
        if not self.counts_steps:
            return len(due_epochs)
        if steps_per_epoch is None:
            return None
        # A step that ends an epoch and is due on both counts is one snapshot for each counter: they differ in meaning.
        return len(due_epochs) + sum(self.due_step(step) for step in range(1, epochs * steps_per_epoch + 1))

    def __or__(self, other: Schedule) -> Schedule:
        """Return the schedule that is due whenever either is; a rule that both have counts once."""
        if not isinstance(other, Schedule):
            return NotImplemented
        return Schedule(tuple(dict.fromkeys(self.rules + other.rules)))

    def __str__(self) -> str:
        """Return what builds this schedule, which `parse_schedule` reads."""
        return " | ".join(str(rule) for rule in self.rules) or "never()"

    def _repr_html_(self) -> str:
        from dynome_recorder.representation import show_schedule

        return show_schedule(self)._repr_html_()


@dataclass(frozen=True)
class _Rule(ABC):
    counter: Counter

    @abstractmethod
    def is_due(self, count: int) -> bool: ...


@dataclass(frozen=True)
class _Every(_Rule):
    period: int

    def is_due(self, count: int) -> bool:
        return count % self.period == 0

    def __str__(self) -> str:
        return f"every({self.counter}s={self.period})"


@dataclass(frozen=True)
class _At(_Rule):
    moments: tuple[int, ...]

    def is_due(self, count: int) -> bool:
        return count in self.moments

    def __str__(self) -> str:
        return f"at({', '.join(map(str, self.moments))}, unit={self.counter!r})"


@dataclass(frozen=True)
class _LogSpaced(_Rule):
    per_decade: int

    def is_due(self, count: int) -> bool:
        if count <= 0:
            return count == 0
        # The moments are round(10 ** (k / per_decade)); only a k within half a decade of log10(count) can round to it.
        middle = round(math.log10(count) * self.per_decade)
        candidates = range(max(0, middle - self.per_decade), middle + self.per_decade + 1)
        return any(round(10 ** (k / self.per_decade)) == count for k in candidates)

    def __str__(self) -> str:
        return f"log_spaced(per_decade={self.per_decade}, unit={self.counter!r})"


def every(*, epochs: int | None = None, steps: int | None = None) -> Schedule:
    """Make a snapshot due at every ``epochs``-th epoch or every ``steps``-th optimizer step, 0 included.

    Raises
    ------
    InvalidArgumentError
        Unless exactly one of the two is given, as an integer of at least 1.
    """
    given: dict[Counter, int] = {}
    if epochs is not None:
        given["epoch"] = check_count("epochs", epochs, least=1)
    if steps is not None:
        given["step"] = check_count("steps", steps, least=1)
    if len(given) != 1:
        raise InvalidArgumentError("every() needs exactly one of epochs= and steps=, e.g. every(epochs=1).")
    return Schedule(tuple(_Every(counter, period) for counter, period in given.items()))


def at(*moments: int, unit: Counter = "epoch") -> Schedule:
    """Make a snapshot due at these moments: ``at(0, 1, 2, 5, 10)``, or ``at(100, 200, unit="step")``.

    Raises
    ------
    InvalidArgumentError
        For no moment, a negative one, or an unknown unit.
    """
    if not moments:
        raise InvalidArgumentError("at() needs at least one moment, e.g. at(0, 1, 2, 5, 10).")
    counts = sorted({check_count("at()", moment, least=0) for moment in moments})
    return Schedule((_At(_check_unit(unit), tuple(counts)),))


def log_spaced(*, per_decade: int, unit: Counter = "step") -> Schedule:
    """Make snapshots due at ``round(10 ** (k / per_decade))``, k = 0, 1, ...: dense early, where networks change
    fastest.

    Moment 0 is included, so that ``unit="epoch"`` starts with the untrained network.

    Raises
    ------
    InvalidArgumentError
        For a ``per_decade`` below 1 or an unknown unit.
    """
    return Schedule((_LogSpaced(_check_unit(unit), check_count("per_decade", per_decade, least=1)),))


def never() -> Schedule:
    """Make no snapshot due: for a stream that is recorded when the training loop asks for it, or not at all."""
    return Schedule(())


def parse_schedule(text: str) -> Schedule:
    """Return the schedule whose text this is, as ``run.json`` holds it; nothing in the text is executed.

    Raises
    ------
    InvalidArgumentError
        If the text is not one that a schedule has.
    """
    try:
        return _build(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, InvalidArgumentError) as error:
        reason = f": {error}" if isinstance(error, InvalidArgumentError) else ""
        raise InvalidArgumentError(
            f"schedule: {text!r} is no text of a schedule, such as 'every(epochs=1) | at(0, 5)'{reason}"
        ) from error


def check_schedule(name: str, schedule: object) -> Schedule:
    """Return the schedule, or raise where the value is none.

    Raises
    ------
    InvalidArgumentError
        If ``schedule`` is not a `Schedule`; the message names the argument.
    """
    if not isinstance(schedule, Schedule):
        raise InvalidArgumentError(f"{name} must be a schedule such as every(epochs=1); got {schedule!r}.")
    return schedule


def check_count(name: str, value: object, *, least: int) -> int:
    """Return a count as a plain int, also where it is one of numpy's, or raise `InvalidArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InvalidArgumentError(f"{name} must be an integer of at least {least}; got {value!r}.")
    return int(value)


def _check_unit(unit: Counter) -> Counter:
    if unit not in get_args(Counter):
        raise InvalidArgumentError(f"unit must be 'epoch' or 'step'; got {unit!r}.")
    return unit


def _build(node: ast.expr) -> Schedule:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _build(node.left) | _build(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BUILDERS:
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return _BUILDERS[node.func.id](*map(ast.literal_eval, node.args), **named)
    raise ValueError(ast.dump(node))


_BUILDERS: dict[str, Callable[..., Schedule]] = {"every": every, "at": at, "log_spaced": log_spaced, "never": never}
