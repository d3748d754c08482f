"""Work runs on Dask's threads with one BLAS thread each, or on the cluster that is current."""

import dask
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import threadpool_info, threadpool_limits

import dynome_analysis as dya
from dynome_analysis.compute import (
    compute,
    counted_parts,
    one_blas_thread,
    report_part,
    worker_memory,
    worker_threads,
)


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


def test_overlapping_limits_end_with_the_last() -> None:
    """Two tasks of one worker process: the first that ends must not free the threads of the other."""
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, user_api="blas"):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == {2}


def test_parts_are_counted_from_within_tasks() -> None:
    reports: list[tuple[str, int, int]] = []
    with counted_parts("parts", 3, lambda *report: reports.append(report)) as ticket:
        compute([dask.delayed(report_part)(ticket) for _ in range(2)])
        assert reports[-1] == ("parts", 2, 3)
        report_part("a ticket of another time")
    assert [done for _, done, _ in reports] == [0, 1, 2, 3]
    report_part(ticket)
    assert len(reports) == 4
    with pytest.raises(ZeroDivisionError), counted_parts("parts", 3, lambda *report: reports.append(report)):
        raise ZeroDivisionError
    assert reports[-1] == ("parts", 0, 3)


def test_workers_and_their_memory() -> None:
    with dask.config.set(scheduler="synchronous"):
        assert worker_threads() == 1
        alone = worker_memory()
    with dask.config.set(num_workers=4):
        assert worker_threads() == 4
        assert worker_memory() == pytest.approx(alone / 4, rel=0.2)


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
        assert worker_threads() == 2
        assert 0 < worker_memory() < 1 << 50
        connectomes = client.gather(client.compute(dya.connectomes(dya.open_recording(path))))
    xr.testing.assert_identical(found, expected)
    assert connectomes.shape == (3, 20, 20)
    assert reports[-1][1] == reports[-1][2] > 0
