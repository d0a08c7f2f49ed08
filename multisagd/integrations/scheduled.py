"""Wrap a denoiser as the model of a diffusers scheduler, which calls `model(sample, timestep).sample`.

A diffusers scheduler passes `α x0 + s ε` and a timestep to its model and expects, depending on its configuration, the
noise ε, `v = α ε - s x0`, x0 or the flow `ε - x0`. These follow from this project's denoiser at the time at which its
own schedule has the same log-SNR, `2 log(α/s)`, with the sample scaled to that schedule. The two schedules may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from multisagd.inputs import as_data
from multisagd.sampling import AnyDenoiser


@dataclass(frozen=True)
class Level:
    """Factors of x0 and of the noise in a model's input, float64 `(batch,)` or `(1,)`."""

    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class ModelOutput:
    """The output of a diffusers model."""

    sample: Tensor


class ScheduledDenoiser(nn.Module):
    """Wrap a denoiser as a model for `scheduler`, which must be the same object that takes the steps.

    `forward` takes a sample `(batch, channels, *grid)` as returned by `scheduler.scale_model_input`, and the timestep.
    It returns the scheduler's kind of prediction as `.sample`, or as the first item of a tuple with
    `return_dict=False`. The scheduler's and the denoiser's schedules may differ; noise levels outside the denoiser's
    schedule are clamped to its ends. If `channels` is given, the result can be used in pipelines that need only a model
    and a scheduler: `DDPMPipeline(ScheduledDenoiser(denoiser, scheduler, channels=3), scheduler)`.

    Raises:
        ValueError: If noise follows the condition of each item; from `forward`, if the scheduler's noise levels or
            prediction are not supported, the scheduler expects its model to predict a variance, or both a class and
            text are given.
    """

    def __init__(self, denoiser: AnyDenoiser, scheduler: Any, channels: int | None = None) -> None:
        super().__init__()
        if denoiser.process.covariance.item_wise:  # which no scheduler draws
            denoiser.process.covariance.require_diagonal("a model for schedulers of diffusers")
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.config = SimpleNamespace(in_channels=channels, sample_size=denoiser.process.grid.shape)
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self._like: Tensor

    @property
    def device(self) -> torch.device:
        """The device on which pipelines draw their noise."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the noise that pipelines draw."""
        return self._like.dtype

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> ModelOutput | tuple[Tensor]:
        """Return the scheduler's kind of prediction for a scaled sample at a timestep, shaped like the sample."""
        if class_labels is not None and encoder_hidden_states is not None:
            raise ValueError("a denoiser of this project takes one condition: class_labels or encoder_hidden_states")
        sample = as_data(sample)
        condition = class_labels if encoder_hidden_states is None else encoder_hidden_states
        level = noise_level(self.scheduler, timestep)
        process, rank = self.denoiser.process, (1,) * (sample.dim() - 1)
        t = process.schedule.time(2 * (level.alpha.log() - level.sigma.log()))
        own_alpha, own_sigma = process.schedule.alpha_sigma(t)
        # The two quotients are equal, except beyond the schedule's range, and where α or σ vanishes.
        ratio = torch.where(level.alpha > level.sigma, own_alpha / level.alpha, own_sigma / level.sigma)
        scaled = sample * ratio.reshape(-1, *rank).to(sample)
        x0 = self.denoiser(scaled, t.to(sample.device).expand(len(sample)), condition)
        # Noise levels below the denoiser's smallest level, or zero, are treated as the smallest.
        minimum = torch.maximum(level.sigma, level.alpha * own_sigma / own_alpha)
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        factors = (level.alpha, minimum, *_weights(self.scheduler, level))
        alpha, minimum, of_x0, of_noise = (factor.reshape(-1, *rank).to(wide) for factor in factors)
        prediction = (of_x0 * x0 + of_noise * ((wide - alpha * x0) / minimum)).to(sample.dtype)
        return ModelOutput(prediction) if return_dict else (prediction,)


