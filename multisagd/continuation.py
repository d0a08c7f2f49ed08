"""Continue data along an axis, such as the time of a sound, beyond the length that a model draws at a time.

Windows of that length are drawn one after the other. The first part of each window is the end of what is there already,
and the rest continues it. Nothing here is specific to a medium or to the way in which a window is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor | None, int], Tensor]
"""`draw(known, number)` returns window `number`, counted from 0, which begins like `known` along the axis; None: the
first window, of which nothing is known."""


def continued(draw: Draw, first: Tensor | None, length: int, window: int, overlap: int, axis: int) -> Tensor:
    """Return data `(..., length, ...)` along an axis, which begin with `first` `(..., any length, ...)` if it is given.

    `draw` draws windows `(..., window, ...)`, of which up to `overlap` samples are known. All have the same units and
    other sizes. In the overlap, the data fade linearly from what was there to the new window, whose known
    part may differ slightly: for example, a spectrogram mixes the samples of its windows. Equal values do not change.

    Raises:
        ValueError: If the overlap is not between 1 and `window - 1`, or a window has another length.
    """
    if not 1 <= overlap < window:
        raise ValueError(f"the overlap must be from 1 to {window - 1} samples of a window of {window}, got {overlap}")
    data, number = first, 0
    while data is None or data.shape[axis] < length:
        before = 0 if data is None else min(overlap, data.shape[axis])
        known = None if data is None else data.narrow(axis, data.shape[axis] - before, before)
        drawn = draw(known, number)
        if drawn.shape[axis] != window:
            raise ValueError(f"a window must have {window} samples along axis {axis}, got {drawn.shape[axis]}")
        data = drawn if data is None else _joined(data, drawn, before, axis)
        number += 1
    return data.narrow(axis, 0, length)


def window_count(known: int, length: int, window: int, overlap: int) -> int:
    """Return how many windows `continued` draws for `length` samples, of which the first `known` are given."""
    first = 0 if known else 1
    have = known or window
    if have >= length:
        return first
    # As long as less than an overlap is known, windows continue all of it.
    start = 1 if have < overlap else 0
    have = window if start else have
    return first + start + max(0, math.ceil((length - have) / (window - overlap)))


def _joined(data: Tensor, window: Tensor, overlap: int, axis: int) -> Tensor:
    """Return data followed by a window, whose first `overlap` samples stand for the last ones of the data."""
    size = data.shape[axis]
    old, new = data.narrow(axis, size - overlap, overlap), window.narrow(axis, 0, overlap)
    weights = torch.arange(1, overlap + 1, device=data.device) / overlap
    shape = [-1 if number == axis % data.dim() else 1 for number in range(data.dim())]
    kind = data.dtype if data.is_floating_point() else torch.float32
    faded = torch.lerp(old.to(kind), new.to(kind), weights.to(kind).reshape(shape))
    faded = faded if data.is_floating_point() else faded.round()
    rest = window.narrow(axis, overlap, window.shape[axis] - overlap)
    return torch.cat([data.narrow(axis, 0, size - overlap), faded.to(data.dtype), rest.to(data)], axis)
