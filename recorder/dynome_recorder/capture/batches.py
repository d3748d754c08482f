"""The activations, and gradients, of the training batches themselves: hooks for one due step, or built into a graph.

What counts as a pass of training: a call of the model itself with gradients enabled. Validation under
``torch.no_grad()`` does not count, nor does the second run of a part whose activations were checkpointed. Several
passes between two steps (accumulated gradients) are recorded one after the other.

The rule to keep: an eager model carries hooks only during a due step. A compiled one carries switched ones from before
its first call, since hooks that come later are not in its graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dynome_recorder.capture.batch_hooks import PassBegins, PassEnds, SiteHook, Switch, TracedHook
from dynome_recorder.capture.batch_step import BatchStep, gradient_key, is_dynamo_loaded
from dynome_recorder.capture.compiled import (
    NewGuard,
    RoomForGraphs,
    Stand,
    fill_caches,
    innermost,
    is_compiled,
    is_compiled_anywhere,
    outermost_compiled,
    wrappers,
)
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.tracing.isolation import device_of
from dynome_recorder.tracing.layers import modules_by_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from dynome_recorder.capture.reductions import SiteLayout

__all__ = ["BatchWatcher", "Collected", "Targets", "check_batches", "gradient_key"]


class Targets(Protocol):
    """Where the outputs of a step are copied to: a slot.

    Attributes
    ----------
    targets
        Per site, shape (row, unit) with ``batch_size`` times the site's ``rows_per_sample`` rows, in the recorded
        dtype; with gradients also under `gradient_key`, in the same dtype.
    """

    @property
    def targets(self) -> Mapping[str, torch.Tensor]:
        """Buffers by site."""


@dataclass(frozen=True)
class Collected:
    """What one due step recorded.

    Attributes
    ----------
    rows
        Number of samples, all passes together; rows behind them hold NaN.
    extras
        Per site whose values were narrowed, how many were infinite before: int64 without axes, on the site's device.
    """

    rows: int
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


class BatchWatcher:
    """Records what the sites return while a batch is trained on.

    Parameters
    ----------
    model
        The model as the training loop calls it: plain, wrapped by ``DistributedDataParallel``, compiled by
        ``torch.compile(model)`` or in place by ``model.compile()``, or with compiled parts.
    layouts
        The sites, as `layout_site` planned them.
    gradients
        Whether to record the gradient of the loss by each site's output too: reduced and cast as the output is, and
        summed over the backward passes of the step. It is the gradient of what ``backward`` was called on: with a
        scaled loss (``GradScaler``) it is scaled, with accumulation each row belongs to its own pass.
    rows
        Number of samples that one process puts through the model between two steps.

    Notes
    -----
    Cost: a step that is not due carries no hook in an eager model; in a compiled one its graph is as without the
    recorder. A due step costs a reduction and a copy per site; the first due step of a compiled model compiles a second
    graph. Where the reduction leaves a view, no memory is needed beyond the slot's; in a compiled model one reduced
    copy per site lives until the pass ends.

    Whatever goes wrong between `arm` and `collect` is raised by `collect`; training does not see it.
    """

    def __init__(self, model: nn.Module, layouts: Sequence[SiteLayout], *, gradients: bool, rows: int) -> None:
        self._model = model
        self._layouts = tuple(layouts)
        self._gradients = gradients
        self._rows = rows
        self._step: BatchStep | None = None
        self._traced: list[TracedHook] = []
        self._permanent: list[Any] = []
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put hooks on a compiled model, before its first call; an eager model is left alone.

        Raises
        ------
        InvalidArgumentError
            As `check_batches`.
        """
        check_batches(self._model, gradients=self._gradients)
        if self._permanent or not is_compiled_anywhere(self._model):
            return
        self._permanent.append(RoomForGraphs())
        fill_caches(self._layouts, device_of(self._model))
        switch = Switch()
        for module, _, calls in self._by_module():
            hook = TracedHook(switch, calls)
            self._traced.append(hook)
            self._permanent.append(module.register_forward_hook(hook))
            self._permanent.append(NewGuard(module))

    def arm(self, slot: Targets) -> None:
        """Record the passes from here to `collect` into a slot.

        Raises
        ------
        InvalidArgumentError
            As `attach`, for a model that was compiled since.
        InvalidDataError
            If a module that has sites is gone.
        """
        self.disarm()
        self.attach()
        step = BatchStep(self._layouts, slot.targets, rows=self._rows, gradients=self._gradients)
        step.traced = self._traced
        try:
            self._watch_passes(step)
            if not self._traced:
                for module, path, calls in self._by_module():
                    self._handles.append(module.register_forward_hook(SiteHook(step, path, calls)))
        except BaseException:
            self._remove_hooks()
            raise
        self._step = step

    def collect(self) -> Collected:
        """End the step: take the hooks of an eager model off and say what was recorded.

        Raises
        ------
        InvalidDataError
            If the model was not called, a site did not fire, returned another shape or got no gradient, or there were
            more samples than room for them.
        """
        step = self._step
        if step is None:
            raise InvalidArgumentError("collect() needs a step that was armed; call arm(slot) before its forward pass.")
        self.disarm()
        if step.problem is not None:
            raise step.problem
        if step.passes == 0:
            raise InvalidDataError(_no_pass_text())
        if silent := step.missing_gradients():
            raise InvalidDataError(
                f"gradients: {silent[0]} got none in the backward pass: the loss does not depend on it, or it is a view"
                " that is changed in place after it; leave the site out, or call step() after backward()."
            )
        for layout in self._layouts:
            for key in (layout.site.name, gradient_key(layout.site.name))[: 1 + self._gradients]:
                slot_rows = step.targets[key]
                if (used := step.samples * layout.rows_per_sample) < len(slot_rows):
                    slot_rows[used:].fill_(float("nan"))
        return Collected(step.samples, step.infinite)

    def disarm(self) -> None:
        """Record nothing more of an armed step, and take the hooks of an eager model off; without one, do nothing."""
        step, self._step = self._step, None
        if step is not None:
            step.finish()
        self._remove_hooks()

    def detach(self) -> None:
        """Take every hook off."""
        self.disarm()
        while self._permanent:
            self._permanent.pop().remove()
        self._traced = []

    def _by_module(self) -> list[tuple[nn.Module, str, dict[int, list[SiteLayout]]]]:
        """Return every module with sites, its path, and which call of it has which."""
        modules = modules_by_path(innermost(self._model))
        found: dict[str, dict[int, list[SiteLayout]]] = {}
        for layout in self._layouts:
            if layout.site.module not in modules:
                raise InvalidDataError(
                    f"{layout.site.name}: the model has no module {layout.site.module!r} any more; a model that is"
                    " recorded must keep its parts."
                )
            found.setdefault(layout.site.module, {}).setdefault(layout.site.call, []).append(layout)
        return [(modules[path], path, calls) for path, calls in found.items()]

    def _watch_passes(self, step: BatchStep) -> None:
        """Stand where the model is called, outside of every graph, so that a pass can be closed before the next."""
        outer = outermost_compiled(self._model)
        for module in self._model.modules():
            if is_compiled(module):
                self._handles.append(Stand(module, step, is_pass=module is outer))
        if not is_compiled(outer):
            self._handles.append(outer.register_forward_pre_hook(PassBegins(step)))
            self._handles.append(outer.register_forward_hook(PassEnds(step)))

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def check_batches(model: nn.Module, *, gradients: bool) -> None:
    """Check that the batches of a model can be recorded at all, before anything is written.

    Raises
    ------
    InvalidArgumentError
        If the model runs in several threads (``DataParallel``), or gradients are wanted of a compiled one.
    """
    from torch.nn.parallel import DataParallel

    for layer in wrappers(model):
        if isinstance(layer, DataParallel) and len(layer.device_ids) > 1:
            raise InvalidArgumentError(
                "batches cannot be recorded from DataParallel, which runs several passes at once; use"
                " DistributedDataParallel."
            )
    if gradients and is_compiled_anywhere(model):
        raise InvalidArgumentError(
            "gradients of sites cannot be recorded from a compiled model, whose graph computes them where no hook sees"
            " them; train the eager model, or leave gradients=True out."
        )


def _no_pass_text() -> str:
    hint = (
        "; if it is compiled, give the compiled model to the recorder, and enter it, before the first call"
        if is_dynamo_loaded()
        else ""
    )
    return (
        "batches: no forward pass of the model was seen since the last step; call the model itself, with gradients"
        f" enabled, and not as one checkpointed whole{hint}."
    )
