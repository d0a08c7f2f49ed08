"""Names and units of the channels of encoded data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """The meaning of one channel of encoded data: `offset + scale * value` is the variable `name`, in its unit."""

    name: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0

    @property
    def label(self) -> str:
        """Name and unit for figures."""
        return f"{self.name} ({self.unit})" if self.unit else self.name
