"""Commits in a thread of their own: training hands a moment over and goes on.

Rules for maintainers. Only the writer thread touches the `RecordingWriter` while it lives; whoever finds it dead may
close the writer in its place. No lock is ever held across Python code: the queue is C code that signals cannot tear,
and who waits does so on a lock of its own, in slices, looking at the thread in between. So neither Ctrl-C at any
bytecode, nor a thread that is killed, nor a fork can leave anybody waiting for ever.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from dynome_recorder.errors import DynomeError, InvalidArgumentError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynome_recorder.storage.writer import Moment, RecordingWriter

__all__ = ["BackgroundWriter", "Pending"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SLICE = 0.1
"""Seconds after which somebody who waits looks whether the thread still lives."""

GROUP_MOMENTS = 64
GROUP_BYTES = 2**24
"""A long queue is committed in groups, which share the syncs of their folders and hold their buffers a bit longer."""


@dataclass(eq=False)
class Pending:
    """A moment on its way to the disk.

    Attributes
    ----------
    epoch, step
        Epochs and optimizer steps completed; they replace those of the moment that `build` returns.
    epoch_complete
        Whether training can resume after it.
    build
        Called once, in the writer thread: waits for the buffers, computes what is derived, returns the moment.
    release
        Called once, in whichever thread is done with the moment: committed, failed or dropped.
    nbytes
        Bytes of the buffers it holds.
    step_metrics, epoch_metrics
        Called in the writer thread, where reading a device tensor stops nobody; they replace those of the moment. None
        where `build` has them.
    """

    epoch: int
    step: int
    epoch_complete: bool
    build: Callable[[], Moment]
    release: Callable[[], None]
    nbytes: int = 0
    step_metrics: Callable[[], Mapping[str, tuple[Sequence[int], Sequence[float]]]] | None = None
    epoch_metrics: Callable[[], Mapping[str, float]] | None = None

    def moment(self) -> Moment:
        """Return what is to be committed."""
        moment = replace(self.build(), epoch=self.epoch, step=self.step, epoch_complete=self.epoch_complete)
        if self.step_metrics is not None:
            moment = replace(moment, step_metrics=self.step_metrics())
        if self.epoch_metrics is not None:
            moment = replace(moment, epoch_metrics=self.epoch_metrics())
        return moment


class _Call:
    """Something to do between two commits, and the place where whoever asked for it waits."""

    def __init__(self, function: Callable[[], Any], *, last: bool = False) -> None:
        self.function = function
        self.last = last
        self.dropped = False
        self.performed = False
        self.result: Any = None
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def perform(self) -> None:
        try:
            if not self.dropped:
                self.result = self.function()
                self.performed = True
        except Exception as error:
            self.error = error
            self.performed = True
        finally:
            self._lock.release()

    def drop(self) -> None:
        """Let whoever waits go on, with nothing done."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Return whether it is over. Only one thread waits, and asks no more after True."""
        return self._lock.acquire(timeout=seconds)


