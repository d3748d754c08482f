"""Record what a neural network does while it trains. Importing this package loads neither torch nor zarr."""

from __future__ import annotations

from dynome_recorder.capture.probe import Probe
from dynome_recorder.capture.steps import position, subset
from dynome_recorder.errors import (
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
from dynome_recorder.plan import Plan
from dynome_recorder.recorder import Recorder
from dynome_recorder.schedule import Schedule, at, every, log_spaced, never, parse_schedule
from dynome_recorder.shield import RecordingWarning
from dynome_recorder.tapping import tap

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
    "never",
    "parse_schedule",
    "position",
    "subset",
    "tap",
]
