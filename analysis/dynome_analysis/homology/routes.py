"""Births and deaths of activations by whichever route fits in memory: the whole connectome, or tile by tile."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynome_analysis.connectome.columns import DEAD_TOLERANCE
from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.homology.births import births_and_deaths
from dynome_analysis.homology.histogram import BINS, WeightHistogram
from dynome_analysis.homology.streaming import stream_homology
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ActivationSignature", "Route", "activation_signature", "available_memory", "choose_route", "dense_bytes"]

logger = logging.getLogger(__name__)

Route = Literal["dense", "streaming"]
# How much of the memory that is free one signature may take: the rest is for activations, results, others. [O]
SHARE = 0.5
# Where the system tells nothing. [O]
ASSUMED = 4 << 30
MEMINFO = Path("/proc/meminfo")
# Limit and use of this process's control group, of both versions, as a container sees them.
GROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True, eq=False)
class ActivationSignature:
    """Births and deaths of the connectome of one snapshot, in the form that its route gives.

    Attributes
    ----------
    births : float32, shape (unit - 1,)
        Ascending.
    deaths : float32, shape (1 + unit * (unit - 3) / 2,), or WeightHistogram
        All of them, ascending, by the dense route; counted in bins, within ``deaths.bound``, by the streaming one.
    dead : bool, shape (unit,)
        Units without variance.
    route : {"dense", "streaming"}
    """

    births: NDArray[np.float32]
    deaths: NDArray[np.float32] | WeightHistogram
    dead: NDArray[np.bool_]
    route: Route


def activation_signature(
    activations: NDArray[np.floating[Any]],
    *,
    route: Literal["auto", "dense", "streaming"] = "auto",
    memory_limit: int | None = None,
    threads: int | None = None,
    bins: int = BINS,
    dead_tolerance: float = DEAD_TOLERANCE,
) -> ActivationSignature:
    """Return births and deaths of the |Pearson| connectome of one snapshot's activations.

    Parameters
    ----------
    activations : floating, shape (sample, unit)
        As for `correlate`.
    route : {"auto", "dense", "streaming"}
        "auto": what `choose_route` says.
    memory_limit : int, optional
        Bytes, for `choose_route`.
    threads : int, optional
        As for `correlate` or `stream_homology`; all usable cores by default.
    bins : int
        For the streaming route, see `stream_homology`.
    dead_tolerance : float
        As for `correlate`.

    Raises
    ------
    InvalidArgumentError
        An unknown route, or no activations.
    InvalidDataError
        A value is NaN or infinite.

    Notes
    -----
    Cost of the dense route: `dense_bytes` and O((sample + log unit) unit^2) time. Cost of the other: `stream_homology`.
    """
    if route not in ("auto", "dense", "streaming"):
        raise InvalidArgumentError(f"route must be 'auto', 'dense' or 'streaming'; got {route!r}")
    shape = np.shape(activations)
    if route == "auto" and len(shape) == 2:
        route = choose_route(shape[1], shape[0], memory_limit)
    if route == "streaming":
        streamed = stream_homology(activations, bins=bins, threads=threads, dead_tolerance=dead_tolerance)
        return ActivationSignature(streamed.births, streamed.deaths, streamed.dead, "streaming")
    connectome, dead = correlate(activations, dead_tolerance=dead_tolerance, threads=threads)
    births, deaths = births_and_deaths(connectome, check=False)
    return ActivationSignature(births, deaths, dead, "dense")


def choose_route(units: int, samples: int, memory_limit: int | None = None) -> Route:
    """Say whether a connectome fits in memory; logs both figures.

    Parameters
    ----------
    units, samples : int
    memory_limit : int, optional
        Bytes that one signature may take; half of `available_memory` by default [O].

    Returns
    -------
    "dense" if `dense_bytes` are within the limit, else "streaming".
    """
    needed = dense_bytes(units, samples)
    limit = int(SHARE * available_memory()) if memory_limit is None else memory_limit
    route: Route = "dense" if needed <= limit else "streaming"
    logger.info(
        "%d units: the dense route needs %.0f MB, %.0f MB may be used: %s", units, needed / 1e6, limit / 1e6, route
    )
    return route


def dense_bytes(units: int, samples: int) -> int:
    """Return what the dense route takes beyond the activations: ``8 unit^2 + 4 sample unit`` bytes.

    4 unit^2 for the connectome, 2 for its edges, which become the deaths, and 2 where a radix sort copies them; and one
    float32 copy of the activations.
    """
    return 8 * units * units + 4 * samples * units


def available_memory() -> int:
    """Return how many bytes this process may still take: free memory of the machine, or of its control group if less.

    4 GiB where the system tells neither [O].
    """
    free = []
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    if not free:
        with suppress(OSError, ValueError, AttributeError):
            free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in GROUP_FILES:
        with suppress(OSError, ValueError):  # "max" where there is no limit
            free.append(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    return max(0, min(free)) if free else ASSUMED
