"""Describe the grid of the data: named axes with physical spacing, and the frequencies of its Fourier transform.

Everything here is float64 and on the half spectrum of `torch.fft.rfftn`, with the last axis halved. For real data the
other half contains complex conjugates, so its bins are counted by `Grid.multiplicity` instead of being stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

DEFAULT_CORNER = 1 / 256
"""Frequency, in cycles per sample, below which a power law is flat unless the axis declares another frequency."""


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: `size` samples, `spacing` units apart.

    `corner` is the frequency in cycles per unit below which power laws are flat; a modality declares it as a physical
    constant, so that the noise does not change with the size of the grid. The default is 1/256 cycles per sample.

    A `periodic` axis is a whole circle, such as longitude or an angle: its last and first samples are neighbours, and
    `size * spacing` is the way around. Networks then pad it with the samples from its other end, and a single example
    has no edges along it.

    Raises:
        ValueError: If the size is not a positive integer, the spacing or corner frequency is not positive and finite,
            or `periodic` is not true or false.
    """

    name: str
    size: int
    spacing: float = 1.0
    unit: str = "sample"
    corner: float | None = None
    periodic: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or int(self.size) != self.size:
            raise ValueError(f"axis {self.name!r}: size must be a positive integer, got {self.size}")
        for field in ("spacing", "corner"):
            value = getattr(self, field)
            if field == "corner" and value is None:
                continue
            if value is None or not (value > 0 and math.isfinite(value)):
                raise ValueError(f"axis {self.name!r}: {field} must be positive and finite, got {value}")
        if not isinstance(self.periodic, bool):
            raise ValueError(f"axis {self.name!r}: periodic must be true or false, got {self.periodic!r:.80}")

    def __str__(self) -> str:
        """Return the axis as text for people: name, size, spacing, unit, and whether it is periodic."""
        return f"{self.name} {self.size} × {self.spacing:.4g} {self.unit}{' (periodic)' if self.periodic else ''}"

    @property
    def nyquist(self) -> float:
        """Highest frequency of the axis, in cycles per unit."""
        return 0.5 / self.spacing

    @property
    def corner_frequency(self) -> float:
        """The declared corner frequency, or 1/256 cycles per sample, in cycles per unit."""
        return DEFAULT_CORNER / self.spacing if self.corner is None else self.corner


