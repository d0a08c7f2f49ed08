"""Dense conditions that are derived from the examples themselves: coarse versions, first frames, and known parts.

Each is a small function of encoded data, and a class with its settings (`configs/condition`). A network that is trained
on coarse versions restores what they lack; one that is trained on first frames continues them; and one that is trained
on known parts fills in the rest. Unknown values are NaN. `modalities.mel_condition` has one more, for sounds.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from modalities.base import Batch, Dataset, Example, Modality, pair
from modalities.pairs import read_condition
from modalities.reading import UnreadableFilesError
from modalities.wrapped import Wrapped
from multisagd.grid import Grid
from multisagd.seeds import derive

Method = Literal["mean", "band_limited"]
Hidden = Literal["boxes", "half", "frames"]
SIDES = (0.25, 0.6)
"""Smallest and largest side of a hidden box, as a fraction of the axis."""
MOST_BOXES = 1000
"""Maximum number of hidden boxes, which a configuration from someone else may state."""
CUTS = (0.25, 0.75)
"""Where an axis is cut in two, as a fraction of it."""


def block_means(x0: Tensor, factors: Sequence[int]) -> Tensor:
    """Return the means of the known values in blocks of `factors` samples: (channels, *grid) -> (channels, *coarse).

    A block without known values is NaN.

    Raises:
        ValueError: If a factor does not divide the size of its axis.
    """
    for axis, factor in enumerate(factors, start=1):
        if x0.shape[axis] % factor:
            raise ValueError(f"a factor of {factor} does not divide an axis of {x0.shape[axis]} samples")
    blocks = [part for size, factor in zip(x0.shape[1:], factors, strict=True) for part in (size // factor, factor)]
    return x0.reshape(-1, *blocks).nanmean(tuple(range(2, len(blocks) + 1, 2)))


def band_limited(x0: Tensor, factors: Sequence[int]) -> Tensor:
    """Return what lies below the coarse grid's Nyquist frequency, at the centres of blocks of `factors` samples.

    (channels, *grid) -> (channels, *coarse), exact along periodic axes. Unlike means of blocks, it contains no aliases,
    and frequencies below Nyquist at their full strength.

    Raises:
        ValueError: If a factor does not divide the size of its axis, or a value is unknown.
    """
    if bool(x0.isnan().any()):
        raise ValueError("a band-limited version needs data without missing values: use method=mean")
    for axis, factor in enumerate(factors, start=1):
        size = x0.shape[axis]
        if size % factor:
            raise ValueError(f"a factor of {factor} does not divide an axis of {size} samples")
        if factor == 1:
            continue
        coarse = size // factor
        spectrum = torch.fft.rfft(x0.double(), dim=axis)[(slice(None),) * axis + (slice(0, coarse // 2 + 1),)]
        number = torch.arange(coarse // 2 + 1, dtype=torch.float64)
        # The centre of a block is (factor - 1) / 2 samples after its first one. Nyquist itself has no unique phase.
        shift = torch.polar((2 * number < coarse).double(), torch.pi * number * (factor - 1) / size)
        shape = [-1 if each == axis else 1 for each in range(x0.dim())]
        x0 = torch.fft.irfft(spectrum * shift.reshape(shape), n=coarse, dim=axis).to(x0.dtype) / factor
    return x0


def first_frames(x0: Tensor, count: int) -> Tensor:
    """Return data (channels, *grid) of which only the first `count` samples of the first axis are known."""
    known = x0.clone()
    known[:, count:] = torch.nan
    return known


def known_part(x0: Tensor, hidden: Hidden, boxes: int, seed: int) -> Tensor:
    """Return data (channels, *grid) of which a part is unknown, the same in all channels; see `Masked`."""
    rng, shape = random.Random(seed), x0.shape[1:]
    known = torch.ones(shape, dtype=torch.bool)
    if hidden == "boxes":
        for _ in range(rng.randint(1, boxes)):
            box = []
            for size in shape:
                side = max(1, round(size * rng.uniform(*SIDES)))
                start = rng.randint(0, size - side)
                box.append(slice(start, start + side))
            known[tuple(box)] = False
    elif hidden == "half":
        axis = rng.choice([number for number, size in enumerate(shape) if size > 1] or [0])
        cut = round(shape[axis] * rng.uniform(*CUTS))
        part = known.narrow(axis, *((0, cut) if rng.random() < 0.5 else (cut, shape[axis] - cut)))
        part.fill_(False)
    else:
        kept = rng.sample(range(shape[0]), rng.randint(1, max(1, shape[0] - 1)))
        known[[number for number in range(shape[0]) if number not in kept]] = False
    return x0.masked_fill(~known, torch.nan)


class DerivedCondition(ABC):
    """A dense condition that is a function of encoded data. Subclasses are frozen dataclasses of its settings."""

    @abstractmethod
    def check(self, modality: Modality) -> None:
        """Raise ValueError if the condition cannot be derived from data of this modality."""

    @abstractmethod
    def derive(self, x0: Tensor, modality: Modality, seed: int) -> Tensor:
        """Return the condition (channels, *grid or coarser) of encoded data (channels, *grid), dimensionless.

        NaN means unknown, in the data as in the result. What is random depends on the seed only.
        """

    def modality(self, modality: Modality) -> Modality:
        """Return the modality of the conditions of data of this modality, which has their channels and shows them.

        By default, it is that of the data.
        """
        return modality

    def suffixes(self, modality: Modality) -> tuple[str, ...]:
        """Return the endings of files with which samples are drawn: by default, those of the media."""
        return modality.suffixes

    def read(self, path: Path, modality: Modality, seed: int) -> Tensor:
        """Return the condition (channels, *grid or coarser) with which samples are drawn for a file.

        By default, it is derived from the media in the file, which are read from their middle.

        Raises:
            ValueError: If the file cannot be read; the message names it.
            UnreadableFilesError: If the storage fails.
        """
        return self.derive(read_condition(path, modality, None), modality, seed)


@dataclass(frozen=True)
class Coarse(DerivedCondition):
    """A version with fewer samples: a `factor` for all axes, or one by name of each axis that gets coarser.

    `method` is "mean", the mean of every block of samples, or "band_limited", everything below the coarse Nyquist
    frequency, which needs periodic axes and data without missing values.

    Raises:
        ValueError: If a factor is below 2, or the method is unknown.
    """

    factor: int | Mapping[str, int] = 4
    method: Method = "mean"

    def __post_init__(self) -> None:
        given = self.factor.values() if isinstance(self.factor, Mapping) else [self.factor]
        if not given or min(given) < 2:
            raise ValueError(f"factor must be 2 or more, or such a number by axis, got {self.factor}")
        if self.method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")

    def factors(self, grid: Grid) -> list[int]:
        """Return the factor of every axis."""
        if isinstance(self.factor, Mapping):
            return [self.factor.get(name, 1) for name in grid.names]
        return [self.factor] * grid.dimensions

    def check(self, modality: Modality) -> None:
        """Raise ValueError if an axis is unknown, not divisible by its factor, or not periodic though it must be."""
        grid = modality.grid()
        if isinstance(self.factor, Mapping) and (unknown := [name for name in self.factor if name not in grid.names]):
            raise ValueError(f"factor names the axis {unknown[0]!r}, but the data have {', '.join(grid.names)}")
        for axis, factor in zip(grid.axes, self.factors(grid), strict=True):
            if axis.size % factor:
                raise ValueError(
                    f"factor={factor} does not divide the {axis.size} samples of the axis {axis.name}: choose another "
                    f"factor or size, or a factor by axis, such as factor={{{axis.name}:2}}"
                )
            if factor > 1 and self.method == "band_limited" and not axis.periodic:
                raise ValueError(f"method=band_limited needs periodic axes, but {axis.name} is not: use method=mean")

    def derive(self, x0: Tensor, modality: Modality, seed: int) -> Tensor:
        """Return the coarse version (channels, *coarse); nothing is random."""
        function = block_means if self.method == "mean" else band_limited
        return function(x0, self.factors(modality.grid()))


@dataclass(frozen=True)
class FirstFrames(DerivedCondition):
    """The first `count` samples of the first axis, such as the first frames of a clip; the others are unknown.

    Raises:
        ValueError: If the count is below 1.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    def check(self, modality: Modality) -> None:
        """Raise ValueError if nothing would be unknown."""
        axis = modality.grid().axes[0]
        if self.count >= axis.size:
            raise ValueError(
                f"count={self.count} leaves nothing to be learned of the {axis.size} samples of the axis {axis.name}: "
                "choose a smaller count"
            )

    def derive(self, x0: Tensor, modality: Modality, seed: int) -> Tensor:
        """Return the data with unknown values after the first ones; nothing is random."""
        return first_frames(x0, self.count)


