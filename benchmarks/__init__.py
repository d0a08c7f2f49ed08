"""Measurements whose numbers the docs quote; run from the repository as `python -m benchmarks.NAME`."""
