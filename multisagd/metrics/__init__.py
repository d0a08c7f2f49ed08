"""Distances between two sets of data or features, one idea a file; none of them knows files, runs or configuration."""

from multisagd.metrics.frechet import frechet_distance, matched_counts, take

__all__ = ["frechet_distance", "matched_counts", "take"]
