"""What one due step has recorded so far: passes, rows, gradients, and the first thing that went wrong.

The rule to keep: what is computed here happens beside the training: detached, unseen by whoever watches operations, at
once and on the output's own device, with nothing that waits for it.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.outputs import extract_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch

    from dynome_recorder.capture.batch_hooks import TracedHook
    from dynome_recorder.capture.reductions import SiteLayout


def gradient_key(site: str) -> str:
    """Return under which name a slot holds the gradient of a site."""
    return f"{site}@gradient"


class BatchStep:
    """What one due step has recorded so far: the open pass, rows of the passes before it, the first problem.

    Parameters
    ----------
    layouts
        The sites.
    targets
        Per site, shape (row, unit): where to copy to; with gradients also under `gradient_key`.
    rows
        Number of samples that there is room for.
    gradients
        Whether the gradients of the sites are recorded too.

    Attributes
    ----------
    open
        Whether a pass is under way whose outputs are recorded.
    samples
        Number of samples of the passes that ended.
    passes
        Number of passes that ended.
    problem
        The first error; nothing is recorded after it.
    infinite
        Per site that is narrowed, how many values were infinite before: int64 tensors on the device.
    """

    def __init__(
        self, layouts: Sequence[SiteLayout], targets: Mapping[str, torch.Tensor], *, rows: int, gradients: bool
    ) -> None:
        self.layouts = layouts
        self.targets = targets
        self.rows = rows
        self.gradients = gradients
        self.open = False
        self.samples = self.passes = 0
        self.problem: Exception | None = None
        self.infinite: dict[str, torch.Tensor] = {}
        self.traced: Sequence[TracedHook] = ()
        self.counts: dict[str, int] = {}
        self._finished = False
        self._batch: int | None = None  # samples of the open pass
        self._recorded: set[str] = set()
        self._expected: list[tuple[str, int]] = []  # gradients that are to come: site and first sample
        self._gradients: set[tuple[str, int]] = set()

    # The pass

    def begin(self) -> None:
        """Open a pass, if this is one of training: gradients are enabled, and it is no recomputation in a backward.

        A pass that never ended, because the forward failed, is forgotten.
        """
        import torch

        # Activation checkpointing of the whole model calls it again while gradients are computed.
        is_backward = torch._C._current_graph_task_id() != -1
        self.open = torch.is_grad_enabled() and not is_backward and self.problem is None and not self._finished
        if self.open:
            self._batch = None
            self.counts.clear()
            self._recorded.clear()
            for hook in self.traced:
                hook.reset()
        for hook in self.traced[:1]:
            hook.switch.on = self.open

    def end(self) -> None:
        """Close the pass: every site must have fired."""
        self._switch_off()
        if not self.open:
            return
        self.open = False
        for hook in self.traced:
            for layout, values, infinite in hook.taken():
                self._store(layout, values, infinite)
            hook.reset()
        silent = [layout for layout in self.layouts if layout.site.name not in self._recorded]
        if silent:
            raise InvalidDataError(self._silent_text(silent))
        self.samples += self._batch or 0
        self.passes += 1

    def finish(self) -> None:
        """Take no more: late gradients find nobody."""
        self._finished, self.open = True, False
        self._switch_off()

    def fail(self, error: Exception) -> None:
        """Remember the first error and record nothing after it."""
        self.problem = self.problem or error
        self.open = False
        self._switch_off()

    def safely(self, doing: Callable[..., None], *arguments: Any) -> None:
        """Do something; where it fails, remember that, since training must not see it."""
        try:
            doing(*arguments)
        except Exception as error:
            self.fail(error)

    def missing_gradients(self) -> list[str]:
        """Return the sites of which some row got no gradient, each once; passes that failed have no rows."""
        ended = [(site, start) for site, start in self._expected if start < self.samples]
        return list(dict.fromkeys(site for site, start in ended if (site, start) not in self._gradients))

    # What hooks bring

    def take(self, path: str, calls: Mapping[int, Sequence[SiteLayout]], output: Any) -> None:
        """Record what one call of a module returned, where it is a site."""
        count = self.counts.get(path, 0)
        self.counts[path] = count + 1
        for layout in calls.get(count, ()):
            tensor = leaf_of(output, layout.site.output)
            batch = self._batch if self._batch is not None else (0 if tensor is None else tensor.shape[0])
            values = layout.take(output, samples=batch, any_dtype=True)
            if self.gradients:
                self._watch_gradient(layout, tensor)
            with _without_dispatch_modes():
                values = layout.apply(values)
                self._store(layout, values, count_infinite(layout, values, waits=values.device.type == "cpu"))

    def take_gradient(self, layout: SiteLayout, start: int, gradient: torch.Tensor) -> None:
        """Record the gradient of a site's rows; further backward passes of the step add to it."""
        if self._finished:
            return
        with _without_dispatch_modes():
            values = layout.apply(gradient.detach())
            rows = slice(start * layout.rows_per_sample, start * layout.rows_per_sample + len(values))
            target = self.targets[gradient_key(layout.site.name)][rows]
            key = (layout.site.name, start)
            if key in self._gradients:
                target.add_(values)
            else:
                target.copy_(values)
            self._gradients.add(key)

    def _store(self, layout: SiteLayout, values: torch.Tensor, infinite: torch.Tensor | None) -> None:
        name, per_sample = layout.site.name, layout.rows_per_sample
        batch = len(values) // per_sample
        self._batch = batch if self._batch is None else self._batch
        if values.shape[1] != layout.units or len(values) != self._batch * per_sample:
            raise InvalidDataError(
                f"{name}: returned {len(values)} rows of {values.shape[1]} units, planned was"
                f" {layout.planned(self._batch)}; sites must keep their shape in all batches."
            )
        stop = self.samples + batch
        if stop > self.rows:
            raise InvalidDataError(
                f"batch_size is {self.rows}, but the passes of this step hold {stop} samples or more; give the number"
                " of samples that one process puts through the model between two calls of step(), all passes together,"
                " and validate under torch.no_grad(), whose passes do not count."
            )
        self.targets[name][self.samples * per_sample : stop * per_sample].copy_(values)
        if infinite is not None:
            before = self.infinite.get(name)
            self.infinite[name] = infinite if before is None else before + infinite
        self._recorded.add(name)

    def _watch_gradient(self, layout: SiteLayout, tensor: torch.Tensor | None) -> None:
        import torch

        if tensor is None or not tensor.requires_grad:
            reason = (
                "depends on nothing that requires one; leave the site out"
                if torch.is_grad_enabled()
                else "was computed with gradients off; for activation checkpointing pass use_reentrant=False, and leave"
                " sites out that run under torch.no_grad()"
            )
            raise InvalidDataError(f"gradients: {layout.site.name} has none: its output {reason}.")
        self._expected.append((layout.site.name, self.samples))
        tensor.register_hook(GradientHook(self, layout, self.samples))  # type: ignore[no-untyped-call]

    def _switch_off(self) -> None:
        for hook in self.traced[:1]:
            hook.switch.on = False

    def _silent_text(self, silent: Sequence[SiteLayout]) -> str:
        names = ", ".join(layout.site.name for layout in silent[:4]) + (", ..." if len(silent) > 4 else "")
        if self.traced and len(silent) == len(self.layouts):
            return (
                f"{names}: not in the compiled graph, the hooks were attached after compile: make the recorder, and"
                " enter it, before the first call of the compiled model."
            )
        if len(silent) == len(self.layouts) and is_dynamo_loaded():
            return (
                f"{names}: no site fired in the forward pass; if the model is compiled, give the compiled model to the"
                " recorder, and enter it, before the first call."
            )
        site = silent[0].site
        return (
            f"{names}: did not fire in the forward pass of a training batch, {site.module} was called"
            f" {self.counts.get(site.module, 0)} times; sites must fire in every batch."
        )


