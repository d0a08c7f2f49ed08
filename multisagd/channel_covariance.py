"""Implement noise that differs between channels, or is correlated between them: a matrix of channels per frequency.

At frequency k the covariance is a Hermitian matrix `Σ(k) = U(k) diag(W(k)) U(k)ᴴ` of the channels, whose components
have the powers W. There are three forms: a spectrum per channel (U is the identity), one orthonormal basis of the
channels with a spectrum per component (U is real and equal at all frequencies), and a matrix of its own at every
frequency. Noise is real if `Σ(-k) = conj Σ(k)`. The mean of all powers, over components and frequencies, is one; the
levels of channels relative to each other are kept.

The root of Σ is its Hermitian root, `Σ^{1/2} = U W^{1/2} Uᴴ`, so that colouring and whitening are symmetric matrices,
as they are for one spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.covariance import (
    EXPONENTS,
    Covariance,
    Gain,
    SpectralCovariance,
    from_half_spectrum,
    log_determinant,
    to_half_spectrum,
)
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.recent import Recent
from multisagd.spectrum import SUPPORT_THRESHOLD, Spectrum
from multisagd.statistics import DataStatistics
from multisagd.uncompiled import uncompiled


@dataclass(frozen=True, eq=False)
class ChannelPower:
    """The components of noise at every frequency: their power `(components, *half_shape)`, float64, and their basis.

    The basis is None if the components are the channels, real `(channels, components)` if it is the same at all
    frequencies, and `(channels, components, *half_shape)` if not. Its columns are orthonormal at every frequency.
    """

    power: Tensor
    basis: Tensor | None = None

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> ChannelPower:
        """Return the components of Hermitian matrices `(channels, channels, *half_shape)`, by increasing power."""
        power, basis = torch.linalg.eigh(matrix.flatten(2).movedim(-1, 0))
        shape = matrix.shape
        return cls(power.T.reshape(shape[1:]).clamp(min=0), basis.movedim(0, -1).reshape(shape))

    def raised(self, exponent: float) -> ChannelPower:
        """Return the power of Σ with this exponent; components without power keep none."""
        positive = self.power > 0
        raised = torch.where(positive, self.power, 1.0) ** exponent
        return ChannelPower(torch.where(positive, raised, 0.0), self.basis)

    def matrix(self) -> Tensor:
        """Return `U diag(W) Uᴴ`, `(channels, channels, *half_shape)` in the unit of the power; real if U is real."""
        if self.basis is None:
            return torch.diag_embed(self.power.movedim(0, -1)).movedim((-2, -1), (0, 1))
        basis = _per_bin(self.basis, self.power.dim() - 1)
        # The sum over components, one at a time: products of all three would take more memory.
        terms = (basis[:, c, None] * basis[None, :, c].conj() * self.power[c] for c in range(len(self.power)))
        return sum(terms, torch.zeros((), dtype=self.power.dtype, device="cpu"))

    def of_channels(self) -> Tensor:
        """Return the power of each channel, the diagonal of Σ, `(channels, *half_shape)`."""
        if self.basis is None:
            return self.power
        basis = _per_bin(self.basis, self.power.dim() - 1)
        return (basis.abs().square() * self.power).sum(1)


class ChannelSpectrum(Spectrum):
    """Base class of the power of noise whose channels differ; subclasses are frozen dataclasses with `channel_power`.

    It is used with `ChannelCovariance`. It is not the spectrum of one channel, so it has no `power`, and cannot be part
    of a sum or product.
    """

    def channel_power(self, grid: Grid) -> ChannelPower:
        """Return the unnormalised power of the components on `grid`, and their basis.

        Power must be even, and matrices at k and -k conjugate (`multisagd.statistics.hermitian`).
        """
        raise NotImplementedError

    def power(self, grid: Grid) -> Tensor:
        """Raise an error: there is no power `(*half_shape,)` that all channels share.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} gives every channel its own noise, but noise of one spectrum for all channels is "
            "needed here: choose another spectrum, such as data_power, and do not add or multiply this one"
        )


