"""``dynome demo`` survives ``kill -9`` at any moment.

One uninterrupted demo is the reference. Others are killed at random moments, looked at by plain xarray as they lie
there, called again, and must end with the reference's summary. Training is deterministic, so every value that a reader
can see at any moment has one right answer.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dynome_recorder.storage.manifest import read_manifest
from dynome_recorder.storage.verify import verify

KILLS = int(os.environ.get("DYNOME_DEMO_KILLS", "20"))
# Set to "" to campaign on the demo itself instead of its smaller version.
SIZE = os.environ.get("DYNOME_DEMO_SIZE", "--quick").split()


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dynome_recorder", "demo", "--out", str(out), "--json", *SIZE]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(out: Path) -> dict[str, object]:
    process = start(out)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()[-2000:]
    summary: dict[str, object] = json.loads((out / "summary.json").read_text())
    del summary["timings"]
    return summary


def groups(store: Path) -> list[str]:
    return sorted({str(path.parent.parent.relative_to(store)) for path in store.glob("**/zarr.json") if is_array(path)})


def is_array(path: Path) -> bool:
    return json.loads(path.read_text())["node_type"] == "array"


def check_naive_reader(store: Path, reference: Path) -> int:
    """Compare all that plain xarray shows, but wall-clock times, with the reference; returns the snapshots seen."""
    seen = 0
    if not (store / "zarr.json").exists():
        return seen  # killed before the store was first published: there is nothing to open
    for group in groups(store):
        with (
            warnings.catch_warnings(),
            xr.open_zarr(store, group=group, consolidated=True, decode_cf=False) as shown,
            xr.open_zarr(reference, group=group, consolidated=True, decode_cf=False) as right,
        ):
            for name in set(shown.variables) - {"time"}:
                values, expected = shown[name].values, right[name].values
                assert len(values) <= len(expected), f"{store}/{group}/{name} shows what was never recorded"
                np.testing.assert_array_equal(values, expected[: len(values)], err_msg=f"{store}/{group}/{name}")
                seen = max(seen, len(values) if "snapshot" in shown[name].dims else 0)
    return seen


@pytest.mark.full
def test_killed_at_random_moments(tmp_path: Path) -> None:
    begin = time.monotonic()
    reference = finish(tmp_path / "reference")
    length = time.monotonic() - begin
    generator = random.Random(0)
    landed = 0
    for kill in range(KILLS):
        out = tmp_path / f"killed-{kill}"
        process = start(out)
        # A stratified moment: the kills cover the whole run however few they are.
        time.sleep(length * (kill + generator.random()) / KILLS)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            landed += 1
        process.communicate()

        committed = {}
        for run in sorted((out / "runs").glob("*")) if (out / "runs").exists() else []:
            if not (run / "run.json").exists():
                continue
            committed[run.name] = [record.checksum for record in read_manifest(run).records]
            check_naive_reader(run / "store.zarr", tmp_path / "reference" / "runs" / run.name / "store.zarr")

        assert finish(out) == reference, f"killed at {length * kill / KILLS:.1f} s"
        for name, checksums in committed.items():
            run = out / "runs" / name
            assert [record.checksum for record in read_manifest(run).records][: len(checksums)] == checksums, run
        for run in sorted((out / "runs").glob("*")):
            assert verify(run, deep=True).findings == (), run
            check_naive_reader(run / "store.zarr", tmp_path / "reference" / "runs" / run.name / "store.zarr")
    assert landed >= KILLS * 0.8, "most kills must hit a running demo"
