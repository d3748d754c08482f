"""Connectomes: how strongly every two units vary together. Numbers only."""
