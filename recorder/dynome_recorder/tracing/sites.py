"""Which module outputs are recorded: patterns in, sites out.

A site is a (module path, call index) pair: a module that is called twice in one forward pass has two sites, and a
module that is registered under several paths has one, with the other paths as aliases. Patterns are resolved against
a traced forward pass (`trace.Trace`), never against the module list alone, so a site that exists is a site that
fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.tracing.layers import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from dynome_recorder.tracing.trace import Call, Trace

# A glob over module paths, site names or class names ("!" in front excludes), a module class, or a module of the model.
Pattern: TypeAlias = "str | type[nn.Module] | nn.Module"

_GLOB_CHARACTERS = frozenset("*?[")
# Normalisations, and attention itself: torch files them under activations, but no one means them by "hidden
# activation".
_NOT_ACTIVATIONS = frozenset({"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"})


@dataclass(frozen=True)
class Site:
    """One recorded module output.

    Attributes
    ----------
    name
        ``"features.1"`` for the first call of that module in a forward pass, ``"features.1@1"`` for the second.
    module, call, type
        The module's path, which call of it (from 0), and its class name.
    aliases
        Other paths under which the same module is registered.
    """

    name: str
    module: str
    call: int
    type: str
    aliases: tuple[str, ...] = ()


def site_name(module: str, call: int) -> str:
    """Return the site name of one call of a module: the bare path for the first call, ``path@call`` after it.

    A path that holds an ``@`` of its own always gets the call, or two sites could have one name.
    """
    return module if call == 0 and "@" not in module else f"{module}@{call}"


def select_sites(model: nn.Module, patterns: Sequence[Pattern] | None, *, trace: Trace) -> tuple[Site, ...]:
    """Resolve patterns into the sites that a traced forward pass called, in call order.

    Parameters
    ----------
    model
        The model that was traced.
    patterns
        Globs (``"features.*"``), module classes (``nn.ReLU``), modules; a glob that starts with ``"!"`` excludes,
        wherever it stands in the list. Globs with a wildcard match only modules that call no other module, since a
        container repeats the output of its last child; a full name, a class or a module may name a container. None,
        or exclusions alone: every activation module but the output's.
    trace
        The traced forward pass.

    Raises
    ------
    InvalidArgumentError
        If a pattern matches nothing (near matches are named) or only what cannot be hooked (the reason is named), or if
        nothing is left.
    """
    patterns = _check_patterns(patterns)
    aliases = module_aliases(model)
    wanted = [pattern for pattern in patterns if not _is_exclusion(pattern)]
    excluded = [pattern[1:] for pattern in patterns if isinstance(pattern, str) and _is_exclusion(pattern)]
    modules = dict(model.named_modules())

    kept: set[tuple[str, int]] = set()
    if wanted:
        for pattern in wanted:
            kept |= _match(pattern, modules, aliases, trace)
    else:
        kept = default_calls(modules, trace)
        if not kept:
            raise InvalidArgumentError(_no_default_text(trace))
    for text in excluded:
        kept -= _match_calls(text, modules, aliases, trace.calls) or _nothing_matches(f"!{text}", aliases)
    if not kept:
        raise InvalidArgumentError(
            "sites: the exclusions leave no site to record; give at least one pattern that includes."
        )
    return tuple(
        Site(site_name(call.module, call.call), call.module, call.call, call.type, aliases.get(call.module, ()))
        for call in trace.calls
        if (call.module, call.call) in kept
    )


def default_calls(modules: Mapping[str, nn.Module], trace: Trace) -> set[tuple[str, int]]:
    """Return (module, call) of every hookable activation module except those that only shape the model's output.

    An activation is the output's when its values reach the model's output without passing another layer that has a
    weight matrix, and no such layer reads it either.
    """
    from torch.nn.modules import activation

    kinds = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ACTIVATIONS)
    weighted = {layer.index for layer in trace.layers if layer.has_weight_matrix}
    output = _reach(trace.output_sources, stop=weighted, trace=trace) - weighted
    hidden = _reach(trace.weighted_sources, stop=set(), trace=trace)
    return {
        (call.module, call.call)
        for call in trace.calls
        if isinstance(modules[call.module], kinds)
        and call.problem is None
        and not (call.layer in output and call.layer not in hidden)
    }


def module_aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map each module's first path to the other paths under which the same module is registered."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
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


def _check_patterns(patterns: Sequence[Pattern] | None) -> list[Pattern]:
    from torch import nn

    if patterns is None:
        return []
    if isinstance(patterns, (str, type, nn.Module)) or not isinstance(patterns, Sequence):
        raise InvalidArgumentError(
            f'sites must be a list of patterns such as ["features.*", nn.ReLU]; got {patterns!r}.'
        )
    for pattern in patterns:
        is_class = isinstance(pattern, type) and issubclass(pattern, nn.Module)
        if not (isinstance(pattern, (str, nn.Module)) or is_class):
            raise InvalidArgumentError(
                f"sites: a pattern must be a glob, a module class or a module of the model; got {pattern!r}."
            )
    return list(patterns)


def _is_exclusion(pattern: Pattern) -> bool:
    return isinstance(pattern, str) and pattern.startswith("!")


def _match(
    pattern: Pattern, modules: Mapping[str, nn.Module], aliases: Mapping[str, tuple[str, ...]], trace: Trace
) -> set[tuple[str, int]]:
    """Return the hookable calls that a pattern names; raise where there is none, saying why."""
    fired = _match_calls(pattern, modules, aliases, trace.calls)
    hookable = {(call.module, call.call) for call in trace.calls if call.problem is None} & fired
    if hookable:
        return hookable
    for call in trace.calls:
        if (call.module, call.call) in fired:
            raise InvalidArgumentError(f"sites: {_text(pattern)} matches {call.module!r}, which {call.problem}.")
    silent = sorted(path for path in trace.never_called if _names(pattern, path, modules[path], aliases))
    if silent:
        raise InvalidArgumentError(
            f"sites: {_text(pattern)} matches {silent[0]!r}, which the forward pass never calls"
            " (its parent uses it through a function, or not at all); name a module around it."
        )
    return _nothing_matches(pattern, aliases)


def _match_calls(
    pattern: Pattern,
    modules: Mapping[str, nn.Module],
    aliases: Mapping[str, tuple[str, ...]],
    calls: Sequence[Call],
) -> set[tuple[str, int]]:
    wildcard = isinstance(pattern, str) and bool(_GLOB_CHARACTERS & set(pattern))
    return {
        (call.module, call.call)
        for call in calls
        if call.module
        and (call.leaf or not wildcard)
        and (
            _names(pattern, call.module, modules[call.module], aliases)
            or (isinstance(pattern, str) and fnmatchcase(f"{call.module}@{call.call}", pattern))
        )
    }


def _names(pattern: Pattern, path: str, module: nn.Module, aliases: Mapping[str, tuple[str, ...]]) -> bool:
    if not path:  # the model itself: its output is the model's output, never a site
        return False
    if isinstance(pattern, str):
        names = (path, *aliases.get(path, ()), class_name(module))
        return any(fnmatchcase(name, pattern) for name in names)
    return isinstance(module, pattern) if isinstance(pattern, type) else module is pattern


def _nothing_matches(pattern: Pattern, aliases: Mapping[str, tuple[str, ...]]) -> set[tuple[str, int]]:
    names = [path for first, others in aliases.items() for path in (first, *others) if path]
    if not isinstance(pattern, str):
        hint = "it is none of this model's modules"
    else:
        import difflib

        near = difflib.get_close_matches(pattern.lstrip("!"), names, n=3, cutoff=0.5)
        shown = near or names[:8]
        more = ", ..." if not near and len(names) > len(shown) else ""
        hint = (
            ("did you mean " if near else "the modules are ")
            + ", ".join(map(repr, shown))
            + more
            + ("?" if near else "")
        )
    raise InvalidArgumentError(f"sites: {_text(pattern)} matches no module; {hint}")


def _text(pattern: Pattern) -> str:
    if isinstance(pattern, str):
        return repr(pattern)
    return pattern.__name__ if isinstance(pattern, type) else type(pattern).__name__


def _no_default_text(trace: Trace) -> str:
    weighted = [repr(layer.module) for layer in trace.layers if layer.has_weight_matrix]
    called = ", ".join(sorted({use.function for use in trace.functions if use.is_activation}))
    reason = (
        f"it calls {called} as functions, which no hook sees" if called else "none is called on the way to a weight"
    )
    return (
        f"sites: the model has no hidden activation module to record ({reason});"
        f" name the sites, e.g. sites=[{', '.join(weighted[:4])}], or use modules such as nn.ReLU."
    )
