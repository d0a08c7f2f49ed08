"""Embed the noise level and the class, which are inputs of a network in addition to the noisy sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_PERIOD = 80.0
SHORTEST_PERIOD = 1.0


class NoiseLevelFeatures(nn.Module):
    """Compute sines and cosines of the log-SNR at fixed frequencies: (batch,) -> (batch, features).

    Periods decrease geometrically from 80 to 1 in units of log-SNR. Over [-20, 20] the longest sine covers only half a
    period, so it is monotone and all levels have distinct features. The shortest advances by 36° in a step of 0.1, so
    neighbouring levels are distinguishable. The features are at least float32, for any dtype of the weights: half
    precision would round the phase itself.

    Raises:
        ValueError: If `features` is odd or below 4.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 4 or features % 2:
            raise ValueError(f"the number of noise-level features must be even and at least 4, got {features}")
        self.periods = features // 2

    def forward(self, log_snr: Tensor) -> Tensor:
        """Return the features `(batch, features)` of log-SNRs `(batch,)`, at least in float32."""
        wide = torch.promote_types(log_snr.dtype, torch.float32)
        # Computed here and not stored as a buffer: `.to(torch.bfloat16)` would round a buffer with the weights, so that
        # a trained network would see different noise levels; building a network on the meta device would lose it.
        fraction = torch.linspace(0, 1, self.periods, dtype=wide, device=log_snr.device)
        periods = LONGEST_PERIOD * (SHORTEST_PERIOD / LONGEST_PERIOD) ** fraction
        phase = log_snr.to(wide)[:, None] * (2 * math.pi / periods)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class Conditioning(nn.Module):
    """Embed noise level and class label as one vector per sample: (batch,) and (batch,) or None -> (batch, width).

    Labels run from 0 to `classes - 1`; the label `classes` is the null label, which means "no class", and `None`
    applies it to the whole batch. So one network serves both sides of classifier-free guidance (2207.12598).

    Raises:
        ValueError: From `forward`, if the log-SNR is not (batch,), labels have the wrong shape or dtype or are out of
            range, or the network has no classes but labels are given. The range is checked on the CPU only and outside
            compiled graphs: reading values back from an accelerator would stall every step, and there the lookup itself
            fails with a device-side assertion.
    """

    def __init__(self, width: int, classes: int | None = None, features: int = 64) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be at least 1, or None for a network without classes; got {classes}")
        self.classes = classes
        self.features = NoiseLevelFeatures(features)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.labels: nn.Embedding | None = None
        if classes is not None:
            self.labels = nn.Embedding(classes + 1, width)
            # As large as other features, at every width: with a deviation of 0.02, as in DiT, classes have an effect
            # only after tens of thousands of steps.
            nn.init.normal_(self.labels.weight, std=1.0)

    def forward(self, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the embedding of log-SNRs `(batch,)` and conditions, features `(batch, width)`."""
        if log_snr.ndim != 1:
            raise ValueError(f"log_snr must have shape (batch,), got {tuple(log_snr.shape)}")
        embedding = self.mlp(self.features(log_snr).to(self.mlp[0].weight.dtype))
        if self.labels is None or self.classes is None:
            if condition is not None:
                raise ValueError(
                    "this network takes no condition, but got one: build it with classes=N, or context=WIDTH for text"
                )
            return embedding
        if condition is None:
            condition = torch.full(log_snr.shape, self.classes, device=log_snr.device)
        else:
            check_labels(condition, len(log_snr), self.classes)
        return embedding + self.labels(condition)


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Check labels for a network with `classes` classes: integers (batch,), where `classes` means no class.

    Their range is checked on the CPU only and outside compiled graphs.

    Raises:
        ValueError: If the labels are invalid.
    """
    if labels.shape != (batch,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"condition must be integer labels of shape ({batch},), one per sample; "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels[(labels < 0) | (labels > classes)]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])} is out of range: this network has labels 0 to {classes - 1}, "
                f"and {classes} for no class"
            )
