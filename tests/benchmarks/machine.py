"""What machine this is, and how fast it can be at all: reading memory, multiplying matrices."""

from __future__ import annotations

import os
import platform
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from threadpoolctl import threadpool_limits

from dynome_analysis.kernels.flags import kernel

from .timing import timed

CORES = len(os.sched_getaffinity(0))
PACKAGES = ("numpy", "scipy", "numba", "torch", "zarr")


@dataclass(frozen=True)
class Limits:
    """Bytes per second read from memory and float32 operations per second of a matrix product, for some threads."""

    threads: int
    bytes_per_second: float
    operations_per_second: float


@kernel
def _sum(values: np.ndarray) -> int:
    total = 0
    for value in values:
        total += value
    return total


@cache
def limits(threads: int) -> Limits:
    """Measure both limits: 1 GiB summed, float32 matrices of 4096 multiplied; the best of seven runs each."""
    values = np.ones(1 << 27, np.int64)
    parts = np.array_split(values, threads)
    with ThreadPoolExecutor(threads) as pool:
        reading = [timed(lambda: list(pool.map(_sum, parts))) for _ in range(8)]
    matrix = np.ones((4096, 4096), np.float32)
    out = np.empty_like(matrix)
    with threadpool_limits(threads):
        multiplying = [timed(lambda: np.matmul(matrix, matrix, out=out)) for _ in range(8)]
    return Limits(threads, values.nbytes / min(reading[1:]), 2 * 4096**3 / min(multiplying[1:]))


def describe() -> str:
    """Name the processor, its vector width, its limits and the versions that the figures depend on."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    model = value.strip()
                if key.strip() == "flags":
                    flags = value
    except OSError:
        pass  # not Linux: the generic name has to do
    width = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "no AVX2")
    speeds = "; ".join(
        f"{at.threads} thread{'s' if at.threads > 1 else ''}: {at.bytes_per_second / 1e9:.1f} GB/s read,"
        f" {at.operations_per_second / 1e9:.0f} GFLOP/s float32 product"
        for at in (limits(threads) for threads in sorted({1, CORES}))
    )
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{model}, {width}, {CORES} cores ({speeds}); Python {platform.python_version()}, {packages}"


def name_device(device: str) -> str:
    """Return the name of an accelerator; "" for the CPU, which `describe` names."""
    if device == "cpu":
        return ""
    import torch

    return str(torch.cuda.get_device_name())


def peer(name: str, distribution: str) -> str:
    """Return a peer's name with its version, or say that it is not installed."""
    try:
        return f"{name} {version(distribution)}"
    except PackageNotFoundError:
        return f"{name} (not installed)"


def median_of(function: object, runs: int = 3) -> float:
    """Return the median seconds of a few calls."""
    return statistics.median(timed(function) for _ in range(runs))  # type: ignore[arg-type]
