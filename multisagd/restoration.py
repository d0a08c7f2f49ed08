"""Restoration of a corrupted band in the network, which is trained on corrupted data and estimates clean data.

The data are `x' = x0 + n`, n Gaussian of known power `c²(k)` in a band (`Corruption`). A corrupted frequency is an
unbiased measurement of the clean one, so that `E[x0 | x_t]` can be regressed from corrupted data, in two ways:

- **unseen**, with noise that is empty in the band (`Outside`): the network sees none of it at any time and learns to
  predict it from all other frequencies. The target x' differs from x0 by n, which is independent of what it sees.
- **seen through a floor** (`NoiseFloor`): in the band, an example corrupted at a known level is already at a later time
  of the diffusion. Noise there never falls below `V = (1 + margin) a² c²`, of which only `A = V - a² c²` is added to
  the example, and Tweedie's formula, applied twice, turns `E[x' | x_t]` into `E[x0 | x_t] = (V E[x' | x_t] - a c²
  x_t)/A` (scalar case in arXiv 2404.10177), that is, `x' - (a c²/A) e` with the added noise e is an unbiased target for
  x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multisagd.corruption import Corruption
from multisagd.denoiser import Denoiser, Preconditioning, PreconditioningKind
from multisagd.inputs import as_data
from multisagd.loss import Metric, Weighting
from multisagd.padding import PaddedCovariance
from multisagd.process import Coefficients, Process, Quantity
from multisagd.recent import Recent
from multisagd.regularisation import SpectralPenalty
from multisagd.statistics import DataStatistics

QUIET = 1e-3
"""Minimum power assumed for clean data under a corruption, as a fraction of the corruption's power."""


