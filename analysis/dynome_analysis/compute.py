"""Run lazy work: on Dask's threads, or on the cluster whose client is current.

One task handles one snapshot at a time, so all cores are busy with snapshots already: BLAS gets one thread per task
(with more, threads fight; measured 1.83x on 2 cores this way).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import dask
from dask.callbacks import Callback
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from dynome_analysis.homology.routes import SHARE, available_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Progress", "compute", "counted_parts", "one_blas_thread", "report_part", "worker_memory", "worker_threads"]


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
    respected. On a cluster, tasks limit BLAS themselves, see `one_blas_thread`.
    """
    client = _current_client()
    if client is not None:
        return _on_cluster(client, lazy, description, progress)
    scheduler = dask.config.get("scheduler", None) or "threads"
    with one_blas_thread(), _Reporter(description, progress):
        return list(dask.compute(*lazy, scheduler=scheduler))


def worker_threads() -> int:
    """Return how many tasks `compute` runs at once: the cluster's threads, or Dask's own; at least 1."""
    client = _current_client()
    if client is not None:
        threads: int = sum(client.nthreads().values())
        return max(1, threads)
    if dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded"):
        return 1
    workers: int = dask.config.get("num_workers", None) or CPU_COUNT
    return workers


def worker_memory() -> int:
    """Return the bytes that each of the tasks that run at once in `compute` may take: its share of half of the rest."""
    client = _current_client()
    if client is None:
        return int(SHARE * available_memory()) // worker_threads()
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] / worker["nthreads"] for worker in workers if worker["memory_limit"]]
    return int(SHARE * min(limits, default=available_memory()))


class _BlasLimit:
    """One BLAS thread while at least one holder is inside; the last one out puts back what the first one found.

    threadpoolctl's own context puts back what it found itself, and of two that overlap the first one out would free
    the threads of the other.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.limits: list[Any] = []

    def __enter__(self) -> None:
        with self.lock:
            self.holders += 1
            # Every time: libraries that were loaded since then have their own pools.
            self.limits.append(threadpool_limits(limits=1))

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.holders -= 1
            if not self.holders:
                while self.limits:
                    self.limits.pop().restore_original_limits()


_BLAS_LIMIT = _BlasLimit()


def one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """Limit BLAS and OpenMP of this process to one thread, as long as anyone is inside; about a millisecond."""
    return _BLAS_LIMIT


# What counts the parts of work that goes on in this process, by ticket.
_COUNTERS: dict[str, Callable[[], None]] = {}


@contextlib.contextmanager
def counted_parts(description: str, total: int, progress: Progress | None) -> Iterator[str]:
    """Count parts that tasks report while they run, finer than `compute` sees them.

    Yields a ticket, a string that travels with the tasks; they call `report_part` with it. On a cluster the reports
    are its events. ``progress`` sees 0 at once and ``total`` when the block ends well.
    """
    ticket = f"dynome-{uuid.uuid4().hex}"
    if progress is None:
        yield ticket
        return
    counter = _Counter(description, total, progress)
    client = _current_client()
    if client is not None:
        client.subscribe_topic(ticket, lambda event: counter.add())
    _COUNTERS[ticket] = counter.add
    try:
        yield ticket
        counter.finish()
    finally:
        counter.close()
        del _COUNTERS[ticket]
        if client is not None:
            with contextlib.suppress(ValueError, OSError):  # the cluster is gone: its own error says so
                client.unsubscribe_topic(ticket)


def report_part(ticket: str) -> None:
    """Say from within a task that one more part is done; never fails for it."""
    if ticket in _COUNTERS:
        _COUNTERS[ticket]()
        return
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        with contextlib.suppress(ValueError):  # not within a worker
            distributed.get_worker().log_event(ticket, 1)


@dataclass
class _Counter:
    description: str
    total: int
    progress: Progress
    done: int = 0
    is_open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.progress(self.description, 0, self.total)

    def add(self) -> None:
        with self.lock:
            # A part whose worker was lost after it reported is reported again.
            if self.is_open and self.done < self.total:
                self.done += 1
                self.progress(self.description, self.done, self.total)

    def finish(self) -> None:
        with self.lock:
            if self.done < self.total:
                self.done = self.total
                self.progress(self.description, self.total, self.total)

    def close(self) -> None:
        with self.lock:
            self.is_open = False


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
