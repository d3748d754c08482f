"""One run of the probe: hooks on, forward passes, hooks off; the sites' activations are in a slot.

The rules to keep: no hook outlives the run, whatever happens in it; a hook copies at once (the cast to the recorded
dtype is the copy), since the next operation may overwrite the tensor in place; nothing here waits for a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.batch_hooks import InertHook
from dynome_recorder.capture.batch_step import count_infinite
from dynome_recorder.capture.probe import Forward, Probe, to_device
from dynome_recorder.capture.transfer import BufferSpec, Slot
from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.canary import missing_call
from dynome_recorder.tracing.isolation import device_of, undisturbed
from dynome_recorder.tracing.layers import modules_by_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from dynome_recorder.capture.reductions import SiteLayout


def site_specs(layouts: Sequence[SiteLayout], samples: int) -> dict[str, BufferSpec]:
    """Return what a slot holds for some samples: per site, shape (row, unit) in the recorded dtype."""
    return {
        layout.site.name: BufferSpec((samples * layout.rows_per_sample, layout.units), layout.dtype)
        for layout in layouts
    }


def capture(
    model: nn.Module,
    layouts: Sequence[SiteLayout],
    *,
    probe: Probe,
    forward: Forward,
    slot: Slot,
    rows: slice | None = None,
    autocast: torch.dtype | None = None,
) -> None:
    """Run the probe through the model once, and write the activations of its sites to a slot; `Slot.send` is next.

    Parameters
    ----------
    model
        The model, compiled or not: the pass runs it eagerly. Hooks are attached only inside this call; modes, buffers
        and random states are restored.
    layouts
        The sites, as `layout_site` planned them.
    probe
        The samples.
    forward
        Calls the model on a batch.
    slot
        Made for `site_specs` of the layouts and the number of rows. Of sites that are narrowed, its extras get the
        number of values that were infinite before.
    rows
        Which of the probe's rows to run, as a part of a snapshot; None: all.
    autocast
        The dtype of the autocast that the pass runs under; None: without, also inside of the caller's.

    Raises
    ------
    InvalidDataError
        If a site does not fire, or fires with another shape or dtype than planned.

    Notes
    -----
    Cost: the forward passes of the probe, and one copy per site.
    """
    first, last = probe.span(rows)
    if first == last:
        return
    device = device_of(model)
    by_module: dict[str, dict[int, list[SiteLayout]]] = {}
    for layout in layouts:
        by_module.setdefault(layout.site.module, {}).setdefault(layout.site.call, []).append(layout)
    modules = modules_by_path(model)
    hooks: list[_Hook] = []
    handles: list[Any] = []
    with undisturbed(model, seed=probe.seed, autocast=autocast):
        targets, chosen = slot.targets, probe.row_index(device, rows)
        try:
            for path, calls in by_module.items():
                if path not in modules:
                    raise InvalidDataError(
                        f"{next(iter(calls.values()))[0].site.name}: the model has no module {path!r} any more; a model"
                        " that is recorded must keep its parts."
                    )
                hook = _Hook(calls, targets, chosen, waits=not slot.stages)
                hooks.append(hook)
                handles.append(modules[path].register_forward_hook(hook))
            start = 0
            batches = probe.batches(rows, pinned=device.type in ("cuda", "xpu"))
            for batch, size, full in zip(batches, probe.batch_sizes(rows), probe.rows_per_batch(rows), strict=True):
                for hook in hooks:
                    hook.begin(start, start + size, full)
                forward(model, to_device(batch, device))
                for hook in hooks:
                    hook.check_complete()
                start += size
        finally:
            for handle in reversed(handles):
                handle.remove()
    for hook in hooks:
        slot.extras.update(hook.infinite)


class _Hook:
    """The forward hook of one module: counts its calls and copies the outputs of those that are sites.

    Copies of it, in a model that ``forward`` deep-copies or pickles, do nothing.
    """

    def __init__(
        self,
        calls: Mapping[int, Sequence[SiteLayout]],
        targets: Mapping[str, torch.Tensor],
        rows: torch.Tensor | None,
        *,
        waits: bool,
    ) -> None:
        self.calls = calls
        self.targets = targets
        self.rows = rows
        self.waits = waits  # whether a value may be read, since the copy has waited for it anyway
        self.infinite: dict[str, torch.Tensor] = {}
        self.count = 0
        self.start = self.stop = self.full = 0

    def begin(self, start: int, stop: int, full: int) -> None:
        self.count, self.start, self.stop, self.full = 0, start, stop, full

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        layouts = self.calls.get(self.count, ())
        self.count += 1
        for layout in layouts:
            values = layout.take(output, samples=self.full)
            values = layout.apply(values if self.rows is None else values.index_select(0, self.rows))
            name, rows = layout.site.name, layout.rows_per_sample
            self.targets[name][self.start * rows : self.stop * rows].copy_(values)
            # The cast may overflow: how many values were infinite before it is known only here. It stays on the device.
            if (infinite := count_infinite(layout, values, waits=self.waits)) is not None:
                self.infinite[name] = self.infinite[name] + infinite if name in self.infinite else infinite

    def check_complete(self) -> None:
        for call, layouts in self.calls.items():
            if call >= self.count:
                raise InvalidDataError(missing_call(layouts[0].site, self.count))

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()