@dataclass(frozen=True)
class BandPowers:
    """Powers at every frequency and given times, which broadcast over `(batch, channels, *half_shape)`.

    `clean` data C, `corruption` c² (zero outside the band), `noise` V, and whether the network has `seen` the
    frequency, that is, whether it carries noise. `left` is the fraction of V added to a corrupted sample, A/V.
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

    def share(self, a: Tensor) -> Tensor:
        """Return `a c²/A`, which broadcasts like the powers: the factor of the added noise in the target."""
        return torch.where(self.seen, a * self.corruption / (self.noise * self.left), 0.0)


class RestoringDenoiser(Denoiser):
    """A denoiser trained on corrupted data that estimates clean data, in the corrupted band too.

    Outside the band it is `Denoiser`. In the band the noise decides between the two methods in the module docstring:
    unseen without noise (`Outside`), and through a floor with noise (`NoiseFloor`). There the network's output is the
    residual of the Wiener filter, in units of its standard deviation, and errors are weighted by the inverse variance
    of their target, `C/(C + c²V/A)`, so that its noise does not dominate other frequencies. The clean power C is the
    power in the (corrupted) `statistics` minus the corruption's power.

    Raises:
        ValueError: as `Denoiser`; for spectral preconditioning, a corruption with a different grid, noise drawn on a
            padded grid, noise in the band that is not a floor above the corruption, or a floor with a corruption shared
            by several channels; in `loss`, for a penalty, and for the Mahalanobis metric if the band is unseen.
    """

    per_frequency = True
    plain_input = False  # it is cut or scaled, frequency by frequency

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
        if isinstance(process.covariance, PaddedCovariance):
            raise ValueError("restoration needs noise that is diagonal in frequency: leave out the padding")
        if corruption.grid != process.grid:
            raise ValueError(f"the corruption and the process are on different grids: {corruption.grid.shape}")
        self.corruption = corruption
        self._known: Recent[tuple[Tensor, Tensor, Tensor]] = Recent()
        seen = process.covariance.support() & (corruption.power() > 0)
        if corruption.shared and len(statistics.mean) > 1 and bool(seen.any()):
            raise ValueError("a floor needs a corruption that channels do not share: leave the band unseen (Outside)")
        like = torch.empty((1, len(statistics.mean), *process.grid.shape), dtype=torch.float64, device="cpu")
        if bool((self.band(process.coefficients(0.0, like), like).left <= 0).any()):
            raise ValueError(
                "noise in the corrupted band must be empty (Outside) or stay above the corruption's (NoiseFloor)"
            )

    def _known_powers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the powers of clean data, corruption and the covariance, for a batch of the shape of x."""
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
        """Return the powers per frequency, in squared units of `like` `(batch, channels, *grid)`, for coefficients."""
        clean, corruption, white = self._known_powers(like)
        noise, seen = at.b**2 * white, white > 0
        left = torch.where(seen, 1 - at.a**2 * corruption / torch.where(seen, noise, 1.0), 1.0)
        return BandPowers(clean, corruption, noise, seen, left)

    def preconditioning_at(self, at: Coefficients, like: Tensor) -> Preconditioning:
        """Return the factors of the base class, of its shapes, outside the band, and those of restoration inside.

        The target's factors multiply x0, and noise at its full power V.
        """
        band, plain = self.band(at, like), super().preconditioning_at(at, like)
        total = at.a**2 * band.clean + band.noise
        c_in = torch.where(band.seen, total.rsqrt(), 0.0)
        c_skip = torch.where(band.seen, at.a * band.clean / total, 0.0)
        # The residual of the Wiener filter, and the whole sample where the frequency is unseen.
        c_out = torch.where(band.seen, (band.clean * band.noise / total).sqrt(), band.clean.sqrt())
        # The unbiased target is x' - (a c²/A) e, and the network should predict (target - c_skip·x_t)/c_out.
        signal = (1 - c_skip * at.a) / c_out
        noise = -(band.share(at.a) + c_skip) * at.b * band.left.sqrt() / c_out
        inside = (c_in, c_skip, c_out, signal, noise)
        outside = (plain.c_in, plain.c_skip, plain.c_out, plain.target_signal, plain.target_noise)
        return Preconditioning(*(torch.where(band.corruption > 0, a, b) for a, b in zip(inside, outside, strict=True)))

    def error(self, x0: Tensor, t: Tensor | float, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the network's output minus its target, in the band weighted by the inverse deviation of the target.

        x0 are corrupted data, `(batch, channels, *grid)` like the result; the network estimates clean data.
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
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = "uniform",
        penalty: SpectralPenalty | None = None,
    ) -> Tensor:
        """Return the loss of each item, shape `(batch,)`; see `Denoiser.loss`."""
        if penalty is not None:
            raise ValueError("a penalty on the spectrum would be measured against corrupted data: leave it out")
        return super().loss(x0, t, seeds, condition, mask, metric, weighting)

    def weigh(
        self,
        error: Tensor,
        t: Tensor | float,
        mask: Tensor | None = None,
        metric: Metric = "euclidean",
        weighting: Weighting = "uniform",
    ) -> Tensor:
        """Convert errors of the network's output to a loss per item, `(batch,)`; see `Denoiser.weigh` for units."""
        if metric == "mahalanobis" and not bool(self.process.covariance.support(tuple(error.shape[2:])).all()):
            raise ValueError(
                "the Mahalanobis metric ignores frequencies without noise, so the band would not be learned"
            )
        return super().weigh(error, t, mask, metric, weighting)

    def noised(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t of corrupted data and the training target, both of the shape `(batch, channels, *grid)` of x0.

        Only the missing noise is added. Both have the units of x0. The mean of the target, given x_t and the clean
        sample, is the clean sample.
        """
        x0 = as_data(x0)
        at, shape = self.process.coefficients(t, x0), x0.shape
        band = self.band(at, x0)
        datum, added = self.to_basis(x0), at.b * band.left.sqrt() * self.to_basis(noise)
        x_t, target = at.a * datum + added, datum - band.share(at.a) * added
        return self.from_basis(x_t, shape).to(x0.dtype), self.from_basis(target, shape).to(x0.dtype)


def clean_power(measured: Tensor, corruption: Tensor) -> Tensor:
    """Return measured minus corruption power, shaped like both; in the band at least the share `QUIET` of either."""
    minimum = QUIET * torch.maximum(measured, corruption.expand_as(measured))
    return torch.where(corruption > 0, torch.maximum(measured - corruption, minimum), measured)
