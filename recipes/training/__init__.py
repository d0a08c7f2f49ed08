"""Training: what it is made of, one step, the loop, and what is reported on the way."""
