"""Compute increments of a field, `x(s + r) - x(s)` along one axis, and their moments: the structure functions.

Structure functions of order 2 are determined by the power spectrum; those of higher orders also show how intermittent
the field is (U. Frisch, Turbulence, Cambridge University Press 1995, chapters 5 and 8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multisagd.grid import Axis, Grid

ORDERS = (2, 3, 4)
"""Orders of structure functions."""
Batches = Iterable[tuple[Tensor, Tensor | None]]
"""Data `(count, channels, *grid)`, each batch with its mask `(count, 1 or channels, *grid)` or None."""


def lags_along(axis: Axis) -> list[int]:
    """Return the lags in samples at which increments along an axis are compared: 1, 2, 4, … up to half its size."""
    return [2**power for power in range(axis.size.bit_length()) if 2 ** (1 + power) <= axis.size]


def increments(x: Tensor, mask: Tensor | None, grid: Grid, name: str, lag: int) -> tuple[Tensor, Tensor | None]:
    """Return the increments of data `(count, channels, *grid)` at a lag in samples along an axis, and their mask.

    The mask `(count, 1 or channels, *grid)` is True where both values are valid. The result has `lag` samples fewer
    along the axis, unless it is periodic: then the first samples follow the last ones.

    Raises:
        ValueError: If the lag is below 1, or not below the size of the axis.
    """
    axis = x.ndim - grid.dimensions + grid.names.index(grid.axis(name).name)
    size, periodic = x.shape[axis], grid.axis(name).periodic
    if not 1 <= lag < max(2, size):
        raise ValueError(f"a lag along {name} must be from 1 to {size - 1} samples, got {lag}")
    if periodic:
        further, own, ahead = x.roll(-lag, axis), x, None if mask is None else mask.roll(-lag, axis)
        return further - own, None if mask is None or ahead is None else mask & ahead
    count = max(0, size - lag)
    difference = x.narrow(axis, size - count, count) - x.narrow(axis, 0, count)
    if mask is None:
        return difference, None
    return difference, mask.narrow(axis, size - count, count) & mask.narrow(axis, 0, count)


def structure_sums(
    batches: Batches, grid: Grid, name: str, lags: Sequence[int], orders: Sequence[int] = ORDERS
) -> Tensor:
    """Return the number of increments along an axis, and the sums of their absolute powers, for each item and lag.

    The result is float64 `(items, lags, 1 + orders)`, in the unit of the data to the power of each order.
    """
    items = []
    for x, mask in batches:
        of_lags = []
        for lag in lags:
            values, valid = increments(x.double(), mask, grid, name, lag)
            counted = torch.ones_like(values) if valid is None else valid.expand_as(values).double()
            sums = [counted, *(counted * values.abs() ** order for order in orders)]
            of_lags.append(torch.stack([each.flatten(1).sum(1) for each in sums], dim=1))
        items.append(torch.stack(of_lags, dim=1))
    return torch.cat(items)


def structure_functions(sums: Tensor) -> Tensor:
    """Return the mean absolute powers of increments, `(lags, orders)`, from `structure_sums` `(items, lags, …)`.

    They are in the unit of the data to the power of each order.
    """
    total = sums.sum(0)
    return total[:, 1:] / total[:, :1].clamp(min=1)


def structure_error(sums_a: Tensor, sums_b: Tensor, number: int, orders: Sequence[int] = ORDERS) -> float:
    """Return the root mean square error in dB, over lags, of the structure function S of order `p = orders[number]`.

    The sums are `structure_sums` `(items, lags, 1 + orders)` of both sets. The error at one lag is that of `S^(2/p)`,
    so that a wrong amplitude alone gives the same error in all orders, that of the power.
    """
    ratio = (structure_functions(sums_a) / structure_functions(sums_b).clamp(min=1e-300))[:, number]
    decibels = 20 / orders[number] * ratio.clamp(min=1e-30).log10()
    return float(decibels.square().mean().sqrt())
