"""Everything about one recording: what the report, the replay and the command line read.

Tasks are stretches of consecutive snapshots. Each writes what it measured into the result beside the recording,
snapshot by snapshot, and returns numbers only; distances between all snapshots are then read back in slices. So neither
a worker nor the caller ever holds more than a few snapshots, and what was written need not be computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import dask.array as da
import numpy as np
import xarray as xr

from dynome_analysis.compute import Progress, worker_memory
from dynome_analysis.connectome.columns import Measure
from dynome_analysis.distance.halves import paired_floor
from dynome_analysis.homology.births import number_of_deaths
from dynome_analysis.homology.histogram import BINS, WeightHistogram
from dynome_analysis.labelled.connectomes import choose_units
from dynome_analysis.persistence.rips import Engine, find_engine
from dynome_analysis.pipeline.cache import Facts, ResultFolder, ResultKey, RowArray, prune
from dynome_analysis.pipeline.comparisons import compare_loops, compare_weights
from dynome_analysis.pipeline.measurement import NOT_WANTED, Plan
from dynome_analysis.pipeline.stretches import measure_missing
from dynome_analysis.provenance import provenance
from dynome_analysis.reading import distinct_snapshots
from dynome_analysis.whole import check_whole
from dynome_recorder.errors import InvalidArgumentError, StorageError
from dynome_recorder.storage.format import ANALYSIS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynome_analysis.homology.routes import Route
    from dynome_analysis.reading import SnapshotReader
    from dynome_analysis.recording import Recording

__all__ = ["analyze", "code_version"]

logger = logging.getLogger(__name__)

OPERATION = "analyze"
# A change in any module makes results stale, but for these, which make none of its numbers.
NOT_NUMBERS = ("demo", "prediction", "replay", "report", "commands.py", "tables.py", "datasets.py", "files.py")
# Bytes that a snapshot takes at most by the dense route, per pair of units: see `measure_snapshot`.
DENSE_BYTES = 24
# Most points of an H1 diagram that one chunk holds.
POINTS = 4096


def analyze(
    recording: Recording,
    *,
    sites: Sequence[str] | str | None = None,
    measure: Measure = "pearson",
    units: int | None = None,
    deaths: Literal["auto", "exact", "histogram"] = "auto",
    route: Literal["auto", "dense", "streaming"] = "auto",
    engine: Engine | Literal["none"] = "auto",
    memory_limit: int | None = None,
    until: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    refresh: bool = False,
) -> xr.Dataset:
    """Compute signatures, their changes and noise floors of a whole recording, once; later calls read the result.

    Parameters
    ----------
    recording : Recording
    sites : str or sequence of str, optional
        Names or shell patterns; all sites, as one joint graph, by default.
    measure : str
        How two units are compared, as for `connectomes`.
    units : int, optional
        Take only so many units, drawn from every site as for `connectomes`. All by default.
    deaths : {"auto", "exact", "histogram"}
        Keep deaths one by one (2 * unit^2 bytes per snapshot), or counted in 65,536 bins, each known to half a bin.
        "auto": exact by the dense route, counted by the other.
    route : {"auto", "dense", "streaming"}
        Hold a snapshot's connectome whole, or make it tile by tile; "auto" by memory, which is logged. Streaming knows
        |Pearson| only, and leaves H1 out.
    engine : {"auto", "none", ...}
        What computes H1, as for `rips`; "none" leaves it out.
    memory_limit : int, optional
        Bytes that one snapshot may take; by default half of what is free per worker.
    until : int, optional
        Last epoch that is analysed, e.g. the last one before a run diverged.
    seed : int
        Of the split of the probe into halves, for the noise floors, and of the units that are drawn.
    progress : callable, optional
        Called as ``progress(description, done, total)``, once per snapshot.
    refresh : bool
        Compute anew even what was computed before.

    Returns
    -------
    Dataset
        Coordinates ``epoch`` and ``step`` on snapshot. Small arrays are in memory, the first five are lazy (Dask, one
        chunk per snapshot). On (snapshot) float64 unless said otherwise:

        - ``births`` float32 (snapshot, birth), ascending
        - ``deaths`` float32 (snapshot, death), ascending; or ``death_counts`` int64 (snapshot, bin) of weights around
          ``weight`` (bin), each within the attribute ``deaths_bound``
        - ``h1_birth``, ``h1_death`` (snapshot, point), padded with NaN; ``functional_persistence``, the L2 norm of
          the H1 lifetimes. Where H1 is left out there are no points, the norm is NaN, and the attribute ``h1`` says why
        - ``dead_units`` int64
        - ``reconfiguration_top``, ``_births``, ``_deaths``, ``_wasserstein``, ``_frobenius``: distance to the
          snapshot before, NaN at the first
        - ``noise_floor_two_halves``, ``noise_floor_paired``: of the deaths distance, see `noise_floor`
        - ``distance_matrix`` (snapshot, snapshot_): "top" distances between all snapshots; ``distance_births`` and
          ``distance_deaths``, its two parts
        - ``mean_absolute_correlation``: mean edge weight, NaN for a single unit

        Attributes: ``sites`` (JSON list), ``units``, ``samples``, ``route``, ``h1``, and provenance.

    Raises
    ------
    InvalidArgumentError
        A pattern that matches no site, an unknown choice, a number that is not whole or too small, exact deaths of a
        streamed connectome, no snapshot until the epoch.
    InvalidDataError
        No snapshot is committed, or activations hold NaN or infinity; names recording, epoch and site.
    CorruptRecordingError
        A stored file of the recording is missing, truncated or changed; names it.
    StorageError
        Neither the recording's folder nor a temporary one can be written.

    Notes
    -----
    A recording of one snapshot has a signature but no changes: those are NaN.

    Time per snapshot: one connectome and its homology, the same of either half of the probe, one H1 diagram; then one
    matching of diagrams per change, and O(snapshot^2 * value) for all distances. Memory per worker thread, whatever the
    number of snapshots: 24 * unit^2 bytes by the dense route, three copies of the activations by the other.

    The result is kept in ``RUN/analysis.zarr``, a piece per snapshot, by identity of the snapshot, parameters and code:
    an interrupted analysis goes on, and a recording that has grown is analysed where it has. All of it is checked when
    it is read. Where the folder cannot be written, a temporary one (Dask's ``temporary-directory``) holds it as long as
    the Dataset lives.

    Runs on Dask's threads, or on the cluster whose ``distributed.Client`` is current; its workers need the folder.
    """
    seed = check_whole("seed", seed, least=0)
    until = None if until is None else check_whole("until", until)
    memory_limit = None if memory_limit is None else check_whole("memory_limit", memory_limit, least=1)
    reader, identities = _chosen_snapshots(recording, sites, until)
    samples, count = reader.shape
    recording.warn_of_small_batches(count if units is None else units)
    places = None if units is None else tuple(choose_units(reader.labels, units, seed=seed).tolist())
    count = count if places is None else len(places)
    # A result computed from whole files must not hide that they are damaged now.
    recording.manifest.check_files(recording.site_paths(reader.arrays))
    name = None if engine == "none" else find_engine(engine)
    requests = [
        _request(recording, reader, Plan(measure, one, kind, name, memory_limit, seed, places), count, until)
        for one, kind in _ways(measure=measure, deaths=deaths, route=route)
    ]
    if not refresh:
        # A result of the roomier route is worth having, however little memory is free now.
        for request in requests:
            result = _read(request, recording.path / ANALYSIS_FOLDER, identities)
            if result is not None:
                return result
    request = requests[0 if len(requests) == 1 or _fits(count, samples, memory_limit) else 1]
    try:
        return _compute(request, recording.path / ANALYSIS_FOLDER, reader, identities, progress, refresh=refresh)
    except StorageError as error:
        logger.info("not caching %s: %s", OPERATION, str(error))
    root = Path(tempfile.mkdtemp(prefix="dynome-", dir=dask.config.get("temporary-directory", None)))
    # Lazy arrays read from it; with the last of them it goes.
    lease = _Lease()
    remove = weakref.finalize(lease, shutil.rmtree, root, ignore_errors=True)
    try:
        return _compute(request, root / ANALYSIS_FOLDER, reader, identities, progress, refresh=False, lease=lease)
    except BaseException:
        remove()  # the traceback would hold the lease, and a full disk its files
        raise


@cache
def code_version() -> str:
    """Return the package's version and a digest of the code that makes the numbers: no result outlives an edit."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.relative_to(here).parts[0] not in NOT_NUMBERS:
            digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('dynome')}+{digest.hexdigest()[:16]}"


