"""Which module outputs are recorded: patterns in, sites out.

A site is one tensor that one call of one module returns. A module that is called twice in one forward pass has two
sites, one that returns several tensors has one for each, and one that is registered under several paths has one, with
the other paths as aliases. Patterns are resolved against a traced forward pass (`trace.Trace`), never against the
module list alone, so a site that exists is a site that fires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.tracing.layers import modules_by_path
from dynome_recorder.tracing.outputs import OutputPath, extract_output, path_text
from dynome_recorder.tracing.patterns import Matcher, Pattern, Place, check_patterns, is_exclusion

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from dynome_recorder.tracing.trace import Call, Trace

__all__ = ["Pattern", "Site", "extract_output", "module_aliases", "modules_by_path", "select_sites", "site_name"]

# Normalisations, and attention itself: torch files them under activations, but no one means them by "hidden
# activation".
_NOT_ACTIVATIONS = frozenset({"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"})
# Where libraries define activations of their own, which are no subclasses of torch's.
_ACTIVATION_LIBRARIES = frozenset({"transformers.activations", "timm.layers.activations"})


@dataclass(frozen=True)
class Site:
    """One recorded tensor.

    Attributes
    ----------
    name
        ``"features.1"`` for the first call of that module in a forward pass, ``"features.1@1"`` for the second;
        ``"lstm:0"`` and ``"encoder:hidden_states.3"`` where the module returns more than one tensor.
    module, call, type
        The module's path, which call of it (from 0), and its class name.
    aliases
        Other paths under which the same module is registered.
    output
        Where the tensor is in what the module returns (`outputs.extract_output` takes it); empty for the whole.
    """

    name: str
    module: str
    call: int
    type: str
    aliases: tuple[str, ...] = ()
    output: OutputPath = ()


def site_name(module: str, call: int, output: OutputPath = ()) -> str:
    """Return the site name of one output of one call of a module.

    The bare path for the first call, ``path@call`` after it, ``:`` and the output's path behind where there is one. A
    module path that holds an ``@`` or ``:`` of its own always gets the call, or two sites could have one name.
    """
    base = module if call == 0 and not {"@", ":"} & set(module) else f"{module}@{call}"
    return f"{base}:{path_text(output)}" if output else base


def select_sites(model: nn.Module, patterns: Sequence[Pattern] | None, *, trace: Trace) -> tuple[Site, ...]:
    """Resolve patterns into the sites that a traced forward pass called, in call order.

    Parameters
    ----------
    model
        The model that was traced.
    patterns
        Globs (``"features.*"``, ``"lstm:0"``, ``"encoder:hidden_states.*"``), module classes (``nn.ReLU``), modules,
        predicates ``(path, module) -> bool``; a glob that starts with ``"!"`` excludes, wherever it stands in the
        list. Globs with a wildcard in the module's path match only modules that call no other module, since a
        container repeats the output of its last child; whatever else names a module may name a container. None, or
        exclusions alone: every activation module but the output's.
    trace
        The traced forward pass.

    Raises
    ------
    InvalidArgumentError
        If a pattern matches nothing (near matches are named) or only what cannot be hooked (the reason is named), if
        it names a module that returns several tensors and not which of them, or if nothing is left.
    """
    patterns = check_patterns(patterns)
    matcher = Matcher(modules_by_path(model), module_aliases(model), trace)
    wanted = [pattern for pattern in patterns if not is_exclusion(pattern)]
    excluded: set[Place] = set()
    for pattern in patterns:
        if isinstance(pattern, str) and is_exclusion(pattern):
            excluded |= matcher.places(pattern[1:]) or matcher.nothing_matches(pattern)

    named: set[Place] = set()
    whole: set[tuple[str, int]] = set()
    for pattern in wanted:
        outputs, calls = matcher.hookable(pattern)
        named |= outputs
        whole |= calls
    if not wanted:
        whole = default_calls(matcher.modules, trace)
        if not whole:
            raise InvalidArgumentError(_no_default_text(matcher.modules, trace))
    named -= excluded
    chosen_of = {(module, call) for module, call, _ in named}
    for call in trace.calls:
        if (call.module, call.call) in whole - chosen_of:
            named |= _only_output(call, excluded)
    if not named:
        raise InvalidArgumentError(
            "sites: the exclusions leave no site to record; give at least one pattern that includes."
        )
    return tuple(
        Site(
            site_name(call.module, call.call, output.path),
            call.module,
            call.call,
            call.type,
            matcher.aliases.get(call.module, ()),
            output.path,
        )
        for call in trace.calls
        for output in call.outputs
        if (call.module, call.call, output.path) in named
    )


def _only_output(call: Call, excluded: set[Place]) -> set[Place]:
    """Return the one output that can be recorded of a call that was named as a whole, less what is excluded."""
    left = [output for output in call.recordable if (call.module, call.call, output.path) not in excluded]
    if len(left) > 1:
        shown = ", ".join(
            f"{site_name(call.module, call.call, output.path)!r} ({_shape(output.shape)})" for output in left[:12]
        )
        more = f" and {len(left) - 12} more" if len(left) > 12 else ""
        raise InvalidArgumentError(
            f"sites: {call.module!r} returns {len(left)} tensors; name those to record: {shown}{more},"
            f" or '{site_name(call.module, call.call)}:*' for all."
        )
    return {(call.module, call.call, output.path) for output in left}


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(("sample", *map(str, (shape or ())[1:])))


def default_calls(modules: Mapping[str, nn.Module], trace: Trace) -> set[tuple[str, int]]:
    """Return (module, call) of every hookable activation module except those that only shape the model's output.

    An activation is the output's when its values reach the model's output without passing another layer that has a
    weight matrix, and no such layer reads it either.
    """
    weighted = {layer.index for layer in trace.layers if layer.has_weight_matrix}
    output = _reach(trace.output_sources, stop=weighted, trace=trace) - weighted
    hidden = _reach(trace.weighted_sources, stop=set(), trace=trace)
    return {
        (call.module, call.call)
        for call in trace.calls
        if _is_activation(modules[call.module])
        and call.problem is None
        and not (call.layer in output and call.layer not in hidden)
    }


def module_aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map each module's first path to the other paths under which the same module is registered."""
    paths: dict[int, list[str]] = {}
    for path, module in modules_by_path(model, aliases=True).items():
        paths.setdefault(id(module), []).append(path)
    return {first: tuple(others) for first, *others in paths.values()}


