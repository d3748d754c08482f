"""Decision rules as state machines on plain numbers, and their replay over recordings."""

from dynome_analysis.replay.learning_rate import LearningRateDecision, LearningRateRule, LearningRateState
from dynome_analysis.replay.replay import replay_learning_rate, replay_stopping
from dynome_analysis.replay.stopping import (
    SIGNALS,
    OracleRule,
    PatienceRule,
    Score,
    StoppingDecision,
    StoppingState,
    stopping_rule,
)

__all__ = [
    "SIGNALS",
    "LearningRateDecision",
    "LearningRateRule",
    "LearningRateState",
    "OracleRule",
    "PatienceRule",
    "Score",
    "StoppingDecision",
    "StoppingState",
    "replay_learning_rate",
    "replay_stopping",
    "stopping_rule",
]
