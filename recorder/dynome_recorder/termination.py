"""SIGTERM, as a scheduler sends it before it kills: turned into an ordinary end, so that what waits is committed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143) in the main thread while the block runs.

    An exception, because it unwinds the training loop through its own ``with`` and ``finally`` blocks, with no lock
    held; the recorder's exit then commits what waits. A handler of the user's own is left alone, as is a process whose
    block runs outside the main thread, where Python lets nobody set one. A child that was forked inside the block ends
    by SIGTERM as it would have without it.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # Someone may have set a handler meanwhile; it stays.
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
