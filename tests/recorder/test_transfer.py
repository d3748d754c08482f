"""Slots: right values under every order that a device may choose, bounded memory, no waiting in the training thread."""

from __future__ import annotations

import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Dropout, dataset
from stand_in_accelerator import OnDevice, StandIn, Stream
from torch import nn

from dynome_recorder import Probe
from dynome_recorder.capture import transfer
from dynome_recorder.capture.backends import choose_backend
from dynome_recorder.capture.health import read_health
from dynome_recorder.capture.parameters import digest_state, hash_parameters, state_tensors, to_host_array
from dynome_recorder.capture.probe import call_model
from dynome_recorder.capture.probing import capture, site_specs
from dynome_recorder.capture.reductions import layout_site
from dynome_recorder.capture.transfer import AcceleratorBackend, BufferSpec, RecorderStopped, Slot, SlotPool
from dynome_recorder.errors import StorageError
from dynome_recorder.tracing.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")
KINDS = {
    "probe": {
        "a": BufferSpec((3, 4), "float32"),
        "b": BufferSpec((3, 2), "bfloat16"),
        "none": BufferSpec((0, 5), "float16"),
    },
    "batches": {"a": BufferSpec((5, 4), "float16"), "n": BufferSpec((), "int64")},
}
PARAMETERS = {
    "weight": BufferSpec((3, 3), "float32"),
    "mask": BufferSpec((2,), "bool"),
    "half": BufferSpec((4,), "bfloat16"),
}


@pytest.fixture(scope="module")
def writer() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def tensors(specs: dict[str, BufferSpec], number: int) -> dict[str, torch.Tensor]:
    """Values that no other snapshot has."""
    return {
        name: (torch.arange(max(1, int(np.prod(spec.shape)))) * 3 + 7 * number + place)[: int(np.prod(spec.shape))]
        .remainder(101)
        .reshape(spec.shape)
        .to(getattr(torch, spec.dtype))
        for place, (name, spec) in enumerate(specs.items())
    }


