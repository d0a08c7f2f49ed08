"""Analysis of sampling from the spectra of data and noise, before any training."""
