"""Product of a symmetric float32 matrix with a vector, and the connected parts of its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flags import kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LANES", "PANEL", "SPAN", "label_parts", "multiply_symmetric"]

PANEL = 64  # rows of one panel
SPAN = 4096  # columns of one tile, where the caller does not know better: 16 kB of sums, which stay in the first cache
LANES = 32  # partial sums per row


@kernel
def multiply_symmetric(
    matrix: NDArray[np.float32],
    x: NDArray[np.float32],
    first: int,
    step: int,
    out: NDArray[np.float64],
    columns: NDArray[np.float32],
    lanes: NDArray[np.float32],
) -> None:
    """Add ``matrix @ x`` to ``out``, for the panels ``first``, ``first + step``, ... of rows.

    Every weight above the diagonal is read once and used twice, ``y_i += a_ij x_j`` and ``y_j += a_ij x_i``, because
    memory is the limit. The diagonal and, outside the diagonal panels, the lower triangle are not used.

    Parameters
    ----------
    matrix : float32, shape (unit, unit)
        Symmetric, rows contiguous.
    x : float32, shape (unit,)
    first, step : int
        Which panels, so that several threads can share the work.
    out : float64, shape (unit,)
    columns : float32, shape (span,)
        Work space; its length is the number of columns of one tile (``SPAN``), at least that of a panel (``PANEL``).
    lanes : float32, shape (128,)
        Work space (4 * ``LANES``).

    Notes
    -----
    O(n^2) time, half the matrix read, no allocation. Sums are float32 within one tile, at most 128 terms long, and
    float64 between tiles: a product of non-negative numbers is right to some 1e-7. ``LANES`` partial sums per row,
    because the compiler may not reorder a single one into vector instructions.
    """
    n = matrix.shape[0]
    tile = columns.shape[0]
    for panel in range(first, (n + PANEL - 1) // PANEL, step):
        top = panel * PANEL
        bottom = min(top + PANEL, n)
        width = bottom - top
        for j in range(width):
            columns[j] = 0.0
        for i in range(top, bottom):
            row = matrix[i, top:bottom]
            x0 = x[i]
            kept = columns[i - top]
            for j in range(width):
                columns[j] += row[j] * x0
            columns[i - top] = kept
        for j in range(width):
            out[top + j] += columns[j]
        for left in range(bottom, n, tile):
            width = min(tile, n - left)
            whole = width - width % LANES
            span = x[left : left + width]
            for j in range(width):
                columns[j] = 0.0
            # A panel with columns to its right is a whole one, so its rows come in fours.
            for i in range(top, bottom, 4):
                row0 = matrix[i, left : left + width]
                row1 = matrix[i + 1, left : left + width]
                row2 = matrix[i + 2, left : left + width]
                row3 = matrix[i + 3, left : left + width]
                x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
                for j in range(4 * LANES):
                    lanes[j] = 0.0
                for start in range(0, whole, LANES):
                    for j in range(LANES):
                        a0, a1, a2, a3 = row0[start + j], row1[start + j], row2[start + j], row3[start + j]
                        xj = span[start + j]
                        columns[start + j] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
                        lanes[j] += a0 * xj
                        lanes[LANES + j] += a1 * xj
                        lanes[2 * LANES + j] += a2 * xj
                        lanes[3 * LANES + j] += a3 * xj
                for j in range(width - whole):
                    a0, a1, a2, a3 = row0[whole + j], row1[whole + j], row2[whole + j], row3[whole + j]
                    xj = span[whole + j]
                    columns[whole + j] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
                    lanes[j] += a0 * xj
                    lanes[LANES + j] += a1 * xj
                    lanes[2 * LANES + j] += a2 * xj
                    lanes[3 * LANES + j] += a3 * xj
                for half in (LANES // 2, LANES // 4, LANES // 8):
                    for row_number in range(4):
                        for j in range(half):
                            lanes[row_number * LANES + j] += lanes[row_number * LANES + half + j]
                for row_number in range(4):
                    for j in range(LANES // 8):
                        out[i + row_number] += lanes[row_number * LANES + j]
            for j in range(width):
                out[left + j] += columns[j]


@kernel
def label_parts(matrix: NDArray[np.float32], labels: NDArray[np.int32], left: NDArray[np.int64]) -> int:
    """Number the connected parts of a dense graph, edges of weight zero being none, and return how many there are.

    Breadth first, over the vertices that are still unreached: one row settles nearly all of a dense connectome.

    Parameters
    ----------
    matrix : float32, shape (unit, unit)
        Symmetric, not negative; the diagonal is not used.
    labels : int32, shape (unit,)
        Receives the number of each vertex's part, in the order of their lowest vertices.
    left : int64, shape (2 * unit,)
        Work space: the unreached vertices, then the queue.

    Notes
    -----
    O(n) time on a dense graph; at most n^2 / 2 steps, on sparse ones.
    """
    n = matrix.shape[0]
    for vertex in range(n):
        labels[vertex] = -1
        left[vertex] = vertex
    unreached = n
    parts = 0
    for seed in range(n):
        if labels[seed] >= 0:
            continue
        labels[seed] = parts
        left[n] = seed
        head = 0
        tail = 1
        while head < tail and unreached > 0:
            row = matrix[left[n + head]]
            head += 1
            kept = 0
            for position in range(unreached):
                vertex = left[position]
                if labels[vertex] >= 0:
                    continue
                if row[vertex] != 0:
                    labels[vertex] = parts
                    left[n + tail] = vertex
                    tail += 1
                else:
                    left[kept] = vertex
                    kept += 1
            unreached = kept
        parts += 1
    return parts
