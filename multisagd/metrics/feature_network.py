"""Define a classifier whose last hidden layer provides features for comparing data on grids of 1, 2 or 3 dimensions.

It is small enough to be trained on the data that are compared, so no pretrained network is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class FeatureNetwork(nn.Module):
    """Classify data in 1 to 3 dimensions with convolutions, a mean over the grid, and standardised features."""

    def __init__(self, channels: int, dimensions: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[dimensions], NORMS[dimensions]
        layers: list[nn.Module] = []
        for width_in, width in zip((channels, *widths), widths, strict=False):
            layers += [convolution(width_in, width, 3, stride=2, padding=1, bias=False), norm(width), nn.ReLU()]
            layers += [convolution(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
        self.stages = nn.Sequential(*layers)
        # Without learned scale and shift, every feature has zero mean and unit variance on the training data:
        # distances are then in standard deviations, whatever the training run.
        self.standardise = nn.BatchNorm1d(widths[-1], affine=False)
        self.classifier = nn.Linear(widths[-1], classes)
        # On the CPU the convolutions run 1.5 times faster in this layout.
        if dimensions == 2:
            self.to(memory_format=torch.channels_last)

    def forward(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(batch, widths[-1])` and logits `(batch, classes)` of data `(batch, channels, *grid)`."""
        features = self.standardise(self.stages(x0).flatten(2).mean(2))
        return features, self.classifier(features)


class ClassifierOutputs(NamedTuple):
    """The classifier's `features` (count, dimensions), its `predictions` (count,), and the true `labels` if known."""

    features: Tensor
    predictions: Tensor
    labels: Tensor | None

    def accuracy(self) -> float:
        """Return the fraction of items whose prediction equals their label.

        Raises:
            ValueError: If there are no labels.
        """
        if self.labels is None:
            raise ValueError("these items have no labels, so there is no accuracy")
        return float((self.predictions == self.labels).double().mean())


@torch.no_grad()
def read_samples(
    network: FeatureNetwork, x0: Tensor, labels: Tensor | None = None, batch: int = 500
) -> ClassifierOutputs:
    """Run the classifier on data `(count, channels, *grid)`; the true `labels` are class indices `(count,)`."""
    outputs = [network.eval()(part) for part in x0.float().split(batch)]
    return ClassifierOutputs(
        torch.cat([features for features, _ in outputs]),
        torch.cat([logits for _, logits in outputs]).argmax(1),
        labels,
    )
