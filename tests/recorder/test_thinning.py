"""Thinning: fewer snapshots while the queue is full, all of them again once it is not."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_recorder.capture.thinning import Thinning


def test_every_due_snapshot_is_wanted_while_all_is_well() -> None:
    thinning = Thinning()
    for idle in (True, False) * 10:
        assert thinning.wants()
        thinning.note(full=False, idle=idle)


@given(st.integers(0, 8))
def test_each_refusal_halves_the_rate(refusals: int) -> None:
    thinning = Thinning()
    for _ in range(refusals):
        while not thinning.wants():
            pass
        thinning.note(full=True)
    assert thinning.stride == 2**refusals
    wanted = [thinning.wants() for _ in range(4 * thinning.stride)]
    assert sum(wanted) == 4
    assert wanted[thinning.stride - 1]  # the first comes after a whole stride, and they are evenly spaced
    assert wanted[: thinning.stride] == wanted[thinning.stride : 2 * thinning.stride]


def test_the_rate_comes_back_one_halving_per_empty_queue() -> None:
    thinning = Thinning()
    for _ in range(3):
        while not thinning.wants():
            pass
        thinning.note(full=True)
    strides = []
    for _ in range(8):
        while not thinning.wants():
            pass
        thinning.note(full=False, idle=True)
        strides.append(thinning.stride)
    # At each rate one snapshot is taken first: only the queue that it leaves tells of that rate.
    assert strides == [8, 4, 4, 2, 2, 1, 1, 1]
    thinning.note(full=True)
    for _ in range(5):  # while others wait, it stays as it is
        thinning.note(full=False, idle=False)
    assert thinning.stride == 2


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_stride_is_a_power_of_two_that_moves_one_step_at_a_time(events: list[tuple[bool, bool]]) -> None:
    thinning = Thinning()
    left_out = 0
    for full, idle in events:
        before = thinning.stride
        if not thinning.wants():
            left_out += 1
            assert left_out < before
            assert thinning.stride == before
            continue
        left_out = 0
        thinning.note(full=full, idle=idle)
        assert thinning.stride.bit_count() == 1
        assert thinning.stride in ((2 * before,) if full else (before, max(1, before // 2)))


@settings(deadline=None)
@given(cost=st.fractions(Fraction(1, 4), 40, max_denominator=4), room=st.integers(1, 4))
def test_a_slow_disk_gets_what_it_can_write(cost: Fraction, room: int) -> None:
    """A due snapshot per tick, a disk that needs ``cost`` ticks for one, room for some in memory."""
    thinning = Thinning()
    busy_until, queued, taken, refused = Fraction(0), [], [], 0
    for tick in range(2000):
        queued = [end for end in queued if end > tick]
        if not thinning.wants():
            continue
        full = len(queued) >= room
        thinning.note(full=full, idle=not queued)
        if full:
            refused += 1
            continue
        busy_until = max(busy_until, Fraction(tick)) + cost
        queued.append(busy_until)
        taken.append(tick)
    if cost < 1:
        assert len(taken) == 2000
    least = min(Fraction(2000), 2000 / cost) / 4
    assert len(taken) >= least, "the disk stands idle most of the time"
    gaps = [second - first for first, second in itertools.pairwise(taken)]
    assert max(gaps, default=0) <= 8 * max(1, cost), "and there is no long silence"


def test_a_disk_that_recovers_gets_everything_again() -> None:
    thinning = Thinning()
    for _ in range(10):
        while not thinning.wants():
            pass
        thinning.note(full=True)
    ticks = 0
    while thinning.stride > 1:
        ticks += 1
        if thinning.wants():
            thinning.note(full=False, idle=True)
    assert ticks <= 2 * 2 * 2**10


def test_it_ends_somewhere() -> None:
    thinning = Thinning()
    for _ in range(100):
        thinning.note(full=True)
    assert thinning.stride == 2**20
    with pytest.raises(TypeError):
        thinning.note()  # type: ignore[call-arg]
