"""What the design takes for granted of zarr, xarray and other readers of Zarr, one test per fact.

A test that fails here after an update says that the library changed, not that Dynome is wrong: read what the docstring
says rests on the fact, change that, then the test. Only public names are used where there are any.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from packaging.version import Version
from recordings import write_recording
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.array import AsyncArray
from zarr.errors import UnstableSpecificationWarning, ZarrUserWarning
from zarr.storage import LocalStore

from dynome_recorder.storage.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def create(path: Path | LocalStore, shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> zarr.Array:
    """Create a float32 array of fill value 0, with plain chunk names."""
    encoding = {"name": "default", "configuration": {"separator": "."}}
    options = {"dtype": "float32", "fill_value": 0, "chunk_key_encoding": encoding} | options
    return zarr.create_array(path, shape=shape, chunks=chunks, **options)


def relu_output(*, dtype: str = "float32") -> np.ndarray:
    """Return what a layer behind a ReLU gives, (sample, unit)."""
    return np.maximum(np.random.default_rng(0).normal(size=(256, 64)), 0).astype(dtype)


def test_the_installed_zarr_is_one_that_renames():
    """Floor 3.1.3: before it, LocalStore wrote in place. The lower bound in pyproject.toml rests on it."""
    assert Version(zarr.__version__) >= Version("3.1.3")


def consolidate(path: Path) -> None:
    """Consolidate metadata; zarr warns that version 3 does not specify it."""
    with pytest.warns(ZarrUserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(path, zarr_format=3)


# ---- how files are written


def test_local_store_writes_a_partial_file_and_renames_it(tmp_path, monkeypatch):
    """`name.<uuid>.partial`, then a rename: who ignores `*.partial`, as our sweep and readers do, sees no torn file."""
    renamed: list[tuple[str, str]] = []
    opened: list[tuple[str, str]] = []
    path_type = type(tmp_path)
    replace, open_file = path_type.replace, path_type.open

    def watched_replace(self: Path, target: Path) -> Path:
        renamed.append((self.name, target.name))
        return replace(self, target)

    def watched_open(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened.append((self.name, mode))
        return open_file(self, mode, *args, **options)

    monkeypatch.setattr(path_type, "replace", watched_replace)
    monkeypatch.setattr(path_type, "open", watched_open)
    array = create(tmp_path / "a.zarr", (2,), (1,))
    array[:] = 1
    assert sorted(target for _, target in renamed) == ["c.0", "c.1", "zarr.json"]
    for source, target in renamed:
        stem, identity, suffix = source.rsplit(".", 2)
        assert (stem, len(identity), suffix) == (target.rpartition(".")[0], 32, "partial")
        assert int(identity, 16)
    written = [name for name, mode in opened if "w" in mode]
    assert sorted(written) == sorted(source for source, _ in renamed)  # nothing is written under its final name


def test_a_write_that_fails_leaves_the_old_chunk(tmp_path, monkeypatch):
    """A chunk is whole or absent: a failure in the middle of a write changes nothing that was there."""
    array = create(tmp_path / "a.zarr", (4,), (4,))
    array[:] = 1
    before = (tmp_path / "a.zarr/c.0").read_bytes()
    with monkeypatch.context() as patch:

        def fail(self: Path, target: Path) -> None:
            raise OSError("no space")

        patch.setattr(type(tmp_path), "replace", fail)
        with pytest.raises(OSError, match="no space"):
            array[:] = 2
    assert (tmp_path / "a.zarr/c.0").read_bytes() == before
    assert sorted(file.name for file in (tmp_path / "a.zarr").iterdir()) == ["c.0", "zarr.json"]


def test_local_store_does_not_sync(tmp_path, monkeypatch):
    """It never calls fsync: what must survive a power cut we write and sync ourselves (storage/files.py)."""
    calls: list[int] = []
    for name in ("fsync", "fdatasync", "sync"):
        monkeypatch.setattr(os, name, lambda *descriptor: calls.append(1))
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array("x", shape=(4, 8), chunks=(1, 2), shards=(1, 8), dtype="float32")
    array[:] = 1
    consolidate(tmp_path / "a.zarr")
    assert calls == []


# ---- absent chunks


@pytest.mark.parametrize(("dtype", "fill"), [("float32", 0.0), ("float32", float("nan")), ("int64", -1)])
def test_a_missing_chunk_equals_the_fill_value(tmp_path, dtype, fill):
    """Zarr cannot tell a lost chunk from one of fill values: the commit log says which chunks must be there."""
    array = create(tmp_path / "a.zarr", (2, 3), (1, 3), dtype=dtype, fill_value=fill)
    array[:] = 7
    (tmp_path / "a.zarr/c.1.0").unlink()
    again = zarr.open_array(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(again[0], [7, 7, 7])
    np.testing.assert_array_equal(again[1], np.full(3, fill, dtype))


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_empty_chunks_are_not_written_by_default(tmp_path, fill):
    """A dead ReLU or a diverged net leaves no file: presence comes from the log, and we write every chunk ourselves."""
    array = create(tmp_path / "a.zarr", (2, 3), (1, 3), fill_value=fill)
    array[:] = fill
    assert sorted(file.name for file in (tmp_path / "a.zarr").iterdir()) == ["zarr.json"]
    assert zarr.config.get("array.write_empty_chunks") is False


def test_write_empty_chunks_is_not_persisted(tmp_path):
    """It belongs to a handle, not to the array: whoever opens the array again drops empty chunks again."""
    array = create(tmp_path / "a.zarr", (2, 3), (1, 3), config={"write_empty_chunks": True})
    array[0] = 0
    assert (tmp_path / "a.zarr/c.0.0").exists()
    again = zarr.open_array(tmp_path / "a.zarr", mode="r+")
    again[:] = 0
    assert not (tmp_path / "a.zarr/c.0.0").exists()  # the one that was there is even deleted
    assert "write_empty_chunks" not in (tmp_path / "a.zarr/zarr.json").read_text()


def test_open_array_ignores_the_configuration(tmp_path):
    """`open_array(config=)` is ignored; `with_config` (since 3.1.6) and the global setting work.

    `write_aligned` of the analysis, the one place where we write arrays through zarr, builds `AsyncArray` with a
    configuration, since the lowest zarr that we allow has no `with_config`.
    """
    create(tmp_path / "a.zarr", (2, 3), (1, 3))
    array = zarr.open_array(tmp_path / "a.zarr", mode="r+", config={"write_empty_chunks": True})
    array[:] = 0
    assert not (tmp_path / "a.zarr/c.0.0").exists()
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(tmp_path / "a.zarr", mode="r+")[0] = 0
    assert (tmp_path / "a.zarr/c.0.0").exists()
    assert hasattr(array, "with_config") == (Version(zarr.__version__) >= Version("3.1.6"))
    if hasattr(array, "with_config"):
        array.with_config({"write_empty_chunks": True})[1] = 0
        assert (tmp_path / "a.zarr/c.1.0").exists()
    array[:] = 0
    assert not list((tmp_path / "a.zarr").glob("c.*"))
    zarr.Array(AsyncArray(array.metadata, array.store_path, config={"write_empty_chunks": True}))[:] = 0
    assert sorted(file.name for file in (tmp_path / "a.zarr").glob("c.*")) == ["c.0.0", "c.1.0"]


def test_resize_downwards_deletes_chunks(tmp_path):
    """Shrinking an array destroys data: going back is a rewind in the log, never a resize."""
    array = create(tmp_path / "a.zarr", (4, 3), (1, 3))
    array[:] = 1
    array.resize((2, 3))
    assert sorted(file.name for file in (tmp_path / "a.zarr").glob("c.*")) == ["c.0.0", "c.1.0"]
    array.resize((4, 3))
    assert array[2:].sum() == 0


# ---- damage


def flips(path: Path, *, trials: int, seed: int) -> tuple[int, int]:
    """Flip one bit per trial in the one chunk of an array; return how many raise, and how many read as other values."""
    chunk = path / "c.0.0"
    data = chunk.read_bytes()
    array = zarr.open_array(path, mode="r")
    expected = array[:]
    raised = wrong = 0
    for bit in np.random.default_rng(seed).choice(8 * len(data), size=trials, replace=False).tolist():
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        chunk.write_bytes(changed)
        try:
            wrong += array[:].tobytes() != expected.tobytes()
        except (RuntimeError, ValueError, OSError):
            raised += 1
    chunk.write_bytes(data)
    return raised, wrong


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_flipped_bit_in_default_data_gives_wrong_values_silently(tmp_path, dtype):
    """Most bits of default zstd data can flip unseen: hence crc32c in every codec chain, and CRC-32 in the log."""
    array = create(tmp_path / "a.zarr", (256, 64), (256, 64), dtype=dtype)
    assert [type(codec).__name__ for codec in array.compressors] == ["ZstdCodec"]
    array[:] = relu_output(dtype=dtype)
    raised, wrong = flips(tmp_path / "a.zarr", trials=40, seed=0)
    assert wrong >= 20
    assert raised + wrong <= 40


@pytest.mark.parametrize("shards", [None, (256, 64)])
def test_the_crc32c_codec_catches_every_flipped_bit(tmp_path, shards):
    """40 of 40 raise, in shards too (in a shard, a bit of the index as well): our readers lean on this codec."""
    compressors = [ZstdCodec(level=1), Crc32cCodec()]
    chunks = (256, 64) if shards is None else (256, 16)
    array = create(tmp_path / "a.zarr", (256, 64), chunks, shards=shards, compressors=compressors)
    array[:] = relu_output()
    assert flips(tmp_path / "a.zarr", trials=200, seed=1) == (200, 0)


def torn(path: Path, *, shards: tuple[int, int] | None) -> zarr.Array:
    """Return an array of two chunks whose one stored file is cut in half."""
    array = create(path, (1, 8), (1, 4), shards=shards, compressors=[ZstdCodec(level=1), Crc32cCodec()])
    array[0] = np.arange(1, 9)
    file = path / "c.0.0"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return zarr.open_array(path, mode="r+")


def test_a_torn_shard_makes_a_full_overwrite_through_zarr_fail(tmp_path):
    """Until its file is deleted even a write of all its values raises: resuming deletes uncommitted files first."""
    array = torn(tmp_path / "a.zarr", shards=(1, 8))
    with pytest.raises(ValueError, match=r"[Cc]hecksum|crc|bytes|buffer|size"):
        array[0] = np.arange(8)
    (tmp_path / "a.zarr/c.0.0").unlink()
    array[0] = np.arange(8)
    np.testing.assert_array_equal(array[0], np.arange(8))


def test_a_torn_chunk_is_just_replaced(tmp_path):
    """Without sharding a full overwrite of a chunk never reads what was there."""
    array = torn(tmp_path / "a.zarr", shards=None)
    with pytest.raises((ValueError, RuntimeError)):
        array[:]
    array[0] = np.arange(8)
    np.testing.assert_array_equal(array[0], np.arange(8))


def test_two_writers_of_one_shard_lose_data(tmp_path):
    """A partial write is read, merge, write: what another wrote in between is gone. So a file belongs to one rank."""

    class Interleaved(LocalStore):
        """Lets another writer write between the reading and the writing of the first."""

        between: Callable[[], None] | None = None

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            value = await super().get(key, prototype, byte_range)
            between = type(self).between
            if between is not None and key == "c.0.0":
                type(self).between = None
                await asyncio.to_thread(between)
            return value

    path = tmp_path / "a.zarr"
    create(path, (1, 8), (1, 4), shards=(1, 8), fill_value=-1)[:] = 0
    other = zarr.open_array(path, mode="r+")
    Interleaved.between = lambda: other.set_basic_selection((0, slice(4, 8)), np.full(4, 2.0, np.float32))
    zarr.open_array(Interleaved(path), mode="r+")[0, :4] = 1
    assert Interleaved.between is None
    assert zarr.open_array(path, mode="r")[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]  # the 2s are lost


def test_writers_of_a_file_each_lose_nothing(tmp_path):
    """One file per snapshot and rank: threads that write side by side do not touch each other's values."""
    path = tmp_path / "a.zarr"
    create(path, (16, 8), (1, 4), shards=(1, 8))
    handles = [zarr.open_array(path, mode="r+") for _ in range(4)]

    def write(rank: int) -> None:
        for row in range(rank, 16, 4):
            handles[rank][row] = np.full(8, row + 1)

    threads = [threading.Thread(target=write, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:, 0], np.arange(1, 17))


