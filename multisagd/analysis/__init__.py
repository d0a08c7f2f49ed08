"""What the spectra of data and noise say about sampling, before any training."""
