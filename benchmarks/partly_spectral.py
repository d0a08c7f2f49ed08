"""Spectral preconditioning in which each part can be replaced by a scalar; only for the ablation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from multisagd import DataStatistics, Denoiser, Process
from multisagd.denoiser import Preconditioning
from multisagd.process import Coefficients

Part = Literal["scalar", "spectral"]


class PartlySpectral(Denoiser):
    """`D = μ + skip·y + out·F(into·y)`, each factor from the power at every frequency or its mean over frequencies.

    Every factor is optimal for its purpose under the Gaussian model, given the others: `into` scales the input to unit
    variance, `skip` is the best linear estimate, `out` scales the residual of the skip to unit variance. If all are
    scalar, this is Karras preconditioning; if all are spectral, it is the spectral preconditioning of `Denoiser`. If
    not `centred`, the mean is set to zero, and σ_data and the power of the data are computed about zero. `sigma_data`
    replaces the standard deviation of the data in all scalar factors; with 1, they equal the factors of v-prediction
    for any path.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        statistics: DataStatistics,
        centred: bool = True,
        sigma_data: float | None = None,
        into: Part = "scalar",
        skip: Part = "scalar",
        out: Part = "scalar",
    ) -> None:
        if not centred:
            power = statistics.power + statistics.mean_power
            statistics = DataStatistics(torch.zeros_like(statistics.mean), power, statistics.grid, statistics.count)
        super().__init__(network, process, preconditioning="spectral", statistics=statistics)
        self.sigma_data = sigma_data or self.sigma_data
        self.parts = {"into": into, "skip": skip, "out": out}

    def preconditioning_at(self, at: Coefficients, like: Tensor) -> Preconditioning:
        """Return the factors of the formula and of its training target; see `Denoiser.preconditioning_at`."""
        power, noise_power = self.powers_like(like)
        signal, noise = {}, {}
        for name, part in self.parts.items():
            spectral = part == "spectral"
            signal[name] = power if spectral else torch.full_like(power, self.sigma_data**2)
            noise[name] = at.b**2 * (noise_power if spectral else torch.ones_like(noise_power))
        into = (at.a**2 * signal["into"] + noise["into"]).rsqrt()
        scale = 1 / (at.a**2 * signal["skip"] + noise["skip"])
        skip, rest = at.a * signal["skip"] * scale, noise["skip"] * scale  # rest = 1 - a·skip
        known = power if "spectral" in (self.parts["skip"], self.parts["out"]) else signal["skip"]
        left = rest**2 * known + skip**2 * at.b**2 * noise_power
        if self.parts["out"] == "scalar":
            grid = self.process.grid.resize(like.shape[2:])
            mean = grid.mean(left).mean(1).reshape(-1, *(1,) * (left.dim() - 1))
            left = mean.expand_as(left)
        out = left.sqrt()
        return Preconditioning(into, skip, out, rest / out, -at.b * skip / out)
