"""Weights on the rolled graph: dense blocks between vertex groups, and the adjacency matrix as an operator.

The matrix of n vertices is never built: it is zero but for one block per connection and the block's transpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_recorder.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dynome_analysis.graphs.structure import Connection, LayeredStructure

__all__ = ["LayeredGraph", "check_finite", "recorded_weight", "rolled_graph"]


@dataclass(frozen=True)
class LayeredGraph:
    """An undirected weighted graph whose edges lie in blocks between groups of vertices.

    Attributes
    ----------
    structure
        Vertices and connections.
    blocks
        One per connection: float64, shape (partition, target, source), finite, not negative.
    """

    structure: LayeredStructure
    blocks: tuple[NDArray[np.float64], ...]

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return self.structure.n_vertices

    @property
    def n_edges(self) -> int:
        """Number of edges; those of weight zero count."""
        return self.structure.n_edges

    def degree(self) -> NDArray[np.float64]:
        """Return the weighted degree, the sum of a vertex's edge weights; float64, shape (vertex,). O(edges)."""
        degree = np.zeros(self.n_vertices)
        for (source, target), block in self._placed():
            degree[target] += block.sum(axis=2).ravel()
            degree[source] += block.sum(axis=1).ravel()
        return degree

    def multiply(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the adjacency matrix times ``x``; float64, shape (vertex,). Two products per block, O(edges)."""
        y = np.zeros(self.n_vertices)
        for (source, target), block in self._placed():
            if len(block) == 1:
                y[target] += block[0] @ x[source]
                y[source] += x[target] @ block[0]
            else:
                y[target] += np.einsum("pts,ps->pt", block, x[source].reshape(len(block), -1)).ravel()
                y[source] += np.einsum("pts,pt->ps", block, x[target].reshape(len(block), -1)).ravel()
        return y

    def components(self) -> NDArray[np.int32]:
        """Label the connected components, edges of weight zero being none; int32, shape (vertex,), numbered from 0.

        O(vertices) and one look at every weight: a block without zeros connects all its vertices, so a star stands for
        it.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        starts: list[NDArray[np.int64]] = []
        ends: list[NDArray[np.int64]] = []
        vertices = np.arange(self.n_vertices)
        for (source, target), block in self._placed():
            sources = vertices[source].reshape(len(block), -1)
            targets = vertices[target].reshape(len(block), -1)
            if block.all():
                around = np.concatenate([targets, sources], axis=1)
                starts.append(np.repeat(targets[:, 0], around.shape[1]))
                ends.append(around.ravel())
            else:
                partition, row, column = np.nonzero(block)
                starts.append(targets[partition, row])
                ends.append(sources[partition, column])
        start, end = np.concatenate(starts), np.concatenate(ends)
        edges = coo_array((np.ones(len(start), dtype=bool), (start, end)), shape=(self.n_vertices, self.n_vertices))
        _, labels = connected_components(edges.tocsr(), directed=False)
        return np.asarray(labels, dtype=np.int32)

    def _placed(self) -> list[tuple[tuple[slice, slice], NDArray[np.float64]]]:
        groups = self.structure.groups
        places = [(groups[link.source].vertices, groups[link.target].vertices) for link in self.structure.connections]
        return list(zip(places, self.blocks, strict=True))


def rolled_graph(structure: LayeredStructure, weights: Mapping[str, NDArray[np.floating[Any]]]) -> LayeredGraph:
    """Put one snapshot's weights on the rolled graph.

    Parameters
    ----------
    structure : LayeredStructure
        From `rolled_structure`.
    weights : mapping of str to floating array
        By parameter name, as recorded: (output, input, ...kernel) or (output, input).

    Returns
    -------
    LayeredGraph
        Edge of a convolution: Frobenius norm of the kernel slice ``W[i, j]``. Fully connected: ``|W[i, j]|``; after a
        flatten of c channels with s pixels each, the norm of ``W[i, j*s:(j+1)*s]``. Float64, whatever the recorded
        dtype.

    Raises
    ------
    InvalidDataError
        A weight is missing, has another shape than the layer graph says, or holds NaN or infinity.

    Notes
    -----
    Vahedian et al., arXiv 2111.05410, rolled graph [P; authors' code]. O(weights) time; 8 bytes per edge.
    """
    return LayeredGraph(structure, tuple(_block(link, weights) for link in structure.connections))


def _block(link: Connection, weights: Mapping[str, NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """Return the edges of one layer: the norm over all weights that one edge stands for."""
    if link.parameter is None:
        return np.full(link.shape, link.identity_weight)
    weight = recorded_weight(weights, parameter=link.parameter, layer=link.layer)
    partitions, targets, sources = link.shape
    rows = weight.reshape(len(weight), -1) if weight.ndim else weight.reshape(0, 0)
    if rows.shape[0] != partitions * targets or rows.shape[1] % (sources * link.pixels):
        raise _wrong_shape(link.parameter, link.layer, weight.shape)
    if link.channel_axis == "first":
        slices = rows.reshape(partitions, targets, sources, -1)
    else:
        slices = rows.reshape(partitions, targets, -1, sources).swapaxes(2, 3)
    # |w| where an edge is one weight: the square of a tiny float64 would underflow to no edge.
    block: NDArray[np.float64] = (
        np.abs(slices[..., 0]) if slices.shape[3] == 1 else np.sqrt(np.einsum("ptsk,ptsk->pts", slices, slices))
    )
    check_finite(block, parameter=link.parameter, layer=link.layer)
    return block


def recorded_weight(
    weights: Mapping[str, NDArray[np.floating[Any]]],
    *,
    parameter: str,
    layer: str,
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.float64]:
    """Return one weight in float64, or say what is wrong with it.

    Raises
    ------
    InvalidDataError
        Not recorded, or of another shape than ``shape``.
    """
    if parameter not in weights:
        raise InvalidDataError(
            f"weight {parameter!r} of layer {layer!r} was not recorded; record with weights=every(epochs=1)"
        )
    weight = np.asarray(weights[parameter], dtype=np.float64)
    if shape is not None and weight.shape != shape:
        raise _wrong_shape(parameter, layer, weight.shape)
    return weight


def check_finite(values: NDArray[np.float64], *, parameter: str, layer: str) -> None:
    """Refuse edges of a weight that holds NaN or infinity."""
    if not np.isfinite(values).all():
        raise InvalidDataError(
            f"weight {parameter!r} of layer {layer!r} holds NaN or infinity: the training has diverged"
        )


def _wrong_shape(parameter: str, layer: str, shape: tuple[int, ...]) -> InvalidDataError:
    return InvalidDataError(
        f"weight {parameter!r} of layer {layer!r} has shape {shape}, which its layer graph does not allow"
    )
