"""Slow twins of the analysis, written from the formulas: plain loops over Python numbers, nothing of the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def absolute_correlation(activations: Matrix) -> tuple[list[list[float]], list[bool]]:
    """|Pearson correlation| of every two columns, diagonal 0; columns whose values are all equal have no edges."""
    columns = [[float(value) for value in column] for column in zip(*activations, strict=True)]
    centred, dead = [], []
    for column in columns:
        mean = math.fsum(column) / len(column)
        centred.append([value - mean for value in column])
        dead.append(all(value == column[0] for value in column))
    units = len(columns)
    connectome = [[0.0] * units for _ in range(units)]
    for i in range(units):
        for j in range(units):
            if i != j and not dead[i] and not dead[j]:
                covariance = math.fsum(a * b for a, b in zip(centred[i], centred[j], strict=True))
                size = math.sqrt(math.fsum(a * a for a in centred[i])) * math.sqrt(math.fsum(b * b for b in centred[j]))
                connectome[i][j] = min(abs(covariance) / size, 1.0)
    return connectome, dead


def births_and_deaths(connectome: Matrix) -> tuple[list[float], list[float]]:
    """Kruskal: heaviest edge first; one that joins two components is a birth, one that closes a cycle a death."""
    units = len(connectome)
    edges = sorted(((connectome[i][j], i, j) for i in range(units) for j in range(i + 1, units)), reverse=True)
    component = list(range(units))
    births, deaths = [], []
    for weight, i, j in edges:
        if component[i] != component[j]:
            births.append(weight)
            old, new = component[j], component[i]
            component = [new if label == old else label for label in component]
        else:
            deaths.append(weight)
    return sorted(births), sorted(deaths)


def top_distance(first: tuple[Sequence[float], ...], second: tuple[Sequence[float], ...]) -> float:
    """Root of the sum of squared differences, the l-th smallest against the l-th smallest, in each multiset."""
    return math.sqrt(
        math.fsum(
            (float(a) - float(b)) ** 2
            for x, y in zip(first, second, strict=True)
            for a, b in zip(sorted(x), sorted(y), strict=True)
        )
    )


def diagram_distance(first: Matrix, second: Matrix) -> float:
    """2-Wasserstein distance between diagrams by trying every partial matching; a handful of points only."""

    def diagonal(point: Sequence[float]) -> float:
        return (point[1] - point[0]) ** 2 / 2

    best = math.inf
    for size in range(min(len(first), len(second)) + 1):
        for left in itertools.combinations(range(len(first)), size):
            for right in itertools.permutations(range(len(second)), size):
                total = sum(
                    (first[i][0] - second[j][0]) ** 2 + (first[i][1] - second[j][1]) ** 2
                    for i, j in zip(left, right, strict=True)
                )
                total += sum(diagonal(point) for i, point in enumerate(first) if i not in left)
                total += sum(diagonal(point) for j, point in enumerate(second) if j not in right)
                best = min(best, total)
    return math.sqrt(best)
