"""Measure statistics of a dataset: its mean and its power spectrum about the mean.

Both are measured in float64 by streaming over the data twice, first for the mean and then for the power about it; the
one-pass formula would subtract nearly equal numbers where the mean dominates. Both omit padded samples: the mean is
over the valid samples at each grid point, and the power is estimated from valid samples only (`masked_power`).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from multisagd.files import check_file, parse_json
from multisagd.grid import Axis, Grid
from multisagd.masked_power import MaskCount, masked_power
from multisagd.table import Table, interpolated

FORMAT_VERSION = 1
ROUNDING = 1e-12
"""Power relative to that of the strongest frequency, below which it is a rounding error."""


def decibels_between(power: Tensor) -> float:
    """Return the largest power divided by the smallest one that is no rounding error, in decibels, for any shape."""
    largest = float(power.max())
    above = power[power > largest * ROUNDING]
    return 10 * math.log10(largest / float(above.min())) if len(above) else 0.0


@dataclass(frozen=True, eq=False)
class DataStatistics:
    """The mean `(channels, *grid.shape)` and the power about it `(channels, *grid.half_shape)`, float64 on the CPU.

    `power[c, k]` is the expectation of `|F(x - mean)|²` at frequency k with the unitary transform, so its mean over the
    full spectrum is the variance. `count` is the number of examples measured. `cross`, if it was measured, is the cross
    power of all pairs of channels, `(channels, channels, *grid.half_shape)` complex128 (`multisagd.cross_spectra`).

    Raises:
        ValueError: If shapes do not match the grid, or numbers are not finite.
    """

    mean: Tensor
    power: Tensor
    grid: Grid
    count: int
    cross: Tensor | None = None

    def __post_init__(self) -> None:
        channels = self.mean.shape[0]
        if self.mean.shape != (channels, *self.grid.shape) or self.power.shape != (channels, *self.grid.half_shape):
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.power.shape)}"
            raise ValueError(f"statistics of shapes {shapes} do not match a grid of shape {self.grid.shape}")
        if not bool(torch.isfinite(self.mean).all() and torch.isfinite(self.power).all()):
            raise ValueError("the statistics are not finite: some data contain NaN or infinity; remove these data")
        if self.cross is not None:
            _check_cross(self.cross, self.power)

    @classmethod
    def measure(cls, batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid) -> DataStatistics:
        """Measure data given as batches `(batch, channels, *grid)` or as pairs (batch, mask of valid samples).

        A mask broadcasts against its batch and is true where the data are valid; it may differ between channels. Where
        no item is valid, the mean is 0, and a warning is issued. `batches` is read twice and must be the same each
        time: a list or a loader, not a generator.

        Raises:
            ValueError: If there are no data; if they change between the passes, do not match the grid, are not finite
                or are completely masked; or if too few samples are valid to determine the power.
        """
        mean, valid, count, masks = measure_mean(batches, grid)
        if masks.partial:
            if unseen := int((valid == 0).sum()):
                warnings.warn(
                    f"no item is valid at {unseen:,} of {mean.numel():,} grid points of all channels: the mean of "
                    "the data is set to 0 there",
                    stacklevel=2,
                )
            power, again = masked_power(masks_of(batches), mean, valid, masks, count)
            _check_same(count, again)
            return cls(mean, power, grid, count)
        energy, again = torch.zeros((), device="cpu"), 0
        for transform in transforms_about(mean, batches, grid):
            energy = energy + transform.abs().square().sum(0)
            again += len(transform)
        _check_same(count, again)
        return cls(mean, energy / max(count - 1, 1), grid, count)

    @classmethod
    def merge(cls, parts: Sequence[DataStatistics]) -> DataStatistics:
        """Merge the statistics of several sets of data, each measured separately, by workers or ranks.

        The result is exact for data without padding (Chan, Golub and LeVeque, The American Statistician 37, 1983).
        Padded data would count as fully valid: measure them together instead.

        Raises:
            ValueError: If there are no parts, or their grids differ.
        """
        if not parts:
            raise ValueError("there are no statistics to merge")
        if any(part.grid != parts[0].grid or part.mean.shape != parts[0].mean.shape for part in parts):
            raise ValueError("statistics on different grids cannot be merged")
        dims = tuple(range(-parts[0].grid.dimensions, 0))
        count = sum(part.count for part in parts)
        mean = sum((part.mean * (part.count / count) for part in parts), torch.zeros((), device="cpu"))
        energy, products = torch.zeros((), device="cpu"), torch.zeros((), device="cpu")
        crossed = all(part.cross is not None for part in parts)
        for part in parts:
            shift = torch.fft.rfftn(part.mean - mean, dim=dims, norm="ortho")
            energy = energy + part.power * max(part.count - 1, 1) + part.count * shift.abs().square()
            if crossed and part.cross is not None:
                products = products + part.cross * max(part.count - 1, 1) + part.count * shift[:, None] * shift.conj()
        cross = products / max(count - 1, 1) if crossed else None
        return cls(mean, energy / max(count - 1, 1), parts[0].grid, count, cross)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data about their mean, over all channels and frequencies."""
        return math.sqrt(float(self.grid.mean(self.power).mean()))

    @property
    def dynamic_range(self) -> float:
        """The power of the strongest frequency divided by that of the quietest, in decibels, over all channels.

        Frequencies more than 120 dB below the strongest have no power but rounding errors, and are ignored.
        """
        return decibels_between(self.power)

    @property
    def mean_power(self) -> Tensor:
        """The power |F(mean)|² of the mean, `(channels, *grid.half_shape)`, in squared units of the data."""
        return torch.fft.rfftn(self.mean, dim=tuple(range(-self.grid.dimensions, 0)), norm="ortho").abs().square()

    def spectrum(self, floor: float | None = None) -> Table:
        """Return the power, averaged over channels, as a spectrum for noise, such as `statistics.spectrum() ** p`.

        If a `floor` is given, the power is at most that many decibels below the largest power. Otherwise, frequencies
        without data power (caused by black borders, for example) get no noise, so they are neither learned nor
        generated.
        """
        power = self.power.mean(0)
        return Table(power if floor is None else power.clamp(min=float(power.max()) * 10 ** (-floor / 10)), self.grid)

    def mean_on(self, shape: Sequence[int]) -> Tensor:
        """Return the mean interpolated linearly to another size, `(channels, *shape)`, in the units of the data."""
        if tuple(shape) == self.grid.shape:
            return self.mean
        mode = ("linear", "bilinear", "trilinear")
        if self.grid.dimensions > len(mode):
            raise ValueError(
                f"the mean can be interpolated in up to 3 dimensions, but this grid has {self.grid.dimensions}"
            )
        return F.interpolate(self.mean[None], size=tuple(shape), mode=mode[self.grid.dimensions - 1])[0]

    def power_on(self, shape: Sequence[int]) -> Tensor:
        """Return the power interpolated in frequency to a grid with a different shape, `(channels, *half_shape)`."""
        grid = self.grid.resize(shape)
        return torch.stack([Table(channel, self.grid).power(grid) for channel in self.power])

    def cross_on(self, shape: Sequence[int]) -> Tensor | None:
        """Return the cross power interpolated like `power_on`, `(channels, channels, *half_shape)`, or None.

        It is None if it was not measured. Interpolated matrices are Hermitian and positive semidefinite.
        """
        if self.cross is None or tuple(shape) == self.grid.shape:
            return self.cross
        grid = self.grid.resize(shape)
        imaginary = self.grid.full(self.cross.imag)
        imaginary[..., self.grid.half_shape[-1] :] *= -1  # L(-k) is the conjugate of L(k)
        full = torch.complex(self.grid.full(self.cross.real), imaginary).flatten(0, 1).movedim(0, -1)
        found = torch.from_numpy(interpolated(full.numpy(), self.grid, grid))
        return hermitian(found.T.reshape(*self.cross.shape[:2], *grid.half_shape), grid)

    def at(self, grid: Grid) -> DataStatistics:
        """Return the statistics on a grid of other sizes and the same spacing, by `mean_on`, `power_on`, `cross_on`."""
        if grid == self.grid:
            return self
        shape = grid.shape
        return DataStatistics(self.mean_on(shape), self.power_on(shape), grid, self.count, self.cross_on(shape))

    def save(self, path: str | Path) -> None:
        """Write the statistics as safetensors, with the grid in the metadata."""
        tensors, metadata = self.stored()
        save_file(tensors, str(path), metadata=metadata)

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the mean `(channels, *grid)` and power `(channels, *half_shape)`, and the metadata that `load` reads.

        A file may contain other tensors too. The mean is in units of the data, the power in squared units.
        """
        described = {"format_version": FORMAT_VERSION, "count": self.count, "axes": describe_axes(self.grid)}
        tensors = {"mean": self.mean.contiguous(), "power": self.power.contiguous()}
        if self.cross is not None:
            tensors["cross"] = torch.view_as_real(self.cross.resolve_conj()).contiguous()
        return tensors, {"statistics": json.dumps(described)}

    @classmethod
    def load(cls, path: str | Path) -> DataStatistics:
        """Read statistics written by `save`.

        Raises:
            ValueError: If the file is not a statistics file, or has a different format version.
        """
        check_file(path)
        with safe_open(str(path), framework="pt") as file:
            described: Any = parse_json((file.metadata() or {}).get("statistics", "{}"))
            if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"{path} is not a statistics file of format {FORMAT_VERSION}: measure the data again")
            grid = read_axes(described["axes"])
            if type(count := described["count"]) is not int or count < 1:
                raise ValueError(f"the count in {path} must be a positive number of examples, got {count!r:.80}")
            # Before reading: a header may declare any shape, and a grid any size.
            shapes = [tuple(file.get_slice(name).get_shape()) for name in ("mean", "power")]
            if shapes != [(*shapes[0][:1], *shape) for shape in (grid.shape, grid.half_shape)]:
                raise ValueError(f"tensors of shapes {shapes} do not match a grid of shape {grid.shape}")
            # Copies, because the file is mapped into memory: overwriting it would invalidate the tensors.
            mean, power = (file.get_tensor(name).to(torch.float64, copy=True) for name in ("mean", "power"))
            if bool((power < 0).any()):
                raise ValueError(f"the power in {path} is negative at some frequencies")
            cross = None
            if "cross" in file.keys():  # noqa: SIM118 - not a dictionary
                expected = (len(power), *power.shape, 2)
                if (shape := tuple(file.get_slice("cross").get_shape())) != expected:
                    raise ValueError(f"the cross power in {path} has shape {shape}, expected {expected}")
                cross = torch.view_as_complex(file.get_tensor("cross").to(torch.float64, copy=True))
            return cls(mean, power, grid, count, cross)


def hermitian(matrix: Tensor, grid: Grid) -> Tensor:
    """Return matrices `(channels, channels, *half_shape)` of any unit, averaged with what symmetry makes of them.

    Each matrix of the result is Hermitian, and the matrices at k and -k are conjugate, so that those of frequencies
    that are their own opposites are real. Positive semidefinite matrices remain so.
    """
    matrix = (matrix + matrix.transpose(0, 1).conj()) / 2
    result, dims = matrix.clone(memory_format=torch.contiguous_format), tuple(range(2, 1 + grid.dimensions))
    own = (0, grid.shape[-1] // 2) if grid.shape[-1] % 2 == 0 else (0,)
    for plane in own:
        mirrored = matrix[..., plane].conj()
        mirrored = mirrored.flip(dims).roll((1,) * len(dims), dims) if dims else mirrored
        result[..., plane] = (matrix[..., plane] + mirrored) / 2
    return result


def _check_cross(cross: Tensor, power: Tensor) -> None:
    """Raise ValueError if a cross power does not match the power of the channels."""
    if cross.shape != (len(power), *power.shape) or cross.dtype != torch.complex128:
        raise ValueError(
            f"the cross power has shape {tuple(cross.shape)} and type {cross.dtype}, expected complex128 of shape "
            f"{(len(power), *power.shape)}"
        )
    tolerance = 1e-6 * float(power.max())
    own = cross.diagonal().movedim(-1, 0)
    valid = torch.isfinite(torch.view_as_real(cross.resolve_conj())).all()
    valid = valid and ((own - power).abs() <= tolerance).all()
    valid = valid and ((cross - cross.transpose(0, 1).conj()).abs() <= tolerance).all()
    # No two channels share more power than they have.
    valid = valid and (cross.abs().square() <= (power[:, None] * power) * (1 + 1e-6) + tolerance**2).all()
    if not bool(valid):
        raise ValueError("the cross power of the channels contradicts their power: measure the data again")


def describe_axes(grid: Grid) -> list[dict[str, Any]]:
    """Return a grid's axes for the metadata of a file; `periodic` is omitted if it is false."""
    return [{key: value for key, value in asdict(axis).items() if value is not False} for axis in grid.axes]


