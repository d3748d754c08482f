"""Slow twin of the Rips diagram of degree 1: the whole boundary matrix, reduced column by column. Nothing of ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def loops(distances: Matrix) -> list[tuple[float, float]]:
    """Sorted (birth, death) of positive length, over the field of two elements, as textbooks have it.

    Every vertex, edge and triangle is a simplex; it appears at its longest edge, after its faces. Columns are reduced
    from left to right until no two end in the same row; an edge whose column is zero is born, and dies with the column
    that ends in it.
    """
    units = range(len(distances))
    simplices = []
    for size in (1, 2, 3):
        for simplex in itertools.combinations(units, size):
            length = max((float(distances[i][j]) for i, j in itertools.combinations(simplex, 2)), default=0.0)
            simplices.append((length, size, simplex))
    simplices.sort()
    place = {simplex: number for number, (_, _, simplex) in enumerate(simplices)}
    column_that_ends_in: dict[int, set[int]] = {}
    deaths: dict[int, int] = {}
    open_edges = set()
    for number, (_, size, simplex) in enumerate(simplices):
        column = {place[face] for face in itertools.combinations(simplex, size - 1)} if size > 1 else set()
        while column and max(column) in column_that_ends_in:
            column ^= column_that_ends_in[max(column)]
        if column:
            column_that_ends_in[max(column)] = column
            deaths[max(column)] = number
        elif size == 2:
            open_edges.add(number)
    found = [
        (simplices[edge][0], simplices[deaths[edge]][0] if edge in deaths else math.inf) for edge in sorted(open_edges)
    ]
    return sorted((birth, death) for birth, death in found if birth < death)
