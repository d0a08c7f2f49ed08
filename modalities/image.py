"""Conversion of image files to tensors (channels, height, width) of one size, with values in [-1, 1], and back.

The grid is in pixels, so frequencies are in cycles per pixel, and power laws are flat below 1/256 cycles per pixel.
In memory, an image is a uint8 tensor of shape (channels, height, width); colour profiles are not applied.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from modalities.augmentation import IMAGES, Augmentation
from modalities.base import Modality
from modalities.image_files import SUFFIXES, Levels, Reading, image_size, read_image
from modalities.scalars import record
from modalities.sizes import Extent, check_buckets, check_filters, equal_areas, nearest_aspect, outside
from multisagd.grid import Grid
from multisagd.libraries import check
from multisagd.seeds import derive


@dataclass(frozen=True)
class Image(Modality):
    """Images of one `size`, the side of a square or (height, width), with 1 channel (greyscale) or 3 (RGB).

    `resize` determines how images of other sizes are resized, always bicubically with antialiasing:
    - "crop" cuts out the largest window of the right aspect ratio, at random if there is a seed, and scales it;
    - "center" always takes the middle;
    - "stretch" scales the whole image and may change its aspect ratio;
    - "pad" scales down images that are too large, never up, and centres them on black: 28×28 on 32×32 keeps all pixels.

    `flip` mirrors images left to right with probability one half if there is a seed. Transparent pixels are composited
    on white. Files with more than `max_pixels` are refused before they are decoded. `black` and `white` are the values
    of pixels that are black and white in files with one channel, such as -1000 and 2000 in a scan; None: those that the
    file's format declares (see `modalities.image_files`).

    `buckets` trains one network on several sizes: each image is resized to that of the sizes, of which `size` must be
    one, whose aspect ratio is nearest to its own. They are listed, or only counted: then they have about the area of
    `size`, and aspect ratios up to `max_aspect` (see `modalities.sizes`). Images whose shorter side is below `min_size`
    pixels, or whose longer side is more than `max_aspect` times the shorter one, are not used.

    `augment` changes training images by transforms of torchvision, in this order (see `modalities.augmentation`).

    Raises:
        BrokenLibraryError: If Pillow or torchvision cannot be imported.
        ValueError: If a size is below 1, `size` is not one of the buckets, channels is not 1 or 3, `resize` is unknown,
            only one of `black` and `white` is given, they are equal, or `augment` is invalid.
    """

    size: int | Sequence[int] = 32
    channels: int = 3
    resize: Literal["crop", "center", "stretch", "pad"] = "crop"
    flip: bool = False
    max_pixels: int = 64_000_000
    black: float | None = None
    white: float | None = None
    buckets: int | Sequence[int | Sequence[int]] | None = None
    min_size: int | None = None
    max_aspect: float | None = None
    augment: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for module in ("PIL.Image", "torchvision.transforms.v2"):
            check(module, "images")
        object.__setattr__(self, "size", _sides(self.size, "size"))
        check_filters(self.min_size, self.max_aspect)
        object.__setattr__(self, "augment", tuple(self.augment))
        if isinstance(self.buckets, int):
            object.__setattr__(self, "buckets", equal_areas(self.sides, self.buckets, self.max_aspect))
        elif self.buckets is not None:
            sizes = dict.fromkeys(_sides(size, "each of buckets") for size in self.buckets)
            check_buckets(len(sizes), self.sides in sizes, "size", list(self.sides))
            object.__setattr__(self, "buckets", tuple(dict.fromkeys([self.sides, *sizes])))
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (greyscale) or 3 (RGB), got {self.channels}")
        if self.resize not in ("crop", "center", "stretch", "pad"):
            raise ValueError(f"resize must be one of crop, center, stretch, pad; got {self.resize!r}")
        if (self.black is None) != (self.white is None) or (self.black is not None and self.black == self.white):
            raise ValueError(
                f"black and white must be two different values, or both null, got {self.black} and {self.white}"
            )
        if self.augment:
            self.augmentation  # noqa: B018 - refuses invalid transforms here, not at the first example
            if self.buckets is not None:
                self.in_buckets()

    @cached_property
    def augmentation(self) -> Augmentation:
        """The transforms that `augment` describes."""
        return Augmentation(IMAGES, self.augment, (self.channels, *self.sides))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read."""
        return SUFFIXES

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        assert isinstance(self.size, tuple)
        return self.size

    def grid(self) -> Grid:
        """Return the grid (height, width), 1 pixel apart."""
        height, width = self.sides
        return Grid.of(height=(height, 1.0, "pixel"), width=(width, 1.0, "pixel"))

    @property
    def scalars(self) -> Mapping[str, str]:
        """Height and width of the file, and the position of the crop in the scaled image, which has `size` or more."""
        return dict.fromkeys(("height", "width", "crop_top", "crop_left"), "pixel")

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The setting that determines the size of the grid."""
        return ("size",)

    @property
    def sorts_files(self) -> bool:
        """Whether files are sorted into buckets, or some are omitted, by their sizes."""
        return any(each is not None for each in (self.buckets, self.min_size, self.max_aspect))

    @property
    def bucket_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket, `size` first; without buckets only `size`."""
        return self.buckets if isinstance(self.buckets, tuple) else (self.sides,)

    def in_buckets(self) -> tuple[Self, ...]:
        """Return this modality at the size of each bucket, its own size first."""
        return tuple(self.at(size=size) for size in self.bucket_sizes)

    def extent(self, path: Path) -> Extent:
        """Return the height and width of an image file, upright, without decoding it.

        Raises:
            ValueError: If the file is empty, damaged or has too many pixels.
        """
        height, width = image_size(path, self.max_pixels)
        return Extent(height, width)

    def bucket_of(self, extent: Extent) -> int:
        """Return the index of the bucket whose aspect ratio is nearest to that of a file."""
        return nearest_aspect(extent, self.bucket_sizes)

    def omitted(self, extent: Extent) -> str | None:
        """Return the setting, such as `min_size=64`, because of which a file is not used, or None if it is used."""
        return outside(extent, self.min_size, self.max_aspect)

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        """Return one image file, or its first frame, as uint8 of shape (channels, height, width).

        Raises:
            ValueError: If the file is empty or damaged, has more than `max_pixels`, or has pixel values without a
                declared white level.
        """
        return self.augmentation(self.mirror(self.fit(self.read(path), seed), seed), seed)

    def read(self, path: Path) -> Tensor:
        """Read one image file at its original size, upright, with the channels of this modality.

        Raises the same errors as `load`.
        """
        levels = None if self.black is None or self.white is None else Levels(self.black, self.white)
        # At twice the target size, `fit` still does the filtering.
        reading = Reading("L" if self.channels == 1 else "RGB", self.max_pixels, 2 * max(self.sides), levels)
        pixels = torch.from_numpy(read_image(path, reading))
        return pixels.reshape(*pixels.shape[:2], self.channels).permute(2, 0, 1).contiguous()

    def fit(self, pixels: Tensor, seed: int | None = None) -> Tensor:
        """Resize uint8 pixels (..., channels, any height, any width) to `size`, as `resize` requires."""
        from torchvision.transforms.v2.functional import center_crop

        height, width = self.sides
        high, wide = pixels.shape[-2:]
        if self.resize == "stretch":
            return _scale(pixels, height, width)
        if self.resize == "pad":
            shrink = min(1.0, height / high, width / wide)
            pixels = _scale(pixels, max(1, round(high * shrink)), max(1, round(wide * shrink)))
            return center_crop(pixels, [height, width])
        # The window is cut before scaling: a 1 × 60,000,000 image scaled first would need terabytes.
        window = (max(1, min(high, round(wide * height / width))), max(1, min(wide, round(high * width / height))))
        spare = (high - window[0], wide - window[1])
        if seed is None or self.resize == "center":
            top, left = spare[0] // 2, spare[1] // 2
        else:
            rng = random.Random(derive(seed, "crop"))
            top, left = rng.randint(0, spare[0]), rng.randint(0, spare[1])
        record(crop_top=top * height / window[0], crop_left=left * width / window[1])
        return _scale(pixels[..., top : top + window[0], left : left + window[1]], height, width)

    def mirror(self, pixels: Tensor, seed: int | None) -> Tensor:
        """Mirror pixels left to right if `flip` is set, for half of the seeds."""
        return pixels.flip(-1) if self.flip and seed is not None and derive(seed, "flip") % 2 else pixels

    def encode(self, media: Tensor) -> Tensor:
        """Convert uint8 pixels of any shape to float32, mapping 0 to -1 and 255 to 1."""
        return media.to(torch.float32) / 127.5 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """Convert values in [-1, 1] to uint8 pixels by clipping and rounding: the exact inverse of `encode`.

        Raises:
            ValueError: If a value is not finite.
        """
        if not bool(torch.isfinite(x0).all()):
            raise ValueError("the image to decode has values that are not finite: sampling or training diverged")
        return ((x0.detach().to("cpu", torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def save(self, media: Tensor, path: Path) -> None:
        """Write uint8 pixels (channels, height, width) as PNG, which is lossless.

        Raises:
            ValueError: If the path does not end in .png.
        """
        from torchvision.transforms.v2.functional import to_pil_image

        if path.suffix.lower() != ".png":
            raise ValueError(f"images are written as PNG: {path} must end in .png")
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(media).save(path, format="PNG")

    def save_grid(
        self, media: Sequence[Tensor], path: Path, columns: int | None = None, *, names: Sequence[str] | None = None
    ) -> None:
        """Write several images of one size as one PNG, row by row, in a square unless `columns` is given.

        Images with a side below 64 pixels are enlarged by a whole factor with nearest-neighbour scaling.
        `names` are written below the images, cropped to their width.

        Raises:
            ValueError: If there are no images, or the path does not end in .png.
        """
        from torchvision.utils import make_grid

        if len(media) == 0:
            raise ValueError(f"a grid needs at least one image, got none for {path}")
        columns = columns or math.ceil(math.sqrt(len(media)))
        images = torch.stack(list(media))
        factor = max(1, 64 // max(images.shape[-2:]))
        images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
        if names is not None:
            from modalities.figures import name_strip  # the font comes with matplotlib

            lines = torch.stack([name_strip(name, images.shape[-1]) for name in names])
            images = torch.cat([images, lines.expand(-1, images.shape[1], -1, -1)], dim=-2)
        self.save(make_grid(images, nrow=columns, padding=2, pad_value=128), path)


def _sides(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return a size as height and width. Raises ValueError if it is invalid."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(int(side) != side or side < 1 for side in sides):
        raise ValueError(
            f"{name} must be a positive integer or a pair (height, width) of positive integers, got {size}"
        )
    return int(sides[0]), int(sides[1])


def _scale(pixels: Tensor, height: int, width: int) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    if pixels.shape[-2:] == (height, width):
        return pixels
    # In float32, because the uint8 kernel rounds differently on different processors and fails on 1×1 results.
    scaled = resize(pixels.float(), [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)
