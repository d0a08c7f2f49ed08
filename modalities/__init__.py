"""Conversion of media to tensors on a grid and back: one file per medium, with the protocol in `modalities.base`."""