@dataclass(frozen=True)
class Grid:
    """Named axes in the order of a tensor's last dimensions: `(batch, channels, *grid.shape)`.

    Raises:
        ValueError: If there are no axes, or two axes have the same name.
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("a grid needs at least one axis, for example Grid.of(time=1024)")
        if len(set(self.names)) != len(self.axes):
            raise ValueError(f"axis names must differ, got {list(self.names)}")

    @classmethod
    def of(cls, **axes: int | tuple[int] | tuple[int, float] | tuple[int, float, str]) -> Grid:
        """Build a grid from `name=size`, `name=(size, spacing)` or `name=(size, spacing, unit)`, in tensor order."""
        return cls(tuple(Axis(name, *(spec if isinstance(spec, tuple) else (spec,))) for name, spec in axes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def half_shape(self) -> tuple[int, ...]:
        """Shape of the half spectrum that `torch.fft.rfftn` returns for this grid."""
        return (*self.shape[:-1], self.shape[-1] // 2 + 1)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis is a whole circle."""
        return tuple(axis.periodic for axis in self.axes)

    @property
    def dimensions(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def numel(self) -> int:
        """Number of samples, which is also the number of bins of the full spectrum."""
        return math.prod(self.shape)

    def axis(self, name: str) -> Axis:
        """Return the axis with this name.

        Raises:
            ValueError: If the grid has no such axis.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise ValueError(f"the grid has no axis {name!r}; its axes are {', '.join(self.names)}")

    def select(self, names: Sequence[str] | None) -> tuple[Axis, ...]:
        """Return the named axes, or all axes if `names` is None.

        Raises:
            ValueError: If the grid has no axis with one of these names.
        """
        return self.axes if names is None else tuple(self.axis(name) for name in names)

    def resize(self, shape: Sequence[int]) -> Grid:
        """Return a grid with axes of these sizes, and the same spacing, units and corner frequencies.

        A periodic axis of another size is no longer periodic: it is a part of the circle, or goes around it again.

        Raises:
            ValueError: If `shape` has a different number of dimensions.
        """
        if len(shape) != self.dimensions:
            raise ValueError(f"expected {self.dimensions} sizes ({', '.join(self.names)}), got {tuple(shape)}")
        sizes = zip(self.axes, map(int, shape), strict=True)
        return Grid(tuple(replace(a, size=size, periodic=a.periodic and a.size == size) for a, size in sizes))

    def frequencies(self, name: str) -> Tensor:
        """Return the signed frequencies of one axis in cycles per unit, shaped to broadcast over the half spectrum."""
        axis = self.axis(name)
        index = self.names.index(name)
        transform = torch.fft.rfftfreq if index == self.dimensions - 1 else torch.fft.fftfreq
        values = transform(axis.size, d=axis.spacing, dtype=torch.float64, device="cpu")
        return values.reshape([-1 if i == index else 1 for i in range(self.dimensions)])

    def turned(self, name: str) -> Grid:
        """Return this grid with the sign of one axis's Nyquist frequency reversed.

        The bin of that frequency represents both signs.
        """
        return _Turned(self.axes, self, name)

    def radius(self, names: Sequence[str] | None = None, factors: Mapping[str, float] | None = None) -> Tensor:
        """Return the distance from zero frequency along the named axes (all by default), shape `half_shape`.

        The coordinate along each axis is `factor * frequency`; factors make hertz and cycles per pixel comparable.

        Raises:
            ValueError: If axes without a factor have different units, or a factor is given for an axis outside `names`.
        """
        scale = self.factors(names, factors)
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return sum(((scale[name] * self.frequencies(name)) ** 2 for name in scale), zero).sqrt().expand(self.half_shape)

    def factors(self, names: Sequence[str] | None, factors: Mapping[str, float] | None) -> dict[str, float]:
        """Return the factor of each selected axis, 1 by default.

        Raises the same errors as `radius`.
        """
        axes = self.select(names)
        given = dict(factors or {})
        unknown = set(given) - {axis.name for axis in axes}
        if unknown:
            raise ValueError(f"factors given for {sorted(unknown)}, but the axes are {[axis.name for axis in axes]}")
        missing = [axis for axis in axes if axis.name not in given]
        if len({axis.unit for axis in missing}) > 1:
            units = ", ".join(f"{axis.name} in cycles per {axis.unit}" for axis in missing)
            raise ValueError(f"a joint radius would mix units ({units}): specify factors, or select fewer axes")
        return {axis.name: float(given.get(axis.name, 1.0)) for axis in axes}

    def corner(self, names: Sequence[str] | None = None, factors: Mapping[str, float] | None = None) -> float:
        """Return the radius below which a power law over these axes is flat: the largest corner frequency, scaled."""
        scale = self.factors(names, factors)
        return max(scale[axis.name] * axis.corner_frequency for axis in self.select(names))

    @property
    def multiplicity(self) -> Tensor:
        """The count of bins in the full spectrum (1 or 2) for each bin of the half spectrum, shape `half_shape`."""
        counts = torch.full((self.half_shape[-1],), 2.0, dtype=torch.float64, device="cpu")
        counts[0] = 1.0
        if self.shape[-1] % 2 == 0:
            counts[-1] = 1.0
        return counts.expand(self.half_shape)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the full spectrum of values on the half spectrum, shape `(..., *half_shape) -> (...)`.

        A plain mean over the half spectrum would give self-conjugate planes twice their weight: a white field
        normalised by it would not have unit variance.

        Raises:
            ValueError: If the last dimensions are not `half_shape`.
        """
        if tuple(values.shape[-self.dimensions :]) != self.half_shape:
            raise ValueError(f"expected values on the half spectrum {self.half_shape}, got shape {tuple(values.shape)}")
        weights = (self.multiplicity / self.numel).to(values.device, values.dtype)
        return (values * weights).sum(dim=tuple(range(-self.dimensions, 0)))

    def even(self, values: Tensor) -> Tensor:
        """Return values `(*half_shape)` on the half spectrum, averaged with the values at -k where both are stored.

        The power of a real field is even. A spectrum of signed frequencies need not be even at Nyquist, where +1/2 and
        -1/2 share a bin: see `multisagd.spectrum.even_power`, which handles the signs of all axes.
        """
        result, dims = values.clone(), tuple(range(self.dimensions - 1))
        own = (0, self.shape[-1] // 2) if self.shape[-1] % 2 == 0 else (0,)
        for plane in own if dims else ():
            mirrored = values[..., plane].flip(dims).roll((1,) * len(dims), dims)
            result[..., plane] = (values[..., plane] + mirrored) / 2
        return result

    def bands(self, count: int) -> list[tuple[float, float, Tensor]]:
        """Split the half spectrum into zero frequency and `count` rings of equal width.

        Return (low, high, weight) of each ring that contains a frequency. `low` and `high` are its edges in cycles per
        sample of every axis, so that axes with different units are comparable; `weight`, shape `half_shape`, is the
        multiplicity of its bins, and 0 elsewhere.
        """
        radius = self.radius(factors={axis.name: axis.spacing for axis in self.axes})
        top = 0.5 * math.sqrt(self.dimensions)
        edges = [0.0, *(top * (ring + 1) / count for ring in range(count))]
        # Rounding must not decide the ring of a frequency on an edge: it belongs to the upper ring, if there is one.
        limits = [1e-9, *(edge - 1e-9 for edge in edges[1:-1]), top + 1e-9]
        rings = [(0.0, 0.0, radius < 1e-9)]
        for (low, high), (first, end) in zip(pairwise(edges), pairwise(limits), strict=True):
            rings.append((low, high, (radius >= first) & (radius < end)))
        return [(low, high, ring * self.multiplicity) for low, high, ring in rings if bool(ring.any())]

    def full(self, values: Tensor) -> Tensor:
        """Extend values of any unit from the half to the full spectrum, `(*half_shape) -> (*shape)`: W(-k) = W(k)."""
        dims = tuple(range(-self.dimensions, 0))
        mirrored = values[..., 1 : (self.shape[-1] + 1) // 2].flip(dims)
        # Index -k (mod N) is a flip that leaves bin 0 in place; the last axis starts at bin 1 and needs no roll.
        mirrored = mirrored.roll((1,) * (self.dimensions - 1), dims[:-1]) if self.dimensions > 1 else mirrored
        return torch.cat([values, mirrored], dim=-1)


@dataclass(frozen=True)
class _Turned(Grid):
    """A grid in which the Nyquist frequency of one axis has the opposite sign."""

    inner: Grid
    name: str

    def frequencies(self, name: str) -> Tensor:
        """Return the frequencies of the inner grid, with -f instead of f at the axis's Nyquist frequency."""
        values, axis = self.inner.frequencies(name), self.axis(name)
        if name != self.name or axis.size % 2:
            return values
        bins = torch.arange(values.numel(), device="cpu").reshape(values.shape)
        return torch.where(bins == axis.size // 2, -values, values)
