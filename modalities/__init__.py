"""Media to tensors on a grid and back: one file per medium behind the small protocol of `modalities.base`."""
