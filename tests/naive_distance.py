"""Slow twins of distances and centroids: fractions, brute force over matchings, nothing of the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

Points = Sequence[Sequence[float]]


def sorted_distance(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], order: float) -> float:
    """The l-th smallest against the l-th smallest in every part; p-th powers add over parts."""
    gaps = [
        abs(float(a) - float(b))
        for x, y in zip(first, second, strict=True)
        for a, b in zip(sorted(x), sorted(y), strict=True)
    ]
    return _combine(gaps, [1.0] * len(gaps), order)


def quantile_distance(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], order: float) -> float:
    """Integrate over the steps i/N and j/M of two quantile functions, cut at fractions."""
    gaps, widths = [], []
    for x, y in zip(first, second, strict=True):
        cuts = sorted({Fraction(i, len(v)) for v in (x, y) for i in range(len(v) + 1)})
        for low, high in itertools.pairwise(cuts):
            gaps.append(abs(_quantile(x, high) - _quantile(y, high)))
            widths.append(float(high - low))
    return _combine(gaps, widths, order)


def quantile_embedding(values: Sequence[float], size: int) -> list[float]:
    """F^-1(1/m), ..., F^-1(m/m)."""
    return [_quantile(values, Fraction(i + 1, size)) for i in range(size)]


def diagram_distance(first: Points, second: Points, order: float, ground_norm: float) -> float:
    """Try every partial matching; who is left goes to the nearest point of the diagonal."""

    def norm(birth: float, death: float) -> float:
        return _combine([abs(birth), abs(death)], [1.0, 1.0], ground_norm)

    def diagonal(point: Sequence[float]) -> float:
        middle = (point[0] + point[1]) / 2
        return norm(point[0] - middle, point[1] - middle)

    best = math.inf
    for size in range(min(len(first), len(second)) + 1):
        for left in itertools.combinations(range(len(first)), size):
            for right in itertools.permutations(range(len(second)), size):
                steps = [
                    norm(first[i][0] - second[j][0], first[i][1] - second[j][1])
                    for i, j in zip(left, right, strict=True)
                ]
                steps += [diagonal(point) for i, point in enumerate(first) if i not in left]
                steps += [diagonal(point) for j, point in enumerate(second) if j not in right]
                best = min(best, _combine(steps, [1.0] * len(steps), order))
    return best


def _quantile(values: Sequence[float], fraction: Fraction) -> float:
    """inf {x : F(x) >= fraction}."""
    for x in sorted(values):
        if Fraction(sum(value <= x for value in values), len(values)) >= fraction:
            return float(x)
    raise ValueError("a fraction above 1")


def _combine(lengths: Sequence[float], weights: Sequence[float], order: float) -> float:
    if math.isinf(order):
        return max(lengths, default=0.0)
    return math.fsum(w * length**order for w, length in zip(weights, lengths, strict=True)) ** (1 / order)
