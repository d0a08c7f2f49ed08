"""Analyse sampling from the spectra of the data and the noise, before any training."""
