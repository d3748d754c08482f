"""Everything about one recording in one pass: what the report, the replay and the command line read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from dynome_analysis.cache import ResultKey, load_result, store_result
from dynome_analysis.compute import Progress, compute
from dynome_analysis.distance import diagram_distance, pairwise_distances, sorted_distance
from dynome_analysis.halves import paired_floor
from dynome_analysis.homology import births_and_deaths
from dynome_analysis.labelled.changes import half_homologies
from dynome_analysis.labelled.connectomes import correlate_snapshot
from dynome_analysis.labelled.diagrams import pad_points
from dynome_analysis.persistence import ENGINES, Engine, find_engine, functional_persistence, rips_diagrams
from dynome_analysis.provenance import provenance
from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["analyze", "code_version"]

OPERATION = "analyze"
# What the numbers of `analyze` are made by; a change in any of these files makes cached results stale.
SOURCES = (
    "correlation.py",
    "distance.py",
    "halves.py",
    "homology.py",
    "kernels",
    "labelled",
    "persistence.py",
    "pipeline.py",
    "reading.py",
)


def analyze(
    recording: Recording,
    *,
    sites: Sequence[str] | str | None = None,
    seed: int = 0,
    engine: Engine = "auto",
    progress: Progress | None = None,
    refresh: bool = False,
) -> xr.Dataset:
    """Compute signatures, their changes and noise floors of a whole recording, once; later calls read the result.

    Parameters
    ----------
    recording : Recording
    sites : str or sequence of str, optional
        Names or shell patterns; all sites, as one joint graph, by default.
    seed : int
        Of the split of the probe into halves, for the noise floors.
    engine : {"auto", "giotto-ph", "ripser"}
        What computes the H1 diagrams.
    progress : callable, optional
        Called as ``progress(description, done, total)``.
    refresh : bool
        Compute anew even if there is a cached result.

    Returns
    -------
    Dataset
        In memory, with coordinates ``epoch`` and ``step`` on snapshot. On (snapshot) float64 unless said otherwise:

        - ``births`` float32 (snapshot, birth), ``deaths`` float32 (snapshot, death), both ascending; ``dead_units``
          int64
        - ``h1_birth``, ``h1_death`` (snapshot, point), padded with NaN; ``functional_persistence``, the L2 norm of
          the H1 lifetimes
        - ``reconfiguration_top``, ``_births``, ``_deaths``, ``_wasserstein``, ``_frobenius``: distance to the
          snapshot before, NaN at the first
        - ``noise_floor_two_halves``, ``noise_floor_paired``: of the deaths distance, see `noise_floor`
        - ``distance_matrix`` (snapshot, snapshot_): "top" distances between all snapshots
        - ``mean_absolute_correlation``: mean edge weight, NaN for a single unit

        Attributes: ``sites`` (JSON list), ``units``, ``samples``, and provenance.

    Raises
    ------
    InvalidArgumentError
        A pattern that matches no site, an unknown engine.
    InvalidDataError
        No snapshot is committed, or activations hold NaN or infinity; names recording, epoch and site.
    CorruptRecordingError
        A stored file is missing, truncated or changed; names it.

    Notes
    -----
    A recording of one snapshot has a signature but no changes: those are NaN. One pass over the activations, one
    snapshot per worker at a time (3 connectomes each); the result holds ``2 * unit^2`` bytes of deaths per snapshot.
    Cached in ``RUN/analysis.zarr``, keyed by the digest of the commit log, the parameters and the code; where the
    folder cannot be written, the result is just not cached.
    """
    reader = recording.reader(sites)
    name = find_engine(engine)
    parameters = {"sites": list(reader.arrays), "seed": int(seed), "engine": name}
    key = ResultKey(
        operation=OPERATION,
        recording=f"{recording.id}/{recording.manifest.digest}",
        code=code_version(),
        parameters=json.dumps({**parameters, "engine_version": version(ENGINES[name].distribution)}, sort_keys=True),
    )
    # A result computed from whole files must not hide that they are damaged now.
    recording.manifest.check_files([recording.manifest.sites[site]["path"] for site in reader.arrays])
    if not refresh:
        cached = load_result(recording.path, key)
        if cached is not None:
            return cached
    result = _analyze(reader, parameters, progress)
    result.attrs |= provenance(OPERATION, parameters, recording=recording.id)
    store_result(recording.path, key, result)
    return result


@cache
def code_version() -> str:
    """Return the package's version and a digest of the code that makes the numbers: no result outlives an edit."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in SOURCES:
        for path in sorted((here / name).rglob("*.py")) or [here / name]:
            digest.update(path.read_bytes())
    return f"{version('dynome')}+{digest.hexdigest()[:16]}"


@dataclass(frozen=True)
class SnapshotSignature:
    """What is kept of one snapshot; ``deaths_of_halves`` is empty where the probe is too small to be halved."""

    births: NDArray[np.float32]
    deaths: NDArray[np.float32]
    dead_units: int
    loops: NDArray[np.float64]
    deaths_of_halves: tuple[NDArray[np.float32], ...]


