"""Connectome, births and deaths, against the libraries and the public way of the method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.csgraph import minimum_spanning_tree

from dynome_analysis.correlation import correlate
from dynome_analysis.homology import births, births_and_deaths

from .timing import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SAMPLES = 1000


def latent_activations(units: int, *, factors: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """ReLU units driven by a few shared factors: correlations spread as those of trained layers do."""
    generator = np.random.default_rng(seed)
    drive = generator.standard_normal((SAMPLES, factors)) @ generator.standard_normal((factors, units))
    return np.maximum(drive + generator.standard_normal((SAMPLES, units)), 0).astype(np.float32)


def spanning_tree_by_scipy(connectome: NDArray[np.float32]) -> NDArray[np.float32]:
    """Negated, since scipy's is the minimum tree; edges of weight 0 would be lost, these data have none."""
    return np.sort(-minimum_spanning_tree(-connectome).data)


def signature_by_scipy(connectome: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The public way: scipy's spanning tree, a mask of its edges, a sort of what remains."""
    tree = minimum_spanning_tree(-connectome).toarray()
    kept = np.triu(connectome, 1)
    kept[(tree != 0) | (tree.T != 0)] = 0
    return np.sort(-tree[tree != 0]), np.sort(kept[kept > 0])


def rows() -> Iterator[Row]:
    """Measure at 512, 1024 and 2048 units."""
    for units in (512, 1024, 2048):
        activations = latent_activations(units)
        tensor = torch.from_numpy(activations).T
        connectome, _ = correlate(activations)
        edges = connectome[np.triu_indices(units, 1)]
        wide = activations.astype(np.float64)
        size = f"{units} units, {SAMPLES} samples"
        yield interleaved(
            "connectome",
            size,
            {
                "ours": lambda a=activations: correlate(a),
                "numpy float32": lambda a=activations: np.abs(np.corrcoef(a, rowvar=False, dtype=np.float32)),
                "numpy float64": lambda a=wide: np.abs(np.corrcoef(a, rowvar=False)),
                "torch": lambda t=tensor: torch.corrcoef(t).abs(),
            },
        )
        yield interleaved(
            "births",
            size,
            {"ours": lambda c=connectome: births(c), "scipy": lambda c=connectome: spanning_tree_by_scipy(c)},
        )
        yield interleaved(
            "births and deaths",
            size,
            {
                "ours": lambda c=connectome: births_and_deaths(c),
                "scipy and masks": lambda c=connectome: signature_by_scipy(c),
                "np.sort of the edges": lambda e=edges: np.sort(e),
            },
        )
