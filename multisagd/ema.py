"""Average a network's weights over training, with a power-function profile (arXiv 2312.02696, Section 3).

If averages of two widths are stored several times during training, the average of any width between them is their
linear combination with the weights that `reconstruction` returns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


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


def reconstruction(stored: Sequence[tuple[int, float]], updates: int, sigma_rel: float) -> Tensor:
    """Return the weights `(stored,)`, float64, with which stored averages make the average of another width.

    Of all weights that sum to one, they minimise the squared distance between the profiles (arXiv 2312.02696,
    without the constraint).

    Args:
        stored: the number of updates and the width `sigma_rel` of each stored average.
        updates: the number of updates at which the average is wanted; stored averages after it are not useful.
        sigma_rel: the width of the wanted average, a fraction of the length of training so far.

    Raises:
        ValueError: If nothing is stored, or the width is not between 0 and 0.28.
    """
    if not stored:
        raise ValueError("there are no stored averages to combine")
    times = np.array([time for time, _ in stored], dtype=float)
    exponents = np.array([power_exponent(width) for _, width in stored])
    gram = _inner(times[:, None], exponents[:, None], times, exponents)
    target = _inner(times, exponents, np.array(float(updates)), np.array(power_exponent(sigma_rel)))
    # Weights that sum to one keep what all averages have in common, the initial weights above all, exactly.
    count = len(stored)
    bordered = np.block([[gram, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    return torch.from_numpy(np.linalg.lstsq(bordered, np.append(target, 1.0), rcond=None)[0][:count])


def _inner(time: np.ndarray, exponent: np.ndarray, other_time: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the integrals of the products of two profiles, `(γ+1) τ^γ / t^(γ+1)` for τ up to t."""
    ratio = (time / other_time) ** np.where(time < other_time, other, -exponent)
    return (exponent + 1) * (other + 1) * ratio / ((exponent + other + 1) * np.maximum(time, other_time))


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
