"""Distances between two sets of data or features, one idea a file; none of them knows files, runs or configuration."""

from recipes.metrics.frechet import NoiseFloor, frechet_distance, matched_counts, noise_floor, take

__all__ = ["NoiseFloor", "frechet_distance", "matched_counts", "noise_floor", "take"]
