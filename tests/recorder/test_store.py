"""The layout of arrays, held against zarr, tensorstore and xarray; and reading what is committed."""

import json
import pickle
import warnings

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd
from recordings import moments

from dynome_recorder.errors import CorruptRecordingError, InvalidArgumentError
from dynome_recorder.storage.layout import (
    ArraySpec,
    BulkLayout,
    ViewLayout,
    _content_size,
    _with_crc,
    bulk_layout,
    inner_chunk,
    node_bytes,
)
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.store import CommittedArray


def write_array(folder, layout, snapshots):
    (folder / layout.path).mkdir(parents=True, exist_ok=True)
    (folder / layout.path / "zarr.json").write_bytes(node_bytes(layout.document(len(snapshots))))
    for index, data in enumerate(snapshots):
        (folder / layout.file(index)).write_bytes(layout.encode(data))


def open_tensorstore(path):
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}, open=True).result()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16", "int8", "uint32", "bool", "complex64"])
@pytest.mark.parametrize(
    ("shape", "inner"), [((), ()), ((5,), (5,)), ((6, 4), (6, 4)), ((6, 4), (6, 2)), ((4, 6, 2), (2, 3, 1))]
)
def test_zarr_and_tensorstore_read_what_we_encode(tmp_path, dtype, shape, inner):
    layout = BulkLayout("a/b", shape, dtype, tuple("xyz"[: len(shape)]), inner, {"name": "b"}, shape)
    rng = np.random.default_rng(0)
    snapshots = [(rng.normal(size=shape) * 50).astype(layout.stored.newbyteorder("=")) for _ in range(3)]
    snapshots[1] = np.zeros_like(snapshots[1])  # only fill values: still there
    write_array(tmp_path, layout, snapshots)
    assert len(list((tmp_path / "a/b").glob("c.*"))) == 3
    array = zarr.open_array(tmp_path, path="a/b", mode="r")
    np.testing.assert_array_equal(array[...], np.stack(snapshots))
    np.testing.assert_array_equal(open_tensorstore(tmp_path / "a/b").read().result(), np.stack(snapshots))


def test_zarr_writes_the_same_metadata_as_we_do(tmp_path):
    layout = BulkLayout("a", (8, 6), "float32", ("sample", "unit"), (8, 3), {}, (8, 6))
    write_array(tmp_path, layout, [])
    ours = json.loads((tmp_path / "a/zarr.json").read_bytes())
    theirs = zarr.open_array(tmp_path, path="a", mode="r").metadata.to_dict()
    for member in ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "dimension_names"):
        assert json.loads(json.dumps(theirs[member], default=list)) == json.loads(json.dumps(ours[member])), member
    assert np.isnan(zarr.open_array(tmp_path, path="a", mode="r").fill_value)


@given(
    st.lists(st.integers(1, 3000), min_size=0, max_size=4).filter(lambda s: np.prod(s, dtype=float) < 2e9),
    st.sampled_from([1, 2, 4, 8]),
)
@settings(deadline=None, max_examples=200)
def test_inner_chunks_divide_the_snapshot_exactly(shape, itemsize):
    shape = tuple(shape)
    inner = inner_chunk(shape, itemsize)
    assert len(inner) == len(shape)
    assert all(length % chunk == 0 for length, chunk in zip(shape, inner, strict=True))
    if np.prod(shape, dtype=float) * itemsize <= 2**21:
        assert inner == shape


@pytest.mark.parametrize(
    ("shape", "itemsize", "inner"),
    [
        ((4096, 1024), 2, (4096, 128)),
        ((4096, 1024), 4, (4096, 64)),
        ((1000, 192), 4, (1000, 192)),
        ((4096, 1021), 2, (512, 1021)),  # a prime number of units: cut along the samples
        ((3_000_000, 3), 4, (250_000, 1)),
    ],
)
def test_inner_chunks_of_typical_sites(shape, itemsize, inner):
    assert inner_chunk(shape, itemsize) == inner


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (ArraySpec((3, 0), "float32", ("sample", "unit")), "empty axis"),
        (ArraySpec((3, 2), "float32", ("sample",)), "must name the 2 axes"),
        (ArraySpec((3, 2), "float32", ("unit", "unit")), "differently"),
        (ArraySpec((3, 2), "float32", ("snapshot", "unit")), "snapshot"),
        (ArraySpec((3, 2), "float8", ("sample", "unit")), "float8"),
    ],
)
def test_specs_that_cannot_be_stored(spec, match):
    with pytest.raises(InvalidArgumentError, match=match):
        spec.check("site")


