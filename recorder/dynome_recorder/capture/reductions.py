"""How a module's output becomes rows of units: the layout of a site, and the recorded dtypes.

The rule to keep: everything here runs on the output's own device and waits for nothing, since hooks call it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_recorder.capture.probe import choose_samples
from dynome_recorder.capture.steps import (
    CHANNELS_FIRST,
    Named,
    Position,
    ReductionChoice,
    Step,
    Subset,
    parse_reduction,
    reduction_text,
)
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.tracing.outputs import extract_output

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from dynome_recorder.tracing.sites import Site

RecordedType = Literal["native", "float32", "float16", "bfloat16"]

FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# Exponent of the largest finite value: a cast to a smaller one may overflow.
_LARGEST_EXPONENTS = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}


@dataclass(frozen=True)
class SiteLayout:
    """How one site's output becomes rows of units.

    Attributes
    ----------
    site
        The site.
    output_shape
        Shape of the module's output without the sample axis, as it was traced.
    units
        Number of units after the reduction.
    reduction
        Text of the steps that make units of the axes behind the first; None where there are none.
    native_dtype, dtype
        The output's dtype and the recorded one.
    rows_per_sample
        Rows that one sample gives: the number of positions where they count as samples ("tokens"), else 1. The rows
        of a sample lie together.
    steps
        What ``reduction`` says.
    """

    site: Site
    output_shape: tuple[int, ...]
    units: int
    reduction: str | None
    native_dtype: str
    dtype: str
    rows_per_sample: int = 1
    steps: tuple[Step, ...] = ()
    # Index tensors per device, so that a hook copies none to an accelerator twice (such a copy waits for it).
    _indices: dict[Any, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def bytes_per_sample(self) -> int:
        """Stored size of one sample before compression."""
        return self.rows_per_sample * self.units * ITEM_SIZES[self.dtype]

    @property
    def narrows(self) -> bool:
        """Whether finite values may become infinite when they are recorded."""
        native = _LARGEST_EXPONENTS.get(self.native_dtype, 0)
        return _LARGEST_EXPONENTS[self.dtype] < native or ITEM_SIZES[self.dtype] < ITEM_SIZES.get(self.native_dtype, 0)

    def planned(self, samples: int) -> str:
        """Return what the module is expected to return, for messages; axes that the reduction removes are "any"."""
        free = self._free_axes()
        lengths = ["any" if axis in free else str(length) for axis, length in enumerate(self.output_shape)]
        comma = "," if not lengths else ""
        return f"{self.native_dtype} of shape ({', '.join([str(samples), *lengths])}{comma})"

    def take(self, output: Any, *, samples: int, any_dtype: bool = False) -> torch.Tensor:
        """Return the site's tensor of what its module returned, shape (sample, ...), detached, on its device.

        Parameters
        ----------
        output
            What the module returned.
        samples
            Number of rows that the pass works on.
        any_dtype
            True where another floating-point dtype than the traced one will do, as in training batches, whose
            autocast is not the probe's.

        Raises
        ------
        InvalidDataError
            If there is no such tensor, or one of another shape or dtype than planned, where the reduction does not
            remove the difference.
        """
        import torch

        try:
            values = extract_output(output, self.site.output)
        except InvalidDataError as error:
            raise InvalidDataError(f"{self.site.name}: {error}") from error
        fits = isinstance(values, torch.Tensor) and self.accepts(tuple(values.shape), samples)
        if fits and (
            dtype_name(values) == self.native_dtype
            or (any_dtype and values.is_floating_point() and dtype_name(values) in FLOAT_TYPES)
        ):
            taken: torch.Tensor = values.detach()
            return taken
        raise InvalidDataError(
            f"{self.site.name}: returned {dtype_name(values)} of shape {tuple(getattr(values, 'shape', ()))},"
            f" planned was {self.planned(samples)}; sites must keep their shape and dtype in all batches"
            f"{self._way_out(values)}."
        )

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Reduce values of shape (sample, ...) to (row, unit), on their device and in their dtype; may return a view.

        A dtype that no reduction works on (float8) becomes float32 first.
        """
        import torch

        if dtype_name(values) not in FLOAT_TYPES:
            values = values.to(torch.float32)
        for step in self.steps:
            if isinstance(step, Subset):
                axis = 1 if step.axis == "units" else self._position_axis()
                if step.axis == "positions":
                    values = values.flatten(2) if axis == 2 else values.flatten(1, -2)
                elif values.ndim == 1:
                    values = values.unsqueeze(1)
                values = values.index_select(axis, self._index(step, values.shape[axis], values.device))
            else:
                values = _reduce(values, step)
        return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)

    def accepts(self, shape: tuple[int, ...], samples: int) -> bool:
        """Whether a tensor of this shape, (sample, ...), is what was planned, up to axes that the reduction removes."""
        if len(shape) != len(self.output_shape) + 1 or shape[0] != samples:
            return False
        free = self._free_axes()
        return all(
            length >= free[axis] if axis in free else length == planned
            for axis, (length, planned) in enumerate(zip(shape[1:], self.output_shape, strict=True))
        )

    def chosen(self, axis: Literal["units", "positions"]) -> NDArray[np.int64] | None:
        """Return which units (after the reduction before it) or positions a subset keeps, in order; None without one.

        Returns
        -------
        int64, shape (unit,) or (position,): indices from 0; positions of several axes are counted in C order.
        """
        for step in self.steps:
            if isinstance(step, Subset) and step.axis == axis:
                return choose_subset(step, _available(step, self.steps, self.output_shape))
        return None

    def _free_axes(self) -> dict[int, int]:
        """Return the axes of ``output_shape`` whose length may vary, with the least that each needs."""
        kind = next((step for step in self.steps if not isinstance(step, Subset)), None)
        axes = len(self.output_shape)
        if kind is None or any(isinstance(step, Subset) and step.axis == "positions" for step in self.steps):
            return {}
        if isinstance(kind, Position):
            return {0: kind.index + 1} if axes == 2 else {}
        if kind.name in ("spatial_mean", "max"):
            return dict.fromkeys(range(1, axes), 1)
        return dict.fromkeys(range(axes - 1), 1) if kind.name in ("mean", "last", "first") else {}

    def _position_axis(self) -> int:
        kinds = [step for step in self.steps if not isinstance(step, Subset)]
        return 2 if _is_channels_first(kinds[0]) else 1

    def _index(self, step: Subset, available: int, device: torch.device) -> torch.Tensor:
        import torch

        key = (step, device)
        if key not in self._indices:
            self._indices[key] = torch.from_numpy(choose_subset(step, available)).to(device)
        return self._indices[key]

    def _way_out(self, values: Any) -> str:
        shape = tuple(getattr(values, "shape", ()))
        if len(shape) != len(self.output_shape) + 1 or len(shape) < 3 or shape[1:] == self.output_shape:
            return ""
        names = "'mean' or 'last'" if len(shape) == 3 else "'spatial_mean' or 'max'"
        return f", or have a reduction that removes what varies, e.g. {names}"


