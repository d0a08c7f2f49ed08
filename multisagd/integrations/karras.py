"""Wrap a denoiser in the interface of k-diffusion and EDM: `D(x, σ)`, x being x0 plus noise of standard deviation σ.

A process's state is `x_t = α (x0 + σ/α ε)`, so that `D(x, σ)` is the denoiser at the time whose log-SNR is `-2 log σ`
and at the state αx, for every schedule: the parametrisation of Karras et al. (arXiv 2206.00364). k-diffusion samplers
take such an object as their `model`; their noise, which is white by default, must be replaced by the noise of the
process:

    model = KarrasDenoiser(denoiser)
    x = model.start((4, 3, 32, 32), seeds=range(4), sigma=80.0)
    sample_euler_ancestral(model, x, sigmas, noise_sampler=model.noise_sampler(x, seeds=range(4)))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from multisagd.inputs import as_data
from multisagd.process import Process
from multisagd.sampling import AnyDenoiser
from multisagd.seeds import checked_seeds, derive


class KarrasDenoiser(nn.Module):
    """Wrap a denoiser as `D(x, sigma) = E[x0 | x0 + sigma ε]`; ε is the process's noise, sigma `(batch,)` or a number.

    Raises:
        ValueError: If the process's coefficients depend on frequency, so that there is no single σ.
    """

    def __init__(self, denoiser: AnyDenoiser) -> None:
        super().__init__()
        if denoiser.process.modulation is not None:
            raise ValueError("D(x, sigma) needs a single noise level per time: remove the process's modulation")
        self.denoiser = denoiser

    @property
    def process(self) -> Process:
        """The process of the denoiser."""
        return self.denoiser.process

    @property
    def sigma_min(self) -> float:
        """The smallest noise level of the process, at t = 0."""
        return self._sigma_at(0.0)

    @property
    def sigma_max(self) -> float:
        """The largest noise level of the process, at t = 1; the denoiser is not defined beyond it."""
        return self._sigma_at(1.0)

    def forward(self, x: Tensor, sigma: Tensor | float, **condition: Any) -> Tensor:
        """Return `E[x0 | x]` for x `(batch, channels, *grid)` at noise standard deviations, a scalar or `(batch,)`.

        Sigma and the result are in the units of x; `condition` is passed to the denoiser unchanged.

        Raises:
            ValueError: If a sigma is above `sigma_max`, negative or NaN, or their number is neither 1 nor the batch
                size.
        """
        x = as_data(x)
        levels = torch.as_tensor(sigma, device=x.device, dtype=torch.float64).reshape(-1)
        if len(levels) not in (1, len(x)):
            raise ValueError(f"expected 1 or {len(x)} sigmas for a batch of {len(x)}, got {len(levels)}")
        if not bool((levels >= 0).all()):
            raise ValueError(f"sigma is a standard deviation and must be at least 0, got {float(levels.min()):.6g}")
        # A k-diffusion schedule that starts at sigma_max may exceed it by rounding.
        if bool((levels > self.sigma_max * (1 + 1e-5)).any()):
            raise ValueError(
                f"sigma {float(levels.max()):.6g} is above the process's maximum {self.sigma_max:.6g}: use a smaller "
                "sigma"
            )
        t = self.process.schedule.time(-2 * levels.log()).expand(len(x))
        alpha = self.process.coefficients(t, x).a
        return self.denoiser((alpha * x).to(x.dtype), t, **condition)

    def start(self, shape: Sequence[int], seeds: Sequence[int], sigma: float | None = None) -> Tensor:
        """Draw noise of this shape and standard deviation `sigma` (`sigma_max` by default), to start sampling from."""
        return self.process.noise(shape, seeds) * (self.sigma_max if sigma is None else sigma)

    def noise_sampler(self, x: Tensor, seeds: Sequence[int]) -> Callable[[Any, Any], Tensor]:
        """Return a `noise_sampler(sigma, sigma_next)` for stochastic samplers, which draws new noise at every call.

        The noise has the shape, device and dtype of x, and depends on one seed per item and the index of the call.

        Raises:
            ValueError: If there is not one seed per item; raised when the sampler is called.
        """
        calls, seeds = count(), checked_seeds(seeds)

        def sampler(sigma: Any, sigma_next: Any) -> Tensor:
            call = next(calls)
            return self.process.noise(x.shape, [derive(seed, "noise sampler", call) for seed in seeds]).to(x)

        return sampler

    def _sigma_at(self, t: float) -> float:
        return math.exp(-float(self.process.schedule.log_snr(t)) / 2)
