"""Comparison of batches."""

import torch

from modalities.base import Batch


def assert_equal(left: Batch, right: Batch) -> None:
    """Check that all fields of two batches are equal, bit for bit."""
    for one, other in zip(left, right, strict=True):
        if isinstance(one, dict | torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert one == other
