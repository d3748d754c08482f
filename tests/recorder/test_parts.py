"""Snapshots in parts: any number of files reads as one snapshot does, to us, to zarr, to tensorstore and to xarray."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import (
    BATCH_SITES,
    BATCH_SIZE,
    UNITS,
    batch_rows,
    describe_ranks,
    due_streams,
    ranked_moment,
    whole_snapshot,
    write_ranks,
)

from dynome_recorder.errors import CorruptRecordingError, FingerprintError, InvalidArgumentError
from dynome_recorder.storage.layout import ArraySpec, bulk_layout, node_bytes
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.run import check_fingerprint, run_document
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter, RunDescription

LEFT_OUT = {(2, 1): ("batches",), (4, 0): ("probe",), (5, 0): ("batches",)}
KINDS = {"probe": "probe", "batches": "batches", "gradients": "batches", "weights": "weights"}


def open_tensorstore(path):
    return tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}, open=True).result()


# ---- one array


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    share=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "int64", "uint8", "bool", "complex64"]),
    divisors=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    data=st.data(),
)
def test_parts_read_as_the_whole_does(tmp_path_factory, shape, share, dtype, divisors, data):
    folder = tmp_path_factory.mktemp("parts")
    rows = min(share, shape[0])
    layout = bulk_layout("a", ArraySpec(tuple(shape), dtype, tuple("xyz"[: len(shape)]), rows=rows), {})
    # Small arrays are single chunks; any divisors of a part will do for a shard.
    inner = tuple(
        next(n // d for d in (divisor, 1) if n % d == 0) for n, divisor in zip(layout.chunk, divisors, strict=False)
    )
    layout = dataclasses.replace(layout, inner=inner)
    whole = bulk_layout("b", ArraySpec(tuple(shape), dtype, layout.dimensions), {})
    seed = data.draw(st.integers(0, 99))
    values = (np.random.default_rng(seed).normal(size=(2, *shape)) * 50).astype(layout.stored.newbyteorder("="))
    assert layout.parts == -(-shape[0] // rows)
    assert sum(layout.part_shape(part)[0] for part in range(layout.parts)) == shape[0]
    for one in (layout, whole):
        (folder / one.path).mkdir()
        (folder / one.path / "zarr.json").write_bytes(node_bytes(one.document(2)))
        for index in range(2):
            starts = np.cumsum([0, *(one.part_shape(part)[0] for part in range(one.parts))])
            for part in range(one.parts):
                content = values[index, starts[part] : starts[part + 1]]
                (folder / one.file(index, part)).write_bytes(one.encode(content))
            assert [name for name in one.files(index) if not (folder / name).is_file()] == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(zarr.open_array(folder, path=one.path, mode="r")[...], values)
        np.testing.assert_array_equal(open_tensorstore(folder / one.path).read().result(), values)
    # What lies behind the last row is fill, not what memory held.
    last = layout.parts - 1
    if layout.part_shape(last)[0] < rows:
        grown = json.loads((folder / "a/zarr.json").read_bytes())
        grown["shape"][1] = layout.parts * rows
        (folder / "a/zarr.json").write_text(json.dumps(grown))
        padding = zarr.open_array(folder, path="a", mode="r")[:, shape[0] :]
        np.testing.assert_array_equal(padding, np.full_like(padding, layout.fill))


def test_a_scalar_has_one_part():
    layout = bulk_layout("a", ArraySpec((), "float64", ()), {})
    assert (layout.parts, layout.part_shape(0), layout.files(3)) == (1, (), ["a/c.3"])


def test_a_part_is_a_shard_where_it_is_large():
    layout = bulk_layout("a", ArraySpec((4000, 1024), "float32", ("sample", "unit"), rows=1000), {})
    assert layout.chunk == (1000, 1024)
    assert layout.inner == (1000, 256)
    assert layout.document(1)["chunk_grid"]["configuration"]["chunk_shape"] == [1, 1000, 1024]
    assert layout.file(7, 2) == "a/c.7.2.0"


# ---- a recording


@pytest.fixture(
    scope="module", params=[(1, 1), (2, 2), (2, 3), (3, 2), (4, 1)], ids=lambda p: f"{p[0]}parts-{p[1]}ranks"
)
def recorded(request, tmp_path_factory):
    """A recording of all three streams: its folder, parts and ranks."""
    parts, world = request.param
    skipped = {(step, rank): streams for (step, rank), streams in LEFT_OUT.items() if rank < world}
    path = write_ranks(tmp_path_factory.mktemp("parts") / "run", steps=9, parts=parts, world=world, skipped=skipped)
    return path, parts, world, {(step, stream) for (step, _), streams in skipped.items() for stream in streams}


def arrays_of(manifest):
    """Yield kind, site, stream and path of every array of activations, gradients and weights, and of the samples."""
    for kind, stream in KINDS.items():
        entries = {"probe": manifest.sites}.get(kind) or getattr(manifest, kind)
        for site, entry in entries.items():
            yield kind, site, stream, entry["path"]
    yield "sample_id", "sample_id", "batches", "batches/sample_id"


def test_every_reader_reads_every_value(recorded):
    path, parts, world, left_out = recorded
    manifest = read_manifest(path)
    assert verify(path, deep=True).clean
    checked = 0
    for kind, site, stream, array in arrays_of(manifest):
        group, _, variable = array.rpartition("/")
        steps = [step for step in range(9) if stream in due_streams(step)]
        assert [record.step for record, _ in manifest.snapshots(stream)] == [
            step for step in steps if (step, stream) not in left_out
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with xr.open_zarr(path / "store.zarr", group=group) as dataset:
                plain = dataset[variable].values
        outside = open_tensorstore(path / "store.zarr" / array)
        ours = manifest.array(array)
        assert plain.shape == ours.shape == outside.shape == (len(steps), *ours.shape[1:])
        for record, index in manifest.snapshots(stream):
            expected = whole_snapshot(kind, site, record.step, parts=parts, world=world)
            for values in (ours[index], outside[index].read().result(), plain[index]):
                assert values.dtype == expected.dtype
                np.testing.assert_array_equal(values, expected)
            checked += 1
    assert checked > 30


def test_plain_readers_can_tell_fill_values_from_data(recorded):
    """NaN and -1 stand only where `status` says gap, or beyond what `samples` says."""
    path, parts, world, left_out = recorded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(path / "store.zarr", engine="zarr")
    batches = tree["batches"]
    assert batches["step"].values.tolist() == list(range(9))
    assert batches["epoch"].values.tolist() == [step // 4 for step in range(9)]
    gaps = [step for step in range(9) if (step, "batches") in left_out]
    assert np.flatnonzero(batches["status"].values == 2).tolist() == gaps
    assert set(batches["status"].values) <= {0, 2}
    samples = batches["samples"].values
    assert samples.shape == (9, parts)
    for step in range(9):
        given_by = [batch_rows(step, rank) if rank < world and step not in gaps else 0 for rank in range(parts)]
        assert samples[step].tolist() == given_by
    is_there = np.zeros((9, parts, BATCH_SIZE), dtype=bool)
    for place in range(BATCH_SIZE):
        is_there[:, :, place] = place < samples
    is_there = is_there.reshape(9, -1)
    live = np.setdiff1d(range(9), gaps)  # of a gap nothing may be read; parts of it may be there
    assert np.array_equal(batches["sample_id"].values[live] >= 0, is_there[live])
    for site, rows in BATCH_SITES.items():
        for kind in ("activation", "gradient"):
            values = batches[f"sites/{site}"][kind].values[live]
            expected = np.repeat(is_there[live], rows, axis=1)
            assert np.array_equal(~np.isnan(values), np.broadcast_to(expected[..., None], values.shape))
            assert values.shape[-1] == UNITS
    assert batches["health"].values[5 if 5 in live else 0].sum() == sum(
        rank + 1 for rank in range(min(world, parts)) if batch_rows(5 if 5 in live else 0, rank)
    )
    probe = tree["probe"]["status"].values
    assert (probe == 2).sum() == sum(stream == "probe" for _, stream in left_out)


def test_a_named_part_that_is_missing_is_never_fill(tmp_path):
    path = write_ranks(tmp_path / "run", steps=4)
    manifest = read_manifest(path)
    named = [name for name in manifest.state.files if name.startswith("batches/sites/a/activation/")]
    array = manifest.array("batches/sites/a/activation")
    for name in named:
        index, part = (int(number) for number in name.split("c.")[1].split(".")[:2])
        data = (path / "store.zarr" / name).read_bytes()
        (path / "store.zarr" / name).unlink()
        with pytest.raises(CorruptRecordingError, match=rf"c\.{index}\.{part}\.0: missing"):
            array[index]
        with pytest.raises(CorruptRecordingError, match=rf"c\.{index}\.{part}\.0: missing"):
            read_manifest(path)
        (path / "store.zarr" / name).write_bytes(data)
    # What no record names has no samples, and is nobody's data, whatever lies there.
    unnamed = [
        name
        for index in range(4)
        for name in manifest.layouts["batches/sites/a/activation"].files(index)
        if name not in named
    ]
    assert unnamed
    for name in unnamed:
        (path / "store.zarr" / name).write_bytes(data)
        index, part = (int(number) for number in name.split("c.")[1].split(".")[:2])
        assert np.isnan(array[index, part * BATCH_SIZE : (part + 1) * BATCH_SIZE]).all()
    assert verify(path, repair=True).clean
    assert not any((path / "store.zarr" / name).exists() for name in unnamed)


@settings(max_examples=12, deadline=None)
@given(worlds=st.lists(st.integers(1, 3), min_size=1, max_size=3), parts=st.integers(1, 4))
def test_sessions_of_any_number_of_ranks_read_as_one(tmp_path_factory, worlds, parts):
    """Whatever the ranks of a session, a probe snapshot is the same; of a batch each rank's samples are there."""
    path = tmp_path_factory.mktemp("sessions") / "run"
    world_at = {}
    for number, world in enumerate(worlds):
        write_ranks(path, steps=4 * number + 4, first=4 * number, world=world, parts=parts)
        world_at |= dict.fromkeys(range(4 * number, 4 * number + 4), world)
    manifest = read_manifest(path)
    assert verify(path, deep=True).clean
    for kind, site, stream, array in arrays_of(manifest):
        values = open_tensorstore(path / "store.zarr" / array).read().result()
        for record, index in manifest.snapshots(stream):
            expected = whole_snapshot(kind, site, record.step, parts=parts, world=world_at[record.step])
            np.testing.assert_array_equal(values[index], expected)


