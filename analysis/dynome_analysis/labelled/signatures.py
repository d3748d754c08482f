"""What a metric compares of every snapshot, lazy where the signature is, and how two of these are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import dask
import numpy as np
import xarray as xr

from dynome_analysis.distance.matching import diagram_distance
from dynome_analysis.distance.weights import signature_distance
from dynome_analysis.homology.histogram import WeightHistogram
from dynome_analysis.labelled.blocks import one_snapshot_per_chunk
from dynome_analysis.labelled.exchange import check_loops, recorded_degrees
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Metric",
    "Signature",
    "SortedMetric",
    "find_arrays",
    "is_lazy",
    "row_distance",
    "row_matrix",
    "signature_rows",
]

Metric = Literal["top", "births", "deaths", "wasserstein", "frobenius"]
SortedMetric = Literal["top", "births", "deaths"]
Signature = xr.Dataset | xr.DataArray

# What each metric reads; the first entry whose variables are all there is taken.
VARIABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "top": (("births", "deaths"), ("births", "death_histogram"), ("births", "death_counts")),
    "births": (("births",),),
    "deaths": (("deaths",), ("death_histogram",), ("death_counts",)),
    "wasserstein": (("birth", "death", "dimension"), ("h1_birth", "h1_death")),
}
# What an analysis calls the deaths that `graph_homology` counts.
COUNTED = {"death_counts": "death_histogram"}
MAKERS = {"wasserstein": "dya.rips", "frobenius": "dya.connectomes"}


def find_arrays(signature: Signature, metric: Metric) -> list[xr.DataArray]:
    """Return the arrays (snapshot, ...) that a metric reads; of one graph, with a snapshot axis of length 1."""
    if metric not in get_args(Metric):
        raise InvalidArgumentError(f"metric must be one of {', '.join(get_args(Metric))}; got {metric!r}")
    found: list[xr.DataArray] = []
    if metric == "frobenius":
        if isinstance(signature, xr.DataArray) and signature.dims[-2:] == ("unit", "unit_"):
            found = [signature]
    elif isinstance(signature, xr.Dataset):
        for names in VARIABLES[metric]:
            if all(name in signature for name in names):
                # Counts are read alike, whoever counted.
                found = [signature[name].rename(COUNTED.get(name, name)) for name in names]
                break
    if not found:
        maker = MAKERS.get(metric, "dya.graph_homology")
        raise InvalidArgumentError(f"metric {metric!r} needs a result of {maker}; this signature holds something else")
    if metric == "wasserstein" and isinstance(signature, xr.Dataset):
        check_loops(signature)
        degrees = recorded_degrees(signature)
        if degrees and 1 not in degrees:
            has = ", ".join(map(str, degrees))
            raise InvalidArgumentError(
                f"metric 'wasserstein' compares diagrams of degree 1, this signature has degree {has}: "
                "dya.rips(connectomes, dimensions=(1,))"
            )
    return [array if "snapshot" in array.dims else array.expand_dims("snapshot") for array in found]


def is_lazy(arrays: list[xr.DataArray]) -> bool:
    """Say whether any of the arrays is yet to be computed."""
    return any(array.chunks is not None for array in arrays)


def signature_rows(arrays: list[xr.DataArray], *, metric: Metric, least: int = 2) -> list[tuple[Any, ...]]:
    """Return per snapshot what a metric compares: arrays, a `WeightHistogram`, or a diagram; lazy where an array is."""
    count = arrays[0].sizes["snapshot"]
    if count < least:
        raise InvalidDataError(f"a distance between snapshots needs at least two of them; this signature has {count}")
    columns: list[list[Any]] = []
    for array in arrays:
        if array.chunks is None:
            parts: list[Any] = list(array.to_numpy())
        else:
            blocks = one_snapshot_per_chunk(array).data.to_delayed().reshape(count)
            parts = [dask.delayed(_first)(block) for block in blocks]
        if array.name == "death_histogram":
            convert = WeightHistogram if array.chunks is None else dask.delayed(WeightHistogram)
            parts = [convert(part) for part in parts]
        columns.append(parts)
    rows = list(zip(*columns))
    if metric == "wasserstein":
        convert = dask.delayed(_diagram) if is_lazy(arrays) else _diagram
        return [(convert(*row),) for row in rows]
    return rows


def row_distance(
    before: tuple[Any, ...], after: tuple[Any, ...], *, metric: Metric, order: float, ground_norm: float
) -> tuple[float, float]:
    """Return the distance of two rows, and how far the exact one may be from it (0 unless deaths are histograms)."""
    if metric == "wasserstein":
        return diagram_distance(before[0], after[0], order=order, ground_norm=ground_norm), 0.0
    return signature_distance(before, after, order=order)


def row_matrix(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Turn rows of parts into parts of rows, as `dynome_analysis.distance.weights.pairwise_distances` takes them."""
    return [list(part) for part in zip(*rows)]


def _first(block: Any) -> Any:
    return block[0]


def _diagram(
    birth: NDArray[np.float64], death: NDArray[np.float64], dimension: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the H1 points of one snapshot without their padding."""
    kept = np.isfinite(birth) if dimension is None else dimension == 1
    return np.column_stack([birth[kept], death[kept]])
