"""Condition networks on tensors on the data's grid or a coarser one, which are read point by point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from multisagd.networks.layers import around

TINY = 1e-6
"""Smallest share of known values by which values are divided; the smallest that occurs is 1 / (2 · factor)."""


def input_channels(channels: int, dense: int | None) -> int:
    """Return how many channels a network reads that concatenates a condition of `dense` channels to its input.

    Raises:
        ValueError: If `dense` is below 1.
    """
    if dense is None:
        return channels
    if dense < 1:
        raise ValueError(
            f"dense must be at least 1 channel, or None for a network without a dense condition; got {dense}"
        )
    return channels + 2 * dense


def with_dense(x: Tensor, condition: Tensor | None, dense: int | None, periodic: Sequence[bool]) -> Tensor:
    """Return x (batch, channels, *grid) with a dense condition after its channels, (batch, channels + 2 dense, *grid).

    The condition (batch, dense, *grid or coarser), dimensionless, is interpolated linearly to the grid of x. NaN means
    unknown, and None that all values are. Unknown values become zeros, and as many channels after them contain which
    share of every value is known: 1 where all is, and 0 where nothing is. So an unknown condition differs from zeros,
    and one network serves both sides of classifier-free guidance. Without `dense`, x is returned as it is.

    Raises:
        ValueError: If there is a condition but `dense` is None, or its shape or dtype does not fit.
    """
    if dense is None:
        if condition is not None:
            raise ValueError("this network takes no dense condition, but got one: build it with dense=CHANNELS")
        return x
    if condition is None:
        return torch.cat([x, x.new_zeros(len(x), 2 * dense, *x.shape[2:])], dim=1)
    check_dense(condition, dense, x)
    known = ~condition.isnan()
    values, shares = (
        refined(each, x.shape[2:], periodic) for each in (condition.where(known, 0.0).to(x.dtype), known.to(x.dtype))
    )
    return torch.cat([x, values / shares.clamp(min=TINY), shares], dim=1)


def check_dense(condition: Tensor, dense: int, x: Tensor) -> None:
    """Check a dimensionless condition of `dense` channels for data x (batch, channels, *grid).

    Raises:
        ValueError: If it is not float (batch, dense, *grid), where every axis of the data has a whole multiple of the
            condition's samples.
    """
    sizes, grid = tuple(condition.shape[2:]), tuple(x.shape[2:])
    fits = condition.shape[:2] == (len(x), dense) and len(sizes) == len(grid) and condition.is_floating_point()
    if not (fits and all(own > 0 and size % own == 0 for own, size in zip(sizes, grid, strict=True))):
        raise ValueError(
            f"the dense condition must be float of shape ({len(x)}, {dense}, *grid), where the grid is {grid} or has "
            f"a whole factor fewer samples along an axis; got {condition.dtype} of shape {tuple(condition.shape)}"
        )


def refined(x: Tensor, sizes: Sequence[int], periodic: Sequence[bool]) -> Tensor:
    """Interpolate x (batch, channels, *coarser grid) linearly to whole multiples of its sizes, in its units.

    A sample of the coarser grid is at the centre of the samples that it stands for. Beyond both ends, a periodic axis
    continues at the other one, and any other axis keeps its last value.
    """
    for axis, (size, circle) in enumerate(zip(sizes, periodic, strict=True), start=2):
        factor = size // x.shape[axis]
        if factor == 1:
            continue
        first, last = (x.narrow(axis, at, 1) for at in (0, x.shape[axis] - 1))
        longer = around(x, axis, 1, 1) if circle else torch.cat([first, x, last], dim=axis)
        moved = longer.movedim(axis, -1)
        lines = F.interpolate(moved.flatten(1, -2), scale_factor=float(factor), mode="linear", align_corners=False)
        x = lines[..., factor:-factor].reshape(*moved.shape[:-1], size).movedim(-1, axis)
    return x
