"""Small networks, and networks and denoisers simple enough to know what they return."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import multisagd as ms
from tests.helpers import dense


class Affine(nn.Module):
    """A network that returns `factor * x + offset`, and keeps its inputs."""

    def __init__(self, factor: float = 0.0, offset: Tensor | float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        self.inputs.append(x)
        return self.factor * x + self.offset


class Estimate(nn.Module):
    """A denoiser that returns a function of x_t and t: without one, its input."""

    def __init__(self, process: ms.Process, function: Callable[[Tensor, Tensor], Tensor] = lambda x, t: x) -> None:
        super().__init__()
        self.process, self.function = process, function

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.function(x_t, t)


class DenseDenoiser(nn.Module):
    """`E[x0 | x_t]` of Gaussian data with any covariance matrix under noise with any covariance matrix."""

    def __init__(self, process: ms.Process, data: Tensor, noise: Tensor, mean: Tensor | float = 0.0) -> None:
        super().__init__()
        self.process, self.data, self.noise, self.mean = process, data, noise, mean

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = (value[0] for value in self.process.schedule.alpha_sigma(t.double()))
        gain = alpha * self.data @ torch.linalg.inv(alpha**2 * self.data + sigma**2 * self.noise)
        return self.mean + (x_t - alpha * self.mean) @ gain.T


def unet(channels: int, dimensions: int, **options: Any) -> ms.networks.UNet:
    return ms.networks.UNet(
        channels, dimensions, **{"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 2} | options
    )


def transformer(channels: int, dimensions: int, **options: Any) -> ms.networks.Transformer:
    return ms.networks.Transformer(channels, dimensions, **{"width": 24, "depth": 2, "heads": 2} | options)


def trained(network: nn.Module) -> nn.Module:
    """Move all weights a little, as training would, and switch to evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def data(*shape: int, seed: int = 0) -> Tensor:
    return dense.random(*shape, seed=seed).float()


def labelled_denoiser(grid: ms.Grid) -> ms.Denoiser:
    """A denoiser of one channel with three labels, on coloured noise."""
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid))
    torch.manual_seed(0)
    return ms.Denoiser(trained(unet(1, grid.dimensions, multipliers=(1,), classes=3)), process)
