"""The plain diffusers DDPM training loop, on our network and data: its noise scheduler, its loss, its samplers.

The loop follows its `train_unconditional` example: `DDPMScheduler.add_noise`, the squared error of the noise, AdamW,
clipping, a learning rate with warm-up. Network, initial weights, data, their order, batches, labels and label dropout
are those of our own training, and so is the weight average (instead of diffusers' own, which needs more steps than are
taken). The network receives the log-SNR of a timestep instead of its number, as in our training. Data are not centred,
and times are drawn independently, as in the example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

from modalities.base import Batch
from multisagd import PowerEMA
from multisagd.seeds import derive, derive_many
from recipes.runs.settings import Training

TIMESTEPS = 1000


@dataclass(frozen=True)
class Peer:
    """A diffusers schedule, by its name there, and an optimiser: by default those of the example.

    `warmup` is in optimiser steps, and `decay` is the diffusers name of the schedule after it.
    """

    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: int = 500
    decay: str = "cosine"

    @classmethod
    def as_ours(cls, beta_schedule: Literal["linear", "squaredcos_cap_v2"], training: Training) -> Peer:
        """Return a schedule with the optimiser settings of one of our training runs."""
        return cls(
            beta_schedule, training.learning_rate, training.betas, training.weight_decay,
            training.warmup // training.batch, "constant_with_warmup",
        )  # fmt: skip

    def scheduler(self) -> Any:
        """Return the noise scheduler of training, a `DDPMScheduler`."""
        return DDPMScheduler(num_train_timesteps=TIMESTEPS, beta_schedule=self.beta_schedule)

    def samplers(self) -> dict[str, Any]:
        """Return the samplers by name, with diffusers' defaults and the changes that its documentation requires.

        Both clip estimates to the data's range, DDIM by default, DPM-Solver++ by the thresholding meant for pixels:
        otherwise, where there is hardly any signal, an error in the noise makes the estimate wrong by orders of
        magnitude. Our samplers, which use v, do not clip.
        """
        # "Critical for the cosine schedule", whose last timesteps have no signal to divide by.
        lowest = -5.1 if self.beta_schedule == "squaredcos_cap_v2" else -math.inf
        common = {"num_train_timesteps": TIMESTEPS, "beta_schedule": self.beta_schedule}
        return {
            "DDIM": DDIMScheduler(**common),
            "DPM-Solver++": DPMSolverMultistepScheduler(**common, thresholding=True, lambda_min_clipped=lowest),
        }


class DiffusersLoop:
    """A network in training; `null_label` stands for "no class", None for data without classes."""

    def __init__(self, network: nn.Module, peer: Peer, training: Training, null_label: int | None, seed: int) -> None:
        self.network, self.training, self.null_label, self.seed = network.train(), training, null_label, seed
        self.device = next(network.parameters()).device
        self.scheduler = peer.scheduler()
        self.log_snrs = log_snrs(self.scheduler)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=peer.learning_rate, betas=peer.betas, weight_decay=peer.weight_decay
        )
        steps = training.samples // training.batch
        self.rate = get_scheduler(peer.decay, self.optimizer, num_warmup_steps=peer.warmup, num_training_steps=steps)
        self.average = PowerEMA(network, sigma_rel=training.ema)
        self.generator = torch.Generator().manual_seed(derive(seed, "diffusers"))
        self.steps = 0

    def step(self, batch: Batch) -> float:
        """Take a training step on one batch, and return its loss."""
        x0 = batch.x0.to(self.device)
        noise = torch.randn(x0.shape, generator=self.generator).to(self.device)
        timesteps = torch.randint(0, TIMESTEPS, (len(x0),), generator=self.generator)
        noisy = self.scheduler.add_noise(x0, noise, timesteps.to(self.device))
        levels = self.log_snrs[timesteps].to(self.device)
        loss = F.mse_loss(self.network(noisy, levels, self._condition(batch)), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)
        self.steps += 1
        return float(loss.detach())

    def _condition(self, batch: Batch) -> Tensor | None:
        if batch.labels is None or self.null_label is None:
            return None
        # The same labels are dropped as in our own training.
        drawn = derive_many(self.seed, "condition", self.steps, range(len(batch.labels)))
        dropped = torch.tensor([draw / 2**32 < self.training.condition_dropout for draw in drawn])
        return batch.labels.masked_fill(dropped, self.null_label).to(self.device)


def log_snrs(scheduler: Any) -> Tensor:
    """Return the log-SNR of every timestep of a scheduler, float32 `(timesteps,)`."""
    signal = scheduler.alphas_cumprod.double()
    return (signal / (1 - signal)).log().float()


@torch.no_grad()
def draw(
    network: nn.Module, scheduler: Any, initial: Tensor, labels: Tensor | None, steps: int, batch: int = 64
) -> Tensor:
    """Draw samples with a deterministic diffusers scheduler from the noise `initial`, and return them on the CPU."""
    network.eval()
    levels = log_snrs(scheduler).to(initial.device)
    made = []
    for start in range(0, len(initial), batch):
        x = initial[start : start + batch]
        condition = None if labels is None else labels[start : start + batch].to(initial.device)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            noise = network(scheduler.scale_model_input(x, timestep), levels[timestep].expand(len(x)), condition)
            x = scheduler.step(noise, timestep, x).prev_sample
        made.append(x.cpu())
    return torch.cat(made)