class _Lease:
    """Something to hold on to."""


@dataclass(frozen=True)
class _Request:
    """One way to answer a call.

    Attributes
    ----------
    plan : Plan
    key : ResultKey
    parameters : dict
        As the provenance tells them.
    arrays : dict of str to RowArray
        The large arrays of the result.
    """

    plan: Plan
    key: ResultKey
    parameters: dict[str, Any]
    arrays: dict[str, RowArray]


def _chosen_snapshots(
    recording: Recording, sites: Sequence[str] | str | None, until: int | None
) -> tuple[SnapshotReader, list[str]]:
    """Return the reader of the snapshots that are analysed, and what the piece of each depends on.

    That is what was committed with it and with the snapshot before it: not its place, nor what came later.
    """
    reader, manifest = recording.reader(sites), recording.manifest
    snapshots = distinct_snapshots(manifest, recording.stream)
    if until is not None:
        snapshots = tuple(takewhile(lambda snapshot: snapshot[0].epoch <= until, snapshots))
        if not snapshots:
            raise InvalidArgumentError(
                f"until: {recording.path} has no snapshot up to epoch {until}; its first is of epoch {reader.epochs[0]}"
            )
        count = len(snapshots)
        reader = replace(
            reader,
            indices=reader.indices[:count],
            epochs=reader.epochs[:count],
            steps=reader.steps[:count],
            there=None if reader.there is None else reader.there[:count],
        )
    layouts = [manifest.layouts[path] for path in recording.site_paths(reader.arrays)]
    own = [
        [
            record.sequence,
            record.checksum,
            [record.files[name] for layout in layouts for name in layout.files(index) if name in record.files],
        ]
        for record, index in snapshots
    ]
    texts = [json.dumps([manifest.run_id, before, now]) for before, now in zip([None, *own], own)]
    return reader, [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]


