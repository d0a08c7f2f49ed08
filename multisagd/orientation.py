"""Define spectra that depend on the direction of frequency: streaks, and the spots of a moiré pattern.

They describe corruption of parts of the spectrum, for `Corruption`; multiplied by a `Band` or a `PowerLaw`, they
describe directional noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.spectrum import Spectrum

MAX_HARMONICS = 1000
"""Maximum number of harmonics: an untrusted description may request any number, and each costs a pass over the grid."""


@dataclass(frozen=True)
class Streaks(Spectrum):
    """Power 1 at frequencies whose direction is within `width / 2` of the normal to streaks at `angle`, 0 elsewhere.

    Streaks (rain, scratches, the lines of a scanner) run along a direction and vary across it, so their power lies at
    frequencies across it. Angles are in degrees: `angle` 0 means streaks along the second of the two `axes`, and 90
    along the first (vertical for height and width). Zero frequency, which has no direction, is omitted. The axes must
    share a unit.

    Raises:
        ValueError: If the angle is not finite, the width is not in (0, 180], or there are not two axes.
    """

    angle: float
    width: float = 20.0
    axes: tuple[str, str] = ("height", "width")

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        if not (0 < self.width <= 180 and math.isfinite(self.angle)) or len(self.axes) != 2:
            raise ValueError(f"streaks need a finite angle, a width in (0, 180] and two axes, got {self}")

    def power(self, grid: Grid) -> Tensor:
        """Return 1 in the double wedge across the streaks, and 0 elsewhere."""
        radius, radians = grid.radius(self.axes), math.radians(self.angle)
        inside = torch.zeros(grid.half_shape, dtype=torch.bool, device="cpu")
        for across, along in itertools.product(*(_both_signs(grid, name) for name in self.axes)):
            # The wave vector is perpendicular to the streaks.
            cosine = (across * math.cos(radians) + along * math.sin(radians)).abs()
            inside |= cosine >= radius * math.cos(math.radians(self.width / 2)) - 1e-12
        return (inside & (radius > 0)).to(torch.float64)


def _both_signs(grid: Grid, name: str) -> list[Tensor]:
    """Return the frequencies of an axis and, if its size is even, a copy with the opposite sign at Nyquist."""
    axis, frequency = grid.axis(name), grid.frequencies(name)
    if axis.size % 2:
        return [frequency]
    return [frequency, torch.where((frequency.abs() - axis.nyquist).abs() < 1e-9 / axis.spacing, -frequency, frequency)]


@dataclass(frozen=True)
class Spots(Spectrum):
    """Power 1 within `radius` of a frequency and its harmonics, 0 elsewhere: a moiré pattern, a whine or flicker.

    `frequency` is in cycles per unit of each axis that it names; along other axes the pattern is constant. For example,
    `Spots({"height": .2, "width": .1}, radius=.03)` is a pattern of oblique waves, and `Spots({"frame": 10.},
    radius=1.)` a brightness that flickers at 10 Hz over the whole frame. Harmonics beyond Nyquist are aliased, as they
    are in sampled data. Axes with different units need `factors` for the radius, as in `Grid.radius`.

    Raises:
        ValueError: If no frequency is given, all are zero or one is not finite, the radius is negative or infinite, or
            the number of harmonics is not from 1 to 1000; from `power`, if units differ and there are no factors, or no
            frequency of the grid is within the radius.
    """

    frequency: Mapping[str, float]
    radius: float
    harmonics: int = 1
    factors: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        values = list(self.frequency.values())
        if not values or not all(math.isfinite(value) for value in values) or not any(values):
            raise ValueError(f"spots need a finite frequency other than zero, got {dict(self.frequency)}")
        if not 0 <= self.radius < math.inf or not 1 <= self.harmonics <= MAX_HARMONICS:
            raise ValueError(
                f"expected radius >= 0 and from 1 to {MAX_HARMONICS} harmonics, got {self.radius} and {self.harmonics}"
            )

    def power(self, grid: Grid) -> Tensor:
        """Return 1 in the spots, and 0 elsewhere."""
        scale = grid.factors(tuple(self.frequency), self.factors)
        inside = torch.zeros(grid.half_shape, dtype=torch.bool, device="cpu")
        for number in range(1, self.harmonics + 1):
            for sign in (1, -1):
                square = torch.zeros(grid.half_shape, dtype=torch.float64, device="cpu")
                for axis in grid.axes:
                    frequency = grid.frequencies(axis.name)
                    if axis.name not in self.frequency:
                        # Along axes that are not named only frequency zero counts, regardless of their resolution.
                        square = square + torch.where(frequency == 0, 0.0, math.inf)
                        continue
                    cycles = (frequency - sign * number * self.frequency[axis.name]) * axis.spacing
                    distance = (cycles - cycles.round()) / axis.spacing
                    square = square + (scale[axis.name] * distance) ** 2
                inside |= square.sqrt() <= self.radius * (1 + 1e-9) + 1e-12
        if not bool(inside.any()):
            raise ValueError(
                f"no frequency of a grid of shape {grid.shape} lies within {self.radius:g} of "
                f"{dict(self.frequency)}: increase the radius, or use a longer grid"
            )
        return inside.to(torch.float64)
