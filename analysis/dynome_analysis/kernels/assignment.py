"""Sparse assignment with a diagonal: shortest augmenting paths, prices, and the search for pairs that prices allow.

Rows and columns may be matched with each other, at the cost of a candidate edge, or each alone with the diagonal, at
``row_limits`` and ``column_limits``. Duals ``u_i <= row_limits_i``, ``v_j <= column_limits_j`` and
``u_i + v_j <= cost_ij`` prove a matching optimal when matched pairs, and whatever lies on the diagonal, hold with
equality. Candidates come as compressed rows: ``starts`` (row + 1,), ``neighbours`` and ``costs`` (edge,). A mate of -1
is the diagonal or, while the dual lies below its limit, nobody yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .flags import kernel
from .heap import raise_last, sink_first

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["augment_all", "bid_all", "find_violations", "ground_power", "lower_duals"]


@kernel
def ground_power(births: float, deaths: float, norm: int, order: float) -> float:
    """Return ``|(births, deaths)|^order`` of a difference; ``norm`` 1, 2, or 0 for the maximum."""
    births = abs(births)
    deaths = abs(deaths)
    if norm == 2:
        square = births * births + deaths * deaths
        if order == 2:
            return square
        length = np.sqrt(square)
    elif norm == 1:
        length = births + deaths
    else:
        length = max(births, deaths)
    if order == 1:
        return float(length)
    if order == 2:
        return float(length * length)
    return float(length**order)


@kernel
def lower_duals(
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    costs: NDArray[np.float64],
    row_limits: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    row_mates: NDArray[np.int32],
    column_mates: NDArray[np.int32],
) -> None:
    """Lower every u that new edges made too high, and part the pairs that are no longer tight."""
    for i in range(u.shape[0]):
        highest = row_limits[i]
        for k in range(starts[i], starts[i + 1]):
            reduced = costs[k] - v[neighbours[k]]
            if reduced < highest:
                highest = reduced
        if highest < u[i]:
            u[i] = highest
            if row_mates[i] >= 0:
                column_mates[row_mates[i]] = -1
                row_mates[i] = -1


@kernel
def bid_all(
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    costs: NDArray[np.float64],
    row_limits: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    row_mates: NDArray[np.int32],
    column_mates: NDArray[np.int32],
    queue: NDArray[np.int32],
    bids: int,
) -> None:
    """Let free rows take their best column and raise its price to their second best, at most ``bids`` times.

    An auction without increments: cheap, it leaves a valid start for `augment_all` wherever it stops. ``queue`` (row,)
    is work space.
    """
    rows = u.shape[0]
    waiting = 0
    for i in range(rows - 1, -1, -1):
        if row_mates[i] < 0 and u[i] < row_limits[i]:
            queue[waiting] = i
            waiting += 1
    while waiting > 0 and bids > 0:
        bids -= 1
        waiting -= 1
        i = queue[waiting]
        best = row_limits[i]
        second = np.inf
        chosen = -1
        for k in range(starts[i], starts[i + 1]):
            j = neighbours[k]
            reduced = costs[k] - v[j]
            if reduced < best:
                second = best
                best = reduced
                chosen = j
            elif reduced < second:
                second = reduced
        if chosen < 0:
            u[i] = best
            continue
        previous = column_mates[chosen]
        if previous >= 0 and not second > best:
            u[i] = best  # a tie moves no price: left to the paths
            continue
        if previous < 0:
            u[i] = best
        else:
            u[i] = second
            v[chosen] -= second - best
            row_mates[previous] = -1
            queue[waiting] = previous
            waiting += 1
        row_mates[i] = chosen
        column_mates[chosen] = i


@kernel
def augment_all(
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    costs: NDArray[np.float64],
    row_limits: NDArray[np.float64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    row_mates: NDArray[np.int32],
    column_mates: NDArray[np.int32],
    heap_keys: NDArray[np.float64],
    heap_edges: NDArray[np.int32],
    reached: NDArray[np.float64],
    came_from: NDArray[np.int32],
    seen: NDArray[np.int32],
    visited: NDArray[np.int32],
) -> None:
    """Give every free row a mate or the diagonal along a shortest path, keeping the duals valid.

    Work space: ``heap_keys``, ``heap_edges`` (edge,), ``reached``, ``came_from``, ``seen`` (column,), ``visited``
    (column,). O(row * edge * log edge) time in the worst case; a search ends at the nearest free column or diagonal.
    """
    seen[:] = -1
    for source in range(u.shape[0]):
        if row_mates[source] >= 0 or not u[source] < row_limits[source]:
            continue
        size = 0
        count = 0
        row = source
        here = 0.0
        best = np.inf
        end_row = -1
        end_column = -1
        while True:
            # The row's own way out: the diagonal.
            out = here + (row_limits[row] - u[row])
            if out < best:
                best = out
                end_row = row
                end_column = -1
            for k in range(starts[row], starts[row + 1]):
                j = neighbours[k]
                if seen[j] == source and came_from[j] < 0:
                    continue
                reduced = costs[k] - u[row] - v[j]
                key = here + max(reduced, 0.0)
                if key >= best:
                    continue
                if seen[j] != source or key < reached[j]:
                    # came_from holds the row plus one, negated once the column is final.
                    seen[j] = source
                    reached[j] = key
                    came_from[j] = row + 1
                    if column_mates[j] < 0:
                        best = key
                        end_column = j
                        end_row = -1
                        continue
                    raise_last(heap_keys, heap_edges, size, key, j)
                    size += 1
            column = -1
            while size > 0:
                key = heap_keys[0]
                if key >= best:
                    break
                j = heap_edges[0]
                size -= 1
                sink_first(heap_keys, heap_edges, size, heap_keys[size], heap_edges[size])
                if came_from[j] > 0 and key <= reached[j]:
                    column = j
                    break
            if column < 0:
                break
            came_from[column] = -came_from[column]
            visited[count] = column
            count += 1
            here = reached[column]
            row = column_mates[column]
        u[source] += best
        for position in range(count):
            column = visited[position]
            v[column] -= best - reached[column]
            u[column_mates[column]] += best - reached[column]
        # Turn the path around, from its end to the source.
        if end_column < 0:
            u[end_row] = row_limits[end_row]
            if end_row == source:
                continue
            column = row_mates[end_row]
            row_mates[end_row] = -1
        else:
            column = end_column
        while True:
            row = abs(came_from[column]) - 1
            following = row_mates[row]
            row_mates[row] = column
            column_mates[column] = row
            if row == source:
                break
            column = following


@kernel
def find_violations(
    points: NDArray[np.float64],
    u: NDArray[np.float64],
    others: NDArray[np.float64],
    v: NDArray[np.float64],
    order_of_others: NDArray[np.int64],
    tile: int,
    boxes: NDArray[np.float64],
    norm: int,
    order: float,
    starts: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    found_columns: NDArray[np.int32],
    found_costs: NDArray[np.float64],
) -> int:
    """Find the pairs whose ``u_i + v_j`` exceeds their cost and which are no candidates; return how many.

    ``others`` (column, 2) and their ``v`` are sorted into tiles of ``tile``; ``boxes`` (tile, 5) holds their least and
    largest births and deaths and the largest v. Written are the worst few of every row, ``found_columns`` and
    ``found_costs`` (row, kept), the rest of a row is -1. A tolerance of 1e-12 of the duals covers their rounding.
    O(row * (tiles + near columns)) time.
    """
    kept = found_columns.shape[1]
    worst = np.empty(kept)
    total = 0
    columns = others.shape[0]
    for i in range(points.shape[0]):
        birth = points[i, 0]
        death = points[i, 1]
        filled = 0
        found_columns[i, :] = -1
        for box in range(boxes.shape[0]):
            birth_gap = max(boxes[box, 0] - birth, birth - boxes[box, 1], 0.0)
            death_gap = max(boxes[box, 2] - death, death - boxes[box, 3], 0.0)
            if ground_power(birth_gap, death_gap, norm, order) >= u[i] + boxes[box, 4]:
                continue
            for j in range(box * tile, min(columns, (box + 1) * tile)):
                allowed = u[i] + v[j]
                if allowed <= 0:
                    continue
                cost = ground_power(birth - others[j, 0], death - others[j, 1], norm, order)
                excess = allowed - cost
                if not excess > 1e-12 * (abs(u[i]) + abs(v[j])):
                    continue
                if filled == kept and excess <= worst[kept - 1]:
                    continue
                column = order_of_others[j]
                known = False
                for k in range(starts[i], starts[i + 1]):
                    if neighbours[k] == column:
                        known = True
                        break
                if known:
                    continue
                if filled < kept:
                    filled += 1
                place = filled - 1
                while place > 0 and worst[place - 1] < excess:
                    worst[place] = worst[place - 1]
                    found_columns[i, place] = found_columns[i, place - 1]
                    found_costs[i, place] = found_costs[i, place - 1]
                    place -= 1
                worst[place] = excess
                found_columns[i, place] = column
                found_costs[i, place] = cost
        total += filled
    return total