class Training:
    """A training loop in small: it fills slots, changes its parameters, and hands slots over in order."""

    def __init__(self, backend: StandIn, writer: ThreadPoolExecutor, budget: int) -> None:
        self.backend = backend
        self.writer = writer
        self.pool = SlotPool(budget, device=CPU, backend=backend)
        self.parameters = {name: backend.foreign(value) for name, value in tensors(PARAMETERS, 0).items()}
        self.values = tensors(PARAMETERS, 0)  # what they are in the order of the program
        self.open: list[tuple[Slot, str, Stream]] = []
        self.queue: list[tuple[Slot, dict[str, torch.Tensor], dict[str, int]]] = []
        self.count = 0

    def act(self, action: str, choice: int) -> None:
        self.count += 1
        self.backend.current = self.backend.streams[0]  # that of the parameters
        if action == "acquire":
            kind = sorted(KINDS)[choice % 2]
            slot = self.pool.acquire(KINDS[kind], block=False)
            if slot is not None:
                # Hooks run on whichever stream the user's forward pass has chosen.
                stream = self.backend.current = self.backend.streams[choice // 3 % 2]
                if choice % 4:  # the pass begins now, others may be filled before it ends
                    self.write(slot, tensors(slot.specs, 200 + self.count))
                self.open.append((slot, kind, stream))
        elif action == "fill" and self.open:
            slot, kind, self.backend.current = self.open.pop(choice % len(self.open))
            self.fill(slot, kind, rows=choice % 3 if choice % 5 == 0 else None)
        elif action == "spoil" and self.open:  # a pass that fails half way
            slot, _, self.backend.current = self.open.pop(choice % len(self.open))
            self.write(slot, tensors(slot.specs, 100 + self.count))
            self.writer.submit(slot.release).result() if choice % 2 else slot.release()
        elif action == "parameters":
            slot = self.pool.acquire(PARAMETERS, block=False)
            if slot is not None:
                slot.copy_from(self.parameters)
                self.hand_over(slot, {name: value.clone() for name, value in self.values.items()}, {})
        elif action == "optimize":
            changed = tensors(PARAMETERS, self.count)
            self.values = {name: value.clone() for name, value in changed.items()}
            for name, tensor in self.parameters.items():
                self.backend.launch(lambda target=tensor, value=changed[name]: target.copy_(value))
        elif action == "write" and self.queue:
            self.check(*self.queue.pop(0))
        elif action == "drop" and self.queue:  # the writer thread failed
            slot = self.queue.pop(0)[0]
            self.writer.submit(slot.release).result() if choice % 2 else slot.release()

    def fill(self, slot: Slot, kind: str, rows: int | None) -> None:
        expected = tensors(KINDS[kind], self.count)
        self.write(slot, expected)
        extras = {"a": self.count} if self.count % 2 else {}
        slot.extras.update({name: torch.tensor(value) for name, value in extras.items()})
        if rows is not None:
            rows_of = {name: rows for name in expected if expected[name].ndim}
            expected = {name: value[:rows] if name in rows_of else value for name, value in expected.items()}
            slot.send(rows_of)
        else:
            slot.send()
        self.hand_over(slot, expected, extras)

    def write(self, slot: Slot, values: dict[str, torch.Tensor]) -> None:
        first, second = self.backend.current, next(s for s in self.backend.streams if s is not self.backend.current)
        for name in slot.specs:
            self.backend.current = second if name == "b" else first  # a part of the model runs on a stream of its own
            alias = slot.targets[name].detach()
            self.backend.launch(lambda target=alias, value=values[name]: target.copy_(value))
        self.backend.current = self.backend.streams[self.count % 2]  # where the caller goes on

    def hand_over(self, slot: Slot, expected: dict[str, torch.Tensor], extras: dict[str, int]) -> None:
        self.pool.hand_over(slot)
        self.queue.append((slot, expected, extras))

    def check(self, slot: Slot, expected: dict[str, torch.Tensor], extras: dict[str, int]) -> None:
        def read() -> None:
            arrays = slot.arrays()
            assert list(arrays) == list(slot.specs)
            for name, value in expected.items():
                np.testing.assert_array_equal(arrays[name], to_host_array(value), err_msg=name)
            assert slot.extra_numbers() == extras
            slot.release()

        self.writer.submit(read).result()

    def end(self) -> None:
        """The recorder closes while copies are under way; then the rest is written."""
        for slot, *_ in self.open:
            slot.release()
        self.pool.stop()
        gc.collect(0)
        while self.queue:
            self.check(*self.queue.pop(0))
        self.backend.finish()
        assert self.pool.used_bytes == 0


ACTIONS = ("acquire", "fill", "fill", "spoil", "parameters", "optimize", "write", "write", "drop")


def run(seed: int, writer: ThreadPoolExecutor, *, without: str | None = None) -> StandIn:
    chance = random.Random(seed)
    backend = StandIn(seed, without=without)
    training = Training(backend, writer, budget=chance.choice([1, 700, 3000]))
    for _ in range(40):
        training.act(chance.choice(ACTIONS), chance.randrange(10))
    training.end()
    return backend


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    budget=st.sampled_from([1, 700, 3000]),
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=40),
)
def test_every_order_that_events_allow_gives_the_values_of_the_program(seed: int, budget: int, actions) -> None:
    with ThreadPoolExecutor(1) as writer:
        training = Training(StandIn(seed), writer, budget)
        for action, choice in actions:
            training.act(action, choice)
            assert training.pool.used_bytes <= max(budget, training.pool.peak_bytes)
        training.end()


def test_no_wait_event_or_kept_memory_is_superfluous(writer: ThreadPoolExecutor) -> None:
    """Left out one by one, every one of them gives wrong values in some order; with all of them, none does."""
    places: set[str] = set()
    for seed in range(300):
        places |= set(run(seed, writer).places)
    kinds = [place.split()[0] for place in places]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "keep": 2,
        "record_event": 4,
        "synchronize": 1,
        "wait_event": 3,
    }
    for place in sorted(places):
        assert any(_goes_wrong(seed, writer, place) for seed in range(400)), f"not needed: {place}"