class ChannelCovariance(SpectralCovariance):
    """The covariance of noise whose channels differ or are correlated, for tensors `(..., channels, *grid)`.

    All operations are those of the base class, on all channels together: `sample` draws `Σ^{1/2} ξ`, and `power` is the
    power of each channel. `support` and `components` refer to the components of the channels.

    Raises:
        ValueError: If no component has power on the grid, or a power is negative or not finite; from operations, if a
            tensor has a different number of channels.
    """

    spectrum: ChannelSpectrum

    def __init__(self, spectrum: ChannelSpectrum, grid: Grid) -> None:
        self._components: Recent[ChannelPower] = Recent()
        self._rotations: Recent[Tensor] = Recent()
        super().__init__(spectrum, grid)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.components().power)

    @property
    def mixed(self) -> bool:
        """Whether the channels are correlated, so that no power per channel describes the noise."""
        return self.components().basis is not None

    def components(self, shape: Sequence[int] | None = None) -> ChannelPower:
        """Return the normalised components on a grid shape (by default `grid.shape`)."""
        key = self.grid.shape if shape is None else tuple(int(size) for size in shape)
        return self._components.get(key, lambda: self._normalised(self.grid.resize(key)))

    def _normalised(self, grid: Grid) -> ChannelPower:
        with torch.device("cpu"):
            found = self.spectrum.channel_power(grid)
        power = found.power
        if not bool(torch.isfinite(power).all() and (power >= 0).all()):
            raise ValueError(f"{self.spectrum} has negative or non-finite power on a grid of shape {grid.shape}")
        if not bool((power > 0).any()):
            raise ValueError(f"{self.spectrum} has no power at any frequency of a grid of shape {grid.shape}")
        if bool((power == power.flatten()[0]).all()):
            return ChannelPower(torch.ones_like(power))  # equal components are white noise in any basis
        power = torch.where(power > SUPPORT_THRESHOLD * power.max(), power, 0.0)
        return _conjugate(ChannelPower(power / grid.mean(power).mean(), found.basis), grid)

    def _normalised_power(self, grid: Grid) -> Tensor:
        return self.components(grid.shape).of_channels()

    def support(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return which components carry noise at which frequency, boolean `(components, *half_shape)`."""
        return self.components(shape).power > 0

    def matrix(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return Σ at every frequency, a power `(channels, channels, *half_shape)`, float64 or complex128."""
        return self.components(shape).matrix()

    def to_components(self, spectrum: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the components of channels, `(..., channels, *half_shape)`, on a grid of this shape, in their units.

        They have the shape of the channels. Noise is independent between components, which are orthonormal mixtures.
        """
        basis = self._mixture(spectrum, shape)
        if basis is None:
            return spectrum
        return mix_channels(basis.transpose(0, 1).conj(), spectrum, self.grid.dimensions)

    def from_components(self, spectrum: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `to_components` for components `(..., components, *half_shape)`, in the same units."""
        basis = self._mixture(spectrum, shape)
        return spectrum if basis is None else mix_channels(basis, spectrum, self.grid.dimensions)

    def _mixture(self, spectrum: Tensor, shape: Sequence[int]) -> Tensor | None:
        """Return the basis in the precision and on the device of a complex spectrum."""
        basis = self.components(shape).basis
        if basis is None:
            return None
        dtype = spectrum.dtype if basis.is_complex() else spectrum.real.dtype
        key = (tuple(shape), spectrum.device, dtype)
        return self._rotations.get(key, lambda: basis.to(spectrum.device, dtype))

    def power_in_components(self, statistics: DataStatistics, shape: Sequence[int]) -> Tensor:
        """Return the power of data in each component of the noise, `(components, *half_shape)`, in their squared units.

        Data whose cross power was not measured are taken as independent between channels.
        """
        basis, cross = self.components(shape).basis, statistics.cross_on(shape)
        if basis is None:
            return statistics.power_on(shape)
        basis = _per_bin(basis, self.grid.dimensions)
        if cross is None:
            return (basis.abs().square() * statistics.power_on(shape)[:, None]).sum(0)
        # The sum over channels, one at a time: products of all would take more memory.
        terms = (basis[i].conj() * (cross[i, :, None] * basis).sum(0) for i in range(len(cross)))
        return sum(terms, torch.zeros((), device="cpu")).real.clamp(min=0)

    def logdet(self, shape: Sequence[int] | None = None, channels: int | None = None) -> Tensor:
        """Return the log-determinant of Σ (over its range if singular) in nats, for all channels, a float64 scalar.

        Raises:
            ValueError: If `channels` is given, and is not the number of channels.
        """
        if channels not in (None, self.channels):
            raise ValueError(f"this noise has {self.channels} channels, got {channels}")
        grid = self.grid if shape is None else self.grid.resize(shape)
        return log_determinant(self.components(shape).power, grid).sum()

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        dimensions = self.grid.dimensions
        if x.dim() <= dimensions or x.shape[-dimensions - 1] != self.channels:
            raise ValueError(
                f"this noise has {self.channels} channels, so expected shape (..., {self.channels}, "
                f"{', '.join(self.grid.names)}), got {tuple(x.shape)}"
            )
        x = as_data(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        shape = tuple(x.shape[-dimensions:])
        factor = self._gain(gain, shape, x.device, wide)
        if factor is None:
            return x
        return self._filtered(x, factor).to(x.dtype)

    @uncompiled
    def _filtered(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiply a real tensor `(..., channels, *grid)` by factors of components, or by matrices of channels."""
        dimensions = self.grid.dimensions
        shape, spectrum = x.shape[-dimensions:], to_half_spectrum(x, dimensions)
        if factor.dim() == dimensions + 2:
            spectrum = mix_channels(factor, spectrum, dimensions)
        else:
            spectrum = self.from_components(self.to_components(spectrum, shape) * factor, shape)
        return from_half_spectrum(spectrum, shape)

    def _gain(self, gain: Gain, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Return the factors of components, or the matrices of channels if each frequency has its own basis.

        None stands for white noise.
        """

        def make() -> Tensor | None:
            found = self.components(shape)
            if bool((found.power == 1).all()):
                return None
            raised = found.raised(EXPONENTS[gain])
            if found.basis is None or found.basis.dim() == 2:
                return raised.power.to(device, dtype)
            matrix = raised.matrix()
            return matrix.to(device, dtype.to_complex() if matrix.is_complex() else dtype)

        return self._gains.get((gain, shape, device, dtype), make)


def mix_channels(matrix: Tensor, x: Tensor, dimensions: int) -> Tensor:
    """Multiply the channels of x `(..., channels, *bins)` by a matrix `(out, channels)` or one per bin.

    The result `(..., out, *bins)` is a sum over channels, not a matrix product, which GPUs may round to 10 bits.
    """
    matrix = _per_bin(matrix, dimensions)
    channel = -dimensions - 1
    result = matrix[:, 0] * x.narrow(channel, 0, 1)
    for c in range(1, matrix.shape[1]):
        result = result + matrix[:, c] * x.narrow(channel, c, 1)
    return result


def _per_bin(matrix: Tensor, dimensions: int) -> Tensor:
    """Return a matrix `(out, channels)` or `(out, channels, *bins)`, shaped to broadcast over the bins."""
    return matrix.reshape(*matrix.shape[:2], *(matrix.shape[2:] or (1,) * dimensions))


def _conjugate(found: ChannelPower, grid: Grid) -> ChannelPower:
    """Return the components with bases at opposite frequencies that are conjugate, and powers that are equal.

    The half spectrum stores both of some opposite frequencies. Eigenvectors have any phase, and any mixture of vectors
    of equal power is one too, but real data need factors of components that are the same at both.
    """
    basis, power = found.basis, found.power.clone()
    if basis is None or basis.dim() == 2:
        return found
    basis, count = basis.clone(), grid.dimensions - 1
    for plane in (0, grid.shape[-1] // 2) if grid.shape[-1] % 2 == 0 else (0,):
        number = torch.arange(math.prod(grid.shape[:-1]), device="cpu").reshape(grid.shape[:-1])
        opposite = number.flip(tuple(range(count))).roll((1,) * count, tuple(range(count))) if count else number
        first = torch.minimum(number, opposite).flatten()
        of_plane = basis[..., plane].reshape(*basis.shape[:2], -1)
        levels = power[..., plane].reshape(len(power), -1)
        second = number.flatten() > first
        taken = of_plane[..., first]
        own = (number == opposite).flatten()
        taken[..., own] = _real_vectors(of_plane[..., own], levels[..., own])
        basis[..., plane] = torch.where(second, taken.conj(), taken).reshape(basis[..., plane].shape)
        power[..., plane] = levels[..., first].reshape(power[..., plane].shape)
    return ChannelPower(power, basis)


def _real_vectors(basis: Tensor, power: Tensor) -> Tensor:
    """Return real eigenvectors `(channels, components, bins)` of the real matrices with these, in the same order."""
    matrix = ChannelPower(power, basis).matrix().real
    _, vectors = torch.linalg.eigh(matrix.movedim(-1, 0))
    place = power.argsort(0).argsort(0).T[:, None].expand(vectors.shape)
    return vectors.gather(2, place).movedim(0, -1).to(basis.dtype)


def covariance_of(spectrum: Spectrum, grid: Grid) -> SpectralCovariance:
    """Return the covariance of noise with a spectrum on a grid, of one or of several kinds of channels.

    Raises:
        ValueError: If the spectrum is invalid on the grid.
    """
    if isinstance(spectrum, ChannelSpectrum):
        return ChannelCovariance(spectrum, grid)
    return SpectralCovariance(spectrum, grid)


def check_unmixed(covariance: Covariance, what: str) -> None:
    """Check that channels are independent of each other in a covariance, because `what` treats each on its own.

    Raises:
        ValueError: If they are correlated.
    """
    if isinstance(covariance, ChannelCovariance) and covariance.mixed:
        raise ValueError(
            f"{what} needs noise that is independent between channels, but these channels are correlated: give every "
            "channel its own spectrum (spectrum.channels=each), or all the same one (spectrum=data_power)"
        )


def check_shared(covariance: Covariance, what: str) -> None:
    """Check that all channels have the same noise in a covariance, because `what` needs it.

    Raises:
        ValueError: If they do not.
    """
    if isinstance(covariance, ChannelCovariance):
        raise ValueError(
            f"{what} needs the same noise in every channel, but these channels differ: choose another spectrum, such "
            "as data_power"
        )


def signal_to_noise(
    covariance: ChannelCovariance, signal: Tensor, shape: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the ratios of signal to noise at every frequency, and which of them have noise: `(channels, *half_shape)`.

    For a signal `(channels, channels, *half_shape)` S on a grid shape (by default `grid.shape`) they are the
    eigenvalues of `Σ^{-1/2} S Σ^{-1/2}`, by increasing size, which no change of basis alters: the ratios of those
    combinations of channels in which signal and noise are both uncorrelated. Those without noise come first.
    Ratios are dimensionless.
    """
    found = covariance.components(shape)
    root = found.raised(-0.5).matrix().to(signal.dtype)
    whitened = torch.einsum("ij...,jk...,kl...->il...", root, signal, root)
    ratio = ChannelPower.of_matrix(whitened).power
    without = (found.power <= 0).sum(0)
    place = torch.arange(len(ratio), device="cpu").reshape(-1, *(1,) * (ratio.dim() - 1))
    return ratio, place >= without


def wiener_gain(data: Tensor, noise: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the Wiener filter `a C (a² C + b² Σ)⁺` of data and noise, `(batch or 1, channels, channels, *half_shape)`.

    Data and noise are matrices `(channels, channels, *half_shape)` in squared units of the data; a and b are those of
    `Process.coefficients`. The filter is dimensionless.
    """
    a, b = (each.to(data.device, torch.float64)[:, None] for each in (a, b))
    signal = a * data[None]
    total = a * signal + b**2 * noise[None]
    shape = total.shape
    signal, total = (each.expand(shape).flatten(3).movedim(-1, 1) for each in (signal, total))
    gain = signal @ torch.linalg.pinv(total, hermitian=True)
    return gain.movedim(1, -1).reshape(shape)
