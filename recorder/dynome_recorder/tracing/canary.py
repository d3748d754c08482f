"""The canary: one forward pass, watched, before anything is recorded.

It finds what cannot be known without running the model: which modules fire, how often and in which order, the shape and
dtype of their outputs, which layer's output reaches which layer's input through any functional operation in between,
and what runs as a function, where no hook can see it. The model is left as it was (see `isolation.undisturbed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.tracing.isolation import undisturbed
from dynome_recorder.tracing.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dynome_recorder.tracing.trace import Trace


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
