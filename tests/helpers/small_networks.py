"""Small networks and denoisers; weights are as training leaves them: none is exactly zero."""

from typing import Any

import torch
from torch import Tensor, nn

import multisagd as ms
from tests.helpers import dense


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


class UnchangedEstimate(nn.Module):
    """A denoiser that returns its input."""

    def __init__(self, process: ms.Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return x_t
