"""Omit the corrupted band of the data from the noise: selective omission (arXiv 2510.09660).

The data are `x' = x0 + n`, where n has a known spectrum (`Corruption`) and is confined to a band. Frequencies without
noise (`Outside`) are not generated. There are two choices for what the network sees there:

- **the paper's omission** (`ProjectedDenoiser`, not blind): the corrupted band in training, zero in sampling;
- **projection** (`ProjectedDenoiser`): always zero, so that training and sampling agree.

`multisagd.restoration` and `multisagd.gaussian_restoration` also generate a clean band.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multisagd.channel_covariance import check_unmixed
from multisagd.condition import AnyCondition
from multisagd.denoiser import Denoiser, Preconditioning, PreconditioningKind
from multisagd.process import Coefficients, Process, Quantity
from multisagd.statistics import DataStatistics


class ProjectedDenoiser(Denoiser):
    """Predict only frequencies that carry noise, for noise that omits a band (`Outside`).

    If `blind` is True (the default), the network does not see the other frequencies: they are zero in training and
    sampling, and the estimate has the mean of the data there. If `blind` is False, the network sees the corrupted
    sample in training and zero in sampling, and the estimate keeps the values of `x_t` there: samples are zero there
    instead of the mean. This is equivalent to predicting the noise, which is zero there, and is how arXiv 2510.09660
    omits a band, in any parametrisation.

    If there is noise at every frequency, it is equivalent to `Denoiser`. For the other arguments see `Denoiser`.

    Raises:
        ValueError: If the arguments are invalid for `Denoiser`, or noise is not diagonal in frequency or its channels
            are correlated.
    """

    per_frequency = True
    plain_input = False  # the input is set to zero or scaled, frequency by frequency

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Quantity | None = None,
        preconditioning: PreconditioningKind = "none",
        statistics: DataStatistics | None = None,
        blind: bool = True,
    ) -> None:
        super().__init__(network, process, prediction, preconditioning, statistics)
        process.covariance.require_diagonal("selective omission")
        check_unmixed(process.covariance, "a denoiser that omits frequencies")
        self.blind = blind

    def preconditioning_at(self, at: Coefficients, like: Tensor) -> Preconditioning:
        """Return the base class's factors where there is noise, and factors that predict nothing elsewhere.

        They broadcast over the half spectrum of `like`, `(batch, channels, *half_shape)`.
        """
        inside = self.support_like(like)
        plain = super().preconditioning_at(at, like)
        c_in, c_skip, c_out, signal, noise = (
            inside * each for each in (plain.c_in, plain.c_skip, plain.c_out, plain.target_signal, plain.target_noise)
        )
        if not self.blind:
            # Where there is no noise, x_t is a times the data.
            c_in, c_skip = plain.c_in.expand_as(c_in), c_skip + (1 - inside) / at.a
        return Preconditioning(c_in, c_skip, c_out, signal, noise)

    def support_like(self, x: Tensor) -> Tensor:
        """Return 1 at frequencies that carry noise and 0 elsewhere, `(*half_shape)` of the grid of x.

        If channels differ, the result is `(channels, *half_shape)`.
        """
        inside = self.process.covariance.support(tuple(x.shape[2:]))
        return inside.to(x.device, torch.promote_types(x.dtype, torch.float32))

    def error(self, x0: Tensor, t: Tensor | float, noise: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the network's output minus its target, shaped like x0, in the units of the output.

        It is zero at frequencies without noise.
        """
        error = super().error(x0, t, noise, condition)
        return self._scale(error, self.support_like(error))
