"""Numbers of a call that must be whole: told in one line, before any work."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynome_recorder.errors import InvalidArgumentError

__all__ = ["check_whole"]


def check_whole(name: str, value: Any, *, least: int | None = None) -> int:
    """Return a whole number as an int; raise InvalidArgumentError for anything else, or for less than ``least``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InvalidArgumentError(f"{name} must be a whole number; got {value!r}")
    if least is not None and value < least:
        raise InvalidArgumentError(f"{name} must be at least {least}; got {value}")
    return int(value)
