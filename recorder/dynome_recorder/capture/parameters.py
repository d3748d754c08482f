"""The model's parameters and saved buffers: which they are, and the digest that a resumed run is told by."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from dynome_recorder.capture.reductions import dtype_name
from dynome_recorder.capture.sparse import dense_parts
from dynome_recorder.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray
    from torch import nn

_NUMPY_TYPES = frozenset(
    ["bool", "complex64", "complex128", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
# A checksum holds the interpreter's lock: in pieces of 0.2 ms, training is never stopped for longer.
_PIECE = 2**20


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state by name, its own tensors: parameters, then saved buffers; tied ones under one name.

    Buffers that a checkpoint does not hold are left out, since a restored model cannot be asked for them. A sparse
    tensor comes as its parts, ``NAME.values`` and so on.
    """
    unsaved = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    # Not `remove_duplicate`: of a buffer with two names the first may be the one that is not saved.
    saved: dict[int, tuple[str, torch.Tensor]] = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in unsaved:
            saved.setdefault(id(buffer), (name, buffer))
    return {
        f"{name}.{part}" if part else name: dense
        for name, tensor in {**dict(model.named_parameters()), **dict(saved.values())}.items()
        for part, dense in dense_parts(tensor).items()
    }


def digest_state(arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> str:
    """Return a digest of a model's state: name, dtype, shape and crc32c of the bytes of each array, in their order.

    Parameters
    ----------
    arrays
        The values of `state_tensors` on the host, as `to_host_array` gives them.
    dtypes
        torch's name of the dtype of each, since bfloat16 comes as uint16.

    Returns
    -------
    hex, 128 bits: equal to `hash_parameters` of the model.

    Notes
    -----
    Cost: 5 to 10 GB/s, in pieces between which other threads run.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name} {dtypes[name]} {array.shape} {_checksum(array):08x}\n".encode())
    return digest.hexdigest()


def hash_parameters(model: nn.Module) -> str:
    """Return the digest of a model's state as it is now; waits for its device."""
    state = state_tensors(model)
    arrays = {name: to_host_array(tensor.detach().cpu()) for name, tensor in state.items()}
    return digest_state(arrays, {name: dtype_name(tensor) for name, tensor in state.items()})


def to_host_array(values: torch.Tensor) -> NDArray[Any]:
    """Return a CPU tensor as an array that shares its memory where it is contiguous.

    A dtype that numpy lacks comes as its bit pattern in unsigned integers: bfloat16 in uint16, float8 in uint8.
    """
    import torch

    flat = values.detach().contiguous()
    if dtype_name(flat) not in _NUMPY_TYPES:
        pattern = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}[flat.dtype.itemsize]
        flat = flat.view(pattern)
    array: NDArray[Any] = flat.resolve_conj().resolve_neg().numpy()
    return array


def check_plain_parameters(model: nn.Module) -> None:
    """Raise unless every rank holds every parameter whole: a snapshot of a shard would be taken for all of it.

    Raises
    ------
    InvalidArgumentError
        For a model with parts under FullyShardedDataParallel or ``fully_shard``, or with DTensor parameters.
    """
    for path, module in model.named_modules():
        if wrapper := _class_in(module, "FullyShardedDataParallel", "FSDPModule"):
            raise _sharded(repr(path) if path else "the model", f"is sharded by {wrapper}")
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if _class_in(parameter, "DTensor"):
            raise _sharded(repr(name), "is a DTensor")


def _sharded(what: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"model: {what} {reason}, so that no rank holds its parameters whole, and sharded models cannot be recorded;"
        " train with DistributedDataParallel, which can be, or record a run that fits one device."
    )


def _class_in(value: object, *names: str) -> str | None:
    """Return the first of these class names among the value's classes; nothing is imported to ask."""
    classes = {kind.__name__ for kind in type(value).__mro__}
    return next((name for name in names if name in classes), None)


def _checksum(array: NDArray[Any]) -> int:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    checksum = 0
    for start in range(0, len(flat), _PIECE):
        checksum = google_crc32c.extend(checksum, flat[start : start + _PIECE])
        if len(flat) > _PIECE:
            time.sleep(0)  # lets a thread that waits for the interpreter have it
    return checksum
