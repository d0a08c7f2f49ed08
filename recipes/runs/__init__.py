"""The folder of a run: write it, and read it safely."""