def read_axes(described: Any) -> Grid:
    """Return the grid with the axes that `describe_axes` wrote; the file may come from an untrusted source.

    Raises:
        ValueError: If the axes are invalid.
    """
    try:
        return Grid(tuple(Axis(**axis) for axis in described))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the axes of the grid are invalid: {error}") from error


def measure_mean(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid
) -> tuple[Tensor, Tensor, int, MaskCount]:
    """Return the mean and count of valid data, each `(channels, *grid)`, the number of items, and their masks.

    This is the first pass of `DataStatistics.measure`, and raises the same errors.
    """
    if isinstance(batches, Iterator):
        raise ValueError("batches are read twice: pass a list or a loader, not a generator")
    total, valid, count, masks = torch.zeros((), device="cpu"), torch.zeros((), device="cpu"), 0, MaskCount(grid)
    for x, mask in map(_split, batches):
        _check(x, mask, grid, count)
        total = total + (x * mask).sum(0)
        valid = valid + mask.expand_as(x).sum(0)
        masks.add(_on_grid(mask, x), x.shape[1])
        count += x.shape[0]
    if count == 0:
        raise ValueError("there are no data to measure")
    return total / valid.clamp(min=1), valid, count, masks


def transforms_about(
    mean: Tensor, batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid
) -> Iterator[Tensor]:
    """Yield the unitary transforms of batches about a mean, `(batch, channels, *grid.half_shape)`, complex128.

    Padding is set to the mean, and the result is scaled up to the power of fully valid data. Strong frequencies then
    leak into weak ones: compare such data only with data that have the same masks.
    """
    dims = tuple(range(-grid.dimensions, 0))
    for x, mask in map(_split, batches):
        fraction = mask.expand_as(x).mean(dim=dims, keepdim=True).clamp(min=1 / grid.numel)
        yield torch.fft.rfftn((x - mean) * mask, dim=dims, norm="ortho") / fraction.sqrt()


