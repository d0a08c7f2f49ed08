"""The plain diffusers DDPM training loop, on our data: its noise scheduler, its loss, its samplers.

The loop follows its `train_unconditional` example: `DDPMScheduler.add_noise`, the squared error of the noise, AdamW,
clipping, a learning rate with warm-up. Data, their order, batches, labels and label dropout are those of our own
training. By default so are the network, its initial weights and the weight average (instead of diffusers' own, which
needs more steps than are taken), and the network receives the log-SNR of a timestep instead of its number, as in our
training. Data are not centred, and times are drawn independently, as in the example.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn

from benchmarks.peers.setting import Setting
from modalities.base import Batch
from multisagd import PowerEMA
from multisagd.seeds import derive, derive_many
from recipes.runs.settings import Training

TIMESTEPS = 1000


@dataclass(frozen=True)
class Peer:
    """A diffusers schedule, by its name there, and an optimiser: by default those of the example.

    `warmup` is in optimiser steps, and `decay` is the diffusers name of the schedule after it. The loss has min-SNR
    weights with this `gamma` (arXiv 2303.09556), or none. The `average` of the weights is that of our training
    ("power") or `EMAModel` as in the example.
    """

    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: int = 500
    decay: str = "cosine"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    gamma: float | None = None
    average: Literal["power", "example"] = "power"

    def scheduler(self) -> Any:
        """Return the noise scheduler of training, a `DDPMScheduler`."""
        return DDPMScheduler(**self._process())

    def levels(self) -> Tensor:
        """Return what the network receives at every timestep, `(timesteps,)`: here the log-SNR, float32."""
        return log_snrs(self.scheduler())

    def sampler(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Return the diffusers scheduler `name`, with its defaults, what its documentation requires, and `options`.

        `DDPMScheduler` and `DDIMScheduler` clip estimates to the data's range by default, and DPM-Solver++ does so by
        the thresholding meant for pixels: otherwise, where there is hardly any signal, an error in the noise makes the
        estimate wrong by orders of magnitude. Our samplers, which use v, do not clip.
        """
        arguments = self._process()
        if name == "DPMSolverMultistepScheduler":
            # "Critical for the cosine schedule", whose last timesteps have no signal to divide by.
            lowest = -5.1 if self.beta_schedule == "squaredcos_cap_v2" else -math.inf
            arguments |= {"thresholding": True, "lambda_min_clipped": lowest}
        return getattr(diffusers, name)(**arguments | dict(options or {}))

    def _process(self) -> dict[str, Any]:
        schedule = {"num_train_timesteps": TIMESTEPS, "beta_schedule": self.beta_schedule}
        return schedule | {"prediction_type": self.prediction}


class ExampleAverage:
    """The average of the weights in the example, with its settings."""

    def __init__(self, network: nn.Module) -> None:
        self._module = copy.deepcopy(network)
        self._average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def update(self, network: nn.Module) -> None:
        """Include the weights of the network after a step."""
        self._average.step(network.parameters())

    @property
    def module(self) -> nn.Module:
        """The network with averaged weights."""
        self._average.copy_to(self._module.parameters())
        return self._module


class DiffusersLoop:
    """A network in training; `null_label` stands for "no class", None for data without classes.

    The network is called as `network(x, level, labels)`, with one of `Peer.levels` for each sample.
    """

    def __init__(self, network: nn.Module, peer: Peer, training: Training, null_label: int | None, seed: int) -> None:
        self.network, self.training, self.null_label, self.seed = network.train(), training, null_label, seed
        self.device = next(network.parameters()).device
        self.scheduler = peer.scheduler()
        self.levels, self.gamma = peer.levels(), peer.gamma
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=peer.learning_rate, betas=peer.betas, weight_decay=peer.weight_decay
        )
        steps = training.samples // training.batch
        self.rate = get_scheduler(peer.decay, self.optimizer, num_warmup_steps=peer.warmup, num_training_steps=steps)
        self.average: PowerEMA | ExampleAverage = (
            PowerEMA(network, sigma_rel=training.ema) if peer.average == "power" else ExampleAverage(network)
        )
        self.generator = torch.Generator().manual_seed(derive(seed, "diffusers"))
        self.steps = 0

    @classmethod
    def of(cls, setting: Setting, peer: Peer) -> DiffusersLoop:
        """Return the loop that trains the network of one of our runs."""
        return cls(setting.network(), peer, setting.settings.training, setting.null_label, setting.settings.seed)

    def step(self, batch: Batch) -> float:
        """Take a training step on one batch, and return its loss."""
        x0 = batch.x0.to(self.device)
        noise = torch.randn(x0.shape, generator=self.generator).to(self.device)
        timesteps = torch.randint(0, TIMESTEPS, (len(x0),), generator=self.generator)
        noisy = self.scheduler.add_noise(x0, noise, timesteps.to(self.device))
        levels = self.levels[timesteps].to(self.device)
        made = self.network(noisy, levels, self._condition(batch))
        if made.shape != x0.shape:  # the loss would broadcast
            raise ValueError(f"the network returns {tuple(made.shape)} for data of shape {tuple(x0.shape)}")
        loss = self._loss(made, x0, noise, timesteps.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.average.update(self.network)
        self.steps += 1
        return float(loss.detach())

    def _loss(self, made: Tensor, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        predicts_v = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(x0, noise, timesteps) if predicts_v else noise
        if self.gamma is None:
            return F.mse_loss(made, target)
        # As in the `train_text_to_image` example.
        snr = compute_snr(self.scheduler, timesteps)
        weights = snr.clamp(max=self.gamma) / (snr + 1 if predicts_v else snr)
        return ((made - target).square().flatten(1).mean(1) * weights).mean()

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


class Guided(nn.Module):
    """Classifier-free guidance of a network: its prediction moves away from that for "no class"."""

    def __init__(self, network: nn.Module, scale: float, null_label: int) -> None:
        super().__init__()
        self.network, self.scale, self.null_label = network, scale, null_label

    def forward(self, x: Tensor, levels: Tensor, labels: Tensor) -> Tensor:
        """Return the guided prediction, in the shape of x."""
        none = torch.full_like(labels, self.null_label)
        made = self.network(torch.cat([x, x]), torch.cat([levels, levels]), torch.cat([labels, none]))
        given, weak = made.chunk(2)
        return weak + self.scale * (given - weak)


@torch.no_grad()
def draw(
    network: nn.Module, scheduler: Any, initial: Tensor, labels: Tensor | None, steps: int, batch: int = 64,
    levels: Tensor | None = None, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw samples with a diffusers scheduler from the noise `initial`, and return them on the CPU.

    The network receives one of the `levels`, by default the log-SNR, of every timestep. Noise of the steps comes from
    the generator.
    """
    network.eval()
    levels = (log_snrs(scheduler) if levels is None else levels).to(initial.device)
    made = []
    for start in range(0, len(initial), batch):
        x = initial[start : start + batch]
        condition = None if labels is None else labels[start : start + batch].to(initial.device)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            predicted = network(scheduler.scale_model_input(x, timestep), levels[timestep].expand(len(x)), condition)
            x = scheduler.step(predicted, timestep, x, generator=generator).prev_sample
        made.append(x.cpu())
    return torch.cat(made)
