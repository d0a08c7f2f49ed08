"""What a dataset of array files knows about each file: its examples, and the parts of a field that is long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from modalities.time_sequences import Times

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Stored:
    """One file: the number of its examples, the parts into which each is divided, and how many are stored together.

    `times` is the order of its examples in time, which only forecasts need.
    """

    path: Path
    name: str
    stored: int
    parts: tuple[Bounds | None, ...]
    chunk: int
    times: Times | None = None

    @property
    def count(self) -> int:
        """Number of examples of the dataset in this file."""
        return self.stored * len(self.parts)


def divided_field(sizes: Sequence[int], grid: Sequence[int]) -> tuple[Bounds, ...]:
    """Divide a long field into parts of at least two grids along each axis; return their bounds along all axes."""
    along = [
        [(number * size // count, (number + 1) * size // count) for number in range(count)]
        for size, count in zip(sizes, part_counts(sizes, grid), strict=True)
    ]
    return tuple(product(*along))


def part_counts(sizes: Sequence[int], grid: Sequence[int]) -> list[int]:
    """Return the number of parts along each axis."""
    return [max(1, size // (2 * length)) for size, length in zip(sizes, grid, strict=True)]
