"""``kill -9`` at any moment: nothing acknowledged is lost, nothing wrong is ever shown, and recording goes on.

Each mode records through the bounded queue and the writer thread that a recorder uses: one process; one with batches;
one that leaves snapshots out when the queue is full; two ranks, of which one is killed first, or both at once.
"""

import contextlib
import json
import os
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
from killed_writer import BATCH, QUEUE

from dynome_recorder.errors import RecordingNotFoundError
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify
from dynome_recorder.storage.writer import RecordingWriter

MODES = {"single": 1, "batches": 1, "skip": 1, "ranks": 2}
SHOWN = 4
"""A reader compares so many of the newest snapshots of an array each time it looks."""


class Nursery:
    """Starts recording processes by forking, so that none imports anything."""

    def __init__(self):
        script = Path(killed_writer.__file__)
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=script.parent, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def start(self, **job):
        """Return the process id of a new recording process."""
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


def kill(process):
    """Kill a process and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
        while True:
            os.kill(process, 0)
            time.sleep(0.0005)


def check_naive_reader(store, mode, parts):
    """Compare everything that plain, consolidated xarray shows with what must be there; returns the snapshots seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = {}
        for stream in ("probe", "weights") if mode == "single" else ("probe", "weights", "batches"):
            with xr.open_zarr(store, group=stream, consolidated=True) as view:
                epochs = seen[stream] = view["epoch"].values
                status = view["status"].values
                np.testing.assert_array_equal(view["step"].values, 10 * epochs)
                assert mode == "skip" or not np.any(status == 2)
                assert all(stream in killed_writer.due(mode, int(epoch)) for epoch in epochs)
                if stream == "batches" and mode != "ranks":
                    samples = [[killed_writer.batch_samples(int(epoch), 0)] for epoch in epochs]
                    expected = np.where((status == 2)[:, None], 0, np.reshape(samples, (-1, 1)))
                    np.testing.assert_array_equal(view["samples"].values, expected)
            if stream == "weights":
                arrays = {("weights/w", "weight"): lambda epoch: killed_writer.weights(epoch)}
            elif stream == "probe":
                arrays = {
                    (f"probe/sites/{site}", "activation"): lambda epoch, site=site: killed_writer.activations(epoch)[
                        site
                    ]
                    for site in killed_writer.UNITS
                }
            else:
                arrays = {
                    (f"batches/sites/{site}", kind): lambda epoch, site=site, kind=kind: killed_writer.whole_batch(
                        epoch, parts, parts, kind
                    )[site]
                    for site in killed_writer.BATCH_UNITS
                    for kind in ("activation", "gradient")
                }
            for (group, name), expected_at in arrays.items():
                with xr.open_zarr(store, group=group, consolidated=True) as view:
                    # A newer prefix may have been published between the two; what both show must be right.
                    length = min(len(epochs), view.sizes["snapshot"])
                    for row in range(max(0, length - SHOWN), length):
                        if status[row] != 2:
                            np.testing.assert_array_equal(view[name][row].values, expected_at(int(epochs[row])))
        with xr.open_zarr(store, group="metrics/epoch", consolidated=True) as view:
            if "accuracy" in view:
                np.testing.assert_array_equal(view["accuracy"].values, view["epoch"].values / 1000)
        with xr.open_zarr(store, group="metrics/step", consolidated=True) as view:
            if "loss" in view:
                steps = view["step"].values
                expected = np.where(steps % 10 == 9, steps // 10 + 1.25, steps // 10 + 0.5)
                np.testing.assert_array_equal(view["loss"].values, expected)
    return len(seen["probe"])


def check_manifest(path, mode, parts):
    """Check that every committed epoch is there, once, with its content; returns the last epoch, -1 for none."""
    manifest = read_manifest(path)
    epochs = [record.epoch for record in manifest.live]
    assert epochs == list(range(len(epochs)))
    assert all(record.parameters == f"hash-{record.epoch}" for record in manifest.live)
    for site in killed_writer.UNITS:
        array = manifest.array(f"probe/sites/{site}/activation")
        for record, row in manifest.snapshots("probe")[-SHOWN:]:
            np.testing.assert_array_equal(array[row], killed_writer.activations(record.epoch)[site])
    stored = manifest.array("weights/w/weight")
    for record, row in manifest.snapshots("weights")[-SHOWN:]:
        np.testing.assert_array_equal(stored[row], killed_writer.weights(record.epoch))
    for record, row in manifest.snapshots("batches")[-SHOWN:]:
        for site in killed_writer.BATCH_UNITS:
            expected = killed_writer.whole_batch(record.epoch, parts, parts, "gradient")[site]
            np.testing.assert_array_equal(manifest.array(manifest.gradients[site]["path"])[row], expected)
        samples = [killed_writer.batch_samples(record.epoch, rank) for rank in range(parts)]
        assert [int(rows.sum()) for rows in manifest.batch_rows(record).reshape(parts, BATCH)] == samples
    for record in manifest.live:
        assert set(record.snapshots) == killed_writer.due(mode, record.epoch)
    return len(epochs) - 1


class Session:
    """What the processes of one session wrote down before they were killed.

    Attributes
    ----------
    before
        The epoch after which they went on; None where they were killed before.
    acknowledged
        The last epoch that rank 0 knew to be committed by all.
    submitted
        Epochs handed over by each rank, and whether each held a buffer.
    """

    def __init__(self, outs):
        self.before, self.acknowledged = None, -1
        self.submitted = []
        for rank, out in enumerate(outs):
            held = {}
            written = out.read_bytes() if out.exists() else b""
            for line in written.split(b"\n")[:-1]:  # a line that was cut off says nothing
                word, *numbers = line.split()
                if word == b"start":
                    self.before = int(numbers[0])
                    self.acknowledged = max(self.acknowledged, self.before)
                elif word == b"submit":
                    held[int(numbers[0])] = bool(int(numbers[1]))
                elif word == b"commit":
                    # What one rank has waited for, all have committed.
                    self.acknowledged = max(self.acknowledged, int(numbers[0]))
                else:
                    raise AssertionError(f"rank {rank}: {out.read_text()}")
            self.submitted.append(held)


def campaign(nursery, path, mode, kills, seed):
    """Kill sessions of a recording; returns figures: kills, epochs acknowledged, most that was lost, rows compared."""
    rng = random.Random(seed)
    world = MODES[mode]
    known, seen, most_lost, total = -1, 0, 0, 0
    for number in range(kills):
        gate = path.parent / f"gate-{number}"
        gate.mkdir()
        outs = [gate / f"rank-{rank}.txt" for rank in range(world)]
        processes = [
            nursery.start(
                path=str(path),
                mode=mode,
                rank=rank,
                world=world,
                parts=world,
                seed=seed + number,
                gate=str(gate),
                out=str(outs[rank]),
            )
            for rank in range(world)
        ]
        if number and rng.random() < 0.25:
            time.sleep(rng.random() * 0.1)  # may die while it starts or resumes
        else:
            deadline = time.monotonic() + 60
            while not all(out.exists() and b"start" in out.read_bytes() for out in outs):
                assert time.monotonic() < deadline, [out.read_text() for out in outs if out.exists()]
                time.sleep(0.002)
            time.sleep(rng.random() * 0.3)
            seen = max(seen, check_naive_reader(path / "store.zarr", mode, world))  # while it is writing
        victims = rng.sample(processes, len(processes))
        kill(victims[0])
        if len(victims) > 1 and rng.random() < 0.5:
            time.sleep(rng.random() * 0.1)  # the others go on for a while, alone
        for process in victims[1:]:
            kill(process)
        if not (path / "run.json").exists():
            with pytest.raises(RecordingNotFoundError):
                read_manifest(path)
            continue
        session = Session(outs)
        seen = max(seen, check_naive_reader(path / "store.zarr", mode, world))
        last = check_manifest(path, mode, world)
        if session.before is not None:
            known = session.acknowledged  # it may have gone back first
            lost = [sum(holds for epoch, holds in held.items() if epoch > last) for held in session.submitted]
            # The rank that is furthest behind has lost no more than its queue held; others may have been ahead of it.
            assert min(lost) <= QUEUE
            most_lost = max(most_lost, *lost)
            total += len(session.submitted[0])
        assert last >= known, f"epoch {known} was acknowledged and is lost"
        known = min(known, last)  # a session that dies while it resumes may have gone back by then
        assert verify(path, deep=True).valid
    with RecordingWriter.open(path, killed_writer.describe(mode, world)) as recording:
        assert recording.last_complete_epoch is None or recording.last_complete_epoch >= known
    assert verify(path, deep=True).clean
    assert check_naive_reader(path / "store.zarr", mode, world) >= seen
    return {"kills": kills, "submitted": total, "most lost": most_lost, "snapshots seen": seen, "last": last}


@pytest.mark.parametrize("mode", MODES)
def test_a_few_kills(tmp_path, nursery, mode):
    assert campaign(nursery, tmp_path / "run", mode, 3, seed=0)["last"] >= 0


@pytest.mark.full
@pytest.mark.parametrize("seed", [1000, 2000])
@pytest.mark.parametrize("mode", MODES)
def test_two_hundred_kills(tmp_path, nursery, mode, seed, record_property):
    figures = campaign(nursery, tmp_path / "run", mode, 25, seed=seed)
    print(mode, figures)
    for name, value in figures.items():
        record_property(name, value)
    assert figures["last"] > 64  # far enough to have folded segments


def test_a_kill_before_the_first_commit(tmp_path, nursery):
    """Whatever a start leaves is no recording yet, or an empty one; the next start goes on either way."""
    rng = random.Random(5)
    path = tmp_path / "run"
    for number in range(6):
        gate = tmp_path / f"gate-{number}"
        gate.mkdir()
        process = nursery.start(
            path=str(path), mode="batches", rank=0, world=2, parts=2, seed=0, gate=str(gate), out=str(gate / "out")
        )
        time.sleep(rng.random() * 0.02)
        kill(process)
        try:
            assert check_manifest(path, "batches", 2) == -1  # it waits for rank 1
        except RecordingNotFoundError:
            assert not (path / "run.json").exists()
    with RecordingWriter.open(path, killed_writer.describe("batches", 2)):
        pass
    assert verify(path, deep=True).clean
