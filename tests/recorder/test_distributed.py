"""Distributed data-parallel runs with real processes: every rank writes its share, and the log says what is whole."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_training import BATCH, batches_of, make_data, make_model

from dynome_recorder import Probe
from dynome_recorder.distributed import Place, find_place
from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.run import share_of
from dynome_recorder.storage.verify import verify

SCRIPT = Path(__file__).parents[1] / "distributed_training.py"


def train(folder: Path, world: int, **options: Any) -> list[dict[str, Any]]:
    """Train with so many processes and return what each printed; fails where one failed, unless it was to die."""
    folder.mkdir(exist_ok=True)
    options["meeting"] = uuid.uuid4().hex
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(world), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        if process.returncode != 9:
            assert process.returncode == 0, err
            results.append(json.loads(out.splitlines()[-1]) | {"stderr": err})
    return results


def witness(folder: Path, epoch_weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Activations of the probe for recorded weights, by a plain forward pass of the whole probe."""
    model = make_model()
    model.load_state_dict({name: torch.as_tensor(value) for name, value in epoch_weights.items()})
    data, labels = make_data()
    rows = Probe(torch.utils.data.TensorDataset(data, labels), size=23, seed=1).indices
    found, values = {}, data[torch.as_tensor(rows)]
    with torch.no_grad():
        for name, module in model.named_children():
            values = module(values)
            found[name] = values.numpy()
    return found


def check_recording(run: Path, *, epochs: int) -> None:
    manifest = read_manifest(run)
    assert verify(run, deep=True).clean
    probe = manifest.snapshots("probe")
    assert [record.epoch for record, _ in probe] == list(range(epochs + 1))
    weights = {record.epoch: index for record, index in manifest.snapshots("weights")}
    for record, index in probe:
        recorded = {
            name: manifest.array(entry["path"])[weights[record.epoch]] for name, entry in manifest.weights.items()
        }
        expected = witness(run, recorded)
        for site, entry in manifest.sites.items():
            np.testing.assert_allclose(manifest.array(entry["path"])[index], expected[site], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_records_its_share_and_training_is_bit_identical(tmp_path: Path, world: int) -> None:
    recorded = train(tmp_path, world, epochs=2)
    plain = train(tmp_path, world, epochs=2, record=False)
    for with_recorder, without in zip(recorded, plain, strict=True):
        assert with_recorder["losses"] == without["losses"]
        assert with_recorder["weights"] == without["weights"]
        assert with_recorder["degraded"] is None
        assert with_recorder["collectives"] == 0  # none of ours while the loop runs
    check_recording(tmp_path / "run", epochs=2)


def test_batches_hold_the_samples_of_every_rank(tmp_path: Path) -> None:
    train(tmp_path, 2, epochs=1)
    manifest = read_manifest(tmp_path / "run")
    [snapshot] = manifest.snapshots("batches")  # steps 2 of 3
    record, index = snapshot
    assert record.step == 2
    ids = manifest.array("batches/sample_id")[index]
    expected = np.concatenate([batches_of(1, rank, 2, 3)[1].numpy() for rank in range(2)])
    assert ids.tolist() == expected.tolist()
    assert manifest.array("batches/sites/1/activation").shape == (1, 2 * BATCH, 8)
    assert np.isfinite(manifest.array("batches/sites/1/activation")[index]).all()


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 1)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, first: int, second: int) -> None:
    train(tmp_path, first, epochs=1, batches=False)
    results = train(tmp_path, second, epochs=3, batches=False)
    assert all("error" not in result for result in results), results
    check_recording(tmp_path / "run", epochs=3)


def test_killed_ranks_leave_a_whole_prefix_that_goes_on(tmp_path: Path) -> None:
    train(tmp_path, 2, epochs=1)
    folder = tmp_path / "run"
    # The part records of rank 1 end one moment early, as if it had been killed before its rename.
    last = sorted(folder.glob("commits/*.r1.json"))[-1]
    last.unlink()
    held = read_manifest(folder, check=False)
    assert [record.epoch for record in held.live if record.epoch_complete] == [0]


def test_ranks_that_record_different_things_are_refused_on_all_of_them(tmp_path: Path) -> None:
    results = train(tmp_path, 2, epochs=1, disagree=1)
    for result in results:
        assert "must be the same on all ranks" in result["error"], result
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_second_distributed_run_on_the_same_folder_is_refused_on_every_rank(tmp_path: Path) -> None:
    train(tmp_path, 2, epochs=1)
    from dynome_recorder.storage.lifecycle import acquire_lock

    lock = acquire_lock(tmp_path / "run")
    try:
        results = train(tmp_path, 2, epochs=2)
    finally:
        lock.release()
    for result in results:
        assert "another recorder writes here" in result["error"], result


def test_outside_of_distributed_training_there_is_one_rank() -> None:
    assert find_place() == Place(rank=0, world=1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_are_shared_out_without_overlap(world: int, parts: int) -> None:
    shares = [share_of(rank, world, parts) for rank in range(world)]
    assert [part for share in shares for part in share] == list(range(parts))
