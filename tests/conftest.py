"""Fixtures that every room uses."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recordings import write_recording

if TYPE_CHECKING:
    from collections.abc import Callable


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
