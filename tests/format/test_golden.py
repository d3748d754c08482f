"""Recordings that released versions wrote are read forever: by us, by plain xarray, and by tensorstore.

A missing fixture is an error; only ``tests/format_golden.py``, called by hand, makes one.
"""

import dataclasses
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray as xr
from click.testing import CliRunner

from dynome_recorder.cli import main
from dynome_recorder.errors import FingerprintError
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import ArraySpec, Moment, RecordingWriter

HERE = Path(__file__).parent
STATUS = [0, 0, 2, 0]
PATHS = {
    "features.0": "probe/sites/features.0/activation",
    "block/ä": "probe/sites/block%2F%C3%A4/activation",
    "wide": "probe/sites/wide/activation",
    "features.0.weight": "weights/features.0.weight/weight",
    "scale": "weights/scale/weight",
}


@pytest.fixture(params=["golden-1.0"])
def golden(request):
    path = HERE / request.param
    assert (path / "run.json").is_file(), f"{path} is missing; restore it from the repository"
    return path


@pytest.fixture
def expected(golden):
    with np.load(f"{golden}-expected.npz", allow_pickle=False) as file:
        return {name.removeprefix("array "): file[name] for name in file.files}


def readable(name):
    """Return the snapshots that an array can be read at: the third of the probe is a gap."""
    return [0, 1, 3] if PATHS[name].startswith("probe") else [0, 1, 2]


def test_it_is_whole(golden):
    result = verify(golden, deep=True)
    assert result.clean, result.findings
    assert result.lost == {"probe": (2,), "weights": ()}


@pytest.mark.parametrize("name", PATHS)
def test_our_reader_reads_it(golden, expected, name):
    manifest = read_manifest(golden)
    entry = {**manifest.sites, **manifest.weights}[name]
    assert entry["path"] == PATHS[name]
    array = manifest.array(entry["path"])
    assert array.shape == expected[name].shape
    for row in readable(name):
        np.testing.assert_array_equal(array[row], expected[name][row])


def test_our_reader_reads_the_log(golden, expected):
    manifest = read_manifest(golden)
    assert manifest.run_id == "601d" * 8
    assert [record.epoch for record in manifest.live] == list(range(66))
    assert [record.kind for record in manifest.records].count("rewind") == 1
    assert [index for _, index in manifest.snapshots("probe")] == [0, 1, 3]
    assert [record.epoch for record, _ in manifest.snapshots("weights")] == [0, 2, 4]
    epochs, losses = manifest.epoch_metrics()["val/loss"]
    assert epochs.tolist() == list(range(66))
    np.testing.assert_array_equal(losses, expected["losses"])
    assert manifest.step_metrics()["loss"][0][-1] == 130
    assert manifest.run["hyperparameters"] == {"lr": 0.1, "note": "ünï", "limit": "Infinity"}


@pytest.mark.parametrize("name", PATHS)
def test_plain_xarray_reads_it(golden, expected, name):
    group, _, variable = PATHS[name].rpartition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(golden / "store.zarr", group=group) as dataset:
            assert dataset[variable].attrs["name"] == name
            for row in readable(name):
                np.testing.assert_array_equal(dataset[variable][row], expected[name][row])
            if name == "wide":
                assert np.isnan(dataset[variable][2]).all()


def test_plain_xarray_reads_its_views(golden):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(golden / "store.zarr", group="probe") as probe:
            assert probe["epoch"].values.tolist() == [0, 1, 3, 65]
            assert probe["status"].values.tolist() == STATUS
            assert probe["health"].sel(snapshot=2).values.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
        with xr.open_zarr(golden / "store.zarr", group="weights") as weights:
            assert weights["epoch"].values.tolist() == [0, 2, 4]
        with xr.open_zarr(golden / "store.zarr", group="metrics/epoch") as metrics:
            live = metrics["status"] == 0
            assert metrics["epoch"].values[live].tolist() == list(range(66))
            assert metrics["epoch"].values[~live].tolist() == [63, 64]
            assert metrics["val%2Floss"].attrs["name"] == "val/loss"
        with xr.open_zarr(golden / "store.zarr", group="metrics/step") as metrics:
            assert metrics["step"].values.tolist()[:6] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", PATHS)
