"""Rules that compute the covariance of each item's noise from its dense condition (see `multisagd.item_covariance`).

The condition has a grid of its own, as fine as that of the data or coarser, and channels. An envelope follows their
mean power at each point (as PriorGrad, arXiv 2106.06406, whose variances are energies of the frames of a mel
spectrogram), and a spectrum follows the levels of the channels, if these are frequency bands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.grid import Axis, Grid
from multisagd.item_covariance import CovarianceRule

DEEPEST = 120.0
"""Maximum floor in decibels: float32 has no digits left for quieter noise."""


@dataclass(frozen=True)
class DecibelEnvelope(CovarianceRule):
    """An envelope for conditions whose values are levels in decibels, such as a log-mel spectrogram.

    `decibels_per_unit` converts differences of values to decibels, and `reference` is the value at which E is 1. `E²`
    is the mean power of all channels, at least `floor` decibels below 1, and E is interpolated linearly between the
    points of the condition. A point stands for a block of the data's grid, at the fraction `position` of the block: 0.5
    for its mean, 0 for frames that are centred on the first sample. Unknown values (NaN) count
    as `unknown`, a value such as that of silence for what is after the end of a sound; None refuses them.

    Raises:
        ValueError: If the floor is not from 0 to 120 dB, the position not from 0 to 1, or another number not finite;
            when called, if values are unknown, but `unknown` is None.
    """

    decibels_per_unit: float = 1.0
    reference: float = 0.0
    floor: float = 40.0
    position: float = 0.5
    unknown: float | None = None

    def __post_init__(self) -> None:
        _check_levels(self.decibels_per_unit, self.reference, self.floor, self.unknown)
        _check_position(self.position)

    def __call__(self, dense: Tensor, grid: Grid) -> tuple[Tensor, None]:
        """Return E `(batch, 1, *grid)` for conditions `(batch, channels, *grid or coarser)`, and None for the power."""
        power = _power(dense, self.decibels_per_unit, self.reference, self.unknown).mean(1, keepdim=True)
        coarse = power.clamp(min=10 ** (-self.floor / 10)).sqrt()
        return interpolated(coarse, grid, self.position), None


@dataclass(frozen=True)
class AmplitudeEnvelope(CovarianceRule):
    """An envelope for conditions whose values are amplitudes, such as a coarse version of the data.

    `E` is the root mean square of all channels divided by `reference`, the amplitude at which E is 1. The other
    arguments are those of `DecibelEnvelope`.

    Raises:
        ValueError: If the reference is not positive, or the other numbers are not those of `DecibelEnvelope`; when
            called, if values are unknown, but `unknown` is None.
    """

    reference: float = 1.0
    floor: float = 40.0
    position: float = 0.5
    unknown: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.reference < math.inf:
            raise ValueError(f"reference must be a positive amplitude, got {self.reference}")
        _check_levels(1.0, 0.0, self.floor, self.unknown)
        _check_position(self.position)

    def __call__(self, dense: Tensor, grid: Grid) -> tuple[Tensor, None]:
        """Return E `(batch, 1, *grid)` for conditions `(batch, channels, *grid or coarser)`, and None for the power."""
        amplitude = known(dense, self.unknown).square().mean(1, keepdim=True).sqrt() / self.reference
        coarse = amplitude.clamp(min=10 ** (-self.floor / 20))
        return interpolated(coarse, grid, self.position), None


@dataclass(frozen=True)
class BandSpectrum(CovarianceRule):
    """A spectrum for conditions whose channels are the levels in decibels of bands of frequency, from low to high.

    `frequencies` are the centres of the bands in cycles per unit of the `axis`, which may be omitted on grids of one
    axis; None stands for bands from zero to the highest frequency, at equal distances. The power of each band is its
    mean over the grid of the condition. W is interpolated in decibels between the centres, and constant beyond them; it
    is at least `floor` decibels below the loudest band of the item. A level is power per unit of frequency: correct
    bands of unequal width in the condition. The other arguments are those of `DecibelEnvelope`.

    Raises:
        ValueError: If frequencies do not increase from 0 on, or a number is not as in `DecibelEnvelope`; when called,
            if there is not one channel for each frequency, the axis is unknown or not named, or values are unknown.
    """

    frequencies: tuple[float, ...] | None = None
    axis: str | None = None
    decibels_per_unit: float = 1.0
    reference: float = 0.0
    floor: float = 40.0
    unknown: float | None = None

    def __post_init__(self) -> None:
        _check_levels(self.decibels_per_unit, self.reference, self.floor, self.unknown)
        given = self.frequencies
        if given is not None and not (given and given[0] >= 0 and _increase(given)):
            raise ValueError(f"frequencies must be numbers that increase from 0 or more, got {list(given)}")

    def __call__(self, dense: Tensor, grid: Grid) -> tuple[None, Tensor]:
        """Return None for the envelope, and W `(batch, 1, *half_shape)` for `(batch, bands, *grid or coarser)`."""
        axis = _only_axis(grid, self.axis)
        centres = self._centres(axis, dense.shape[1]).to(dense)
        power = _power(dense, self.decibels_per_unit, self.reference, self.unknown).flatten(2).mean(2)
        decibels = 10 * power.clamp(min=torch.finfo(power.dtype).tiny).log10()
        decibels = torch.maximum(decibels, decibels.amax(1, keepdim=True) - self.floor)
        frequencies = grid.frequencies(axis.name).abs().to(dense)
        levels = _between(decibels, centres, frequencies.flatten())
        shape = [-1 if size > 1 else 1 for size in frequencies.shape]
        if -1 not in shape:  # an axis of one sample
            shape[-1] = 1
        return None, (10 ** (levels / 10)).reshape(len(dense), 1, *shape).expand(len(dense), 1, *grid.half_shape)

    def _centres(self, axis: Axis, bands: int) -> Tensor:
        if self.frequencies is None:
            return torch.linspace(0, axis.nyquist, bands, dtype=torch.float64, device="cpu")
        if len(self.frequencies) != bands:
            raise ValueError(
                f"the condition has {bands} channels, but {len(self.frequencies)} frequencies are given: one for each "
                "channel"
            )
        return torch.tensor(self.frequencies, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class EnvelopeAndSpectrum(CovarianceRule):
    """The envelope of one rule and the spectrum of another.

    The level of an item is that of its envelope: W is divided by its mean over all frequencies.

    Raises:
        ValueError: When called, if the first rule gives no envelope or the second no power.
    """

    envelope: CovarianceRule
    spectrum: CovarianceRule

    def __call__(self, dense: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return E `(batch, 1 or channels, *grid)` and W `(batch, 1 or channels, *half_shape)`, of mean 1."""
        envelope, power = self.envelope(dense, grid)[0], self.spectrum(dense, grid)[1]
        if envelope is None or power is None:
            lacking = f"envelope={self.envelope}" if envelope is None else f"spectrum={self.spectrum}"
            raise ValueError(f"{lacking} gives none: choose another rule there")
        mean = grid.mean(power)
        return envelope, power / mean.reshape(*mean.shape, *(1,) * grid.dimensions)