def layout_site(
    site: Site,
    *,
    output_shape: tuple[int, ...],
    native_dtype: str,
    reduction: ReductionChoice | None,
    dtype: RecordedType,
) -> SiteLayout:
    """Decide units and dtype of a site from its output's shape.

    Without an explicit ``reduction``, ``(sample, unit)`` is taken as it is and outputs of four axes or more
    (convolutions) are averaged over space. Three axes may be (sample, channel, position) or (sample, token, feature):
    that is the caller's to say. Where there are no positions, only a subset of units is left of a reduction.

    Raises
    ------
    InvalidArgumentError
        For three axes without a reduction, a position that is not there, or a native dtype that cannot be stored.
    """
    steps = parse_reduction(reduction) if reduction is not None else ()
    steps = _complete(steps, site, output_shape)
    if math.prod(output_shape) < 1:
        raise InvalidArgumentError(f"sites: {site.name!r} returns no units, its shape per sample is {output_shape}.")
    recorded = native_dtype if dtype == "native" else dtype
    if recorded not in FLOAT_TYPES:
        raise InvalidArgumentError(
            f"dtype: {site.name!r} returns {native_dtype}, which a recording cannot hold; pass dtype='float32'."
        )
    rows, units = _lengths(steps, output_shape)
    return SiteLayout(
        site, tuple(output_shape), units, reduction_text(steps), native_dtype, recorded, rows, steps=steps
    )


def check_reductions(reduction: Any) -> None:
    """Raise `InvalidArgumentError` unless this is None, a reduction, or a mapping of patterns to reductions."""
    for choice in reduction.values() if isinstance(reduction, Mapping) else [reduction]:
        if choice is not None:
            parse_reduction(choice)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise `InvalidArgumentError` unless the value is one of a Literal's choices."""
    if value not in get_args(choices):
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}; got {value!r}.")


