"""From the weights of the first epochs to how good the trained network will be.

`structure` reads the layer graph of ``run.json``, `layered` puts weights on it; `centrality` and `signature` turn a
weighted graph into numbers; `features` gathers them over recordings; `hyperparameters`, `estimators` and `evaluate`
fit, cross-validate and compare with baselines.
"""

from dynome_analysis.prediction.evaluate import Exclusion, Prediction, Score, predict_performance
from dynome_analysis.prediction.features import early_features, weight_signature

__all__ = ["Exclusion", "Prediction", "Score", "early_features", "predict_performance", "weight_signature"]