def _analyze(reader: SnapshotReader, parameters: dict[str, Any], progress: Progress | None) -> xr.Dataset:
    count = len(reader.indices)
    engine, seed = parameters["engine"], parameters["seed"]
    samples, units = reader.shape
    shared = dask.delayed(reader, traverse=False)
    activations = [dask.delayed(_read)(shared, position) for position in range(count)]
    connectomes = [
        dask.delayed(correlate_snapshot)(block, shared, position) for position, block in enumerate(activations)
    ]
    signatures = [
        dask.delayed(_signature)(activations[position], connectomes[position], shared, position, engine, seed)
        for position in range(count)
    ]
    changes = [
        dask.delayed(_change)(*connectomes[position - 1 : position + 1], *signatures[position - 1 : position + 1])
        for position in range(1, count)
    ]
    # What the halves have to say is needed in the changes only; only then is it let go.
    kept = [dask.delayed(_keep)(signature) for signature in signatures]
    try:
        results = compute([*kept, *changes], description="analyzing snapshots", progress=progress)
    except InvalidDataError:
        # Snapshots run side by side, and any of a diverged run may fail first; the first in time is what helps.
        for position in range(count):
            correlate_snapshot(reader.joint(position), reader, position)
        raise
    rows, steps = results[:count], results[count:]
    births, deaths = np.stack([row["births"] for row in rows]), np.stack([row["deaths"] for row in rows])
    h1_birth, h1_death = pad_points([row["loops"] for row in rows])
    edges = units * (units - 1) // 2
    total = births.sum(axis=1, dtype=np.float64) + deaths.sum(axis=1, dtype=np.float64)
    series = {
        "dead_units": np.array([row["dead_units"] for row in rows], np.int64),
        "functional_persistence": np.array([functional_persistence(row["loops"]) for row in rows]),
        "mean_absolute_correlation": total / edges if edges else np.full(count, np.nan),
        "noise_floor_two_halves": np.array([row["two_halves"] for row in rows]),
    }
    for change in ("top", "births", "deaths", "wasserstein", "frobenius"):
        series[f"reconfiguration_{change}"] = np.array([np.nan, *(step[change] for step in steps)])
    halves = np.array([(np.nan, np.nan), *(step["halves"] for step in steps)])
    series["noise_floor_paired"] = paired_floor(halves[:, 0], halves[:, 1])
    return xr.Dataset(
        {
            "births": (("snapshot", "birth"), births),
            "deaths": (("snapshot", "death"), deaths),
            "h1_birth": (("snapshot", "point"), h1_birth),
            "h1_death": (("snapshot", "point"), h1_death),
            "distance_matrix": (("snapshot", "snapshot_"), pairwise_distances([births, deaths])),
            **{name: ("snapshot", values) for name, values in series.items()},
        },
        coords={
            "epoch": ("snapshot", np.array(reader.epochs, np.int64)),
            "step": ("snapshot", np.array(reader.steps, np.int64)),
        },
        attrs={"sites": json.dumps(parameters["sites"]), "units": units, "samples": samples},
    )


def _read(reader: SnapshotReader, position: int) -> NDArray[np.floating[Any]]:
    return reader.joint(position)


def _signature(
    activations: NDArray[np.floating[Any]],
    correlated: tuple[NDArray[np.float32], NDArray[np.bool_]],
    reader: SnapshotReader,
    position: int,
    engine: Engine,
    seed: int,
) -> SnapshotSignature:
    connectome, dead = correlated
    births, deaths = births_and_deaths(connectome)
    return SnapshotSignature(
        births=births,
        deaths=deaths,
        dead_units=int(np.count_nonzero(dead)),
        loops=rips_diagrams(connectome, dimensions=(1,), engine=engine)[1],
        deaths_of_halves=tuple(pair[1] for pair in half_homologies(activations, reader, position, seed)),
    )


def _change(
    connectome_before: tuple[NDArray[np.float32], NDArray[np.bool_]],
    connectome: tuple[NDArray[np.float32], NDArray[np.bool_]],
    before: SnapshotSignature,
    after: SnapshotSignature,
) -> dict[str, Any]:
    born = sorted_distance([before.births], [after.births])
    died = sorted_distance([before.deaths], [after.deaths])
    halves = [
        sorted_distance([first], [second]) for first, second in zip(before.deaths_of_halves, after.deaths_of_halves)
    ]
    return {
        "births": born,
        "deaths": died,
        "top": float(np.hypot(born, died)),
        "wasserstein": diagram_distance(before.loops, after.loops),
        "frobenius": sorted_distance([connectome_before[0]], [connectome[0]]),
        "halves": tuple(halves) or (np.nan, np.nan),
    }


def _keep(signature: SnapshotSignature) -> dict[str, Any]:
    """Return what the result holds of a snapshot, without the halves."""
    halves = signature.deaths_of_halves
    return {
        "births": signature.births,
        "deaths": signature.deaths,
        "dead_units": signature.dead_units,
        "loops": signature.loops,
        "two_halves": sorted_distance([halves[0]], [halves[1]]) if halves else float("nan"),
    }
