"""The video network R3D-18 (1711.11248), trained on Kinetics-400, from torchvision.

Published Fréchet video distances (1812.01717) are on an I3D network instead, which is distributed as TorchScript, a
program, and is not read here: distances on R3D-18 compare with one another only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from multisagd.libraries import importing
from recipes.evaluation.pretrained.weights import Published, fill, read_weights

PUBLISHED = Published("https://download.pytorch.org/models/r3d_18-b3b3357e.pth")


def load(path: Path) -> nn.Module:
    """Return the network with weights from a file, without its last layer: 512 features.

    Raises:
        RecipeError: if the file holds no weights of it.
    """
    with importing("torchvision", "r3d"):
        from torchvision.models.video import r3d_18
    network: nn.Module = r3d_18()
    fill(network, read_weights(path, PUBLISHED), path)
    network.fc = nn.Identity()
    return network


@torch.no_grad()
def features(network: nn.Module, clips: Tensor) -> Tensor:
    """Return features `(batch, 512)` of uint8 clips `(batch, 1 or 3, frames, height, width)`, scaled to 112×112."""
    from torchvision.models.video import R3D_18_Weights

    # The published preparation scales to 128×171 and crops, which would hide a third of a square picture's width.
    usual = R3D_18_Weights.KINETICS400_V1.transforms(resize_size=(112, 112))
    found: Tensor = network(usual(clips.expand(-1, 3, -1, -1, -1).transpose(1, 2).contiguous()))
    return found.cpu()
