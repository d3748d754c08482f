"""Interleaved timing: every arm runs once per round, so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# An arm this slow runs twice, the first time included, since what it compiles or loads no longer counts; the slowest
# run once.
SLOW_SECONDS = 2.0
SLOWEST_SECONDS = 8.0


@dataclass(frozen=True)
class Row:
    """One measured operation on one input.

    ``values`` holds the median seconds of every arm; the first arm is ours, and a text stands where an arm did not
    finish. Where ``unit`` is not "ms", bytes ("MiB"), bytes per second ("MB/s") or texts (""). ``memory`` holds bytes
    beyond the input where they were measured. ``limit`` is the time that the machine would need at the speed of
    `machine.limits` for what cannot be avoided, named by ``limit_name``.
    """

    operation: str
    size: str
    values: Mapping[str, float | str]
    memory: Mapping[str, int] = field(default_factory=dict)
    limit: float | None = None
    limit_name: str = ""
    unit: Literal["ms", "MiB", "MB/s", ""] = "ms"

    def ratio(self, arm: str) -> float | None:
        """How many times as long as ours an arm takes, or as many bytes; None beside a text or a zero."""
        ours, theirs = next(iter(self.values.values())), self.values[arm]
        if isinstance(ours, str) or isinstance(theirs, str) or not ours or not theirs:
            return None
        return ours / theirs if self.unit == "MB/s" else theirs / ours


def interleaved(
    arms: Mapping[str, Callable[[], object]], *, seconds: float = 4.0, rounds: int = 25
) -> dict[str, float | str]:
    """Return the median seconds of every arm.

    All arms run in turn, after one uncounted round, until ``rounds`` or the time is used up; at least 3 rounds. Arms
    slower than two seconds run in the first two rounds only, and both count; those slower than eight run once.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    slow: set[str] = set()
    for name, arm in arms.items():
        duration = timed(arm)
        if duration > SLOW_SECONDS:
            slow.add(name)
            times[name].append(duration)
    spent = 0.0
    for done in range(rounds):
        if done >= 3 and spent > seconds:
            break
        for name, arm in arms.items():
            if name in slow and (done > 0 or times[name][0] > SLOWEST_SECONDS):
                continue
            times[name].append(timed(arm))
            spent += 0.0 if name in slow else times[name][-1]
    return {name: statistics.median(values) for name, values in times.items()}


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
