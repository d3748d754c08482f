"""What a user may write to name modules and their outputs, matched against a traced forward pass.

The rule to keep: a pattern that matches nothing, or only what cannot be hooked, is an error that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.tracing.layers import class_name
from dynome_recorder.tracing.outputs import OutputPath, path_text
from dynome_recorder.tracing.unhookable import why_silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from dynome_recorder.tracing.trace import Call, Trace

# A glob over module paths, site names or class names ("!" in front excludes), a module class, a module of the model, or
# a predicate that takes a module's path and the module.
Pattern: TypeAlias = "str | type[nn.Module] | nn.Module | Callable[[str, nn.Module], bool]"
# Module path, call, path of the output.
Place: TypeAlias = "tuple[str, int, OutputPath]"

_GLOB_CHARACTERS = frozenset("*?[")


def check_patterns(patterns: Sequence[Pattern] | None) -> list[Pattern]:
    """Return the patterns as a list, or raise `InvalidArgumentError` where one is of another kind; None has none."""
    from torch import nn

    if patterns is None:
        return []
    if isinstance(patterns, (str, type, nn.Module)) or not isinstance(patterns, Sequence):
        raise InvalidArgumentError(
            f'sites must be a list of patterns such as ["features.*", nn.ReLU]; got {patterns!r}.'
        )
    for pattern in patterns:
        fits = issubclass(pattern, nn.Module) if isinstance(pattern, type) else callable(pattern)
        if not fits and not isinstance(pattern, (str, nn.Module)):
            raise InvalidArgumentError(
                "sites: a pattern must be a glob, a module class, a module of the model, or a function"
                f" (path, module) -> bool; got {pattern!r}."
            )
    return list(patterns)


def is_exclusion(pattern: Pattern) -> bool:
    """Whether the pattern takes away instead of adding."""
    return isinstance(pattern, str) and pattern.startswith("!")


def names_module(pattern: Pattern, path: str, module: nn.Module, aliases: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a pattern names a module by one of its paths, by its class or by itself."""
    from torch import nn

    if not path:  # the model itself: its output is the model's output, never a site
        return False
    paths = (path, *aliases.get(path, ()))
    if isinstance(pattern, str):
        return any(fnmatchcase(name, pattern) for name in (*paths, class_name(module)))
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if isinstance(pattern, nn.Module):
        return module is pattern
    try:
        return any(bool(pattern(name, module)) for name in paths)
    except Exception as error:
        raise InvalidArgumentError(
            f"sites: {pattern_text(pattern)} failed on {path!r} with {type(error).__name__}: {error}"
        ) from error


def pattern_text(pattern: Pattern) -> str:
    """Return how messages name a pattern."""
    if isinstance(pattern, str):
        return repr(pattern)
    name = getattr(pattern, "__name__", None)
    return name if isinstance(name, str) else type(pattern).__name__


