"""Train a network on data with a corrupted frequency band, to estimate clean data.

The data are `x' = x0 + n`, where n is Gaussian with known power `c²(k)` in a band (`Corruption`). A corrupted frequency
is an unbiased measurement of the clean one, so `E[x0 | x_t]` can be learned by regression from corrupted data, in two
ways:

- **unseen**, with noise that has no power in the band (`Outside`): the network never sees the band and learns to
  predict it from all other frequencies. The target x' differs from x0 by n, which is independent of what the network
  sees.
- **seen through a floor** (`NoiseFloor`): in the band, data corrupted at a known level already correspond to a
  later diffusion time. Noise there never falls below `V = (1 + margin) a² c²`, and only `A = V - a² c²` is added to the
  data. Tweedie's formula, applied twice, turns `E[x' | x_t]` into `E[x0 | x_t] = (V E[x' | x_t] - a c² x_t)/A`
  (scalar case in arXiv 2404.10177); that is, `x' - (a c²/A) e`, where e is the added noise, is an unbiased target for
  x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multisagd.channel_covariance import check_shared
from multisagd.condition import AnyCondition
from multisagd.corruption import Corruption
from multisagd.denoiser import UNIFORM, Denoiser, Preconditioning, PreconditioningKind
from multisagd.inputs import as_data
from multisagd.loss import Metric
from multisagd.process import Coefficients, Process, Quantity
from multisagd.recent import Recent
from multisagd.regularisation import SpectralPenalty
from multisagd.statistics import DataStatistics
from multisagd.weighting import Weighting

QUIET = 1e-3
"""Minimum power assumed for clean data under a corruption, as a fraction of the corruption's power."""


@dataclass(frozen=True)
class BandPowers:
    """Powers at every frequency at given times, which broadcast over `(batch, channels, *half_shape)`.

    They are C of the `clean` data, c² of the `corruption` (zero outside the band), and V of the `noise`. `seen` is true
    where the network sees the frequency, that is, where it carries noise. `left` is the fraction A/V of the noise that
    is added to corrupted data.
    """

    clean: Tensor
    corruption: Tensor
    noise: Tensor
    seen: Tensor
    left: Tensor

    @property
    def target_variance(self) -> Tensor:
        """The variance of the target about the clean sample, `c² V/A`, which broadcasts like the powers."""
        return self.corruption / self.left

    def fraction(self, a: Tensor) -> Tensor:
        """Return `a c²/A`, which broadcasts like the powers: the factor of the added noise in the target."""
        return torch.where(self.seen, a * self.corruption / (self.noise * self.left), 0.0)


