"""Run lazy work: on Dask's threads, or on the cluster whose client is current.

One snapshot is one task, so all cores are busy with snapshots already: BLAS gets one thread per worker (with more,
threads fight; measured 1.83x on 2 cores this way). On a distributed cluster the workers' own environment does the
same.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import dask
from dask.callbacks import Callback
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Progress", "compute"]


class Progress(Protocol):
    """Called as work goes on, from any thread; ``done`` rises from 0 to ``total``."""

    def __call__(self, description: str, done: int, total: int, /) -> None:
        """Take note that ``done`` of ``total`` parts of the work named ``description`` are done."""
        ...


def compute(lazy: Sequence[Any], *, description: str = "computing", progress: Progress | None = None) -> list[Any]:
    """Compute Dask objects together and return their values in order.

    Parameters
    ----------
    lazy : sequence of Dask objects
        Delayed values, arrays, xarray objects; work that they share is done once.
    description : str
        What is going on, for ``progress``.
    progress : callable, optional
        Called as ``progress(description, done, total)``; parts are tasks on threads and values on a cluster.

    Notes
    -----
    A current ``distributed.Client`` is used if there is one, else Dask's threads with BLAS limited to one thread for
    the time of the call (in the whole process). A scheduler set by ``dask.config`` ("synchronous", "processes") is
    respected.
    """
    client = _current_client()
    if client is not None:
        return _on_cluster(client, lazy, description, progress)
    scheduler = dask.config.get("scheduler", None) or "threads"
    with threadpool_limits(limits=1), _Reporter(description, progress):
        return list(dask.compute(*lazy, scheduler=scheduler))


def _current_client() -> Any | None:
    """Return the current distributed client, without importing distributed where nobody did."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def _on_cluster(client: Any, lazy: Sequence[Any], description: str, progress: Progress | None) -> list[Any]:
    futures = client.compute(list(lazy))
    if progress is not None:
        from distributed import as_completed

        progress(description, 0, len(futures))
        for done, _ in enumerate(as_completed(futures), start=1):
            progress(description, done, len(futures))
    values: list[Any] = client.gather(futures)
    return values


class _Reporter(Callback):  # type: ignore[misc]  # dask ships no types
    """Counts finished tasks of Dask's local schedulers."""

    def __init__(self, description: str, progress: Progress | None) -> None:
        self.description = description
        self.progress = progress
        self.done = 0
        self.total = 0
        self.lock = threading.Lock()

    def _start_state(self, dsk: Mapping[Any, Any], state: Mapping[str, Any]) -> None:
        self.total = len(state["ready"]) + len(state["waiting"])
        self._report(0)

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        with self.lock:
            self._report(1)

    def _report(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.description, self.done, self.total)
