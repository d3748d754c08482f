"""Eigenvector centrality of dense connectomes, against ARPACK and the graph libraries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import igraph
import networkit
import networkx
import numpy as np
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits

from dynome_analysis.connectome.correlation import correlate
from dynome_analysis.graphs.dense import dense_centrality

from . import machine
from .inputs import SAMPLES, activations
from .limited import limited
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
To a residual of 1e-6; one thread up to 2048 units, as a worker has one snapshot, all cores above. ARPACK gets the
float32 matrix, the same tolerance and the strength as its start. Graphs of the libraries are built beforehand and not
counted. `2 clusters, close` has two blocks of equal size that are nearly apart, so that the two largest eigenvalues
almost meet."""
KINDS = ("null", "latent", "10 clusters", "2 clusters", "2 clusters, close")


def structured(kind: str, units: int) -> NDArray[np.float32]:
    """Return activations (sample, unit) of units that follow one drive per cluster, or of another kind of `inputs`."""
    if "clusters" not in kind:
        return activations(kind, units)
    clusters = int(kind.split()[0])
    generator = np.random.default_rng(0)
    drives = generator.standard_normal((SAMPLES, clusters))
    noise = generator.standard_normal((SAMPLES, units))
    values = drives[:, np.arange(units) % clusters] * (3.0 if "close" in kind else 1.0) + noise
    return values.astype(np.float32)


def by_arpack(matrix: NDArray[np.float32]) -> object:
    """The largest algebraic eigenvalue's vector."""
    return eigsh(matrix, k=1, which="LA", tol=1e-6, v0=matrix.sum(axis=1))


def libraries(matrix: NDArray[np.float32], threads: int) -> dict[str, Callable[[], object]]:
    """The graph libraries on prebuilt graphs; networkx only where it ends in seconds."""
    units = len(matrix)
    first, second = np.triu_indices(units, 1)
    weights = matrix[first, second].astype(np.float64)
    networkit.setNumberOfThreads(threads)
    other = networkit.graph.GraphFromCoo((weights, (first, second)), n=units, weighted=True, directed=False)
    arms: dict[str, Callable[[], object]] = {
        "networkit, prebuilt": lambda: networkit.centrality.EigenvectorCentrality(other, tol=1e-6).run()
    }
    if units <= 5000:
        graph = igraph.Graph(n=units, edges=np.column_stack([first, second]))
        graph.es["weight"] = weights
        arms["igraph, prebuilt"] = lambda: graph.eigenvector_centrality(weights="weight")
    if units <= 1024:
        plain = networkx.from_numpy_array(matrix)
        arms["networkx, prebuilt"] = lambda: networkx.eigenvector_centrality(plain, weight="weight", tol=1e-6)
    return arms


def prepare(arm: str, kind: str, units: int) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    matrix = correlate(structured(kind, units))[0]
    if arm == "scipy eigsh":
        return lambda: by_arpack(matrix)
    dense_centrality(matrix[:64, :64], check=False)
    return lambda: dense_centrality(matrix, check=False, threads=machine.CORES)


def rows() -> Iterator[Row]:
    """Every kind at 1024 ... 10,000 units; all libraries on one kind, the fastest on the others."""
    for kind in KINDS:
        for units in (1024, 2048, 5000, 10_000):
            values = structured(kind, units)
            matrix = correlate(values)[0]
            # A tenth of noise: about as far as one epoch moves a connectome.
            moved = values + np.random.default_rng(1).normal(0, 0.1 * values.std(), values.shape).astype(np.float32)
            before = dense_centrality(correlate(moved)[0], check=False)[1].values
            threads = 1 if units <= 2048 else machine.CORES
            arms = {
                "ours": partial(dense_centrality, matrix, check=False, threads=threads),
                "ours, warm start": partial(dense_centrality, matrix, check=False, threads=threads, start=before),
                "ours, checked": partial(dense_centrality, matrix, threads=threads),
                "scipy eigsh": partial(by_arpack, matrix),
            }
            if kind == "latent" or (kind == "10 clusters" and units <= 2048):
                arms |= libraries(matrix, threads)
            with threadpool_limits(threads):
                seconds = interleaved(arms, seconds=2, rounds=15)
            memory = (
                {
                    "ours": limited("benchmarks.centrality:prepare", "ours", kind, units).memory,
                    "scipy eigsh": limited("benchmarks.centrality:prepare", "scipy eigsh", kind, units).memory,
                }
                if kind == "latent"
                else {}
            )
            limit = matrix.nbytes / machine.limits(threads).bytes_per_second
            yield Row(
                f"eigenvector centrality, {kind}", f"{units} units", seconds, memory, limit, "reading the matrix once"
            )