def _goes_wrong(seed: int, writer: ThreadPoolExecutor, place: str) -> bool:
    try:
        run(seed, writer, without=place)
    except AssertionError:
        return True
    return False


def test_the_training_thread_may_not_read_a_slot(writer: ThreadPoolExecutor) -> None:
    backend = StandIn(0)
    pool = SlotPool(1000, device=CPU, backend=backend)
    slot = pool.acquire(KINDS["probe"], block=True)
    slot.send()
    with pytest.raises(AssertionError, match="the training thread waits"):
        slot.arrays()
    assert set(writer.submit(slot.arrays).result()) == {"a", "b", "none"}


# The probe on a device


def _layouts(dtype: str) -> list:
    return [
        layout_site(Site("2", "2", 0, "ReLU"), output_shape=(16,), native_dtype="float32", reduction=None, dtype=dtype),
        layout_site(
            Site("5", "5", 0, "Tanh"), output_shape=(12,), native_dtype="float32", reduction=None, dtype="native"
        ),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_the_probe_runs_on_a_device_without_waiting_for_it(seed: int, writer: ThreadPoolExecutor) -> None:
    model, probe = Dropout().train(), Probe(dataset(), size=24, seed=3, batch_size=10)
    with torch.no_grad():
        model[1].bias[0] = float("inf")
        model[1].bias[1] = 1e30
    layouts = _layouts("float16")
    reference = SlotPool(0, device=CPU).acquire(site_specs(layouts, 24), block=True)
    capture(model, layouts, probe=probe, forward=call_model, slot=reference)
    reference.send()
    health = read_health(reference)
    backend = StandIn(seed)
    pool = SlotPool(10**6, device=CPU, backend=backend)
    slots = []
    with OnDevice(backend) as device:
        for _ in range(3):
            slot = pool.acquire(site_specs(layouts, 24), block=False)
            capture(model, layouts, probe=probe, forward=call_model, slot=slot)
            slot.send()
            slots.append(slot)
    assert device.late_copies == 3 * 2 * 3
    assert backend.device_allocations == 2, "staging memory is used again"
    for slot in slots:
        found = writer.submit(slot.arrays).result()
        for name, values in reference.arrays().items():
            np.testing.assert_array_equal(found[name], values)
        assert writer.submit(read_health, slot).result() == health
    assert health["2"]["inf"] == 24
    assert health["2"]["overflow"] == 24


# The pool


def fill(slot: Slot) -> Slot:
    slot.send()
    return slot


@pytest.mark.parametrize("on_device", [False, True])
def test_memory_is_flat_over_a_hundred_snapshots(on_device: bool, writer: ThreadPoolExecutor) -> None:
    backend = StandIn(1) if on_device else _Counting()
    specs = {
        name: {"a": BufferSpec((rows, 50), "float32")} for name, rows in (("probe", 40), ("batches", 9), ("w", 25))
    }
    total = sum(spec["a"].nbytes for spec in specs.values())
    pool = SlotPool(2 * total + 1000, device=CPU, backend=backend)
    flat = None
    waiting: list[Slot] = []
    for number in range(100):
        for kind in specs.values():
            slot = pool.acquire(kind, block=False)
            assert slot is not None
            slot.targets["a"]
            pool.hand_over(fill(slot))
            waiting.append(slot)
        while len(waiting) > 3:  # two snapshots of each under way
            first = waiting.pop(0)
            writer.submit(first.arrays).result()
            first.release()
        if number == 3:
            flat = (backend.host_allocations, backend.device_allocations, backend.host_bytes)
    assert (backend.host_allocations, backend.device_allocations, backend.host_bytes) == flat
    assert backend.peak_host_bytes <= pool.budget_bytes


class _Counting(type(choose_backend(CPU))):  # type: ignore[misc]
    def __init__(self) -> None:
        self.host_bytes = self.peak_host_bytes = self.host_allocations = self.device_allocations = 0

    def allocate_host(self, spec: BufferSpec, *, pinned: bool) -> torch.Tensor:
        self.host_allocations += 1
        self.host_bytes += spec.nbytes
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
        return super().allocate_host(spec, pinned=pinned)


def test_memory_of_other_sizes_makes_room() -> None:
    backend = StandIn(0)
    pool = SlotPool(10_000, device=CPU, backend=backend)
    for size in (4000, 5000, 6000, 7000, 4000, 9000):
        pool.acquire({"a": BufferSpec((size,), "uint8")}, block=False).release()
        assert backend.host_bytes <= 10_000
    big = pool.acquire({"a": BufferSpec((50_000,), "uint8")}, block=False)  # alone, it may
    assert big is not None
    big.release()
    pool.acquire({"a": BufferSpec((100,), "uint8")}, block=False).release()
    assert backend.host_bytes <= 10_000


def spec_of(nbytes: int) -> dict[str, BufferSpec]:
    return {"a": BufferSpec((nbytes,), "uint8")}


def test_a_full_pool_skips_or_waits_until_a_slot_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SLICE", 20)
    pool = SlotPool(1000, device=CPU)
    first = pool.acquire(spec_of(600), block=True)
    assert pool.acquire(spec_of(600), block=True) is not None, "nobody waits for slots of the same moment"
    pool.hand_over(first)
    assert not pool.idle
    assert pool.acquire(spec_of(600), block=False) is None
    timer = threading.Timer(0.15, first.release)
    timer.start()
    started = time.perf_counter()
    found = pool.acquire(spec_of(100), block=True)
    timer.join()
    assert found is not None
    assert 0.1 < time.perf_counter() - started < 10
    assert pool.waited_seconds > 0.1
    assert pool.idle


def test_slots_of_one_moment_never_wait_for_each_other() -> None:
    pool = SlotPool(1000, device=CPU)
    slots = [pool.acquire(spec_of(900), block=True) for _ in range(3)]
    assert None not in slots
    for slot in slots:
        slot.release()
    assert pool.used_bytes == 0


def test_stop_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SLICE", 20)
    started = time.perf_counter()
    pool = SlotPool(1000, device=CPU)
    pool.hand_over(fill(pool.acquire(spec_of(900), block=True)))
    threading.Timer(0.1, pool.stop).start()
    with pytest.raises(RecorderStopped, match="stopped writing") as caught:
        pool.acquire(spec_of(900), block=True)
    assert isinstance(caught.value, StorageError)
    assert time.perf_counter() - started < 10
    with pytest.raises(RecorderStopped):
        pool.acquire(spec_of(1), block=False)


def test_a_killed_writer_ends_the_waiting() -> None:
    pool = SlotPool(1000, device=CPU)
    pool.hand_over(fill(pool.acquire(spec_of(900), block=True)))
    with pytest.raises(StorageError, match="was killed"):
        pool.acquire(spec_of(900), block=True, failure=lambda: StorageError("the thread was killed"))


def test_release_and_hand_over_in_any_order() -> None:
    pool = SlotPool(1000, device=CPU)
    slot = fill(pool.acquire(spec_of(900), block=True))
    slot.release()
    pool.hand_over(slot)  # the writer thread was faster
    slot.release()
    assert pool.idle
    assert pool.used_bytes == 0
    again = pool.acquire(spec_of(900), block=True)
    slot.release()  # gives back nothing of the one that has its memory now
    assert pool.used_bytes == again.nbytes


def test_many_threads_share_the_budget() -> None:
    pool = SlotPool(4000, device=CPU)
    problems: list[str] = []

    def write(slots: list[Slot], numbers: list[int]) -> None:
        while numbers or slots:
            if slots:
                slot = slots.pop(0)
                if len(set(slot.arrays()["a"].tolist())) != 1:
                    problems.append("torn")
                slot.release()
            else:
                time.sleep(0)

    slots: list[Slot] = []
    numbers = list(range(300))
    thread = threading.Thread(target=write, args=(slots, numbers))
    thread.start()
    while numbers:
        slot = pool.acquire(spec_of(900), block=True)
        slot.targets["a"].fill_(numbers[-1] % 251)
        slot.send()
        pool.hand_over(slot)
        slots.append(slot)
        numbers.pop()
    thread.join()
    assert problems == []
    assert pool.peak_bytes <= 4000
    assert pool.used_bytes == 0


def test_a_slot_that_was_not_sent_cannot_be_read() -> None:
    slot = SlotPool(1000, device=CPU).acquire(KINDS["probe"], block=True)
    with pytest.raises(RuntimeError, match="must be sent"):
        slot.arrays()
    late = slot.targets
    slot.send()
    slot.release()
    with pytest.raises(RuntimeError, match="released before"):
        slot.arrays()
    assert late == {}, "a hook that comes late writes to nobody's memory"


def test_a_model_that_changed_since_it_was_planned_is_refused() -> None:
    pool = SlotPool(1000, device=CPU)
    for changed in (
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(3, 3, dtype=torch.float64)},
        {"other": torch.zeros(3, 3)},
    ):
        slot = pool.acquire({"weight": BufferSpec((3, 3), "float32")}, block=True)
        with pytest.raises(ValueError, match=r"(weight|other): is .*; the model has changed"):
            slot.copy_from(changed)
        slot.release()


