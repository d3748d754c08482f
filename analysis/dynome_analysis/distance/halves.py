"""Two halves of the probe, which measure how much of a distance is noise of sampling. Numbers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["paired_floor", "split_samples"]


def split_samples(samples: int, *, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split the sample indices into two disjoint random halves of equal size, each ascending.

    With an odd number of samples one is left out, so that both halves are as noisy. With one sample both are empty.
    """
    order = np.random.default_rng(seed).permutation(samples)
    half = samples // 2
    return np.sort(order[:half]), np.sort(order[half : 2 * half])


def paired_floor(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``|s^A - s^B| / 2`` of a distance series measured on either half of the probe.

    The samples of a fixed probe are the same in consecutive snapshots, so most sampling noise cancels in the distance
    between them; what is left shows in how far the two halves disagree (METHODS.md section 8 [O]).
    """
    floor: NDArray[np.float64] = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)) / 2
    return floor
