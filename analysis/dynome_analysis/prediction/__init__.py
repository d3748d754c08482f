"""From the weights of the first epochs to how good the trained network will be.

`signature` turns a weighted graph (`dynome_analysis.graphs`) into numbers; `recorded` does so for each snapshot of a
recording and `features` gathers recordings; `hyperparameters`, `estimators`, `scores` and `evaluate` fit,
cross-validate and compare with baselines.
"""

from dynome_analysis.prediction.evaluate import Exclusion, Prediction, predict_performance
from dynome_analysis.prediction.features import early_features
from dynome_analysis.prediction.recorded import weight_signature
from dynome_analysis.prediction.scores import Score

__all__ = ["Exclusion", "Prediction", "Score", "early_features", "predict_performance", "weight_signature"]
