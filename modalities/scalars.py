"""Numbers about how an example was read, such as the start of an excerpt, which a network can take as a condition.

A network that knows the crop or the start does not have to learn that pictures may be cut off, or that sounds may begin
in the middle (as in SDXL, arXiv 2307.01952, section 2.2, and in Stable Audio, arXiv 2402.04825, section 3). Modalities
declare the names (`Modality.scalars`) and call `record` while they read a file; datasets collect the numbers with
`recording`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

_RECORDED: ContextVar[dict[str, float] | None] = ContextVar("scalars", default=None)
"""The numbers recorded in the innermost `recording` block of this thread."""
POSITIONS = {"crop_top": 1.0, "crop_left": 1.0, "start": 1e-3}
"""The numbers that say at which place a file was read, each with the difference that rounding may cause."""
WINDOW = "window:"
"""Beginning of the names of other such numbers, which are exact, and which no network can take."""


def record(**values: float) -> None:
    """State numbers about the file that is being read, by their names; later ones replace earlier ones."""
    recorded = _RECORDED.get()
    if recorded is not None:
        recorded.update({name: float(value) for name, value in values.items()})


def positions(recorded: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers, of those recorded, that say at which place a file was read."""
    return {name: value for name, value in recorded.items() if name in POSITIONS or name.startswith(WINDOW)}


@contextmanager
def recording() -> Iterator[dict[str, float]]:
    """Provide the numbers that are recorded within the `with` block."""
    recorded: dict[str, float] = {}
    token = _RECORDED.set(recorded)
    try:
        yield recorded
    finally:
        _RECORDED.reset(token)


@dataclass(frozen=True)
class Scalar:
    """A number that a network takes as a condition, with its mean and standard deviation in the training data.

    Raises:
        ValueError: If the mean is not finite, or the deviation is not positive.
    """

    name: str
    unit: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not 0 < self.std < math.inf:
            raise ValueError(
                f"scalar {self.name}: expected a finite mean and deviation, got {self.mean} and {self.std}"
            )


def standardised(scalars: Sequence[Scalar], values: Mapping[str, Tensor], count: int) -> Tensor:
    """Return numbers as a network takes them, dimensionless float32 (count, scalars), NaN where they are unknown.

    `values` contains a tensor (count,) for the names of some scalars, in their units.
    """
    columns = []
    for scalar in scalars:
        known = values.get(scalar.name)
        column = torch.full((count,), math.nan, dtype=torch.float64) if known is None else known.double()
        columns.append((column - scalar.mean) / scalar.std)
    return torch.stack(columns, 1).float()
