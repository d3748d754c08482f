"""The one place that says how every kernel of this package is compiled.

``cache``: the machine code is kept between processes, so that only the first call of a fresh installation compiles.
``nogil``: Dask runs one snapshot per thread, so a kernel must not hold the interpreter. ``fastmath`` and ``parallel``
stay off: fast mathematics assumes that NaN never comes, and parallel regions inside Dask's threads cost more than
they give (numba's ``workqueue`` layer even aborts the process).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KERNEL_FLAGS", "kernel"]

KERNEL_FLAGS: dict[str, bool] = {"cache": True, "nogil": True, "fastmath": False, "parallel": False}

Function = TypeVar("Function", bound="Callable[..., Any]")


def kernel(function: Function) -> Function:
    """Compile a function with the flags of this package."""
    compiled: Function
    try:
        compiled = numba.njit(**KERNEL_FLAGS)(function)
    except RuntimeError:  # no folder that numba may write to: compile in every process instead of not at all
        compiled = numba.njit(**{**KERNEL_FLAGS, "cache": False})(function)
    return compiled
