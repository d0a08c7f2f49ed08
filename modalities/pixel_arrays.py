"""Images in files of arrays: (examples, height, width), with a dimension of 1 or 3 channels after them or before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modalities.base import UnusableFileError
from modalities.field_layout import Placement, Source, listed_arrays
from modalities.image import Image
from modalities.named_arrays import ArrayFile

CHANNELS = (1, 3)


def place_images(file: ArrayFile, name: str | None, modality: Image) -> Placement:
    """Find the images in a file: in the array `name`, or in the only one of at least three dimensions.

    The axes of the returned placement are channels, height and width, or height and width only.

    Raises:
        UnusableFileError: If there is no such array, or there are several, or its values are not uint8 and the
            modality does not state their black and white levels.
    """
    found = [file.array(name)] if name is not None else [each for each in file.data() if len(each.shape) in (3, 4)]
    if len(found) != 1 or len(found[0].shape) not in (3, 4):
        raise UnusableFileError(
            "images are in an array (examples, height, width) or (examples, height, width, channels): set data.array "
            f"to its name; the file has {listed_arrays(file)}"
        )
    array = found[0]
    if (modality.black is None or modality.white is None) and array.dtype != np.uint8:
        raise UnusableFileError(
            f"its images have values of the type {array.dtype}, whose black and white are not known: set "
            "modality.black and modality.white, for example to 0 and 1"
        )
    if len(array.shape) == 3:
        axes: tuple[int, ...] = (1, 2)
    elif array.shape[3] in CHANNELS:
        axes = (3, 1, 2)
    elif array.shape[1] in CHANNELS:
        axes = (1, 2, 3)
    else:
        raise UnusableFileError(f"its array {array.shown} has neither 1 nor 3 channels")
    return Placement((Source(array, axes, (0,)),), tuple(array.shape[where] for where in axes), (array.shape[0],), ())


def pixels_of(modality: Image, placement: Placement, example: int, seed: int | None) -> Tensor:
    """Return one image as uint8 pixels of the size and channels of the modality, cropped and mirrored by the seed.

    Raises:
        ValueError: If values are not finite, or there are too many pixels.
    """
    (source,) = placement.sources
    array, axes = source.array, source.axes
    height, width = (array.shape[where] for where in axes[-2:])
    if height * width > modality.max_pixels:
        raise UnusableFileError(f"{width}×{height} pixels exceed max_pixels={modality.max_pixels}")
    index = [slice(0, size) for size in array.shape]
    index[0] = slice(example, example + 1)
    values = array.read(tuple(index))[0].transpose([where - 1 for where in axes])
    pixels = torch.from_numpy(_levelled(modality, values).reshape(-1, height, width))
    if len(pixels) != modality.channels:
        pixels = _recoloured(pixels, modality.channels)
    return modality.mirror(modality.fit(pixels, seed), seed)


def _levelled(modality: Image, values: np.ndarray) -> np.ndarray:
    """Return values as uint8, in which the levels that the modality states for black and white are 0 and 255."""
    if modality.black is None or modality.white is None:
        return np.ascontiguousarray(values)
    if not np.isfinite(values).all():
        raise UnusableFileError("it has pixels that are not finite (NaN or infinity)")
    grey = (values.astype(np.float64) - modality.black) * (255 / (modality.white - modality.black))
    return grey.round().clip(0, 255).astype(np.uint8)


def _recoloured(pixels: Tensor, channels: int) -> Tensor:
    """Return grey pixels in three equal channels, or the luminance of coloured ones in one."""
    if channels == 3:
        return pixels.expand(3, *pixels.shape[1:])
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    return rgb_to_grayscale(pixels)
