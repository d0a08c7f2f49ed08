"""Training: setup, single steps, the loop, and reports."""
