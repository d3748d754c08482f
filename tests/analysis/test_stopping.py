"""Best-and-patience rules do what METHODS.md section 4 says, on any series."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_replay import best_of, patience_walk, published_fp_walk

from dynome_analysis.replay.replay import fold_stopping
from dynome_analysis.replay.stopping import (
    SIGNALS,
    OracleRule,
    PatienceRule,
    Score,
    StoppingState,
    stopping_rule,
)

# Few distinct values, so that ties are common.
values = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0, -1.0])
with_nan = st.one_of(values, st.just(math.nan))
modes = st.sampled_from(["min", "max"])
patiences = st.integers(1, 6)
burn_ins = st.integers(0, 8)


@st.composite
def observations(draw: st.DrawFn, value: st.SearchStrategy[float] = with_nan) -> list[tuple[int, float]]:
    """Epochs in order, with gaps, from any first epoch."""
    epochs = draw(st.lists(st.integers(0, 40), unique=True, max_size=30).map(sorted))
    return [(epoch, draw(value)) for epoch in epochs]


def ends(state: StoppingState) -> tuple[int | None, int | None]:
    return state.best_epoch, state.trigger_epoch


@given(series=observations(), mode=modes, patience=patiences, burn_in=burn_ins)
def test_the_engine_equals_its_restatement(series, mode, patience, burn_in) -> None:
    state = fold_stopping(PatienceRule(mode=mode, patience=patience, burn_in=burn_in), series)
    expected = patience_walk([e for e, _ in series], [v for _, v in series], mode, patience, burn_in)
    assert ends(state) == expected


@given(scores=st.lists(st.one_of(values, st.floats(0, 10)), max_size=40), patience=patiences, burn_in=burn_ins)
def test_fp_equals_the_published_procedure(scores, patience, burn_in) -> None:
    state = fold_stopping(stopping_rule("fp", patience=patience, burn_in=burn_in), enumerate(scores))
    assert ends(state) == published_fp_walk(scores, burn_in, patience)


@given(series=observations(), mode=modes, burn_in=burn_ins)
def test_the_oracle_is_the_first_of_the_best(series, mode, burn_in) -> None:
    state = fold_stopping(OracleRule(mode=mode, burn_in=burn_in), series)
    assert ends(state) == (best_of([e for e, _ in series], [v for _, v in series], mode, burn_in), None)


@given(series=observations(), mode=modes, patience=patiences, burn_in=burn_ins)
def test_more_patience_never_triggers_earlier(series, mode, patience, burn_in) -> None:
    less = fold_stopping(PatienceRule(mode=mode, patience=patience, burn_in=burn_in), series).trigger_epoch
    more = fold_stopping(PatienceRule(mode=mode, patience=patience + 1, burn_in=burn_in), series).trigger_epoch
    assert (more or math.inf) >= (less or math.inf)
    assert less is not None or more is None


@given(series=observations(values), mode=modes, patience=patiences, burn_in=burn_ins)
def test_what_lies_before_the_burn_in_changes_nothing(series, mode, patience, burn_in) -> None:
    rule = PatienceRule(mode=mode, patience=patience, burn_in=burn_in)
    late = [(epoch, value) for epoch, value in series if epoch >= burn_in]
    state = fold_stopping(rule, series)
    assert ends(state) == ends(fold_stopping(rule, late))
    assert all(epoch is None or epoch >= burn_in for epoch in ends(state))


@given(series=observations(), mode=modes, patience=patiences, factor=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**30]))
def test_a_positive_factor_changes_no_decision(series, mode, patience, factor) -> None:
    rule = PatienceRule(mode=mode, patience=patience)
    scaled = [(epoch, value * factor) for epoch, value in series]
    assert ends(fold_stopping(rule, series)) == ends(fold_stopping(rule, scaled))


@given(series=observations(values), patience=patiences)
def test_min_and_max_mirror_each_other(series, patience) -> None:
    mirrored = [(epoch, -value) for epoch, value in series]
    low = fold_stopping(PatienceRule(mode="min", patience=patience), series)
    assert ends(low) == ends(fold_stopping(PatienceRule(mode="max", patience=patience), mirrored))


@given(series=observations(), name=st.sampled_from(sorted(SIGNALS)), patience=patiences, cut=st.integers(0, 30))
def test_a_state_survives_json_in_the_middle(series, name, patience, cut) -> None:
    rule = stopping_rule(name, patience=patience)
    straight, resumed = rule.start(), rule.start()
    for position, (epoch, value) in enumerate(series):
        if position == cut:
            resumed = StoppingState.from_json(json.loads(json.dumps(resumed.to_json())))
        straight, expected = rule.update(straight, Score(epoch, value))
        resumed, decision = rule.update(resumed, Score(epoch, value))
        assert (resumed, decision) == (straight, expected)
        assert decision.best_epoch == straight.best_epoch
        assert decision.stop == (straight.trigger_epoch is not None)


def test_ties_become_the_best_and_clear_the_counter() -> None:
    rule = PatienceRule(mode="min", patience=2)
    state = rule.start()
    said = []
    for epoch, value in [(1, 1.0), (2, 2.0), (3, 1.0), (4, 2.0), (5, 1.5), (6, 0.0)]:
        state, decision = rule.update(state, Score(epoch, value))
        said.append((decision.improved, decision.counter, decision.stop))
    assert said == [
        (True, 0, False),
        (False, 1, False),
        (True, 0, False),
        (False, 1, False),
        (False, 2, True),
        (False, 2, True),  # once triggered, a better score changes nothing
    ]
    assert ends(state) == (3, 5)


def test_nan_never_wins_and_stops_a_diverged_run() -> None:
    rule = PatienceRule(mode="min", patience=3)
    nan = math.nan
    assert ends(fold_stopping(rule, enumerate([nan, nan, 2.0, nan, nan, nan, 1.0]))) == (2, 5)
    assert ends(fold_stopping(rule, enumerate([nan] * 9))) == (None, None)


def test_a_constant_signal_never_triggers_and_its_last_epoch_is_best() -> None:
    assert ends(fold_stopping(stopping_rule("fp", patience=1), enumerate([0.0] * 7))) == (6, None)


def test_the_oracle_counts_from_epoch_1_however_late_the_rules_start() -> None:
    assert stopping_rule("oracle", burn_in=10).burn_in == 1
    assert stopping_rule("oracle", burn_in=0).burn_in == 0
    assert fold_stopping(stopping_rule("oracle", burn_in=10), [(0, 0.9), (1, 0.8), (20, 0.7)]).best_epoch == 1


@pytest.mark.parametrize("rule", [PatienceRule(mode="min"), OracleRule()])
def test_epochs_come_in_order(rule) -> None:
    state, _ = rule.update(rule.start(), Score(3, 1.0))
    with pytest.raises(ValueError, match="epoch 3 came after epoch 3"):
        rule.update(state, Score(3, 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatienceRule(mode="best"), "mode must be 'min' or 'max'; got 'best'"),
        (lambda: PatienceRule(mode="min", patience=0), "patience must be at least 1 .* got 0"),
        (lambda: PatienceRule(mode="min", burn_in=-1), "burn_in must be an epoch, 0 or later; got -1"),
        (lambda: OracleRule(mode="best"), "mode must be"),
        (lambda: OracleRule(burn_in=-1), "burn_in must be"),
        (lambda: stopping_rule("early"), "'early' is no stopping rule; there are top, top-births, "),
    ],
)
def test_settings_without_meaning_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_signal_has_a_rule() -> None:
    for name, signal in SIGNALS.items():
        assert stopping_rule(name).mode == signal.mode
        assert signal.title
        assert signal.source
