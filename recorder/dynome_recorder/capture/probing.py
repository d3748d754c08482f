"""One run of the probe: hooks on, forward passes, hooks off, and the sites' activations as plain host arrays.

The rules to keep: no hook outlives the run, whatever happens in it; a hook copies at once (the cast to the recorded
dtype is the copy), since the next operation may overwrite the tensor in place; what leaves here shares memory with
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.parameters import to_host_array
from dynome_recorder.capture.probe import Forward, Probe, to_device
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.canary import missing_call
from dynome_recorder.tracing.isolation import device_of, undisturbed
from dynome_recorder.tracing.layers import modules_by_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from dynome_recorder.capture.reductions import SiteLayout


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
    by_module: dict[str, dict[int, list[SiteLayout]]] = {}
    for layout in layouts:
        by_module.setdefault(layout.site.module, {}).setdefault(layout.site.call, []).append(layout)
    rows = torch_indices(probe.indices, device) if probe.transductive else None
    modules = modules_by_path(model)
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
        self, calls: Mapping[int, Sequence[SiteLayout]], hosts: Mapping[str, torch.Tensor], rows: torch.Tensor | None
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
        layouts = self.calls.get(self.count, ())
        self.count += 1
        for layout in layouts:
            values = layout.take(output, samples=self.full)
            values = layout.apply(values if self.rows is None else values[self.rows])
            rows = layout.rows_per_sample
            self.hosts[layout.site.name][self.start * rows : self.stop * rows].copy_(values)
            if layout.narrows:
                # The cast may overflow: how many values were infinite before it is known only here. It stays on the
                # device.
                name = layout.site.name
                self.infinite[name] = self.infinite.get(name, 0) + values.isinf().sum()

    def check_complete(self) -> None:
        for call, layouts in self.calls.items():
            if call >= self.count:
                raise InvalidDataError(missing_call(layouts[0].site, self.count))


def torch_indices(indices: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Return indices as a tensor on the device."""
    import torch

    return torch.from_numpy(indices).to(device)


def _host_array(layout: SiteLayout, samples: int) -> torch.Tensor:
    import torch

    # A fresh array per run: an asynchronous writer may still hold the previous one.
    # The device is named, since torch.set_default_device may have made it another one.
    return torch.empty(
        (samples * layout.rows_per_sample, layout.units), dtype=getattr(torch, layout.dtype), device="cpu"
    )


def _health(host: torch.Tensor, infinite_before: Any) -> dict[str, int]:
    import torch

    # One fused pass for the usual case; a sum of finite values may overflow, which only costs the exact count below.
    if bool(torch.isfinite(host.sum(dtype=torch.float64 if host.dtype is torch.float64 else torch.float32))):
        return {}
    nan, infinite = int(host.isnan().sum()), int(host.isinf().sum())
    before = infinite if infinite_before is None else int(infinite_before)
    counts = {"nan": nan, "inf": before, "overflow": max(0, infinite - before)}
    return {name: count for name, count in counts.items() if count}
