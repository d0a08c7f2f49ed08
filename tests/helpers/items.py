"""Noise that follows the condition of each item, with envelopes and powers that are planted in the condition."""

import numpy as np
import torch
from torch import Tensor, nn

import multisagd as ms
from tests.helpers import dense
from tests.helpers.gaussian import Recursion


class Planted(ms.CovarianceRule):
    """The first channel of a condition on the grid of the data is E, and the mean of the second one tilts W."""

    def __call__(self, dense: Tensor, grid: ms.Grid) -> tuple[Tensor, Tensor]:
        tilt = dense[:, 1:2].flatten(2).mean(2).reshape(-1, 1, *(1,) * grid.dimensions)
        radius = grid.radius(factors=dict.fromkeys(grid.names, 1.0)).to(dense)
        return dense[:, :1], 0.5 + tilt.exp() * (1 + 8 * radius**2) ** -tilt


def planted(grid: ms.Grid, batch: int = 2, seed: int = 0) -> ms.Condition:
    """A condition of random positive envelopes and tilts, float64."""
    envelope = (0.7 * dense.random(batch, 1, *grid.shape, seed=seed)).exp()
    tilt = dense.random(batch, 1, *(1,) * grid.dimensions, seed=seed + 1).expand(envelope.shape)
    return ms.Condition(dense=torch.cat([envelope, tilt], 1))


def conditioned(grid: ms.Grid, schedule: ms.Schedule | None = None) -> ms.Process:
    """A process whose noise follows planted conditions, in float64."""
    return ms.Process(schedule or ms.CosineSchedule(), ms.ConditionedCovariance(Planted(), grid).double())


class ItemOracle(nn.Module):
    """The exact `E[x0 | x_t]` of Gaussian data `x0 ~ N(0, E_i F⁻¹ diag(P) F E_i)` under planted noise.

    `power` is P `(*half_shape)`, or None for data of the covariance of their noise.
    """

    def __init__(self, process: ms.Process, power: Tensor | None) -> None:
        super().__init__()
        self.process, self.power = process, power

    def data_power(self, covariance: ms.ItemCovariance) -> Tensor:
        return covariance.item_power if self.power is None else self.power.expand_as(covariance.item_power)

    def forward(self, x_t: Tensor, t: Tensor, condition: ms.Condition | None = None) -> Tensor:
        covariance = self.process.bound(condition, x_t.shape).covariance
        at, dims = self.process.coefficients(t, x_t), tuple(range(2, x_t.dim()))
        power = self.data_power(covariance)
        gain = at.a * power / (at.a**2 * power + at.b**2 * covariance.item_power)
        halves = torch.fft.rfftn(x_t / covariance.envelope, dim=dims) * gain
        return covariance.envelope * torch.fft.irfftn(halves, s=x_t.shape[2:], dim=dims)


def matrices(covariance: ms.ItemCovariance, power: Tensor) -> list[np.ndarray]:
    """The dense matrix `E F⁻¹ diag(power) F E` of each item, for power `(batch, 1, *half_shape)`."""
    result = []
    for envelope, each in zip(covariance.envelope, power, strict=True):
        scale = np.diag(envelope.flatten().numpy())
        result.append(scale @ dense.operator(covariance.grid.full(each[0]).numpy()) @ scale)
    return result


def recursion_of_item(oracle: ItemOracle, covariance: ms.ItemCovariance, item: int, times: Tensor) -> Recursion:
    """The recursion of a sampler on one item, per frequency of `F E⁻¹ x`."""
    schedule = oracle.process.schedule
    alpha, sigma = (value.numpy() for value in schedule.alpha_sigma(times))
    powers = (oracle.data_power(covariance)[item], covariance.item_power[item])
    return Recursion(alpha, sigma, *(power.flatten().numpy() for power in powers), schedule.path)
