"""The model's parameters and saved buffers, copied to the host or digested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from dynome_recorder.capture.reductions import dtype_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn


def copy_weights(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Copy every parameter to the host, tied ones once under their first name; bfloat16 as bit pattern."""
    import torch

    with torch.no_grad():
        return {name: to_host_array(value.detach().to("cpu", copy=True)) for name, value in model.named_parameters()}


def hash_parameters(model: nn.Module) -> str:
    """Return a digest of all parameters and saved buffers: name, dtype, shape and crc32c of the bytes of each.

    Buffers that a checkpoint does not hold are left out, since a restored model cannot be asked for them.

    Cost: one copy to the host from an accelerator, and a checksum at several GB/s.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _state(model):
        values = tensor.detach().cpu().contiguous()
        checksum = google_crc32c.value(_bytes_of(values)) if values.numel() else 0
        digest.update(f"{name} {dtype_name(values)} {tuple(values.shape)} {checksum:08x}\n".encode())
    return digest.hexdigest()


def to_host_array(values: torch.Tensor) -> NDArray[Any]:
    """Return a CPU tensor as an array that shares its memory; bfloat16 as its bit pattern in uint16."""
    import torch

    if values.dtype is torch.bfloat16:
        pattern: NDArray[Any] = values.contiguous().view(torch.int16).numpy().view(np.uint16)
        return pattern
    array: NDArray[Any] = values.contiguous().numpy()
    return array


def _state(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    unsaved = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name not in unsaved),
    ]


def _bytes_of(values: torch.Tensor) -> NDArray[np.uint8]:
    import torch

    flat: NDArray[np.uint8] = values.reshape(-1).view(torch.uint8).numpy()
    return flat
