"""Schedules: what is due when, and their text."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynome_recorder import InvalidArgumentError, Schedule, at, every, log_spaced
from dynome_recorder.schedule import check_schedule, never, parse_schedule


def epochs_due(schedule: Schedule, limit: int) -> list[int]:
    return [epoch for epoch in range(limit + 1) if schedule.due_epoch(epoch)]


def steps_due(schedule: Schedule, limit: int) -> list[int]:
    return [step for step in range(1, limit + 1) if schedule.due_step(step)]


def test_every_epoch_includes_the_untrained_network() -> None:
    assert epochs_due(every(epochs=1), 3) == [0, 1, 2, 3]
    assert epochs_due(every(epochs=5), 12) == [0, 5, 10]
    assert steps_due(every(epochs=1), 10) == []


def test_every_steps_counts_steps_and_sees_the_untrained_network() -> None:
    assert steps_due(every(steps=50), 160) == [50, 100, 150]
    assert epochs_due(every(steps=50), 100) == [0], "before training both counters are 0"


def test_at_names_moments_of_either_counter() -> None:
    assert epochs_due(at(10, 0, 1, 2, 2), 20) == [0, 1, 2, 10]
    assert steps_due(at(3, 7, unit="step"), 20) == [3, 7]


@settings(deadline=None, max_examples=30)
@given(per_decade=st.integers(1, 40))
def test_log_spaced_equals_its_formula(per_decade: int) -> None:
    limit = 3000
    expected = {round(10 ** (k / per_decade)) for k in range(4 * per_decade + 1)}
    assert steps_due(log_spaced(per_decade=per_decade), limit) == sorted(n for n in expected if n <= limit)


def test_log_spaced_epochs_start_at_zero_and_large_counts_work() -> None:
    assert epochs_due(log_spaced(per_decade=2, unit="epoch"), 32) == [0, 1, 3, 10, 32]
    assert log_spaced(per_decade=8).due_step(10**12)


@settings(deadline=None, max_examples=50)
@given(a=st.integers(1, 9), b=st.integers(1, 9), moments=st.lists(st.integers(0, 40), min_size=1))
def test_composition_is_due_when_any_part_is(a: int, b: int, moments: list[int]) -> None:
    schedule = every(epochs=a) | every(steps=b) | at(*moments)
    assert epochs_due(schedule, 40) == [n for n in range(41) if n % a == 0 or n in moments]
    assert steps_due(schedule, 40) == [n for n in range(1, 41) if n % b == 0]


def test_count_agrees_with_asking_one_by_one() -> None:
    assert every(epochs=1).count(epochs=20) == 21
    assert every(steps=7).count(epochs=3) is None
    assert (every(epochs=2) | every(steps=7)).count(epochs=3, steps_per_epoch=10) == 2 + 4


def test_text_builds_the_same_schedule() -> None:
    schedule = every(epochs=2) | every(steps=50) | at(0, 3) | log_spaced(per_decade=8)
    assert (
        str(schedule)
        == "every(epochs=2) | every(steps=50) | at(0, 3, unit='epoch') | log_spaced(per_decade=8, unit='step')"
    )
    rebuilt = eval(str(schedule), {"every": every, "at": at, "log_spaced": log_spaced})
    assert rebuilt == schedule


RULES = st.one_of(
    st.builds(lambda n: every(epochs=n), st.integers(1, 10**6)),
    st.builds(lambda n: every(steps=n), st.integers(1, 10**6)),
    st.builds(
        lambda moments, unit: at(*moments, unit=unit),
        st.lists(st.integers(0, 10**9), min_size=1, max_size=6),
        st.sampled_from(["epoch", "step"]),
    ),
    st.builds(
        lambda n, unit: log_spaced(per_decade=n, unit=unit), st.integers(1, 99), st.sampled_from(["epoch", "step"])
    ),
    st.just(never()),
)


@given(parts=st.lists(RULES, min_size=1, max_size=5), counts=st.lists(st.integers(0, 2000), max_size=8))
def test_the_text_is_read_back_without_evaluating_it(parts: list[Schedule], counts: list[int]) -> None:
    schedule = functools.reduce(operator.or_, parts)
    rebuilt = parse_schedule(str(schedule))
    assert rebuilt == schedule
    for count in counts:
        assert rebuilt.due_epoch(count) == any(part.due_epoch(count) for part in parts)
        assert rebuilt.due_step(count) == any(part.due_step(count) for part in parts)


def test_never_is_never_due_and_adds_nothing() -> None:
    assert str(never()) == "never()"
    assert epochs_due(never(), 20) + steps_due(never(), 20) == []
    assert never().count(epochs=5) == 0
    assert never() | every(steps=3) == every(steps=3) | never() == every(steps=3)
    assert every(epochs=2) | every(epochs=2) == every(epochs=2)


@pytest.mark.parametrize(
    "text",
    [
        "", "every", "every(epochs=0)", "every(epochs=1) |", "every(2)", "at('a')", "__import__('os').getcwd()",
        "every(epochs=print(1))", "at(0) & at(1)", "sometimes()", "at(*[1])", "log_spaced(**{'per_decade': 2})", "at(0",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"is no text of a schedule, such as 'every\(epochs=1\) \| at\(0, 5\)"
    ):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: every(), "exactly one of"),
        (lambda: every(epochs=1, steps=2), "exactly one of"),
        (lambda: every(epochs=0), "epochs must be an integer of at least 1; got 0"),
        (lambda: every(steps=True), "steps must be"),
        (lambda: at(), "at least one moment"),
        (lambda: at(-1), "at least 0; got -1"),
        (lambda: at(1, unit="batch"), "'epoch' or 'step'; got 'batch'"),
        (lambda: log_spaced(per_decade=0), "per_decade must be"),
        (lambda: check_schedule("weights", 5), "weights must be a schedule"),
    ],
)
def test_wrong_arguments_are_named(build, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        build()


def test_only_schedules_compose() -> None:
    with pytest.raises(TypeError):
        every(epochs=1) | 5


def test_numpys_integers_are_counts() -> None:
    assert every(epochs=np.int64(2)) == every(epochs=2)
    assert str(at(np.int32(3)) | log_spaced(per_decade=np.uint8(4))) == str(at(3) | log_spaced(per_decade=4))
