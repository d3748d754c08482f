"""The layer graph of ``run.json``: what the analysis needs to know of a model whose code it does not have.

Plain data: names, shapes, configuration and sources. The watching is done by `canary`; here one module call becomes one
record, and a module's parameters become one list with the tied ones named once.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class Layer:
    """One call of one leaf module.

    Attributes
    ----------
    index
        Position in call order, from 0.
    module, type, call
        The module's path, its class name, which call of it (from 0).
    parameters
        The module's own name for each of its parameters ("weight") to the model's ("features.0.weight"). A tied
        parameter has one name in the model, the first.
    input_shape, output_shape
        Shape of the first input and output tensor, without the batch axis; None where there is no tensor.
    configuration
        The module's plain attributes: kernel size, stride, number of features, ...
    sources
        Indices of the layers whose outputs reach this layer's input through functions alone; -1 is the model's input.
    has_weight_matrix
        Whether any of its parameters has two axes or more.
    """

    index: int
    module: str
    type: str
    call: int
    parameters: dict[str, str]
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    configuration: dict[str, Json]
    sources: tuple[int, ...]
    has_weight_matrix: bool

    def to_json(self) -> dict[str, Json]:
        """Return the record that ``run.json`` holds under ``model.layers``."""
        record: dict[str, Any] = asdict(self)
        del record["has_weight_matrix"]
        for name in ("input_shape", "output_shape", "sources"):
            record[name] = None if record[name] is None else list(record[name])
        return record


def describe_layer(
    module: nn.Module,
    *,
    index: int,
    path: str,
    call: int,
    names: Mapping[int, str],
    input_shape: tuple[int, ...] | None,
    output_shape: tuple[int, ...] | None,
    sources: tuple[int, ...],
) -> Layer:
    """Turn a module call into its record; ``names`` maps the ``id`` of each parameter to its name in the model."""
    # With its children's: a leaf is what calls no module, and attention has a child that it never calls.
    own = dict(module.named_parameters())
    return Layer(
        index=index,
        module=path,
        type=class_name(module),
        call=call,
        # torch.func.functional_call puts other tensors in the parameters' places for the time of a call.
        parameters={name: names.get(id(parameter), f"{path}.{name}") for name, parameter in own.items()},
        input_shape=input_shape,
        output_shape=output_shape,
        configuration=describe_configuration(module, spatial_axes=len(input_shape or ()) - 1),
        sources=sources,
        has_weight_matrix=any(parameter.ndim >= 2 for parameter in own.values()),
    )


def modules_by_path(model: nn.Module, *, aliases: bool = False) -> dict[str, nn.Module]:
    """Map the path of each module to the module that hooks go on: those of the plain model, compiled or not.

    ``torch.compile(module)`` wraps: the wrapper has no path of its own, and the parts inside keep those that they have
    without it. ``aliases`` includes the further paths of a module that is registered more than once.
    """
    return {
        plain_path(path): module
        for path, module in plain_model(model).named_modules(remove_duplicate=not aliases)
        if not _is_compiled(module)
    }


def plain_model(model: nn.Module) -> nn.Module:
    """Return the module inside a ``torch.compile``d one; any other module itself."""
    while _is_compiled(model):
        model = model._orig_mod  # type: ignore[assignment]  # a Module: the wrapper's only child
    return model


def plain_path(path: str) -> str:
    """Return the path of a module or parameter without the names that ``torch.compile``'s wrappers put between."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def is_scripted(module: nn.Module) -> bool:
    """Whether the module is TorchScript, which takes no hooks."""
    import torch

    return isinstance(module, torch.jit.ScriptModule)


def _is_compiled(module: nn.Module) -> bool:
    # Whoever compiled something has imported torch._dynamo, a second of work that this must not cause.
    evaluation = sys.modules.get("torch._dynamo.eval_frame")
    return evaluation is not None and isinstance(module, evaluation.OptimizedModule)


def class_name(module: nn.Module) -> str:
    """Return the name of the module's class; of a parametrized one (weight_norm), the class it had before, and of a
    scripted one, the class that was scripted."""
    from torch.nn.utils.parametrize import type_before_parametrizations

    if is_scripted(module):
        return str(getattr(module, "original_name", type(module).__name__))
    return type_before_parametrizations(module).__name__


def describe_configuration(module: nn.Module, *, spatial_axes: int) -> dict[str, Json]:
    """Return a module's plain public attributes.

    Convolutions and poolings give kernel size, stride, padding and dilation as one number per spatial axis, however
    they were spelled. ``padding="same"`` becomes the numbers in front of the data, with ``padding_end`` for those
    behind it.
    """
    from torch.nn.modules import conv, pooling

    configuration: dict[str, Json] = {}
    for name, value in vars(module).items():
        plain = _to_plain(value)
        if not name.startswith("_") and name != "training" and (plain is not None or value is None):
            configuration[name] = plain
    if isinstance(module, conv._ConvNd) and isinstance(module.padding, str):
        total = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
        same = module.padding == "same"
        configuration["padding"] = [width // 2 if same else 0 for width in total]
        configuration["padding_end"] = [width - width // 2 if same else 0 for width in total]
    if type(module).__module__ == pooling.__name__ and spatial_axes > 0:
        for name in ("kernel_size", "stride", "padding", "dilation", "output_size"):
            number = configuration.get(name)
            if isinstance(number, int):
                configuration[name] = [number] * spatial_axes
    return configuration


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Map the ``id`` of each parameter to its first name in the model."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def describe_parameters(model: nn.Module) -> list[Json]:
    """List every parameter by every name it has: name, shape, dtype, and of which earlier name it is an alias."""
    first = parameter_names(model)
    return [
        {
            "name": name,
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "alias_of": first[id(parameter)] if first[id(parameter)] != name else None,
        }
        for name, parameter in model.named_parameters(remove_duplicate=False)
    ]


def describe_model(model: nn.Module, layers: tuple[Layer, ...]) -> dict[str, Json]:
    """Return the ``model`` member of ``run.json``: class, parameters and layer graph."""
    return {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": describe_parameters(model),
        "layers": [layer.to_json() for layer in layers],
    }


def _to_plain(value: Any) -> Json:
    """Return numbers, texts and flat sequences of them as JSON; None for anything else (and for None)."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(item, (bool, int, float, str)) for item in value):
        return list(value)
    return None
