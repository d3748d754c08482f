"""Slow twins of trees with edges and of weights in bins: plain loops over Python numbers, nothing of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Matrix = Sequence[Sequence[float]]


def spanning_tree(connectome: Matrix) -> tuple[list[float], list[list[int]]]:
    """Kruskal, heaviest edge first, of equal ones the smaller (i, j) first; returned in reverse order."""
    units = len(connectome)
    edges = sorted((-connectome[i][j], i, j) for i in range(units) for j in range(i + 1, units))
    component = list(range(units))
    weights, ends = [], []
    for negated, i, j in edges:
        if component[i] != component[j]:
            component = [component[i] if label == component[j] else label for label in component]
            weights.append(-negated)
            ends.append([i, j])
    return weights[::-1], ends[::-1]


def histogram(weights: Sequence[float], bins: int) -> list[int]:
    """In exact arithmetic: bin k holds k <= w * bins < k + 1, the last one 1 as well."""
    counts = [0] * bins
    for weight in weights:
        counts[min(math.floor(Fraction(weight) * bins), bins - 1)] += 1
    return counts


def histogram_distance(first: Sequence[int], second: Sequence[int], order: float) -> float:
    """Every counted value written out at the centre of its bin, the l-th against the l-th."""
    values = [
        [(index + 0.5) / len(counts) for index, count in enumerate(counts) for _ in range(count)]
        for counts in (first, second)
    ]
    differences = [abs(a - b) for a, b in zip(*values, strict=True)]
    if math.isinf(order):
        return max(differences, default=0.0)
    return math.fsum(difference**order for difference in differences) ** (1 / order)