@dataclass(frozen=True)
class Masked(DerivedCondition):
    """The data with a hidden part, of one of the kinds in `hidden`, drawn at random for every example.

    - "boxes": up to `boxes` boxes, each a quarter to 60 % of every axis;
    - "half": one side of a cut through a random axis, in its middle half;
    - "frames": some positions along the first axis, such as frames, but not all.

    Raises:
        ValueError: If there is no kind, or an unknown one, or `boxes` is below 1 or above 1,000.
    """

    hidden: tuple[Hidden, ...] = ("boxes", "half")
    boxes: int = 3

    def __post_init__(self) -> None:
        unknown = [each for each in self.hidden if each not in get_args(Hidden)]
        if not self.hidden or unknown:
            raise ValueError(f"hidden must list some of {', '.join(get_args(Hidden))}, got {list(self.hidden)}")
        if not 1 <= self.boxes <= MOST_BOXES:
            raise ValueError(f"boxes must be at least 1 and at most {MOST_BOXES}, got {self.boxes}")

    def check(self, modality: Modality) -> None:
        """Raise ValueError if the grid has no frames though they are to be hidden."""
        axis = modality.grid().axes[0]
        if "frames" in self.hidden and axis.size < 2:
            raise ValueError(f"hidden=[frames] needs two samples along the axis {axis.name}: remove frames")

    def derive(self, x0: Tensor, modality: Modality, seed: int) -> Tensor:
        """Return the data with unknown values in the hidden part."""
        kind = self.hidden[derive(seed, "hidden") % len(self.hidden)]
        return known_part(x0, kind, self.boxes, derive(seed, "mask"))