def _reach(start: Iterable[int], *, stop: set[int], trace: Trace) -> set[int]:
    """Return ``start`` and every layer upstream of it; the walk does not go past a layer in ``stop``."""
    layers = {layer.index: layer for layer in trace.layers}
    seen: set[int] = set()
    pending = list(start)
    while pending:
        index = pending.pop()
        if index in seen or index not in layers:
            continue
        seen.add(index)
        if index not in stop:
            pending.extend(layers[index].sources)
    return seen


def _is_activation(module: nn.Module) -> bool:
    from torch.nn.modules import activation

    kinds = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ACTIVATIONS)
    return isinstance(module, kinds) or type(module).__module__ in _ACTIVATION_LIBRARIES


def _no_default_text(modules: Mapping[str, nn.Module], trace: Trace) -> str:
    weighted = [repr(layer.module) for layer in trace.layers if layer.has_weight_matrix]
    called = ", ".join(sorted({use.function for use in trace.functions if use.is_activation}))
    hidden = [call for call in trace.calls if call.problem is not None and _is_activation(modules[call.module])]
    if hidden:
        reason = f"{hidden[0].module!r} {hidden[0].problem}"
    elif called:
        reason = f"it calls {called} as functions, which no hook sees"
    else:
        reason = "none is called on the way to a weight"
    return (
        f"sites: the model has no hidden activation module to record ({reason});"
        f" name the sites, e.g. sites=[{', '.join(weighted[:4])}], or use modules such as nn.ReLU."
    )
