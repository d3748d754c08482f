"""Degree-1 Rips persistence, against every engine: ripser.py, giotto-ph, giotto-tda, gudhi."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import gudhi
import numpy as np
from gph import ripser_parallel
from ripser import ripser
from threadpoolctl import threadpool_limits

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.persistence.rips import rips_diagrams, rips_distances

from .inputs import connectome, recorded_activations
from .limited import limited, remembered
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
One thread but for the arm that says 2. Every engine stops at the enclosing radius; `gudhi` is its simplex tree. An arm
that would take minutes is measured once, in a process of its own, within a limit."""
PATIENCE = 60.0


def by_ripser(distances: NDArray[np.float32]) -> object:
    """Degrees 0 and 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ripser(distances, maxdim=1, thresh=np.inf, distance_matrix=True)["dgms"][1]


def by_giotto_ph(distances: NDArray[np.float32], threads: int) -> object:
    """Degrees 0 and 1, on some threads."""
    found = ripser_parallel(
        distances, maxdim=1, thresh=np.inf, metric="precomputed", collapse_edges=False, n_threads=threads
    )
    return found["dgms"][1]


def by_giotto_tda(distances: NDArray[np.float32]) -> object:
    """Degrees 0 and 1, as a transformer gives them."""
    from gtda.homology import VietorisRipsPersistence

    return VietorisRipsPersistence(metric="precomputed", homology_dimensions=[0, 1]).fit_transform(distances[None])


def by_gudhi(distances: NDArray[np.float32]) -> object:
    """Simplex tree up to the enclosing radius, then cohomology."""
    radius = float(distances.max(axis=1).min())
    tree = gudhi.RipsComplex(distance_matrix=distances, max_edge_length=radius).create_simplex_tree(max_dimension=2)
    tree.compute_persistence(homology_coeff_field=2)
    return tree.persistence_intervals_in_dimension(1)


def by_gudhi_collapsed(distances: NDArray[np.float32]) -> object:
    """The same after edge collapse."""
    radius = float(distances.max(axis=1).min())
    tree = gudhi.RipsComplex(distance_matrix=distances, max_edge_length=radius).create_simplex_tree(max_dimension=1)
    tree.collapse_edges()
    tree.expansion(2)
    tree.compute_persistence(homology_coeff_field=2)
    return tree.persistence_intervals_in_dimension(1)


PEERS: dict[str, Callable[[NDArray[np.float32]], object]] = {
    "ripser.py": by_ripser,
    "giotto-ph": lambda distances: by_giotto_ph(distances, 1),
    "giotto-ph, 2 threads": lambda distances: by_giotto_ph(distances, 2),
    "giotto-tda": by_giotto_tda,
    "gudhi": by_gudhi,
    "gudhi, edges collapsed": by_gudhi_collapsed,
}
if find_spec("gtda") is None:
    del PEERS["giotto-tda"]
RIPSERS = tuple(name for name in PEERS if not name.startswith("gudhi"))


def ours(matrix: NDArray[np.float32]) -> object:
    """H1 by our own kernel."""
    return rips_diagrams(matrix, dimensions=(1,), engine="dynome", memory_limit=8 << 30)[1]


def recorded_connectome(units: int, epoch: int) -> NDArray[np.float32]:
    """The connectome of one recorded epoch."""
    return correlate(recorded_activations(units)[epoch])[0]


def prepare(arm: str, kind: str, units: int, epoch: int = 10) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    matrix = recorded_connectome(units, epoch) if kind == "recorded" else connectome(kind, units)
    if arm == "ours":
        ours(matrix[:64, :64])
        return lambda: ours(matrix)
    distances = rips_distances(matrix)
    return lambda: PEERS[arm](distances)


def measured(kind: str, units: int, epoch: int | None = None, *, quick: tuple[str, ...] = tuple(PEERS)) -> Row:
    """Interleave what is quick, run the rest alone with a limit; memory of ours and of the best peer."""
    matrix = connectome(kind, units) if epoch is None else recorded_connectome(units, epoch)
    distances = rips_distances(matrix)
    arguments = (kind, units) if epoch is None else (kind, units, epoch)
    arms = {"ours": lambda: ours(matrix), **{name: lambda name=name: PEERS[name](distances) for name in quick}}
    with threadpool_limits(1):
        seconds = interleaved(arms, seconds=3)
    for name in PEERS:
        if name not in quick:
            seconds[name] = remembered("benchmarks.loops:prepare", name, *arguments, cpu_seconds=PATIENCE).seconds
    best = min(
        (name for name in seconds if name != "ours" and not isinstance(seconds[name], str)),
        key=lambda name: seconds[name],
        default=None,
    )
    memory = {
        arm: limited("benchmarks.loops:prepare", name, *arguments, cpu_seconds=PATIENCE).memory
        for arm, name in (("ours", "ours"), ("best peer", best))
        if name
    }
    label = f"{kind} {units}" if epoch is None else f"{units} units, epoch {epoch}"
    return Row("H1" if epoch is None else "H1, recorded", label, seconds, memory)


def rows() -> Iterator[Row]:
    """Cases of every kind; the largest are in `large`."""
    yield measured("null", 128)
    yield measured("null", 256, quick=("gudhi", "gudhi, edges collapsed"))
    yield measured("null", 512, quick=())
    for units in (128, 256):
        yield measured("latent", units)
    for units in (512, 1024):
        yield measured("latent", units, quick=RIPSERS)
    for epoch in (0, 1, 10):
        for units in (256, 512, 1024) if epoch == 10 else (256, 512):
            yield measured("recorded", units, epoch, quick=RIPSERS)
    for units in (2048,):
        outcome = limited("benchmarks.loops:prepare", "ours", "latent", units)
        yield Row("H1, ours alone", f"latent {units}", {"ours": outcome.seconds}, {"ours": outcome.memory})


def large() -> Iterator[Row]:
    """What only we are expected to finish: every engine gets 600 s of processor time and 8 GB."""
    for kind, units in (("latent", 4096), ("null", 1024)):
        seconds: dict[str, float | str] = {}
        memory = {}
        for name in ("ours", "gudhi", "gudhi, edges collapsed", "giotto-ph", "ripser.py"):
            run = limited if name == "ours" else remembered
            outcome = run("benchmarks.loops:prepare", name, kind, units)
            seconds[name], memory[name] = outcome.seconds, outcome.memory
        yield Row("H1 within 600 s and 8 GB", f"{kind} {units}", seconds, memory)
