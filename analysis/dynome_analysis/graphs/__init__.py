"""Weighted graphs of networks, as operators, and eigenvector centrality.

`structure` (with `vertices`) reads the layer graph of ``run.json``, `layered` puts weights on it, `centrality` solves
for the leading eigenvector.
"""
