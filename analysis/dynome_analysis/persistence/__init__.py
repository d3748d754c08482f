"""Vietoris-Rips diagrams, their layouts and summaries; neural persistence of weights. Numbers only."""
