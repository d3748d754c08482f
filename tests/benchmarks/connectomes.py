"""Connectomes, against the libraries that correlate: numpy, torch, dask, nilearn; large ones against one product."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import torch
from nilearn.connectome import ConnectivityMeasure
from threadpoolctl import threadpool_limits

from dynome_analysis.connectome.correlation import correlate, standardise

from . import machine
from .inputs import SAMPLES, activations
from .limited import limited
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
One thread up to 4096 units, as a worker has one snapshot; all cores above. nilearn standardises time series first
and stops at 2048 for its time."""


def by_numpy(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """|np.corrcoef|, in the precision of the input."""
    return np.abs(np.corrcoef(values, rowvar=False, dtype=values.dtype))


def by_nilearn(values: NDArray[np.float32]) -> NDArray[np.floating]:
    """nilearn's correlation matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ConnectivityMeasure(kind="correlation").fit_transform([values])
    return np.abs(found[0])


def by_one_product(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardise, one symmetric product (syrk), |x|: the direct way at any size."""
    columns, _ = standardise(values)
    product = columns.T @ columns
    np.abs(product, out=product)
    np.fill_diagonal(product, 0)
    return product


def prepare(arm: str, kind: str, units: int) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    values = activations(kind, units)
    function = {"ours": correlate, "numpy float32": by_numpy, "one product": by_one_product}[arm]
    function(values[:, :64])
    return lambda: function(values)


def rows() -> Iterator[Row]:
    """Measure from 512 units up."""
    for units in (512, 1024, 2048, 4096):
        values = activations("latent", units)
        wide, tensor = values.astype(np.float64), torch.from_numpy(values).T
        lazy = da.from_array(values.T, chunks=(max(256, units // 4), SAMPLES))
        arms: dict[str, Callable[[], object]] = {
            "ours": lambda values=values: correlate(values, threads=1),
            "numpy float32": lambda values=values: by_numpy(values),
            "numpy float64": lambda wide=wide: by_numpy(wide),
            "torch": lambda tensor=tensor: torch.corrcoef(tensor).abs(),
            "dask.array": lambda lazy=lazy: abs(da.corrcoef(lazy)).compute(scheduler="synchronous"),
        }
        if units <= 2048:
            arms["nilearn"] = lambda values=values: by_nilearn(values)
        torch.set_num_threads(1)
        with threadpool_limits(1):
            seconds = interleaved(arms)
        limit = units * (units + 1) * SAMPLES / machine.limits(1).operations_per_second
        memory = {
            arm: limited("benchmarks.connectomes:prepare", arm, "latent", units).memory
            for arm in ("ours", "numpy float32")
        }
        yield Row("|Pearson correlation|", f"{units} units", seconds, memory, limit, "the bare product")
    for units in (10_000, 20_000):
        values = activations("null", units)
        arms = {
            "ours": lambda values=values: correlate(values, threads=machine.CORES),
            "one symmetric product": lambda values=values: by_one_product(values),
        }
        with threadpool_limits(machine.CORES):
            seconds = interleaved(arms, seconds=1, rounds=3)
        limit = units * (units + 1) * SAMPLES / machine.limits(machine.CORES).operations_per_second
        memory = {
            "ours": limited("benchmarks.connectomes:prepare", "ours", "null", units, threads=machine.CORES).memory
        }
        yield Row("|Pearson correlation|, all cores", f"{units} units", seconds, memory, limit, "the bare product")
    for units in (512, 2048):
        values = activations("latent", units)
        with threadpool_limits(1):
            seconds = interleaved(
                {
                    "pearson": lambda values=values: correlate(values, threads=1),
                    "cosine": lambda values=values: correlate(values, measure="cosine", threads=1),
                    "spearman": lambda values=values: correlate(values, measure="spearman", threads=1),
                    "partial": lambda values=values: correlate(values, measure="partial", threads=1),
                }
            )
        yield Row("ours, by measure", f"{units} units", seconds)
