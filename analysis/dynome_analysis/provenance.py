"""Where a result comes from, as attributes that every file format can hold."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PACKAGES", "provenance"]

# What numbers depend on.
PACKAGES = ("dynome", "numpy", "scipy", "numba", "xarray")


def provenance(
    operation: str, parameters: Mapping[str, Any], *, source: Mapping[str, Any] | None = None, recording: str = ""
) -> dict[str, str]:
    """Return attributes ``recording`` (id), ``operation``, ``parameters`` and ``versions``, the last two as JSON.

    ``source`` are the attributes of the data that the operation was applied to: its recording carries over, and
    ``parameters`` keeps one member per operation on the way.
    """
    before = dict(source or {})
    steps = json.loads(before.get("parameters", "{}"))
    return {
        "recording": recording or before.get("recording", ""),
        "operation": operation,
        "parameters": json.dumps({**steps, operation: dict(parameters)}, sort_keys=True),
        "versions": _versions(),
    }


@cache
def _versions() -> str:
    """Return what is imported and stays; looking it up takes milliseconds."""
    return json.dumps({name: version(name) for name in PACKAGES}, sort_keys=True)
