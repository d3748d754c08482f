"""The connectome-guided rule does what METHODS.md section 5 says, and its promises hold for any series of distances."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from naive_replay import learning_rates

from dynome_analysis.replay.learning_rate import LearningRateRule, LearningRateState, robust_z
from dynome_analysis.replay.replay import fold_learning_rate

# Quantised values make ties, constant windows and zeros; wide ones make jumps.
distances = st.lists(
    st.one_of(st.integers(0, 8).map(lambda k: k / 4), st.floats(0, 100), st.floats(0, 1e-6)), max_size=60
)
alphas = st.floats(0.5, 1.0, exclude_min=True)


@st.composite
def rules(draw: st.DrawFn) -> LearningRateRule:
    window = draw(st.integers(2, 12))
    stable_on, stable_off, unstable_off, unstable_on = sorted(
        draw(st.lists(st.integers(-16, 16), min_size=4, max_size=4, unique=True))
    )
    return LearningRateRule(
        base_rate=draw(st.floats(1e-4, 10)),
        horizon=draw(st.floats(0.5, 50)),
        alpha=draw(alphas),
        window=window,
        guard=draw(st.sampled_from([0.0, 0.01, 0.1])),
        stable_on=stable_on / 4,
        stable_off=stable_off / 4,
        unstable_off=unstable_off / 4,
        unstable_on=unstable_on / 4,
        down=draw(st.floats(0.1, 1)),
        up=draw(st.floats(1, 2)),
        gain_minimum=draw(st.floats(0.01, 1)),
        gain_maximum=draw(st.floats(1, 5)),
    )


def naive(rule: LearningRateRule, series: list[float]) -> list[tuple[float, str, float, float]]:
    return learning_rates(
        series,
        lr0=rule.base_rate,
        T0=rule.horizon,
        alpha=rule.alpha,
        w=rule.window,
        hi_on=rule.unstable_on,
        hi_off=rule.unstable_off,
        lo_on=rule.stable_on,
        lo_off=rule.stable_off,
        down=rule.down,
        up=rule.up,
        g_min=rule.gain_minimum,
        g_max=rule.gain_maximum,
        guard=rule.guard,
    )


@given(rule=rules(), series=distances)
def test_the_rule_equals_its_restatement(rule, series) -> None:
    decisions = fold_learning_rate(rule, series)
    expected = naive(rule, series)
    assert [decision.gate for decision in decisions] == [row[1] for row in expected]
    got = np.array([(one.z, one.gain, one.rate) for one in decisions]).reshape(-1, 3)
    np.testing.assert_allclose(got, np.array([(z, g, lr) for z, _, g, lr in expected]).reshape(-1, 3), rtol=1e-12)


@given(series=distances, horizon=st.floats(0.5, 20))
def test_the_defaults_are_those_of_the_methods(series, horizon) -> None:
    decisions = fold_learning_rate(LearningRateRule(base_rate=0.1, horizon=horizon), series)
    assert [decision.gate for decision in decisions] == [row[1] for row in learning_rates(series, 0.1, horizon)]


@given(rule=rules(), series=distances, power=st.integers(-30, 30))
def test_units_of_the_distance_do_not_matter(rule, series, power) -> None:
    # A power of two scales without rounding, so the traces are equal to the last bit.
    assume(all(value == 0 or value > 1e-200 for value in series))
    plain = fold_learning_rate(rule, series)
    scaled = fold_learning_rate(rule, [value * 2.0**power for value in series])
    assert [repr(decision) for decision in plain] == [repr(decision) for decision in scaled]


@given(window=st.lists(st.floats(0.01, 100), min_size=2), value=st.floats(0.01, 100), factor=st.floats(1e-6, 1e6))
def test_z_does_not_depend_on_units(window, value, factor) -> None:
    z = robust_z(value, tuple(window), guard=0.01)
    scaled = robust_z(value * factor, tuple(one * factor for one in window), guard=0.01)
    # The guard keeps the scale above a hundredth of the median, so roundings grow at most a hundredfold.
    assert scaled == pytest.approx(z, rel=1e-9, abs=1e-12)


@given(rule=rules(), series=distances)
def test_sums_of_rates_diverge_and_sums_of_squares_converge(rule, series) -> None:
    """Robbins-Monro for any gates: the partial sums keep on the right side of series that diverge and converge."""
    decisions = fold_learning_rate(rule, series)
    rates = np.array([decision.rate for decision in decisions])
    count = np.arange(1, rates.size + 1)
    alpha, horizon = rule.alpha, rule.horizon
    grown = np.log1p(count / horizon)
    integral = horizon * (grown if alpha == 1 else np.expm1((1 - alpha) * grown) / (1 - alpha))
    # The envelope decreases, so its sum is at least its integral, which grows without bound for alpha <= 1.
    assert (np.cumsum(rates) >= rule.gain_minimum * rule.base_rate * integral * (1 - 1e-9)).all()
    # And the sum of squares is at most the first term and the integral to infinity, finite for alpha > 1/2.
    bound = (rule.gain_maximum * rule.base_rate) ** 2 * (1 + horizon / (2 * alpha - 1))
    assert (np.cumsum(rates**2) <= bound * (1 + 1e-9)).all()
    assert all(rule.gain_minimum <= decision.gain <= rule.gain_maximum for decision in decisions)


@pytest.mark.parametrize(
    ("series", "gate", "gain"),
    [([1.5**step for step in range(200)], "UNSTABLE", 0.1), ([220.0 - step for step in range(200)], "STABLE", 3.0)],
)
def test_the_gain_stops_at_its_bound_in_a_long_run_to_one_side(series, gate, gain) -> None:
    decisions = fold_learning_rate(LearningRateRule(base_rate=0.1, horizon=10), series)
    assert {decision.gate for decision in decisions[6:]} == {gate}
    assert decisions[-1].gain == gain


@given(rule=rules(), series=distances, cut=st.integers(0, 60))
def test_a_state_survives_json_in_the_middle(rule, series, cut) -> None:
    state = rule.start()
    said = []
    for position, value in enumerate(series):
        if position == cut:
            state = LearningRateState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
        state, decision = rule.update(state, value)
        said.append(repr(decision))
    assert said == [repr(decision) for decision in fold_learning_rate(rule, series)]


def test_no_gate_before_half_a_window_of_distances() -> None:
    jump = [1.0, 1.1, 0.9, 1.0, 100.0, 100.0]
    decisions = fold_learning_rate(LearningRateRule(base_rate=1, horizon=1), jump)
    assert [math.isnan(decision.z) for decision in decisions] == [True] * 5 + [False]
    assert decisions[4].gate == "NEUTRAL"
    assert decisions[5].gate == "UNSTABLE"
    assert decisions[5].gain == 0.6
    assert LearningRateRule(base_rate=1, horizon=1, window=7).distances_needed == 4
    assert LearningRateRule(base_rate=1, horizon=1, warm_up=2).distances_needed == 2


def test_the_current_distance_is_not_in_its_own_window() -> None:
    rule = LearningRateRule(base_rate=1, horizon=1, window=2, warm_up=2)
    decision = fold_learning_rate(rule, [1.0, 3.0, 10.0])[-1]
    assert decision.z == pytest.approx((10 - 2) / (1.4826 * 1))


def test_hysteresis_and_the_jump_through_both_thresholds() -> None:
    rule = LearningRateRule(base_rate=1, horizon=1)
    steps = [
        ("NEUTRAL", 2.0, "NEUTRAL"),  # a threshold itself is not passed
        ("NEUTRAL", 2.1, "UNSTABLE"),
        ("UNSTABLE", 1.0, "UNSTABLE"),
        ("UNSTABLE", 0.9, "NEUTRAL"),
        ("UNSTABLE", -1.1, "STABLE"),
        ("UNSTABLE", -1.0, "NEUTRAL"),
        ("NEUTRAL", -1.0, "NEUTRAL"),
        ("NEUTRAL", -1.1, "STABLE"),
        ("STABLE", -0.5, "STABLE"),
        ("STABLE", -0.4, "NEUTRAL"),
        ("STABLE", 2.1, "UNSTABLE"),
        ("STABLE", 2.0, "NEUTRAL"),
    ]
    assert [rule.next_gate(before, z) for before, z, _ in steps] == [after for _, _, after in steps]


def test_a_distance_that_is_no_number_is_no_evidence() -> None:
    rule = LearningRateRule(base_rate=1, horizon=5)
    state = rule.start()
    for value in [1.0, 1.1, 0.9, 1.0, 1.0, 9.0]:
        state, before = rule.update(state, value)
    for value in (math.nan, math.inf):
        after, decision = rule.update(state, value)
        assert math.isnan(decision.z)
        assert (after.gate, after.gain, after.window) == (state.gate, state.gain, state.window)
        assert after.decisions == state.decisions + 1
        assert decision.gain == before.gain
        assert decision.rate < before.rate


def test_a_window_of_zeros() -> None:
    assert robust_z(0.0, (0.0, 0.0), guard=0.01) == 0
    assert robust_z(1e-9, (0.0, 0.0), guard=0.01) == math.inf
    decisions = fold_learning_rate(LearningRateRule(base_rate=1, horizon=5), [0.0] * 30)
    assert {decision.gain for decision in decisions} == {1.0}


def test_a_constant_series_leaves_the_bare_envelope() -> None:
    decisions = fold_learning_rate(LearningRateRule(base_rate=0.5, horizon=4, alpha=1.0), [3.7] * 20)
    assert [decision.rate for decision in decisions] == pytest.approx([0.5 / (1 + t / 4) for t in range(20)])
    assert {decision.gate for decision in decisions} == {"NEUTRAL"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_rate": 0.0}, "base_rate must be positive; got base_rate 0.0"),
        ({"base_rate": math.nan}, "base_rate must be a finite number; got nan"),
        ({"horizon": -1.0}, "horizon must be positive"),
        ({"alpha": 0.5}, r"alpha must lie in \(1/2, 1\]"),
        ({"alpha": 1.01}, r"alpha must lie in \(1/2, 1\]"),
        ({"window": 1}, "window must be at least 2 distances; got window 1"),
        ({"warm_up": 0}, "warm_up must lie between 1 and window; got warm_up 0, window 10"),
        ({"warm_up": 11}, "warm_up must lie between"),
        ({"guard": -0.1}, "guard must not be negative"),
        ({"unstable_off": 2.0}, "thresholds must satisfy"),
        ({"stable_off": 1.5}, "thresholds must satisfy"),
        ({"stable_on": -0.5}, "thresholds must satisfy"),
        ({"down": 0.0}, "factors must satisfy"),
        ({"up": 0.9}, "factors must satisfy"),
        ({"gain_minimum": 0.0}, "gain bounds must satisfy"),
        ({"gain_maximum": 0.5}, "gain bounds must satisfy"),
    ],
)
def test_constants_that_would_break_a_promise_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LearningRateRule(**{"base_rate": 0.1, "horizon": 8.0, **settings})
    assert "\n" not in str(caught.value)


def test_a_negative_distance_is_refused() -> None:
    rule = LearningRateRule(base_rate=1, horizon=1)
    with pytest.raises(ValueError, match=r"a distance must not be negative; got -1\.0"):
        rule.update(rule.start(), -1)
