"""Conversion of media to tensors on a grid and back: one file per medium; `modalities.base` contains the interface."""
