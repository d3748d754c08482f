"""The buffers that snapshots travel in: from the device to the host beside the training, which waits for nothing.

On an accelerator hooks copy into device buffers on the current stream; `Slot.send` lets a side stream copy these into
pinned host memory, and the writer thread waits for the event behind that. On a CPU hooks copy into the host buffers
themselves.

The rules to keep: what one stream wrote is read on another only behind an event; a device buffer is written again only
behind the event of the copy that read it; all copies run on one side stream; a host buffer that a copy may still write
to is never lent again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynome_recorder.capture.backends import (
    AcceleratorBackend,
    Backend,
    BufferSpec,
    HostBackend,
    choose_backend,
    torch_dtype,
)
from dynome_recorder.capture.parameters import to_host_array
from dynome_recorder.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

__all__ = ["AcceleratorBackend", "Backend", "BufferSpec", "HostBackend", "RecorderStopped", "Slot", "SlotPool"]

SLICE = 0.1
"""Seconds after which a training thread that waits looks whether somebody is still there to give a buffer back."""

_ALIGNMENT = 64  # bytes: a cache line, and a multiple of every item size


class RecorderStopped(StorageError):
    """Nothing is written any more, hence no buffers are lent."""


class Slot:
    """The buffers of one snapshot of one stream, lent by a `SlotPool` until `release`.

    The training thread fills it, through `targets` and `send` or through `copy_from`; the writer thread reads it.

    Attributes
    ----------
    specs
        What it holds, by name.
    extras
        Whole numbers that travel along, such as counts of infinities: tensors of one element, on whichever device. Put
        them in before `send`; at most one per spec.
    nbytes
        Bytes of host memory.
    """

    def __init__(self, pool: SlotPool, specs: Mapping[str, BufferSpec], memory: torch.Tensor) -> None:
        self.specs = dict(specs)
        self.extras: dict[str, torch.Tensor] = {}
        self.nbytes = memory.numel()
        self._pool = pool
        self._backend = pool.backend
        self._memory: torch.Tensor | None = memory
        self._extra_host: torch.Tensor | None
        self._hosts, self._extra_host = _carve(memory, self.specs)
        self._extra_names: list[str] = []
        self._staging: _Staging | None = None
        self._streams: list[Any] = []  # those that write to the targets
        self._rows: int | Mapping[str, int] | None = None
        self._event: Any = None
        self._filled = self._landed = False

    @property
    def stages(self) -> bool:
        """Whether the targets are in device memory, so that nobody may wait for what is written there."""
        return self._backend.stages

    @property
    def targets(self) -> dict[str, torch.Tensor]:
        """Where hooks copy to: by name, of the spec's shape and dtype, uninitialised.

        Ask for it on every stream that writes: that stream waits for an earlier copy, and `send` waits for that stream.
        """
        if not self._backend.stages:
            return self._hosts
        if self._staging is None:
            self._staging = self._pool._lend_staging(self.specs)
        current = self._backend.current_stream()
        if current not in self._streams:
            self._streams.append(current)
            for event in self._staging.used:
                self._backend.wait_event(current, event)
        return self._staging.buffers

    def send(self, rows: int | Mapping[str, int] | None = None) -> None:
        """Start the way of the targets to the host, behind everything that their streams were given so far.

        Parameters
        ----------
        rows
            How many leading rows hold anything, for all buffers or by name; `arrays` returns no others. None: all.

        Notes
        -----
        Never waits. On a CPU there is nothing to do.
        """
        self._filled, self._rows = True, rows
        if not self._backend.stages:
            return
        targets, side = self.targets, self._side_stream()
        for name, target in targets.items():
            self._backend.copy(_leading(self._hosts[name], rows, name), _leading(target, rows, name), side)
        self._event = self._backend.record_event(side)
        self._return_staging([self._event])

    def copy_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy tensors of the training itself, such as parameters, with no memory on the device.

        The current stream waits for the copies: what the optimizer does next cannot change what is recorded. The caller
        waits only on a CPU, for the copies themselves.

        Parameters
        ----------
        tensors
            One for every spec, of its shape and dtype.

        Raises
        ------
        ValueError
            If names, shapes or dtypes are not those of the specs: the model has changed since it was planned.
        """
        self._check(tensors)
        self._filled = True
        sources = {name: self._pool._bring(tensor.detach()) for name, tensor in tensors.items()}
        self._streams.append(self._backend.current_stream())
        side = self._side_stream()
        for name, source in sources.items():
            self._backend.copy(self._hosts[name], source, side)
        self._event = self._backend.record_event(side)
        # Whoever lets go of a source does so behind this wait: the allocator need not know of the side stream.
        self._backend.wait_event(self._backend.current_stream(), self._event)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait for the copies and return the arrays by name; for the writer thread.

        They share the slot's memory: valid until `release`. A dtype that numpy lacks comes as its bit pattern, bfloat16
        in uint16.

        Raises
        ------
        RuntimeError
            If the slot was neither sent nor copied to.
        """
        self._wait()
        return {name: to_host_array(_leading(host, self._rows, name)) for name, host in self._hosts.items()}

    def extra_numbers(self) -> dict[str, int]:
        """Wait for the copies and return the extras; for the writer thread."""
        self._wait()
        if self._extra_names and self._extra_host is not None:
            return dict(zip(self._extra_names, self._extra_host.tolist(), strict=False))
        return {name: int(value) for name, value in self.extras.items()}

    def release(self) -> None:
        """Give the buffers back, from any thread and without waiting; a second time does nothing."""
        self._pool._take_back(self)

    def _side_stream(self) -> Any:
        """Return the side stream, behind what the slot's streams were given so far, with the extras on their way."""
        backend = self._backend
        side = backend.side_stream()
        extras = self._pool._gather(self.extras) if self.extras and backend.stages else None
        for stream in self._streams:
            backend.wait_event(side, backend.record_event(stream))
        if extras is not None and self._extra_host is not None:
            self._extra_names = list(self.extras)
            backend.copy(self._extra_host[: len(extras)], extras, side)
            backend.keep(extras, side)
        return side

    def _return_staging(self, used: list[Any]) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.used = used
            self._pool._return_staging(staging)

    def _give_up(self) -> torch.Tensor:
        """Return the memory and let go of it: hooks that come late find no buffer, instead of another snapshot's."""
        memory = self._memory
        assert memory is not None
        self._memory = self._extra_host = None
        self._hosts.clear()
        return memory

    def _wait(self) -> None:
        if self._memory is None:
            raise RuntimeError("a slot was released before it was read")
        if not self._filled:
            raise RuntimeError("a slot must be sent, or copied to, before it is read")
        if not self._landed:
            self._backend.synchronize(self._event)
            self._landed = True

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        found = {
            name: BufferSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        }
        if found != self.specs:
            name = next(name for name in {**self.specs, **found} if found.get(name) != self.specs.get(name))
            raise ValueError(f"{name}: is {found.get(name)}, planned was {self.specs.get(name)}; the model has changed")


