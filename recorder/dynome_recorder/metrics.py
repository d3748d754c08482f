"""Metrics of steps and epochs, waiting for the next commit.

The rule to keep: a tensor of a device is neither read nor moved before it is drained, in the writer thread, because
reading it waits for the device. It is cloned, because training loops like to update their running loss in place.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.storage.format import encode_component

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# Coordinates of the same groups in the store.
RESERVED_NAMES = frozenset({"epoch", "step"})
_CHUNK = 1024

Value: TypeAlias = "float | torch.Tensor"


def take_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, InvalidArgumentError]]:
    """Return the metrics of an epoch as they wait for the commit, and why others cannot be recorded."""
    taken: dict[str, Value] = {}
    refused: dict[str, InvalidArgumentError] = {}
    for name, value in metrics.items():
        try:
            check_name(name)
            taken[name] = take_value(name, value)
        except InvalidArgumentError as error:
            refused[name] = error
    return taken, refused


def check_name(name: str) -> None:
    """Raise InvalidArgumentError where a metric cannot be stored under its name."""
    if name in RESERVED_NAMES:
        raise InvalidArgumentError(f"metrics: {name!r} is the recording's own counter; choose another name.")
    encode_component(name)


def take_value(name: str, value: Any) -> Value:
    """Return a metric as it waits for the commit: a float, or a one-element tensor of our own on its device.

    Raises
    ------
    InvalidArgumentError
        If the value is no single real number.
    """
    # What nearly every step gives comes first: each look at a value costs a microsecond between steps of training.
    if type(value) is float:
        return value
    try:
        if getattr(value, "is_cpu", False):
            return float(value.item())  # nobody to wait for, and a tenth of the cost of a copy
        if hasattr(value, "detach") and value.numel() == 1 and not value.is_complex():
            kept: torch.Tensor = value.detach().reshape(()).clone()
            return kept
        if isinstance(value, (numbers.Real, np.bool_)):
            return float(value)
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuf":
            return float(value.reshape(()))
    except Exception as error:
        if not hasattr(value, "numel") or (value.numel() == 1 and not value.is_complex()):
            said = " ".join(str(error).split())
            raise InvalidArgumentError(f"metrics: {name!r} cannot be read ({said}).") from error
    raise InvalidArgumentError(f"metrics: {name!r} must be one real number; got {_describe(value)}.")


def _describe(value: Any) -> str:
    """Return what a value is, in a few words of one line; the values of a tensor are not looked at."""
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{kind} of {value.dtype}, shape {tuple(value.shape)}"
    try:
        return f"{kind} {' '.join(repr(value).split()):.80}"
    except Exception:
        return kind


class StepMetrics:
    """The step metrics since the last commit."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._series)

    def add(self, step: int, metrics: Mapping[str, Any]) -> dict[str, InvalidArgumentError]:
        """Append one value of each of some metrics; returns why others cannot be recorded."""
        refused: dict[str, InvalidArgumentError] = {}
        for name, value in metrics.items():
            series = self._series.get(name)
            try:
                taken = take_value(name, value)
                if series is None:
                    check_name(name)
                    series = self._series[name] = _Series()
            except InvalidArgumentError as error:
                refused[name] = error
                continue
            series.steps.append(step)
            series.pending.append(taken)
            if len(series.pending) == _CHUNK:
                series.pack()
        return refused

    def drain(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return per metric its steps and values, and forget them. Cost: one transfer per metric and 1024 steps."""
        series, self._series = self._series, {}
        return {name: (one.steps, one.values()) for name, one in series.items()}


class _Series:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pending: list[Value] = []
        self._chunks: list[Any] = []

    def pack(self) -> None:
        # One tensor instead of a thousand: small allocations of a device are rounded up to 512 bytes each.
        self._chunks.append(_pack(self.pending))
        self.pending = []

    def values(self) -> list[float]:
        return [value for chunk in (*self._chunks, _pack(self.pending)) for value in _unpack(chunk)]


def _pack(values: list[Value]) -> list[Value] | torch.Tensor:
    kinds = {(value.dtype, value.device) if not isinstance(value, float) else None for value in values}
    if len(kinds) != 1 or None in kinds:
        return values
    import torch

    return torch.stack([value for value in values if not isinstance(value, float)])


def _unpack(chunk: list[Value] | torch.Tensor) -> list[float]:
    if isinstance(chunk, list):
        return [float(value) for value in chunk]
    listed: list[float] = chunk.cpu().double().tolist()
    return listed


def to_numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    """Read the values of epoch metrics."""
    return {name: float(value) for name, value in metrics.items()}
