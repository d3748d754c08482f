"""Slow twins of the weight graphs: every edge in a list, every number by a loop, from the paper's definitions."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Edge = tuple[int, int, float]


def chain_edges(weights: Sequence[np.ndarray], kinds: Sequence[str], groups: Sequence[int]) -> tuple[int, list[Edge]]:
    """Rolled graph of layers in a row; kinds are "conv" and "linear". Returns the number of vertices and the edges.

    A linear layer after a convolution reads its channels flattened, channel by channel.
    """
    inputs = weights[0].shape[1] * (groups[0] if kinds[0] == "conv" else 1)
    previous = list(range(inputs))
    total = inputs
    edges: list[Edge] = []
    for weight, kind, count in zip(weights, kinds, groups, strict=True):
        outputs = list(range(total, total + weight.shape[0]))
        total += weight.shape[0]
        for i, vertex in enumerate(outputs):
            if kind == "conv":
                share_in, share_out = len(previous) // count, len(outputs) // count
                first = (i // share_out) * share_in
                for j in range(share_in):
                    kernel = [float(value) for value in weight[i, j].ravel()]
                    edges.append((previous[first + j], vertex, math.sqrt(math.fsum(w * w for w in kernel))))
            else:
                pixels = weight.shape[1] // len(previous)
                for j, source in enumerate(previous):
                    block = [float(value) for value in weight[i, j * pixels : (j + 1) * pixels]]
                    edges.append((source, vertex, math.sqrt(math.fsum(w * w for w in block))))
        previous = outputs
    return total, edges


def convolution_edges(
    weight: np.ndarray,
    space: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[list[int], list[Edge]]:
    """Unrolled convolution: one edge per multiplication of an output pixel with a real pixel.

    Vertices: input channels pixel by pixel, then output channels pixel by pixel. Returns the output's space and edges.
    """
    outputs, share_in, *kernel = weight.shape
    inputs, share_out = share_in * groups, outputs // groups
    result = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in zip(space, kernel, stride, padding, dilation)
    ]
    pixels = {pixel: number for number, pixel in enumerate(itertools.product(*map(range, space)))}
    written = {pixel: number for number, pixel in enumerate(itertools.product(*map(range, result)))}
    first_output = inputs * len(pixels)
    edges: list[Edge] = []
    for i in range(outputs):
        for place, number in written.items():
            for j in range(share_in):
                for offset in itertools.product(*map(range, kernel)):
                    at = tuple(o * s - p + t * d for o, t, s, p, d in zip(place, offset, stride, padding, dilation))
                    if at in pixels:
                        channel = (i // share_out) * share_in + j
                        ends = channel * len(pixels) + pixels[at], first_output + i * len(written) + number
                        edges.append((*ends, abs(float(weight[(i, j, *offset)]))))
    return result, edges


def pooling_edges(
    channels: int, space: Sequence[int], result: Sequence[int], windows: Sequence[Sequence[Sequence[int]]]
) -> list[Edge]:
    """Unrolled pooling: each pooled pixel with every real pixel it covers.

    ``windows`` holds, per axis and output, the positions covered, real or not; an edge weighs 1 / (product of sizes).
    """
    pixels = {pixel: number for number, pixel in enumerate(itertools.product(*map(range, space)))}
    edges: list[Edge] = []
    for channel in range(channels):
        for number, place in enumerate(itertools.product(*map(range, result))):
            covered = [axis[o] for axis, o in zip(windows, place, strict=True)]
            for at in itertools.product(*covered):
                if at in pixels:
                    ends = channel * len(pixels) + pixels[at], (channels * len(pixels)) + channel * math.prod(result)
                    edges.append((ends[0], ends[1] + number, 1 / math.prod(map(len, covered))))
    return edges


def degrees(n: int, edges: Sequence[Edge]) -> list[float]:
    terms: list[list[float]] = [[] for _ in range(n)]
    for first, second, weight in edges:
        terms[first].append(weight)
        terms[second].append(weight)
    return [math.fsum(values) for values in terms]


def adjacency(n: int, edges: Sequence[Edge]) -> np.ndarray:
    matrix = np.zeros((n, n))
    for first, second, weight in edges:
        matrix[first, second] += weight
        matrix[second, first] += weight
    return matrix


def components(n: int, edges: Sequence[Edge]) -> list[set[int]]:
    """Connected components, the largest first, among equals the one with the lowest vertex."""
    neighbours: list[set[int]] = [set() for _ in range(n)]
    for first, second, weight in edges:
        if weight != 0:
            neighbours[first].add(second)
            neighbours[second].add(first)
    found: list[set[int]] = []
    left = set(range(n))
    while left:
        reached = {min(left)}
        frontier = list(reached)
        while frontier:
            fresh = neighbours[frontier.pop()] - reached
            reached |= fresh
            frontier += fresh
        found.append(reached)
        left -= reached
    return sorted(found, key=lambda part: (-len(part), min(part)))


def spectrum(n: int, edges: Sequence[Edge]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the largest component, ascending, and its leading eigenvector over all vertices (0 outside)."""
    members = sorted(components(n, edges)[0])
    values, vectors = np.linalg.eigh(adjacency(n, edges)[np.ix_(members, members)])
    vector = np.zeros(n)
    vector[members] = vectors[:, -1] * (1 if vectors[:, -1].sum() > 0 else -1)
    return values, vector


def power_iteration(matrix: np.ndarray, steps: int) -> list[np.ndarray]:
    """Return the iterates of plain power iteration, which a bipartite graph makes oscillate."""
    x = np.ones(len(matrix))
    x[0] = 2.0
    iterates = []
    for _ in itertools.repeat(None, steps):
        x = matrix @ x
        x = x / math.sqrt(math.fsum(float(value) ** 2 for value in x))
        iterates.append(x)
    return iterates


def moments(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, standard deviation, skewness and excess kurtosis; the last two 0 for equal values."""
    n = len(values)
    ordered = sorted(values)
    mean = math.fsum(values) / n
    second, third, fourth = (math.fsum((value - mean) ** k for value in values) / n for k in (2, 3, 4))
    constant = ordered[0] == ordered[-1]
    return {
        "median": (ordered[(n - 1) // 2] + ordered[n // 2]) / 2,
        "mean": mean,
        "std": 0.0 if constant else math.sqrt(second),
        "skewness": 0.0 if constant else third / second**1.5,
        "kurtosis": 0.0 if constant else fourth / second**2 - 3.0,
    }
