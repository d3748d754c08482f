"""What the design takes for granted of Dask, xarray on Dask, and distributed, one test per fact.

A test that fails here after an update says that the library changed, not that Dynome is wrong: read what the docstring
says rests on the fact, change that, then the test.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.distributed import Client, LocalCluster
from recordings import write_recording
from zarr.storage import LocalStore

from dynome_analysis import open_recording

if TYPE_CHECKING:
    from pathlib import Path

VALUES = np.arange(1, 7, dtype="int64")


class MeetingStore(LocalStore):
    """The first two readers of ``c.0`` wait for each other, so that a partial write always meets another.

    Where nobody else comes, the wait ends after a while: then the writes were made one after the other.
    """

    arrived = 0
    patience = 10.0  # seconds

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        value = await super().get(key, prototype, byte_range)
        if key == "c.0":
            type(self).arrived += 1
            end = time.monotonic() + self.patience
            while self.arrived < 2 and time.monotonic() < end:
                await asyncio.sleep(0.001)
        return value


@pytest.fixture
def store(tmp_path: Path) -> MeetingStore:
    """An empty store in which partial writes of one chunk meet."""
    MeetingStore.arrived = 0
    return MeetingStore(tmp_path / "a.zarr")


NAMES = {"name": "default", "separator": "."}


def stored(store: MeetingStore) -> list[int]:
    """Return what is in the store."""
    return zarr.open_array(store.root, mode="r")[:].tolist()


def assert_half_is_lost(values: list[int]) -> None:
    """Assert that of two blocks of three values, one was overwritten with what was there before."""
    assert values in ([1, 2, 3, 0, 0, 0], [0, 0, 0, 4, 5, 6])


@pytest.mark.parametrize("layout", [{"chunks": (6,)}, {"chunks": (3,), "shards": (6,)}], ids=["chunks", "shards"])
def test_to_zarr_corrupts_what_is_not_aligned(store, layout):
    """Two blocks in one chunk or shard overwrite each other without a word: hence `write_aligned` and its guard."""
    source = da.from_array(VALUES, chunks=3)
    with dask.config.set(scheduler="threads", num_workers=2):
        da.to_zarr(source, store, chunk_key_encoding=NAMES, fill_value=0, **layout)
    assert_half_is_lost(stored(store))


@pytest.mark.parametrize("shards", [None, (6,)])
def test_store_without_a_lock_corrupts_what_is_not_aligned(store, shards):
    """`da.store(lock=False)` does the same: hence `store_blocks` looks at every block before it computes one."""
    chunks = (6,) if shards is None else (3,)
    target = zarr.create_array(
        store, shape=(6,), chunks=chunks, shards=shards, dtype="int64", chunk_key_encoding=NAMES, fill_value=0
    )
    with dask.config.set(scheduler="threads", num_workers=2):
        da.store(da.from_array(VALUES, chunks=3), target, lock=False)
    assert_half_is_lost(stored(store))


def test_to_zarr_into_an_existing_array_rechunks(store):
    """Given the array itself, Dask aligns the blocks. We do not lean on it: it gathers blocks, which costs memory."""
    store.patience = 0.2  # nobody else comes
    target = zarr.create_array(
        store, shape=(6,), chunks=(3,), shards=(6,), dtype="int64", chunk_key_encoding=NAMES, fill_value=0
    )
    with dask.config.set(scheduler="threads", num_workers=2):
        da.to_zarr(da.from_array(VALUES, chunks=3), target)
    assert stored(store) == VALUES.tolist()


def test_from_zarr_reads_by_inner_chunks(tmp_path):
    """`da.from_zarr` takes the inner chunks of a shard: a task each, and each reads the index. So we build our own."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=(4, 12), chunks=(1, 3), shards=(1, 12), dtype="float32")
    assert da.from_zarr(array).chunks == ((1,) * 4, (3,) * 4)
    assert da.from_zarr(array, chunks=array.shards).chunks == ((1,) * 4, (12,))


def test_open_zarr_reads_by_inner_chunks(tmp_path):
    """xarray does the same; `open_recording` gives one Dask chunk per snapshot, a whole file."""
    run = write_recording(tmp_path / "run", sites={"wide": 120_000}, samples=10, epochs=1, weights=False)
    inner = zarr.open_array(run / "store.zarr/probe/sites/wide/activation", mode="r").chunks
    assert inner[-1] < 120_000
    with xr.open_zarr(run / "store.zarr", group="probe/sites/wide", chunks={}) as dataset:
        assert dataset["activation"].chunks == ((1, 1), (10,), (inner[-1],) * (120_000 // inner[-1]))
    assert open_recording(run).activations().chunks == ((1, 1), (10,), (120_000,))


def test_a_tree_cannot_be_appended_to(tmp_path):
    """`DataTree.to_zarr(append_dim=)` is forbidden: the cache writes each array with zarr, the recorder by itself."""
    tree = xr.DataTree.from_dict({"a": xr.Dataset({"x": ("t", [1, 2])})})
    tree.to_zarr(tmp_path / "a.zarr", consolidated=False)
    with pytest.raises(NotImplementedError, match="append_dim"):
        tree.to_zarr(tmp_path / "a.zarr", mode="a", append_dim="t", consolidated=False)


def thread_name() -> str:
    """Return the name of the thread that calls."""
    return threading.current_thread().name


def test_workers_of_a_cluster_have_threads_of_another_name():
    """They are `NAME-Dask-Default-Threads-...`: who asks by name whether it is in a pool must know both names."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(thread_name).result().startswith("0-Dask-Default-Threads")
    with dask.config.set(scheduler="threads", num_workers=2):
        (name,) = dask.compute(dask.delayed(thread_name)())
    assert name.startswith("ThreadPoolExecutor")
