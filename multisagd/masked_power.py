"""Estimate the power spectrum of partly valid data: padded recordings, ocean fields with land, videos with lost frames.

Padding causes leakage: the transform of a record with gaps spreads strong frequencies over weak ones. So the power is
estimated from the valid samples by EM for the circulant model (`multisagd.circulant_em`), in each channel separately.

If no mask changes along an axis (such as the frequency axis of a spectrogram cut in time), a transform along it makes
the data independent, so that only positions along the other axes matter. Items with the same mask share their second
moments and one factorisation. If there are too many masks, or too large ones, items are restricted to fewer masks,
chosen to lose few samples. If that leaves too few items, or more than `LARGEST` samples to solve for, the power comes
from averages over pairs of valid samples instead (`multisagd.lag_window`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multisagd.circulant_em import MAX_ROUNDS, MaskGroup, fit_power
from multisagd.grid import Grid
from multisagd.lag_window import PairAverages, pair_counts

MAX_MASKS = 1024
"""Maximum number of distinct masks; items with other masks contribute to the mean, but not to the power."""
LARGEST = 2048
"""Maximum number of valid or missing samples, whichever is smaller, that EM solves for; masks of 4,096 samples always
fit."""
WORK = 1 << 29
"""Maximum number of operations in an EM step, about a second on one core; a single mask may need more."""
FEWEST_ITEMS = 64
"""Minimum number of items for EM, if the data have that many."""
MAX_NUMBERS = 1 << 25
"""Maximum number of values stored for all items together if their second moments are larger: 256 MiB."""


class MaskCount:
    """Collect the masks that occur, their counts per channel, and the axes along which they change."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.varying = [False] * grid.dimensions
        self.items: dict[bytes, Tensor] = {}
        self._full = np.packbits(np.ones(grid.numel, dtype=np.uint8)).tobytes()

    @property
    def partial(self) -> bool:
        """Whether any mask excludes samples."""
        return any(key != self._full for key in self.items)

    def add(self, mask: Tensor, channels: int) -> None:
        """Count the masks of a batch, boolean `(batch, 1 or channels, *grid.shape)`."""
        every = tuple(range(2, mask.dim()))
        if bool(mask.all()):
            self._count(self._full, slice(None), len(mask), channels)
            return
        for axis, dim in enumerate(every):
            self.varying[axis] |= bool((mask.any(dim) != mask.all(dim)).any())
        for row, key in enumerate(keys(mask)):
            shared = mask.shape[1] == 1
            self._count(key, slice(None) if shared else row % channels, 1, channels)

    def _count(self, key: bytes, channel: int | slice, count: int, channels: int) -> None:
        if key not in self.items:
            if len(self.items) >= 4 * MAX_MASKS:
                return
            self.items[key] = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self.items[key][channel] += count


def keys(mask: Tensor) -> list[bytes]:
    """Return the boolean masks of a batch `(batch, channels, *grid)` as bytes, item by item."""
    packed = np.packbits(mask.flatten(2).flatten(0, 1).numpy(), axis=1)
    return [row.tobytes() for row in packed]


@dataclass(frozen=True)
class Layout:
    """A split of a grid: masks change along the `varying` axes; the other axes are transformed into blocks."""

    grid: Grid
    varying: tuple[int, ...]

    @property
    def constant(self) -> tuple[int, ...]:
        """Axes along which no mask changes."""
        return tuple(axis for axis in range(self.grid.dimensions) if axis not in self.varying)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes along which masks change."""
        return tuple(self.grid.shape[axis] for axis in self.varying) or (1,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes along which masks change."""
        return tuple(self.grid.names[axis] for axis in self.varying) or ("",)

    @property
    def _turned(self) -> Grid:
        return Grid(tuple(self.grid.axes[axis] for axis in (*self.varying, *self.constant)))

    @property
    def weight(self) -> Tensor:
        """The count of blocks in the full spectrum that each block represents, `(blocks,)`."""
        if not self.constant:
            return torch.ones(1, dtype=torch.float64, device="cpu")
        return Grid(tuple(self.grid.axes[axis] for axis in self.constant)).multiplicity.flatten()

    def blocks(self, x: Tensor) -> Tensor:
        """Split data `(items, *grid)` into blocks `(items, blocks, positions)` in the same units.

        They are complex if there are several blocks.
        """
        turned = x.permute(0, *(axis + 1 for axis in (*self.varying, *self.constant)))
        if not self.constant:
            return turned.flatten(1).unsqueeze(1)
        dims = tuple(range(-len(self.constant), 0))
        transform = torch.fft.rfftn(turned, dim=dims, norm="ortho")
        return transform.reshape(len(x), math.prod(self.shape), -1).mT.contiguous()

    def restrict(self, mask: Tensor) -> Tensor:
        """Restrict boolean masks `(masks, *grid)` to the axes along which they change, `(masks, positions)`."""
        for axis in self.constant:
            mask = mask.narrow(axis + 1, 0, 1)
        return mask.flatten(1)

    def half_spectrum(self, power: Tensor) -> Tensor:
        """Convert the power `(blocks, *shape)` of the blocks to power on the half spectrum of the grid."""
        turned = self._turned
        if self.constant:
            power = turned.full(power.flatten(1).mT.reshape(turned.half_shape))
        order = (*self.varying, *self.constant)
        power = power.reshape(turned.shape).permute(tuple(order.index(axis) for axis in range(len(order))))
        return self.grid.even(power[..., : self.grid.half_shape[-1]])


