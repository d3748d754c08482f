"""The hooks that record training batches, and what one due step has recorded so far.

The rules to keep: whatever fails here is remembered and never reaches training; a hook returns nothing, keeps no graph
alive and draws no random number; a copy of a hook, in a copy of its model, does nothing.

Two kinds of hooks stand on the sites. Those of an eager model are there for one step and copy at once, since the next
operation may overwrite the tensor in place. Those of a compiled model must be there when it is traced, hence always:
they are traced into the graph, switched by one boolean that dynamo guards on, so that the graph of an ordinary step
holds nothing of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidDataError
from dynome_recorder.tracing.outputs import extract_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from dynome_recorder.capture.reductions import SiteLayout


def gradient_key(site: str) -> str:
    """Return under which name a slot holds the gradient of a site."""
    return f"{site}@gradient"


class InertHook:
    """What a copied or unpickled hook is: it does nothing. Its name and place are part of every pickled model."""

    def __call__(self, *arguments: Any) -> None:
        """Do nothing."""


class _Hook:
    """A hook whose copies are inert: of a model that is deep-copied (an average of weights) or pickled meanwhile."""

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


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
            tensor = _leaf(output, layout.site.output)
            batch = self._batch if self._batch is not None else (0 if tensor is None else tensor.shape[0])
            values = layout.take(output, samples=batch, any_dtype=True)
            if self.gradients:
                self._watch_gradient(layout, tensor)
            with _without_dispatch_modes():
                values = layout.apply(values)
                self._store(layout, values, count_infinite(layout, values))

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


# Hooks


class PassBegins(_Hook):
    """The forward pre-hook of the model itself."""

    def __init__(self, step: BatchStep) -> None:
        self.step = step

    def __call__(self, *arguments: Any) -> None:
        """Open a pass."""
        if not is_traced():
            _shielded(self.step, self.step.begin)


class PassEnds(_Hook):
    """The forward hook of the model itself."""

    def __init__(self, step: BatchStep) -> None:
        self.step = step

    def __call__(self, *arguments: Any) -> None:
        """Close the pass."""
        if not is_traced():
            _shielded(self.step, self.step.end)


class CompiledCall:
    """Stands in for what a compiled module calls.

    ``is_pass`` where it is the model itself, whose own hooks may be inside of the graph.
    """

    def __init__(self, step: BatchStep, inner: Callable[..., Any], *, is_pass: bool) -> None:
        self.step = step
        self.inner = inner
        self.is_pass = is_pass

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it, again without recording where a graph that records cannot be made."""
        if is_traced():
            return self.inner(*arguments, **named)
        if self.is_pass:
            _shielded(self.step, self.step.begin)
        try:
            output = self.inner(*arguments, **named)
        except Exception as error:
            if not (self.step.open and _is_of_compiler(error)):
                raise
            # Nothing has run: it failed while it was traced.
            self.step.fail(InvalidDataError(_untraceable_text(error)))
            return self.inner(*arguments, **named)
        if self.is_pass:
            _shielded(self.step, self.step.end)
        return output


class SiteHook(_Hook):
    """The forward hook of an eager module that has sites; it is attached for one step."""

    def __init__(self, step: BatchStep, path: str, calls: Mapping[int, Sequence[SiteLayout]]) -> None:
        self.step = step
        self.path = path
        self.calls = calls

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Copy the output."""
        if self.step.open and not is_traced():
            _shielded(self.step, self.step.take, self.path, self.calls, output)


class GradientHook(_Hook):
    """The hook of one output tensor."""

    def __init__(self, step: BatchStep, layout: SiteLayout, start: int) -> None:
        self.step = step
        self.layout = layout
        self.start = start

    def __call__(self, gradient: torch.Tensor | None) -> None:
        """Copy the gradient."""
        if gradient is not None:
            _shielded(self.step, self.step.take_gradient, self.layout, self.start, gradient)


class Switch:
    """One boolean for all traced hooks of a model."""

    def __init__(self) -> None:
        self.on = False


class TracedHook(_Hook):
    """The forward hook of a module of a compiled model; it stays.

    What it does is traced: no name and no step may be read here, so that blocks which are compiled one by one keep
    sharing their graph, and nothing may be raised.
    """

    def __init__(self, switch: Switch, calls: Mapping[int, Sequence[SiteLayout]]) -> None:
        self.switch = switch
        self.layouts = [layout for layouts in calls.values() for layout in layouts]
        numbers = iter(range(len(self.layouts)))
        self.calls = {
            call: [(next(numbers), layout, layout.site.output, _torch_dtype(layout)) for layout in layouts]
            for call, layouts in calls.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forget the pass. The state must be the same before every pass, or dynamo compiles again."""
        self.count = 0
        self.captured: dict[int, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Keep a reduced and cast copy of the output while switched on."""
        if not self.switch.on:
            return
        count = self.count
        self.count = count + 1
        for number, layout, path, dtype in self.calls.get(count, ()):
            values = _leaf(output, path)
            if values is None or not layout.accepts(values.shape, values.shape[0]):
                self.captured[number] = (None, None)
                continue
            reduced = layout.apply(values.detach())
            self.captured[number] = (reduced.to(dtype, copy=True), count_infinite(layout, reduced))

    def taken(self) -> Iterable[tuple[SiteLayout, torch.Tensor, torch.Tensor | None]]:
        """Yield what the pass left: layout, values of shape (row, unit), infinite values before the cast."""
        for number, (values, infinite) in self.captured.items():
            layout = self.layouts[number]
            if values is None:
                raise InvalidDataError(
                    f"{layout.site.name}: returned another form than planned, {layout.planned(0)} (samples first);"
                    " sites must keep their shape in all batches."
                )
            yield layout, values, infinite


def count_infinite(layout: SiteLayout, values: torch.Tensor) -> torch.Tensor | None:
    """Return how many values are infinite, on their device, where the cast to the recorded dtype may add some."""
    if not layout.narrows and values.dtype == _torch_dtype(layout):
        return None
    return values.isinf().sum()


def is_traced() -> bool:
    """Whether this runs inside of what torch.compile traces, where an eager hook must leave no trace."""
    import torch

    return torch.compiler.is_compiling()


def is_dynamo_loaded() -> bool:
    """Whether anything may be compiled in this process."""
    import sys

    return "torch._dynamo" in sys.modules


def _leaf(output: Any, path: tuple[str | int, ...]) -> torch.Tensor | None:
    import torch

    try:
        values = extract_output(output, path)
    except InvalidDataError:
        return None
    return values if isinstance(values, torch.Tensor) and values.is_floating_point() and values.ndim > 0 else None


def _torch_dtype(layout: SiteLayout) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, layout.dtype)
    return dtype


def _is_of_compiler(error: Exception) -> bool:
    import sys

    errors = sys.modules.get("torch._dynamo.exc")
    return errors is not None and isinstance(error, errors.TorchDynamoException)


def _untraceable_text(error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return (
        "batches: the compiled model cannot be traced with its sites recorded, as within activation checkpointing;"
        f" leave out such sites, or train the eager model ({type(error).__name__}: {reason})."
    )


def _shielded(step: BatchStep, doing: Callable[..., None], *arguments: Any) -> None:
    try:
        doing(*arguments)
    except Exception as error:
        step.fail(error)


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
