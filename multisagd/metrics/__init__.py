"""Measure distances between two sets of data or features, independently of files, runs and configuration."""

from multisagd.metrics.frechet import frechet_distance, matched_counts, take

__all__ = ["frechet_distance", "matched_counts", "take"]