class GradientHook:
    """The hook of one output tensor."""

    def __init__(self, step: BatchStep, layout: SiteLayout, start: int) -> None:
        self.step = step
        self.layout = layout
        self.start = start

    def __call__(self, gradient: torch.Tensor | None) -> None:
        """Copy the gradient."""
        if gradient is not None:
            self.step.safely(self.step.take_gradient, self.layout, self.start, gradient)


def count_infinite(layout: SiteLayout, values: torch.Tensor, *, waits: bool = False) -> torch.Tensor | None:
    """Return how many values are infinite, on their device, where the cast to the recorded dtype may add some.

    Where a value may be read at once (``waits``), a finite sum says the same in a tenth of the time.
    """
    import torch

    if not layout.narrows and values.dtype == torch_dtype_of(layout):
        return None
    if waits:
        wide = torch.float64 if values.dtype is torch.float64 else torch.float32
        if math.isfinite(values.sum(dtype=wide)):  # one that overflows costs the exact count, no more
            return torch.zeros((), dtype=torch.int64, device=values.device)
    return values.isinf().sum()


def leaf_of(output: Any, path: tuple[str | int, ...]) -> torch.Tensor | None:
    """Return the floating-point tensor at a path of what a module returned; None where there is none."""
    import torch

    try:
        values = extract_output(output, path)
    except InvalidDataError:
        return None
    return values if isinstance(values, torch.Tensor) and values.is_floating_point() and values.ndim > 0 else None


def torch_dtype_of(layout: SiteLayout) -> torch.dtype:
    """Return the recorded dtype."""
    import torch

    dtype: torch.dtype = getattr(torch, layout.dtype)
    return dtype


def is_dynamo_loaded() -> bool:
    """Whether anything may be compiled in this process."""
    import sys

    return "torch._dynamo" in sys.modules


def _without_dispatch_modes() -> AbstractContextManager[Any]:
    """Keep what the hook computes from whoever watches operations.

    Selective checkpointing does: it counts the operations of the forward pass to find them again in the backward, where
    no hook runs any more.
    """
    import torch

    if torch._C._len_torch_dispatch_stack() == 0:
        return contextlib.nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