def test_views_encode_and_decode():
    layout = ViewLayout("v", "float64", ("step",), (), 4, {})
    data = layout.encode(np.array([1.0, np.nan]))
    np.testing.assert_array_equal(layout.decode(data), [1.0, np.nan, np.nan, np.nan])
    assert layout.decode(data[:-1]) is None
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        assert layout.decode(bytes(changed)) is None


def test_fill_values_never_look_like_data():
    for dtype, value in (
        ("float32", "NaN"),
        ("bfloat16", 0x7FC0),
        ("complex64", ["NaN", "NaN"]),
        ("int8", 0),
        ("bool", False),
    ):
        layout = bulk_layout("a", ArraySpec((2,), dtype, ("x",)), {})
        assert layout.document(1)["fill_value"] == value


def test_arrays_have_the_committed_length_whatever_is_published(make_recording):
    path = make_recording(epochs=3)
    manifest = read_manifest(path)
    metadata = path / "store.zarr/probe/sites/hidden1/activation/zarr.json"
    metadata.write_bytes(node_bytes(manifest.layouts["probe/sites/hidden1/activation"].document(1)))
    array = manifest.array("probe/sites/hidden1/activation")
    expected = moments({"hidden1": 12, "hidden2": 8}, samples=40, epochs=3)
    assert array.shape == (4, 40, 12)
    np.testing.assert_array_equal(array[3], expected[3].probe["hidden1"])
    np.testing.assert_array_equal(array[[0, 2], :, [1, 3]][1], expected[2].probe["hidden1"][:, [1, 3]])
    metadata.unlink()
    np.testing.assert_array_equal(manifest.array("/probe/sites/hidden1/activation/")[1], expected[1].probe["hidden1"])


def test_an_opened_array_travels_to_other_processes(make_recording):
    array = read_manifest(make_recording(epochs=1)).array("probe/sites/hidden1/activation")
    copy = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(copy[...], array[...])
    assert type(copy) is type(array)


def test_an_opened_array_cannot_be_written(make_recording):
    array = read_manifest(make_recording(epochs=1)).array("probe/sites/hidden1/activation")
    with pytest.raises(TypeError, match="item assignment"):
        array[0] = 0.0


def test_an_unknown_array_is_an_argument_error(make_recording):
    manifest = read_manifest(make_recording(epochs=1))
    with pytest.raises(InvalidArgumentError, match="has no array 'probe/epoch'"):
        manifest.array("probe/epoch")
    with pytest.raises(InvalidArgumentError, match="stream 'other' is unknown"):
        manifest.snapshots("other")


def test_a_chunk_that_goes_missing_after_opening_is_named(make_recording):
    path = make_recording(epochs=2)
    array = read_manifest(path).array("probe/sites/hidden1/activation")
    (path / "store.zarr/probe/sites/hidden1/activation/c.1.0.0").unlink()
    assert array[0].shape == (40, 12)
    with pytest.raises(CorruptRecordingError, match=r"c\.1\.0\.0: missing"):
        array[...]


