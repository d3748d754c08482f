"""Distances between signatures, centroids, and how much of a distance is noise. Numbers only."""
