"""Compute a denoiser's estimate and products with its transposed Jacobian, for likelihoods and inverse problems."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multisagd.condition import AnyCondition, mapped
from multisagd.inputs import as_data, as_times
from multisagd.sampling import AnyDenoiser

Pullback = Callable[[Tensor], Tensor]
"""Maps v to `Jᵀv`, shaped like x_t, for the Jacobian `J = ∂E[x0 | x_t]/∂x_t` of each item."""


def estimate_and_pullback(
    denoiser: AnyDenoiser, x_t: Tensor, t: Tensor | float, condition: AnyCondition = None
) -> tuple[Tensor, Pullback]:
    """Return `E[x0 | x_t]`, detached and shaped like x_t, and a function that multiplies by its transposed Jacobian.

    The function may be called any number of times, and keeps the graph of one call of the denoiser in memory. It works
    under `no_grad`, as in sampling, and in inference mode.
    """
    # Inference tensors cannot be part of a graph; copies made outside inference mode can.
    with torch.inference_mode(False), torch.enable_grad():
        x = as_data(x_t).detach().clone().requires_grad_()
        usable = mapped(condition, lambda part: part.clone() if part.is_inference() else part)
        x0 = denoiser(x, as_times(t).clone(), usable)

    def pullback(vector: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(x0, x, vector.detach().clone().to(x0), retain_graph=True)[0].detach()

    return x0.detach(), pullback