class BackgroundWriter:
    """Commits moments in the order in which they were handed over, in a thread of its own.

    Parameters
    ----------
    writer
        An open recording. From here on it belongs to the thread, which also closes it.
    name
        Of the thread.
    on_stop
        Called once when nothing more will be committed because something failed, in whichever thread notices: wakes who
        waits for a buffer. May be set later as an attribute.

    Attributes
    ----------
    error
        What stopped the writing; None while all is well. It is raised by every later `submit`, `drain` and `run`.
    failed
        The moment that could not be committed; None where none was to blame.
    committed
        Moments committed here.
    peak_bytes
        The most that waited to be written at any time, in bytes of buffers.

    Notes
    -----
    In a forked child (a worker that loads data) every method does nothing. At the end of the interpreter what waits is
    committed.
    """

    def __init__(
        self, writer: RecordingWriter, *, name: str = "dynome-writer", on_stop: Callable[[], None] | None = None
    ) -> None:
        self.error: Exception | None = None
        self.failed: Pending | None = None
        self.committed = 0
        self.peak_bytes = 0
        self.on_stop = on_stop
        self._writer = writer
        self._queue: SimpleQueue[Pending | _Call] = SimpleQueue()
        self._held: dict[int, Pending] = {}  # by identity; also what a dying thread had just taken from the queue
        self._submitted_bytes = 0
        self._finished_bytes = 0
        self._thread_seconds = 0.0
        self._told = False  # whether somebody was told of the error
        self._closed = False  # by whoever closes, at once
        self._ended = False  # by the thread, when it has nothing more to do
        self._process = os.getpid()
        # A daemon: what waits is committed by `_at_exit`, which Ctrl-C can end; joining a thread at exit can hang.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the thread and of those that compress and write for it, in seconds."""
        return self._thread_seconds + self._writer.cpu_seconds

    @property
    def queued_bytes(self) -> int:
        """Bytes of buffers that were handed over and are not written yet."""
        return self._submitted_bytes - self._finished_bytes

    def submit(self, pending: Pending) -> None:
        """Hand a moment over; never waits. The caller bounds what waits by the buffers that it gives.

        Raises
        ------
        DynomeError, Exception
            What stopped the writing earlier; the moment is released.
        InvalidArgumentError
            It is closed.
        """
        if self._elsewhere():
            return
        error = self.failure()
        self._held[id(pending)] = pending
        self._submitted_bytes += pending.nbytes
        if error is not None or self._closed:
            self._let_go(pending)
            raise error if error is not None else self._is_closed()
        self.peak_bytes = max(self.peak_bytes, self.queued_bytes)
        self._queue.put(pending)
        if self.error is not None:  # it died meanwhile, and may have looked into the queue before this came
            self._discard()

    def drain(self, timeout: float | None = None) -> None:
        """Return when everything that was handed over before is committed.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        StorageError
            It took longer; nothing is lost by that. Or the disk failed.
        Exception
            Whatever else stopped the writing.
        """
        if not self._elsewhere() and not self._closed:
            self.run(lambda: None, timeout=timeout)

    def run(self, function: Callable[[], Result], *, timeout: float | None = None) -> Result:
        """Do something with the recording (publish, rewind) after what was handed over before; returns its result.

        Its errors are raised here and stop nothing.

        Raises
        ------
        StorageError
            It could not begin within ``timeout`` seconds; then it is not done at all.
        Exception
            What stopped the writing earlier, or an error of the function.
        """
        if self._elsewhere() or self._closed:
            raise self._is_closed()
        if threading.current_thread() is self._thread:
            return function()
        call = _Call(function)
        self._queue.put(call)
        try:
            over = self._wait(call, timeout)
        finally:
            call.dropped = True  # where the waiting was cut off
        if call.performed:
            if call.error is not None:
                raise call.error
            result: Result = call.result
            return result
        if not over:
            raise StorageError(
                f"{self._writer.path}: not written within {timeout:g} s, {self.queued_bytes / 1e6:.0f} MB wait; "
                "the disk is slow; wait longer, or record less."
            )
        raise self.failure() or self._is_closed()

    def close(self, timeout: float | None = None, *, interrupted: bool = False) -> None:
        """Commit what waits, close the recording, and end the thread. Closing twice does nothing.

        Ctrl-C (or SystemExit) while it waits: the first is told and raised in the end, the second ends the waiting, and
        what is not committed by then is lost.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes.
        interrupted
            Whether a first Ctrl-C led here, so that the next one ends the waiting.

        Raises
        ------
        StorageError
            It took longer: what waits is given up. Or the recording could not be published.
        Exception
            What stopped the writing, unless it was raised before.
        """
        if self._elsewhere() or self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        call = _Call(self._writer.close, last=True)
        self._queue.put(call)
        first: BaseException | None = None
        try:
            try:
                over = self._wait(call, timeout)
            except (KeyboardInterrupt, SystemExit) as error:
                if interrupted:
                    raise
                first = error
                logger.warning(
                    "%s: writing the last %.0f MB; interrupt again to leave them.",
                    self._writer.path,
                    self.queued_bytes / 1e6,
                )
                over = self._wait(call, timeout)
            if not over:
                raise StorageError(
                    f"{self._writer.path}: closing took longer than {timeout:g} s; "
                    "what was not committed by then is lost, what was committed is safe."
                )
        except BaseException:
            # The commit under way ends by itself or with the process, as if that were killed; the rest is let go.
            self._discard()
            self._queue.put(_Call(self._writer.close, last=True))
            raise
        told = self._told
        failure = None if self.failure() is None or told else self.error
        if not call.performed:  # the thread is dead: nobody else uses the recording
            try:
                self._writer.close()
            except Exception as error:
                call.error = error
        for cause in (first, failure, call.error):
            if cause is not None:
                raise cause

    def failure(self) -> Exception | None:
        """Return what stopped the writing, after a look whether the thread still lives; None while all is well.

        For whoever waits for a buffer: called in a loop, it ends the waiting also where the thread was killed.
        """
        if self.error is None and not self._ended and not self._thread.is_alive():
            self._fail(StorageError(f"{self._writer.path}: the thread that writes was killed; restart the training."))
        if self.error is not None:
            self._told = True
        return self.error

    # In the writer thread

    def _main(self) -> None:
        try:
            try:
                self._work()
            except BaseException as error:
                self._fail(error)
        except BaseException as error:  # killed a second time, while it was dying
            self._fail(error)

    def _work(self) -> None:
        while True:
            group: list[Pending] = []
            item: Pending | _Call | None = self._queue.get()
            while isinstance(item, Pending):
                group.append(item)
                item = self._next(group)
            if group:
                self._commit(group)
                self._let_go(*group)
            if item is not None:
                item.perform()
            self._thread_seconds = time.thread_time()
            if item is not None and item.last:
                self._ended = True
                return

    def _next(self, group: list[Pending]) -> Pending | _Call | None:
        """Return what is next in the queue, if it may share its commit with `group`."""
        if len(group) >= GROUP_MOMENTS or sum(pending.nbytes for pending in group) >= GROUP_BYTES:
            return None
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _commit(self, group: list[Pending]) -> None:
        moments: list[Moment] = []
        failure: Exception | None = None
        for pending in group:
            try:
                moments.append(pending.moment())
            except Exception as error:
                failure = error  # those before it are whole, and are committed
                break
        before = self._writer.next_sequence
        try:
            self._writer.commit_all(moments)
        finally:
            done = self._writer.next_sequence - before
            self.committed += done
            self.failed = group[done] if done < len(group) else None
        if failure is not None:
            raise failure

    # In any thread

    def _fail(self, error: BaseException) -> None:
        """Keep the error, let go of what waits, wake whoever waits for a buffer. The thread is dead, or dies."""
        if self.error is None:
            if not isinstance(error, Exception):  # SystemExit here must not end the thread that trains
                told = StorageError(f"{self._writer.path}: the thread that writes was ended by {type(error).__name__}.")
                told.__cause__ = error
                error = told
            logger.debug("the writer thread stops", exc_info=error)
            self.error = error
        self._discard()
        self._let_go(*list(self._held.values()))
        on_stop, self.on_stop = self.on_stop, None
        if on_stop is not None:
            on_stop()

    def _discard(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return
            if isinstance(item, Pending):
                self._let_go(item)
            else:
                item.drop()

    def _let_go(self, *pendings: Pending) -> None:
        for pending in pendings:
            if self._held.pop(id(pending), None) is not None:
                self._finished_bytes += pending.nbytes
                try:
                    pending.release()
                except Exception:
                    logger.warning("a buffer could not be given back", exc_info=True)

    def _wait(self, call: _Call, timeout: float | None) -> bool:
        """Return True when a call is over, or the thread dead; False after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            alive = self._thread.is_alive()  # asked first: what it did before it died counts
            left = SLICE if end is None else min(SLICE, max(0.0, end - time.monotonic()))
            if call.wait(left if alive else 0.0):
                return True
            if not alive:
                self._discard()  # this call too, unless the thread had taken it
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def _elsewhere(self) -> bool:
        """Whether this is a forked child, which has a copy of everything but the thread."""
        return os.getpid() != self._process

    def _is_closed(self) -> DynomeError:
        return InvalidArgumentError(f"{self._writer.path}: the recording is closed; open it again to continue.")

    def _at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:
            logger.warning("%s: could not be closed cleanly: %s", self._writer.path, error)
