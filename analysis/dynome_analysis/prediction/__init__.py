"""From the weights of the first epochs to how good the trained network will be.

`structure` reads the layer graph of ``run.json``; `layered` puts weights on it; `centrality` and `signature` turn a weighted
graph into numbers; `features` gathers them over recordings; `evaluate` fits, cross-validates and compares with baselines.
"""
