"""Interleaved timing: every arm runs once per round, so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Row:
    """One measured operation: median seconds per arm; the first arm is ours."""

    operation: str
    size: str
    medians: Mapping[str, float]

    @property
    def ratios(self) -> dict[str, float]:
        """How many times longer each peer takes than ours."""
        ours, *peers = self.medians
        return {peer: self.medians[peer] / self.medians[ours] for peer in peers}


def interleaved(
    operation: str, size: str, arms: Mapping[str, Callable[[], object]], *, seconds: float = 4.0, rounds: int = 25
) -> Row:
    """Time every arm in turn, after one uncounted round, until ``rounds`` or the time is used up; at least 3 rounds."""
    for arm in arms.values():
        arm()
    times: dict[str, list[float]] = {name: [] for name in arms}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - start)
    return Row(operation, size, {name: statistics.median(values) for name, values in times.items()})


def machine() -> str:
    """Name the processor, its vector width and the versions that the figures depend on."""
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
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "numba", "zarr"))
    return f"{model}, {width}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def as_markdown(rows: list[Row]) -> str:
    """One line per operation: our time, each peer's time and ratio."""
    lines = ["| operation | size | ours, ms | peers: ms (times ours) |", "|---|---|---|---|"]
    for row in rows:
        ours = next(iter(row.medians.values()))
        peers = "; ".join(f"{peer} {row.medians[peer] * 1e3:.3g} ({ratio:.2f}x)" for peer, ratio in row.ratios.items())
        lines.append(f"| {row.operation} | {row.size} | {ours * 1e3:.3g} | {peers} |")
    return "\n".join(lines) + "\n"
