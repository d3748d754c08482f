"""Fixtures that every room uses."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recordings import write_recording

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Spare the tests the disk: they kill processes, they do not cut the power. ``real_sync`` in a test keeps it on."""
    if "real_sync" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def real_sync() -> None:
    """Ask for a real ``os.fsync``."""


@pytest.fixture
def make_recording(tmp_path: Path) -> Callable[..., Path]:
    """Write a small, plausible recording without torch: ``make_recording(path=None, **options) -> Path``.

    The options are those of :func:`recordings.write_recording`.
    """
    numbers = itertools.count()

    def make(path: Path | str | None = None, **options: object) -> Path:
        folder = tmp_path / f"recording-{next(numbers)}" if path is None else Path(path)
        return write_recording(folder, **options)  # type: ignore[arg-type]

    return make
