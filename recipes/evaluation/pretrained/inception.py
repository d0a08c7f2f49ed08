"""The Inception network of FID (1706.08500) as torch-fidelity has it, which torchmetrics uses too."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from multisagd.libraries import importing
from recipes.base.errors import RecipeError
from recipes.evaluation.pretrained.weights import Published, read_weights

PUBLISHED = Published(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
BLOCKS = ("2048", "768")
"""Features compared: the last, and the averaged ones of an earlier block, which fewer items suffice for."""


def load(path: Path) -> nn.Module:
    """Return the network with weights from a file, giving features `(batch, …)` of each of `BLOCKS` for uint8 images.

    Raises:
        RecipeError: if the file holds no weights of it.
    """
    with importing("torch_fidelity", "inception"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = read_weights(path, PUBLISHED)
    # Its own loader unpickles whatever a file holds, so that it is given one that was just written from tensors.
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"
        torch.save(tensors, safe)
        try:
            network: nn.Module = FeatureExtractorInceptionV3("inception", list(BLOCKS), str(safe))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"the weights in {path} are not those of FID's Inception: {reason:.300}") from error
    return network


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return features of uint8 images `(batch, 1 or 3, height, width)`, `(batch, 2048)` and `(batch, 768)`."""
    found: tuple[Tensor, ...] = network(images.expand(-1, 3, -1, -1))
    return tuple(each.cpu() for each in found)