def _ways(*, measure: str, deaths: str, route: str) -> list[tuple[Route, Literal["exact", "histogram"]]]:
    """Return the routes that may be taken, the better one first, and how each keeps deaths."""
    choices = {"measure": (measure, get_args(Measure)), "deaths": (deaths, ("auto", "exact", "histogram"))}
    choices["route"] = (route, ("auto", "dense", "streaming"))
    for name, (value, known) in choices.items():
        if value not in known:
            raise InvalidArgumentError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    dense: tuple[Route, Literal["exact", "histogram"]] = ("dense", "histogram" if deaths == "histogram" else "exact")
    if route == "dense":
        return [dense]
    obstacles = [
        text
        for text, is_there in (
            (f"measure={measure!r}: it streams |Pearson| only", measure != "pearson"),
            ("deaths='exact': it counts them", deaths == "exact"),
        )
        if is_there
    ]
    if route == "auto":
        return [dense] if obstacles else [dense, ("streaming", "histogram")]
    if obstacles:
        raise InvalidArgumentError(f"the streaming route cannot do {' nor '.join(obstacles)}; leave it out")
    return [("streaming", "histogram")]


def _fits(units: int, samples: int, memory_limit: int | None) -> bool:
    """Say whether the dense route fits in memory, and log why."""
    needed = DENSE_BYTES * units * units + 12 * samples * units
    limit = worker_memory() if memory_limit is None else memory_limit
    fits = needed <= limit
    logger.info(
        "%d units: a snapshot takes %.0f MB by the dense route, %.0f MB may be used: %s",
        *(
            units,
            needed / 1e6,
            limit / 1e6,
            "dense" if fits else "streaming, without H1 and with deaths counted in bins",
        ),
    )
    return fits


