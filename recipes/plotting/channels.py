"""Describe how the channels of data are related: their powers, their coherence, and the best basis for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from multisagd import DataStatistics
from multisagd.analysis.profiles import RADIUS, Profile, radial_profile
from multisagd.cross_spectra import MAX_CHANNELS, channel_basis, explained, in_basis
from recipes.plotting.figures import COLUMN, draw_power, power_axes, save

SIMILAR = 1.0
"""Difference of channels' powers in decibels below which one spectrum describes all of them."""
RELATED = 0.1
"""Coherence above which channels are related."""
EXPLAINED = 0.9
"""Fraction of the power between channels that a basis removes, above which it describes how they are related."""
MAX_DRAWN = 8
"""Maximum number of channels in a figure and in a line of text."""
MAX_NAMED = 4
"""Maximum number of channels whose pairs have room in the legend of a figure."""


def describe_channels(cross: Tensor, statistics: DataStatistics, names: Sequence[str]) -> dict[str, Any]:
    """Return the results of analysing the cross power `(channels, channels, *half_shape)` of data.

    `power` is the variance of each channel, and `spread` the largest difference between the powers of two channels in
    any ring of frequency, in decibels. `coherence` is the largest squared correlation of two channels at single
    frequencies, averaged with the product of their powers as weight. `basis` has a row for each channel and a column
    for each component, `components` are their fractions of the variance, and `explained` is the fraction of what
    channels share that the basis removes.
    """
    grid = statistics.grid
    rings = radial_profile(statistics.power, grid).power
    positive = rings.clamp(min=float(rings.max()) * 1e-12)
    levels = positive / positive.mean(0)
    basis = channel_basis(cross, grid)
    products = grid.mean(statistics.power[:, None] * statistics.power)
    pairs = grid.mean(cross.abs().square()) / products.clamp(min=1e-300)
    off = ~torch.eye(len(cross), dtype=torch.bool)
    components = grid.mean(in_basis(cross, basis).diagonal().real.movedim(-1, 0).contiguous()).clamp(min=0)
    return {
        "names": list(names),
        "power": grid.mean(statistics.power).tolist(),
        "coherence": float(pairs[off].max()),
        "spread": 10 * float((levels.amax(0) / levels.amin(0)).max().log10()),
        "basis": basis.tolist(),
        "components": (components / components.sum()).tolist(),
        "explained": explained(cross, basis, grid),
    }


def channel_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a summary of the result of `describe_channels`.

    The last line says which noise could be compared, or that channels give no reason for another. Whether it helps a
    network cannot be told from the spectra.
    """
    power, mean = found["power"], sum(found["power"]) / len(found["power"])
    levels = ", ".join(
        f"{name} {10 * math.log10(each / mean):+.1f} dB" if each > 0 else f"{name} nothing"
        for name, each in zip(found["names"][:MAX_DRAWN], power, strict=False)
    )
    shares = ", ".join(f"{share:.1%}" for share in found["components"][:MAX_DRAWN])
    lines = [
        f"power of the channels relative to their mean: {levels}; at some frequencies they differ by "
        f"{found['spread']:.1f} dB",
        f"at single frequencies, two channels share up to {found['coherence']:.0%} of their variance",
        f"one basis of the channels removes {found['explained']:.0%} of what they share; its components have {shares} "
        "of the variance",
    ]
    related = found["coherence"] > RELATED
    if found["spread"] < SIMILAR and not related:
        return [*lines, "the channels are alike and unrelated: the same noise in every channel fits them"]
    enough = found["explained"] > EXPLAINED or len(power) > MAX_CHANNELS
    kind = "each" if not related else "basis" if enough else "full"
    return [
        *lines,
        f"noise that follows the channels: spectrum=data_channels spectrum.channels={kind} spectrum.floor=60; whether "
        "a network gains by it cannot be told from spectra, so train with spectrum=data_power, too, and compare",
    ]


def draw_channels(cross: Tensor, statistics: DataStatistics, names: Sequence[str], path: Path) -> None:
    """Plot the radially averaged power of every channel, and the coherence of every two, for the first few channels."""
    grid, shown = statistics.grid, list(names[:MAX_DRAWN])
    figure = Figure(figsize=(2 * COLUMN + 0.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    profile = radial_profile(statistics.power[: len(shown)], grid)
    for name, power in zip(shown, profile.power, strict=True):
        draw_power(left, Profile(profile.frequency, power), name)
    power_axes(left, RADIUS, grid)
    left.set_ylabel("power")
    left.legend(fontsize="x-small")
    bands, products = grid.bands(8), statistics.power[:, None] * statistics.power
    for one, other in combinations(range(len(shown)), 2):
        shared, whole = cross[one, other].abs().square(), products[one, other]
        sums = [[float((each * weight).sum()) for each in (shared, whole)] for *_, weight in bands]
        values = [part / max(total, 1e-300) for part, total in sums]
        label = f"{shown[one]} and {shown[other]}" if len(shown) <= MAX_NAMED else None
        right.plot([(low + high) / 2 for low, high, _ in bands], values, marker=".", label=label)
    right.set(
        xlabel="radius (cycles per sample)",
        ylabel="coherence at single frequencies",
        title="between channels",
        ylim=(-0.05, 1.05),
    )
    if len(shown) <= MAX_NAMED:
        right.legend(fontsize="x-small")
    save(figure, path)
