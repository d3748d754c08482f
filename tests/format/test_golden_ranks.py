"""What version 1.1 added is read forever: two ranks, training batches, gradients, snapshots that were left out."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray as xr

import dynome_analysis as dya
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

GOLDEN = Path(__file__).parent / "golden-1.1"
PATHS = {
    "probe": "probe/sites/hidden/activation",
    "batches": "batches/sites/hidden/activation",
    "gradients": "batches/sites/hidden/gradient",
    "sample_id": "batches/sample_id",
}
ALL_STEPS = [*range(1, 9), 64, 65, 66]
STEPS = [step for step in ALL_STEPS if step not in (4, 65)]


@pytest.fixture(scope="module")
def expected():
    assert (GOLDEN / "run.json").is_file(), f"{GOLDEN} is missing; restore it from the repository"
    with np.load(f"{GOLDEN}-expected.npz", allow_pickle=False) as file:
        return dict(file)


def test_it_is_whole():
    result = verify(GOLDEN, deep=True)
    assert result.clean, result.findings
    assert result.snapshots == {"probe": 7, "weights": 7, "batches": 9}
    assert result.lost == {"probe": (), "weights": (), "batches": ()}  # left out is not lost


@pytest.mark.parametrize("name", PATHS)
def test_our_reader_joins_the_parts(name, expected):
    manifest = read_manifest(GOLDEN)
    stream = "probe" if name == "probe" else "batches"
    array = manifest.array(PATHS[name])
    for record, index in manifest.snapshots(stream):
        row = record.epoch if name == "probe" else ALL_STEPS.index(record.step)
        np.testing.assert_array_equal(array[index], expected[name][row])
    if stream == "batches":
        assert [record.step for record, _ in manifest.snapshots(stream)] == STEPS
        assert manifest.gaps(stream) == (3, 9)


@pytest.mark.parametrize("name", PATHS)
def test_plain_xarray_and_tensorstore_read_the_same(name, expected):
    group, _, variable = PATHS[name].rpartition("/")
    store = {"driver": "file", "path": str(GOLDEN / "store.zarr" / PATHS[name])}
    outside = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()
    kept = range(7) if name == "probe" else [ALL_STEPS.index(step) for step in STEPS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(GOLDEN / "store.zarr", group=group, mask_and_scale=False) as dataset:
            for row in kept:
                np.testing.assert_array_equal(dataset[variable][row], expected[name][row])
                np.testing.assert_array_equal(outside[row].read().result(), expected[name][row])
        with xr.open_zarr(GOLDEN / "store.zarr", group="batches") as batches:
            assert np.flatnonzero(batches["status"].values == 2).tolist() == [3, 9]
            assert batches["step"].values.tolist() == ALL_STEPS
            assert batches["samples"].values[:4].tolist() == [[3, 1], [3, 0], [3, 3], [0, 0]]


def test_analysis_sees_only_samples_that_there_are(expected):
    recording = dya.open_recording(GOLDEN, stream="batches")
    reader = recording.reader()
    for position, step in enumerate(STEPS):
        values = expected["batches"][ALL_STEPS.index(step)]
        np.testing.assert_array_equal(reader.joint(position), values[~np.isnan(values[:, 0])])
    assert recording.activations().coords["sample_id"].shape == (9, 6)


def test_two_ranks_go_on_and_so_does_one(tmp_path):
    from format_golden import RANKED

    for world in (2, 1):
        copy = shutil.copytree(GOLDEN, tmp_path / f"run{world}")
        with RecordingWriter.open(copy, RANKED, world=world) as lead:
            assert lead.last_complete_epoch == 6
            first = lead.next_sequence
            if world == 2:
                with RecordingWriter.open(copy, RANKED, rank=1, world=2, first_sequence=first) as other:
                    other.rewind_to(read_manifest(copy).live[-7].sequence)
                    lead.rewind_to(read_manifest(copy).live[-7].sequence)
            else:
                lead.rewind(3)
        assert verify(copy, deep=True).clean


@pytest.mark.parametrize("lost", ["commits/00000065.r1.json", "store.zarr/batches/sites/hidden/gradient/c.10.0.0"])
def test_what_a_rank_lost_is_found_and_becomes_a_gap(tmp_path, lost):
    copy = shutil.copytree(GOLDEN, tmp_path / "run")
    (copy / lost).unlink()
    found = verify(copy)
    assert not found.valid
    assert Path(lost).name in {Path(finding.file).name for finding in found.findings}
    repaired = verify(copy, deep=True, repair=True)
    assert repaired.clean, repaired.findings
    manifest = read_manifest(copy)
    # Of record 65 the batch was left out already; its loss takes nothing more.
    assert len(manifest.gaps("batches")) == (3 if lost.startswith("store") else 2)
    assert len(manifest.snapshots("batches")) + len(manifest.gaps("batches")) == 11
