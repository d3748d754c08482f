"""How a module's output becomes rows of units: reductions and recorded dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch

    from dynome_recorder.tracing.sites import Site

Reduction = Literal["spatial_mean", "max", "flatten"]
RecordedType = Literal["native", "float32", "float16", "bfloat16"]

FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class SiteLayout:
    """How one site's output becomes rows of units.

    Attributes
    ----------
    site
        The site.
    output_shape
        Shape of the module's output without the sample axis.
    units
        Number of units after the reduction.
    reduction
        What makes units of the axes behind the first: None where there are none.
    native_dtype, dtype
        The output's dtype and the recorded one.
    """

    site: Site
    output_shape: tuple[int, ...]
    units: int
    reduction: Reduction | None
    native_dtype: str
    dtype: str

    @property
    def bytes_per_sample(self) -> int:
        """Stored size of one sample before compression."""
        return self.units * ITEM_SIZES[self.dtype]


ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def layout_site(
    site: Site, *, output_shape: tuple[int, ...], native_dtype: str, reduction: Reduction | None, dtype: RecordedType
) -> SiteLayout:
    """Decide units and dtype of a site from its output's shape.

    Without an explicit ``reduction``, ``(sample, unit)`` is taken as it is and outputs of four axes or more
    (convolutions) are averaged over space. Three axes may be (sample, channel, position) or (sample, token, feature):
    that is the caller's to say.

    Raises
    ------
    InvalidArgumentError
        For three axes without a reduction, or a native dtype that cannot be stored.
    """
    if len(output_shape) == 2 and reduction is None:
        raise InvalidArgumentError(
            f"reduction: {site.name!r} returns three axes, (sample, {output_shape[0]}, {output_shape[1]}); say"
            f" what its units are: reduction='spatial_mean' or 'max' over the last axis ({output_shape[0]} units),"
            f" or 'flatten' ({output_shape[0] * output_shape[1]} units)."
        )
    if len(output_shape) <= 1:
        chosen: Reduction | None = None
        units = output_shape[0] if output_shape else 1
    else:
        chosen = reduction or "spatial_mean"
        units = int(np.prod(output_shape)) if chosen == "flatten" else output_shape[0]
    if units < 1:
        raise InvalidArgumentError(f"sites: {site.name!r} returns no units, its shape per sample is {output_shape}.")
    recorded = native_dtype if dtype == "native" else dtype
    if recorded not in FLOAT_TYPES:
        raise InvalidArgumentError(
            f"dtype: {site.name!r} returns {native_dtype}, which a recording cannot hold; pass dtype='float32'."
        )
    return SiteLayout(site, tuple(output_shape), units, chosen, native_dtype, recorded)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise `InvalidArgumentError` unless the value is one of a Literal's choices."""
    if value not in get_args(choices):
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}; got {value!r}.")


def reduce_output(values: torch.Tensor, reduction: Reduction | None) -> torch.Tensor:
    """Reduce an output of shape (sample, ...) to (sample, unit), on its device; may return a view."""
    if reduction is None or reduction == "flatten":
        return values.reshape(len(values), -1)
    spatial = values.flatten(start_dim=2)
    return spatial.mean(dim=2) if reduction == "spatial_mean" else spatial.amax(dim=2)


def dtype_name(value: Any) -> str:
    """Return a tensor's dtype without "torch."; the class name of what is no tensor."""
    return str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