@dataclass(frozen=True)
class Matcher:
    """Patterns against one traced pass.

    Attributes
    ----------
    modules, aliases
        The model's modules by path, and the further paths of each.
    trace
        The traced forward pass.
    """

    modules: Mapping[str, nn.Module]
    aliases: Mapping[str, tuple[str, ...]]
    trace: Trace

    def hookable(self, pattern: Pattern) -> tuple[set[Place], set[tuple[str, int]]]:
        """Return what can be recorded of what a pattern names: outputs that it names, and calls named as a whole.

        Raises
        ------
        InvalidArgumentError
            If there is none; says why.
        """
        outputs, calls = self._outputs(pattern), self._calls(pattern)
        good = {place for call in self.trace.calls for place in _places(call, recordable=True)}
        fired = {(module, call) for module, call, _ in good}
        if outputs & good or calls & fired:
            return outputs & good, calls & fired
        for call in self.trace.calls:
            for output in call.outputs:
                whole = (call.module, call.call) in calls
                if whole or (call.module, call.call, output.path) in outputs:
                    where = call.module if whole or not output.path else f"{call.module}:{path_text(output.path)}"
                    raise InvalidArgumentError(
                        f"sites: {pattern_text(pattern)} matches {where!r}, which {output.problem}."
                    )
        self._explain_containers(pattern)
        self._explain_silence(pattern)
        return self.nothing_matches(pattern)

    def places(self, pattern: Pattern) -> set[Place]:
        """Return every output that a pattern names, whether it can be recorded or not: what an exclusion removes."""
        calls = self._calls(pattern)
        return self._outputs(pattern) | {
            place for call in self.trace.calls if (call.module, call.call) in calls for place in _places(call)
        }

    def nothing_matches(self, pattern: Pattern) -> NoReturn:
        """Raise `InvalidArgumentError` that names what the pattern may have meant."""
        import difflib

        names = [path for first, others in self.aliases.items() for path in (first, *others) if path]
        if isinstance(pattern, str):
            if ":" in pattern:
                names += [name for call in self.trace.calls if call.module for name in _output_names(call)]
            near = difflib.get_close_matches(pattern.lstrip("!"), names, n=3, cutoff=0.5)
            shown = near or names[:8]
            more = ", ..." if not near and len(names) > len(shown) else ""
            hint = ("did you mean " if near else "the modules are ") + ", ".join(map(repr, shown))
            hint += more + ("?" if near else "")
        else:
            hint = "it is none of this model's modules" if not _is_predicate(pattern) else "it was false for all"
        raise InvalidArgumentError(f"sites: {pattern_text(pattern)} matches no module; {hint}")

    def _calls(self, pattern: Pattern) -> set[tuple[str, int]]:
        """Return the calls that a pattern names without saying which output."""
        wildcard = _has_wildcard(pattern)
        return {
            (call.module, call.call)
            for call in self.trace.calls
            if call.module
            and (call.leaf or not wildcard)
            and (
                names_module(pattern, call.module, self.modules[call.module], self.aliases)
                or (isinstance(pattern, str) and fnmatchcase(f"{call.module}@{call.call}", pattern))
            )
        }

    def _outputs(self, pattern: Pattern) -> set[Place]:
        """Return the outputs that a pattern with a colon names."""
        if not isinstance(pattern, str) or ":" not in pattern:
            return set()
        wildcard = _has_wildcard(pattern.partition(":")[0])
        return {
            (call.module, call.call, output.path)
            for call in self.trace.calls
            if call.module and (call.leaf or not wildcard)
            for output in call.outputs
            if output.path
            and any(fnmatchcase(f"{base}:{path_text(output.path)}", pattern) for base in self._bases(call))
        }

    def _bases(self, call: Call) -> Iterator[str]:
        for path in (call.module, *self.aliases.get(call.module, ())):
            yield path
            yield f"{path}@{call.call}"
        yield call.type

    def _explain_containers(self, pattern: Pattern) -> None:
        if isinstance(pattern, str):
            pattern = pattern.partition(":")[0] or pattern
        if not _has_wildcard(pattern):
            return
        for call in self.trace.calls:
            if not call.leaf and names_module(pattern, call.module, self.modules[call.module], self.aliases):
                raise InvalidArgumentError(
                    f"sites: {pattern_text(pattern)} matches only modules that call others, such as {call.module!r},"
                    f" which a wildcard leaves out; name them in full, by class ({call.type}) or by a predicate"
                    " (path, module) -> bool."
                )

    def _explain_silence(self, pattern: Pattern) -> None:
        if isinstance(pattern, str):
            pattern = pattern.partition(":")[0] or pattern
        for path in sorted(self.trace.never_called):
            if names_module(pattern, path, self.modules[path], self.aliases):
                reason = why_silent(path, self.modules, self.trace)
                raise InvalidArgumentError(
                    f"sites: {pattern_text(pattern)} matches {path!r}, but {reason}; name a module around it."
                )


def _places(call: Call, *, recordable: bool = False) -> Iterator[Place]:
    for output in call.recordable if recordable else call.outputs:
        yield call.module, call.call, output.path


def _output_names(call: Call) -> Iterator[str]:
    return (f"{call.module}:{path_text(output.path)}" for output in call.recordable if output.path)


def _has_wildcard(pattern: Pattern) -> bool:
    return isinstance(pattern, str) and bool(_GLOB_CHARACTERS & set(pattern))


def _is_predicate(pattern: Pattern) -> bool:
    from torch import nn

    return not isinstance(pattern, (str, type, nn.Module))
