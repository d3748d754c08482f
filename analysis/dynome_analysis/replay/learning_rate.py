"""Which learning rate to use: CG-ALR's robust gate inside a Robbins-Monro envelope, as a state machine on numbers.

Rule to keep: numbers in, decision out; no store, no torch, no xarray, so that a replay over a recording and a
training loop run the very same code. A state is frozen and made of JSON values only. METHODS.md section 5 has the
formulas.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAD_TO_SIGMA", "Gate", "LearningRateDecision", "LearningRateRule", "LearningRateState", "robust_z"]

Gate = Literal["NEUTRAL", "STABLE", "UNSTABLE"]

# 1 / Phi^-1(3/4): the median absolute deviation of a normal distribution times this is its standard deviation.
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class LearningRateState:
    """Everything that the rule remembers between decisions.

    Attributes
    ----------
    decisions : int
        How many decisions were made: ``t`` of the next one.
    gain : float
        ``g`` after the last decision.
    gate : {"NEUTRAL", "STABLE", "UNSTABLE"}
        Where the gate stands.
    window : tuple of float
        The last distances, oldest first, at most as many as the rule's ``window``.
    """

    decisions: int = 0
    gain: float = 1.0
    gate: Gate = "NEUTRAL"
    window: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dict of JSON values."""
        return {**asdict(self), "window": list(self.window)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LearningRateState:
        """Return the state that `to_json` described."""
        return cls(**{**document, "window": tuple(document["window"])})


@dataclass(frozen=True, slots=True)
class LearningRateDecision:
    """The learning rate to use next, and why.

    Attributes
    ----------
    z : float
        Robust z-score of the distance; NaN where the window is still too short, or the distance is not a number.
        Infinite when anything but the same value follows a window that is zero throughout.
    gate : {"NEUTRAL", "STABLE", "UNSTABLE"}
        Where the gate stands after this distance.
    gain : float
        ``g``, between ``gain_minimum`` and ``gain_maximum``.
    envelope : float
        ``a_t``, what the rate would be without a gate.
    rate : float
        ``g * a_t``.
    """

    z: float
    gate: Gate
    gain: float
    envelope: float
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateRule:
    """Slow down while the connectome reconfigures, speed up when it is stable, within an envelope that converges.

    ::

        z_t = (d_t - median(W)) / max(1.4826 MAD(W), guard |median(W)|)     W = the previous `window` distances
        NEUTRAL -> UNSTABLE when z > unstable_on,  back when z < unstable_off
        NEUTRAL -> STABLE   when z < stable_on,    back when z > stable_off
        g <- clip(g * {UNSTABLE: down, STABLE: up, NEUTRAL: 1}, gain_minimum, gain_maximum)
        rate = g * a_t,   a_t = base_rate / (1 + t / horizon)^alpha

    That a median-MAD signal gates the rate with hysteresis inside a Robbins-Monro envelope is stated by the paper [P:
    He, Songdechakraiwut, arXiv 2510.23781]; the exact form and every constant are our choice [O; METHODS.md section
    5].

    Attributes
    ----------
    base_rate : float
        ``lr_0``, positive; the rate of the first decision while the gate is neutral.
    horizon : float
        ``T_0`` in decisions, positive; [O] a fifth of the decisions planned.
    alpha : float
        Decay of the envelope, 1/2 < alpha <= 1 [P: Robbins-Monro]; 0.6 [O].
    window : int
        How many previous distances the median sees, at least 2 [O].
    warm_up : int, optional
        Distances that must exist before the gate opens, at least 1; half a window, rounded up, by default [O].
    guard : float
        Smallest spread that counts, as a fraction of the median, so that a nearly constant series does not turn
        rounding into signals; 0 switches it off [O].
    unstable_on, unstable_off : float
        Upper hysteresis thresholds on z [O].
    stable_on, stable_off : float
        Lower ones; ``unstable_on > unstable_off >= stable_off > stable_on`` [O].
    down, up : float
        Factors on the gain in the unstable and the stable state; ``0 < down <= 1 <= up`` [O].
    gain_minimum, gain_maximum : float
        Bounds of the gain, ``0 < gain_minimum <= 1 <= gain_maximum`` [O]. With them the sum of the rates diverges and
        the sum of their squares converges for any sequence of gates.

    Notes
    -----
    A jump from one side to the other passes both thresholds in one step, and the new state's factor applies. A
    distance that is NaN or infinite is no evidence: the decision is made (t counts on) with gate, gain and window
    unchanged, z is NaN [O]. Where median and MAD of the window are both 0, z is 0 for a distance of 0 and infinite
    for any other [O]. Multiplying all distances by a positive number changes nothing.
    """

    base_rate: float
    horizon: float
    alpha: float = 0.6
    window: int = 10
    warm_up: int | None = None
    guard: float = 0.01
    unstable_on: float = 2.0
    unstable_off: float = 1.0
    stable_on: float = -1.0
    stable_off: float = -0.5
    down: float = 0.6
    up: float = 1.1
    gain_minimum: float = 0.1
    gain_maximum: float = 3.0

    def __post_init__(self) -> None:
        """Refuse settings under which the promises above do not hold."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{field.name} must be a finite number; got {value}")
        _check("base_rate must be positive", self.base_rate > 0, base_rate=self.base_rate)
        _check("horizon must be positive, in decisions", self.horizon > 0, horizon=self.horizon)
        _check(
            "alpha must lie in (1/2, 1], else the envelope breaks Robbins-Monro",
            0.5 < self.alpha <= 1,
            alpha=self.alpha,
        )
        _check("window must be at least 2 distances", self.window >= 2, window=self.window)
        _check(
            "warm_up must lie between 1 and window",
            self.warm_up is None or 1 <= self.warm_up <= self.window,
            warm_up=self.warm_up,
            window=self.window,
        )
        _check("guard must not be negative", self.guard >= 0, guard=self.guard)
        _check(
            "thresholds must satisfy unstable_on > unstable_off >= stable_off > stable_on",
            self.unstable_on > self.unstable_off >= self.stable_off > self.stable_on,
            unstable_on=self.unstable_on,
            unstable_off=self.unstable_off,
            stable_off=self.stable_off,
            stable_on=self.stable_on,
        )
        _check("factors must satisfy 0 < down <= 1 <= up", 0 < self.down <= 1 <= self.up, down=self.down, up=self.up)
        _check(
            "gain bounds must satisfy 0 < gain_minimum <= 1 <= gain_maximum",
            0 < self.gain_minimum <= 1 <= self.gain_maximum,
            gain_minimum=self.gain_minimum,
            gain_maximum=self.gain_maximum,
        )

    def start(self) -> LearningRateState:
        """Return the state before the first decision."""
        return LearningRateState()

    def update(self, state: LearningRateState, observation: float) -> tuple[LearningRateState, LearningRateDecision]:
        """Take the distance between the last two connectomes and decide on the next learning rate.

        Raises
        ------
        ValueError
            The distance is negative.
        """
        distance = float(observation)
        if distance < 0:
            raise ValueError(f"a distance must not be negative; got {distance}")
        gate, gain, window, z = state.gate, state.gain, state.window, math.nan
        if math.isfinite(distance):
            if len(window) >= self.distances_needed:
                z = robust_z(distance, window, guard=self.guard)
                gate = self.next_gate(gate, z)
                factor = {"UNSTABLE": self.down, "STABLE": self.up, "NEUTRAL": 1.0}[gate]
                gain = min(max(gain * factor, self.gain_minimum), self.gain_maximum)
            window = (*window, distance)[-self.window :]
        envelope = self.envelope(state.decisions)
        decision = LearningRateDecision(z=z, gate=gate, gain=gain, envelope=envelope, rate=gain * envelope)
        return LearningRateState(state.decisions + 1, gain, gate, window), decision

    @property
    def distances_needed(self) -> int:
        """Distances that must be in the window before the gate opens."""
        return (self.window + 1) // 2 if self.warm_up is None else self.warm_up

    def envelope(self, decision: int) -> float:
        """Return ``a_t = base_rate / (1 + t / horizon)^alpha`` for decision ``t``, counted from 0."""
        return float(self.base_rate / (1 + decision / self.horizon) ** self.alpha)

    def next_gate(self, gate: Gate, z: float) -> Gate:
        """Return where the gate stands after ``z``; thresholds themselves are not passed (strict comparisons)."""
        if (gate == "UNSTABLE" and z >= self.unstable_off) or (gate == "STABLE" and z <= self.stable_off):
            return gate
        if z > self.unstable_on:
            return "UNSTABLE"
        return "STABLE" if z < self.stable_on else "NEUTRAL"


def robust_z(distance: float, window: tuple[float, ...], *, guard: float) -> float:
    """Return how far ``distance`` lies from the window's median, in robust deviations (METHODS.md section 5)."""
    median = statistics.median(window)
    spread = MAD_TO_SIGMA * statistics.median(abs(value - median) for value in window)
    scale = max(spread, guard * abs(median))
    difference = distance - median
    if scale == 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / scale


def _check(requirement: str, holds: bool, /, **values: object) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{requirement}; got {', '.join(f'{name} {value}' for name, value in values.items())}")
