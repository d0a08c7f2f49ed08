"""Names, units and transforms of the channels of encoded data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Transform = Literal["linear", "log", "asinh"]
LARGEST_EXPONENT = 700.0
"""Maximum argument of exponential functions, which overflow beyond it."""


@dataclass(frozen=True)
class Variable:
    """The meaning of one channel: `transform(value) = offset + scale * encoded`, where `value` is in the `unit`.

    `transform` is "linear" (the value itself), "log" (its natural logarithm, for positive values), or "asinh", which is
    asinh(value / threshold): almost linear below the `threshold`, and logarithmic above it, for both signs.

    Raises:
        ValueError: If a number is not finite, `scale` is 0, `threshold` is not positive, or `transform` is unknown.
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    transform: Transform = "linear"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.scale, self.offset, self.threshold)
        if not all(map(math.isfinite, numbers)) or self.scale == 0 or self.threshold <= 0:
            raise ValueError(
                f"variable {self.name!r}: scale must not be 0, threshold must be positive, and all numbers finite, got "
                f"scale={self.scale}, offset={self.offset} and threshold={self.threshold}"
            )
        if self.transform not in get_args(Transform):
            raise ValueError(
                f"variable {self.name!r}: transform must be one of {', '.join(get_args(Transform))}, got "
                f"{self.transform!r:.80}"
            )

    @property
    def label(self) -> str:
        """Name and unit for figures."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def transformed(self, values: Tensor) -> Tensor:
        """Return values of any shape, in the unit, after the transform; log is NaN or infinite unless positive."""
        if self.transform == "log":
            return values.log()
        return (values / self.threshold).asinh() if self.transform == "asinh" else values

    def encode(self, values: Tensor) -> Tensor:
        """Convert values of any shape, in the unit, to encoded values."""
        return (self.transformed(values) - self.offset) / self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """Convert encoded values of any shape to values in the unit: the inverse of `encode`."""
        values = self.offset + self.scale * x0
        if self.transform == "linear":
            return values
        values = values.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        return values.exp() if self.transform == "log" else self.threshold * values.sinh()
