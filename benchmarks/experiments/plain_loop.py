"""Our default recipe as a plain PyTorch loop: another implementation of the same training with white noise.

Only the network with its initial weights, the data in their order and the mean of the data come from a run; process,
noise, times, dual prediction, loss, optimiser, decay and average are written here once more, with random numbers of
their own. The run that it leaves can be judged like any other. A difference between the two would mean that one of the
implementations is wrong, or that the comparison finds effects that do not exist.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.setting import Setting
from benchmarks.runs import train_run
from modalities.base import Batch
from recipes.runs.checkpoint import Checkpoints, State, samples_of

LIMIT = 20.0
"""Largest absolute log-SNR."""
MEAN, SCALE = 0.0, 1.5
"""Mean and scale of the Laplace distribution of log-SNRs (arXiv 2407.03297)."""
GAMMA = 5.0
"""Largest weight of the error of x0, which otherwise is SNR + 1 (arXiv 2303.09556)."""


def log_snrs(batch: int, generator: torch.Generator) -> Tensor:
    """Draw log-SNRs `(batch,)`, one from each of as many quantiles of their distribution, in random order."""
    strata = torch.randperm(batch, generator=generator)
    centered = (strata + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch - 0.5
    drawn = MEAN - SCALE * centered.sign() * torch.log(1 - 2 * centered.abs())
    return drawn.clamp(-LIMIT, LIMIT).float()


def loss(network: nn.Module, centered: Tensor, noise: Tensor, log_snr: Tensor, labels: Tensor) -> Tensor:
    """Return the weighted error of v for data `(batch, channels, height, width)` about their mean, a scalar.

    The network returns v, x0 and the logit with which the v that follows from its x0 is mixed in (arXiv 2203.04304).
    """
    alpha, sigma = (torch.sigmoid(each).sqrt().reshape(-1, 1, 1, 1) for each in (log_snr, -log_snr))
    noisy = alpha * centered + sigma * noise
    v, x0, logit = network(noisy, log_snr, labels).chunk(3, dim=1)
    weight = torch.sigmoid(logit + sigma.log())
    mixed = (1 - weight) * v + weight * (alpha * noisy - x0) / sigma
    error = (mixed - (alpha * noise - sigma * centered)).square().mean((1, 2, 3))
    # The error of x0 is that of v times σ, and 1/σ² = SNR + 1.
    return (error * (GAMMA * torch.sigmoid(-log_snr)).clamp(max=1)).mean()


def optimizer_of(network: nn.Module, rate: float, betas: tuple[float, float], decay: float) -> torch.optim.Optimizer:
    """Return AdamW, which decays matrices and kernels but neither norms, biases nor class embeddings."""
    kernels, others = list[nn.Parameter](), list[nn.Parameter]()
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    for parameter in network.parameters():
        (kernels if parameter.ndim > 1 and id(parameter) not in embeddings else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, betas, weight_decay=decay)


def exponent(width: float) -> float:
    """Return γ of an average in which step i has a weight in proportion to i^γ (arXiv 2312.02696, Eq. 123)."""
    inverse = width**-2
    return float(max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))


def train(setting: Setting, mean: Tensor, checkpoints: Checkpoints, interval: int) -> None:
    """Train the network of a run on its data, whose mean is `(channels, height, width)`, and save checkpoints.

    They are saved at the end, and at the first step at or after every multiple of `interval` samples.
    """
    options, network = setting.settings.training, setting.network().train()
    generator = torch.Generator().manual_seed(1_000_003 * (setting.settings.seed + 1))
    optimizer = optimizer_of(network, options.learning_rate, options.betas, options.weight_decay)
    averaged, gamma = copy.deepcopy(network).requires_grad_(False), exponent(options.ema)
    seen = 0
    for step, batch in enumerate(setting.batches(), 1):
        rate = options.learning_rate * (1 - seen / options.samples)
        rate *= min(1.0, (seen + options.batch) / options.warmup) if options.warmup else 1.0
        for group in optimizer.param_groups:
            group["lr"] = rate
        noise = torch.randn(batch.x0.shape, generator=generator)
        levels = log_snrs(len(batch.x0), generator)
        labels = _dropped(batch, options.condition_dropout, setting.null_label, generator)
        loss(network, batch.x0 - mean, noise, levels, labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(averaged.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, 1 - (1 - 1 / step) ** (gamma + 1))
        before, seen = seen, seen + options.batch
        if seen >= options.samples or seen // interval > before // interval:
            checkpoints.save(State(seen, _parts(network, averaged)))


def _dropped(batch: Batch, fraction: float, null: int | None, generator: torch.Generator) -> Tensor:
    """Return the labels of a batch, a random fraction of them replaced by the label for no class."""
    if batch.labels is None or null is None:
        raise ValueError("the plain loop trains on data with classes only")
    return batch.labels.masked_fill(torch.rand(len(batch.labels), generator=generator) < fraction, null)


def _parts(network: nn.Module, averaged: nn.Module) -> Mapping[str, Mapping[str, Tensor]]:
    weights = {f"module.{name}": each for name, each in averaged.state_dict().items()}
    return {"network": network.state_dict(), "ema": weights}


def train_plain(run_dir: Path, arguments: list[str], threads: int) -> None:
    """Train as `benchmarks.runs.train_run` does, with the plain loop; interrupted training starts over.

    One step of our own training creates the run, with the same data, statistics and classes.
    """
    setting, checkpoints = Setting.of(arguments, threads), Checkpoints(run_dir / "checkpoints")
    options, interval = setting.settings.training, setting.settings.every.checkpoint
    if any(samples_of(each) >= options.samples for each in checkpoints.folders()):
        return
    shutil.rmtree(run_dir, ignore_errors=True)
    train_run(run_dir, [*arguments, f"engine.threads={threads}", f"training.samples={options.batch}"])
    mean = setting.assembly.statistics.mean.float()
    train(setting, mean, replace(checkpoints, keep=1, keep_every=interval), interval)
