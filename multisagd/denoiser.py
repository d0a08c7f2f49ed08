"""Denoisers: `denoiser(x_t, t, condition)` is always the estimate of `E[x0 | x_t]`, whatever the network predicts.

Every parametrisation is one formula about the mean μ of the data, with `y = x_t - a μ`:

    D(x_t) = μ + skip · y + out · F(into · y, log-SNR, condition)

`prediction` x0, noise, v or flow says what the network's output F stands for (`into = 1`). Karras preconditioning
(arXiv 2206.00364, here for any path) keeps the input and the target of the network at unit variance instead:
`into = (a²C + b²)^{-1/2}`, `skip = aC/(a²C + b²)`, `out = (C b²/(a²C + b²))^{1/2}` with `C = σ_data²`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multisagd.covariance import filter_grid
from multisagd.loss import Metric, Weighting, squared_error, x0_weight
from multisagd.padding import PaddedCovariance
from multisagd.process import Coefficients, Process, Quantity, target_weights, x0_weights
from multisagd.statistics import DataStatistics

Preconditioning = Literal["none", "karras"]


@dataclass(frozen=True)
class Weights:
    """`D = μ + skip·y + out·F(into·y)`, and F's target `signal·(x0 - μ) + noise·ε`."""

    into: Tensor
    skip: Tensor
    out: Tensor
    signal: Tensor
    noise: Tensor


