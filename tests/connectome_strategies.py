"""Inputs that break connectome code: ties, duplicated and constant units, single samples, offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("random", "relu", "tied", "duplicated", "constant", "mirrored", "one sample")


@st.composite
def activations(draw: st.DrawFn, *, largest: int = 14) -> NDArray[np.float32]:
    """float32 (sample, unit) of one of the kinds above."""
    kind = draw(st.sampled_from(KINDS))
    samples = 1 if kind == "one sample" else draw(st.integers(2, 12))
    units = draw(st.integers(1, largest))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.normal(size=(samples, units))
    if kind == "relu":
        values = np.maximum(values, 0)
    elif kind == "tied":
        values = random.integers(0, 3, size=values.shape).astype(float)
    elif kind == "duplicated":
        values = values[:, random.integers(0, units, size=units)]
    elif kind == "constant":
        values[:, random.random(units) < 0.5] = random.normal()
    elif kind == "mirrored":
        values = np.concatenate([values, -2 * values], axis=1)[:, :units]
    return values.astype(np.float32)


@st.composite
def weights(draw: st.DrawFn, *, largest: int = 14) -> NDArray[np.float32]:
    """float32 (unit, unit), symmetric, in [0, 1], diagonal 0: distinct, tied, sparse, all zero, or subnormal."""
    units = draw(st.integers(1, largest))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    matrix: NDArray[Any] = random.random((units, units))
    kind = draw(st.sampled_from(("distinct", "tied", "sparse", "zero", "tiny")))
    if kind == "tied":
        matrix = random.choice([0.0, 0.25, 0.5, 1.0], size=matrix.shape)
    elif kind == "sparse":
        matrix *= random.random(matrix.shape) < 0.3
    elif kind == "zero":
        matrix[:] = 0
    elif kind == "tiny":
        matrix *= 1e-42
    upper = np.triu(matrix, 1).astype(np.float32)
    return upper + upper.T