def test_a_recording_without_batches_shows_none(make_recording):
    path = make_recording(epochs=2)
    assert not (path / "store.zarr/batches").exists()
    assert "batches" not in zarr.open_group(path / "store.zarr", mode="r")
    assert verify(path, deep=True).snapshots.keys() == {"probe", "weights"}
    manifest = read_manifest(path)
    assert (manifest.batches, manifest.gradients, manifest.snapshots("batches")) == ({}, {}, ())
    run = manifest.run["fingerprint"]
    assert run.keys() == {"sites", "weights", "probe"}
    assert "chunk" not in run["sites"]["hidden1"]


def test_batches_without_gradients(tmp_path):
    description = describe_ranks(1, gradients=False)
    with RecordingWriter.open(tmp_path / "run", description) as writer:
        for step in range(3):
            writer.commit(dataclasses.replace(ranked_moment(step, 0, parts=1, world=1), gradients=None))
    manifest = read_manifest(tmp_path / "run")
    assert manifest.gradients == {}
    assert verify(tmp_path / "run", deep=True).clean
    assert not list((tmp_path / "run").rglob("gradient"))


# ---- what cannot be


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (ArraySpec((6, 4), "float32", ("sample", "unit"), rows=7), "parts of 7 rows do not fit"),
        (ArraySpec((6, 4), "float32", ("sample", "unit"), rows=0), "parts of 0 rows"),
        (ArraySpec((), "float32", (), rows=1), "parts of 1 rows"),
    ],
)
def test_parts_that_cannot_be(spec, match):
    with pytest.raises(InvalidArgumentError, match=match):
        spec.check("site")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (ArraySpec((6, 4), "float32", ("sample", "unit"), rows=2), "6 rows in files of 2 are not 2 parts of 3 samples"),
        (ArraySpec((8, 4), "float32", ("sample", "unit"), rows=4), "8 rows in files of 4 are not 2 parts"),
        (ArraySpec((3, 4), "float32", ("sample", "unit")), "3 rows in files of 3 are not 2 parts"),
        (ArraySpec((12, 4), "float32", ("sample", "unit"), rows=6), 'has 2 rows for each sample; .* than "sample"'),
        (ArraySpec((), "float32", ()), "0 rows"),
    ],
)
@pytest.mark.parametrize("kind", ["batches", "gradients"])
def test_batches_that_cannot_be(tmp_path, kind, spec, match):
    site = ArraySpec((6, 4), "float32", ("sample", "unit"), rows=3)
    arrays = {"batches": {"a": site}, "gradients": {"a": site}} | {kind: {"a": spec}}
    description = RunDescription(sites={"a": site}, parts=2, batch_size=3, **arrays)
    with pytest.raises(InvalidArgumentError, match=f"a: {match}"):
        RecordingWriter.open(tmp_path / "run", description)
    assert not (tmp_path / "run/run.json").exists()