def masks_of(batches: Iterable[Tensor | tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in their units, in float64, each with its bool mask `(batch, 1 or channels, *grid)`."""
    for x, mask in map(_split, batches):
        yield x, _on_grid(mask, x)


def _split(batch: Tensor | tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    x, mask = (batch, None) if isinstance(batch, Tensor) else batch
    x = x.detach().to("cpu", torch.float64)
    if mask is None:
        return x, torch.ones((1,) * x.dim(), dtype=x.dtype, device="cpu")
    mask = mask.to("cpu", torch.bool)
    return torch.where(mask, x, 0.0), mask.to(x.dtype)  # padding may contain anything, also NaN


def _on_grid(mask: Tensor, x: Tensor) -> Tensor:
    """Return a mask that broadcasts against its batch as bool `(batch, 1 or channels, *grid)`."""
    channels = mask.shape[1] if mask.dim() == x.dim() else 1
    return mask.bool().expand(len(x), channels, *x.shape[2:])


def _check_same(count: int, again: int) -> None:
    if again != count:
        raise ValueError(f"the data must be the same in both passes, but had {count} items, then {again}")


def _check(x: Tensor, mask: Tensor, grid: Grid, first: int) -> None:
    if tuple(x.shape[2:]) != grid.shape:
        raise ValueError(
            f"data of shape {tuple(x.shape)} do not match (batch, channels, {', '.join(map(str, grid.shape))})"
        )
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(f"item {first + int(bad.nonzero()[0])} of the data contains NaN or infinity")
    empty = ~mask.expand_as(x).flatten(1).any(1)
    if bool(empty.any()):
        raise ValueError(f"item {first + int(empty.nonzero()[0])} of the data is completely masked: remove it")
