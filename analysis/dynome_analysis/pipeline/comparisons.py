"""Compare the snapshots of a result with each other, reading back slices of what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from dynome_analysis.compute import Progress, compute, one_blas_thread
from dynome_analysis.distance.matching import diagram_distance
from dynome_analysis.distance.weights import pairwise_distances
from dynome_analysis.homology.histogram import WeightHistogram, histogram_distance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dynome_analysis.pipeline.cache import Facts, ResultFolder

__all__ = ["compare_loops", "compare_weights"]

# Of one task's slice of all snapshots, so that memory does not grow with their number.
SLICE_BYTES = 32 << 20
# Fixed, so that sums do not depend on who computes them.
TASKS = 16


def compare_weights(
    folder: ResultFolder, *, rows: int, known: Mapping[str, NDArray[np.float64]], progress: Progress | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return the distances of births, and of deaths, between all snapshots of a result.

    Parameters
    ----------
    folder : ResultFolder
        All of its pieces are there.
    rows : int
        Snapshots.
    known : dict of arrays (snapshot, snapshot_)
        ``births`` and ``deaths`` between the first snapshots, where an earlier result holds them; both or none.
    progress : callable, optional
        Called as ``progress(description, done, total)``.

    Returns
    -------
    dict of float64, shape (snapshot, snapshot_)
        ``births`` and ``deaths``; symmetric, diagonal 0. Counted deaths are within ``2 * bound * sqrt(deaths)``.

    Notes
    -----
    O(new snapshots * snapshot * value) time. Each exact value is read once, in slices of 32 MB per task; counts of
    deaths a pair at a time.
    """
    first = len(known["births"]) if known else 0
    if first == rows:
        return dict(known)
    tasks = {
        "births": _slice_tasks(folder, "births", first, rows),
        "deaths": (
            _slice_tasks(folder, "deaths", first, rows)
            if "deaths" in folder.arrays
            else _row_tasks(folder, "death_counts", first, rows)
        ),
    }
    flat = compute(
        [dask.delayed(_root_of_sum)(parts, (rows - first, rows)) for parts in tasks.values()],
        description="comparing snapshots",
        progress=progress,
    )
    found = {}
    for name, fresh in zip(tasks, flat):
        distances = np.zeros((rows, rows))
        if first:
            distances[:first, :first] = known[name]
        distances[first:] = fresh
        distances[:first, first:] = fresh[:, :first].T
        found[name] = distances
    return found


def compare_loops(
    folder: ResultFolder, identities: Sequence[str], facts: Sequence[Facts], *, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return the Wasserstein distance of each H1 diagram to the one before; float64 (snapshot,), NaN at the first.

    One matching per pair of snapshots, kept as a note in the result, so that it is found again after an interruption.
    """
    shared = dask.delayed(folder, traverse=False)
    rows = [row for row in range(1, len(facts)) if not (facts[row]["h1"] or facts[row - 1]["h1"])]
    tasks = [
        dask.delayed(_loop_change)(
            shared, row, identities[row], int(facts[row - 1]["points"]), int(facts[row]["points"])
        )
        for row in rows
    ]
    changes = np.full(len(facts), np.nan)
    if rows:
        changes[rows] = compute(tasks, description="comparing diagrams", progress=progress)
    return changes


def _slice_tasks(folder: ResultFolder, name: str, first: int, rows: int) -> list[Any]:
    width = folder.arrays[name].width
    length = max(1024, SLICE_BYTES // (4 * rows))
    # Whole slices per task.
    step = max(1, -(-width // (length * TASKS))) * length
    shared = dask.delayed(folder, traverse=False)
    return [
        dask.delayed(_slice_squares)(shared, name, first, rows, range(start, min(start + step, width), length))
        for start in range(0, width, step)
    ]


def _slice_squares(folder: ResultFolder, name: str, first: int, rows: int, starts: range) -> NDArray[np.float64]:
    """Return sums of squared differences (new snapshot, snapshot) over some of the values."""
    total = np.zeros((rows - first, rows))
    with one_blas_thread():
        block = np.empty((rows, min(starts.step, starts.stop - starts.start)), np.float32)
        for start in starts:
            stop = min(start + starts.step, starts.stop)
            part = block[:, : stop - start]
            for row in range(rows):
                part[row] = folder.read_slice(name, row, start, stop)
            if first:
                total += pairwise_distances([part[first:]], [part], threads=1) ** 2
            else:
                total += pairwise_distances([part], threads=1) ** 2
    return total


def _row_tasks(folder: ResultFolder, name: str, first: int, rows: int) -> list[Any]:
    shared = dask.delayed(folder, traverse=False)
    step = max(1, -(-(rows - first) // TASKS))
    return [
        dask.delayed(_count_squares)(shared, name, first, rows, range(start, min(start + step, rows)))
        for start in range(first, rows, step)
    ]


def _count_squares(folder: ResultFolder, name: str, first: int, rows: int, chosen: range) -> NDArray[np.float64]:
    """Return squared distances of counts (new snapshot, snapshot), 0 in the rows that were not asked for."""
    squares = np.zeros((rows - first, rows))
    width = folder.arrays[name].width

    def counts(row: int) -> WeightHistogram:
        return WeightHistogram(folder.read_slice(name, row, 0, width))

    for row in chosen:
        one = counts(row)
        for other in range(rows):
            # Each new pair once, from its later snapshot; the mirror follows when all are together.
            if other < row:
                squares[row - first, other] = histogram_distance(one, counts(other))[0] ** 2
    return squares


def _root_of_sum(parts: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.float64]:
    total = np.zeros(shape)
    for part in parts:
        total += part
    new = total[:, shape[1] - shape[0] :]
    # Where only one side of a pair was computed, the other is its mirror.
    np.maximum(new, new.T, out=new)
    return np.sqrt(total)


def _loop_change(folder: ResultFolder, row: int, identity: str, before: int, now: int) -> float:
    note = folder.read_note(row, identity)
    if note is not None:
        return float(note["wasserstein"])
    with one_blas_thread():
        diagrams = [
            np.column_stack([folder.read_values(name, place, slice(count)) for name in ("h1_birth", "h1_death")])
            for place, count in ((row - 1, before), (row, now))
        ]
        distance = diagram_distance(diagrams[0], diagrams[1])
    folder.write_note(row, identity, {"wasserstein": distance})
    return distance
