"""Loops: exact degree-1 persistence of the Vietoris-Rips filtration, over the field of two elements. Numbers only.

Rule to keep: everything is decided on keys, the integer order of lengths or weights, broken by index where tied. So the
pairs hold for every monotone transform of the weights, and no rounding of a transform can change them.

Why it is exact. Order the edges totally, by (length, index), and let every simplex enter with its latest edge. That
filtration refines the Rips filtration, so it has the same diagram once points of length zero are dropped. Let edge
(i, j) enter, with the lune L: the units that earlier edges join to both i and j. What is glued in is the join of the
edge with the flag complex of L, along the suspension of that complex over i and j. Hence
(1) L empty: the edge joins two components, or it closes a loop: a class is born. Nothing dies.
(2) L not empty: no class is born, since the edge is homologous to the path i, k, j for any k in L. With c components
    of L, picked units k_1 ... k_c, the loops i, k_1, j, k_a become boundaries (a = 2 ... c): H1 of the suspension is
    spanned by them. Every other new triangle follows from these, and no higher simplex touches H1.
So give every edge its column over the classes: nothing for a joining edge, its own class for a closing one, and the
sum of the columns of (i, k) and (k, j) otherwise. Columns of edges add up to columns of loops, H1 at any moment is
the span of the classes born, modulo the columns of (2) so far, and each column that is not yet zero kills the youngest
class that it can be written with: the elder rule. This is one triangle per component of each lune, the reduced
Vietoris-Rips filtration (Koyama, Memoli, Robins, Turner, *Faster computation of degree-1 persistent homology using the
reduced Vietoris-Rips filtration*, arXiv 2307.16333), with all apparent pairs eliminated before anything is stored.

Two moments end the work early. At the enclosing radius, the smallest row maximum, some unit is joined to all others
and every class is dead. And once no class is alive and every two units further apart than the present edge have a
common neighbour, no lune will be empty again: after 12 to 32 % of the edges of independent or latent-factor units, 40
to 90 % of those of trained networks of 256 to 1024 units.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from dynome_analysis.homology.births import check_connectome
from dynome_analysis.homology.routes import SHARE, available_memory
from dynome_analysis.kernels.rips_edges import DIGIT, count_edges, draw_edges, sort_edges, survey_rows
from dynome_analysis.kernels.rips_lunes import EXHAUSTED, FINISHED, follow_edges
from dynome_analysis.kernels.rips_reduction import BORN, PENDING, USED, LoopState
from dynome_recorder.errors import InvalidArgumentError, InvalidDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["estimate_loops_memory", "loop_lengths", "loop_weights"]

logger = logging.getLogger(__name__)

# Exclusive-or that turns the order of non-negative float32 bit patterns around.
HEAVIEST_FIRST = 0x7FFFFFFF
# An edge is packed into 64 bits, 16 for each of its units.
MOST_UNITS = 1 << 16
# Edges are drawn and sorted a slice at a time: the first slices are usually all that is needed.
SLICE = 1 / 6
SMALLEST_SLICE = 1 << 16
# Slices end at one of 2 ** BINS bounds.
BINS = 14
# A walk of this many steps per unit has become the exception that `walk_loop` provides for.
STEPS_PER_UNIT = 16


def loop_weights(
    connectome: NDArray[np.floating[Any]], *, memory_limit: int | None = None, check: bool = True
) -> NDArray[np.float32]:
    """Return the weights at which loops of a connectome are born and die, as the weight falls.

    The points of the H1 diagram of the Rips filtration on any decreasing function ``d`` of the weights are ``(d(birth),
    d(death))``: pairs depend on the order of the edges alone.

    Parameters
    ----------
    connectome : floating, shape (unit, unit)
        Symmetric, non-negative, finite; the diagonal is not read. At most 65,536 units.
    memory_limit : int, optional
        Bytes that may be taken beside the connectome; half of the memory that is free by default [O].
    check : bool
        Whether the connectome is checked; without, it must be as `check_connectome` returns it.

    Returns
    -------
    float32, shape (loop, 2)
        Weights of birth and death, birth > death, in the order of birth.

    Raises
    ------
    InvalidArgumentError
        Not a square symmetric matrix, or too many units.
    InvalidDataError
        A weight is negative, NaN or infinite, or the memory limit does not suffice; then nothing has been computed, or
        the work stops as soon as that is known.

    Notes
    -----
    The module says why this is exact. Time: O(unit^2) to draw the edges, O(unit / 64) word operations for most of the
    edges seen, and O(loops / 64) for each substitution; at worst O(unit^4 / 64) for the lunes. Memory:
    `estimate_loops_memory`, and O(loops^2 / 16) bytes at worst for the relations of dead loops. METHODS.md section 3.
    """
    weights = check_connectome(connectome, check=check)
    born, died, _ = _pair(weights, HEAVIEST_FIRST, None, memory_limit)
    keys = np.column_stack([born, died])
    return (keys ^ np.int32(HEAVIEST_FIRST)).view(np.float32)


def loop_lengths(
    distances: NDArray[np.floating[Any]], *, threshold: float = np.inf, memory_limit: int | None = None
) -> NDArray[np.float32]:
    """Return the H1 diagram of a matrix of distances: the lengths at which loops are born and die.

    Parameters
    ----------
    distances : floating, shape (unit, unit)
        Symmetric, non-negative, finite; the triangle inequality is not needed, the diagonal is not read.
    threshold : float
        Longest edge; loops that are alive there die at infinity.
    memory_limit : int, optional
        As for `loop_weights`.

    Returns
    -------
    float32, shape (loop, 2)
        Birth and death, birth < death, in the order of birth.

    Raises
    ------
    InvalidArgumentError, InvalidDataError
        As for `loop_weights`; or a threshold below 0 or NaN.

    Notes
    -----
    As for `loop_weights`; edges beyond the threshold cost nothing.
    """
    if not threshold >= 0:
        raise InvalidArgumentError(f"threshold must be a length of at least 0; got {threshold}")
    lengths = check_connectome(distances)
    # The largest float32 that is not beyond the threshold.
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which the next line takes back
        longest = np.array(threshold, np.float32)
    if float(longest) > threshold:
        longest = np.nextafter(longest, np.float32(0))
    bound = int(longest.view(np.int32)) + 1
    born, died, is_cut = _pair(lengths, 0, bound, memory_limit)
    diagram: NDArray[np.float32] = np.column_stack([born, died]).view(np.float32)
    if is_cut:
        diagram[died == bound, 1] = np.inf
    return diagram


def estimate_loops_memory(units: int, *, edges: int | None = None) -> int:
    """Return the bytes that `loop_weights` takes from the start, beside the connectome.

    Parameters
    ----------
    units : int
    edges : int, optional
        How many edges are shorter than the enclosing radius; all of them by default.

    Returns
    -------
    int
        4 bytes per pair of units (of which those of edges seen are touched), a bit per pair, 16 bytes per edge of one
        slice, and arrays as long as the units. What the relations of dead loops add is known only as they die, and is
        held against the limit then.

    Notes
    -----
    O(1).
    """
    most = units * (units - 1) // 2 if edges is None else edges
    words = -(-units // 64)
    state = 4 * units * units + 8 * units * words
    small = 4 * units * (2 * STEPS_PER_UNIT + 16) + 8 * (3 * (1 << BINS) + (1 << DIGIT))
    classes = sum(array.nbytes for array in _classes(4 * units).values())
    return state + small + classes + 8 * (units * words + 64) + 16 * int(min(max(SLICE * most, SMALLEST_SLICE), most))


def _pair(
    matrix: NDArray[np.float32], flip: int, bound: int | None, memory_limit: int | None
) -> tuple[NDArray[np.int32], NDArray[np.int32], bool]:
    """Return keys of birth and death of all loops, and whether ``bound`` came before the enclosing radius.

    Loops that are alive where the edges end die there, at the key ``bound`` or at the radius.
    """
    nothing = np.empty(0, np.int32), np.empty(0, np.int32), False
    units = matrix.shape[0]
    if units > MOST_UNITS:
        raise InvalidArgumentError(f"loops are found among at most {MOST_UNITS} units; got {units}")
    if units < 4:
        return nothing
    budget = _Budget(units, memory_limit)
    budget.take(estimate_loops_memory(units, edges=0))
    bits = matrix.view(np.int32)
    nearest, farthest = np.empty(units, np.int32), np.empty(units, np.int32)
    totals = np.empty(units, np.int64)
    survey_rows(bits, flip, nearest, farthest, totals)
    lowest, radius = int(nearest.min()), int(farthest.min())
    # An edge as long as the radius adds nothing: with it one unit is joined to all, and whatever lives dies there.
    end = radius if bound is None else min(radius, bound)
    if end <= lowest:
        return nothing
    shift = max(0, (end - 1 - lowest).bit_length() - BINS)
    counts = np.zeros(((end - 1 - lowest) >> shift) + 1, np.int64)
    count_edges(bits, flip, lowest, shift, end, counts)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    state = _start(np.argsort(totals, kind="stable"))
    first, status = 0, EXHAUSTED
    while first < counts.size and status != FINISHED:
        wanted = max(SLICE * starts[-1], SMALLEST_SLICE)
        last = int(np.searchsorted(starts, starts[first] + wanted, side="right")) - 1
        last = min(max(last, first + 1), counts.size)
        number = int(starts[last] - starts[first])
        budget.take(16 * number)
        edges = _slice(bits, flip, lowest + (first << shift), min(lowest + (last << shift), end), number)
        place = 0
        while True:
            status, place = follow_edges(edges, place, state, bits, flip, end, STEPS_PER_UNIT * units)
            if status in (EXHAUSTED, FINISHED):
                break
            state = _grow(state, budget)
        del edges
        budget.give_back(16 * number)
        first = last
    born = state.born[: state.counters[BORN]]
    died = state.died[: state.counters[BORN]]
    died[died < 0] = end
    logger.debug("%d loops of %d units, %.1f MB", born.size, units, budget.taken / 1e6)
    lasting = died > born
    return born[lasting], died[lasting], bound is not None and bound <= radius


class _Budget:
    """Bytes in use, held against a limit."""

    def __init__(self, units: int, limit: int | None) -> None:
        self.units = units
        self.limit = int(SHARE * available_memory()) if limit is None else limit
        self.taken = 0

    def take(self, size: int) -> None:
        """Count ``size`` bytes, or refuse."""
        self.taken += size
        if self.taken > self.limit:
            raise InvalidDataError(
                f"loops of {self.units} units need more than the memory limit: {self.taken / 1e6:,.1f} MB or more, the "
                f"limit is {self.limit / 1e6:,.1f} MB; take fewer units, or raise memory_limit"
            )

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes as free again."""
        self.taken -= size


