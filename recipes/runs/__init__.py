"""The folder of a run: writing it, and reading it safely."""