def noise_level(scheduler: Any, timestep: Tensor | float) -> Level:
    """Return the dimensionless factors of x0 and noise, two scalars, in the scaled sample at a timestep.

    Within a sampling loop they follow from the scheduler's own σ of the step, since a timestep may be rounded; for
    other timesteps they are read from the scheduler's table.

    Raises:
        ValueError: If the scheduler is not variance preserving (with `alphas_cumprod`), flow matching, or
            preconditioned as in EDM.
    """
    timesteps = torch.as_tensor(timestep, dtype=torch.float64, device="cpu").reshape(-1)
    sigma = _sigma_of_step(scheduler, timesteps)
    if hasattr(scheduler, "precondition_inputs"):
        sigma = _sigma_of_edm(scheduler, timesteps) if sigma is None else sigma
        scale = (sigma**2 + scheduler.config.sigma_data**2).rsqrt()
        return Level(scale, sigma * scale)
    if is_flow(scheduler):
        sigma = timesteps / scheduler.config.num_train_timesteps if sigma is None else sigma
        return Level(1 - sigma, sigma)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} is not supported: it has neither "
            "alphas_cumprod nor the interface of flow matching or of EDM. Choose another scheduler"
        )
    if sigma is not None:
        scale = (sigma**2 + 1).rsqrt()
        return Level(scale, sigma * scale)
    table = scheduler.alphas_cumprod.to("cpu", torch.float64)
    kept = table[timesteps.round().long().clamp(0, len(table) - 1)]
    return Level(kept.sqrt(), (1 - kept).sqrt())


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's samples are `(1 - σ) x0 + σ ε`, as in flow matching."""
    if hasattr(scheduler, "alphas_cumprod"):
        return bool(scheduler.config.get("use_flow_sigmas", False))
    return hasattr(scheduler, "scale_noise")  # which replaces add_noise in diffusers' flow-matching schedulers


def _sigma_of_step(scheduler: Any, timesteps: Tensor) -> Tensor | None:
    """Return the σ of the scheduler's step at this timestep, float64 `(1,)`, or None if it has no such step."""
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    own = getattr(scheduler, "timesteps", None)
    if sigmas is None or own is None or len(timesteps.unique()) != 1:
        return None
    own, at = torch.as_tensor(own, dtype=torch.float64, device="cpu"), float(timesteps[0])
    if index is None or index >= len(own) or abs(float(own[index]) - at) > 1e-6 * abs(at):
        matches = (own == at).nonzero()
        if len(matches) == 0:
            return None
        index = int(matches[0])
    # Second-order solvers also evaluate the model between two levels.
    if not getattr(scheduler, "state_in_first_order", True):
        if getattr(scheduler, "mid_point_sigma", None) is not None:
            return torch.as_tensor(scheduler.mid_point_sigma, dtype=torch.float64, device="cpu").reshape(1)
        if hasattr(scheduler, "sigmas_interpol"):
            # Two solvers have such levels; the ancestral one increments the step index before the step ends.
            sigmas, index = scheduler.sigmas_interpol, index - hasattr(scheduler, "sigmas_up")
    return torch.as_tensor(sigmas[index], dtype=torch.float64, device="cpu").reshape(1)


def _sigma_of_edm(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Return the σ of timesteps outside a sampling loop: EDM's timesteps are `log(σ)/4` (arXiv 2206.00364, Table 1)."""
    sigma = (4 * timesteps).exp()
    if not torch.allclose(scheduler.precondition_noise(sigma).double(), timesteps):
        raise ValueError(
            f"{type(scheduler).__name__} defines noise levels only for its own steps: call set_timesteps first"
        )
    return sigma


def _weights(scheduler: Any, level: Level) -> tuple[Tensor, Tensor]:
    """Return the weights of x0 and the noise in the scheduler's kind of prediction, which are finite at any level."""
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"{type(scheduler).__name__} expects its model to predict a variance too, which this denoiser does not: "
            "use the scheduler's default variance_type, which is not learned"
        )
    kind = scheduler.config.get("prediction_type", "flow_prediction" if is_flow(scheduler) else "epsilon")
    alpha, sigma = level.alpha, level.sigma
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if hasattr(scheduler, "precondition_outputs") and kind in ("epsilon", "v_prediction"):
        # With α = 1/√(σ² + σ_d²), EDM schedulers compute x0 as c_skip · x + c_out · F, with c_skip = σ_d² α² and
        # c_out = ±σ σ_d α for x and σ before scaling: F is ±(σ x0 - σ_d² ε)·α/σ_d (arXiv 2206.00364, Table 1).
        std, sign = scheduler.config.sigma_data, -1 if kind == "v_prediction" else 1
        return sign * sigma / std, -sign * std * alpha
    if kind == "epsilon":
        if not bool((alpha > 0).all()):
            raise ValueError(
                f"{type(scheduler).__name__} expects a prediction of the noise at a level where the factor of x0 is "
                "zero, and divides by that factor: set prediction_type='v_prediction', or remove rescale_betas_zero_snr"
            )
        return zero, one
    if kind == "sample" and not hasattr(scheduler, "precondition_outputs"):
        return one, zero
    if kind == "v_prediction":
        # For every schedule, diffusers converts v by x0 = α x - σ v, so the weight of x0 is -(1 - α²)/σ.
        return -(one + alpha if is_flow(scheduler) else sigma), alpha
    if kind == "flow_prediction":
        return -one, one
    raise ValueError(f"{type(scheduler).__name__} expects prediction_type={kind!r}, which is not supported here")
