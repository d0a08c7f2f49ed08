"""Let a network predict both its usual target and the data, and mix the two at every grid point (arXiv 2203.04304)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from multisagd.condition import AnyCondition
from multisagd.denoiser import Denoiser, Preconditioning, PreconditioningKind
from multisagd.process import Process, Quantity
from multisagd.statistics import DataStatistics


class DualDenoiser(Denoiser):
    """Mix two estimates of x0: one from the prediction F of `Denoiser`, and one that the network outputs itself.

    With the prediction v or noise, or with preconditioning, the error of x0 vanishes together with the noise. But
    networks recognise weak noise poorly, and do not remove it where the data are simple, as in a black background.
    There, a direct estimate of x0 is better, but it lacks fine detail. Therefore the network has three outputs for
    each channel: F, the direct estimate of `x0 - mean`, and a logit g. The weight of the direct estimate is
    `w = r e^g/(1 + r e^g)`, and that of F is 1 - w. Here r is the root mean square of `c_out` (σ, if the prediction is
    v), so that before training (g = 0) the estimate at low noise is that of F.

    Arguments, units and errors are those of `Denoiser`, except that the network returns three times the channels of x,
    all values of F first: `(batch, 3 * channels, *grid)`.

    Raises:
        ValueError: If the arguments are invalid for `Denoiser`, or the prediction is x0; when called, if the output has
            another number of channels.
    """

    outputs: ClassVar[int] = 3

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Quantity | None = None,
        preconditioning: PreconditioningKind = "none",
        statistics: DataStatistics | None = None,
        centred: bool = True,
    ) -> None:
        super().__init__(network, process, prediction, preconditioning, statistics, centred)
        if prediction == "x0":
            raise ValueError("prediction=x0: both outputs would be x0; choose another prediction, such as v")

    def _output(self, y: Tensor, factors: Preconditioning, t: Tensor | float, condition: AnyCondition) -> Tensor:
        output = super()._output(y, factors, t, condition)
        if output.shape[1] != 3 * y.shape[1]:
            raise ValueError(
                f"the network of a DualDenoiser must return {3 * y.shape[1]} channels for {y.shape[1]}, got "
                f"{output.shape[1]}: set its out_channels"
            )
        prediction, direct, logit = output.chunk(3, dim=1)
        out, visible = factors.c_out, factors.c_out != 0
        inverse = torch.where(visible, 1 / torch.where(visible, out, 1.0), 0.0)
        implied = (self.to_basis(direct) - factors.c_skip * self.to_basis(y)) * inverse
        size = out.square().flatten(1).mean(1).sqrt().reshape(-1, *(1,) * (y.dim() - 1))
        # Without noise, x0 is known, and a weight of 0 keeps it.
        weight = torch.sigmoid(logit + size.log())
        return torch.lerp(prediction, self.from_basis(implied, y.shape).to(y.dtype), weight.to(y.dtype))
