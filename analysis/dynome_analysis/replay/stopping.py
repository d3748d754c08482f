"""When to stop training: best-and-patience rules as state machines on plain numbers.

Rule to keep: a rule takes numbers and gives decisions; it knows no store, no torch, no xarray, so that a replay over a
recording and a training loop run the very same code. A state is frozen and made of JSON values only.
METHODS.md section 4 has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_BURN_IN",
    "DEFAULT_PATIENCE",
    "SIGNALS",
    "Mode",
    "OracleRule",
    "PatienceRule",
    "Score",
    "Signal",
    "StoppingDecision",
    "StoppingRule",
    "StoppingState",
    "stopping_rule",
]

Mode = Literal["min", "max"]

# Observations without improvement that stop training [functional-persistence authors' code].
DEFAULT_PATIENCE = 5
# The first epoch that counts: epoch 0 is the untrained network, and FP can choose it [O; METHODS.md section 4].
DEFAULT_BURN_IN = 1


@dataclass(frozen=True, slots=True)
class Signal:
    """What a stopping rule looks at.

    Attributes
    ----------
    variable : str or None
        Variable of an analysis that holds the signal; None for a recorded metric, whose name the user gives.
    mode : {"min", "max"}
        Whether small or large is good.
    title : str
        The signal in words, for tables and reports.
    source : str
        Where rule and signal come from, with the mark of METHODS.md.
    """

    variable: str | None
    mode: Mode
    title: str
    source: str


SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "top": Signal("reconfiguration_deaths", "min", "TOP, change of deaths", "[O] after arXiv 2508.06817"),
        "top-births": Signal("reconfiguration_births", "min", "TOP, change of births", "[O] after arXiv 2508.06817"),
        "top-both": Signal("reconfiguration_top", "min", "TOP, births and deaths", "[O] after arXiv 2508.06817"),
        "frobenius": Signal("reconfiguration_frobenius", "min", "plain change of the connectome", "[O] control"),
        "fp": Signal("functional_persistence", "max", "L2 norm of H1 lifetimes", "[P] functional-persistence code"),
        "vl": Signal(None, "min", "validation loss", "common practice"),
        "oracle": Signal(None, "max", "best test epoch", "control, never a rule to use"),
    }
)


@dataclass(frozen=True, slots=True)
class Score:
    """One observation: the value of the signal after ``epoch`` completed epochs."""

    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class StoppingState:
    """Everything that a stopping rule remembers.

    Attributes
    ----------
    last_epoch : int or None
        Epoch of the last observation, burn-in included; None before the first.
    best_epoch : int or None
        Epoch of the best score so far; None before the first score that counts.
    best_value : float or None
        The best score so far.
    counter : int
        Strictly worse scores since the best one.
    trigger_epoch : int or None
        Epoch at which the rule stopped; None while it has not.
    """

    last_epoch: int | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    counter: int = 0
    trigger_epoch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the state as a dict of JSON values (an infinite best value becomes Python's ``Infinity``)."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StoppingState:
        """Return the state that `to_json` described."""
        return cls(**document)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingDecision:
    """What a stopping rule says after an observation.

    Attributes
    ----------
    stop : bool
        Training should stop, or should have stopped at an earlier observation.
    improved : bool
        This observation became the best one: its weights are the ones to keep.
    best_epoch : int or None
        Epoch of the best score so far.
    counter : int
        Strictly worse scores since then.
    """

    stop: bool
    improved: bool
    best_epoch: int | None
    counter: int


class StoppingRule(Protocol):
    """A frozen rule; all that changes is in the state that it is given."""

    @property
    def mode(self) -> Mode:
        """Whether small or large scores are good."""
        ...

    def start(self) -> StoppingState:
        """Return the state before the first observation."""
        ...

    def update(self, state: StoppingState, observation: Score) -> tuple[StoppingState, StoppingDecision]:
        """Take one observation and decide."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PatienceRule:
    """Stop when the score was strictly worse than the best one ``patience`` times since the best one.

    Walk the epochs from ``burn_in``: the first score is the best; a strictly worse one raises a counter; any other,
    ties included, becomes the best and clears the counter; stop when the counter reaches ``patience`` [engine of the
    functional-persistence authors' code; METHODS.md section 4].

    Attributes
    ----------
    mode : {"min", "max"}
        Whether small or large scores are good.
    patience : int
        At least 1. Counts observations, which are epochs where every epoch is recorded.
    burn_in : int
        First epoch that counts; earlier observations are ignored.

    Notes
    -----
    NaN [O]: the published engine compares with ``<``, by which a NaN would become the best score and never be beaten.
    Here a NaN never becomes the best; once there is a best score, a NaN counts as strictly worse, so that a diverged
    run stops; before that it is ignored. An epoch without any observation is not to be passed at all: it neither
    counts nor clears.
    """

    mode: Mode
    patience: int = DEFAULT_PATIENCE
    burn_in: int = DEFAULT_BURN_IN

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        _check_settings(self.mode, self.burn_in)
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 observation without improvement; got {self.patience}")

    def start(self) -> StoppingState:
        """Return the state before the first observation."""
        return StoppingState()

    def update(self, state: StoppingState, observation: Score) -> tuple[StoppingState, StoppingDecision]:
        """Take the score of one epoch; once the rule has triggered, nothing changes any more.

        Raises
        ------
        ValueError
            The epoch is not later than the one before.
        """
        if state.trigger_epoch is not None:
            return state, StoppingDecision(
                stop=True, improved=False, best_epoch=state.best_epoch, counter=state.counter
            )
        _check_later(state, observation)
        seen = replace(state, last_epoch=observation.epoch)
        if observation.epoch < self.burn_in or (state.best_value is None and math.isnan(observation.value)):
            return seen, StoppingDecision(stop=False, improved=False, best_epoch=seen.best_epoch, counter=seen.counter)
        if _is_worse(observation.value, state.best_value, self.mode):
            counter = state.counter + 1
            stop = counter >= self.patience
            seen = replace(seen, counter=counter, trigger_epoch=observation.epoch if stop else None)
            return seen, StoppingDecision(stop=stop, improved=False, best_epoch=seen.best_epoch, counter=counter)
        seen = replace(seen, best_epoch=observation.epoch, best_value=observation.value, counter=0)
        return seen, StoppingDecision(stop=False, improved=True, best_epoch=seen.best_epoch, counter=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleRule:
    """Know the best epoch afterwards: the control that no rule can beat. It never stops.

    Of tied epochs the first is the best one, the cheapest way to that score: "epochs saved against the oracle" never
    flatters a rule [O]. NaN is ignored.

    Attributes
    ----------
    mode : {"min", "max"}
        Whether small or large scores are good.
    burn_in : int
        First epoch that counts.
    """

    mode: Mode = "max"
    burn_in: int = DEFAULT_BURN_IN

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        _check_settings(self.mode, self.burn_in)

    def start(self) -> StoppingState:
        """Return the state before the first observation."""
        return StoppingState()

    def update(self, state: StoppingState, observation: Score) -> tuple[StoppingState, StoppingDecision]:
        """Take the score of one epoch.

        Raises
        ------
        ValueError
            The epoch is not later than the one before.
        """
        _check_later(state, observation)
        value, best = observation.value, state.best_value
        improved = (
            observation.epoch >= self.burn_in
            and not math.isnan(value)
            and (best is None or (value < best if self.mode == "min" else value > best))
        )
        seen = replace(state, last_epoch=observation.epoch)
        if improved:
            seen = replace(seen, best_epoch=observation.epoch, best_value=value)
        return seen, StoppingDecision(stop=False, improved=improved, best_epoch=seen.best_epoch, counter=0)


def stopping_rule(
    name: str, *, patience: int = DEFAULT_PATIENCE, burn_in: int = DEFAULT_BURN_IN, mode: Mode | None = None
) -> StoppingRule:
    """Return the rule that a name of `SIGNALS` stands for.

    Parameters
    ----------
    name : str
        One of `SIGNALS`.
    patience : int
        Strictly worse scores that stop; the oracle has none.
    burn_in : int
        First epoch that counts. The oracle counts from epoch 1 even where rules start later, because a late start is
        a rule's own choice and must not lower what it is measured against.
    mode : {"min", "max"}, optional
        Whether small or large is good; the signal's own by default.

    Raises
    ------
    ValueError
        An unknown name, or settings that have no meaning.
    """
    if name not in SIGNALS:
        raise ValueError(f"{name!r} is no stopping rule; there are {', '.join(SIGNALS)}")
    if name == "oracle":
        return OracleRule(mode=mode or SIGNALS[name].mode, burn_in=min(burn_in, DEFAULT_BURN_IN))
    return PatienceRule(mode=mode or SIGNALS[name].mode, patience=patience, burn_in=burn_in)


def _is_worse(value: float, best: float | None, mode: Mode) -> bool:
    """Return whether ``value`` is strictly worse than ``best``; a NaN is worse than any number."""
    if best is None:
        return False
    return math.isnan(value) or (value > best if mode == "min" else value < best)


def _check_settings(mode: str, burn_in: int) -> None:
    """Refuse what no rule can start with."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be 'min' or 'max'; got {mode!r}")
    if burn_in < 0:
        raise ValueError(f"burn_in must be an epoch, 0 or later; got {burn_in}")


def _check_later(state: StoppingState, observation: Score) -> None:
    if state.last_epoch is not None and observation.epoch <= state.last_epoch:
        raise ValueError(
            f"epoch {observation.epoch} came after epoch {state.last_epoch}: a stopping rule walks the epochs in "
            "order, each one once"
        )
