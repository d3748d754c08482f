"""Few numbers for one weighted graph: how its degrees and centralities are distributed over vertices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.graphs.centrality import eigenvector_centrality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynome_analysis.graphs.centrality import WeightedGraph
    from dynome_analysis.graphs.layered import LayeredGraph
    from dynome_analysis.graphs.structure import LayeredStructure
    from dynome_analysis.graphs.unrolled import UnrolledGraph, UnrolledStructure

__all__ = ["STATISTICS", "distribution", "feature_names", "graph_signature", "layer_signature"]

MEASURES = ("degree", "centrality")
STATISTICS = ("median", "mean", "std", "skewness", "kurtosis")


def distribution(values: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Return median, mean, standard deviation, skewness and kurtosis.

    Parameters
    ----------
    values : floating, shape (n,)
        At least one, all finite.

    Returns
    -------
    dict of str to float
        Keys `STATISTICS`. With central moments ``m_k`` over n (not n - 1): std ``sqrt(m2)``, skewness ``m3 / m2^1.5``,
        kurtosis ``m4 / m2^2 - 3`` (0 for a normal distribution). Skewness and kurtosis of constant values are 0 [O]:
        they are not defined, and a network whose units are all alike must not become a missing feature.

    Notes
    -----
    The five aggregators of NetSimile (Berlingerio, Koutra, Eliassi-Rad, Faloutsos, 2012) [O: a co-author's]. O(n
    log n).
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    centred = values - mean
    spread = float(np.abs(centred).max())
    # Rounding alone spreads equal values by about an ulp; ratios of such moments would be noise.
    constant = spread <= 8 * np.finfo(np.float64).eps * abs(mean)
    scaled = np.zeros_like(centred) if constant else centred / spread
    second = float((scaled**2).mean())
    return {
        "median": float(np.median(values)),
        "mean": mean,
        "std": float(spread * np.sqrt(second)),
        "skewness": 0.0 if constant else float((scaled**3).mean() / second**1.5),
        "kurtosis": 0.0 if constant else float((scaled**4).mean() / second**2 - 3.0),
    }


def graph_signature(graph: WeightedGraph) -> dict[str, float]:
    """Summarise weighted degree and eigenvector centrality over all vertices.

    Parameters
    ----------
    graph : WeightedGraph
        One snapshot's graph.

    Returns
    -------
    dict of str to float
        ``degree_median`` ... ``degree_kurtosis``, ``centrality_median`` ... ``centrality_kurtosis``. Centrality is
        multiplied by ``sqrt(n_vertices)``, so that networks of different width compare [O]. Vertices outside the
        largest component count with centrality 0.

    Raises
    ------
    InvalidDataError
        No edge has a weight, or centrality did not converge.

    Notes
    -----
    Vahedian et al., arXiv 2111.05410 [P: degree and eigenvector centrality; O: which statistics]. Cost: that of
    `eigenvector_centrality`.
    """
    return _named(_vertex_values(graph), slice(None))


def layer_signature(graph: LayeredGraph | UnrolledGraph) -> dict[str, float]:
    """Summarise weighted degree and eigenvector centrality for each vertex group, as ``degree_mean[fc1]``.

    As `graph_signature` otherwise.
    """
    values = _vertex_values(graph)
    features: dict[str, float] = {}
    for group in graph.structure.groups:
        features |= {f"{name}[{group.name}]": value for name, value in _named(values, group.vertices).items()}
    return features


def feature_names(structure: LayeredStructure | UnrolledStructure, *, per_layer: bool = False) -> list[str]:
    """Return the keys of `graph_signature`, or of `layer_signature`, in their order."""
    plain = [f"{measure}_{statistic}" for measure in MEASURES for statistic in STATISTICS]
    return [f"{name}[{group.name}]" for group in structure.groups for name in plain] if per_layer else plain


def _vertex_values(graph: WeightedGraph) -> dict[str, NDArray[np.float64]]:
    centrality = eigenvector_centrality(graph).values * np.sqrt(graph.n_vertices)
    return dict(zip(MEASURES, (graph.degree(), centrality), strict=True))


def _named(values: dict[str, NDArray[np.float64]], vertices: slice) -> dict[str, float]:
    return {
        f"{measure}_{statistic}": value
        for measure, per_vertex in values.items()
        for statistic, value in distribution(per_vertex[vertices]).items()
    }
