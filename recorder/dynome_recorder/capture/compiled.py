"""Compiled models: which parts of a model are, and what recording has to do so that their graphs record too.

The rule to keep: everything that is put in place here comes off again, and a model that is copied or saved meanwhile
works without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.batch_hooks import CompiledCall
from dynome_recorder.tracing.layers import plain_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from dynome_recorder.capture.batch_step import BatchStep
    from dynome_recorder.capture.reductions import SiteLayout


def wrappers(model: nn.Module) -> list[nn.Module]:
    """Return the model and what its wrappers hold, from the outside to the plain module."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    layers = [model]
    while True:
        if _is_wrapper(model):
            model = plain_model(model)
        elif isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        else:
            return layers
        layers.append(model)


def innermost(model: nn.Module) -> nn.Module:
    """Return the plain module, whose paths name the sites."""
    return wrappers(model)[-1]


def outermost_compiled(model: nn.Module) -> nn.Module:
    """Return the outermost layer that is compiled as a whole, the plain module where none is."""
    layers = wrappers(model)
    return next((layer for layer in layers if is_compiled(layer)), layers[-1])


def is_compiled_anywhere(model: nn.Module) -> bool:
    """Whether the model or any part of it is compiled."""
    return any(is_compiled(module) for layer in wrappers(model) for module in layer.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is one that torch.compile returned, or was compiled in place."""
    return module._compiled_call_impl is not None or _is_wrapper(module)


def _is_wrapper(module: nn.Module) -> bool:
    return plain_model(module) is not module


def fill_caches(layouts: Sequence[SiteLayout], device: torch.device) -> None:
    """Reduce one sample of every site, so that index tensors are made here and not where the graph is traced."""
    import torch

    with torch.no_grad():
        for layout in layouts:
            layout.apply(torch.zeros((1, *layout.output_shape), dtype=torch.float32, device=device))


class Stand:
    """A `CompiledCall` in place of what a compiled module calls, until it is removed."""

    def __init__(self, module: nn.Module, step: BatchStep, *, is_pass: bool) -> None:
        self.module = module
        # In the module's own dictionary: what torch.compile returns hands attributes on to the module inside.
        self.before = vars(module).get("_compiled_call_impl")
        inner = module._call_impl if self.before is None else self.before
        vars(module)["_compiled_call_impl"] = CompiledCall(step, inner, is_pass=is_pass)

    def remove(self) -> None:
        """Put back what was there."""
        if not isinstance(vars(self.module).get("_compiled_call_impl"), CompiledCall):
            return  # compiled again since
        if self.before is None:
            del vars(self.module)["_compiled_call_impl"]
        else:
            vars(self.module)["_compiled_call_impl"] = self.before


class RoomForGraphs:
    """Doubles how many graphs dynamo may hold per function: recording adds one to each that is run in a due step.

    At the limit ``fullgraph=True`` ends the training, which must not happen because of the recorder.
    """

    def __init__(self) -> None:
        import torch._dynamo.config as config

        self.config: Any = config
        self.name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        self.before = getattr(config, self.name)
        setattr(config, self.name, 2 * self.before)

    def remove(self) -> None:
        """Set the limit back, unless somebody else has set it."""
        if getattr(self.config, self.name) == 2 * self.before:
            setattr(self.config, self.name, self.before)


class NewGuard:
    """Makes dynamo trace a module again, by giving it the ``forward`` that it has as an attribute of its own.

    Dynamo does not look whether a module has hooks when it takes a graph that it has: one of this model before it was
    recorded, or of another model of the same class. It does look whether ``forward`` is the class's. A copy of the
    module has one of its own, bound to the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.is_set = "forward" not in vars(module)
        if self.is_set:
            vars(module)["forward"] = module.forward

    def remove(self) -> None:
        """Leave the class's."""
        if self.is_set:
            vars(self.module).pop("forward", None)
