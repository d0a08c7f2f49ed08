"""Provide small layers that networks share, for any number of grid dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def checked_periodic(periodic: Sequence[bool] | None, dimensions: int) -> tuple[bool, ...]:
    """Return whether each grid axis is periodic; None means that no axis is.

    Raises:
        ValueError: If there is not one value per axis.
    """
    given = (False,) * dimensions if periodic is None else tuple(periodic)
    if len(given) != dimensions:
        raise ValueError(f"periodic must have one value per axis, got {len(given)} for {dimensions} axes")
    return given


def around(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Extend a periodic axis of a tensor `(..., size, ...)` with samples from its other end, perhaps several times.

    Concatenation supports any number of axes and any dtype, and its gradient is deterministic on every device.
    """
    size = x.shape[axis]
    parts = [x]
    if before:
        first = -before % size
        parts = [x.narrow(axis, first, size - first), *[x] * ((before - 1) // size), x]
    if after:
        parts += [*[x] * ((after - 1) // size), x.narrow(axis, 0, (after - 1) % size + 1)]
    return torch.cat(parts, dim=axis) if len(parts) > 1 else x


def pad_to_multiple(x: Tensor, multiples: Sequence[int], periodic: Sequence[bool] | None = None) -> Tensor:
    """Pad features (batch, channels, *grid) to multiples of the given sizes, by repeating the last sample of each axis.

    The border is not reflected, because reflection needs more samples than it adds and so fails on short axes, and not
    filled with zeros, because zeros are atypical of noisy data.

    A periodic axis is continued around the circle instead, by at least one multiple on both sides, so that neither end
    is next to the joint, where samples meet that are not neighbours. `crop` undoes both.
    """
    for axis, (multiple, circle) in enumerate(zip(multiples, periodic or (False,) * len(multiples), strict=True), 2):
        missing = -x.shape[axis] % multiple
        if missing and circle:
            x = around(x, axis, multiple, multiple + missing)
        elif missing:
            border = x.narrow(axis, x.shape[axis] - 1, 1)
            sizes = [-1] * x.ndim
            sizes[axis] = missing
            x = torch.cat([x, border.expand(sizes)], dim=axis)
    return x


def crop(
    x: Tensor, sizes: Sequence[int], multiples: Sequence[int] = (), periodic: Sequence[bool] | None = None
) -> Tensor:
    """Crop features (batch, channels, *grid) to these sizes, undoing `pad_to_multiple`."""
    for axis, size in enumerate(sizes):
        circle = periodic is not None and periodic[axis] and size % multiples[axis] != 0
        x = x.narrow(axis + 2, multiples[axis] if circle else 0, size)
    return x


def padded_by_one(x: Tensor, periodic: Sequence[bool]) -> Tensor:
    """Extend the periodic axes of features (batch, channels, *grid) by one sample on both sides.

    A convolution of three samples needs them; along other axes it pads with zeros by itself: see `three_samples`.
    """
    for axis, circle in enumerate(periodic, start=2):
        if circle:
            x = around(x, axis, 1, 1)
    return x


def three_samples(channels: int, out_channels: int, periodic: Sequence[bool]) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Return a convolution of three samples along each axis that keeps the sizes after `padded_by_one`."""
    zeros: Any = tuple(0 if circle else 1 for circle in periodic)
    return CONVOLUTIONS[len(periodic)](channels, out_channels, 3, padding=zeros)


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


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut features into patches: (batch, channels, *grid) -> (batch, tokens, channels * samples).

    The last axis varies fastest. The size of every axis must be a multiple of the patch size.
    """
    axes = len(patch)
    for axis, size in enumerate(patch):
        x = x.unflatten(2 + 2 * axis, (-1, size))
    counts, within = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return x.permute(0, *counts, 1, *within).flatten(1, axes).flatten(2)


def unpatchify(tokens: Tensor, counts: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Undo `patchify` for `counts` patches: (batch, tokens, channels * samples) -> (batch, channels, *grid)."""
    axes = len(patch)
    x = tokens.unflatten(1, tuple(counts)).unflatten(-1, (-1, *patch))
    pairs = [axis for index in range(axes) for axis in (1 + index, 2 + axes + index)]
    x = x.permute(0, 1 + axes, *pairs)
    for axis in range(axes):
        x = x.flatten(2 + axis, 3 + axis)
    return x