def known(dense: Tensor, unknown: float | None) -> Tensor:
    """Return a dense condition `(batch, channels, *grid)` with unknown values (NaN) replaced, in the same units.

    Raises:
        ValueError: On the CPU, if values are unknown, but `unknown` is None.
    """
    if unknown is not None:
        return torch.where(dense.isnan(), unknown, dense)
    if dense.device.type == "cpu" and bool(dense.isnan().any()):
        raise ValueError(
            "some values of the dense condition are unknown (NaN), but the noise follows it everywhere: give the rule "
            "a value for them (covariance.unknown)"
        )
    return dense


def interpolated(coarse: Tensor, grid: Grid, position: float = 0.5) -> Tensor:
    """Return values `(..., *coarser)` on a finer grid, `(..., *grid)`, in the same units, linear along every axis.

    Each value stands for a block of the finer grid, and belongs to the fraction `position` of the block, from its
    first sample (0) to its last (1). Beyond the first and last position the values are constant, or go on at the other
    end if the axis is periodic.

    Raises:
        ValueError: If an axis is longer than that of the grid.
    """
    for dim, axis in enumerate(grid.axes, start=-grid.dimensions):
        size = coarse.shape[dim]
        if size > axis.size:
            raise ValueError(
                f"the condition has {size} points along {axis.name}, but the data have {axis.size}: it must not be "
                "finer"
            )
        if size == axis.size:
            continue
        points = torch.arange(axis.size, dtype=torch.float64, device="cpu")
        place = (points + position) * size / axis.size - position
        low = place.floor()
        weight = (place - low).to(coarse)
        first, second = ((low.long() + step) for step in (0, 1))
        if axis.periodic:
            first, second = first % size, second % size
        else:
            first, second = first.clamp(0, size - 1), second.clamp(0, size - 1)
        low_value, high_value = (coarse.index_select(dim, each.to(coarse.device)) for each in (first, second))
        coarse = torch.lerp(low_value, high_value, weight.reshape(-1, *(1,) * (-1 - dim)))
    return coarse


def _power(dense: Tensor, decibels_per_unit: float, reference: float, unknown: float | None) -> Tensor:
    """Return the power of levels, relative to the reference."""
    return 10 ** ((known(dense, unknown) - reference) * (decibels_per_unit / 10))


def _between(values: Tensor, centres: Tensor, at: Tensor) -> Tensor:
    """Return values (batch, bands) at `centres` (bands,), interpolated linearly at `at` (n,): (batch, n)."""
    if len(centres) == 1:
        return values.expand(len(values), len(at))
    upper = torch.searchsorted(centres, at).clamp(1, len(centres) - 1)
    weight = ((at - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    return torch.lerp(values[:, upper - 1], values[:, upper], weight)


def _only_axis(grid: Grid, name: str | None) -> Axis:
    if name is None and grid.dimensions > 1:
        raise ValueError(f"name the axis of the frequencies, one of {', '.join(grid.names)} (covariance.axis)")
    return grid.axes[0] if name is None else grid.axis(name)


def _increase(values: Sequence[float]) -> bool:
    return all(math.isfinite(each) for each in values) and list(values) == sorted({*values})


def _check_levels(decibels_per_unit: float, reference: float, floor: float, unknown: float | None) -> None:
    if not 0 < decibels_per_unit < math.inf:
        raise ValueError(f"decibels_per_unit must be positive and finite, got {decibels_per_unit}")
    for name, value in (("reference", reference), ("unknown", unknown)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite value of the condition, got {value}")
    if not 0 <= floor <= DEEPEST:
        raise ValueError(f"floor must be from 0 to {DEEPEST:g} dB, got {floor}")


def _check_position(position: float) -> None:
    if not 0 <= position <= 1:
        raise ValueError(f"position must be a fraction of a block, from 0 to 1, got {position}")
