"""Embed the noise level, the class and scalars, which are inputs of a network in addition to the noisy sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_PERIOD = 80.0
SHORTEST_PERIOD = 1.0
SCALAR_PERIODS = (32.0, 0.5)
"""Longest and shortest period of the features of scalars, which have a deviation of about 1."""


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


class ScalarEmbedding(nn.Module):
    """Embed numbers such as a duration as one vector per sample: (batch, scalars) -> (batch, width).

    Each number is represented by sines and cosines, as in SDXL (arXiv 2307.01952, section 2.2); NaN, which means
    unknown, is represented by learned features. Numbers should have a deviation of about 1.

    Raises:
        ValueError: If `scalars` is below 1; from `forward`, if the numbers have the wrong shape or dtype.
    """

    def __init__(self, scalars: int, width: int, features: int = 32) -> None:
        super().__init__()
        if scalars < 1:
            raise ValueError(f"scalars must be at least 1, or None for a network without scalars; got {scalars}")
        self.scalars, self.periods = scalars, features // 2
        self.unknown = nn.Parameter(nn.init.normal_(torch.empty(scalars, features), std=0.5**0.5))
        self.mlp = nn.Sequential(nn.Linear(scalars * features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor | None, batch: int) -> Tensor:
        """Return the embedding (batch, width) of dimensionless numbers (batch, scalars); None means all unknown."""
        if values is None:
            return self.mlp(self.unknown.expand(batch, -1, -1).flatten(1))
        if values.shape != (batch, self.scalars) or not values.is_floating_point():
            raise ValueError(
                f"the scalars of a condition must be float of shape ({batch}, {self.scalars}); "
                f"got {values.dtype} of shape {tuple(values.shape)}"
            )
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        longest, shortest = SCALAR_PERIODS
        fraction = torch.linspace(0, 1, self.periods, dtype=wide.dtype, device=wide.device)
        phase = wide[..., None] * (2 * math.pi / (longest * (shortest / longest) ** fraction))
        features = torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.unknown.dtype)
        return self.mlp(torch.where(values[..., None].isnan(), self.unknown, features).flatten(1))


class Conditioning(nn.Module):
    """Embed noise level, class label and scalars as one vector per sample, (batch, width).

    Labels (batch,) run from 0 to `classes - 1`; the label `classes` is the null label, which means "no class", and
    `None` applies it to the whole batch. So one network serves both sides of classifier-free guidance (2207.12598).
    `scalars` is the number of scalars of a sample (see `ScalarEmbedding`).

    Raises:
        ValueError: From `forward`, if the log-SNR is not (batch,), labels have the wrong shape or dtype or are out of
            range, or a part of the condition is given that the network does not have. The range is checked on the CPU
            only and outside compiled graphs: reading values back from an accelerator would stall every step, and there
            the lookup itself fails with a device-side assertion.
    """

    def __init__(
        self, width: int, classes: int | None = None, features: int = 64, scalars: int | None = None
    ) -> None:  # fmt: skip
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
        self.scalars = None if scalars is None else ScalarEmbedding(scalars, width)

    def forward(self, log_snr: Tensor, labels: Tensor | None = None, scalars: Tensor | None = None) -> Tensor:
        """Return features `(batch, width)` for log-SNRs and labels `(batch,)` and scalars `(batch, scalars)`."""
        if log_snr.ndim != 1:
            raise ValueError(f"log_snr must have shape (batch,), got {tuple(log_snr.shape)}")
        embedding = self.mlp(self.features(log_snr).to(self.mlp[0].weight.dtype))
        if self.scalars is not None:
            embedding = embedding + self.scalars(scalars, len(log_snr))
        elif scalars is not None:
            raise ValueError("this network takes no scalars, but got some: build it with scalars=N")
        if self.labels is None or self.classes is None:
            if labels is not None:
                raise ValueError("this network takes no classes, but got labels: build it with classes=N")
            return embedding
        if labels is None:
            labels = torch.full(log_snr.shape, self.classes, device=log_snr.device)
        else:
            check_labels(labels, len(log_snr), self.classes)
        return embedding + self.labels(labels)


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
