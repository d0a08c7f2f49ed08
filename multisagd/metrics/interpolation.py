"""Plain estimates of unknown values, with which the samples of a conditional model are compared.

All functions take and return `(items, channels, *grid)`, dimensionless or in any unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 2
"""Samples that cubic interpolation needs beyond each end of an axis."""
ACCURACY = 1e-8
"""Residual of the filled values at which the iteration ends, relative to the first one."""


def cubic_interpolation(coarse: Tensor, sizes: Sequence[int], periodic: Sequence[bool]) -> Tensor:
    """Return coarse values on a finer grid of these sizes, by cubic interpolation along each axis.

    `coarse` is (items, channels, *coarse sizes) and the result (items, channels, *sizes), in the same unit.

    In two dimensions this is the bicubic interpolation of `torch.nn.functional.interpolate`. A coarse sample is at the
    centre of the samples that it stands for. Beyond its ends, a periodic axis continues at the other end, and any other
    axis repeats its last value.

    Raises:
        ValueError: If a size is not a whole multiple of the coarse one.
    """
    x = coarse
    for axis, (size, circle) in enumerate(zip(sizes, periodic, strict=True), start=2):
        count = x.shape[axis]
        factor = size // count
        if factor * count != size:
            raise ValueError(f"an axis of {count} coarse samples cannot be refined to {size}")
        if factor == 1:
            continue
        places = torch.arange(-REACH, count + REACH, device=x.device)
        places = places % count if circle else places.clamp(0, count - 1)
        moved = x.index_select(axis, places).movedim(axis, -1)
        lines = moved.reshape(1, -1, len(places), 1)
        # Along the last axis, of a single sample, nothing is interpolated.
        finer = F.interpolate(lines, size=(factor * len(places), 1), mode="bicubic", align_corners=False)
        finer = finer[:, :, REACH * factor : -REACH * factor, 0]
        x = finer.reshape(*moved.shape[:-1], size).movedim(-1, axis)
    return x


def linear_fill(x: Tensor, periodic: Sequence[bool]) -> Tensor:
    """Return data with each unknown value (NaN) equal to the mean of its neighbours on the grid.

    x is (items, channels, *grid) in any unit, and so is the result.

    In one dimension this is linear interpolation, and the last known value beyond it; in more, the solution of the
    discrete Laplace equation, which minimises the squared differences between neighbours. A channel of an item without
    known values becomes zero.
    """
    unknown = x.isnan()
    filled = x.double().masked_fill(unknown, 0.0)
    free = unknown & ~unknown.flatten(2).all(-1).reshape(*x.shape[:2], *[1] * (x.dim() - 2))
    dims = tuple(range(2, x.dim()))

    def product(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(dims, keepdim=True)

    # Conjugate gradients, for all items and channels at once.
    residual = -_differences(filled, periodic) * free
    direction, power = residual, product(residual, residual)
    first = power.clamp(min=1e-300)
    for _ in range(int(free.flatten(2).sum(-1).max()) if free.numel() else 0):
        if bool((power <= ACCURACY**2 * first).all()):
            break
        image = _differences(direction, periodic) * free
        step = power / product(direction, image).clamp(min=1e-300)
        filled = filled + step * direction
        residual = residual - step * image
        before, power = power, product(residual, residual)
        direction = residual + power / before.clamp(min=1e-300) * direction
    return torch.where(unknown, filled.to(x.dtype), x)


def _differences(x: Tensor, periodic: Sequence[bool]) -> Tensor:
    """Return the sum of the differences between every value and its neighbours."""
    total = torch.zeros_like(x)
    for axis, circle in enumerate(periodic, start=2):
        if circle:
            total = total + 2 * x - x.roll(1, axis) - x.roll(-1, axis)
        else:
            step = x.diff(dim=axis)
            nothing = torch.zeros_like(x.narrow(axis, 0, 1))
            total = total + torch.cat([nothing, step], axis) - torch.cat([step, nothing], axis)
    return total


def last_known(x: Tensor) -> Tensor:
    """Return data whose values, unknown (NaN) from some position of the first axis of the grid on, stay constant.

    They keep the last known value of their channel and position on the other axes, or become zero if there is none.
    x is (items, channels, *grid) in any unit, and the result has the same shape.
    """
    known = ~x.isnan()
    size = x.shape[2]
    place = torch.arange(size, device=x.device).reshape(-1, *[1] * (x.dim() - 3)).expand_as(x)
    latest = torch.where(known, place, -1).cummax(dim=2).values
    filled = x.nan_to_num(0.0).gather(2, latest.clamp(min=0))
    return torch.where(latest >= 0, filled, 0.0)
