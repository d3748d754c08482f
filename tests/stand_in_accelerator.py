"""A stand-in for an accelerator: streams are queues of operations that run late, in any order that events allow.

What is "device memory" here are tensors of the CPU; what makes it a device is that nothing queued has happened until
the stand-in says so. An order is drawn by seed. Freed device memory is used again by the stream that it was allocated
on, as by torch's caching allocator: whatever still reads it finds garbage.
"""

from __future__ import annotations

import random
import sys
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dynome_recorder.capture.backends import BufferSpec, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

GARBAGE = 0xA5


class Operation:
    """One piece of work, an event or a wait: it may run once everything in ``after`` has."""

    def __init__(self, function: Callable[[], object] | None = None, after: tuple[Operation, ...] = ()) -> None:
        self.function = function
        self.after = after
        self.done = False


class Stream:
    def __init__(self) -> None:
        self.queue: list[Operation] = []
        self.last = Operation()
        self.last.done = True

    def add(self, operation: Operation) -> Operation:
        self.queue.append(operation)
        self.last = operation
        return operation

    @property
    def is_ready(self) -> bool:
        return bool(self.queue) and all(operation.done for operation in self.queue[0].after)


class StandIn:
    """A `Backend`. The thread that makes it is the one that trains, which must never wait for the device.

    Parameters
    ----------
    seed
        Of the order of operations.
    without
        A place in the code under test, as `places` names them, whose call is left out.
    """

    stages = True

    def __init__(self, seed: int, *, without: str | None = None) -> None:
        self.random = random.Random(seed)
        self.eager = self.random.choice([0.0, 0.05, 0.4, 0.9])
        self.favour = self.random.choice([0.02, 0.5, 0.98])  # how often the side stream goes first
        self.without = without
        self.places: Counter[str] = Counter()
        self.device = torch.device("cpu")
        self.training_thread = threading.get_ident()
        self.streams = [Stream(), Stream()]  # those of the training; it switches between them as it likes
        self.current, self.side = self.streams[0], Stream()
        self.device_storages: set[int] = set()
        self.kept: dict[int, list[Stream]] = {}
        self.host_bytes = self.peak_host_bytes = self.host_allocations = self.device_allocations = 0
        self.lock = threading.RLock()

    # The backend

    def allocate_device(self, spec: BufferSpec) -> torch.Tensor:
        self.device_allocations += 1
        return self.foreign(_garbage(spec))

    def allocate_host(self, spec: BufferSpec, *, pinned: bool) -> torch.Tensor:
        assert pinned
        self.host_allocations += 1
        self.host_bytes += spec.nbytes
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
        memory = _garbage(spec)
        weakref.finalize(memory, self._forget_host, spec.nbytes)
        return memory

    def current_stream(self) -> Stream:
        return self.current

    def side_stream(self) -> Stream:
        return self.side

    def record_event(self, stream: Stream) -> Operation:
        if self._is_left_out("record_event"):
            event = Operation()
            event.done = True
            return event
        with self.lock:
            event = stream.add(Operation())
        self._run_some()
        return event

    def wait_event(self, stream: Stream, event: Operation) -> None:
        if self._is_left_out("wait_event"):
            return
        with self.lock:
            stream.add(Operation(after=(event,)))
        self._run_some()

    def synchronize(self, event: Operation) -> None:
        if threading.get_ident() == self.training_thread:
            raise AssertionError("the training thread waits for the device")
        if self._is_left_out("synchronize"):
            return
        with self.lock:
            while not event.done:
                self._run_one()

    def copy(self, host: torch.Tensor, device: torch.Tensor, stream: Stream) -> None:
        source, target = device.detach(), host.detach()
        if not device._is_view() and device.untyped_storage().data_ptr() not in self.device_storages:
            self.foreign(device)
        with self.lock:
            stream.add(Operation(lambda: target.copy_(source)))
        self._run_some()

    def keep(self, device: torch.Tensor, stream: Stream) -> None:
        if not self._is_left_out("keep"):
            self.kept.setdefault(device.untyped_storage().data_ptr(), []).append(stream)

    # The device's other work

    def launch(self, function: Callable[[], object]) -> None:
        """Queue work of the training on its current stream."""
        with self.lock:
            self.current.add(Operation(function))
        self._run_some()

    def foreign(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take a tensor for device memory that was allocated on the current stream."""
        if tensor.numel():
            pointer = tensor.untyped_storage().data_ptr()
            self.device_storages.add(pointer)
            weakref.finalize(tensor, self._reuse, pointer, tensor.detach(), self.current).atexit = False
        return tensor

    def finish(self) -> None:
        """Let everything happen that was queued."""
        with self.lock:
            while any(stream.queue for stream in (*self.streams, self.side)):
                self._run_one()

    def _reuse(self, pointer: int, memory: torch.Tensor, stream: Stream) -> None:
        self.device_storages.discard(pointer)
        with self.lock:
            readers = tuple(kept.last for kept in self.kept.pop(pointer, []))
            stream.add(Operation(lambda: _spoil(memory), after=readers))

    def _forget_host(self, nbytes: int) -> None:
        self.host_bytes -= nbytes

    def _run_some(self) -> None:
        with self.lock:
            while self.random.random() < self.eager and any(stream.is_ready for stream in (*self.streams, self.side)):
                self._run_one()

    def _run_one(self) -> None:
        order = self.random.sample(self.streams, 2)
        order.insert(0 if self.random.random() < self.favour else 2, self.side)
        stream = next(stream for stream in order if stream.is_ready)
        operation = stream.queue.pop(0)
        if operation.function is not None:
            with _disable_current_modes(), torch.no_grad():
                operation.function()
        operation.done = True

    def _is_left_out(self, method: str) -> bool:
        caller = sys._getframe(2)
        if Path(caller.f_code.co_filename).name != "transfer.py":
            return False
        place = f"{method} in {caller.f_code.co_name}, line {caller.f_lineno - caller.f_code.co_firstlineno}"
        self.places[place] += 1
        return place == self.without


class OnDevice(TorchDispatchMode):
    """Inside, copies into device memory happen late, and nothing may be read from the device."""

    def __init__(self, backend: StandIn) -> None:
        super().__init__()
        self.backend = backend
        self.late_copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the training thread reads a value from the device")
        if func is torch.ops.aten.copy_.default:
            target, source = args[:2]
            if target.untyped_storage().data_ptr() in self.backend.device_storages:
                self.late_copies += 1
                values, alias = source.detach().clone(), target.detach()
                self.backend.launch(lambda: alias.copy_(values))
                return target
        return func(*args, **(kwargs or {}))


def _garbage(spec: BufferSpec) -> torch.Tensor:
    memory = torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
    _spoil(memory)
    return memory


def _spoil(memory: torch.Tensor) -> None:
    if memory.numel():
        memory.reshape(-1).view(torch.uint8).fill_(GARBAGE)
