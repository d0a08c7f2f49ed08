"""Experiments on trained networks: what each compares is a YAML file here, and one runner makes all of them."""
