"""Threads that are ended in mid-work."""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

__all__ = ["raise_in", "untraced"]


def raise_in(thread: threading.Thread, kind: type[BaseException] = SystemExit) -> None:
    """Raise in another thread, at whatever bytecode it executes next: never, while it waits in C."""
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind)) == 1


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Measure no coverage meanwhile: in CPython 3.11 no traced thread enters a function while such an error waits."""
    here, elsewhere = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        threading.settrace(elsewhere)  # type: ignore[arg-type]
        sys.settrace(here)
