"""What the copy path needs of a device, and nothing else of torch: buffers, two streams, events, copies.

The rule to keep: nothing here but `Backend.synchronize` waits for a device, and that one belongs to the writer thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BufferSpec:
    """One array of a snapshot.

    Attributes
    ----------
    shape
        Its shape.
    dtype
        torch's name of its dtype, "bfloat16" too.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * torch_dtype(self.dtype).itemsize


class Backend(Protocol):
    """What a device gives. Streams and events are the device's own, opaque to whoever calls.

    Attributes
    ----------
    stages
        Whether hooks write to device buffers, which are copied to the host later; False where they write to the host
        buffers themselves.
    """

    stages: bool

    def allocate_device(self, spec: BufferSpec) -> torch.Tensor:
        """Return a device buffer, uninitialised."""

    def allocate_host(self, spec: BufferSpec, *, pinned: bool) -> torch.Tensor:
        """Return a host buffer, uninitialised; pinned, a device copies to it without anybody waiting."""

    def current_stream(self) -> Any:
        """Return the stream that the caller queues its work on."""

    def side_stream(self) -> Any:
        """Return the one stream of all copies."""

    def record_event(self, stream: Any) -> Any:
        """Return an event behind everything that a stream was given so far."""

    def wait_event(self, stream: Any, event: Any) -> None:
        """Let what a stream is given from now on wait for an event; the caller goes on."""

    def synchronize(self, event: Any) -> None:
        """Block until an event has happened. For the writer thread."""

    def copy(self, host: torch.Tensor, device: torch.Tensor, stream: Any) -> None:
        """Queue a copy to a host buffer on a stream; the caller goes on."""

    def keep(self, device: torch.Tensor, stream: Any) -> None:
        """Let memory be used again, once its tensor is gone, only behind what a stream was given until then."""


class HostBackend:
    """A CPU: whatever was called has happened. Also for devices without streams: a copy from them just waits."""

    stages = False

    def allocate_device(self, spec: BufferSpec) -> torch.Tensor:
        """Return host memory, which is all there is."""
        return self.allocate_host(spec, pinned=False)

    def allocate_host(self, spec: BufferSpec, *, pinned: bool) -> torch.Tensor:
        """Return pageable memory."""
        return _empty(spec, "cpu")

    def current_stream(self) -> None:
        """Return None."""

    def side_stream(self) -> None:
        """Return None."""

    def record_event(self, stream: Any) -> None:
        """Return None: it has happened."""

    def wait_event(self, stream: Any, event: Any) -> None:
        """Do nothing."""

    def synchronize(self, event: Any) -> None:
        """Return at once."""

    def copy(self, host: torch.Tensor, device: torch.Tensor, stream: Any) -> None:
        """Copy now."""
        host.copy_(device)

    def keep(self, device: torch.Tensor, stream: Any) -> None:
        """Do nothing."""


class AcceleratorBackend:
    """A device with streams: CUDA and ROCm (``torch.cuda``), and those with the same interface (``torch.xpu``).

    torch rounds a pinned buffer up to a power of two of bytes.

    Parameters
    ----------
    device
        The device; without an index, the current one.
    """

    stages = True

    def __init__(self, device: torch.device) -> None:
        import torch

        self._module = getattr(torch, device.type)
        index = device.index if device.index is not None else self._module.current_device()
        self.device = torch.device(device.type, index)
        self._side = self._module.Stream(device=self.device)
        # A thread that waits for a blocking event sleeps instead of taking a core from the training.
        self._event_options = {"blocking": True} if device.type == "cuda" else {}

    def allocate_device(self, spec: BufferSpec) -> torch.Tensor:
        """Return device memory."""
        return _empty(spec, self.device)

    def allocate_host(self, spec: BufferSpec, *, pinned: bool) -> torch.Tensor:
        """Return host memory."""
        return _empty(spec, "cpu", pinned=pinned)

    def current_stream(self) -> Any:
        """Return the caller's stream on this device."""
        return self._module.current_stream(self.device)

    def side_stream(self) -> Any:
        """Return the stream of the copies."""
        return self._side

    def record_event(self, stream: Any) -> Any:
        """Return a new event."""
        event = self._module.Event(**self._event_options)
        event.record(stream)
        return event

    def wait_event(self, stream: Any, event: Any) -> None:
        """Queue the wait."""
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """Sleep until the event has happened."""
        event.synchronize()

    def copy(self, host: torch.Tensor, device: torch.Tensor, stream: Any) -> None:
        """Queue the copy. A source that is not contiguous is made so first, in memory of that stream."""
        with self._module.stream(stream):
            host.copy_(device, non_blocking=True)

    def keep(self, device: torch.Tensor, stream: Any) -> None:
        """Tell torch's allocator; memory of a CPU is left alone."""
        if device.device.type != "cpu":
            device.record_stream(stream)


def choose_backend(device: torch.device) -> Backend:
    """Return what belongs to a device."""
    return AcceleratorBackend(device) if device.type in ("cuda", "xpu") else HostBackend()


def torch_dtype(name: str) -> torch.dtype:
    """Return a dtype by its name without "torch."."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _empty(spec: BufferSpec, device: torch.device | str, *, pinned: bool = False) -> torch.Tensor:
    import torch

    # The device is named, since torch.set_default_device may have made it another one. A buffer that was made in
    # inference mode could not be written to outside of it.
    with torch.inference_mode(mode=False):
        return torch.empty(spec.shape, dtype=torch_dtype(spec.dtype), device=device, pin_memory=pinned)
