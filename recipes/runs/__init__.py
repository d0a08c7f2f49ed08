"""The folder of a run: what training keeps there, and how it is read back, whoever it comes from."""
