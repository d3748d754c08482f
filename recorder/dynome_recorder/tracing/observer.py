"""The watcher behind `canary`: module hooks, and a dispatch mode that carries the sources of every tensor.

Sources are kept per tensor object. Two things need care, and each has a test: an operation in place changes what every
other view of that memory holds, and a module may hand on its input itself, which must not rename the input.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dynome_recorder.tracing.layers import (
    Layer,
    class_name,
    describe_layer,
    is_scripted,
    modules_by_path,
    parameter_names,
)
from dynome_recorder.tracing.outputs import judge, leaves, tensors_in
from dynome_recorder.tracing.trace import Call, FunctionUse, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch
    from torch import nn

MODEL_INPUT = -1
_WEIGHT = -2  # internal: the tensor comes from a weight matrix

_ACTIVATION_FUNCTIONS = frozenset(
    {"celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "log_softmax"}
    | {"mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh"}
    | {"threshold"}
)


class _Frame:
    """A module call under way."""

    def __init__(self, module: str, call: int, inputs: list[torch.Tensor], sources: frozenset[int]) -> None:
        self.module = module
        self.call = call
        self.inputs = inputs
        self.versions = [tensor._version for tensor in inputs]
        self.sources = sources
        self.input_shape = tuple(inputs[0].shape) if inputs else None
        self.leaf = True
        self.functions: Counter[str] = Counter()
        self.parameters: Counter[str] = Counter()


class Observer:
    """Hooks and the dispatch mode of one traced pass, with what they have seen so far."""

    def __init__(self, model: nn.Module, samples: int) -> None:
        from torch.nn.utils.parametrize import is_parametrized
        from torch.utils.weak import WeakTensorKeyDictionary

        self.model = model
        self.samples = samples
        # What computes a weight (weight_norm, spectral_norm) is part of the layer whose weight it is, no layer itself.
        inside = {
            id(part) for module in model.modules() if is_parametrized(module) for part in _parametrizations(module)
        }
        self.paths = {module: path for path, module in modules_by_path(model).items() if id(module) not in inside}
        self.parameter_names = parameter_names(model)
        # Keyed by identity and held weakly: a dead tensor's identity must not be inherited by a new one.
        self.sources: Any = WeakTensorKeyDictionary()
        self.stack: list[_Frame] = []
        self.counts: Counter[str] = Counter()
        self.calls: list[Call] = []
        self.layers: list[Layer] = []
        self.functions: Counter[tuple[str, str, bool]] = Counter()
        self.weighted: set[int] = set()
        self.model_output: Any = None

    def run(self, call: Callable[[], Any], batch: Any) -> Any:
        """Call with hooks on every module and the batch marked as the model's input; the hooks are gone after it."""
        for tensor in tensors_in(batch):
            self.sources[tensor] = frozenset({MODEL_INPUT})
        handles = []
        try:
            for module in self.paths:
                if is_scripted(module):  # takes no hooks
                    continue
                handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self.leave, with_kwargs=True))
            with _dispatch_mode(self):
                return call()
        finally:
            for handle in reversed(handles):
                handle.remove()

    def result(self, output: Any) -> Trace:
        """Return what was seen; ``output`` counts as the model's where the model itself was not called."""
        final = output if self.model_output is None else self.model_output
        called = {call.module for call in self.calls}
        return Trace(
            calls=tuple(self.calls),
            layers=tuple(self.layers),
            functions=tuple(FunctionUse(module, name, n, kind) for (module, name, kind), n in self.functions.items()),
            never_called=tuple(path for path in self.paths.values() if path not in called),
            output_sources=_plain(self.sources_of(tensors_in(final))),
            weighted_sources=_plain(self.weighted),
        )

    def sources_of(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """Return the layers that any of the tensors come from."""
        empty: frozenset[int] = frozenset()
        return empty.union(*(self.sources.get(tensor, empty) for tensor in tensors))

    # Module hooks

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Note that a module is called (a forward pre-hook)."""
        path = self.paths[module]
        if self.stack:
            self.stack[-1].leaf = False
        inputs = list(tensors_in((arguments, named)))
        self.stack.append(_Frame(path, self.counts[path], inputs, self.sources_of(inputs) - {_WEIGHT}))
        self.counts[path] += 1

    def leave(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """Note what a module returned (a forward hook); returns the output, perhaps as a view."""
        frame = self.stack.pop()
        index = len(self.layers) if frame.leaf else None
        if frame.leaf:
            self.layers.append(self.layer(module, frame, output))
            output = self.mark_output(frame, output, len(self.layers) - 1)
        else:
            for name, count in frame.functions.items():
                self.functions[frame.module, name, True] += count
            for name, count in frame.parameters.items():
                self.functions[frame.module, name, False] += count
        outputs = tuple(judge(path, value, self.samples) for path, value in leaves(output))
        self.calls.append(Call(frame.module, frame.call, class_name(module), frame.leaf, index, outputs))
        if not frame.module:
            self.model_output = output
        return output

    def layer(self, module: nn.Module, frame: _Frame, output: Any) -> Layer:
        """Describe the call of a leaf."""
        first = next(tensors_in(output), None)
        return describe_layer(
            module,
            index=len(self.layers),
            path=frame.module,
            call=frame.call,
            names=self.parameter_names,
            input_shape=_without_batch(frame.input_shape, self.samples),
            output_shape=_without_batch(tuple(first.shape) if first is not None else None, self.samples),
            sources=_plain(frame.sources),
        )

    def mark_output(self, frame: _Frame, output: Any, index: int) -> Any:
        """Make the layer the only source of its output, without renaming an input that it merely hands on."""
        import torch

        mine = frozenset({index})
        for tensor, version in zip(frame.inputs, frame.versions, strict=True):
            if tensor._version != version:  # changed in place: whoever holds this memory now holds the layer's output
                for peer in self.peers(tensor):
                    self.sources[peer] = mine
        if isinstance(output, torch.Tensor) and any(output is tensor for tensor in frame.inputs):
            # nn.Identity, and dropout in evaluation mode, return their input itself: a view tells the two apart.
            output = output.view_as(output)
        for tensor in tensors_in(output):
            self.sources[tensor] = mine
        return output

    # Operations

    def operation(self, function: Any, arguments: Any, named: Mapping[str, Any], output: Any) -> None:
        """Pass the sources of an operation's inputs on to its outputs and to whatever it writes in place."""
        inputs = list(tensors_in((arguments, named)))
        found = self.sources_of(inputs)
        weights = [self.parameter_names[id(tensor)] for tensor in inputs if id(tensor) in self.parameter_names]
        if any(id(tensor) in self.parameter_names and tensor.ndim >= 2 for tensor in inputs):
            found |= {_WEIGHT}
        data = found - {_WEIGHT}
        if data and _WEIGHT in found:
            self.weighted |= data
            found = data
        schema = getattr(function, "_schema", None)
        if schema is None:  # a higher-order operator: its inner operations have no schema of their own to ask
            for tensor in tensors_in(output):
                self.sources[tensor] = found
            return
        if self.stack:
            name = schema.name.removeprefix("aten::").rstrip("_").lstrip("_")
            if name in _ACTIVATION_FUNCTIONS:
                self.stack[-1].functions[name] += 1
            self.stack[-1].parameters.update(weights)
        written = {
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        for key in written:
            changed = named.get(key) if isinstance(key, str) else arguments[key] if key < len(arguments) else None
            for tensor in tensors_in(changed):
                for peer in self.peers(tensor):
                    self.sources[peer] = self.sources_of([peer]) | found
        for tensor in tensors_in(output):
            self.sources[tensor] = self.sources_of([tensor]) | found

    def peers(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the live tensors, ``tensor`` included, that share its memory."""
        place = _memory(tensor)
        others = [other for other in list(self.sources.keys()) if other is not tensor and _memory(other) == place]
        return [tensor, *(others if place is not None else ())]


def _dispatch_mode(observer: Observer) -> Any:
    # The class needs torch to be defined, hence here.
    from torch.utils._python_dispatch import TorchDispatchMode

    class SourceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = kwargs or {}
            output = function(*args, **named)
            observer.operation(function, args, named, output)
            return output

    return SourceMode()  # type: ignore[no-untyped-call]


def _parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    return (part for path, part in module.named_modules() if path.partition(".")[0] == "parametrizations")


def _memory(tensor: torch.Tensor) -> int | None:
    import torch

    return (tensor.untyped_storage().data_ptr() or None) if tensor.layout is torch.strided else None


def _without_batch(shape: tuple[int, ...] | None, samples: int) -> tuple[int, ...] | None:
    return shape[1:] if shape and shape[0] == samples else shape


def _plain(sources: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(source for source in sources if source != _WEIGHT))
