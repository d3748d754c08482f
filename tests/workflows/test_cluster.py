"""The same analysis on worker processes: results are written where they arise, and a lost worker costs time only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import SchedulerPlugin
from recordings import write_recording

import dynome_analysis as dya
from dynome_recorder.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import xarray as xr
    from distributed import Client

# What distributed says about ports, lost workers and closing loops is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes of one thread each; a killed one comes back."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None) as cluster,
        Client(cluster) as one,
    ):
        yield one


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert found.sizes == expected.sizes
    for name in found.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=str(name))


def test_processes_say_what_threads_say(
    client: Client, make_recording: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_recording(epochs=11, sites={"hidden1": 90, "hidden2": 70}, samples=50)
    # Workers stand elsewhere: the folder of the result has to be absolute.
    monkeypatch.chdir(path.parent)
    reports: list[tuple[str, int, int]] = []
    found = dya.analyze(dya.open_recording(path.name), progress=lambda *report: reports.append(report))
    assert [done for text, done, total in reports if text == "analyzing snapshots"] == sorted(
        done for text, done, total in reports if text == "analyzing snapshots"
    )
    assert ("analyzing snapshots", 12, 12) in reports
    deaths = found["deaths"].mean().compute().item()  # lazy arrays are read by the workers
    second = dya.open_recording(make_recording(epochs=11, sites={"hidden1": 90, "hidden2": 70}, samples=50))
    expected = threads_only(lambda: dya.analyze(second))
    assert_same(found, expected)
    assert deaths == pytest.approx(expected["deaths"].values.mean())


def threads_only(call: Callable[[], Any]) -> Any:
    """Call with no client around, as if there were no cluster."""
    import distributed

    from dynome_analysis import compute

    original = compute._current_client
    compute._current_client = lambda: None
    try:
        assert distributed.default_client() is not None
        return call()
    finally:
        compute._current_client = original


class Sizes(SchedulerPlugin):
    """Notes the bytes of every result that a task made."""

    name = "sizes"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **options: Any) -> None:
        if finish == "memory" and options.get("nbytes"):
            self.sizes.append(options["nbytes"])


def test_results_do_not_travel(client: Client, make_recording: Callable[..., Path]) -> None:
    """Each of 8 snapshots has 180 kB of deaths; what tasks return is a few numbers of each."""
    path = make_recording(epochs=7, sites={"hidden": 300}, samples=40)
    client.register_plugin(Sizes())
    found = dya.analyze(dya.open_recording(path), engine="none")
    sizes = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["sizes"].sizes)
    client.unregister_scheduler_plugin("sizes")
    assert found.sizes["death"] > 40_000
    assert 0 < max(sizes) < 20_000
    # Stretches, slices and what they share: no task per value, chunk or pair.
    assert len(sizes) < 30


def test_a_killed_worker_costs_time_not_results(
    client: Client, make_recording: Callable[..., Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 15, "sites": {"hidden": 160}, "samples": 60}
    expected = threads_only(lambda: dya.analyze(dya.open_recording(make_recording(**options))).load())
    path = make_recording(**options)
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            if len(list(path.glob("analysis.zarr/analyze-*/pieces/*/zarr.json"))) >= 3:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    found = dya.analyze(dya.open_recording(path))
    killer.join(timeout=60)
    assert killed
    assert_same(found, expected)
    assert killed[0] not in client.run(os.getpid).values()


def test_blas_has_one_thread_within_tasks(client: Client) -> None:
    def threads_inside() -> tuple[set[int], set[int]]:
        from threadpoolctl import threadpool_info

        from dynome_analysis.compute import one_blas_thread

        np.ones((2, 2)) @ np.ones((2, 2))

        def count() -> set[int]:
            return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

        before = count()
        with one_blas_thread():
            inside = count()
        assert count() == before
        return inside, before

    assert all(inside == {1} for inside, _ in client.run(threads_inside).values())


def test_first_compilations_at_the_same_time_are_safe(tmp_path: Path) -> None:
    """Two processes compile the same kernels for other types in other orders, into one empty cache."""
    code = """
import sys, numpy as np
from dynome_analysis.connectome.correlation import standardise
activations = np.random.default_rng(0).normal(size=(30, 20))
kinds = [np.float32, np.float64]
for kind in kinds if int(sys.argv[1]) % 2 else kinds[::-1]:
    columns, dead = standardise(activations.astype(kind))
    print(kind.__name__, f"{np.abs(columns).sum():.4f}")
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE, env=environment, text=True
        )

    processes = [start(number) for number in range(2)]
    outputs = [sorted(process.communicate()[0].splitlines()) for process in processes]
    again = start(0)
    outputs.append(sorted(again.communicate()[0].splitlines()))
    assert [process.returncode for process in [*processes, again]] == [0, 0, 0]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == 2


def test_the_command_computes_in_processes(tmp_path: Path) -> None:
    run = write_recording(tmp_path / "run", epochs=3)
    result = CliRunner().invoke(main, ["analyze", str(run), "--workers", "1", "--seed", "4", "--json"])
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)["recordings"][0]
    assert row["noise_floor_paired"][1:] == pytest.approx(
        dya.analyze(dya.open_recording(run), seed=4)["noise_floor_paired"].values[1:]
    )


def test_the_command_computes_on_a_cluster(client: Client, tmp_path: Path) -> None:
    run = write_recording(tmp_path / "run", epochs=3)
    address = client.scheduler.address
    result = CliRunner().invoke(main, ["analyze", str(run), "--scheduler", address, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recordings"][0]["epoch"] == [0, 1, 2, 3]
