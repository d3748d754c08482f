"""The canary: one forward pass, watched, before anything is recorded.

It finds what cannot be known without running the model: which modules fire, how often and in which order, the shape and
dtype of their outputs, which layer's output reaches which layer's input through any functional operation in between,
and what runs as a function, where no hook can see it. The model is left as it was (see `isolation.undisturbed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgumentError, InvalidDataError
from .isolation import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from .layers import Layer


@dataclass(frozen=True)
class Call:
    """One call of one module in the traced forward pass.

    Attributes
    ----------
    module, call, type
        The module's path, which call of it (from 0), its class name.
    leaf
        Whether it called no other module.
    layer
        Index of its layer, or None where it is no leaf.
    output_shape
        Shape of the output tensor with the sample axis first, or None where there is no single tensor.
    output_dtype
        ``"float32"`` and so on; None as above.
    problem
        Why its output cannot be recorded, as the end of the sentence "the module ..."; None where it can.
    """

    module: str
    call: int
    type: str
    leaf: bool
    layer: int | None
    output_shape: tuple[int, ...] | None
    output_dtype: str | None
    problem: str | None


@dataclass(frozen=True)
class FunctionUse:
    """A function that a container module calls on data: an activation or a weight that no hook sees."""

    module: str
    function: str
    count: int
    is_activation: bool


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    Attributes
    ----------
    calls
        Every module call, in the order in which the calls ended.
    layers
        The leaf calls with their sources, in call order.
    functions
        Activation functions and parameters that container modules use directly.
    never_called
        Paths of modules that the pass did not call.
    output_sources
        Layers whose outputs reach the model's output with no other layer between.
    weighted_sources
        Layers whose outputs some weight matrix reads, in a layer or in a function.
    """

    calls: tuple[Call, ...]
    layers: tuple[Layer, ...]
    functions: tuple[FunctionUse, ...]
    never_called: tuple[str, ...]
    output_sources: tuple[int, ...]
    weighted_sources: tuple[int, ...]


def trace_model(
    model: nn.Module, batch: Any, *, forward: Callable[[nn.Module, Any], Any], samples: int, seed: int = 0
) -> Trace:
    """Run one watched forward pass and say what happened.

    Parameters
    ----------
    model
        The model; neither its state nor any random generator changes.
    batch
        What ``forward`` takes, on the model's device.
    forward
        Calls the model on a batch.
    samples
        Number of samples in the batch: a module's output must have it as its first axis.
    seed
        Seed of the random generators during the pass.

    Raises
    ------
    InvalidArgumentError
        If the model has uninitialised (lazy) parameters.
    InvalidDataError
        If the forward pass fails; the cause is kept.

    Notes
    -----
    Sources are followed tensor by tensor below autograd: the output of an operation has the sources of all its
    inputs; an operation in place also changes every other view of that memory; a leaf module's output has that module
    alone as its source. Cost: one forward pass slowed by a Python call per operation, and its intermediate tensors in
    memory.
    """
    from torch.nn.parameter import is_lazy

    from .observer import Observer

    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InvalidArgumentError(
                f"model: parameter {name!r} is not initialised yet; run one forward pass before making the recorder."
            )
    observer = Observer(model, samples)
    with undisturbed(model, seed=seed):
        try:
            output = observer.run(lambda: forward(model, batch), batch)
        except (InvalidArgumentError, InvalidDataError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise InvalidDataError(
                f"probe: the model's forward pass on the probe failed with {type(error).__name__}: {text[:300]};"
                " pass forward=lambda model, batch: ... if the model is not called as model(inputs)."
            ) from error
    return observer.result(output)
