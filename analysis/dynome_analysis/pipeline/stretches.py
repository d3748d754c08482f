"""Measure the snapshots that a result does not hold yet: one task per stretch of consecutive snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import dask

from dynome_analysis.compute import Progress, compute, counted_parts, one_blas_thread, report_part, worker_threads
from dynome_analysis.pipeline.measurement import Plan, check_snapshot, look_at, measure_snapshot
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynome_analysis.pipeline.cache import Facts, ResultFolder
    from dynome_analysis.reading import SnapshotReader

__all__ = ["Measurement", "cut_into_stretches", "measure_missing"]

# Beyond this, a stretch's one extra look at the snapshot before it costs little, and more would only unbalance. [O]
LONGEST = 16


@dataclass(frozen=True)
class Measurement:
    """What every task needs to know; travels once to each worker.

    Attributes
    ----------
    reader : SnapshotReader
    identities : tuple of str
        Per snapshot, what its piece depends on.
    plan : Plan
    folder : ResultFolder
        Where the pieces go.
    ticket : str
        Of the progress.
    """

    reader: SnapshotReader
    identities: tuple[str, ...]
    plan: Plan
    folder: ResultFolder
    ticket: str


def measure_missing(
    reader: SnapshotReader,
    identities: Sequence[str],
    plan: Plan,
    folder: ResultFolder,
    known: Mapping[int, Facts],
    *,
    progress: Progress | None = None,
) -> list[Facts]:
    """Measure every snapshot whose facts are not known and write its piece; return the facts of all, in order.

    Raises
    ------
    InvalidDataError
        Activations hold NaN or infinity; the message names the first snapshot in time that does.
    StorageError
        The folder cannot be written.
    """
    missing = [row for row in range(len(identities)) if row not in known]
    if not missing:
        return [known[row] for row in range(len(identities))]
    stretches = cut_into_stretches(missing, workers=worker_threads())
    with counted_parts("analyzing snapshots", len(missing), progress) as ticket:
        measurement = Measurement(reader, tuple(identities), plan, folder, ticket)
        shared = dask.delayed(measurement, traverse=False)
        # Dask takes tasks that are equally urgent by name, the last first: named so, that is in the order of time.
        tasks = [
            dask.delayed(_measure_stretch)(shared, *stretch, dask_key_name=f"measure-{ticket}-{number:06}")
            for number, stretch in zip(range(len(stretches), 0, -1), stretches)
        ]
        try:
            found = compute(tasks, description="analyzing snapshots")
        except InvalidDataError:
            # Snapshots are measured side by side, and any of a diverged run may fail first; the first in time is what
            # helps.
            for row in missing:
                check_snapshot(reader, row, plan)
            raise
    facts = dict(known)
    for part in found:
        facts |= part
    return [facts[row] for row in range(len(identities))]


def cut_into_stretches(rows: Sequence[int], *, workers: int) -> list[tuple[int, int]]:
    """Cut ascending rows into stretches (first, stop) without gaps, about two per worker, none longer than `LONGEST`.

    Two per worker, because some take longer than others; not more, because each begins by looking once more at the
    snapshot before it.
    """
    length = min(LONGEST, max(1, -(-len(rows) // (2 * workers))))
    breaks = [0, *(place for place, (a, b) in enumerate(pairwise(rows), start=1) if b != a + 1), len(rows)]
    return [
        (rows[start], rows[min(start + length, stop) - 1] + 1)
        for begin, stop in pairwise(breaks)
        for start in range(begin, stop, length)
    ]


def _measure_stretch(measurement: Measurement, first: int, stop: int) -> dict[int, Facts]:
    """Measure one stretch; what another worker wrote before it was lost is not measured again."""
    reader, plan, folder = measurement.reader, measurement.plan, measurement.folder
    found: dict[int, Facts] = {}
    before = None
    with one_blas_thread():
        for row in range(first, stop):
            identity = measurement.identities[row]
            facts = folder.find_piece(row, identity)
            if facts is None:
                if before is None and row > 0:
                    before = look_at(reader, row - 1, plan)
                values, facts, before = measure_snapshot(reader, row, plan, before)
                folder.write_piece(row, identity, values, facts)
            else:
                before = None
            found[row] = facts
            report_part(measurement.ticket)
    return found
