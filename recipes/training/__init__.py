"""Training: setup, one step, the loop, and reports."""
