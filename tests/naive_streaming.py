"""Slow twins of streaming, written from the definitions: plain loops over Python numbers, nothing of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Edge = tuple[float, int, int]


def unique_forest(edges: Iterable[Edge]) -> list[Edge]:
    """Kruskal, heaviest first; of equal weights the smaller first unit, then the smaller second one, goes first."""
    component: dict[int, int] = {}
    kept = []
    for weight, i, j in sorted(edges, key=lambda edge: (-edge[0], edge[1], edge[2])):
        a, b = component.setdefault(i, i), component.setdefault(j, j)
        if a != b:
            kept.append((weight, i, j))
            component = {unit: a if label == b else label for unit, label in component.items()}
    return kept


def histogram(weights: Iterable[float], bins: int) -> list[int]:
    """How many weights lie in each bin of [0, 1], 1 itself in the last."""
    counts = [0] * bins
    for weight in weights:
        counts[min(int(weight * bins), bins - 1)] += 1
    return counts


def weakest_on_path(forest: Sequence[Edge], start: int, goal: int) -> tuple[float, int, int] | None:
    """The edge of a forest's path that is the lightest, by the order of `unique_forest`; None without a path."""
    reached: dict[int, Edge | None] = {start: None}
    waiting = [start]
    while waiting:
        unit = waiting.pop()
        for weight, i, j in forest:
            if unit in (i, j):
                other = j if unit == i else i
                if other not in reached:
                    before = reached[unit]
                    edge = (weight, i, j)
                    reached[other] = edge if before is None else max(before, edge, key=lambda e: (-e[0], e[1], e[2]))
                    waiting.append(other)
    return reached.get(goal)
