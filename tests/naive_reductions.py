"""Slow twins of the reductions: plain loops over nested positions, importing nothing of the package.

Values are nested lists' numbers as numpy arrays of float64; every twin returns rows as lists of units.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def positions(lengths) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(length) for length in lengths)))


def mean(numbers) -> float:
    total = 0.0
    for number in numbers:
        total += float(number)
    return total / len(numbers)


def largest(numbers) -> float:
    best = -math.inf
    for number in numbers:
        if math.isnan(number):
            return math.nan
        best = max(best, float(number))
    return best


def spatial(values, how, keep=None) -> list[list[float]]:
    """(sample, channel, position, ...) to (sample, channel)."""
    return [
        [how([channel[p] for p in chosen(positions(channel.shape), keep)]) for channel in sample] for sample in values
    ]


def flatten(values, keep=None) -> list[list[float]]:
    """Every value a unit; with ``keep``, those positions of each channel."""
    if keep is None:
        return [[float(sample[p]) for p in positions(sample.shape)] for sample in values]
    return [
        [float(channel[p]) for channel in sample for p in chosen(positions(channel.shape), keep)] for sample in values
    ]


def tokens(values, keep=None) -> list[list[float]]:
    """(sample, position, ..., feature) to (sample x position, feature), the rows of a sample together."""
    return [
        [float(feature) for feature in sample[p]]
        for sample in values
        for p in chosen(positions(sample.shape[:-1]), keep)
    ]


def mean_tokens(values, keep=None) -> list[list[float]]:
    return [
        [mean([sample[(*p, f)] for p in chosen(positions(sample.shape[:-1]), keep)]) for f in range(sample.shape[-1])]
        for sample in values
    ]


def one_token(values, index, keep=None) -> list[list[float]]:
    return [[float(f) for f in sample[chosen(positions(sample.shape[:-1]), keep)[index]]] for sample in values]


def chosen(items, keep):
    return items if keep is None else [items[index] for index in keep]


def take_units(rows, keep) -> list[list[float]]:
    return [[row[index] for index in keep] for row in rows]


def seeded_choice(available: int, count: int, seed: int) -> list[int]:
    """The ``count`` smallest keys of PCG64's raw stream, as ascending indices."""
    generator = np.random.PCG64(seed)
    keys = [int(generator.random_raw()) for _ in range(available)]
    order = sorted(range(available), key=lambda index: keys[index])
    return sorted(order[:count])
