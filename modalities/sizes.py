"""Sizes of files as their headers state them, and the rules that sort files into buckets of one size or omit them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

MAX_BUCKETS = 32
"""Maximum number of buckets of a modality: each has its own batches, and its own compiled graph."""
STEP = 8
"""Sides of automatic sizes are multiples of this number of pixels."""
SPREAD = 2.0
"""Largest aspect ratio of automatic sizes, unless `max_aspect` is set."""


class Extent(NamedTuple):
    """The size of a file: height and width of the upright picture in pixels, and duration in seconds.

    A part is None if the medium does not have it, or if the header cannot be read.
    """

    height: float | None = None
    width: float | None = None
    seconds: float | None = None


def check_buckets(count: int, known: bool, setting: str, own: object) -> None:
    """Check the number of buckets, and that the size of the reference, the modality's `setting`, is `known` in them.

    Raises:
        ValueError: If there are too few or too many buckets, or the modality's own size is not one of them.
    """
    if not 2 <= count <= MAX_BUCKETS:
        raise ValueError(f"buckets must be 2 to {MAX_BUCKETS} different sizes, got {count}; null trains on one size")
    if not known:
        raise ValueError(
            f"{setting}={own} is not one of the buckets: set it to the one on which samples are drawn unless another "
            "size is requested, or add it to buckets"
        )


def equal_areas(size: tuple[int, int], count: int, max_aspect: float | None) -> tuple[tuple[int, int], ...]:
    """Return `count` sizes (height, width), `size` first, with about its area and evenly spread aspect ratios.

    Ratios are from 1:`max_aspect` to `max_aspect`:1, by default 2, at equal factors; sides are multiples of 8 pixels.
    The size nearest to `size` in its ratio is replaced by `size` itself.

    Raises:
        ValueError: If some of these sizes would be equal.
    """
    check_buckets(count, True, "size", size)
    widest = math.log(SPREAD if max_aspect is None else max_aspect)
    ratios = [math.exp(widest * (2 * number / (count - 1) - 1)) for number in range(count)]
    own = size[0] / size[1]
    ratios.remove(min(ratios, key=lambda ratio: abs(math.log(ratio / own))))
    side = math.sqrt(size[0] * size[1])
    others = [(_multiple(side * math.sqrt(ratio)), _multiple(side / math.sqrt(ratio))) for ratio in ratios]
    sizes = tuple(dict.fromkeys([size, *others]))
    if len(sizes) < count:
        raise ValueError(
            f"buckets={count} gives only {len(sizes)} different sizes of about the area of size={list(size)} in "
            f"multiples of {STEP} pixels: use fewer buckets, a larger size or max_aspect, or list the sizes"
        )
    return sizes


def _multiple(side: float) -> int:
    return STEP * max(1, round(side / STEP))


def nearest_aspect(extent: Extent, sizes: Sequence[tuple[int, int]]) -> int:
    """Return the index of the size (height, width) whose aspect ratio is nearest to a file's; 0 if that is unknown."""
    if extent.height is None or extent.width is None:
        return 0

    def distance(size: tuple[int, int]) -> float:
        # Of integers only, without a logarithm, so that all machines choose the same size.
        one, other = extent.height * size[1], extent.width * size[0]  # type: ignore[operator]
        return max(one, other) / min(one, other)

    return min(range(len(sizes)), key=lambda index: distance(sizes[index]))


def longest_filled(available: float, lengths: Sequence[float]) -> int:
    """Return the index of the longest of the lengths that is at most `available`, or of the shortest of all."""
    filled = [index for index, length in enumerate(lengths) if length <= available]
    return max(filled, key=lambda index: lengths[index]) if filled else lengths.index(min(lengths))


def outside(extent: Extent, min_size: int | None, max_aspect: float | None) -> str | None:
    """Return the setting that omits a picture of this extent, such as `min_size=64`, or None if it is used."""
    if extent.height is None or extent.width is None:
        return None
    short, long = sorted((extent.height, extent.width))
    if min_size is not None and short < min_size:
        return f"min_size={min_size}"
    if max_aspect is not None and long > max_aspect * short:
        return f"max_aspect={max_aspect:g}"
    return None


def check_filters(
    min_size: int | None = None, max_aspect: float | None = None, min_seconds: float | None = None
) -> None:
    """Raise ValueError if a filter of files is out of range."""
    if min_size is not None and min_size < 1:
        raise ValueError(f"min_size must be a number of pixels, at least 1, or null; got {min_size}")
    if max_aspect is not None and not 1 <= max_aspect < math.inf:
        raise ValueError(f"max_aspect is the longer side divided by the shorter one, at least 1, got {max_aspect}")
    if min_seconds is not None and not 0 < min_seconds < math.inf:
        raise ValueError(f"min_seconds must be a positive number of seconds, or null; got {min_seconds}")
