"""Wrap networks as denoisers: `denoiser(x_t, t, condition)` estimates `E[x0 | x_t]`, whatever the network predicts.

All parametrisations share one formula, with μ the mean of the data and `y = x_t - a μ`:

    D(x_t) = μ + c_skip · y + c_out · F(c_in · y, log-SNR, condition)

`prediction` (x0, noise, v or flow) specifies what the network's output F represents; then `c_in = 1`. Karras
preconditioning (arXiv 2206.00364, here for any schedule) keeps the input and the target of the network at unit variance
instead: `c_in = (a²C + b²)^{-1/2}`, `c_skip = aC/(a²C + b²)`, `c_out = (C b²/(a²C + b²))^{1/2}` with `C = σ_data²`.

Spectral preconditioning does this at every frequency: C is the data's power there, and the noise's power `V = b²W`
replaces b². The skip connection is then the Wiener filter, and for Gaussian data `F = 0` is optimal. If the channels of
the noise are correlated, it does this in their components, with the data's power in each.
`GaussianDenoiser` is that filter alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from multisagd.channel_covariance import ChannelCovariance, check_unmixed, mix_channels, wiener_gain
from multisagd.condition import AnyCondition
from multisagd.covariance import filter_grid, from_half_spectrum, to_half_spectrum
from multisagd.inputs import as_data, as_times
from multisagd.loss import Metric, squared_error
from multisagd.process import Coefficients, Process, Quantity, target_weights, x0_weights
from multisagd.recent import Recent
from multisagd.regularisation import SpectralPenalty
from multisagd.statistics import DataStatistics, decibels_between
from multisagd.weighting import PerFrequency, UniformWeighting, Weighting

PreconditioningKind = Literal["none", "karras", "spectral"]

UNIFORM = UniformWeighting()
LEAST_FLOOR = 60.0
"""Least default floor of spectral preconditioning in decibels, for data with hardly any power at some frequencies."""
LOWEST_FLOOR = 120.0
"""Maximum floor of spectral preconditioning in decibels: float32 has no digits left for quieter frequencies."""


@dataclass(frozen=True)
class Preconditioning:
    """The factors in `D = μ + c_skip·y + c_out·F(c_in·y)` and in F's target `target_signal·(x0 - μ) + target_noise·ε`.

    Each factor is `(batch or 1, 1, ..., 1)`, or `(batch or 1, channels or 1, *half_shape)` if it depends on frequency.
    """

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    target_signal: Tensor
    target_noise: Tensor


def dynamic_range(process: Process, statistics: DataStatistics) -> float:
    """Return the dynamic range of data in decibels, of the components of the noise if its channels are correlated."""
    covariance = process.covariance
    if not (isinstance(covariance, ChannelCovariance) and covariance.mixed):
        return statistics.dynamic_range
    return decibels_between(covariance.power_in_components(statistics, statistics.grid.shape))


class Denoiser(nn.Module):
    """Wrap a network so that it predicts the clean sample x0.

    The network is any module called as `network(x, log_snr, condition)` with x `(batch, channels, *grid)` and log_snr
    `(batch,)`, which returns a tensor of the same shape as x, or an object with such a tensor as `.sample` (as
    diffusers models do).

    If `statistics` are given, the data are centred on their mean, and σ_data is measured about it. If not, the mean is
    taken as zero, and Karras preconditioning uses σ_data = 0.5. Spectral preconditioning needs `statistics`. The
    default prediction is v. If `centred` is False, the mean is always taken as zero, as in networks trained elsewhere.
    Spectral preconditioning takes the data's power as at most `floor` decibels below the largest: networks must remove
    the noise of quieter frequencies without its help, but no example can exceed the expected power by much more. By
    default (None) the floor is the data's `dynamic_range`, the power of their quietest frequency, but at least 60 dB.

    Raises:
        ValueError: If a prediction is given together with a preconditioning, which fixes it; if either is unknown; if
            the statistics have zero variance; if the floor is not from 0 to 120 dB; or if the preconditioning is
            spectral and there are no statistics, or the noise is not diagonal in frequency.
    """

    outputs: ClassVar[int] = 1
    """Number of channels that the network returns for each channel of x."""

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Quantity | None = None,
        preconditioning: PreconditioningKind = "none",
        statistics: DataStatistics | None = None,
        centred: bool = True,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        if preconditioning not in ("none", "karras", "spectral"):
            raise ValueError(f"unknown preconditioning {preconditioning!r}; choose none, karras or spectral")
        if preconditioning != "none" and prediction is not None:
            raise ValueError(f"{preconditioning} preconditioning fixes what the network predicts: omit {prediction=}")
        if preconditioning == "spectral" and statistics is None:
            raise ValueError("spectral preconditioning needs the statistics of the data: pass statistics")
        if preconditioning == "spectral":
            process.covariance.require_diagonal("spectral preconditioning")
        if prediction not in (None, "x0", "noise", "v", "flow"):
            raise ValueError(f"unknown prediction {prediction!r}; choose x0, noise, v or flow")
        if floor is None:
            floor = LEAST_FLOOR if statistics is None else max(LEAST_FLOOR, dynamic_range(process, statistics))
        if not 0 <= floor <= LOWEST_FLOOR:
            raise ValueError(f"floor must be from 0 to {LOWEST_FLOOR:g} dB below the largest power, got {floor}")
        self.network = network
        self.process = process
        self.floor = floor
        self.prediction: Quantity = prediction or "v"
        self.preconditioning = preconditioning
        self.statistics = statistics
        self.centred = centred and statistics is not None
        self.sigma_data = 0.5 if statistics is None else statistics.sigma_data
        if not self.sigma_data > 0:
            raise ValueError("the statistics have zero variance: measure them on more than one example")
        self._means: Recent[Tensor] = Recent()
        self._powers: Recent[tuple[Tensor, Tensor]] = Recent()

    def bound(self, condition: AnyCondition, shape: Sequence[int]) -> Self:
        """Return the denoiser with the process of a batch of this shape, under its condition; see `Process.bound`.

        Network and statistics are shared. If training drops conditions, bind the denoiser to the condition of each item
        before it is dropped, and call `loss` of the result with the dropped one: the noise follows the former.

        Raises:
            ValueError: If the covariance follows the condition, but cannot be computed from this one.
        """
        process = self.process.bound(condition, shape)
        if process is self.process:
            return self
        bound = copy.copy(self)
        bound._modules = self._modules.copy()  # else this denoiser would get the process, too
        bound.process = process
        return bound

    def mean_like(self, x: Tensor) -> Tensor:
        """Return the mean of the data, `(channels, *grid)` in the units of x, or a scalar 0 if data are not centred."""
        if not self.centred or self.statistics is None:
            return torch.zeros((), device=x.device, dtype=x.dtype)
        shape, statistics = tuple(x.shape[2:]), self.statistics
        return self._means.get((shape, x.device, x.dtype), lambda: statistics.mean_on(shape).to(x.device, x.dtype))

    def powers_like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the floored power of data and the power of noise on the grid of x, `(channels or 1, *half_shape)`.

        If the channels of the noise are correlated, both are the powers of its components.
        """
        assert self.statistics is not None
        shape, dtype = tuple(x.shape[2:]), torch.promote_types(x.dtype, torch.float32)
        statistics = self.statistics

        def make() -> tuple[Tensor, Tensor]:
            covariance = self.process.covariance
            if isinstance(covariance, ChannelCovariance):
                data, noise = covariance.power_in_components(statistics, shape), covariance.components(shape).power
            else:
                data, noise = statistics.power_on(shape), covariance.power(shape)[None]
            data = data.clamp(min=10 ** (-self.floor / 10) * float(data.max()))
            return data.to(x.device, dtype), noise.to(x.device, dtype)

        return self._powers.get((shape, x.device, dtype), make)

    def preconditioning_at(self, at: Coefficients, like: Tensor) -> Preconditioning:
        """Return the factors of the network's input, output and training target at these coefficients.

        They broadcast over the result of `to_basis` for a batch shaped like `like`, `(batch, channels, *grid)`.
        """
        if self.preconditioning == "none":
            schedule, one = self.process.schedule, torch.ones_like(at.a)
            skip, out = x0_weights(at, schedule, self.prediction)
            return Preconditioning(one, skip, out, *target_weights(at, schedule, self.prediction))
        if self.preconditioning == "karras":
            sigma, scale = self.sigma_data, (at.a**2 * self.sigma_data**2 + at.b**2).rsqrt()
            skip, out = at.a * sigma**2 * scale**2, at.b * sigma * scale
            return Preconditioning(scale, skip, out, at.b * scale / sigma, -at.a * sigma * scale)
        power, noise_power = self.powers_like(like)
        std, amplitude = power.sqrt(), noise_power.sqrt()
        scale = (at.a**2 * power + at.b**2 * noise_power).rsqrt()
        # Where W = 0 there is no noise: x0 is known, and F's target is zero.
        inverse = torch.where(amplitude > 0, 1 / torch.where(amplitude > 0, amplitude, 1.0), 0.0)
        skip, out = at.a * power * scale**2, at.b * amplitude * std * scale
        signal, noise = at.b * amplitude * scale / std, -at.a * std * scale * inverse
        return Preconditioning(scale, skip, out, signal, noise)

    @property
    def per_frequency(self) -> bool:
        """Whether the factors depend on frequency, even if the process's coefficients do not."""
        return self.preconditioning == "spectral"

    @property
    def plain_input(self) -> bool:
        """Whether the network's input is `x_t - a μ` unchanged, that is, `c_in` is one."""
        return self.preconditioning == "none"

    def to_basis(self, x: Tensor) -> Tensor:
        """Return x `(batch, channels, *grid)` in the basis where factors act by multiplication, in the units of x.

        The result is x itself, or its half spectrum if factors depend on frequency: that of the noise's components, if
        the channels of the noise are correlated.
        """
        if not self.per_frequency:
            return self.process.to_basis(x)
        covariance, dimensions = self.process.covariance, self.process.grid.dimensions
        spectrum = to_half_spectrum(x, dimensions)
        if isinstance(covariance, ChannelCovariance):
            return covariance.to_components(spectrum, x.shape[-dimensions:])
        return spectrum

    def from_basis(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `to_basis` for a tensor of this shape, `(batch, channels, *grid)`, in the same units."""
        if not self.per_frequency:
            return self.process.from_basis(x, shape)
        covariance, sizes = self.process.covariance, shape[-self.process.grid.dimensions :]
        if isinstance(covariance, ChannelCovariance):
            x = covariance.from_components(x, sizes)
        return from_half_spectrum(x, sizes)

    def forward(self, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None) -> Tensor:
        """Return `E[x0 | x_t]`, shaped like x_t `(batch, channels, *grid)`, at times t `(batch,)`."""
        x_t = as_data(x_t)
        at = self.process.coefficients(t, x_t)
        factors, mean = self.preconditioning_at(at, x_t), self.mean_like(x_t)
        y = x_t if not self.centred else x_t - self.process.scale(mean.expand_as(x_t), at.a)
        output = self._output(y, factors, t, condition)
        moved = factors.c_skip * self.to_basis(y) + factors.c_out * self.to_basis(output)
        return mean + self.from_basis(moved, x_t.shape).to(x_t.dtype)

    def _output(self, y: Tensor, factors: Preconditioning, t: Tensor | float, condition: AnyCondition) -> Tensor:
        times = as_times(t).double().reshape(-1).expand(len(y))
        log_snr = self.process.schedule.log_snr(times).to(y.device, y.dtype)
        into = y if self.plain_input else self._scale(y, factors.c_in)
        output = self.network(into, log_snr, condition)
        return (output if isinstance(output, Tensor) else output.sample).to(y.dtype)

    def _scale(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.from_basis(self.to_basis(x) * factor, x.shape).to(x.dtype)

    def loss(
        self,
        x0: Tensor,
        t: Tensor | float,
        seeds: Sequence[int],
        condition: AnyCondition = None,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = UNIFORM,
        penalty: SpectralPenalty | None = None,
    ) -> Tensor:
        """Return the loss of each item, shape `(batch,)`, with noise drawn from `seeds`, one per item.

        The loss is the mean square of `error` in the metric, weighted by noise level, plus the penalty if there is one.
        A mask, true where data are valid, excludes padding from the mean. Noise that follows the condition of each item
        follows `condition`, unless the denoiser is `bound` to another.
        """
        x0 = as_data(x0)
        bound = self.bound(condition, x0.shape)
        noise = bound.process.noise(x0.shape, seeds).to(x0)
        error = bound.error(x0, t, noise, condition)
        loss = bound.weigh(error, t, mask, metric, weighting)
        if penalty is None:
            return loss
        return loss + penalty(x0 + self.x0_error(error, t), x0, self.process.grid, mask)

    def error(self, x0: Tensor, t: Tensor | float, noise: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the network's output minus its target for this noise, shaped like x0, in the units of the output."""
        x0 = as_data(x0)
        at, shape = self.process.coefficients(t, x0), x0.shape
        factors = self.preconditioning_at(at, x0)
        signal, noise = self.to_basis(x0 - self.mean_like(x0)), self.to_basis(noise)
        # Compute the target from x0 and noise, not from x_t: (x0 - c_skip·y)/c_out loses its digits at low noise.
        y = self.from_basis(at.a * signal + at.b * noise, shape).to(x0.dtype)
        target = self.from_basis(factors.target_signal * signal + factors.target_noise * noise, shape).to(x0.dtype)
        return self._output(y, factors, t, condition) - target

    def x0_error(self, error: Tensor, t: Tensor | float) -> Tensor:
        """Convert errors of the network's output to errors of x0, `(batch, channels, *grid)`, in the units of x0."""
        return self._scale(error, self.preconditioning_at(self.process.coefficients(t, error), error).c_out)

    def weigh(
        self,
        error: Tensor,
        t: Tensor | float,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = UNIFORM,
    ) -> Tensor:
        """Convert errors `(batch, channels, *grid)` of the network's output to a loss per item, `(batch,)`; see `loss`.

        The loss has the squared unit of the network's output or, if there is a weighting, of x0; the metric `whitened`
        gives a dimensionless loss.

        Raises:
            ValueError: If the metric is `whitened` without spectral preconditioning, or with a weighting; or if the
                weighting is per frequency, but the noise is not diagonal in frequency, correlated between channels, or
                modulated by the process.
        """
        log_snr = self.process.schedule.log_snr(as_times(t).double()).to(error)
        if mask is not None:
            error = error * mask.to(error.dtype)  # before filters, which would spread errors of padding
        if isinstance(weighting, PerFrequency):
            error = self._weigh_frequencies(self.x0_error(error, t), log_snr, weighting)
            return squared_error(error, self.process.covariance, metric, mask)
        weight = weighting(log_snr, self.sigma_data)
        if metric == "whitened" and (weight is not None or self.preconditioning != "spectral"):
            raise ValueError("the whitened metric needs spectral preconditioning and uniform weighting")
        if weight is not None:
            error = self.x0_error(error, t) * weight.sqrt().reshape(-1, *(1,) * (error.dim() - 1))
        elif self.preconditioning == "spectral" and metric != "whitened":
            # The output gives every frequency the same weight; this restores each frequency's magnitude in x0, and
            # keeps the overall magnitude.
            out = self.preconditioning_at(self.process.coefficients(t, error), error).c_out
            size = self.process.grid.resize(error.shape[2:]).mean(out.square()).mean(1).sqrt()
            error = self._scale(error, out / size.reshape(-1, *(1,) * (error.dim() - 1)))
        plain = "euclidean" if metric == "whitened" else metric
        return squared_error(error, self.process.covariance, plain, mask)

    def _weigh_frequencies(self, error: Tensor, log_snr: Tensor, weighting: PerFrequency) -> Tensor:
        """Multiply an error of x0 by the root of the weight at every frequency, 0 where there is no noise."""
        self.process.covariance.require_diagonal("a weighting per frequency")
        check_unmixed(self.process.covariance, "a weighting per frequency")
        if self.process.modulation is not None:
            raise ValueError("a weighting per frequency needs scalar coefficients: remove the modulation")
        power = self.process.covariance.power(tuple(error.shape[2:])).to(error)
        levels = log_snr.reshape(-1, *(1,) * (error.dim() - 1)) - torch.where(power > 0, power, 1.0).log()
        weight = weighting(levels, self.sigma_data)
        if weight is None:
            raise ValueError("a weighting per frequency needs a function of the log-SNR, not a uniform weighting")
        return filter_grid(error, torch.where(power > 0, weight, 0.0).sqrt(), self.process.grid.dimensions)


class GaussianDenoiser(nn.Module):
    """Return the exact `E[x0 | x_t]` of stationary Gaussian data, as an oracle for tests of processes and samplers.

    At each frequency it is the Wiener filter `μ + aC/(a²C + V)·(x - aμ)`, with data power C and noise power `V = b²W`.
    Channels of the data are taken as independent unless the statistics have their cross power; C and V are then
    matrices of channels.

    Raises:
        ValueError: If noise is not diagonal in frequency, so that this formula does not hold, or is correlated between
            channels while the statistics have no cross power.
    """

    def __init__(self, process: Process, statistics: DataStatistics) -> None:
        super().__init__()
        process.covariance.require_diagonal("the Wiener filter")
        if statistics.cross is None:
            check_unmixed(process.covariance, "a Wiener filter of statistics without cross power")
        self.process = process
        self.statistics = statistics

    def forward(self, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None) -> Tensor:
        """Return `E[x0 | x_t]`, `(batch, channels, *grid)`, in the units of x_t; the condition is ignored."""
        x_t = as_data(x_t)
        shape, dimensions = tuple(x_t.shape[2:]), self.process.grid.dimensions
        at = self.process.coefficients(t, x_t)
        mean = self.statistics.mean_on(shape).to(x_t)
        deviation = x_t - self.process.scale(mean.expand_as(x_t), at.a)
        if self.statistics.cross is not None:
            return mean + self._mixed(deviation, at, shape)
        power = self.statistics.power_on(shape).to(x_t)
        total = at.a**2 * power + at.b**2 * self.process.covariance.power(shape).to(x_t)
        # Where neither data nor noise has power, the estimate is the mean.
        gain = torch.where(total > 0, at.a * power / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        return mean + filter_grid(deviation, gain, dimensions)

    def _mixed(self, deviation: Tensor, at: Coefficients, shape: tuple[int, ...]) -> Tensor:
        """Return the estimate about the mean of data with cross power, from x_t about its mean, shaped like it."""
        data, covariance = self.statistics.cross_on(shape), self.process.covariance
        assert data is not None
        dimensions = len(shape)
        if isinstance(covariance, ChannelCovariance):
            noise = covariance.matrix(shape)
        else:
            unit = torch.eye(len(data), dtype=torch.float64, device="cpu").reshape(*data.shape[:2], *(1,) * dimensions)
            noise = unit * covariance.power(shape)
        spectrum = to_half_spectrum(deviation, dimensions)
        gains = wiener_gain(data.to(spectrum.device), noise.to(spectrum.device), at.a, at.b).to(spectrum.dtype)
        pairs = zip(gains.expand(len(spectrum), *gains.shape[1:]), spectrum, strict=True)
        moved = torch.stack([mix_channels(gain, each, dimensions) for gain, each in pairs])
        return from_half_spectrum(moved, shape).to(deviation.dtype)
