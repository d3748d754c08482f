"""Neural persistence of weights: how persistent the components of each layer's bipartite graph are. Numbers only.

B. Rieck, M. Togninalli, C. Bock, M. Moor, M. Horn, T. Gumbsch, K. Borgwardt, *Neural Persistence: A Complexity Measure
for Deep Neural Networks Using Algebraic Topology*, ICLR 2019, arXiv 1812.09764. Marks as in METHODS.md section 3; [P]
was read in the authors' code, whose only layers are fully connected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dynome_analysis.kernels.bipartite_tree import BLOCK, TILE, bipartite_tree_weights, transpose
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "Scale",
    "check_order",
    "check_scale",
    "layer_edges",
    "layer_tree",
    "network_persistence",
    "tree_persistence",
]

Scale = Literal["network", "layer"]


def layer_edges(weight: NDArray[np.floating[Any]], *, groups: int = 1) -> NDArray[np.float32]:
    """Return the edges of a layer's bipartite graph, outputs against inputs.

    Parameters
    ----------
    weight : floating, shape (output, input) or (output, input / groups, ...kernel)
        As a fully connected layer or a convolution holds it; finite.
    groups : int
        Of a convolution: each group of outputs reads its own group of inputs.

    Returns
    -------
    float32, shape (group, output / groups, input / groups)
        Not negative. Fully connected: ``|W[i, j]|`` [P]. Convolution: the Frobenius norm of the kernel slice ``W[i,
        j]``, one edge per pair of channels [O: the rolled graph of METHODS.md section 6, so that both speak of the same
        graph; the unrolled one has an edge per multiplication].

    Raises
    ------
    InvalidArgumentError
        Fewer than two axes, an empty one, or outputs that the groups do not divide.
    InvalidDataError
        NaN, infinity, or an edge beyond float32.

    Notes
    -----
    O(weights) time; the result, and for a convolution one float64 copy of the weights.
    """
    table = np.asarray(weight)
    if table.ndim < 2 or table.size == 0 or table.dtype.kind != "f" or groups < 1 or len(table) % groups:
        raise InvalidArgumentError(
            "weight must be floating, (output, input) or (output, input / groups, ...kernel), no axis empty, outputs a "
            f"multiple of groups; got {table.dtype} of shape {table.shape} and groups={groups}"
        )
    if table.ndim > 2:
        slices = table.reshape(*table.shape[:2], -1).astype(np.float64)
        table = np.sqrt(np.einsum("ijk,ijk->ij", slices, slices))
    with np.errstate(over="ignore"):
        edges = np.abs(table).astype(np.float32)
    if not np.isfinite(edges).all():
        raise InvalidDataError("a layer's weights must be finite; they hold NaN or infinity: training has diverged")
    return edges.reshape(groups, len(table) // groups, table.shape[1])


def layer_tree(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights of the maximum spanning tree of a layer's bipartite graph.

    Parameters
    ----------
    edges : float32, shape (group, output, input)
        From `layer_edges`. Edges between groups do not exist and count as weight 0 [O], as any other weight of 0 does.

    Returns
    -------
    float32, shape (vertex - 1,)
        Ascending; ``vertex = group * (output + input)``.

    Notes
    -----
    O(edges + vertex^2 / 64) time; one copy of the largest group's edges. The square matrix of all vertices is never
    built.
    """
    groups, outputs, inputs = edges.shape
    found = np.zeros(groups * (outputs + inputs) - 1, np.int32)
    work = np.empty((2, outputs), np.int32), np.empty((2, inputs), np.int32)
    best = np.empty(-(-outputs // BLOCK), np.int32), np.empty(-(-inputs // BLOCK), np.int32)
    columns, buffer = np.empty((inputs, outputs), np.int32), np.empty((TILE, TILE), np.int32)
    each = outputs + inputs - 1
    for group in range(groups):
        rows = np.ascontiguousarray(edges[group]).view(np.int32)
        # Reading columns across the rows takes twice the time of a copy that lies the other way.
        transpose(rows, buffer, columns)
        bipartite_tree_weights(rows, columns, *work, *best, found[group * each : (group + 1) * each])
    found.sort()
    return found.view(np.float32)


def tree_persistence(
    tree: NDArray[np.floating[Any]],
    *,
    largest: float,
    order: float = 2.0,
    normalise: bool = True,
    count_unpaired: bool = False,
) -> float:
    """Return the neural persistence of one layer from the weights of its spanning tree.

    ``NP = (sum_e (1 - w_e / largest)^p)^(1/p)``, over ``(vertex - 1)^(1/p)`` where normalised.

    Parameters
    ----------
    tree : floating, shape (vertex - 1,)
        Ascending, from `layer_tree`.
    largest : float
        The weight that counts as 1: of the whole network [P], or of the layer.
    order : float
        p, at least 1; infinity gives the largest persistence, whose bound is 1.
    normalise : bool, default True
        Divide by the bound, which makes layers of different size comparable [P].
    count_unpaired : bool, default False
        Let the one component that never merges count with persistence 1, as in the authors' code [P], which gives
        unpaired vertices the value 0. Without it [O] the bound of the paper, which counts vertex - 1 components, holds
        and values lie in [0, 1]; with it they go up to ``(vertex / (vertex - 1))^(1/p)``.

    Returns
    -------
    float
        0 where all edges of the tree weigh the same as the largest; NaN where ``largest`` is 0.

    Raises
    ------
    InvalidArgumentError
        The order is below 1 or NaN, or ``largest`` is smaller than a weight of the tree.

    Notes
    -----
    Vertices are there from the start, at weight 1, and a component dies at the edge that merges it while ever lighter
    edges are added; so each edge of the maximum spanning tree is one point (1, w) of the diagram. O(vertex) time.
    """
    check_order(order)
    if not largest > 0:
        return float("nan")
    weights = np.asarray(tree, np.float64)
    if weights[-1] > largest:
        raise InvalidArgumentError(f"largest must be no less than any weight of the tree, {weights[-1]}; got {largest}")
    persistence = 1.0 - weights / largest
    bound = 1.0 if np.isinf(order) else persistence.size ** (1.0 / order)
    if count_unpaired:
        persistence = np.append(persistence, 1.0)
    total = float(np.linalg.norm(persistence, ord=order))
    return total / bound if normalise else total


def network_persistence(
    trees: Sequence[NDArray[np.floating[Any]]],
    *,
    scale: Scale = "network",
    order: float = 2.0,
    normalise: bool = True,
    count_unpaired: bool = False,
) -> NDArray[np.float64]:
    """Return the neural persistence of every layer of a network; that of the network is their mean [P].

    Parameters
    ----------
    trees : sequence of floating, shape (vertex - 1,)
        One per layer, from `layer_tree`.
    scale : {"network", "layer"}
        Whose largest weight counts as 1: the network's [P], or each layer's own [O], which keeps one layer with large
        weights from pressing all others towards 1.
    order, normalise, count_unpaired
        As for `tree_persistence`.

    Returns
    -------
    float64, shape (layer,)
        NaN where the largest weight is 0.

    Raises
    ------
    InvalidArgumentError
        Unknown scale, or an order below 1.

    Notes
    -----
    O(vertices) time. A maximum spanning tree holds the heaviest edge of its graph, so trees are all that is needed.
    """
    check_scale(scale)
    heaviest = [float(tree[-1]) for tree in trees]
    network = max(heaviest, default=0.0)
    return np.array(
        [
            tree_persistence(
                tree,
                largest=network if scale == "network" else own,
                order=order,
                normalise=normalise,
                count_unpaired=count_unpaired,
            )
            for tree, own in zip(trees, heaviest)
        ]
    )


def check_order(order: float) -> None:
    """Raise InvalidArgumentError for an order of a norm that is none."""
    if not order >= 1:
        raise InvalidArgumentError(f"order must be at least 1 (infinity is allowed); got {order}")


def check_scale(scale: str) -> None:
    """Raise InvalidArgumentError for a name that is none of `Scale`."""
    if scale not in get_args(Scale):
        raise InvalidArgumentError(f"scale must be one of {', '.join(get_args(Scale))}; got {scale!r}")
