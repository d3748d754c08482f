"""Record what a neural network does while it trains. Importing this package loads neither torch nor zarr."""

from __future__ import annotations

from .errors import (
    CorruptRecordingError,
    DynomeError,
    FingerprintError,
    InvalidArgumentError,
    InvalidDataError,
    MissingExtraError,
    RecordingLockedError,
    RecordingNotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from .plan import Plan
from .probe import Probe
from .recorder import Recorder
from .schedule import Schedule, at, every, log_spaced
from .shield import RecordingWarning

__all__ = [
    "CorruptRecordingError",
    "DynomeError",
    "FingerprintError",
    "InvalidArgumentError",
    "InvalidDataError",
    "MissingExtraError",
    "Plan",
    "Probe",
    "Recorder",
    "RecordingLockedError",
    "RecordingNotFoundError",
    "RecordingWarning",
    "Schedule",
    "StorageError",
    "UnsupportedVersionError",
    "at",
    "every",
    "log_spaced",
]