def test_extras_of_a_cpu_and_rows_that_hold_something() -> None:
    slot = SlotPool(1000, device=CPU).acquire(KINDS["probe"], block=True)
    slot.targets["a"].copy_(torch.arange(12.0).reshape(3, 4))
    slot.extras["a"] = torch.tensor(5)
    slot.send(2)
    assert slot.extra_numbers() == {"a": 5}
    assert slot.arrays()["a"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_state_in_a_slot_is_the_state_of_that_moment() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    state = state_tensors(model)
    specs = {name: BufferSpec(tuple(value.shape), str(value.dtype)[6:]) for name, value in state.items()}
    slot = SlotPool(10**4, device=CPU).acquire(specs, block=True)
    expected = hash_parameters(model)
    slot.copy_from(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    dtypes = {name: spec.dtype for name, spec in specs.items()}
    assert digest_state(slot.arrays(), dtypes) == expected != hash_parameters(model)


def test_buffers_that_are_made_in_inference_mode_can_be_used_outside() -> None:
    pool = SlotPool(1000, device=CPU)
    with torch.inference_mode():
        slot = pool.acquire(KINDS["probe"], block=True)
    slot.targets["a"].copy_(torch.ones(3, 4))
    slot.send()
    assert slot.arrays()["a"].sum() == 12


# The device's own interface, as far as a machine without one can tell


def test_the_calls_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple] = []

    class Entered:
        def __init__(self, stream: object) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            log.append(("enter", self.stream))

        def __exit__(self, *error: object) -> None:
            log.append(("leave", self.stream))

    class Event:
        def __init__(self, **options: object) -> None:
            self.options = options

        def record(self, stream: object) -> None:
            log.append(("record", stream))

        def synchronize(self) -> None:
            log.append(("synchronize", self.options))

    module = SimpleNamespace(
        current_device=lambda: 2,
        Stream=lambda device: f"side of {device}",
        current_stream=lambda device: SimpleNamespace(wait_event=lambda event: log.append(("wait", device))),
        stream=Entered,
        Event=Event,
    )
    monkeypatch.setattr(torch, "cuda", module)
    backend = choose_backend(torch.device("cuda"))
    assert isinstance(backend, AcceleratorBackend)
    assert backend.device == torch.device("cuda", 2)
    event = backend.record_event(backend.side_stream())
    backend.wait_event(backend.current_stream(), event)
    backend.synchronize(event)
    host, device = torch.zeros(3), torch.arange(3.0)
    backend.copy(host, device, backend.side_stream())
    backend.keep(device, backend.side_stream())  # memory of a CPU needs nothing
    assert host.tolist() == [0, 1, 2]
    side = "side of cuda:2"
    assert log == [
        ("record", side),
        ("wait", torch.device("cuda", 2)),
        ("synchronize", {"blocking": True}),
        ("enter", side),
        ("leave", side),
    ]