class RestoringDenoiser(Denoiser):
    """Estimate clean data, also in the corrupted band, with a network that is trained on corrupted data.

    Outside the band it works like `Denoiser`. In the band the noise decides between the two methods in the module
    docstring: unseen if there is no noise (`Outside`), and through a floor if there is noise (`NoiseFloor`). In the
    band the network's output is the residual of the Wiener filter, in units of its standard deviation, and squared
    errors are weighted by `C/(C + c²V/A)`, so that the noise of the target does not dominate other frequencies. The
    clean power C is the power in the (corrupted) `statistics` minus the corruption's power.

    Raises:
        ValueError: If the arguments are invalid for `Denoiser`; if preconditioning is spectral, the corruption has a
            different grid, noise is not diagonal in frequency or differs between channels, noise in the band does not
            stay above the corruption, or several channels share the corruption and the band has noise; from `loss`, if
            there is a penalty, or the metric is Mahalanobis and the band is unseen.
    """

    per_frequency = True
    plain_input = False  # the input is set to zero or scaled, frequency by frequency

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        corruption: Corruption,
        statistics: DataStatistics,
        prediction: Quantity | None = None,
        preconditioning: PreconditioningKind = "none",
    ) -> None:
        super().__init__(network, process, prediction, preconditioning, statistics)
        if preconditioning == "spectral":
            raise ValueError("restoration has its own weights in the band: choose preconditioning none or karras")
        process.covariance.require_diagonal("restoration")
        check_shared(process.covariance, "restoration")
        if corruption.grid != process.grid:
            raise ValueError(
                f"the corruption and the process are on different grids, {corruption.grid.shape} and "
                f"{process.grid.shape}"
            )
        self.corruption = corruption
        self._known: Recent[tuple[Tensor, Tensor, Tensor]] = Recent()
        seen = process.covariance.support() & (corruption.power() > 0)
        if corruption.shared and len(statistics.mean) > 1 and bool(seen.any()):
            raise ValueError(
                "a noise floor does not support a corruption that channels share: "
                "use noise with a multisagd.Outside spectrum"
            )
        like = torch.empty((1, len(statistics.mean), *process.grid.shape), dtype=torch.float64, device="cpu")
        if bool((self.band(process.coefficients(0.0, like), like).left <= 0).any()):
            raise ValueError(
                "noise must have no power in the corrupted band (Outside), or more power there than the corruption "
                "(NoiseFloor)"
            )

    def _known_powers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the powers of the clean data, the corruption and the covariance, for a batch shaped like x."""
        assert self.statistics is not None
        shape, dtype = tuple(x.shape[2:]), torch.promote_types(x.dtype, torch.float32)
        statistics = self.statistics

        def make() -> tuple[Tensor, Tensor, Tensor]:
            corruption = self.corruption.power(shape)[None]
            clean = clean_power(statistics.power_on(shape), corruption)
            noise = self.process.covariance.power(shape)[None]
            return clean.to(x.device, dtype), corruption.to(x.device, dtype), noise.to(x.device, dtype)

        return self._known.get((shape, x.device, dtype), make)

    def band(self, at: Coefficients, like: Tensor) -> BandPowers:
        """Return the powers at these coefficients, in squared units of `like` `(batch, channels, *grid)`."""
        clean, corruption, white = self._known_powers(like)
        noise, seen = at.b**2 * white, white > 0
        left = torch.where(seen, 1 - at.a**2 * corruption / torch.where(seen, noise, 1.0), 1.0)
        return BandPowers(clean, corruption, noise, seen, left)

    def preconditioning_at(self, at: Coefficients, like: Tensor) -> Preconditioning:
        """Return the base class's factors outside the band, and the factors of restoration inside, in the same shapes.

        The factors of the target multiply x0 and noise of the full power V.
        """
        band, plain = self.band(at, like), super().preconditioning_at(at, like)
        total = at.a**2 * band.clean + band.noise
        c_in = torch.where(band.seen, total.rsqrt(), 0.0)
        c_skip = torch.where(band.seen, at.a * band.clean / total, 0.0)
        # The network predicts the residual of the Wiener filter, and the whole of x0 where the frequency is unseen.
        c_out = torch.where(band.seen, (band.clean * band.noise / total).sqrt(), band.clean.sqrt())
        # The unbiased target is x' - (a c²/A) e, and the network should predict (target - c_skip·x_t)/c_out.
        signal = (1 - c_skip * at.a) / c_out
        noise = -(band.fraction(at.a) + c_skip) * at.b * band.left.sqrt() / c_out
        inside = (c_in, c_skip, c_out, signal, noise)
        outside = (plain.c_in, plain.c_skip, plain.c_out, plain.target_signal, plain.target_noise)
        return Preconditioning(*(torch.where(band.corruption > 0, a, b) for a, b in zip(inside, outside, strict=True)))

    def error(self, x0: Tensor, t: Tensor | float, noise: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the network's output minus its target, weighted in the band by `√(C/(C + c²V/A))`.

        x0 are corrupted data, `(batch, channels, *grid)`; the result has the same shape and the units of the output.
        """
        x0 = as_data(x0)
        at, shape = self.process.coefficients(t, x0), x0.shape
        band, factors = self.band(at, x0), self.preconditioning_at(at, x0)
        signal, white = self.to_basis(x0 - self.mean_like(x0)), self.to_basis(noise)
        y = self.from_basis(at.a * signal + at.b * band.left.sqrt() * white, shape).to(x0.dtype)
        target = self.from_basis(factors.target_signal * signal + factors.target_noise * white, shape).to(x0.dtype)
        error = self._output(y, factors, t, condition) - target
        return self._scale(error, (band.clean / (band.clean + band.target_variance)).sqrt())

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
        """Return the loss of each item, shape `(batch,)`; see `Denoiser.loss`."""
        if penalty is not None:
            raise ValueError("a penalty on the spectrum would be measured against corrupted data: remove the penalty")
        return super().loss(x0, t, seeds, condition, mask, metric, weighting)

    def weigh(
        self,
        error: Tensor,
        t: Tensor | float,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = UNIFORM,
    ) -> Tensor:
        """Convert errors of the network's output to a loss per item, `(batch,)`; see `Denoiser.weigh` for units."""
        if metric == "mahalanobis" and not bool(self.process.covariance.support(tuple(error.shape[2:])).all()):
            raise ValueError(
                "the Mahalanobis metric ignores frequencies without noise, so the band would not be learned: use "
                "the euclidean metric"
            )
        return super().weigh(error, t, mask, metric, weighting)

    def training_pair(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and the training target for corrupted data x0 `(batch, channels, *grid)`, in its shape and units.

        Only the noise that the corruption does not already contribute is added. The mean of the target, given x_t and
        the clean sample, is the clean sample.
        """
        x0 = as_data(x0)
        at, shape = self.process.coefficients(t, x0), x0.shape
        band = self.band(at, x0)
        data, added = self.to_basis(x0), at.b * band.left.sqrt() * self.to_basis(noise)
        x_t, target = at.a * data + added, data - band.fraction(at.a) * added
        return self.from_basis(x_t, shape).to(x0.dtype), self.from_basis(target, shape).to(x0.dtype)


def clean_power(measured: Tensor, corruption: Tensor) -> Tensor:
    """Return the measured power minus the corruption's power, in the same shape.

    In the band it is at least `QUIET` times either power.
    """
    minimum = QUIET * torch.maximum(measured, corruption.expand_as(measured))
    return torch.where(corruption > 0, torch.maximum(measured - corruption, minimum), measured)
