"""Check the arguments of public functions: times in [0, 1], and real data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_HINT = "diffusers' timestep i of 1,000 is the time (i + 1) / 1000 here (DiscreteSchedule)"


def as_times(t: Tensor | float) -> Tensor:
    """Return times from 0 (the data) to 1 (the noise) as a floating-point tensor, `(batch,)` or a scalar for all items.

    Numbers become float64 on the CPU; the integers 0 and 1 are accepted as numbers. A tensor is returned unchanged. An
    integer tensor is refused, since it probably contains timesteps. Values are checked on the CPU only, outside
    compiled graphs and `torch.func.vmap`: reading values from an accelerator would stall it.

    Raises:
        ValueError: If times are an integer tensor, outside [0, 1] or NaN.
    """
    if not isinstance(t, Tensor):
        t = _from_numbers(t)
    if not t.is_floating_point():
        raise ValueError(f"times must be floating-point numbers from 0 to 1, got {t.dtype}: {_HINT}")
    if t.device.type != "cpu" or torch.compiler.is_compiling() or t.numel() == 0:
        return t
    try:
        low, high = (float(end) for end in t.detach().aminmax())
    except RuntimeError:  # within vmap, and for tensors without memory, no value can be read
        return t
    if not (low >= 0 and high <= 1):
        got = f"{low:.6g}" if t.numel() == 1 else f"{low:.6g} to {high:.6g}"
        raise ValueError(f"times must lie between 0 (the data) and 1 (the noise), got {got}: {_HINT}")
    return t


def _from_numbers(t: Any) -> Tensor:
    try:
        times = torch.as_tensor(t, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers from 0 to 1, got {t!r:.80}") from error
    if times.dim() == 0 and times.dtype != torch.bool and not times.is_complex():
        return torch.as_tensor(t, dtype=torch.float64, device="cpu")
    return times


def as_data(x: Tensor) -> Tensor:
    """Return x, of any shape, in the same units: unchanged if its dtype is floating-point, else as float32.

    Raises:
        ValueError: If x is complex.
    """
    if x.is_complex():
        raise ValueError(f"data must be real numbers, got {x.dtype}: stack real and imaginary parts as channels")
    return x if x.is_floating_point() else x.to(torch.float32)
