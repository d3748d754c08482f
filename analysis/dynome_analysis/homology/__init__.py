"""Persistent graph homology of connectomes: births of components, deaths of cycles, at any size. Numbers only."""