def choose_subset(step: Subset, available: int) -> NDArray[np.int64]:
    """Return the indices that a subset keeps of ``available`` ones.

    Returns
    -------
    int64, shape (kept,): ascending, distinct.
    """
    return np.sort(choose_samples(available, size=step.count, seed=step.seed))


def dtype_name(value: Any) -> str:
    """Return a tensor's dtype without "torch."; the class name of what is no tensor."""
    return str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")


def _reduce(values: torch.Tensor, step: Named | Position) -> torch.Tensor:
    if isinstance(step, Position):
        return values.flatten(1, -2)[:, step.index]
    if step.name == "spatial_mean":  # over several axes at once: flattening would copy channels-last memory
        return values.mean(dim=tuple(range(2, values.ndim)))
    if step.name == "max":
        return values.amax(dim=tuple(range(2, values.ndim)))
    if step.name == "tokens":
        return values.flatten(0, -2)
    if step.name == "mean":
        return values.mean(dim=tuple(range(1, values.ndim - 1)))
    if step.name in ("first", "last"):
        return values.flatten(1, -2)[:, 0 if step.name == "first" else -1]
    return values.flatten(1)


def _complete(steps: tuple[Step, ...], site: Site, output_shape: tuple[int, ...]) -> tuple[Step, ...]:
    """Add the default where nothing says what positions become, drop what there is nothing to do for, and check."""
    kind = next((step for step in steps if not isinstance(step, Subset)), None)
    positions = next((step for step in steps if isinstance(step, Subset) and step.axis == "positions"), None)
    if len(output_shape) <= 1:
        return tuple(step for step in steps if isinstance(step, Subset) and step.axis == "units")
    if len(output_shape) == 2 and kind is None:
        first, second = output_shape
        raise InvalidArgumentError(
            f"reduction: {site.name!r} returns three axes, (sample, {first}, {second}); say"
            f" what its units are: reduction='spatial_mean' or 'max' over the last axis ({first} units),"
            f" or 'flatten' ({first * second} units), or 'tokens', 'mean', 'last' or 'first' where the last axis is"
            f" features ({second} units)."
        )
    if len(output_shape) == 2 and positions is not None and kind == Named("flatten"):
        raise InvalidArgumentError(
            f"reduction: {site.name!r} returns three axes, (sample, {output_shape[0]}, {output_shape[1]}), and before"
            " 'flatten' nothing says which are positions; take a subset of units after it, or another reduction."
        )
    if isinstance(kind, Position) and kind.index >= (least := _positions(kind, steps, output_shape)):
        raise InvalidArgumentError(
            f"reduction: {kind} does not exist at {site.name!r}, which has {least} positions, counted from 0."
        )
    if kind is None:
        where = 1 if positions is not None else 0
        return (*steps[:where], Named("spatial_mean"), *steps[where:])
    return steps


def _lengths(steps: tuple[Step, ...], output_shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows per sample and units."""
    rows, units = 1, math.prod(output_shape)
    for step in steps:
        if isinstance(step, Subset):
            if step.axis == "units":
                units = min(units, step.count)
        elif step == Named("flatten"):
            units = (output_shape[0] if len(output_shape) > 2 else 1) * _positions(step, steps, output_shape)
        else:
            units = output_shape[0] if _is_channels_first(step) else output_shape[-1]
            rows = _positions(step, steps, output_shape) if step == Named("tokens") else 1
    return rows, units


def _positions(kind: Named | Position, steps: tuple[Step, ...], output_shape: tuple[int, ...]) -> int:
    """Return how many positions are left when the reduction runs; all values are where nothing tells them apart."""
    if kind == Named("flatten") and len(output_shape) == 2:
        return math.prod(output_shape)
    count = math.prod(output_shape[1:] if _is_channels_first(kind) else output_shape[:-1])
    kept = [step.count for step in steps if isinstance(step, Subset) and step.axis == "positions"]
    return min([count, *kept])


def _available(step: Subset, steps: tuple[Step, ...], output_shape: tuple[int, ...]) -> int:
    """Return how many units or positions a subset chooses from."""
    others = tuple(other for other in steps if other != step)
    if step.axis == "units":
        return _lengths(others, output_shape)[1]
    kind = next(other for other in others if not isinstance(other, Subset))
    return _positions(kind, others, output_shape)


def _is_channels_first(step: Named | Position) -> bool:
    return isinstance(step, Named) and step.name in CHANNELS_FIRST
