"""Average a network's weights over training, with a power-function profile (arXiv 2312.02696, Section 3)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def power_exponent(sigma_rel: float) -> float:
    """Return the exponent γ of a profile whose standard deviation is `sigma_rel` times the length of training so far.

    It is the positive root of `σ_rel² = (γ+1) / ((γ+2)² (γ+3))`.

    Raises:
        ValueError: If `sigma_rel` is not between 0 and 0.28, where such a profile exists.
    """
    if not 0 < sigma_rel < 0.28:
        raise ValueError(f"sigma_rel must lie between 0 and 0.28, got {sigma_rel}")
    target = sigma_rel**-2
    return float(np.roots([1, 7, 16 - target, 12 - target]).real.max())


class PowerEMA(nn.Module):
    """Keep an averaged copy of a network: after n updates, the weights of update i contribute in proportion to `i^γ`.

    The averaging window grows with training, so one setting suits short and long runs. The first
    update copies the weights. Buffers are copied at every update.
    """

    def __init__(self, network: nn.Module, sigma_rel: float = 0.05) -> None:
        super().__init__()
        self.exponent = power_exponent(sigma_rel)
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the network's weights after an optimiser step."""
        self.updates += 1
        fraction = 1 - (1 - 1 / self.updates) ** (self.exponent + 1)
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), fraction)
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

    def get_extra_state(self) -> torch.Tensor:
        """Return the number of updates, a scalar count that is stored with the weights in `state_dict`."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore the number of updates, a scalar count."""
        self.updates = int(state)