def masked_power(
    batches: Iterable[tuple[Tensor, Tensor]], mean: Tensor, valid: Tensor, masks: MaskCount, count: int
) -> tuple[Tensor, int]:
    """Return the power about a mean of partly valid data, `(channels, *half_shape)`, and the number of items.

    `batches` are float64 data, each with a bool mask `(batch, 1 or channels, *grid)`. `mean` and `valid`, the number of
    items valid at each grid point, are `(channels, *grid)`. All arguments describe the same data; `count` is the number
    of items.

    Raises:
        ValueError: If the data are too large for EM, and at some lag no item has a pair of valid samples.
    """
    usable = valid >= 2  # a sample valid in only one item equals the mean: it contains no information about the power
    layout = Layout(masks.grid, tuple(axis for axis, varies in enumerate(masks.varying) if varies))
    parts = [_Channel(masks, layout, channel, usable[channel], count) for channel in range(len(mean))]
    seen = 0
    for x, mask in batches:
        residual = torch.where(mask & usable, x - mean, 0.0)
        by_channel = keys(mask)
        for channel, part in enumerate(parts):
            shared = mask.shape[1] == 1
            part.add(residual[:, channel], by_channel if shared else by_channel[channel :: len(parts)], seen)
        seen += len(x)
    # The mean at every grid point uses one degree of freedom; if there is no padding, this gives the usual count - 1.
    total = (valid * usable).flatten(1).sum(1)
    freedom = total / (total - usable.flatten(1).sum(1)).clamp(min=1)
    power = torch.stack([part.power() for part in parts])
    if unpaired := sum(not part.determined for part in parts):
        warnings.warn(
            f"at some lags no item has two valid samples (in {unpaired} of {len(parts)} channels), so the data do "
            "not fully determine the power spectrum; the undetermined part stays close to the spectrum estimated from "
            "the data with gaps",
            stacklevel=3,
        )
    if not all(part.converged for part in parts):
        warnings.warn(
            f"the power spectrum of padded data did not converge in {MAX_ROUNDS} rounds of EM: the result of the "
            "last round is used",
            stacklevel=3,
        )
    return power * freedom.view(-1, *(1,) * masks.grid.dimensions), seen


def power_behind(masks: Tensor, power: Tensor, grid: Grid) -> Tensor:
    """Return the power `(channels, *half_shape)` of data with this power after masked samples are set to zero.

    It is the mean over the masks `(items, 1 or channels, *grid)` of E|F (mask · x)|², leakage included: the reference
    for errors that are only known on these masks.
    """
    dims = tuple(range(-grid.dimensions, 0))
    covariance = torch.fft.irfftn(power, s=grid.shape, dim=dims)
    energy = torch.fft.rfftn(masks.to("cpu", torch.float64), dim=dims).abs().square().mean(0)
    pairs = torch.fft.irfftn(energy, s=grid.shape, dim=dims)
    return torch.fft.rfftn(covariance * pairs, dim=dims).real / grid.numel


