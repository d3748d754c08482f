"""Births and deaths of connectomes that are never held, against the fastest way that holds them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from dynome_analysis.connectome.correlation import correlate, standardise
from dynome_analysis.homology.births import births
from dynome_analysis.homology.histogram import death_histogram
from dynome_analysis.homology.streaming import stream_homology

from . import machine
from .inputs import activations
from .limited import limited
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
All cores, 1000 samples. Dense is our tiled product, then births and the same histogram of deaths; the bare product
writes tiles of the upper triangle into one buffer and looks at none."""
TILE = 2048


def dense(values: NDArray[np.float32]) -> object:
    """The whole connectome, then births and death histogram."""
    matrix = correlate(values)[0]
    return births(matrix, check=False), death_histogram(matrix, check=False)


def bare_product(columns: NDArray[np.float32]) -> None:
    """Every tile of the upper triangle, and nothing else."""
    units = columns.shape[1]
    buffer = np.empty((TILE, TILE), np.float32)
    for first in range(0, units, TILE):
        left = columns[:, first : first + TILE].T
        for second in range(first, units, TILE):
            right = columns[:, second : second + TILE]
            np.matmul(left, right, out=buffer[: left.shape[0], : right.shape[1]])


def prepare(arm: str, kind: str, units: int) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    values = activations(kind, units)
    if arm == "bare product":
        columns, _ = standardise(values)
        return lambda: bare_product(columns)
    function = {"ours": stream_homology, "dense": dense}[arm]
    function(values[:, :256])
    return lambda: function(values)


def rows() -> Iterator[Row]:
    """Measure at 20,000 units on three kinds of data, at 50,000 beside the bare product."""
    for kind in ("null", "latent"):
        values = activations(kind, 20_000)
        columns, _ = standardise(values)
        with threadpool_limits(machine.CORES):
            seconds = interleaved(
                {
                    "ours": partial(stream_homology, values),
                    "dense": partial(dense, values),
                    "bare product": partial(bare_product, columns),
                },
                rounds=3,
            )
        memory = {
            arm: limited("benchmarks.streaming:prepare", arm, kind, 20_000, threads=machine.CORES).memory
            for arm in ("ours", "dense")
        }
        yield Row(f"births and death histogram, {kind}", "20000 units", seconds, memory)
    for kind in ("null", "latent"):
        outcomes = {
            arm: limited("benchmarks.streaming:prepare", arm, kind, 50_000, threads=machine.CORES)
            for arm in ("ours", "bare product")
        }
        yield Row(
            f"births and death histogram, {kind}",
            "50000 units",
            {arm: outcome.seconds for arm, outcome in outcomes.items()},
            {"ours": outcomes["ours"].memory},
        )
