"""The promise not to harm training: an error of the recorder becomes one line, a note on disk, and silence after it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from typing import TYPE_CHECKING, NamedTuple

from dynome_recorder.errors import DynomeError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_INSIDE = ("dynome_recorder", "contextlib")

DEGRADED_FILE = "degraded.json"
"""Beside ``run.json`` when recording stopped before training did: a sealed note; a resume removes it."""


class RecordingWarning(UserWarning):
    """Something was not recorded, or recording stopped; training is not affected."""


class Blame(NamedTuple):
    """What went wrong at which moment: the end of "recording stopped at ...", completed epochs and steps."""

    doing: str
    epoch: int
    step: int


class Shield:
    """Turns errors into warnings and remembers the first that stopped the recording.

    Parameters
    ----------
    path
        The run directory, named in every line and home of the note.
    Attributes
    ----------
    degraded
        When and why recording stopped; None while it goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.degraded: str | None = None
        self._told: set[str] = set()

    def stop_recording(self, error: Exception, blame: Blame) -> None:
        """Mark the run degraded and say so in one line; called while the error is handled."""
        logger.debug("recording failed", exc_info=True)
        self.degraded = f"{blame.doing}: {_one_line(error).removeprefix(f'{self.path}: ')}"
        self._leave_note(blame.epoch, blame.step)
        self.tell(
            "degraded",
            f"{self.path}: recording stopped at {self.degraded} Training goes on; what was committed is safe.",
        )

    def tell(self, key: str, text: str) -> None:
        """Warn in one line, once per key; in the log too, where there is one."""
        if key in self._told:
            return
        self._told.add(key)
        try:
            warnings.warn(text, RecordingWarning, stacklevel=_level_of_caller())
            warned = True
        except RecordingWarning:  # a filter that turns warnings into errors must not end a training run
            warned = False
        if not warned or logger.hasHandlers():  # where nobody has set up logging it prints, as the warning does
            logger.warning("%s", text)

    def remove_note(self) -> None:
        """Remove the note of an earlier failure: the recording goes on."""
        with contextlib.suppress(OSError):
            (self.path / DEGRADED_FILE).unlink(missing_ok=True)

    def _leave_note(self, epoch: int, step: int) -> None:
        from dynome_recorder.storage.files import write_atomically
        from dynome_recorder.storage.format import seal

        note = {"epoch": epoch, "step": step, "time": time.time(), "reason": self.degraded}
        with contextlib.suppress(OSError):  # on a full disk there may be no room for one
            write_atomically(self.path / DEGRADED_FILE, seal(note, indent=True), sync=False)


def _level_of_caller() -> int:
    """Return the stack level, seen from who calls this, of the first line outside: one that a user knows."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    return level


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if isinstance(error, DynomeError) else f"{type(error).__name__}: {text}"
    return text if text.endswith((".", "!", "?")) else f"{text}."
