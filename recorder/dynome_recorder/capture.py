"""One run of the probe: hooks on, forward passes, hooks off, and the sites' activations as plain host arrays.

The rules to keep: no hook outlives the run, whatever happens in it; a hook copies at once (the cast to the recorded
dtype is the copy), since the next operation may overwrite the tensor in place; what leaves here shares memory with
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import google_crc32c
import numpy as np

from .errors import InvalidArgumentError, InvalidDataError
from .isolation import device_of, undisturbed
from .probe import Forward, Probe, to_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from .sites import Site

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


@dataclass(frozen=True)
class Captured:
    """The activations of one run of the probe.

    Attributes
    ----------
    activations
        Per site, shape (sample, unit) in the recorded dtype; bfloat16 as its bit pattern in uint16.
    health
        Per site with any, how many values are NaN (``nan``), were infinite (``inf``), or became infinite by the cast
        (``overflow``).
    """

    activations: dict[str, NDArray[Any]]
    health: dict[str, dict[str, int]]


def capture(model: nn.Module, layouts: Sequence[SiteLayout], *, probe: Probe, forward: Forward) -> Captured:
    """Run the probe through the model once and return the activations of its sites.

    Parameters
    ----------
    model
        The eager model. Hooks are attached to it only inside this call; modes, buffers and random states are restored.
    layouts
        The sites, as `layout_site` planned them.
    probe
        The samples.
    forward
        Calls the model on a batch.

    Raises
    ------
    InvalidDataError
        If a site does not fire, or fires with another shape or dtype than planned.

    Notes
    -----
    Cost: the forward passes of the probe, and one copy per site.
    """
    device = device_of(model)
    by_module: dict[str, dict[int, SiteLayout]] = {}
    for layout in layouts:
        by_module.setdefault(layout.site.module, {})[layout.site.call] = layout
    rows = torch_indices(probe.indices, device) if probe.transductive else None
    modules = dict(model.named_modules())
    hooks: list[_Hook] = []
    handles: list[Any] = []
    with undisturbed(model, seed=probe.seed):
        hosts = {layout.site.name: _host_array(layout, probe.size) for layout in layouts}
        try:
            for path, calls in by_module.items():
                hook = _Hook(calls, hosts, rows)
                hooks.append(hook)
                handles.append(modules[path].register_forward_hook(hook))
            start = 0
            for batch, size, full in zip(probe.batches(), probe.batch_sizes(), probe.rows_per_batch(), strict=True):
                for hook in hooks:
                    hook.begin(start, start + size, full)
                forward(model, to_device(batch, device))
                for hook in hooks:
                    hook.check_complete()
                start += size
        finally:
            for handle in reversed(handles):
                handle.remove()
        infinite: dict[str, Any] = {}
        for hook in hooks:
            infinite |= hook.infinite
        health = {name: counts for name, host in hosts.items() if (counts := _health(host, infinite.get(name)))}
    return Captured({name: to_host_array(host) for name, host in hosts.items()}, health)


class _Hook:
    """The forward hook of one module: counts its calls and copies the outputs of those that are sites.

    A class at module level, not a closure, so that a model that is pickled or deep-copied meanwhile does not fail.
    """

    def __init__(
        self, calls: Mapping[int, SiteLayout], hosts: Mapping[str, torch.Tensor], rows: torch.Tensor | None
    ) -> None:
        self.calls = calls
        self.hosts = hosts
        self.rows = rows
        self.infinite: dict[str, Any] = {}
        self.count = 0
        self.start = self.stop = self.full = 0

    def begin(self, start: int, stop: int, full: int) -> None:
        self.count, self.start, self.stop, self.full = 0, start, stop, full

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        layout = self.calls.get(self.count)
        self.count += 1
        if layout is None:
            return
        shape = (self.full, *layout.output_shape)
        if tuple(getattr(output, "shape", ())) != shape or _dtype_name(output) != layout.native_dtype:
            raise InvalidDataError(
                f"{layout.site.name}: returned {_dtype_name(output)} of shape {tuple(getattr(output, 'shape', ()))},"
                f" planned was {layout.native_dtype} of shape {shape};"
                " sites must keep their shape and dtype in all batches."
            )
        values = output.detach() if self.rows is None else output.detach()[self.rows]
        values = reduce_output(values, layout.reduction)
        host = self.hosts[layout.site.name]
        host[self.start : self.stop].copy_(values)
        if ITEM_SIZES[layout.dtype] < ITEM_SIZES[layout.native_dtype]:
            # The cast may overflow: how many values were infinite before it is known only here. It stays on the device.
            self.infinite[layout.site.name] = self.infinite.get(layout.site.name, 0) + values.isinf().sum()

    def check_complete(self) -> None:
        for call, layout in self.calls.items():
            if call >= self.count:
                raise InvalidDataError(
                    f"{layout.site.name}: the forward pass called it {self.count} times,"
                    f" planned were at least {call + 1}; sites must fire in every batch of the probe."
                )


def reduce_output(values: torch.Tensor, reduction: Reduction | None) -> torch.Tensor:
    """Reduce an output of shape (sample, ...) to (sample, unit), on its device; may return a view."""
    if reduction is None or reduction == "flatten":
        return values.reshape(len(values), -1)
    spatial = values.flatten(start_dim=2)
    return spatial.mean(dim=2) if reduction == "spatial_mean" else spatial.amax(dim=2)


def copy_weights(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy every parameter to the host, tied ones once under their first name; bfloat16 as bit pattern."""
    import torch

    with torch.no_grad():
        return {name: to_host_array(value.detach().to("cpu", copy=True)) for name, value in model.named_parameters()}


