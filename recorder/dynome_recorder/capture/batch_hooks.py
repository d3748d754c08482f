"""The hooks that record training batches.

The rules to keep: whatever fails here is remembered and never reaches training; a hook returns nothing, keeps no graph
alive and draws no random number; a copy of a hook, in a copy of its model, does nothing.

Two kinds of hooks stand on the sites. Those of an eager model are there for one step and copy at once, since the next
operation may overwrite the tensor in place. Those of a compiled model must be there when it is traced, hence always:
they are traced into the graph, switched by one boolean that dynamo guards on, so that the graph of an ordinary step
holds nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.batch_step import BatchStep, count_infinite, leaf_of, torch_dtype_of
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch
    from torch import nn

    from dynome_recorder.capture.reductions import SiteLayout


class InertHook:
    """What a copied or unpickled hook is: it does nothing. Its name and place are part of every pickled model."""

    def __call__(self, *arguments: Any) -> None:
        """Do nothing."""


class _Hook:
    """A hook whose copies are inert: of a model that is deep-copied (an average of weights) or pickled meanwhile."""

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


class PassBegins(_Hook):
    """The forward pre-hook of the model itself."""

    def __init__(self, step: BatchStep) -> None:
        self.step = step

    def __call__(self, *arguments: Any) -> None:
        """Open a pass."""
        if not is_traced():
            self.step.safely(self.step.begin)


class PassEnds(_Hook):
    """The forward hook of the model itself."""

    def __init__(self, step: BatchStep) -> None:
        self.step = step

    def __call__(self, *arguments: Any) -> None:
        """Close the pass."""
        if not is_traced():
            self.step.safely(self.step.end)


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
            self.step.safely(self.step.begin)
        try:
            output = self.inner(*arguments, **named)
        except Exception as error:
            if not (self.step.open and _is_of_compiler(error)):
                raise
            # Nothing has run: it failed while it was traced.
            self.step.fail(InvalidDataError(_untraceable_text(error)))
            return self.inner(*arguments, **named)
        if self.is_pass:
            self.step.safely(self.step.end)
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
            self.step.safely(self.step.take, self.path, self.calls, output)


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
            call: [(next(numbers), layout, layout.site.output, torch_dtype_of(layout)) for layout in layouts]
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
            values = leaf_of(output, path)
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


def is_traced() -> bool:
    """Whether this runs inside of what torch.compile traces, where an eager hook must leave no trace."""
    import torch

    return torch.compiler.is_compiling()


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
