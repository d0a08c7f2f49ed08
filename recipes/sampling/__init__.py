"""Sampling: conditions, generation, and the folder of a set of samples."""