@pytest.mark.parametrize("how", ["flip", "truncate", "empty"])
@pytest.mark.parametrize("sites", [{"a": 12}, {"a": 1536}])  # one chunk; a shard of several
def test_a_chunk_that_is_damaged_after_opening_is_named(make_recording, how, sites):
    path = make_recording(epochs=1, sites=sites, samples=800 if sites["a"] > 100 else 40, weights=False)
    array = read_manifest(path).array("probe/sites/a/activation")
    file = path / "store.zarr/probe/sites/a/activation/c.1.0.0"
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[20] ^= 4  # in the first inner chunk
    file.write_bytes(data if how == "flip" else data[: len(data) // 2] if how == "truncate" else b"")
    for selection in (1, ..., ([1], slice(None), [0]), (1, 0, 0)):
        with pytest.raises(CorruptRecordingError, match=r"c\.1\.0\.0: "):
            array[selection]
    assert array[0].shape[0] == 800 or sites["a"] == 12


def test_sharded_snapshots_read_back(make_recording):
    path = make_recording(epochs=1, sites={"a": 1536}, samples=800, weights=False, dtype="float16")
    manifest = read_manifest(path)
    array = manifest.array("probe/sites/a/activation")
    assert array.layout.chunk == (800, 1536)
    assert array.layout.inner == (800, 768)
    expected = moments({"a": 1536}, samples=800, epochs=1, dtype="float16", weights=False)
    np.testing.assert_array_equal(array[1], expected[1].probe["a"])
    np.testing.assert_array_equal(array[:, :, 700:764][0], expected[0].probe["a"][:, 700:764])


def test_xarray_reads_every_group_without_a_warning(make_recording):
    path = make_recording(epochs=4, sites={"block.0": 5, "head/odd name": 3}, dtype="float16")
    expected = moments({"block.0": 5, "head/odd name": 3}, samples=40, epochs=4, dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for consolidated in (None, True, False):
            with xr.open_zarr(path / "store.zarr", group="probe", consolidated=consolidated) as probe:
                assert probe["epoch"].values.tolist() == [0, 1, 2, 3, 4]
                assert probe["step"].values.tolist() == [0, 3, 6, 9, 12]
                assert set(probe["status"].values) == {0}
                assert probe["health"].dims == ("snapshot", "site", "problem")
            with xr.open_zarr(
                path / "store.zarr", group="probe/sites/head%2Fodd%20name", consolidated=consolidated
            ) as site:
                assert site["activation"].dims == ("snapshot", "sample", "unit")
                assert site["activation"].attrs["name"] == "head/odd name"
                np.testing.assert_array_equal(site["activation"][2], expected[2].probe["head/odd name"])
            with xr.open_zarr(path / "store.zarr", group="metrics/epoch", consolidated=consolidated) as epoch:
                assert epoch["val_loss"].values.tolist() == [m.epoch_metrics["val_loss"] for m in expected]
            with xr.open_zarr(path / "store.zarr", group="metrics/step", consolidated=consolidated) as step:
                assert step["step"].values.tolist() == list(range(1, 13))
            with xr.open_zarr(path / "store.zarr", group="weights/head.weight", consolidated=consolidated) as weight:
                np.testing.assert_array_equal(weight["weight"][4], expected[4].weights["head.weight"])


def test_zarr_walks_the_whole_store(make_recording):
    group = zarr.open_group(make_recording(epochs=1) / "store.zarr", mode="r")
    assert {"probe", "weights", "metrics"} <= {name.partition("/")[0] for name, _ in group.members(max_depth=None)}
    assert group.attrs["element"] == "recording"


@st.composite
def selections(draw, shape):
    """One whole number, slice or list of positions per axis."""
    return tuple(
        draw(
            st.integers(-length, length - 1)
            | st.slices(length)
            | st.lists(st.integers(-length, length - 1), max_size=4)
        )
        for length in shape
    )


LAYOUTS = {
    "number": ((), (), ()),
    "file": ((5, 4), (5, 4), (5, 4)),
    "shard": ((6, 8), (6, 8), (3, 2)),
    "parts": ((7, 8), (2, 8), (2, 4)),
    "cut parts": ((7, 4, 3), (4, 4, 3), (2, 2, 3)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_selection_is_what_zarr_reads(tmp_path, layout, dtype):
    shape, chunk, inner = LAYOUTS[layout]
    layout = BulkLayout("a", shape, dtype, tuple("xyz"[: len(shape)]), inner, {}, chunk)
    rng, files = np.random.default_rng(0), {}
    write_array(tmp_path, layout, [])
    (tmp_path / "a/zarr.json").write_bytes(node_bytes(layout.document(4)))
    for index in range(4):
        for part in range(layout.parts):
            if (index, part) != (2, 1):  # a rank had no sample
                data = layout.encode((rng.normal(size=layout.part_shape(part)) * 50).astype(layout.stored))
                (tmp_path / layout.file(index, part)).write_bytes(data)
                files[layout.file(index, part)] = (len(data), "")
    array = CommittedArray(tmp_path, layout, 4, files)
    whole = zarr.open_array(tmp_path, path="a", mode="r")[...]
    np.testing.assert_array_equal(array[...], whole)

    @given(selections(array.shape))
    def check(selection):
        expected = whole
        for axis in reversed(range(whole.ndim)):
            chosen = selection[axis]
            places = np.array(chosen, int) if isinstance(chosen, list) else np.arange(whole.shape[axis])[chosen]
            expected = expected.take(places, axis)
        found = array[selection]
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, expected)

    check()


def test_a_selection_that_is_none_is_refused(make_recording):
    array = read_manifest(make_recording(epochs=1)).array("probe/sites/hidden1/activation")
    assert array[0, ..., 1].shape == (40,)
    assert array.ndim == 3
    for selection in (2, (0, 40), (0, 0, 0, 0)):
        with pytest.raises(IndexError):
            array[selection]


def test_no_flipped_bit_of_a_shard_is_read(tmp_path):
    layout = BulkLayout("a", (6, 8), "float32", ("sample", "unit"), (6, 4), {}, (6, 8))
    write_array(tmp_path, layout, [np.random.default_rng(0).normal(size=(6, 8))])
    file = tmp_path / layout.file(0)
    data = file.read_bytes()
    array = CommittedArray(tmp_path, layout, 1, {layout.file(0): (len(data), "")})
    expected = array[...]
    index, first = len(data) - 2 * 16 - 4, int.from_bytes(data[-36 + 8 : -36 + 16], "little")
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        for columns, start, stop in ((slice(0, 4), 0, first), (slice(4, 8), first, index)):
            if start <= position // 8 < stop or position // 8 >= index:
                with pytest.raises(CorruptRecordingError, match=r"a/c\.0\.0\.0: cannot be read .*crc32c"):
                    array[0, :, columns]
            else:
                np.testing.assert_array_equal(array[0, :, columns], expected[0, :, columns])


def test_an_index_that_points_beyond_its_file_is_refused(tmp_path):
    layout = BulkLayout("a", (6, 8), "float32", ("sample", "unit"), (6, 4), {}, (6, 8))
    write_array(tmp_path, layout, [np.zeros((6, 8))])
    file = tmp_path / layout.file(0)
    for entry in ((2**64 - 1, 2**64 - 1), (0, 2**20), (2**40, 8), (0, 3)):
        data = file.read_bytes()[: -2 * 16 - 4] + _with_crc(np.array([entry, entry], "<u8").tobytes())
        file.write_bytes(data)
        array = CommittedArray(tmp_path, layout, 1, {layout.file(0): (len(data), "")})
        with pytest.raises(CorruptRecordingError, match=r"a/c\.0\.0\.0: cannot be read"):
            array[0, :, 0]


def raw_frame(data):
    """A zstd frame that does not say how many bytes it holds: a window of 32 MiB, one raw block."""
    return bytes.fromhex("28b52ffd 00 78") + (len(data) << 3 | 1).to_bytes(3, "little") + data


@pytest.mark.parametrize(
    "frame", [zstd.compress, raw_frame, lambda data: zstd.compress(data[:8]) + zstd.compress(data[8:])]
)
@pytest.mark.parametrize("extra", [-4, 0, 4])
def test_frames_of_other_writers_are_read_whole_or_refused(tmp_path, frame, extra):
    layout = BulkLayout("a", (6, 8), "float32", ("sample", "unit"), (6, 8), {}, (6, 8))
    values = np.arange(48, dtype="<f4").reshape(6, 8)
    data = _with_crc(frame((values.tobytes() + bytes(4))[: values.nbytes + extra]))
    write_array(tmp_path, layout, [values])
    (tmp_path / layout.file(0)).write_bytes(data)
    array = CommittedArray(tmp_path, layout, 1, {layout.file(0): (len(data), "")})
    if extra:
        with pytest.raises(CorruptRecordingError, match=r"a/c\.0\.0\.0: cannot be read"):
            array[0]
    else:
        np.testing.assert_array_equal(array[0], values)


@settings(max_examples=200)
@given(st.integers(0, 70_000), st.integers(-5, 3))
def test_the_size_of_a_frame_is_read_as_zstd_wrote_it(size, level):
    data = np.arange(size, dtype=np.uint8).tobytes()
    assert _content_size(zstd.compress(data, level)) == size
