"""Births of components, and whole signatures, against every library that has a spanning tree or H0."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gudhi
import igraph
import networkit
import numpy as np
from gph import ripser_parallel
from hdbscan._hdbscan_linkage import mst_linkage_core
from ripser import ripser
from scipy.sparse.csgraph import minimum_spanning_tree
from threadpoolctl import threadpool_limits

from dynome_analysis.homology.births import births, births_and_deaths
from dynome_analysis.homology.histogram import death_histogram

from . import machine
from .inputs import KINDS, connectome
from .limited import limited
from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

NOTE = """\
One thread. Ours checks its input unless told that it is a connectome just made; the graphs of igraph and networkit
are built beforehand and not counted."""


def by_scipy(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Negated, since scipy's is the minimum tree; edges of weight 0 would be lost."""
    return np.sort(-minimum_spanning_tree(-matrix).data)


def signature_by_scipy(matrix: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The public way: scipy's spanning tree, a mask of its edges, a sort of what remains."""
    tree = minimum_spanning_tree(-matrix).toarray()
    kept = np.triu(matrix, 1)
    kept[(tree != 0) | (tree.T != 0)] = 0
    return np.sort(-tree[tree != 0]), np.sort(kept[kept > 0])


def by_gudhi(distances: NDArray[np.float32]) -> list[Any]:
    """H0 of the Rips filtration."""
    tree = gudhi.RipsComplex(distance_matrix=distances, max_edge_length=1.0).create_simplex_tree(max_dimension=1)
    return list(tree.persistence())


def by_ripser(distances: NDArray[np.float32]) -> object:
    """H0 of the Rips filtration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ripser(distances, maxdim=0, distance_matrix=True)["dgms"][0]


def peers(matrix: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """Every library, each with the input that it wants, prepared."""
    units = len(matrix)
    distances = 1 - matrix
    np.fill_diagonal(distances, 0)
    wide = distances.astype(np.float64)
    first, second = np.triu_indices(units, 1)
    lengths = distances[first, second].tolist()
    graph = igraph.Graph(n=units, edges=np.column_stack([first, second]))
    networkit.setNumberOfThreads(1)
    other = networkit.graph.GraphFromCoo(
        (matrix[first, second].astype(np.float64), (first, second)), n=units, weighted=True, directed=False
    )
    return {
        "scipy": lambda: by_scipy(matrix),
        "hdbscan, float64": lambda: mst_linkage_core(wide),
        "gudhi H0": lambda: by_gudhi(distances),
        "giotto-ph H0": lambda: ripser_parallel(distances, maxdim=0, metric="precomputed"),
        "ripser.py H0": lambda: by_ripser(distances),
        "igraph, prebuilt": lambda: graph.spanning_tree(weights=lengths, return_tree=False),
        "networkit, prebuilt": lambda: networkit.graph.RandomMaximumSpanningForest(other).run(),
    }


def prepare(arm: str, kind: str, units: int) -> Callable[[], object]:
    """Return one call of one arm, for a process of its own."""
    matrix = connectome(kind, units)
    births_and_deaths(matrix[:64, :64])
    return {
        "births": lambda: births(matrix),
        "births and deaths": lambda: births_and_deaths(matrix),
        "scipy and masks": lambda: signature_by_scipy(matrix),
    }[arm]


def rows() -> Iterator[Row]:
    """Measure from 512 to 4096 units; all peers on one kind of connectome, the two that matter on the others."""
    reading = machine.limits(1).bytes_per_second
    for kind in KINDS:
        for units in (512, 1024, 2048, 4096):
            matrix = connectome(kind, units)
            others = peers(matrix)
            if kind != "latent":
                others = {name: others[name] for name in ("scipy", "hdbscan, float64")}
            arms = {"ours": lambda m=matrix: births(m), "ours, unchecked": lambda m=matrix: births(m, check=False)}
            with threadpool_limits(1):
                seconds = interleaved({**arms, **others}, seconds=3)
            memory = (
                {"ours": limited("benchmarks.births:prepare", "births", kind, units).memory} if kind == "latent" else {}
            )
            yield Row(
                f"births, {kind}", f"{units} units", seconds, memory, matrix.nbytes / reading, "reading the matrix once"
            )
            edges = matrix[np.triu_indices(units, 1)]
            with threadpool_limits(1):
                seconds = interleaved(
                    {
                        "ours": lambda m=matrix: births_and_deaths(m),
                        "ours, unchecked": lambda m=matrix: births_and_deaths(m, check=False),
                        "ours, death histogram": lambda m=matrix: (births(m), death_histogram(m, check=False)),
                        "scipy and masks": lambda m=matrix: signature_by_scipy(m),
                        "one np.sort of the edges": lambda edges=edges: np.sort(edges),
                    },
                    seconds=3,
                )
            memory = (
                {
                    arm: limited("benchmarks.births:prepare", arm, kind, units).memory
                    for arm in ("births and deaths", "scipy and masks")
                }
                if kind == "latent"
                else {}
            )
            yield Row(f"births and deaths, {kind}", f"{units} units", seconds, memory)
