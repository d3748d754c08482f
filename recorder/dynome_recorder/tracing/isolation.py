"""Run something in the middle of training without training noticing: random states, modes and buffers come back.

The rule to keep: whatever is changed here is put back one by one in a ``finally``, and nothing is asked of the model
but attributes (``model.eval()`` may be overridden with side effects, such as merging adapters, so it is never
called).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
from typing import TYPE_CHECKING

import numpy as np

from dynome_recorder.tracing.state import ModuleState

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for a model without any."""
    import torch

    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def preserved_random_state(*, seed: int, model: nn.Module | None = None) -> Iterator[None]:
    """Seed every global generator inside the block and restore all of them after it.

    Covers Python's ``random``, numpy's global generator, torch on the CPU and on the devices that hold the ``model``. A
    generator that a data set keeps for itself cannot be seen from here.

    Cost: about 20 us on a CPU; on an accelerator one small copy each way.
    """
    import torch

    # Not `if model`: a module may have a length, and a compiled one fails where it has none.
    tensors = itertools.chain(model.parameters(), model.buffers()) if model is not None else ()
    devices = {tensor.device for tensor in tensors}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the caller's global generator
    torch_state = torch.get_rng_state()
    device_states = [_device_state(device) for device in accelerators]
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        # Not torch.manual_seed: that would also seed accelerators whose state is not saved here.
        torch.default_generator.manual_seed(seed)
        for device in accelerators:
            _seed_device(device, seed)
        yield
    finally:
        for device, state in zip(accelerators, device_states, strict=True):
            _restore_device(device, state)
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, seed: int, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Put every module in evaluation mode, without gradients and with its own random stream, then put all of it back.

    What a forward pass changes even in evaluation mode (a call counter, a running estimate, a hidden state, a cache) is
    restored too, as far as `ModuleState` sees it.

    The caller's autocast is off inside, so that a step that is noted inside an autocast block records the same types as
    an epoch that ends outside it. What is compiled runs eagerly, and is not compiled again for that.

    Parameters
    ----------
    model
        The model.
    seed
        Seed of the random generators inside.
    autocast
        The dtype of an autocast of its own; None: without.

    Notes
    -----
    Cost: one copy of the model's buffers and 20 to 120 us per module.
    """
    import torch

    with torch.inference_mode(mode=False):  # evaluation may be under way: tensors made in that mode cannot be watched
        modules = list(model.modules())
        state = ModuleState(modules)
        with (
            preserved_random_state(seed=seed, model=model),
            torch.no_grad(),
            _eager(),
            _own_autocast(model, autocast),
        ):
            try:
                for module in modules:
                    module.training = False
                yield
            finally:
                state.restore()


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    import torch

    if "torch._dynamo" not in sys.modules:  # nothing can be compiled yet, and to import it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def _own_autocast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    import torch

    kinds = {"cpu", *(tensor.device.type for tensor in itertools.chain(model.parameters(), model.buffers()))}
    with contextlib.ExitStack() as stack:
        for kind in sorted(kinds):
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if dtype is not None:
            # Without its cache: a weight that is cast here has no gradient, and training would take that one.
            stack.enter_context(torch.autocast(device_of(model).type, dtype=dtype, cache_enabled=False))
        yield


def _device_state(device: torch.device) -> torch.Tensor:
    import torch

    state: torch.Tensor = getattr(torch, device.type).get_rng_state(*_place(device))
    return state


def _restore_device(device: torch.device, state: torch.Tensor) -> None:
    import torch

    getattr(torch, device.type).set_rng_state(state, *_place(device))


def _seed_device(device: torch.device, seed: int) -> None:
    import torch

    backend = getattr(torch, device.type)
    with backend.device(device) if _place(device) else contextlib.nullcontext():
        backend.manual_seed(seed)


def _place(device: torch.device) -> tuple[torch.device, ...]:
    # Apple's backend has one device, and its functions take none.
    return () if device.type == "mps" else (device,)
