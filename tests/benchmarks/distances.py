"""Distances between signatures, against persim, POT, gudhi (Hera) and scipy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import gudhi
import gudhi.hera
import numpy as np
import ot
import persim
import torch
from scipy.spatial.distance import pdist
from scipy.stats import wasserstein_distance
from threadpoolctl import threadpool_limits

from dynome_analysis.distance.matching import diagram_distance
from dynome_analysis.distance.quantiles import quantile_distance
from dynome_analysis.distance.weights import pairwise_distances, sorted_distance

from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

NOTE = """\
One thread. Diagrams: random ones, and one with itself jittered, as consecutive snapshots are. Every arm computes
order 2 with the Euclidean ground norm but persim (order 1) and the bottlenecks (maximum norm); Hera's W is approximate
to 1 %."""


def diagram(points: int, seed: int) -> NDArray[np.float64]:
    """Births in [0, 1], lifetimes that decay."""
    generator = np.random.default_rng(seed)
    born = generator.random(points)
    return np.column_stack([born, born + generator.exponential(0.05, points)])


def by_pot(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Exact transport with the diagonal as one more point on either side."""
    left, right = np.diff(first)[:, 0] ** 2 / 2, np.diff(second)[:, 0] ** 2 / 2
    cost = np.zeros((len(first) + 1, len(second) + 1))
    cost[:-1, :-1] = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    cost[:-1, -1], cost[-1, :-1] = left, right
    supply = np.append(np.ones(len(first)), len(second))
    demand = np.append(np.ones(len(second)), len(first))
    return float(np.sqrt(ot.emd2(supply / supply.sum(), demand / demand.sum(), cost, numItermax=10**7) * supply.sum()))


def rows() -> Iterator[Row]:
    """Diagrams of 500 and 2000 points, sorted vectors, all pairs of snapshots."""
    for points in (500, 2000):
        first = diagram(points, 0)
        jittered = first + np.random.default_rng(2).normal(0, 0.002, first.shape)
        jittered[:, 1] = np.maximum(jittered[:, 1], jittered[:, 0] + 1e-6)
        for name, second in (("random", diagram(points, 1)), ("consecutive", jittered)):
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore")
                seconds = interleaved(
                    {
                        "ours": lambda a=first, b=second: diagram_distance(a, b),
                        "POT": lambda a=first, b=second: by_pot(a, b),
                        "gudhi, Hera": lambda a=first, b=second: gudhi.hera.wasserstein_distance(
                            a, b, order=2, internal_p=2
                        ),
                        "persim": lambda a=first, b=second: persim.wasserstein(a, b),
                    }
                )
                yield Row(f"Wasserstein, {name} diagrams", f"{points} points", seconds)
                seconds = interleaved(
                    {
                        "ours": lambda a=first, b=second: diagram_distance(a, b, order=np.inf, ground_norm=np.inf),
                        "gudhi": lambda a=first, b=second: gudhi.bottleneck_distance(a, b),
                        **({"persim": lambda a=first, b=second: persim.bottleneck(a, b)} if points == 500 else {}),
                    }
                )
                yield Row(f"bottleneck, {name} diagrams", f"{points} points", seconds)
    generator = np.random.default_rng(0)
    for values in (2_000, 2_000_000):
        first, second = (np.sort(generator.random(values, np.float32)) for _ in range(2))
        other = np.sort(generator.random(values // 2 + 1, np.float32))
        with threadpool_limits(1):
            seconds = interleaved(
                {
                    "ours": lambda a=first, b=second: sorted_distance([a], [b]),
                    "POT": lambda a=first, b=second: ot.emd2_1d(a, b),
                }
            )
            yield Row("Wasserstein of sorted values", f"{values} values", seconds)
            seconds = interleaved(
                {
                    "ours": lambda a=first, b=other: quantile_distance([a], [b], order=1),
                    "scipy": lambda a=first, b=other: wasserstein_distance(a, b),
                    "POT": lambda a=first, b=other: ot.emd2_1d(a, b, metric="cityblock"),
                }
            )
            yield Row("Wasserstein of unequal numbers, order 1", f"{values} and {values // 2 + 1} values", seconds)
    vectors = np.sort(generator.random((64, 500_000), np.float32), axis=1)
    tensor = torch.from_numpy(vectors)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        seconds = interleaved(
            {
                "ours": lambda: pairwise_distances([vectors]),
                "scipy pdist": lambda: pdist(vectors),
                "torch.cdist": lambda: torch.cdist(tensor, tensor, compute_mode="donot_use_mm_for_euclid_dist"),
            },
            seconds=10,
        )
    yield Row("all pairs of snapshots", "64 x 500000 values", seconds)