# ---- what is stored


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_there_is_no_bfloat16_in_zarr(tmp_path, name):
    """zarr-python has neither bfloat16 nor float8: we store the bit pattern and say so in `logical_dtype`."""
    with pytest.raises((ValueError, TypeError)):
        create(tmp_path / "a.zarr", (2,), (2,), dtype=name)


def test_float16_overflows_beyond_65504():
    """Counted in `health` as overflow, because the cast itself only gives infinity."""
    assert float(np.finfo(np.float16).max) == 65504
    with np.errstate(over="ignore"):
        assert np.isinf(np.array([65520], np.float32).astype(np.float16)).all()


def test_text_arrays_of_fixed_length_warn_that_they_are_unstable(tmp_path):
    """No stable specification yet (those of variable length do not warn, and no other reader must know them): names
    are attributes, never arrays.
    """
    with pytest.warns(UnstableSpecificationWarning):
        create(tmp_path / "fixed", (2,), (2,), dtype="<U4", fill_value="")
    create(tmp_path / "variable", (2,), (2,), dtype=str, fill_value="")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "variable")}}
    with pytest.raises(ValueError, match="string"):
        tensorstore.open(spec).result()


def stored_bytes(path: Path, values: np.ndarray, compressor: Any) -> int:
    """Return the size of an array's one chunk."""
    array = create(path, values.shape, values.shape, dtype=values.dtype, compressors=[compressor])
    array[:] = values
    return (path / "c.0.0").stat().st_size


