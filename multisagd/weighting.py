"""Weight the loss over noise levels: each weighting is a function of the log-SNR.

A weighting gives the weight of the squared error of x0, so that it means the same whatever a network predicts. With the
signal-to-noise ratio `SNR = e^λ`, the unweighted error of other predictions of a variance-preserving process weighs the
error of x0 by SNR (noise), `SNR + 1` (v) or 1 (x0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multisagd.networks.embedding import NoiseLevelFeatures


class Weighting(ABC):
    """A weight of x0's squared error at each log-SNR."""

    @abstractmethod
    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor | None:
        """Return weights shaped like the log-SNRs, for data of standard deviation `sigma_data`.

        The weights have no unit. None means that the network's own prediction is weighed uniformly.
        """


@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """Weigh the squared error of the network's prediction, whatever it is, by one at every noise level."""

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor | None:
        """Return None: no weights for log-SNRs of any shape."""
        return None


@dataclass(frozen=True)
class MinSNR(Weighting):
    """Weigh by `min(SNR + offset, gamma)` (arXiv 2303.09556, with offset 0).

    With `offset=1` it is the unweighted error of v, limited at low noise; there a network learns little that is visible
    in samples. Without an offset the weight vanishes towards pure noise, where sampling starts.

    Raises:
        ValueError: If `gamma` is not positive, or `offset` is negative.
    """

    gamma: float = 5.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)
        if not self.offset >= 0:
            raise ValueError(f"offset must be at least 0, got {self.offset}")

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor:
        """Return dimensionless weights shaped like the log-SNRs."""
        return (log_snr.exp() + self.offset).clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weighting):
    """Weigh by the smooth minimum `SNR · gamma / (SNR + gamma)` (soft-min-SNR, arXiv 2401.11605).

    Raises:
        ValueError: If `gamma` is not positive.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor:
        """Return dimensionless weights shaped like the log-SNRs."""
        return 1 / ((-log_snr).exp() + 1 / self.gamma)


@dataclass(frozen=True)
class SigmoidWeighting(Weighting):
    """Weigh by `SNR · sigmoid(bias - λ)` (arXiv 2303.00848, 2410.19324)."""

    bias: float = 2.0

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor:
        """Return dimensionless weights shaped like the log-SNRs."""
        return log_snr.exp() * torch.sigmoid(self.bias - log_snr)


@dataclass(frozen=True)
class KarrasWeighting(Weighting):
    """Weigh by `SNR + 1/σ_data²`: targets of Karras preconditioning then have unit variance (arXiv 2206.00364)."""

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor:
        """Return weights shaped like the log-SNRs, in units of 1/σ_data²."""
        return log_snr.exp() + 1 / sigma_data**2


@dataclass(frozen=True)
class PerFrequency(Weighting):
    """Apply a weighting at every frequency, to the log-SNR there: `λ - log W` for noise of power W.

    Where noise is strong, x0 is uncertain even at a high overall SNR. For white noise nothing changes.
    """

    weighting: Weighting

    def __call__(self, log_snr: Tensor, sigma_data: float) -> Tensor | None:
        """Return the weights shaped like the log-SNRs, in the weighting's unit."""
        return self.weighting(log_snr, sigma_data)


class UncertaintyWeighting(nn.Module):
    """Learn the log-variance u(λ) of the loss, and weigh by its inverse: `loss/e^u + u` (arXiv 2312.02696, Section 2).

    At the optimum all noise levels contribute equally. u is linear in features of the log-SNR and 0 at first.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()
        self.features = NoiseLevelFeatures(features)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, loss: Tensor, log_snr: Tensor) -> Tensor:
        """Return the weighted losses `(batch,)`, dimensionless, of losses and log-SNRs `(batch,)`."""
        uncertainty = self.linear(self.features(log_snr).to(self.linear.weight.dtype)).squeeze(-1)
        return loss / uncertainty.exp() + uncertainty


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
