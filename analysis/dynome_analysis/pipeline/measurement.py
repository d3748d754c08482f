"""What is measured of one snapshot, alone and against the one before: the body of an analysis' tasks. No Dask here.

Comparing two snapshots needs more of them than is kept: whole connectomes, and the deaths of either half of the probe.
So snapshots are measured in stretches, one after the other, and only the one before is held: memory does not grow with
the number of snapshots. A stretch that starts in the middle looks at the snapshot before it once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynome_analysis.connectome.correlation import non_finite_units, standardise
from dynome_analysis.distance.halves import split_samples
from dynome_analysis.distance.weights import sorted_distance
from dynome_analysis.homology.births import births, births_and_deaths
from dynome_analysis.homology.histogram import WeightHistogram, death_histogram, histogram_distance
from dynome_analysis.homology.streaming import stream_homology
from dynome_analysis.labelled.connectomes import Measure, correlate_snapshot
from dynome_analysis.persistence.rips import Engine, functional_persistence, rips_diagrams
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dynome_analysis.homology.routes import Route
    from dynome_analysis.reading import SnapshotReader

    Deaths: TypeAlias = NDArray[np.float32] | WeightHistogram

__all__ = [
    "NOT_WANTED",
    "Look",
    "Plan",
    "Signature",
    "check_snapshot",
    "deaths_distance",
    "look_at",
    "measure_snapshot",
]

# Units per side of the blocks in which connectomes that do not fit in memory are compared: 16 MB each.
FROBENIUS_BLOCK = 2048
# Why there is no H1, in words that the result carries.
NOT_WANTED = "left out as asked for"
NO_CONNECTOME = "it needs the whole connectome, which the streaming route does not hold"


@dataclass(frozen=True)
class Plan:
    """What is measured of every snapshot, and how.

    Attributes
    ----------
    measure : str
        How two units are compared.
    route : {"dense", "streaming"}
        Whether the connectome is held whole, or made tile by tile.
    deaths : {"exact", "histogram"}
        Whether deaths are kept one by one, or counted in bins.
    engine : str or None
        What computes H1; None leaves it out.
    memory_limit : int or None
        Bytes for H1; None for the engine's own.
    seed : int
        Of the split of the probe into halves.
    places : tuple of int, or None
        Units that are measured; None for all.
    """

    measure: Measure
    route: Route
    deaths: Literal["exact", "histogram"]
    engine: Engine | None
    memory_limit: int | None
    seed: int
    places: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Signature:
    """Births and deaths of one connectome, and its dead units."""

    births: NDArray[np.float32]
    deaths: Deaths
    dead_units: int


@dataclass(frozen=True, eq=False)
class Look:
    """What the next snapshot is compared with.

    Attributes
    ----------
    connectome : float32, shape (unit, unit), or None
        None where it does not fit in memory.
    columns : float32, shape (sample, unit), or None
        Standardised activations, which stand for the connectome then.
    halves : tuple of deaths
        Of the connectome of either half of the probe; empty where it is too small to be halved.
    """

    connectome: NDArray[np.float32] | None
    columns: NDArray[np.float32] | None
    halves: tuple[Deaths, ...]


def look_at(reader: SnapshotReader, position: int, plan: Plan) -> Look:
    """Return what the next snapshot is compared with, of a snapshot whose piece is already there."""
    activations = _read(reader, position, plan)
    connectome = columns = None
    if plan.route == "dense":
        connectome, _ = _correlate(activations, reader, position, plan)
    else:
        columns, _ = _standardised(activations, reader, position, plan)
    return Look(connectome, columns, _halves(activations, reader, position, plan))


def measure_snapshot(
    reader: SnapshotReader, position: int, plan: Plan, before: Look | None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], Look]:
    """Measure one snapshot, and how far it lies from the one before.

    Parameters
    ----------
    reader : SnapshotReader
    position : int
        Of the snapshot among those of the reader.
    plan : Plan
    before : Look or None
        Of the snapshot before; None at the first.

    Returns
    -------
    values : dict of arrays (value,)
        ``births`` float32, ``deaths`` float32 or ``death_counts`` int64, ``h1_birth`` and ``h1_death`` float64.
    facts : dict
        Numbers: ``dead_units``, ``mean_absolute_correlation``, ``functional_persistence``, ``points`` (of H1),
        ``two_halves``; against the snapshot before, NaN at the first: ``frobenius``, ``first_half``, ``second_half``.
        Words: ``h1``, why there is no H1, or "".
    look : Look
        For the next snapshot.

    Raises
    ------
    InvalidDataError
        Activations hold NaN or infinity; the message names recording, epoch and site.
    CorruptRecordingError
        A stored file is missing, truncated or changed.

    Notes
    -----
    At most about 24 bytes per pair of units at a time by the dense route, `before` and `look` included.
    """
    activations = _read(reader, position, plan)
    connectome = columns = None
    loops, refusal = np.empty((0, 2)), NO_CONNECTOME
    if plan.route == "dense":
        connectome, dead = _correlate(activations, reader, position, plan)
        signature = _dense(connectome, dead, plan)
        loops, refusal = _loops(connectome, plan)
    else:
        columns, _ = _standardised(activations, reader, position, plan)
        signature = _streamed(activations)
    halves = _halves(activations, reader, position, plan)
    look = Look(connectome, columns, halves)
    facts = {
        "dead_units": signature.dead_units,
        "mean_absolute_correlation": _mean_weight(signature),
        "functional_persistence": float("nan") if refusal else functional_persistence(loops),
        "points": len(loops),
        "h1": refusal,
        "two_halves": deaths_distance(halves[0], halves[1]) if halves else float("nan"),
        **_changes(before, look),
    }
    values: dict[str, NDArray[Any]] = {
        "births": signature.births,
        "h1_birth": loops[:, 0],
        "h1_death": loops[:, 1],
    }
    if isinstance(signature.deaths, WeightHistogram):
        values["death_counts"] = signature.deaths.counts
    else:
        values["deaths"] = signature.deaths
    return values, facts, look


def check_snapshot(reader: SnapshotReader, position: int, plan: Plan) -> None:
    """Raise InvalidDataError, naming recording, epoch and site, where a snapshot holds NaN or infinity."""
    _refuse_non_finite(_read(reader, position, plan), reader, position, plan)


def _refuse_non_finite(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, plan: Plan
) -> None:
    """Raise InvalidDataError, naming recording, epoch and site, where activations hold NaN or infinity."""
    if non_finite_units(activations).size:
        _correlate(activations, reader, position, plan)  # refuses before any product, and names the snapshot


def deaths_distance(first: Deaths, second: Deaths) -> float:
    """Return the distance between the deaths of two connectomes, both exact or both counted in bins."""
    if isinstance(first, WeightHistogram) and isinstance(second, WeightHistogram):
        return histogram_distance(first, second)[0]
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    return sorted_distance([first], [second])


def _read(reader: SnapshotReader, position: int, plan: Plan) -> NDArray[np.floating[Any]]:
    activations = reader.joint(position)
    return activations if plan.places is None else np.ascontiguousarray(activations[:, plan.places])


def _correlate(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, plan: Plan
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    labels = reader.labels if plan.places is None else reader.labels[list(plan.places)]
    return correlate_snapshot(activations, reader, position, plan.measure, labels=labels)


def _dense(connectome: NDArray[np.float32], dead: NDArray[np.bool_], plan: Plan) -> Signature:
    if plan.deaths == "exact":
        born, died = births_and_deaths(connectome, check=False)
        return Signature(born, died, int(np.count_nonzero(dead)))
    born = births(connectome, check=False)
    return Signature(born, death_histogram(connectome, births=born, check=False), int(np.count_nonzero(dead)))


def _streamed(activations: NDArray[np.floating[Any]]) -> Signature:
    # One thread: as many snapshots are measured at once as there are cores.
    streamed = stream_homology(activations, threads=1)
    return Signature(streamed.births, streamed.deaths, int(np.count_nonzero(streamed.dead)))


def _standardised(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, plan: Plan
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    _refuse_non_finite(activations, reader, position, plan)
    return standardise(activations)


def _loops(connectome: NDArray[np.float32], plan: Plan) -> tuple[NDArray[np.float64], str]:
    """Return the H1 diagram, or an empty one and why it is left out."""
    if plan.engine is None:
        return np.empty((0, 2)), NOT_WANTED
    try:
        diagrams = rips_diagrams(connectome, dimensions=(1,), engine=plan.engine, memory_limit=plan.memory_limit)
    except InvalidDataError as error:
        # A connectome that was just made is fit for it: only the memory does not suffice.
        return np.empty((0, 2)), str(error)
    return diagrams[1], ""


def _halves(
    activations: NDArray[np.floating[Any]], reader: SnapshotReader, position: int, plan: Plan
) -> tuple[Deaths, ...]:
    """Return the deaths of the connectome of either half of the samples; empty with fewer than four samples."""
    if activations.shape[0] < 4:
        return ()
    deaths: list[Deaths] = []
    for half in split_samples(activations.shape[0], seed=plan.seed):
        if plan.route == "dense":
            connectome, dead = _correlate(activations[half], reader, position, plan)
            deaths.append(_dense(connectome, dead, plan).deaths)
        else:
            deaths.append(_streamed(activations[half]).deaths)
    return tuple(deaths)


def _mean_weight(signature: Signature) -> float:
    """Return the mean of all edges, within half a bin where deaths are counted; NaN for a single unit."""
    deaths = signature.deaths
    if isinstance(deaths, WeightHistogram):
        count, total = deaths.total, float(deaths.counts @ deaths.centres.astype(np.float64))
    else:
        count, total = deaths.size, float(deaths.sum(dtype=np.float64))
    edges = signature.births.size + count
    return (float(signature.births.sum(dtype=np.float64)) + total) / edges if edges else float("nan")


def _changes(before: Look | None, now: Look) -> dict[str, float]:
    nothing = float("nan")
    if before is None:
        return {"frobenius": nothing, "first_half": nothing, "second_half": nothing}
    if before.connectome is not None and now.connectome is not None:
        frobenius = sorted_distance([before.connectome], [now.connectome])
    else:
        assert before.columns is not None
        assert now.columns is not None
        frobenius = _frobenius(before.columns, now.columns)
    halves = [deaths_distance(*pair) for pair in zip(before.halves, now.halves)] or [nothing, nothing]
    return {"frobenius": frobenius, "first_half": halves[0], "second_half": halves[1]}


def _frobenius(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the Frobenius distance of two connectomes given as standardised columns, block by block."""
    units, total = first.shape[1], 0.0
    for row in range(0, units, FROBENIUS_BLOCK):
        for column in range(row, units, FROBENIUS_BLOCK):
            rows, columns = slice(row, row + FROBENIUS_BLOCK), slice(column, column + FROBENIUS_BLOCK)
            difference = np.abs(first[:, rows].T @ first[:, columns])
            difference -= np.abs(second[:, rows].T @ second[:, columns])
            if row == column:
                np.fill_diagonal(difference, 0)
            flat = difference.reshape(-1).astype(np.float64)
            total += float(flat @ flat) * (1 if row == column else 2)
    return float(np.sqrt(total))