class Denoiser(nn.Module):
    """A network as an estimator of the clean datum.

    The network is any module called as `network(x, log_snr, condition)` with x `(batch, channels, *grid)` and log_snr
    `(batch,)`, returning a tensor like x or an object that holds one as `.sample` (as diffusers' models do).

    With `statistics` the data are centred on their mean, and σ_data is measured about it; without, the mean is taken
    as zero, and Karras preconditioning as σ_data = 0.5. The default prediction is v.

    Raises:
        ValueError: if a prediction is named together with Karras preconditioning, which fixes its own, either is
            unknown, or the statistics hold no variation.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Quantity | None = None,
        preconditioning: Preconditioning = "none",
        statistics: DataStatistics | None = None,
    ) -> None:
        super().__init__()
        if preconditioning not in ("none", "karras"):
            raise ValueError(f"unknown preconditioning {preconditioning!r}; choose none or karras")
        if preconditioning == "karras" and prediction is not None:
            raise ValueError(f"karras preconditioning fixes what the network predicts: leave out {prediction=}")
        if prediction not in (None, "x0", "noise", "v", "flow"):
            raise ValueError(f"unknown prediction {prediction!r}; choose x0, noise, v or flow")
        self.network = network
        self.process = process
        self.prediction: Quantity = prediction or "v"
        self.preconditioning = preconditioning
        self.statistics = statistics
        self.sigma_data = 0.5 if statistics is None else statistics.sigma_data
        if not self.sigma_data > 0:
            raise ValueError("the statistics hold no variation: measure them on more than one datum")
        self._means: dict[tuple[tuple[int, ...], torch.device, torch.dtype], Tensor] = {}

    @torch.inference_mode(False)  # what is kept must serve training too
    def mean_like(self, x: Tensor) -> Tensor:
        """Return the mean of the data for a batch like x, `(channels, *grid)`, or a zero scalar without statistics."""
        if self.statistics is None:
            return torch.zeros((), device=x.device, dtype=x.dtype)
        shape = tuple(x.shape[2:])
        key = (shape, x.device, x.dtype)
        if key not in self._means:
            self._means[key] = self.statistics.mean_on(shape).to(x.device, x.dtype)
        return self._means[key]

    def weights(self, at: Coefficients) -> Weights:
        """Return the factors of the formula and of its training target at these coefficients."""
        if self.preconditioning == "none":
            schedule, one = self.process.schedule, torch.ones_like(at.a)
            skip, out = x0_weights(at, schedule, self.prediction)
            return Weights(one, skip, out, *target_weights(at, schedule, self.prediction))
        sigma, scale = self.sigma_data, (at.a**2 * self.sigma_data**2 + at.b**2).rsqrt()
        skip, out = at.a * sigma**2 * scale**2, at.b * sigma * scale
        return Weights(scale, skip, out, at.b * scale / sigma, -at.a * sigma * scale)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `E[x0 | x_t]`, shaped like x_t."""
        at, steps = self.process.coefficients(t, x_t), self.process.to_steps
        weights, mean = self.weights(at), self.mean_like(x_t)
        y = x_t if self.statistics is None else x_t - self.process.scale(mean.expand_as(x_t), at.a)
        output = self._output(y, weights, t, condition)
        return mean + self.process.from_steps(weights.skip * steps(y) + weights.out * steps(output), x_t.shape)

    def _output(self, y: Tensor, weights: Weights, t: Tensor, condition: Tensor | None) -> Tensor:
        log_snr = self.process.schedule.log_snr(t.double()).to(y.device, y.dtype)
        output = self.network(
            y if self.preconditioning == "none" else self.process.scale(y, weights.into), log_snr, condition
        )
        return (output if isinstance(output, Tensor) else output.sample).to(y.dtype)

    def loss(
        self,
        x0: Tensor,
        t: Tensor,
        seeds: Sequence[int],
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = "uniform",
    ) -> Tensor:
        """Return the loss of each item, shape `(batch,)`, with noise drawn from `seeds`, one per item.

        It is the mean square of `error` in the metric, weighted by noise level. A mask, true where data are valid,
        keeps padding out of the mean.
        """
        noise = self.process.noise(x0.shape, seeds).to(x0)
        return self.weigh(self.error(x0, t, noise, condition), t, mask, metric, weighting)

    def error(self, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the network's output minus its target for this noise, shaped like x0."""
        at, steps, shape = self.process.coefficients(t, x0), self.process.to_steps, x0.shape
        weights, signal, noise = self.weights(at), steps(x0 - self.mean_like(x0)), steps(noise)
        # The target from x0 and noise, not from x_t: the quotient (x0 - skip·y)/out loses its digits at low noise.
        y = self.process.from_steps(at.a * signal + at.b * noise, shape)
        target = self.process.from_steps(weights.signal * signal + weights.noise * noise, shape)
        return self._output(y, weights, t, condition) - target

    def weigh(
        self,
        error: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = "uniform",
    ) -> Tensor:
        """Turn errors of the network's output into the loss of each item, shape `(batch,)`; see `loss`."""
        log_snr = self.process.schedule.log_snr(t.double()).to(error)
        weight = x0_weight(weighting, log_snr, self.sigma_data)
        if weight is not None:
            # Weightings are of the error of x0, which is `out` times that of the output.
            out = self.weights(self.process.coefficients(t, error)).out
            error = self.process.scale(error, out * weight.sqrt().reshape(-1, *(1,) * (error.dim() - 1)))
        return squared_error(error, self.process.covariance, metric, mask)


class GaussianDenoiser(nn.Module):
    """The exact `E[x0 | x_t]` of stationary Gaussian data: the oracle that tests processes and samplers.

    Per frequency `μ + aC/(a²C + V)·(x - aμ)` with the data's power C and the noise's `V = b²W`: the Wiener filter.

    Raises:
        ValueError: for noise drawn on a padded grid, which has no such formula.
    """

    def __init__(self, process: Process, statistics: DataStatistics) -> None:
        super().__init__()
        if isinstance(process.covariance, PaddedCovariance):
            raise ValueError("noise drawn on a padded grid is not diagonal in frequency, as the Wiener filter needs it")
        self.process = process
        self.statistics = statistics

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `E[x0 | x_t]`, shaped like x_t; the condition is ignored."""
        shape, dimensions = tuple(x_t.shape[2:]), self.process.grid.dimensions
        at = self.process.coefficients(t, x_t)
        power = self.statistics.power_on(shape).to(x_t)
        mean = self.statistics.mean_on(shape).to(x_t)
        total = at.a**2 * power + at.b**2 * self.process.covariance.power(shape).to(x_t)
        # A bin with neither signal nor noise holds the mean.
        gain = torch.where(total > 0, at.a * power / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        return mean + filter_grid(x_t - self.process.scale(mean.expand_as(x_t), at.a), gain, dimensions)
