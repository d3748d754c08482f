"""Looking at activations without a recording: ``with tap(model, ["encoder.*"]) as activations: model(x)``.

The patterns and the names of sites are the recorder's. The rules to keep: no hook outlives the block, a hook copies at
once and returns nothing, and the model is never run by us.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.reductions import (
    SiteLayout,
    check_choice,
    check_reductions,
    dtype_name,
    layout_site,
)
from dynome_recorder.errors import InvalidArgumentError, MissingExtraError
from dynome_recorder.settings import plain_module
from dynome_recorder.tensors import Keep, Tensors, show_tensors
from dynome_recorder.tracing.layers import class_name, is_scripted
from dynome_recorder.tracing.outputs import Output, OutputPath, judge, leaves
from dynome_recorder.tracing.patterns import Matcher, check_patterns, is_exclusion, names_module, pattern_text
from dynome_recorder.tracing.sites import Site, module_aliases, modules_by_path, site_name
from dynome_recorder.tracing.trace import Call, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import torch
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import nn

    from dynome_recorder.planning import Reductions
    from dynome_recorder.representation import Display
    from dynome_recorder.tracing.patterns import Pattern, Place


def tap(
    model: nn.Module,
    sites: Sequence[Pattern] | None = None,
    *,
    reduction: Reductions | None = None,
    gradients: bool = False,
    keep: Keep = "last",
) -> Activations:
    """Copy what modules return while a block runs.

    Parameters
    ----------
    model
        Any model; DistributedDataParallel and ``torch.compile`` are seen through, and a compiled model runs eagerly
        inside the block.
    sites
        What to copy, in the recorder's language: globs over module paths (``"encoder.*"``, ``"lstm:0"``,
        ``"!head"``), module classes, modules, predicates. None: every module that calls no other module.
    reduction
        What makes rows of units of an output, as in `Recorder`: one for all sites, or a mapping from pattern to
        reduction. None, and a site that no pattern of the mapping names, keep the output as it is.
    gradients
        Also keep the gradient of the loss with respect to each output, in ``activations.gradients``; needs a backward
        pass inside the block.
    keep
        ``"last"`` keeps the last forward pass; ``"all"`` keeps a list with one tensor per pass.

    Returns
    -------
    Activations
        A context manager and a mapping from site name to tensor.

    Raises
    ------
    InvalidArgumentError
        Here for an argument of the wrong kind; on entering the block for a pattern that names no module; on leaving it
        for one that names a module that did not run.
    MissingExtraError
        If torch is not installed.

    Notes
    -----
    A forward pass is a call of the model, or of any of its modules from outside. Tensors are copies on their own
    device, detached, in their own dtype. Cost: one copy per site, and about 20 us per module call.

    Examples
    --------
    ::

        with tap(model, ["encoder.*", nn.ReLU], gradients=True) as activations:
            loss(model(x), y).backward()
        activations["encoder.3"]            # (sample, unit)
        activations.gradients["encoder.3"]
        activations                         # a table, in a notebook and in a terminal
    """
    try:
        from torch import nn
    except ImportError as error:
        raise MissingExtraError('tap needs torch; install it with: pip install "dynome[torch]"') from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    check_choice("keep", keep, Keep)
    check_reductions(reduction)
    if isinstance(reduction, Mapping):
        check_patterns(list(reduction))
    return Activations(model, check_patterns(sites), reduction=reduction, gradients=gradients, keep=keep)


class Activations(Tensors):
    """What `tap` has copied: a mapping from site name to tensor (``keep="all"``: to a list, one tensor per pass).

    Attributes
    ----------
    gradients
        The same for gradients, where they were asked for; a site whose gradient was never computed is not in it.
    passes
        Number of forward passes seen.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[Pattern],
        *,
        reduction: Reductions | None,
        gradients: bool,
        keep: Keep,
    ) -> None:
        """Use `tap`."""
        super().__init__(keep, what="activation")
        plain = plain_module(model)
        self.gradients = Tensors(keep, what="gradient")
        self.passes = 0
        self._modules = modules_by_path(plain)
        self._paths = {module: path for path, module in self._modules.items()}
        self._aliases = module_aliases(plain)
        self._wanted = [pattern for pattern in patterns if not is_exclusion(pattern)]
        self._excluded = [str(pattern)[1:] for pattern in patterns if is_exclusion(pattern)]
        self._reduction = reduction
        self._with_gradients = gradients
        self._stack: list[_Frame] = []
        self._counts: Counter[str] = Counter()
        self._calls: dict[tuple[str, int], Call] = {}
        self._matched: set[int] = set()
        self._cleanup = contextlib.ExitStack()

    # The block

    def __enter__(self) -> Activations:
        """Attach the hooks."""
        self._check_names()
        with contextlib.ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                # A hook that comes after the first call of a compiled model never fires.
                import torch

                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in self._paths:
                if is_scripted(module):  # takes no hooks
                    continue
                for handle in (
                    module.register_forward_pre_hook(self._enter),
                    # Also where the module raises, or the next pass would count on from this one.
                    module.register_forward_hook(self._leave, always_call=True),
                ):
                    stack.callback(handle.remove)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the hooks, the last first; say which pattern was in vain."""
        self._cleanup.close()
        self._stack.clear()
        if error is None:
            self._check_matches()

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        path = self._paths[module]
        if self._stack:
            self._stack[-1].leaf = False
        else:
            self._counts.clear()
        self._stack.append(_Frame(path, self._counts[path], first=not self._stack, again=_in_backward()))
        self._counts[path] += 1

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        frame = self._stack.pop()
        if frame.again:
            return  # activation checkpointing repeats a pass for its backward
        self.passes += frame.first
        found = tuple(leaves(output))
        call = Call(
            module=frame.path,
            call=frame.call,
            type=class_name(module),
            leaf=frame.leaf,
            layer=None,
            outputs=tuple(_describe(path, value) for path, value in found),
        )
        self._calls[frame.path, frame.call] = call
        places = self._places(call)
        for output, (path, value) in zip(call.outputs, found, strict=True):
            # Whatever is a dense tensor can be looked at, also what has no row per sample.
            if (frame.path, frame.call, path) in places and output.shape is not None:
                name = site_name(frame.path, frame.call, path)
                self._take(
                    Site(name, frame.path, frame.call, call.type, self._aliases.get(frame.path, ()), path), value
                )

    def _take(self, site: Site, value: torch.Tensor) -> None:
        layout = self._layout(site, value)
        self.slot(site.name)(_copy(value, layout))
        if self._with_gradients and value.requires_grad:
            put = self.gradients.slot(site.name)
            value.register_hook(lambda gradient: put(_copy(gradient, layout)))  # type: ignore[no-untyped-call]

    def _layout(self, site: Site, value: torch.Tensor) -> SiteLayout | None:
        """Return what makes units of a site's output; None keeps it as it is."""
        choice = self._reduction
        if isinstance(choice, Mapping):
            names = [key for key in choice if self._means(key, site)]
            choice = choice.get(site.name, choice[names[0]]) if names else None
        if choice is None or value.ndim < 2 or not value.is_floating_point():
            return None
        shape, dtype = tuple(value.shape[1:]), dtype_name(value)
        return layout_site(site, output_shape=shape, native_dtype=dtype, reduction=choice, dtype="native")

    def _means(self, key: Pattern, site: Site) -> bool:
        named = isinstance(key, str) and fnmatchcase(site.name, key)
        return named or names_module(key, site.module, self._modules[site.module], self._aliases)

    # Patterns

    def _places(self, call: Call) -> set[Place]:
        """Return the outputs of a call that are wanted."""
        matcher = Matcher(self._modules, self._aliases, Trace((call,), (), (), (), (), ()))
        if self._wanted:
            places: set[Place] = set()
            for number, pattern in enumerate(self._wanted):
                named = matcher.places(pattern)
                if named:
                    self._matched.add(number)
                places |= named
        else:
            places = {(call.module, call.call, output.path) for output in call.outputs} if call.leaf else set()
        for text in self._excluded:
            if places:
                places -= matcher.places(text)
        return places

    def _check_names(self) -> None:
        for pattern in (*self._wanted, *self._excluded):
            names = _module_parts(pattern) if isinstance(pattern, str) else (pattern,)
            if not any(
                names_module(name, path, module, self._aliases)
                for name in names
                for path, module in self._modules.items()
            ):
                self._matcher().nothing_matches(pattern)

    def _check_matches(self) -> None:
        if not self._calls:
            raise InvalidArgumentError(
                "tap: no module of the model ran inside the block; call the model there, with the object that was"
                " given to tap."
            )
        for number, pattern in enumerate(self._wanted):
            if number not in self._matched:
                self._matcher().hookable(pattern)  # raises, and says why where that is known
                raise InvalidArgumentError(f"sites: {pattern_text(pattern)} matches nothing that ran in the block.")

    def _matcher(self) -> Matcher:
        called = {path for path, _ in self._calls}
        silent = tuple(path for path in self._modules if path and path not in called)
        trace = Trace(tuple(self._calls.values()), (), (), silent, (), ())
        return Matcher(self._modules, self._aliases, trace)

    # Looks

    def display(self) -> Display:
        """Return what is shown: per site its shape, dtype, mean, and share of zeros. Cost: one pass over the values."""
        return show_tensors(self, passes=self.passes, gradients=len(self.gradients) if self._with_gradients else None)

    def __repr__(self) -> str:
        """Return the table as plain text."""
        return str(self.display())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table."""
        yield self.display()

    def _repr_html_(self) -> str:
        return self.display()._repr_html_()


class _Frame:
    """A module call under way."""

    def __init__(self, path: str, call: int, *, first: bool, again: bool) -> None:
        self.path = path
        self.call = call
        self.first = first
        self.again = again
        self.leaf = True


def _copy(value: torch.Tensor, layout: SiteLayout | None) -> torch.Tensor:
    # A clone in any case: a reduction may return a view, and the next operation may overwrite what it views.
    return (value.detach() if layout is None else layout.apply(value.detach())).clone()


def _describe(path: OutputPath, value: Any) -> Output:
    import torch

    dense = isinstance(value, torch.Tensor) and not value.is_nested and value.ndim > 0
    return judge(path, value, len(value) if dense else 0)


def _in_backward() -> bool:
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


def _module_parts(pattern: str) -> tuple[str, ...]:
    """Return what of a pattern may name a module: the whole, without the output, without the call."""
    module = pattern.partition(":")[0]
    return pattern, module, module.rpartition("@")[0] or module
