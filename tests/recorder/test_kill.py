"""``kill -9`` at any moment: nothing acknowledged is lost, nothing wrong is ever shown, and recording goes on."""

import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import killed_writer
import numpy as np
import pytest
import xarray as xr

from dynome_recorder.errors import RecordingNotFoundError
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter


def check_naive_reader(store):
    """Compare everything that plain, consolidated xarray shows with what must be there; returns the snapshots seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(store, group="probe", consolidated=True) as view:
            epochs = view["epoch"].values
            np.testing.assert_array_equal(view["step"].values, 10 * epochs)
        for site in killed_writer.UNITS:
            with xr.open_zarr(store, group=f"probe/sites/{site}", consolidated=True) as view:
                # A newer prefix may have been published between the two; what both show must be right.
                for row in range(
                    max(0, min(len(epochs), view.sizes["snapshot"]) - 3), min(len(epochs), view.sizes["snapshot"])
                ):
                    values = view["activation"][row].values
                    np.testing.assert_array_equal(values, killed_writer.activations(int(epochs[row]))[site])
        with xr.open_zarr(store, group="weights", consolidated=True) as view:
            weight_epochs = view["epoch"].values
        with xr.open_zarr(store, group="weights/w", consolidated=True) as view:
            shown = view["weight"].values  # at once: row by row a long campaign spends its time opening chunks
            for epoch, values in zip(weight_epochs, shown, strict=False):
                np.testing.assert_array_equal(values, killed_writer.weights(int(epoch)))
        with xr.open_zarr(store, group="metrics/epoch", consolidated=True) as view:
            if "accuracy" in view:
                np.testing.assert_array_equal(view["accuracy"].values, view["epoch"].values / 1000)
        with xr.open_zarr(store, group="metrics/step", consolidated=True) as view:
            if "loss" in view:
                steps = view["step"].values
                np.testing.assert_array_equal(
                    view["loss"].values, np.where(steps % 10 == 9, steps // 10 + 1.25, steps // 10 + 0.5)
                )
    return len(epochs)


def check_manifest(path, acknowledged):
    """Check that every acknowledged epoch is there, once, with its content; returns the last epoch committed."""
    manifest = read_manifest(path)
    epochs = [record.epoch for record in manifest.live]
    assert epochs == list(range(len(epochs)))
    assert len(epochs) > acknowledged, f"epoch {acknowledged} was acknowledged and is lost"
    assert all(record.parameters == f"hash-{record.epoch}" for record in manifest.live)
    for site in killed_writer.UNITS:
        array = manifest.array(f"probe/sites/{site}/activation")
        for record, row in manifest.snapshots("probe")[-3:]:
            np.testing.assert_array_equal(array[row], killed_writer.activations(record.epoch)[site])
    stored = manifest.array("weights/w/weight")[:]
    for record, row in manifest.snapshots("weights"):
        np.testing.assert_array_equal(stored[row], killed_writer.weights(record.epoch))
    return len(epochs) - 1


def campaign(path, kills, seed):
    rng = random.Random(seed)
    acknowledged, seen = -1, 0
    script = Path(killed_writer.__file__)
    for number in range(kills):
        command = [sys.executable, str(script), str(path), str(seed + number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=script.parent)
        if number and rng.random() < 0.2:
            time.sleep(rng.random() * 0.6)  # may die while it starts or resumes
        else:
            assert process.stdout.readline().startswith(b"start"), process.stderr.read().decode()
            time.sleep(rng.random() * 0.5)
            seen = max(seen, check_naive_reader(path / "store.zarr"))  # while it is writing
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err.decode()
        for line in out.decode().splitlines():
            if line.startswith("start"):
                before = line.removeprefix("start ")
                acknowledged = -1 if before == "None" else int(before)
            else:
                acknowledged = int(line)
        seen = max(seen, check_naive_reader(path / "store.zarr"))
        last = check_manifest(path, acknowledged)
        # A session that dies while resuming acknowledges nothing, but may have gone back by then.
        acknowledged = min(acknowledged, last)
        assert verify(path, deep=True).valid
    with RecordingWriter.open(path, killed_writer.DESCRIPTION) as recording:
        assert recording.last_complete_epoch >= acknowledged
    assert verify(path, deep=True).clean
    assert check_naive_reader(path / "store.zarr") >= seen
    return last


def test_four_kills(tmp_path):
    assert campaign(tmp_path / "run", 4, seed=0) >= 0


@pytest.mark.full
@pytest.mark.parametrize("seed", [100, 200, 300, 400])
def test_sixty_kills(tmp_path, seed):
    assert campaign(tmp_path / "run", 15, seed=seed) > 64  # far enough to have folded segments


def test_a_kill_before_the_first_commit(tmp_path):
    """Whatever a start leaves is no recording yet, or an empty one; the next start goes on either way."""
    rng = random.Random(5)
    script = Path(killed_writer.__file__)
    for number in range(3):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run"), "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not (tmp_path / "run").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01 * number)
        process.kill()
        process.communicate()
        try:
            check_manifest(tmp_path / "run", -1)
        except RecordingNotFoundError:
            assert not (tmp_path / "run/run.json").exists()
    with RecordingWriter.open(tmp_path / "run", killed_writer.DESCRIPTION):
        pass
    assert verify(tmp_path / "run", deep=True).clean
