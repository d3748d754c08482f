"""Slow twins of the analysis, written from the formulas: plain loops over Python numbers, nothing of the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def absolute_correlation(activations: Matrix) -> tuple[list[list[float]], list[bool]]:
    """|Pearson correlation| of every two columns, diagonal 0; columns whose values are all equal have no edges."""
    signed, dead = correlation(activations)
    return [[abs(value) for value in row] for row in signed], dead


def correlation(activations: Matrix) -> tuple[list[list[float]], list[bool]]:
    """Pearson correlation, diagonal 0, and which columns hold one value only."""
    columns = _columns(activations)
    means = [math.fsum(column) / len(column) for column in columns]
    dead = [all(value == column[0] for value in column) for column in columns]
    return _angles([[v - mean for v in column] for column, mean in zip(columns, means, strict=True)], dead), dead


def cosine(activations: Matrix) -> tuple[list[list[float]], list[bool]]:
    """Cosine of every two columns, diagonal 0, and which columns are 0."""
    columns = _columns(activations)
    dead = [not any(column) for column in columns]
    return _angles(columns, dead), dead


def spearman(activations: Matrix) -> tuple[list[list[float]], list[bool]]:
    """Correlation of ranks; a rank is one more than the smaller values, and half of the other equal ones."""
    ranks = [
        [1 + sum(w < v for w in column) + (sum(w == v for w in column) - 1) / 2 for v in column]
        for column in _columns(activations)
    ]
    return correlation(list(zip(*ranks, strict=True)))


def partial_correlation(activations: Matrix, *, least: float) -> tuple[list[list[float]], list[bool]]:
    """Ledoit and Wolf's estimate on columns of variance 1, with an intensity of at least `least`, inverted."""
    _, dead = correlation(activations)
    alive = [u for u, is_dead in enumerate(dead) if not is_dead]
    units, samples = len(alive), len(activations)
    result = [[0.0] * len(dead) for _ in dead]
    if units == 0:
        return result, dead
    columns = []
    for column in (_columns(activations)[u] for u in alive):
        mean = math.fsum(column) / samples
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in column) / samples)
        columns.append([(v - mean) / deviation for v in column])
    rows = list(zip(*columns, strict=True))
    matrix = [[math.fsum(a * b for a, b in zip(x, y, strict=True)) / samples for y in columns] for x in columns]
    pairs = list(itertools.product(range(units), repeat=2))
    distance = math.fsum((matrix[i][j] - (i == j)) ** 2 for i, j in pairs) / units
    error = math.fsum((row[i] * row[j] - matrix[i][j]) ** 2 for row in rows for i, j in pairs) / units / samples**2
    intensity = min(error / distance, 1.0) if distance > 1e-12 else 0.0
    intensity = max(intensity, least)
    shrunk = [[(1 - intensity) * matrix[i][j] + intensity * (i == j) for j in range(units)] for i in range(units)]
    precision = _inverse(shrunk)
    for i, j in pairs:
        if i != j:
            result[alive[i]][alive[j]] = -precision[i][j] / math.sqrt(precision[i][i] * precision[j][j])
    return result, dead


def _columns(activations: Matrix) -> list[list[float]]:
    return [[float(value) for value in column] for column in zip(*activations, strict=True)]


def _angles(columns: Matrix, dead: Sequence[bool]) -> list[list[float]]:
    units = len(columns)
    sizes = [math.sqrt(math.fsum(value * value for value in column)) for column in columns]
    result = [[0.0] * units for _ in range(units)]
    for i in range(units):
        for j in range(units):
            if i != j and not dead[i] and not dead[j]:
                together = math.fsum(a * b for a, b in zip(columns[i], columns[j], strict=True))
                result[i][j] = max(-1.0, min(together / sizes[i] / sizes[j], 1.0))
    return result


def _inverse(matrix: Matrix) -> list[list[float]]:
    size = len(matrix)
    work = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(work[row][i]))
        work[i], work[pivot] = work[pivot], work[i]
        work[i] = [value / work[i][i] for value in work[i]]
        for j in range(size):
            if j != i:
                factor = work[j][i]
                work[j] = [a - factor * b for a, b in zip(work[j], work[i], strict=True)]
    return [row[size:] for row in work]


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
