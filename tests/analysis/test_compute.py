"""Work runs on Dask's threads with one BLAS thread each, or on the cluster that is current."""

import dask
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import threadpool_info, threadpool_limits

import dynome_analysis as dya
from dynome_analysis.compute import compute


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_values_come_in_order_with_progress() -> None:
    reports: list[tuple[str, int, int]] = []
    tasks = [dask.delayed(pow)(number, 2) for number in range(5)]
    assert compute(tasks, description="squares", progress=lambda *report: reports.append(report)) == [0, 1, 4, 9, 16]
    assert [done for _, done, _ in reports] == list(range(reports[-1][2] + 1))
    assert {description for description, _, _ in reports} == {"squares"}
    assert compute([]) == []


def test_blas_has_one_thread_during_the_work_only() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        assert compute([dask.delayed(blas_threads)()]) == [{1}]
        assert blas_threads() == {2}


def test_an_error_in_a_task_arrives_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        compute([dask.delayed(divmod)(1, 0)])


@pytest.mark.filterwarnings("ignore")  # what distributed says about ports and closing loops is not ours
def test_a_current_client_is_used_and_gives_the_same(make_recording) -> None:
    from distributed import Client

    path = make_recording(epochs=2)
    expected = dya.analyze(dya.open_recording(path))
    reports: list[tuple[str, int, int]] = []
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        found = dya.analyze(dya.open_recording(path), refresh=True, progress=lambda *report: reports.append(report))
        connectomes = client.gather(client.compute(dya.connectomes(dya.open_recording(path))))
    xr.testing.assert_identical(found, expected)
    assert connectomes.shape == (3, 20, 20)
    assert reports[-1][1] == reports[-1][2] > 0
