"""Which part of an example is unknown, as a user describes it: boxes on named axes, a picture, or an array.

The result is bool (1 or channels, *grid), True where values are known, as `Modality.mask` returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from modalities.array_files import open_arrays
from modalities.audio import Audio
from modalities.base import Modality
from modalities.endings import ending_of
from modalities.image import Image
from modalities.image_files import SUFFIXES, image_size
from modalities.latent import Latent
from modalities.named_arrays import named
from modalities.video import Video
from multisagd.grid import Axis

Interval = tuple[float | None, float | None]
"""The positions along an axis from the first one up to, but without, the second; None: to the end of the axis."""
Box = Mapping[str, Interval]
"""An interval for each named axis, in its unit; the other axes are covered from end to end."""
ARRAYS = (".npy", ".npz")
MASKS = (*SUFFIXES, *ARRAYS)
"""Endings of files that describe a part of an example."""
ROUNDING = 1e-6
"""Difference from a position, as a fraction of the spacing, that is a rounding error of decimal numbers."""


def known_outside(boxes: Sequence[Box], modality: Modality) -> Tensor:
    """Return which encoded values do not depend on the media in any of the boxes, bool (1, *grid).

    Raises:
        ValueError: If a box names another axis than the modality's, an interval is empty, or a box contains no sample.
    """
    if isinstance(modality, Latent):
        return modality.coarser_mask(known_outside(boxes, modality.modality))
    grid = modality.grid()
    known = torch.ones(1, *grid.shape, dtype=torch.bool)
    for box in boxes:
        if unknown := [name for name in box if name not in grid.names]:
            raise ValueError(f"there is no axis {unknown[0]!r}; the axes are {', '.join(map(_range, _with(modality)))}")
        inside = torch.ones((), dtype=torch.bool)
        for number, (axis, origin) in enumerate(_with(modality)):
            along = _within(axis, origin, box.get(axis.name, (None, None)), modality.reach.get(axis.name, 0.0))
            inside = inside & along.reshape(-1, *(1,) * (grid.dimensions - 1 - number))
        known &= ~inside
    return known


def marking_what_lacks(modality: Modality) -> Modality:
    """Return a modality that reads media shorter than its grid, and whose `mask` says what they lack.

    Sounds and clips of training may be refused, repeated or filled with silence instead (`short`).
    """
    return replace(modality, short="mask") if isinstance(modality, Audio | Video) else modality


def known_in_file(path: Path, modality: Modality) -> Tensor:
    """Return which encoded values a file marks as known, bool (1 or channels, *grid).

    A picture, for images and clips, is white where the media are unknown and black where they are known; it is cropped
    and scaled like them, and is the same for all frames. An array (.npy, or .npz with one array) has the shape of the
    grid, with a first dimension of the channels if they differ, and is not 0 where the data are unknown.

    Raises:
        ValueError: If the file is damaged or of another kind, or its size is another.
    """
    if isinstance(modality, Latent):
        return modality.coarser_mask(known_in_file(path, modality.modality))
    if ending_of(path.name, ARRAYS):
        return _known_in_array(path, modality)
    if not ending_of(path.name, SUFFIXES):
        raise ValueError(f"its ending is none of {', '.join(MASKS)}")
    if not isinstance(modality, Image | Video):
        shape = " × ".join(map(str, modality.grid().shape))
        raise ValueError(f"a picture describes images and clips: use a .npy file of shape {shape}, or intervals")
    image = modality if isinstance(modality, Image) else modality.image
    grey = Image(image.size, 1, image.resize, max_pixels=image.max_pixels).load(path)
    known = (grey < 128).reshape(1, *(1,) * (modality.grid().dimensions - 2), *image.sides)
    return known.expand(1, *modality.grid().shape)


def check_same_place(mask: Path, media: Path | None, modality: Modality) -> None:
    """Check that a picture of what is unknown is cropped like the media in a file: it has their size, or the grid's.

    Without a file, the media have the size of the grid already.

    Raises:
        ValueError: If it has another size, or a size cannot be read.
    """
    if isinstance(modality, Latent):
        return check_same_place(mask, media, modality.modality)
    if not isinstance(modality, Image | Video) or not ending_of(mask.name, SUFFIXES):
        return None
    size, samples = image_size(mask, modality.max_pixels), modality.grid().shape[-2:]
    if media is None:
        if size != samples:
            raise ValueError(
                f"it has {size[1]} × {size[0]} pixels, but the samples have {samples[1]} × {samples[0]}: draw it in "
                "their size, because the media are not files of the same size"
            )
        return None
    extent = modality.extent(media)
    if size not in ((extent.height, extent.width), samples):
        theirs, own = f"{extent.width} × {extent.height}", f"{size[1]} × {size[0]}"
        raise ValueError(
            f"it has {own} pixels, but {media} has {theirs}: they would be cropped at different places. Draw it in the "
            "size of the media, or of the samples"
        )
    return None


def _known_in_array(path: Path, modality: Modality) -> Tensor:
    grid = modality.grid().shape
    with open_arrays(path) as file:
        if len(file.arrays) != 1:
            raise ValueError(f"it must contain one array, but has {named(file.arrays)}")
        array = next(iter(file.arrays.values()))
        if array.is_text or array.shape not in (grid, (1, *grid), (modality.channels, *grid)):
            raise ValueError(
                f"its array must contain numbers of shape {grid}, or {(modality.channels, *grid)} if channels differ, "
                f"got {array.shown}"
            )
        values = torch.from_numpy(array.read().astype("float64"))
    return (values == 0).reshape(-1, *grid)


def _with(modality: Modality) -> list[tuple[Axis, float]]:
    """Return the axes of a modality, each with the position of its first sample."""
    return [(axis, modality.origins.get(axis.name, 0.0)) for axis in modality.grid().axes]


def _range(placed: tuple[Axis, float]) -> str:
    axis, origin = placed
    return f"{axis.name} from {origin:g} to {origin + axis.size * axis.spacing:g} {axis.unit}"


def _within(axis: Axis, origin: float, interval: Interval, reach: float) -> Tensor:
    """Return which samples (size,) of an axis lie in an interval, or depend on it.

    Raises:
        ValueError: If it is empty, or contains no sample.
    """
    positions = torch.arange(axis.size, dtype=torch.float64)
    low, high = ((each - origin) / axis.spacing if each is not None else None for each in interval)
    if low is not None and high is not None and not low < high:
        raise ValueError(f"{axis.name}=[{interval[0]:g},{interval[1]:g}] is empty: the second number must be larger")
    first = -float("inf") if low is None else low - ROUNDING
    end = float("inf") if high is None else high - ROUNDING
    within, margin = (positions >= first) & (positions < end), reach / axis.spacing
    if margin:
        within |= (positions > first - margin) & (positions < end + margin)
    if not bool(within.any()):
        shown = ",".join("null" if each is None else f"{each:g}" for each in interval)
        raise ValueError(f"{axis.name}=[{shown}] contains no sample; the axis is {_range((axis, origin))}")
    return within
