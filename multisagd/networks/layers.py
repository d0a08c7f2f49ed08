"""Provide small layers that networks share, for any number of grid dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def pad_to_multiple(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Pad features (batch, channels, *grid) to multiples of the given sizes, by repeating the last sample of each axis.

    The border is not reflected, because reflection needs more samples than it adds and so fails on short axes, and not
    filled with zeros, because zeros are atypical of noisy data. Concatenation supports any number of axes and any
    dtype, and its gradient is deterministic on every device.
    """
    for axis, multiple in enumerate(multiples, start=2):
        missing = -x.shape[axis] % multiple
        if missing:
            border = x.narrow(axis, x.shape[axis] - 1, 1)
            sizes = [-1] * x.ndim
            sizes[axis] = missing
            x = torch.cat([x, border.expand(sizes)], dim=axis)
    return x


def crop(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Crop features (batch, channels, *grid) to the first samples of each grid axis, undoing `pad_to_multiple`."""
    for axis, size in enumerate(sizes, start=2):
        x = x.narrow(axis, 0, size)
    return x


def channels_last(x: Tensor) -> Tensor:
    """Convert 2-D or 3-D features `(batch, channels, *grid)` to channels-last memory layout, which is faster.

    Only data are converted, never weights: FSDP2 refuses parameters that are not contiguous.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=layouts[x.ndim]) if x.ndim in layouts else x


def check_input(x: Tensor, channels: int, dimensions: int) -> None:
    """Check that features `x` are (batch, channels, *grid) with this number of channels and grid dimensions.

    Raises:
        ValueError: If the shape differs; the message gives the expected and the actual shape.
    """
    if x.ndim != dimensions + 2 or x.shape[1] != channels:
        grid = ", ".join(f"n{axis}" for axis in range(1, dimensions + 1))
        raise ValueError(f"this network expects shape (batch, {channels}, {grid}), got {tuple(x.shape)}")


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with up to 32 groups of at least 4 channels, for any number of channels.

    Smaller groups would remove the mean and scale of nearly every channel, and the information in them.
    """
    groups = next(count for count in range(min(32, max(1, channels // 4)), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def zero(module: ModuleT) -> ModuleT:
    """Set every parameter of a module to zero and return it, so that its branch starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
