"""Video datasets generated in memory: scikit-learn's handwritten digits in uniform motion."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from modalities.base import Batch, Dataset, Example, pair
from modalities.video import Video
from multisagd.libraries import importing
from multisagd.seeds import derive


class Tracks(NamedTuple):
    """Motion of digits: `start` is in pixels, `velocity` in pixels per second.

    `glyphs` (digits,) contains the indices of the digit images. `start` and `velocity` are float64 of shape (digits,
    2), ordered (down, right). They describe the motion of the upper left corner, ignoring the edges.
    """

    glyphs: Tensor
    start: Tensor
    velocity: Tensor


class MovingDigits(Dataset):
    """`count` clips of `digits` bouncing handwritten digits, each half as high as the shorter side of the frame.

    Each digit moves at constant velocity in a random direction, with a speed drawn uniformly from `speed`, in pixels
    per second, and is reflected by the edges; where digits overlap, the brighter pixel is shown. Positions are not
    rounded to pixels. A clip depends only on `seed` and its index. Its motion is defined in seconds, so it is the same
    at any `fps`. The modality's `resize`, `flip`, `motion` and `short` do not apply. One digit gives ten classes;
    more digits give no classes. The idea is from N. Srivastava, E. Mansimov, R. Salakhutdinov, arXiv:1502.04681,
    section 4.1, with MNIST's digits; here `modalities.image_sets.Digits` are used.

    Raises:
        ValueError: If the modality is not `Video`, count or digits is below 1, sides are below 8 pixels, or speed is
            not a non-negative range.
    """

    def __init__(
        self,
        modality: Video,
        count: int = 2000,
        digits: int = 1,
        speed: Sequence[float] = (8.0, 24.0),
        seed: int = 0,
    ) -> None:
        with importing("sklearn", "the handwritten digits"):
            from sklearn.datasets import load_digits  # takes seconds
        from torchvision.transforms.v2 import functional as TF

        if not isinstance(modality, Video):
            raise ValueError(f"moving digits are clips: modality must be a Video, got {type(modality).__name__}")
        if count < 1 or digits < 1:
            raise ValueError(f"count and digits must be at least 1, got count={count} and digits={digits}")
        if len(speed) != 2 or not 0 <= speed[0] <= speed[1] < math.inf:
            raise ValueError(
                f"speed must be [minimum, maximum] in pixels per second, such as [8, 24]; got {list(speed)}"
            )
        height, width = modality.image.sides
        if min(height, width) < 8:
            raise ValueError(f"digits need sides of at least 8 pixels to move in, got size={height}×{width}")
        self.modality: Video = modality
        self.indices: Sequence[int] = range(count)
        self.digits, self.speed, self.seed = digits, (float(speed[0]), float(speed[1])), seed
        self.side = min(height, width) // 2
        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
        self.glyphs = TF.resize(images, [self.side, self.side], TF.InterpolationMode.BICUBIC, antialias=True)
        self.glyphs = self.glyphs.clamp(0, 1)
        self.names = torch.from_numpy(labels).to(torch.int64)
        self.classes = tuple(str(digit) for digit in range(10)) if digits == 1 else None

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example (see `Dataset.example`); there is no augmentation."""
        batch = self.batch([index])
        return Example(batch.x0[0], None if batch.labels is None else int(batch.labels[0]))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch (see `Dataset.batch`); there is no augmentation."""
        positions = [index for index, _ in pair(indices, seeds)]
        outside = [index for index in positions if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"index {outside[0]} is out of range for a dataset of {len(self)} clips")
        tracks = [self.tracks(index) for index in positions]
        glyphs = torch.stack([each.glyphs for each in tracks])
        corners = self.corners(torch.stack([t.start for t in tracks]), torch.stack([t.velocity for t in tracks]))
        pixels = (self.draw(glyphs, corners) * 255).round().to(torch.uint8)
        x0 = self.modality.image.encode(pixels).unsqueeze(1).expand(-1, self.modality.channels, -1, -1, -1)
        return Batch(x0.contiguous(), self.names[glyphs[:, 0]] if self.classes else None)

    def label(self, index: int) -> int | None:
        """Return the digit that the clip at `index` shows, or None if it shows several."""
        return int(self.names[self.tracks(index).glyphs[0]]) if self.classes else None

    def tracks(self, index: int) -> Tracks:
        """Return the digits of the clip at `index` and their motion."""
        draw = random.Random(derive(self.seed, "moving digits", self.indices[index]))
        glyphs, start, velocity = [], [], []
        for _ in range(self.digits):
            glyphs.append(draw.randrange(len(self.glyphs)))
            start.append([draw.uniform(0, side - self.side) for side in self.modality.image.sides])
            speed, angle = draw.uniform(*self.speed), draw.uniform(0, 2 * math.pi)
            velocity.append([speed * math.sin(angle), speed * math.cos(angle)])
        exact = torch.float64
        return Tracks(torch.tensor(glyphs), torch.tensor(start, dtype=exact), torch.tensor(velocity, dtype=exact))

    def corners(self, start: Tensor, velocity: Tensor) -> Tensor:
        """Return the upper left corners in pixels in each frame, `(..., digits, 2) -> (..., digits, frames, 2)`.

        Reflection at both edges turns the straight line into a triangle wave between 0 and the free space.
        """
        seconds = torch.arange(self.modality.frames, dtype=torch.float64) / self.modality.fps
        line = start.unsqueeze(-2) + velocity.unsqueeze(-2) * seconds.unsqueeze(-1)
        room = torch.tensor([side - self.side for side in self.modality.image.sides], dtype=torch.float64)
        return room - (line.remainder(2 * room) - room).abs()

    def draw(self, glyphs: Tensor, corners: Tensor) -> Tensor:
        """Draw digits (batch, digits) at corners (batch, digits, frames, 2); return (batch, frames, height, width)."""
        height, width = self.modality.image.sides
        batch, digits, frames, _ = corners.shape
        # Position of each pixel's centre in the digit, from -1 at its upper left edge to 1 at its lower right edge.
        rows = (torch.arange(height) + 0.5 - corners[..., :1]) * (2 / self.side) - 1
        columns = (torch.arange(width) + 0.5 - corners[..., 1:]) * (2 / self.side) - 1
        shape = (batch, digits, frames, height, width)
        grid = torch.stack([columns.unsqueeze(-2).expand(shape), rows.unsqueeze(-1).expand(shape)], dim=-1).float()
        # A digit's frames are stacked vertically, so that one call samples all of them.
        laid = grid.reshape(batch * digits, frames * height, width, 2)
        drawn = F.grid_sample(self.glyphs[glyphs.flatten()], laid, align_corners=False)
        return drawn.reshape(shape).amax(dim=1)

    @property
    def fingerprint(self) -> str:
        """A hash of the parameters of the clips: seed, digits, speed and indices."""
        record = [self.seed, self.digits, self.speed, list(self.indices)]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these clips only."""
        part = copy.copy(self)
        part.indices = [self.indices[index] for index in indices]
        return part
