"""Networks and denoisers simple enough to know what they return."""

import torch
from torch import Tensor, nn

import multisagd as ms


class Affine(nn.Module):
    """A network that returns `factor * x + offset`, and keeps its inputs."""

    def __init__(self, factor: float = 0.0, offset: Tensor | float = 0.0) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        self.inputs.append(x)
        return self.factor * x + self.offset


class DenseDenoiser(nn.Module):
    """`E[x0 | x_t]` of Gaussian data with any covariance matrix under noise with any covariance matrix."""

    def __init__(self, process: ms.Process, data: Tensor, noise: Tensor, mean: Tensor | float = 0.0) -> None:
        super().__init__()
        self.process, self.data, self.noise, self.mean = process, data, noise, mean

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        alpha, sigma = (value[0] for value in self.process.schedule.alpha_sigma(t.double()))
        gain = alpha * self.data @ torch.linalg.inv(alpha**2 * self.data + sigma**2 * self.noise)
        return self.mean + (x_t - alpha * self.mean) @ gain.T
