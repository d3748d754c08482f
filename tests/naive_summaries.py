"""Slow twins of diagram summaries, paddings and neural persistence: plain loops, nothing of ours imported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Bar = tuple[float, float]


def lengths_of(bars: Sequence[Bar]) -> list[float]:
    return [death - birth for birth, death in bars if birth < death < math.inf]


def numbers(lengths: Sequence[float]) -> dict[str, float]:
    """Total, L2 and Linf amplitude and entropy in bits of positive lengths, by their definitions."""
    total = math.fsum(lengths)
    shares = [length / total for length in lengths if length > 0]
    return {
        "total": total,
        "l2": math.sqrt(math.fsum(length**2 for length in lengths)),
        "linf": max(lengths, default=0.0),
        "entropy": -math.fsum(share * math.log2(share) for share in shares) if shares else math.nan,
    }


def betti(bars: Sequence[Bar], threshold: float) -> int:
    return sum(1 for birth, death in bars if birth <= threshold < death)


def components_and_cycles(matrix: Sequence[Sequence[float]], threshold: float) -> tuple[int, int]:
    """Components and independent cycles of the graph of the edges heavier than a threshold: V - C = E - cycles."""
    n = len(matrix)
    edges = [(i, j) for i in range(n) for j in range(i) if matrix[i][j] > threshold]
    label = list(range(n))
    for i, j in edges:
        label = [label[j] if old == label[i] else old for old in label]
    components = len(set(label))
    return components, len(edges) - n + components


def spanning_weights(edges: Sequence[tuple[int, int, float]], vertices: int) -> list[float]:
    """Weights of a maximum spanning forest by Kruskal, missing merges as weight 0; ascending."""
    label = list(range(vertices))
    kept = []
    for i, j, weight in sorted(edges, key=lambda edge: -edge[2]):
        if label[i] != label[j]:
            label = [label[j] if old == label[i] else old for old in label]
            kept.append(weight)
    return sorted([0.0] * (vertices - 1 - len(kept)) + kept)


def neural_persistence(tree: Sequence[float], largest: float, order: float) -> float:
    """||1 - w / largest||_p over the bound (V - 1)^(1/p)."""
    return math.fsum((1 - weight / largest) ** order for weight in tree) ** (1 / order) / len(tree) ** (1 / order)


def giotto_rows(diagrams: Sequence[dict[int, list[Bar]]], degrees: Sequence[int]) -> list[list[list[float]]]:
    """Rows [birth, death, degree] of proper finite or infinite bars, padded at the smallest birth of the degree."""
    rows: list[list[list[float]]] = [[] for _ in diagrams]
    for degree in degrees:
        proper = [[bar for bar in diagram.get(degree, []) if bar[0] < bar[1]] for diagram in diagrams]
        longest = max([len(bars) for bars in proper] + [1])
        corner = min([bar[0] for bars in proper for bar in bars], default=0.0)
        for row, bars in zip(rows, proper, strict=True):
            row += [[birth, death, degree] for birth, death in bars]
            row += [[corner, corner, degree]] * (longest - len(bars))
    return rows
