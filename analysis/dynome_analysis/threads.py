"""A few threads over kernels that let go of the interpreter: how one snapshot uses several cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["for_each", "usable_cores"]

Item = TypeVar("Item")


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(function: Callable[[Item], None], items: Iterable[Item], *, threads: int) -> None:
    """Call ``function`` with every item, on ``threads`` threads; without a pool where one is enough."""
    if threads <= 1:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, items):
            pass
