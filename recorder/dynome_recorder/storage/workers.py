"""Threads that work side by side for one writer, and what they cost."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

Result = TypeVar("Result")


class Workers:
    """A pool of threads that counts its CPU time, and works in the calling thread where there can be no others.

    Parameters
    ----------
    count
        Threads.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="dynome-worker")
        self._seconds: dict[int, float] = {}  # each thread writes its own entry
        # All threads now, not when they are needed. Who kills the thread that commits (PyThreadState_SetAsyncExc) while
        # that starts another hits the unborn one on CPython 3.11, and its starter would wait for it for ever.
        started = threading.Barrier(count)
        for future in [self._pool.submit(started.wait) for _ in range(count)]:
            future.result()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all work that was done here, in seconds; waiting for the disk costs none."""
        return sum(list(self._seconds.values()))

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Start a function in one of the threads; queued functions start in the order of their submission."""
        try:
            return self._pool.submit(self._counted, work)
        except RuntimeError:  # the interpreter ends and has joined its pools; what waits is still to be written
            future: Future[Result] = Future()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            return future

    def close(self) -> None:
        """End the threads when they have done what was submitted."""
        self._pool.shutdown()

    def _counted(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        finally:
            self._seconds[threading.get_ident()] = time.thread_time()