def hash_parameters(model: nn.Module) -> str:
    """Return a digest of all parameters and saved buffers: name, dtype, shape and crc32c of the bytes of each.

    Buffers that a checkpoint does not hold are left out, since a restored model cannot be asked for them.

    Cost: one copy to the host from an accelerator, and a checksum at several GB/s.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _state(model):
        values = tensor.detach().cpu().contiguous()
        checksum = google_crc32c.value(_bytes_of(values)) if values.numel() else 0
        digest.update(f"{name} {_dtype_name(values)} {tuple(values.shape)} {checksum:08x}\n".encode())
    return digest.hexdigest()


def to_host_array(values: torch.Tensor) -> NDArray[Any]:
    """Return a CPU tensor as an array that shares its memory; bfloat16 as its bit pattern in uint16."""
    import torch

    if values.dtype is torch.bfloat16:
        pattern: NDArray[Any] = values.contiguous().view(torch.int16).numpy().view(np.uint16)
        return pattern
    array: NDArray[Any] = values.contiguous().numpy()
    return array


def torch_indices(indices: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Return indices as a tensor on the device."""
    import torch

    return torch.from_numpy(indices).to(device)


def _state(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    unsaved = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name not in unsaved),
    ]


def _bytes_of(values: torch.Tensor) -> NDArray[np.uint8]:
    import torch

    flat: NDArray[np.uint8] = values.reshape(-1).view(torch.uint8).numpy()
    return flat


def _host_array(layout: SiteLayout, samples: int) -> torch.Tensor:
    import torch

    # A fresh array per run: an asynchronous writer may still hold the previous one.
    # The device is named, since torch.set_default_device may have made it another one.
    return torch.empty((samples, layout.units), dtype=getattr(torch, layout.dtype), device="cpu")


def _dtype_name(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")


def _health(host: torch.Tensor, infinite_before: Any) -> dict[str, int]:
    import torch

    # One fused pass for the usual case; a sum of finite values may overflow, which only costs the exact count below.
    if bool(torch.isfinite(host.sum(dtype=torch.float64 if host.dtype is torch.float64 else torch.float32))):
        return {}
    nan, infinite = int(host.isnan().sum()), int(host.isinf().sum())
    before = infinite if infinite_before is None else int(infinite_before)
    counts = {"nan": nan, "inf": before, "overflow": max(0, infinite - before)}
    return {name: count for name, count in counts.items() if count}
