"""Writing by whole chunks: what would overwrite a neighbour's values is refused before anything is written."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

from dynome_analysis.pipeline.aligned import check_aligned, store_blocks, write_aligned
from dynome_analysis.pipeline.stretches import LONGEST, cut_into_stretches
from dynome_recorder.errors import InvalidArgumentError

VALUES = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)


def target(folder: Path, *, chunks: tuple[int, int], shards: tuple[int, int] | None = None) -> zarr.Array[Any]:
    return zarr.create_array(folder / "a", shape=(8, 12), chunks=chunks, shards=shards, dtype="float32", fill_value=0)


@pytest.mark.parametrize(("chunks", "shards"), [((2, 12), None), ((1, 3), (2, 12)), ((2, 5), None)])
def test_whole_blocks_are_stored(tmp_path: Path, chunks: tuple[int, int], shards: tuple[int, int] | None) -> None:
    array = target(tmp_path, chunks=chunks, shards=shards)
    reports: list[tuple[str, int, int]] = []
    store_blocks(da.from_array(VALUES, chunks=(4, 12)), array, progress=lambda *report: reports.append(report))
    np.testing.assert_array_equal(array[:], VALUES)
    assert reports[-1][1] == reports[-1][2] > 0


@pytest.mark.parametrize(("shards", "kind"), [(None, "chunks of 4"), ((4, 12), "shards of 4")])
def test_blocks_that_share_a_chunk_are_refused(tmp_path: Path, shards: tuple[int, int] | None, kind: str) -> None:
    """Plain ``da.store`` takes these blocks, and each half of a chunk may be written over by the other."""
    array = target(tmp_path, chunks=(4, 12) if shards is None else (1, 12), shards=shards)
    computed: list[int] = []
    source = da.from_array(VALUES, chunks=(3, 12)).map_blocks(lambda block: computed.append(1) or block, dtype="f4",
                                                              meta=np.empty((0, 0), "f4"))  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=f"0:3 along axis 0 cuts through {kind}, .*multiples of 4"):
        store_blocks(source, array)
    assert computed == []
    assert not array[:].any()


def test_without_the_guard_such_blocks_lose_values(tmp_path: Path) -> None:
    """Two writers of one chunk: each reads it, changes its half, writes it back, and the last one wins."""
    array = target(tmp_path, chunks=(4, 12))
    chunk = tmp_path / "a" / "c" / "0" / "0"
    array[0:2] = VALUES[0:2]
    first = chunk.read_bytes()
    chunk.unlink()
    array[2:4] = VALUES[2:4]  # by a writer that read the chunk before the first had written it
    assert chunk.read_bytes() != first
    assert not array[0:2].any()
    for rows in (slice(0, 2), slice(2, 4)):
        with pytest.raises(InvalidArgumentError, match="overwrite each other's values"):
            write_aligned(array, (rows, slice(0, 12)), VALUES[rows])


def test_the_last_chunk_may_be_short(tmp_path: Path) -> None:
    array = target(tmp_path, chunks=(3, 5))
    write_aligned(array, (slice(6, 8), slice(10, 12)), VALUES[6:8, 10:12])
    np.testing.assert_array_equal(array[6:8, 10:12], VALUES[6:8, 10:12])


def test_a_chunk_of_fill_values_is_written(tmp_path: Path) -> None:
    array = target(tmp_path, chunks=(4, 12))
    write_aligned(array, (slice(0, 4), slice(0, 12)), np.zeros((4, 12)))
    assert (tmp_path / "a" / "c" / "0" / "0").is_file()


@pytest.mark.parametrize(
    ("region", "shape", "message"),
    [
        ((slice(0, 4),), (4,), "a region needs 2 slices; got 1"),
        ((slice(0, 4), slice(0, 16)), (4, 16), "axis 1 has 12 values, 0:16 is not there"),
        ((slice(0, 4), slice(0, 12)), (4, 11), r"the region holds \(4, 12\), the values are \(4, 11\)"),
        ((slice(0, 4), slice(6, 12)), (4, 6), "6:12 along axis 1 cuts through chunks of 12"),
    ],
)
def test_regions_that_do_not_fit(
    tmp_path: Path, region: tuple[slice, ...], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        write_aligned(target(tmp_path, chunks=(4, 12)), region, np.ones(shape))


def test_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"has shape \(8, 12\), the source \(4, 12\)"):
        store_blocks(da.from_array(VALUES[:4], chunks=(4, 12)), target(tmp_path, chunks=(4, 12)))
    check_aligned(target(tmp_path / "other", chunks=(4, 12)), (slice(4, 8), slice(0, 12)))


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
@pytest.mark.parametrize("rows", [[0], [3, 4, 5], [0, 2, 4], [0, 1, 2, 3, 7, 8, 20], list(range(200))])
def test_stretches_cover_what_is_missing_once(rows: list[int], workers: int) -> None:
    stretches = cut_into_stretches(rows, workers=workers)
    assert [row for first, stop in stretches for row in range(first, stop)] == rows
    assert all(0 < stop - first <= LONGEST for first, stop in stretches)


def test_many_snapshots_are_as_many_stretches_as_keep_workers_busy() -> None:
    assert cut_into_stretches(range(64), workers=2) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert len(cut_into_stretches(range(64), workers=8)) == 16