@dataclass
class _Staging:
    """Device buffers of one kind of snapshot; they are lent by the pool to one slot at a time.

    Attributes
    ----------
    used
        Events behind whatever read them or wrote to them for the slot before.
    """

    key: frozenset[tuple[str, BufferSpec]]
    buffers: dict[str, torch.Tensor]
    used: list[Any] = field(default_factory=list)


class SlotPool:
    """Lends slots, bounded in bytes over all streams; host memory is used again.

    Parameters
    ----------
    budget_bytes
        Most bytes of host memory, lent and kept together. A snapshot that is larger than that, or that does not fit
        beside what the caller itself holds, is lent all the same where nobody else's slots are out.
    device
        Where the model is.
    backend
        What belongs to the device where None.

    Attributes
    ----------
    used_bytes, peak_bytes
        Bytes lent now, and the most at any time.
    waited_seconds
        How long `acquire` blocked, in all.

    Notes
    -----
    Fresh memory costs a page fault per 4 KiB at its first write, more than the copy itself, and pinned memory a call
    that stops the device: so memory is kept. Device buffers exist once per kind of snapshot (twice where two of a kind
    are filled at once); they are not part of the budget.
    """

    def __init__(self, budget_bytes: int, *, device: torch.device, backend: Backend | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.device = device
        self.backend: Backend = backend if backend is not None else choose_backend(device)
        self.used_bytes = self.peak_bytes = 0
        self.waited_seconds = 0.0
        self._lent: set[Slot] = set()
        self._handed_over: set[Slot] = set()
        self._kept: list[torch.Tensor] = []  # host memory that is not lent, the oldest first
        self._staging: list[_Staging] = []  # device buffers that are not lent
        # Reentrant: what a signal handler calls may come in the middle of anything here.
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False

    def acquire(
        self,
        specs: Mapping[str, BufferSpec],
        *,
        block: bool,
        failure: Callable[[], BaseException | None] = lambda: None,
    ) -> Slot | None:
        """Lend a slot; None where the budget is used up and ``block`` is False.

        It waits, and gives None, only while slots are out that were handed over (`hand_over`): nobody waits for slots
        of the moment that is just being put together.

        Parameters
        ----------
        specs
            What the slot is to hold, by name.
        block
            Whether to wait for slots that come back.
        failure
            Asked ten times a second while waiting; an error that it returns is raised.

        Raises
        ------
        RecorderStopped
            After `stop`, also while it waits.
        """
        nbytes = _layout_bytes(specs)
        with self._changed:
            if not self._stopped and self._handed_over and self.used_bytes + nbytes > self.budget_bytes:
                if not block:
                    return None
                self._wait_for(nbytes, failure)
            if self._stopped:
                raise RecorderStopped("the recorder has stopped writing, so no further snapshot is taken.")
            slot = Slot(self, specs, self._find_memory(nbytes))
            self._lent.add(slot)
            self.used_bytes += nbytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            return slot

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written: all slots that were handed over have come back."""
        return not self._handed_over

    def hand_over(self, slot: Slot) -> None:
        """Note that somebody else releases a slot from now on: the writer thread. Call it where a moment is submitted.

        Before or after that, since a slot that came back already stays back.
        """
        with self._changed:
            if slot in self._lent:
                self._handed_over.add(slot)

    def stop(self) -> None:
        """Lend nothing more, wake whoever waits, and let all memory go that is not lent."""
        with self._changed:
            self._stopped = True
            self._kept.clear()
            self._staging.clear()
            self._changed.notify_all()

    def _wait_for(self, nbytes: int, failure: Callable[[], BaseException | None]) -> None:
        started = time.perf_counter()
        try:
            while not self._stopped and self._handed_over and self.used_bytes + nbytes > self.budget_bytes:
                # In slices, since a writer thread that was killed notifies nobody.
                if not self._changed.wait(SLICE) and (error := failure()) is not None:
                    raise error
        finally:
            self.waited_seconds += time.perf_counter() - started

    def _find_memory(self, nbytes: int) -> torch.Tensor:
        """Return kept memory of that size, or new memory, for which the oldest that is kept makes room."""
        for number, memory in enumerate(self._kept):
            if memory.numel() == nbytes:
                return self._kept.pop(number)
        kept = sum(memory.numel() for memory in self._kept)
        while self._kept and self.used_bytes + kept + nbytes > self.budget_bytes:
            kept -= self._kept.pop(0).numel()
        return self.backend.allocate_host(BufferSpec((nbytes,), "uint8"), pinned=self.backend.stages)

    def _take_back(self, slot: Slot) -> None:
        with self._changed:
            if slot not in self._lent:
                return
            self._lent.remove(slot)
            self._handed_over.discard(slot)
            self.used_bytes -= slot.nbytes
            if slot._staging is not None:  # never sent: the next writes must stand behind those of its hooks
                slot._return_staging([self.backend.record_event(stream) for stream in slot._streams])
            # Where nobody waited for the copies they may be under way: torch keeps such memory until they are done.
            memory = slot._give_up()
            if not self._stopped and (slot._landed or slot._event is None):
                self._kept.append(memory)
            self._changed.notify_all()

    def _lend_staging(self, specs: Mapping[str, BufferSpec]) -> _Staging:
        """Return device buffers; whoever writes to them waits for ``used``."""
        key = frozenset(specs.items())
        with self._changed:
            found = next((staging for staging in self._staging if staging.key == key), None)
            if found is not None:
                self._staging.remove(found)
                return found
        buffers = {name: self.backend.allocate_device(spec) for name, spec in specs.items()}
        for buffer in buffers.values():
            self.backend.keep(buffer, self.backend.side_stream())
        return _Staging(key, buffers)

    def _return_staging(self, staging: _Staging) -> None:
        with self._changed:
            if not self._stopped:
                self._staging.append(staging)

    def _bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of another accelerator on this one, where the side stream can read it in order."""
        here = not self.backend.stages or tensor.device.type == "cpu" or tensor.device.index == self._index()
        return tensor if here else tensor.to(self.device)

    def _index(self) -> int | None:
        return getattr(self.backend, "device", self.device).index

    def _gather(self, extras: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return whole numbers of one element each as one int64 tensor on the device."""
        import torch

        with torch.no_grad():
            return torch.stack([self._bring(value.detach()).reshape(()).to(torch.int64) for value in extras.values()])


def _offsets(specs: Mapping[str, BufferSpec]) -> tuple[dict[str, int], int]:
    """Return where each buffer begins in a slot's memory, and where the extras do."""
    offsets, end = {}, 0
    for name, spec in specs.items():
        offsets[name] = end
        end += -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _layout_bytes(specs: Mapping[str, BufferSpec]) -> int:
    return _offsets(specs)[1] + 8 * len(specs)


def _carve(memory: torch.Tensor, specs: Mapping[str, BufferSpec]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the buffers of a slot's memory by name, and that of the extras (int64)."""
    import torch

    offsets, end = _offsets(specs)
    with torch.inference_mode(mode=False):  # what is made in that mode could not be written to outside of it
        hosts = {
            name: memory[offsets[name] : offsets[name] + spec.nbytes].view(torch_dtype(spec.dtype)).view(spec.shape)
            for name, spec in specs.items()
        }
        return hosts, memory[end:].view(torch.int64)


def _leading(buffer: torch.Tensor, rows: int | Mapping[str, int] | None, name: str) -> torch.Tensor:
    count = rows.get(name) if isinstance(rows, Mapping) else rows
    return buffer if count is None else buffer[:count]
