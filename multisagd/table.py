"""Tabulate a spectrum that was measured from data, or designed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from multisagd.grid import Axis, Grid
from multisagd.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Table(Spectrum):
    """Power tabulated on the half spectrum of `grid`, shape `grid.half_shape`.

    On the same grid the table is returned unchanged. On another grid it is interpolated linearly in frequency (cycles
    per unit), and constant beyond the highest tabulated frequency.

    Raises:
        ValueError: If values have a different shape, or are negative or not finite; from `power`, if the grid has
            different axis names or units.
    """

    values: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        values = self.values.detach().to("cpu", torch.float64)
        if tuple(values.shape) != self.grid.half_shape:
            raise ValueError(
                f"expected a table of shape {self.grid.half_shape} for this grid, got {tuple(values.shape)}"
            )
        if not bool(torch.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("a table of power must be finite and non-negative")
        object.__setattr__(self, "values", values)

    def power(self, grid: Grid) -> Tensor:
        """Return the table on `grid`, interpolated if the grid differs."""
        described = [[(axis.name, axis.unit) for axis in g.axes] for g in (grid, self.grid)]
        if described[0] != described[1]:
            raise ValueError(f"this table has axes {described[1]} and cannot be evaluated on axes {described[0]}")
        if [(a.size, a.spacing) for a in grid.axes] == [(a.size, a.spacing) for a in self.grid.axes]:
            return self.values
        full = interpolated(self.grid.full(self.values).numpy(), self.grid, grid)
        return torch.from_numpy(full).reshape(grid.half_shape)


def interpolated(full: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Interpolate values on the full spectrum linearly in frequency, `(*source.shape, ...) -> (bins, ...)`.

    The bins are those of the half spectrum of `target`, flattened. Values may be complex and have any unit; beyond the
    highest frequency of the source they are constant.
    """
    positions, order = zip(*(_knots(axis) for axis in source.axes), strict=True)
    interpolate = scipy.interpolate.RegularGridInterpolator(positions, full[np.ix_(*order)])
    targets = torch.broadcast_tensors(*(target.frequencies(name) for name in target.names))
    clamped = [f.clamp(float(p[0]), float(p[-1])).numpy().ravel() for f, p in zip(targets, positions, strict=True)]
    found: np.ndarray = interpolate(np.stack(clamped, axis=-1))
    return found


def _knots(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return the increasing frequencies of an axis and the index of each.

    If the Nyquist frequency has a bin, it is at both ends.
    """
    frequencies = np.fft.fftfreq(axis.size, axis.spacing)
    order = np.argsort(frequencies, kind="stable")
    positions = frequencies[order]
    if axis.size % 2 == 0:
        return np.append(positions, axis.nyquist), np.append(order, order[0])
    if axis.size == 1:
        return np.array([0.0, axis.nyquist]), np.array([0, 0])
    return positions, order
