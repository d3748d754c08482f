"""What a forward pass computes that no hook can record, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynome_recorder.tracing.layers import is_scripted, modules_by_path
from dynome_recorder.tracing.outputs import path_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from dynome_recorder.tracing.trace import Call, Trace


def list_unhookable(
    model: nn.Module, trace: Trace, *, chosen: Collection[tuple[str, int]] = ()
) -> tuple[tuple[str, str], ...]:
    """List what cannot be recorded, with the reason.

    Parameters
    ----------
    model, trace
        The model and its traced forward pass.
    chosen
        Module path and call of recorded containers: their outputs are listed too, as those of all leaves are.

    Returns
    -------
    Pairs of what and why: modules that never fire, outputs that are no dense floating-point tensor with one row per
    sample, and functions and parameters that a module's own code uses.
    """
    modules = modules_by_path(model)
    found = [
        (path, why_silent(path, modules, trace))
        for path in trace.never_called
        if _is_worth_telling(path, modules, trace)
    ]
    for call in trace.calls:
        if call.leaf or (call.module, call.call) in chosen:
            found += [(_name(call, output.path), output.problem) for output in call.outputs if output.problem]
    for use in trace.functions:
        where = f"in the forward of {use.module!r}" if use.module else "in the model's own forward"
        times = "once" if use.count == 1 else f"{use.count} times"
        what = "function" if use.is_activation else "parameter"
        reason = (
            "a function, which no hook sees; use a module" if use.is_activation else "used directly, not by a module"
        )
        found.append((f"{use.function} {where}", f"{reason} ({what}, {times})"))
    return tuple(dict.fromkeys(found))


def why_silent(path: str, modules: Mapping[str, nn.Module], trace: Trace) -> str:
    """Return why a module that is registered never fires, as a sentence that calls it "it"."""
    fired = {call.module: call for call in trace.calls}
    if is_scripted(modules[path]):
        outer = next((parent for parent in _parents(path) if parent and is_scripted(modules[parent])), path)
        return (
            "it is TorchScript, which takes no hooks"
            if outer == path
            else f"it is a part of the TorchScript module {outer!r}, where no hook fires"
        )
    if any(other.startswith(path + ".") for other in fired):
        return "it only holds other modules, and its own forward is never called"
    around = next((fired[parent] for parent in reversed(_parents(path)) if parent in fired), None)
    if around is not None and around.module and around.leaf:
        return f"{around.type} uses its weights through a function and never calls it"
    return "the forward pass never calls it"


def _is_worth_telling(path: str, modules: Mapping[str, nn.Module], trace: Trace) -> bool:
    parents = _parents(path)
    if is_scripted(modules[path]):
        return not any(is_scripted(modules[parent]) for parent in parents if parent in modules)
    if next(modules[path].children(), None) is not None:
        return False  # a container such as ModuleList: its members speak for themselves
    around = next((call for parent in reversed(parents) for call in trace.calls if call.module == parent), None)
    inside_leaf = around is not None and bool(around.module) and around.leaf
    return inside_leaf or next(modules[path].parameters(), None) is not None


def _parents(path: str) -> list[str]:
    """Return the paths of the modules around a module, outermost first; the model itself is ""."""
    return ["", *(path[:position] for position, character in enumerate(path) if character == ".")]


def _name(call: Call, output: tuple[str | int, ...]) -> str:
    base = call.module if call.call == 0 else f"{call.module}@{call.call}"
    return f"{base}:{path_text(output)}" if output else base