def test_batches_need_their_size():
    with pytest.raises(InvalidArgumentError, match="batches need a batch_size"):
        run_document(dataclasses.replace(describe_ranks(1), batch_size=None), run_id="x", created=0.0)


@pytest.mark.parametrize("member", ["chosen_units", "chosen_positions", "reduction"])
@pytest.mark.parametrize("kind", ["sites", "batches", "gradients"])
def test_other_units_are_another_recording(tmp_path, kind, member):
    description = describe_ranks(1)
    stored = run_document(description, run_id="x", created=0.0)
    specs = dict(getattr(description, kind))
    specs["a"] = dataclasses.replace(specs["a"], attributes={**specs["a"].attributes, member: list(range(40))})
    wanted = run_document(dataclasses.replace(description, **{kind: specs}), run_id="x", created=0.0)
    check_fingerprint(stored, stored, where=tmp_path)
    with pytest.raises(
        FingerprintError, match=rf"{member.replace('_', ' ')} of a was None .*\[0, 1, 2\] \.\.\. \(40\)"
    ):
        check_fingerprint(stored, wanted, where=tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 4, "samples": None}, {"parts": 3}, {"batches": None, "gradients": None, "samples": None}],
)
def test_other_batches_are_another_recording(tmp_path, change):
    stored = run_document(describe_ranks(2), run_id="x", created=0.0)
    wanted = json.loads(json.dumps(stored))
    for member, value in change.items():
        if value is None:
            del wanted["fingerprint"][member]
        else:
            wanted["fingerprint"][member] = value
    for one, other in ((stored, wanted), (wanted, stored)):
        with pytest.raises(FingerprintError, match="cannot be continued"):
            check_fingerprint(one, other, where=tmp_path)