def _slice(bits: NDArray[np.int32], flip: int, start: int, end: int, number: int) -> NDArray[np.uint64]:
    """Return the ``number`` edges with keys from ``start`` to below ``end``, sorted."""
    edges, spare = np.empty(number + 1, np.uint64), np.empty(number, np.uint64)
    drawn = draw_edges(bits, flip, start, end, edges)
    assert drawn == number, "edges were counted and drawn differently"
    is_spare = sort_edges(edges[:number], spare, start, end, np.empty(1 << DIGIT, np.int64))
    return spare if is_spare else edges[:number]


def _classes(number: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of `LoopState` that are as long as the number of classes."""
    words = -(-number // 64)
    return {
        "born": np.empty(number, np.int32),
        "died": np.empty(number, np.int32),
        "relation": np.empty(number, np.int64),
        "settled": np.empty(number, np.int64),
        "dead": np.zeros(words, np.uint64),
        "column": np.zeros(words, np.uint64),
    }


def _start(units: NDArray[np.int64]) -> LoopState:
    """Return the state before the first edge; ``units`` in the order in which they are to be numbered."""
    number = units.size
    words = -(-number // 64)
    label = np.empty(number, np.int32)
    label[units] = np.arange(number, dtype=np.int32)
    adjacency = np.zeros((number, words), np.uint64)
    every = np.arange(number)
    adjacency[every, every >> 6] = np.uint64(1) << (every & 63).astype(np.uint64)
    counters = np.zeros(PENDING + 2, np.int64)
    counters[PENDING + 1] = 1
    return LoopState(
        label=label,
        unit=units.astype(np.int32),
        adjacency=adjacency,
        path=np.empty((number, number), np.int32),
        parent=every.astype(np.int32),
        **_classes(4 * number),
        relations=np.empty(number * words, np.uint64),
        heap=np.empty(4, np.uint64),
        stack=np.empty(max(number, 2 * STEPS_PER_UNIT * number + 2), np.int32),
        lune=np.empty(words, np.uint64),
        rest=np.empty(words, np.uint64),
        counters=counters,
    )


def _grow(state: LoopState, budget: _Budget) -> LoopState:
    """Return the state with room for more classes, relations or edges in work: twice of what is full."""
    if state.counters[BORN] == state.born.size:
        names = tuple(_classes(0))
    elif state.counters[USED] + state.dead.size > state.relations.size:
        names = ("relations",)
    else:
        names = ("heap",)
    for name in names:
        old: NDArray[Any] = getattr(state, name)
        budget.take(2 * old.nbytes)
        new = np.zeros(2 * old.size, old.dtype)
        new[: old.size] = old
        state = state._replace(**{name: new})
        budget.give_back(old.nbytes)
    return state
