"""A model's state: which tensors it has, one digest for the model and for its copy on the host, what is refused."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import Convolution, Shared
from torch import nn

from dynome_recorder import InvalidArgumentError, Probe, Recorder, every
from dynome_recorder.capture import parameters
from dynome_recorder.capture.parameters import (
    check_plain_parameters,
    digest_state,
    hash_parameters,
    state_tensors,
    to_host_array,
)
from dynome_recorder.capture.transfer import BufferSpec, SlotPool

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "bool", "uint8", "complex64", "float8_e4m3fn"]


def digest_through_a_slot(model: nn.Module) -> str:
    state = state_tensors(model)
    specs = {name: BufferSpec(tuple(value.shape), str(value.dtype)[6:]) for name, value in state.items()}
    slot = SlotPool(10**6, device=torch.device("cpu")).acquire(specs, block=True)
    slot.copy_from(state)
    return digest_state(slot.arrays(), {name: spec.dtype for name, spec in specs.items()})


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Modules in modules, with tensors of any dtype, shape and layout, tied ones, unsaved ones, and empty places."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kept: list[torch.Tensor] = []

    def tensor() -> torch.Tensor:
        if kept and draw(st.booleans()):
            return draw(st.sampled_from(kept))
        shape = draw(st.sampled_from([(), (0, 3), (1,), (4, 3), (2, 3, 2)]))
        bits = torch.randint(0, 255, (int(np.prod(shape)) * 16,), generator=generator, dtype=torch.uint8)
        dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
        if dtype is torch.bool:
            bits %= 2
        made = bits.view(dtype)[: int(np.prod(shape))].reshape(shape)
        made = made.transpose(0, -1) if made.ndim > 1 and draw(st.booleans()) else made
        kept.append(made)
        return made

    def module(depth: int) -> nn.Module:
        made = nn.Module()
        for number in range(draw(st.integers(0, 3))):
            values, name = tensor(), f"t{number}"
            kind = draw(st.sampled_from(["parameter", "buffer", "unsaved", "nothing"]))
            if kind == "parameter":
                made.register_parameter(name, nn.Parameter(values, requires_grad=False))
            elif kind == "nothing":
                made.register_buffer(name, None)
            else:
                made.register_buffer(name, values, persistent=kind == "buffer")
        for number in range(draw(st.integers(0, 2)) if depth else 0):
            made.add_module(f"m{number}", module(depth - 1))
        return made

    return module(2)


@settings(deadline=None, max_examples=60)
@given(models())
def test_the_digest_of_the_copy_is_that_of_the_model(model: nn.Module) -> None:
    digest = hash_parameters(model)
    assert digest_through_a_slot(model) == digest
    assert hash_parameters(copy.deepcopy(model)) == digest
    saved = model.state_dict()
    state = state_tensors(model)
    assert set(state) <= set(saved)
    # All that a checkpoint holds is there, under one name at least.
    pointers = {value.data_ptr() for value in state.values() if value.numel()}
    assert {value.data_ptr() for value in saved.values() if value.numel()} <= pointers
    for name, value in state.items():  # every bit counts, of every tensor
        if value.numel() == 0 or value.dtype is torch.bool:
            continue
        position = tuple(0 for _ in value.shape)
        flat = value.detach()[position].reshape(1).clone()
        flat.view(torch.uint8)[0] ^= 1
        before = value.detach().clone()
        with torch.no_grad():
            _bits(value)[position] = _bits(flat).reshape(())
        assert hash_parameters(model) != digest, name
        with torch.no_grad():
            _bits(value).copy_(_bits(before))
    assert hash_parameters(model) == digest


def _bits(value: torch.Tensor) -> torch.Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.detach().view(kinds[value.dtype.itemsize])


def test_tied_parameters_come_once_under_their_first_name() -> None:
    assert list(state_tensors(Shared())) == [
        "first.weight", "first.bias", "shared.weight", "shared.bias", "last.weight", "last.bias",
    ]  # fmt: skip


def test_hash_is_the_documented_digest_of_parameters_and_saved_buffers() -> None:
    model = Convolution()
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    lines = ""
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n != "cache")]
    for name, value in named:
        array = value.detach().numpy()
        lines += f"{name} {array.dtype.name} {array.shape} {google_crc32c.value(array.tobytes()):08x}\n"
    assert hash_parameters(model) == hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def test_hash_changes_with_one_bit_of_any_parameter_or_buffer_and_not_with_the_cache() -> None:
    model = Convolution()
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    before = hash_parameters(model)
    model.cache.add_(1)
    assert hash_parameters(model) == before
    for name in ("head.weight", "norm1.running_mean", "norm1.num_batches_tracked"):
        changed = copy.deepcopy(model)
        tensor = state_tensors(changed)[name]
        with torch.no_grad():
            flat = tensor.view(-1)
            flat[0] = torch.nextafter(flat[0], torch.tensor(9.0)) if tensor.is_floating_point() else flat[0] + 1
        assert hash_parameters(changed) != before


def test_a_checksum_in_pieces_is_the_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 255, 5000, dtype=np.uint8)
    for piece in (1, 7, 1024, 5000, 10**6):
        monkeypatch.setattr(parameters, "_PIECE", piece)
        assert parameters._checksum(values.reshape(50, 100)) == google_crc32c.value(values.tobytes())


def test_other_threads_run_while_a_large_state_is_digested() -> None:
    values = {"w": np.zeros(2**27, np.uint8)}  # 20 ms and more
    ticks: list[float] = []
    thread = threading.Thread(target=digest_state, args=(values, {"w": "uint8"}))
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0)
    assert len(ticks) > 50, "the interpreter was held"


def test_bits_of_types_that_numpy_lacks() -> None:
    for dtype, kind in ((torch.bfloat16, np.uint16), (torch.float8_e5m2, np.uint8)):
        values = torch.arange(6.0).reshape(2, 3).to(dtype)
        array = to_host_array(values.T)
        assert array.dtype == kind
        assert array.shape == (3, 2)
        assert torch.equal(torch.from_numpy(array).view(dtype).float(), values.T.float())


def test_sharded_models_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plain_parameters(Convolution())

    class FullyShardedDataParallel(nn.Module):
        pass

    class FSDPModule:
        pass

    class FSDPLinear(FSDPModule, nn.Linear):
        pass

    wrapped = nn.Sequential(nn.Linear(2, 2), FullyShardedDataParallel())
    with pytest.raises(InvalidArgumentError, match=r"'1' is sharded by FullyShardedDataParallel.*DistributedDataPar"):
        check_plain_parameters(wrapped)
    with pytest.raises(InvalidArgumentError, match="model: the model is sharded by FSDPModule"):
        check_plain_parameters(FSDPLinear(2, 2))


def test_a_real_dtensor_is_refused() -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 2)
        model.weight = nn.Parameter(DTensor.from_local(torch.zeros(2, 2), mesh))
        with pytest.raises(InvalidArgumentError, match="'weight' is a DTensor"):
            check_plain_parameters(model)
        from torch.distributed.fsdp import fully_shard

        sharded = fully_shard(nn.Linear(2, 2), mesh=mesh)
        with pytest.raises(InvalidArgumentError, match="is sharded by FSDPModule"):
            check_plain_parameters(sharded)
    finally:
        distributed.destroy_process_group()


SPARSE = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR) tensor support")
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_tensors_are_part_of_the_state(kind: str) -> None:
    def make() -> nn.Module:
        model = nn.Module()
        model.first = nn.Parameter(torch.ones(3))
        model.register_buffer("adjacency", SPARSE[kind]())
        return model

    model = make()
    assert "adjacency.values" in state_tensors(model)
    assert digest_through_a_slot(model) == hash_parameters(model) == hash_parameters(make())
    model.adjacency.values().mul_(2) if kind != "coo" else model.adjacency.mul_(2)
    assert hash_parameters(model) != hash_parameters(make())


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR) tensor support")
@pytest.mark.parametrize("kind", SPARSE)
def test_a_graph_network_with_a_sparse_buffer_is_recorded(kind: str, tmp_path: Path) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act, self.head = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)
            self.register_buffer("adjacency", SPARSE[kind]())

        def forward(self, nodes: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.linear(self.adjacency.to_dense() @ nodes)))

    model, probe = Graph(), Probe(torch.randn(4, 3), transductive=True)
    for epochs in (1, 2):
        with Recorder(tmp_path / "run", model, probe=probe, strict=True, weights=every(epochs=1)) as recorder:
            assert list(recorder.epochs(epochs)) == [epochs]


def test_sparse_weights_are_refused_before_training(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model.register_parameter("sparse", nn.Parameter(torch.eye(3).to_sparse()))
    probe = Probe(torch.randn(4, 3))
    with Recorder(tmp_path / "run", model, probe=probe) as recorder:
        assert list(recorder.epochs(1)) == [1]
    recorder = Recorder(tmp_path / "other", model, probe=probe, weights=every(epochs=1))
    with pytest.raises(
        InvalidArgumentError, match=r"parameter 'sparse' is sparse_coo; only dense .* leave weights= out"
    ):
        recorder.plan()


def test_a_parameter_without_values_has_nothing_to_record(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3)))
    probe = Probe(torch.randn(4, 3))
    with Recorder(tmp_path / "run", model, probe=probe, weights=every(epochs=1), strict=True) as recorder:
        assert list(recorder.epochs(1)) == [1]
        assert [weight.name for weight in recorder.plan().weights] == ["0.weight", "0.bias", "2.weight", "2.bias"]
