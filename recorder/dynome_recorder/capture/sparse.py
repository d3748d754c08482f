"""Sparse tensors, taken apart into the dense ones that hold them: what compares and copies bytes needs these."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def dense_parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the dense tensors that hold a sparse one, by what they are; a dense one itself, under an empty name."""
    import torch

    if tensor.layout is torch.strided:
        return {"": tensor}
    held = tensor.detach()
    if held.layout is torch.sparse_coo:
        return {"indices": held._indices(), "values": held._values()}
    if held.layout in (torch.sparse_csr, torch.sparse_bsr):
        return {"rows": held.crow_indices(), "columns": held.col_indices(), "values": held.values()}
    if held.layout in (torch.sparse_csc, torch.sparse_bsc):
        return {"columns": held.ccol_indices(), "rows": held.row_indices(), "values": held.values()}
    return {"": held.to_dense()}