class _Channel:
    """Accumulate the sums of one channel in a second pass over the data, and compute the power."""

    def __init__(self, masks: MaskCount, layout: Layout, channel: int, usable: Tensor, count: int) -> None:
        self.layout = layout
        items = {key: float(counts[channel]) for key, counts in masks.items.items() if counts[channel] > 0}
        grid = layout.grid
        packed = np.stack([np.frombuffer(key, dtype=np.uint8) for key in items])
        valid = torch.from_numpy(np.unpackbits(packed, axis=1, count=grid.numel).astype(bool)).view(-1, *grid.shape)
        shown, number = torch.unique(layout.restrict(valid & usable), dim=0, return_inverse=True)
        counts = torch.zeros(len(shown), dtype=torch.float64, device="cpu")
        counts.index_add_(0, number, torch.tensor(list(items.values()), dtype=torch.float64, device="cpu"))
        kept = _kept(shown, counts, len(layout.weight))
        self.averages = PairAverages(layout.shape, layout.names, len(layout.weight)) if kept is None else None
        mask_index = torch.where(shown.any(1), torch.arange(len(shown), device="cpu"), -1) if kept is None else kept
        self.mask_of = dict(zip(items, mask_index[number].tolist(), strict=True))
        self.masks = shown
        self.converged = self.determined = True
        self.rows: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}
        sizes = shown[sorted({*self.mask_of.values()} - {-1})].sum(1).double()
        moments = 2 * len(layout.weight) * float(sizes.square().sum())
        maximum = count if moments <= MAX_NUMBERS else max(FEWEST_ITEMS, MAX_NUMBERS // grid.numel)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")
        self.used = torch.zeros(count, dtype=torch.bool, device="cpu").index_fill_(0, order[:maximum], True)

    def add(self, residual: Tensor, item_keys: Sequence[bytes], first: int) -> None:
        """Add the residuals `(batch, *grid)` of a batch, zero where they are not valid."""
        numbers = [self.mask_of.get(key, -1) for key in item_keys]
        items_of: dict[int, list[int]] = {}
        for item, number in enumerate(numbers):
            if number >= 0 and (self.averages is not None or bool(self.used[first + item : first + item + 1].all())):
                items_of.setdefault(number, []).append(item)
        for number, items in items_of.items():
            blocks = self.layout.blocks(residual[items])
            if self.averages is not None:
                self.averages.add(blocks, self.masks[number])
                continue
            seen = blocks[..., self.masks[number]].transpose(0, 1)
            rows = torch.cat([torch.ones_like(seen[..., :1]), seen], 2)
            earlier = [self.rows[number]] if number in self.rows else []
            self.rows[number] = _compressed(torch.cat([*earlier, rows], 1))
            self.counts[number] = self.counts.get(number, 0) + len(items)

    def power(self) -> Tensor:
        """Return the power on the half spectrum."""
        if self.averages is not None:
            return self.layout.half_spectrum(self.averages.power())
        groups = [
            MaskGroup(self.masks[number].nonzero()[:, 0], rows, self.counts[number])
            for number, rows in sorted(self.rows.items())
        ]
        start = _periodogram(groups, self.layout)
        if start is None:
            return torch.zeros(self.layout.grid.half_shape, dtype=torch.float64, device="cpu")
        self.determined = bool((pair_counts(self.masks[list(self.rows)].view(-1, *self.layout.shape)) > 0).all())
        fit = fit_power(groups, start, self.layout.weight)
        self.converged = fit.converged
        return self.layout.half_spectrum(fit.estimate.power)


def _compressed(rows: Tensor) -> Tensor:
    """Reduce rows `(blocks, rows, positions)`, if there are many, to fewer rows with the same second moments."""
    if rows.shape[1] <= 2 * rows.shape[2]:
        return rows
    return torch.linalg.qr(rows, mode="r").R


def _periodogram(groups: Sequence[MaskGroup], layout: Layout) -> Tensor | None:
    """Return the mean |F x|², with zeros for missing samples, divided by the valid fraction, or None if it is zero.

    Strong frequencies leak into weak ones, so EM mainly has to reduce the power of weak frequencies.
    """
    shape, size = layout.shape, math.prod(layout.shape)
    total = torch.zeros(len(layout.weight), *shape, dtype=torch.float64, device="cpu")
    for group in groups:
        grid = torch.zeros(*group.rows.shape[:2], size, dtype=group.rows.dtype, device="cpu")
        grid[..., group.indices] = group.rows[..., 1:]
        dims = tuple(range(-len(shape), 0))
        transform = torch.fft.fftn(grid.view(*grid.shape[:2], *shape), dim=dims, norm="ortho")
        total += transform.abs().square().sum(1) * (size / len(group.indices))
    items = sum(group.count for group in groups)
    return total / items if bool((total > 0).any()) else None


def _kept(shown: Tensor, items: Tensor, blocks: int) -> Tensor | None:
    """Return, for every mask in `(masks, positions)`, the index of the mask that EM uses for its items instead.

    If EM can afford all masks, this is the mask itself. Otherwise masks are chosen greedily, each time the one that
    keeps the most additional samples, and items are restricted to the largest chosen mask within theirs. The index is
    -1 for items that are omitted. The result is None if too few items would be left.
    """
    seen = shown.sum(1).double()
    solved = torch.minimum(seen, shown.shape[1] - seen)
    cost = blocks * solved * (solved.square() + 16 * shown.shape[1])
    able = ((seen > 0) & (solved <= LARGEST)).nonzero()[:, 0]
    able = able[items[able].argsort(descending=True, stable=True)][:MAX_MASKS]
    kept = torch.full((len(shown),), -1, device="cpu")
    if len(able) == int((seen > 0).sum()) and float(cost[able].sum()) <= WORK:
        kept[able] = able
        return kept
    inside = shown.float() @ shown[able].float().T == seen[able].float()
    value = torch.where(inside, seen[able], 0.0)
    best, left = torch.zeros(len(shown), dtype=torch.float64, device="cpu"), float(WORK)
    affordable = torch.ones(len(able), dtype=torch.bool, device="cpu")
    while True:
        gain = torch.where(affordable, items @ (value - best[:, None]).clamp(min=0), 0.0)
        if not bool((gain > 0).any()):
            break
        number = int(gain.argmax())
        better = value[:, number] > best
        kept[better], best[better] = able[number], value[better, number]
        left = max(0.0, left - float(cost[able[number]]))
        affordable[number] = False
        affordable &= cost[able] <= left
    enough = min(FEWEST_ITEMS, float(items[seen > 0].sum()))
    return kept if float(items[kept >= 0].sum()) >= enough else None