def test_zstd_halves_relu_outputs_and_bitshuffle_does_not_help(tmp_path):
    """2.0x on ReLU output (float16), 1.1x on dense values, and bitshuffle hurts sparse data: our codec chain."""
    dense = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float16)
    sparse = relu_output(dtype="float16")
    plain = stored_bytes(tmp_path / "plain", sparse, ZstdCodec(level=1))
    assert 1.6 < sparse.nbytes / plain < 2.4
    assert 1.0 < dense.nbytes / stored_bytes(tmp_path / "dense", dense, ZstdCodec(level=1)) < 1.25
    # Where the zeros come in whole rows and columns, as dead units and silent samples do, shuffling bits tears them up.
    sparse[:, np.random.default_rng(2).random(64) < 0.5] = 0
    plain = stored_bytes(tmp_path / "dead", sparse, ZstdCodec(level=1))
    shuffled = stored_bytes(tmp_path / "bits", sparse, BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"))
    assert plain < shuffled


# ---- what other readers see


def test_consolidated_metadata_shows_the_last_published_prefix(tmp_path):
    """One document, replaced by one rename: an array that has grown since stays as long as it was published."""
    path = tmp_path / "a.zarr"
    zarr.open_group(path, mode="w").create_array("x", shape=(2,), chunks=(1,), dtype="int64", dimension_names=("t",))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    consolidate(path)
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert [file.name for file in after if after[file] != before.get(file)] == ["zarr.json"]
    assert set(after) == set(before)
    zarr.open_array(path / "x", mode="r+").resize((5,))

    def seen(**options: Any) -> int:
        return zarr.open_group(path, mode="r", **options)["x"].shape[0]

    assert (seen(use_consolidated=True), seen(), seen(use_consolidated=False)) == (2, 2, 5)
    with xr.open_zarr(path) as dataset:
        assert dataset.sizes["t"] == 2
    consolidate(path)
    assert seen() == 5


def test_consolidated_metadata_lies_inside_the_root_document(tmp_path):
    """Inline under `consolidated_metadata.metadata`, by path: our root document is built by hand in this form."""
    path = tmp_path / "a.zarr"
    zarr.open_group(path, mode="w").create_group("g").create_array("x", shape=(2,), chunks=(1,), dtype="int64")
    consolidate(path)
    consolidated = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]
    assert (consolidated["kind"], consolidated["must_understand"]) == ("inline", False)
    assert set(consolidated["metadata"]) == {"g", "g/x"}


