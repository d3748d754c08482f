"""The canary: one forward pass, watched, before anything is recorded.

It finds what cannot be known without running the model: which modules fire, how often and in which order, the shape and
dtype of their outputs, which layer's output reaches which layer's input through any functional operation in between,
and what runs as a function, where no hook can see it. The model is left as it was (see `isolation.undisturbed`).
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

from dynome_recorder.errors import InvalidArgumentError, InvalidDataError
from dynome_recorder.tracing.isolation import device_of, undisturbed
from dynome_recorder.tracing.layers import is_scripted, plain_model
from dynome_recorder.tracing.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn

    from dynome_recorder.tracing.sites import Site
    from dynome_recorder.tracing.trace import Trace


def trace_model(
    model: nn.Module,
    batch: Any,
    *,
    forward: Callable[[nn.Module, Any], Any],
    samples: int,
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> Trace:
    """Run one watched forward pass and say what happened.

    Parameters
    ----------
    model
        The model, compiled or not: the pass runs the plain modules. Neither its state nor any random generator changes.
    batch
        What ``forward`` takes, on the model's device.
    forward
        Calls the model on a batch.
    samples
        Number of samples in the batch: a module's output must have it as its first axis.
    seed
        Seed of the random generators during the pass.
    autocast
        The dtype of the autocast that the pass runs under, which decides the dtypes of the outputs; None: without.

    Raises
    ------
    InvalidArgumentError
        If the model is TorchScript, or has parameters or buffers without values (lazy, or on the meta device).
    InvalidDataError
        If the forward pass fails (the cause is kept), calls no module of the model, or changes a parameter in place,
        which would be another training.

    Notes
    -----
    Sources are followed tensor by tensor below autograd: the output of an operation has the sources of all its
    inputs; an operation in place also changes every other view of that memory; a leaf module's output has that module
    alone as its source. Cost: one forward pass slowed by a Python call per operation, and its intermediate tensors in
    memory; two sums over the parameters.
    """
    model = plain_model(model)
    _check_hookable(model)
    observer = Observer(model, samples)
    before = _checksums(model)
    with _probing(model, seed=seed, autocast=autocast):
        output = observer.run(lambda: forward(model, batch), batch)
    for name, checksum in _checksums(model).items():
        if checksum != before.get(name, checksum):
            raise InvalidDataError(
                f"probe: the forward pass changes the model's parameter {name!r}, in evaluation mode too, so that"
                " recording would change the training; change it only `if self.training:`, or make it a buffer, which"
                " is put back; if only the first pass does, run one before making the recorder."
            )
    if not observer.calls:
        raise InvalidDataError(
            "probe: the forward pass called no module of the model, so no hook can fire; forward=lambda model, batch:"
            " ... must call the model that it is given, not another copy of it (one that was exported, scripted or"
            " compiled ahead of time)."
        )
    return observer.result(output)


def time_forward(
    model: nn.Module,
    batch: Any,
    *,
    forward: Callable[[nn.Module, Any], Any],
    seed: int = 0,
    autocast: torch.dtype | None = None,
    repeats: int = 3,
) -> float:
    """Return the seconds that one plain forward pass takes, as the probe runs it: the median of ``repeats``.

    The model is left as it was. Waits for the device before and after each pass.

    Raises
    ------
    InvalidDataError
        If the forward pass fails; the cause is kept.
    """
    model = plain_model(model)
    device = device_of(model)
    seconds = []
    with _probing(model, seed=seed, autocast=autocast):
        for _ in range(repeats):
            _wait(device)
            start = time.perf_counter()
            forward(model, batch)
            _wait(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def missing_call(site: Site, fired: int) -> str:
    """Return the message for a site whose module a pass called only ``fired`` times, too few for its call."""
    text = f"{site.name}: the forward pass called it {fired} times, planned were at least {site.call + 1}; "
    if fired == 0:
        text += (
            "no hook fires where forward= runs a compiled, exported or scripted copy instead of the model that it is"
            " given, and "
        )
    return text + "sites must fire in every batch: leave out what only some batches reach."


@contextlib.contextmanager
def _probing(model: nn.Module, *, seed: int, autocast: torch.dtype | None) -> Iterator[None]:
    """Leave the model undisturbed inside the block and run it eagerly; a failing pass becomes one clear line."""
    with undisturbed(model, seed=seed, autocast=autocast):
        try:
            yield
        except (InvalidArgumentError, InvalidDataError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise InvalidDataError(
                f"probe: the model's forward pass on the probe failed with {type(error).__name__}: {text[:300]};"
                " pass forward=lambda model, batch: ... if the model is not called as model(inputs)."
            ) from error


def _check_hookable(model: nn.Module) -> None:
    from torch.nn.parameter import is_lazy

    if is_scripted(model):
        raise InvalidArgumentError(
            "model: it is TorchScript, whose modules take no hooks; give the Recorder the torch.nn.Module that was"
            " scripted or traced, and train that."
        )
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if is_lazy(tensor):
                raise InvalidArgumentError(
                    f"model: {kind} {name!r} is not initialised yet; run one forward pass before making the recorder."
                )
            if tensor.is_meta:
                raise InvalidArgumentError(
                    f"model: {kind} {name!r} is on the meta device and has no values; load them before recording, as"
                    " model.to_empty(device=...) and load_state_dict() do."
                )


def _checksums(model: nn.Module) -> dict[str, int]:
    """Return the sum of every parameter's bit patterns; waits for the device."""
    import torch

    patterns = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, parameter in model.named_parameters():
        if type(parameter.data) is torch.Tensor and parameter.layout is torch.strided and not parameter.is_meta:
            real = torch.view_as_real(parameter.data) if parameter.is_complex() else parameter.data
            bits = real.view(patterns[real.itemsize])
            sums[name] = bits.sum(dtype=bits.dtype)  # one that wraps is as good, at the speed of memory
    return {name: int(total) for name, total in sums.items()}


def _wait(device: torch.device) -> None:
    import torch

    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)
