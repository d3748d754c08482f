"""How far a median can be trusted: percentile intervals of the bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """A median and the ends of its 95 % interval."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """The median with its interval in brackets."""
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"


def median_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the median of values that were drawn independently, and what it would be for other draws.

    The draws are pairs or rounds, never single runs of one arm: a machine that slows down slows both arms of a pair.
    """
    array = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(array), size=(DRAWS, len(array)))
    low, high = np.percentile(np.median(array[chosen], axis=1), [2.5, 97.5])
    return Interval(float(np.median(array)), float(low), float(high))