def test_extra_folders_inside_a_store_make_zarr_warn(tmp_path):
    """So the commit log, the locks and the quarantine lie beside `store.zarr` and not in it."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(2,), chunks=(1,), dtype="int64")
    assert [name for name, _ in group.members()] == ["x"]
    (tmp_path / "a.zarr/commits").mkdir()
    (tmp_path / "a.zarr/commits/00000000.json").write_text("{}")
    with pytest.warns(ZarrUserWarning, match="commits"):
        list(group.members())


def test_dimension_names_are_what_xarray_reads(tmp_path):
    """In version 3 no attribute names the axes but `dimension_names`; without them xarray refuses the array."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(2, 3), chunks=(1, 3), dtype="float32", dimension_names=("snapshot", "unit"))
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as dataset:
        assert dataset["x"].dims == ("snapshot", "unit")
    other = zarr.open_group(tmp_path / "b.zarr", mode="w")
    other.create_array("x", shape=(2,), chunks=(1,), dtype="float32", attributes={"_ARRAY_DIMENSIONS": ["snapshot"]})
    with pytest.raises((KeyError, ValueError), match="dimension"):
        xr.open_zarr(tmp_path / "b.zarr", consolidated=False)


def test_three_readers_agree_on_the_layout(tmp_path):
    """zarr, xarray and tensorstore read what we write with our own encoder, shards and bit patterns included."""
    run = write_recording(tmp_path / "run", sites={"small": 5, "wide": 120_000}, samples=10, epochs=1, dtype="bfloat16")
    store = run / "store.zarr"
    manifest = read_manifest(run)
    codecs = set()
    for site in manifest.sites.values():
        path = site["path"]
        by_zarr = zarr.open_array(store / path, mode="r")
        codecs.add(json.loads((store / path / "zarr.json").read_text())["codecs"][0]["name"])
        opened = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / path)}})
        by_tensorstore = opened.result().read().result()
        assert by_zarr.dtype == by_tensorstore.dtype == np.uint16
        with xr.open_zarr(store, group=path.rpartition("/")[0], mask_and_scale=False) as dataset:
            by_xarray = dataset["activation"].to_numpy()
        np.testing.assert_array_equal(by_tensorstore, by_zarr[:])
        np.testing.assert_array_equal(by_xarray, by_zarr[:])
        np.testing.assert_array_equal(manifest.array(path)[:], by_zarr[:])
        assert by_zarr[:].any()
    assert codecs == {"sharding_indexed", "bytes"}


def test_the_codec_names_of_the_format_are_those_of_zarr(tmp_path):
    """FORMAT.md names `bytes`, `zstd`, `crc32c`, `sharding_indexed`: zarr must write the same for the same choice."""
    create(
        tmp_path / "a.zarr", (1, 8), (1, 4), shards=(1, 8), serializer=BytesCodec(endian="little"),
        compressors=[ZstdCodec(level=1, checksum=False), Crc32cCodec()],
    )  # fmt: skip
    (shard,) = json.loads((tmp_path / "a.zarr/zarr.json").read_text())["codecs"]
    assert shard["name"] == "sharding_indexed"
    configuration = shard["configuration"]
    assert [codec["name"] for codec in configuration["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in configuration["index_codecs"]] == ["bytes", "crc32c"]
    assert (configuration["index_location"], configuration["chunk_shape"]) == ("end", [1, 4])


def test_reading_warns_of_nothing(tmp_path):
    """A user who makes warnings errors, as these tests do, can open a recording with any of the readers."""
    run = write_recording(tmp_path / "run", epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(zarr.open_group(run / "store.zarr", mode="r").members(max_depth=None))
        with xr.open_zarr(run / "store.zarr", group="probe") as dataset:
            dataset.load()
