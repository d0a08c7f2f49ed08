"""The sizes of an autoencoder's inputs, latents and outputs, found without data if the autoencoder allows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modalities.autoencoders import Autoencoder
from multisagd.networks.layers import around

REPEATED = (3, 2)
"""Numbers of channels to which a single channel is repeated if the autoencoder does not accept one: colour, stereo."""


class Layout(NamedTuple):
    """Shapes of the autoencoder's `inputs` and `latents`, both (channels, *grid), and the `strides` of the grid."""

    inputs: tuple[int, ...]
    latents: tuple[int, ...]
    strides: tuple[float, ...]


def find_layout(autoencoder: Autoencoder, channels: int, size: tuple[int, ...]) -> Layout:
    """Return the layout for data of a given size, with inputs padded so that the output is at least as large.

    Raises:
        ValueError: If the autoencoder does not accept such data, or its output is smaller than the data.
    """
    probe = _Probe(autoencoder, channels, size)
    inputs = size
    for _ in range(8):
        latents, decoded = probe.decoded(inputs)
        if all(back >= target for back, target in zip(decoded, size, strict=True)):
            # The smallest size that fills the last latent is returned exactly.
            if decoded != inputs and probe.decoded(decoded)[1] == decoded:
                inputs, latents = decoded, probe.decoded(decoded)[0]
            return Layout((probe.channels, *inputs), latents, _strides(probe, inputs, latents[1:]))
        inputs = tuple(n + max(0, target - back) for n, target, back in zip(inputs, size, decoded, strict=True))
    raise ValueError(
        f"{_name(autoencoder)} returns {probe.decoded(size)[1]} for data of size {size}: choose another size"
    )


class _Probe:
    """Finds the latent and output sizes of an autoencoder, without computation if it supports the meta device."""

    def __init__(self, autoencoder: Autoencoder, channels: int, size: tuple[int, ...]) -> None:
        self.autoencoder = autoencoder
        self._shapes: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        reason: Exception | None = None
        for device in ("meta", "cpu"):
            for repeated in (channels, *(REPEATED if channels == 1 else ())):
                self.channels, self.device = repeated, device
                try:
                    self.decoded(size)
                    return
                except (RuntimeError, TypeError, ValueError) as error:
                    if isinstance(error, ValueError) and channels > 1:
                        raise  # no other number of channels can be tried; the autoencoder's own message is the best
                    reason = error
        if isinstance(reason, ValueError):
            raise reason
        raise ValueError(
            f"{_name(autoencoder)} cannot encode data with {channels} channels and size {size} ({reason}): "
            "choose channels and a size that it accepts"
        )

    def encoded(self, size: tuple[int, ...]) -> Tensor:
        """Return the latents of an all-zero example of a given size."""
        return self.autoencoder.encode(torch.zeros(1, self.channels, *size, device=self.device))

    def decoded(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of one example's latents, and the size of the decoded data."""
        if size in self._shapes:
            return self._shapes[size]
        z = self.encoded(size)
        x = self.autoencoder.decode(z)
        if not z.ndim == x.ndim == len(size) + 2 or x.shape[1] != self.channels:
            raise ValueError(
                f"{_name(self.autoencoder)} turns data of shape {(1, self.channels, *size)} into latents of shape "
                f"{tuple(z.shape)} and back into {tuple(x.shape)}: it must keep dimensions and channels"
            )
        self._shapes[size] = tuple(z.shape[1:]), tuple(x.shape[2:])
        return self._shapes[size]


def _strides(probe: _Probe, inputs: tuple[int, ...], latents: tuple[int, ...]) -> tuple[float, ...]:
    """Return the number of samples along each axis that one latent covers."""
    pairs = list(zip(inputs, latents, strict=True))
    even = [n / m for n, m in pairs]
    causal = [(n - 1) / (m - 1) if m > 1 else math.inf for n, m in pairs]
    strides = [c if c.is_integer() else e for e, c in zip(even, causal, strict=True)]
    # 9 frames in 3 latents are either 3×3 or 1 + 2×4; encoding more frames shows which.
    more = [
        math.lcm(int(e), int(c)) if e.is_integer() and c.is_integer() and e != c else 0
        for e, c in zip(even, causal, strict=True)
    ]
    if any(more):
        longer = probe.encoded(tuple(n + extra for n, extra in zip(inputs, more, strict=True))).shape[2:]
        for axis, extra in enumerate(more):
            if extra:
                strides[axis] = extra / (longer[axis] - latents[axis])
    return tuple(strides)


def extended(x: Tensor, shape: Sequence[int], periodic: Sequence[bool]) -> Tensor:
    """Extend the grid of data `(batch, channels, *grid)` to `shape`.

    The last samples are repeated; a periodic axis goes around the circle again.
    """
    for axis, (size, circle) in enumerate(zip(shape, periodic, strict=True), start=2):
        if circle:
            x = around(x, axis, 0, size - x.shape[axis])
    missing = [size - length for size, length in zip(shape, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [n for size in reversed(missing) for n in (0, size)], mode="replicate")


def pooled(x: Tensor, axis: int, size: int) -> Tensor:
    """Return the largest value in each of `size` parts of an axis."""
    moved = x.movedim(axis, -1)
    pooled = F.adaptive_max_pool1d(moved.reshape(1, -1, moved.shape[-1]), size)
    return pooled.reshape(*moved.shape[:-1], size).movedim(-1, axis)


def _name(autoencoder: Autoencoder) -> str:
    return str(getattr(autoencoder, "kind", type(autoencoder).__name__))
