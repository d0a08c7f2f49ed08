"""Condition networks on tensors on the data's grid or a coarser one.

By default they are concatenated to the noisy sample, so that they are read point by point. Or they are cut into
patches, to which all blocks with attention attend; positions give the distance between a patch and what attends to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multisagd.networks.attention import rotary_positions_at
from multisagd.networks.layers import around, patchify
from multisagd.networks.text import Tokens

DenseInput = Literal["concatenation", "attention"]
"""How a network reads a dense condition."""

TINY = 1e-6
"""Smallest share of known values by which values are divided; the smallest that occurs is 1 / (2 · factor)."""


def input_channels(channels: int, dense: int | None, dense_input: DenseInput) -> int:
    """Return how many channels a network of data with `channels` reads, given a condition of `dense` channels.

    Raises:
        ValueError: If `dense` is below 1, or `dense_input` is unknown.
    """
    if dense_input not in get_args(DenseInput):
        raise ValueError(f"dense_input must be one of {', '.join(get_args(DenseInput))}, got {dense_input!r}")
    if dense is None:
        return channels
    if dense < 1:
        raise ValueError(
            f"dense must be at least 1 channel, or None for a network without a dense condition; got {dense}"
        )
    return channels + (2 * dense if dense_input == "concatenation" else 0)


def with_dense(x: Tensor, condition: Tensor | None, dense: int | None, periodic: Sequence[bool]) -> Tensor:
    """Return x (batch, channels, *grid) with a dense condition after its channels, (batch, channels + 2 dense, *grid).

    The condition (batch, dense, *grid or coarser), dimensionless, is interpolated linearly to the grid of x. NaN means
    unknown, and None that all values are. Unknown values become zeros, and as many channels after them contain which
    share of every value is known: 1 where all is, and 0 where nothing is. So an unknown condition differs from zeros,
    and one network serves both sides of classifier-free guidance. Without `dense`, x is returned as it is.

    Raises:
        ValueError: If there is a condition but `dense` is None, or its shape or dtype does not fit.
    """
    if dense is None:
        if condition is not None:
            raise ValueError("this network takes no dense condition, but got one: build it with dense=CHANNELS")
        return x
    if condition is None:
        return torch.cat([x, x.new_zeros(len(x), 2 * dense, *x.shape[2:])], dim=1)
    check_dense(condition, dense, x)
    known = ~condition.isnan()
    values, shares = (
        refined(each, x.shape[2:], periodic) for each in (condition.where(known, 0.0).to(x.dtype), known.to(x.dtype))
    )
    return torch.cat([x, values / shares.clamp(min=TINY), shares], dim=1)


def check_dense(condition: Tensor, dense: int, x: Tensor) -> None:
    """Check a dimensionless condition of `dense` channels for data x (batch, channels, *grid).

    Raises:
        ValueError: If it is not float (batch, dense, *grid), where every axis of the data has a whole multiple of the
            condition's samples.
    """
    sizes, grid = tuple(condition.shape[2:]), tuple(x.shape[2:])
    fits = condition.shape[:2] == (len(x), dense) and len(sizes) == len(grid) and condition.is_floating_point()
    if not (fits and all(own > 0 and size % own == 0 for own, size in zip(sizes, grid, strict=True))):
        raise ValueError(
            f"the dense condition must be float of shape ({len(x)}, {dense}, *grid), where the grid is {grid} or has "
            f"a whole factor fewer samples along an axis; got {condition.dtype} of shape {tuple(condition.shape)}"
        )


def refined(x: Tensor, sizes: Sequence[int], periodic: Sequence[bool]) -> Tensor:
    """Interpolate x (batch, channels, *coarser grid) linearly to whole multiples of its sizes, in its units.

    A sample of the coarser grid is at the centre of the samples that it stands for. Beyond both ends, a periodic axis
    continues at the other one, and any other axis keeps its last value.
    """
    for axis, (size, circle) in enumerate(zip(sizes, periodic, strict=True), start=2):
        factor = size // x.shape[axis]
        if factor == 1:
            continue
        first, last = (x.narrow(axis, at, 1) for at in (0, x.shape[axis] - 1))
        longer = around(x, axis, 1, 1) if circle else torch.cat([first, x, last], dim=axis)
        moved = longer.movedim(axis, -1)
        lines = F.interpolate(moved.flatten(1, -2), scale_factor=float(factor), mode="linear", align_corners=False)
        x = lines[..., factor:-factor].reshape(*moved.shape[:-1], size).movedim(-1, axis)
    return x


class DenseRead(NamedTuple):
    """A dense condition as tokens, and their rotary positions, in which `queries` are those of what attends to them."""

    tokens: Tokens
    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]


class DenseTokens(nn.Module):
    """Convert a dense condition to tokens of its patches, for attention: (batch, 1 + patches, width).

    A patch without known values is not attended to. The first token is learned, and valid only if no other is.
    """

    def __init__(self, dense: int, patch: Sequence[int], width: int) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.null = nn.Parameter(nn.init.normal_(torch.empty(width)))
        self.embed = nn.Linear(2 * dense * math.prod(self.patch), width)

    def forward(self, read: Tensor) -> Tokens:
        """Return the tokens of values and known shares, dimensionless (batch, 2 dense, *grid of whole patches)."""
        known = (patchify(read[:, read.shape[1] // 2 :], self.patch) > 0).any(-1)
        null = self.null.expand(len(read), 1, -1)
        tokens = torch.cat([null, self.embed(patchify(read, self.patch))], dim=1)
        return Tokens(tokens, torch.cat([~known.any(1, keepdim=True), known], dim=1))


def positioned(
    tokens: Tokens, counts: Sequence[int], finer: int, features: int, periodic: Sequence[bool], base: float = 100.0
) -> DenseRead:
    """Return tokens on a grid of these `counts` with positions, for queries on a grid that is `finer` times finer.

    The tokens are features (batch, 1 + patches, width), and their first one has the position 0.
    """
    device = tokens.tokens.device
    places = [torch.arange(count, dtype=torch.float32, device=device) for count in counts]
    fine = [(torch.arange(finer * count, dtype=torch.float32, device=device) + 0.5) / finer - 0.5 for count in counts]
    queries = rotary_positions_at(places if finer == 1 else fine, counts, features, base, periodic)
    cosine, sine = rotary_positions_at(places, counts, features, base, periodic)
    first = torch.ones_like(cosine[:1]), torch.zeros_like(sine[:1])
    return DenseRead(tokens, queries, (torch.cat([first[0], cosine]), torch.cat([first[1], sine])))
