"""Every error that Dynome raises on purpose.

The text of an error is one line: what, where, and the way out. ``exit_code`` is what the command line ends with: 1 when
the data is at fault, 2 when the call is. Each class also subclasses the builtin that a caller would expect.
"""

from __future__ import annotations

__all__ = [
    "CorruptRecordingError",
    "DynomeError",
    "FingerprintError",
    "InvalidArgumentError",
    "InvalidDataError",
    "MissingExtraError",
    "RecordingLockedError",
    "RecordingNotFoundError",
    "StorageError",
    "UnsupportedVersionError",
]


class DynomeError(Exception):
    """Base of all errors of Dynome."""

    exit_code: int = 1


class RecordingNotFoundError(DynomeError, FileNotFoundError):
    """There is no recording at the path."""


class CorruptRecordingError(DynomeError, ValueError):
    """A stored file is missing, truncated or changed. The way out is the same for all of them and ends every text."""

    way_out = "'dynome verify RUN --deep' lists all damage and what can be repaired."

    @property
    def problem(self) -> str:
        """What is wrong where, without the way out."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        """Say what is wrong where, and the way out."""
        return f"{self.problem} {self.way_out}"


class UnsupportedVersionError(DynomeError, ValueError):
    """The recording was written in a format that this version does not know."""


class RecordingLockedError(DynomeError, RuntimeError):
    """Another recorder is writing to the recording."""


class StorageError(DynomeError, OSError):
    """The disk is full, read-only, or failed."""


class FingerprintError(DynomeError, ValueError):
    """A recording cannot be continued because sites, probe or parameters differ."""


class InvalidDataError(DynomeError, ValueError):
    """The data cannot answer the question: NaN activations, a single snapshot, a missing metric."""


class InvalidArgumentError(DynomeError, ValueError):
    """An argument is wrong: a pattern that matches nothing, an unknown rule."""

    exit_code = 2


class MissingExtraError(DynomeError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2