class WithDerivedCondition(Wrapped):
    """A dataset whose examples have a derived condition; `positions` are the examples' indices in the whole set.

    What is random in the condition of an example depends on its augmentation seed; without one, as in validation, on
    `seed` and the example's index in the whole set. If a condition cannot be derived, the reason is the settings, and
    not this example: UnreadableFilesError is raised.
    """

    def __init__(self, inner: Dataset, condition: DerivedCondition, seed: int) -> None:
        super().__init__(inner)
        self.condition, self.seed = condition, seed
        self.positions: Sequence[int] = range(len(inner))

    @property
    def condition_modality(self) -> Modality:
        """The modality of the conditions, by default that of the data."""
        return self.condition.modality(self.modality)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example with its condition."""
        example = self.inner.example(index, seed)
        return example._replace(condition=self._derive(example.x0, example.mask, index, seed))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with the condition of every example."""
        batch = self.inner.batch(indices, seeds)
        masks = [None] * len(batch.x0) if batch.mask is None else batch.mask
        derived = [
            self._derive(x0, mask, *each) for x0, mask, each in zip(batch.x0, masks, pair(indices, seeds), strict=True)
        ]
        return batch._replace(dense=torch.stack(derived))

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only, each with the condition that it had."""
        part = super().subset(indices)
        part.positions = [self.positions[index] for index in indices]
        return part

    def _derive(self, x0: Tensor, mask: Tensor | None, index: int, seed: int | None) -> Tensor:
        own = derive(self.seed, "condition", self.positions[index]) if seed is None else derive(seed, "condition")
        try:
            return self.condition.derive(with_unknown(x0, mask), self.modality, own)
        except ValueError as error:
            raise UnreadableFilesError(
                f"no condition can be derived from example {self.positions[index]} of this part of the data: {error}"
            ) from error


def with_unknown(x0: Tensor, mask: Tensor | None) -> Tensor:
    """Return encoded data (channels, *grid), NaN where a mask (1 or channels, *grid) is False, in the same units."""
    return x0 if mask is None else x0.masked_fill(~mask, torch.nan)


def with_derived_condition(dataset: Dataset, condition: DerivedCondition | None, seed: int) -> Dataset:
    """Return a dataset whose examples have a derived condition; the same one if `condition` is None."""
    return dataset if condition is None else WithDerivedCondition(dataset, condition, seed)