def _request(recording: Recording, reader: SnapshotReader, plan: Plan, units: int, until: int | None) -> _Request:
    parameters: dict[str, Any] = {"sites": list(reader.arrays), "until": until, **asdict(plan)}
    if recording.stream != "probe":
        parameters["stream"] = recording.stream
    del parameters["places"]  # follow from the number of units and the seed
    parameters["units"] = None if plan.places is None else units
    # Engines are called as their distributions are; ours is part of the code.
    installed = "" if plan.engine in (None, "dynome") else version(str(plan.engine))
    died = (
        {"deaths": RowArray("death", number_of_deaths(units), "float32")}
        if plan.deaths == "exact"
        else {"death_counts": RowArray("bin", BINS, "int64")}
    )
    points = RowArray("point", units * (units - 1) // 2, "float64", chunk=POINTS)
    return _Request(
        plan,
        ResultKey(
            operation=OPERATION,
            recording=recording.id,
            code=code_version(),
            parameters=json.dumps({**parameters, "engine_version": installed}, sort_keys=True),
        ),
        parameters,
        {"births": RowArray("birth", units - 1, "float32"), **died, "h1_birth": points, "h1_death": points},
    )


def _read(request: _Request, root: Path, identities: Sequence[str]) -> xr.Dataset | None:
    """Return a finished result of exactly these snapshots, or None; what is damaged in it is told and discarded."""
    folder = ResultFolder(str((root / request.key.name).absolute()), request.arrays)
    finished = folder.load_small()
    if finished is None or finished[1].get("pieces") != list(identities):
        return None
    if len(folder.read_pieces(identities)) < len(identities):
        return None
    return _labelled(folder, identities, *finished)


def _compute(
    request: _Request,
    root: Path,
    reader: SnapshotReader,
    identities: Sequence[str],
    progress: Progress | None,
    *,
    refresh: bool,
    lease: _Lease | None = None,
) -> xr.Dataset:
    """Complete the result in a folder and return it."""
    folder = ResultFolder(str((root / request.key.name).absolute()), request.arrays)
    rows = len(identities)
    if refresh:
        folder.clear()
    earlier = folder.load_small()
    known = folder.read_pieces(identities)
    owner = {"recording": request.key.recording, "code": request.key.code}
    folder.prepare(rows, owner)
    facts = measure_missing(reader, identities, request.plan, folder, known, progress=progress)
    between = {} if earlier is None else _distances_kept(*earlier, identities)
    distances = compare_weights(folder, rows=rows, known=between, progress=progress)
    changes = compare_loops(folder, identities, facts, progress=progress)
    widths = dict.fromkeys(("h1_birth", "h1_death"), max(int(fact["points"]) for fact in facts))
    small = _small_arrays(request, reader, facts, distances, changes)
    origin = {**owner, "pieces": list(identities), "widths": widths}
    folder.finish(rows, widths, small, origin)
    prune(root, request.key)
    return _labelled(folder, identities, small, origin, lease=lease)


def _distances_kept(
    small: xr.Dataset, origin: dict[str, Any], identities: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the distances of an earlier result between the first snapshots, as far as these are still the same."""
    count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(origin["pieces"], identities)))
    if not count:
        return {}
    return {name: small[f"distance_{name}"].values[:count, :count] for name in ("births", "deaths")}


def _small_arrays(
    request: _Request,
    reader: SnapshotReader,
    facts: Sequence[Facts],
    distances: dict[str, NDArray[np.float64]],
    changes: NDArray[np.float64],
) -> xr.Dataset:
    def series(name: str) -> NDArray[np.float64]:
        return np.array([float(fact[name]) for fact in facts])

    def steps(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[np.nan], np.diagonal(matrix, offset=-1)])

    both = np.hypot(distances["births"], distances["deaths"])
    columns = {
        "dead_units": np.array([fact["dead_units"] for fact in facts], np.int64),
        "functional_persistence": series("functional_persistence"),
        "mean_absolute_correlation": series("mean_absolute_correlation"),
        "noise_floor_two_halves": series("two_halves"),
        "reconfiguration_top": steps(both),
        "reconfiguration_births": steps(distances["births"]),
        "reconfiguration_deaths": steps(distances["deaths"]),
        "reconfiguration_wasserstein": changes,
        "reconfiguration_frobenius": series("frobenius"),
        "noise_floor_paired": paired_floor(series("first_half"), series("second_half")),
    }
    coordinates: dict[str, Any] = {
        "epoch": ("snapshot", np.array(reader.epochs, np.int64)),
        "step": ("snapshot", np.array(reader.steps, np.int64)),
    }
    samples, units = reader.shape
    if request.plan.places is not None:
        units = len(request.plan.places)
        coordinates["unit"] = ("unit", np.array(request.plan.places, np.int64))
    attributes = {"sites": json.dumps(list(reader.arrays)), "units": units, "samples": samples}
    attributes |= {"route": request.plan.route, "h1": _words_on_loops(facts)}
    if request.plan.deaths == "histogram":
        coordinates["weight"] = ("bin", WeightHistogram(np.zeros(BINS, np.int64)).centres)
        attributes["deaths_bound"] = 0.5 / BINS
    return xr.Dataset(
        {
            "distance_matrix": (("snapshot", "snapshot_"), both),
            "distance_births": (("snapshot", "snapshot_"), distances["births"]),
            "distance_deaths": (("snapshot", "snapshot_"), distances["deaths"]),
            **{name: ("snapshot", values) for name, values in columns.items()},
        },
        coords=coordinates,
        attrs=attributes | provenance(OPERATION, request.parameters, recording=request.key.recording),
    )


def _words_on_loops(facts: Sequence[Facts]) -> str:
    """Return "computed", or why H1 is left out of some snapshots; what nobody asked for is logged too."""
    left_out = [row for row, fact in enumerate(facts) if fact["h1"]]
    if not left_out:
        return "computed"
    text = f"left out of {len(left_out)} of {len(facts)} snapshots: {facts[left_out[0]]['h1']}"
    if facts[left_out[0]]["h1"] != NOT_WANTED:
        logger.warning("H1 is %s", text)
    return text


def _labelled(
    folder: ResultFolder,
    identities: Sequence[str],
    small: xr.Dataset,
    origin: dict[str, Any],
    *,
    lease: _Lease | None = None,
) -> xr.Dataset:
    """Return small arrays in memory and large ones lazily as one Dataset."""
    large = {}
    for name, array in folder.arrays.items():
        width = int(origin["widths"].get(name, array.width))
        large[name] = (("snapshot", array.dimension), _lazy_rows(_Rows(folder, name, tuple(identities), width, lease)))
    return xr.Dataset(large, attrs=small.attrs).merge(small).assign_attrs(small.attrs)


@dataclass(frozen=True)
class _Rows:
    """Reads one large array of a result, a snapshot at a time; fit to travel, but for the lease."""

    folder: ResultFolder
    name: str
    identities: tuple[str, ...]
    width: int
    lease: _Lease | None


def _lazy_rows(rows: _Rows) -> da.Array:
    count, dtype = len(rows.identities), np.dtype(rows.folder.arrays[rows.name].dtype)
    if not rows.width:
        return da.zeros((count, 0), chunks=(1, 0), dtype=dtype)
    token = hashlib.sha256(repr((rows.folder.path, rows.identities)).encode()).hexdigest()[:32]
    places = da.from_array(np.arange(count).reshape(count, 1), chunks=1, name=f"snapshots-{count}")
    return da.map_blocks(
        _read_rows,
        places,
        stored=dask.delayed(rows, name=f"stored-{rows.name}-{token}", traverse=False),
        chunks=((1,) * count, (rows.width,)),
        dtype=dtype,
        meta=np.empty((0, 0), dtype),
        name=f"{rows.name}-{token}",
    )


def _read_rows(places: NDArray[np.int64], *, stored: _Rows) -> NDArray[Any]:
    row = int(places.flat[0])
    return stored.folder.read_checked(stored.name, row, stored.identities[row], slice(0, stored.width))[None]