def test_tensorstore_reads_it(golden, expected, name):
    store = {"driver": "file", "path": str(golden / "store.zarr" / PATHS[name])}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()
    assert array.domain.labels[0] == "snapshot"
    for row in readable(name):
        np.testing.assert_array_equal(array[row].read().result(), expected[name][row])


def test_tensorstore_reads_its_views(golden):
    store = {"driver": "file", "path": str(golden / "store.zarr/probe/status")}
    assert (
        tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result().read().result().tolist() == STATUS
    )


def test_the_command_line_reads_it(golden):
    result = CliRunner().invoke(main, ["info", str(golden)])
    assert result.exit_code == 0
    assert "block/ä" in result.output


def test_it_can_be_continued(golden, tmp_path):
    from format_golden import DESCRIPTION

    copy = shutil.copytree(golden, tmp_path / "run")
    with RecordingWriter.open(copy, DESCRIPTION) as recording:
        assert recording.last_complete_epoch == 65
        recording.rewind(60)
    assert verify(copy, deep=True).clean


def test_it_can_be_continued_with_what_came_later(golden, tmp_path):
    """The declared version stays; two ranks, and snapshots that were left out, are added by records of their own."""
    from format_golden import DESCRIPTION

    copy = shutil.copytree(golden, tmp_path / "run")
    declared = (copy / "run.json").read_bytes()
    with RecordingWriter.open(copy, DESCRIPTION) as recording:
        recording.commit(Moment(epoch=66, step=132, skipped=("probe",)))
    before = {file: file.read_bytes() for file in copy.rglob("c.*") if file.parent.name in {"activation", "weight"}}
    values = {name: np.ones(spec.shape, spec.dtype) for name, spec in DESCRIPTION.weights.items()}
    with (
        RecordingWriter.open(copy, DESCRIPTION, world=2) as lead,
        RecordingWriter.open(copy, DESCRIPTION, world=2, rank=1, first_sequence=lead.next_sequence) as other,
    ):
        lead.commit(Moment(epoch=67, step=134, weights=values, skipped=("probe",)))
        other.commit(Moment(epoch=67, step=134, skipped=("probe",)))
    assert verify(copy, deep=True).clean
    assert (copy / "run.json").read_bytes() == declared
    manifest = read_manifest(copy)
    assert [record.epoch for record in manifest.live] == list(range(68))
    assert manifest.gaps("probe") == (2, 4, 5)
    assert len(manifest.snapshots("weights")) == 4
    assert all(file.read_bytes() == data for file, data in before.items())
    with xr.open_zarr(copy / "store.zarr", group="probe") as probe:
        assert probe["status"].values.tolist() == [0, 0, 2, 0, 2, 2]
        assert probe["epoch"].values.tolist() == [0, 1, 3, 65, 66, 67]
    wanted = dataclasses.replace(
        DESCRIPTION, batches={"wide": ArraySpec((2, 3), "float32", ("sample", "unit"), rows=2)}, batch_size=2
    )
    with pytest.raises(FingerprintError, match="batches was"):
        RecordingWriter.open(copy, wanted)


def test_this_version_still_writes_the_same(golden, tmp_path):
    """A change of what is written without a change of the version is a mistake; 1.1 added, and changed nothing.

    Compressed bytes may differ between versions of zstd, and with them the records that name their checksums; all
    descriptions, all metadata but the root's and all views may not.
    """
    from format_golden import write

    write(tmp_path / "again")

    def fixed(path):
        stored = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
        bulk = {name for name, file in stored.items() if file.parent.name in {"activation", "weight"}}
        assert len(bulk) == 5 + 3 * 3 + 2 + 2 * 3
        return {
            name: re.sub(rb'"1\.[01]"|"checksum": ?"[0-9a-f]{8}"', b"", file.read_bytes())
            for name, file in stored.items()
            if name == "run.json"
            or (name.startswith("store.zarr/") and name not in bulk and name != "store.zarr/zarr.json")
        }

    old, new = fixed(golden), fixed(tmp_path / "again")
    assert old.keys() == new.keys()
    assert [name for name in old if old[name] != new[name]] == []
