"""Describe corruption that is confined to a part of the spectrum; `multisagd.analysis.excess` detects it in data.

`x' = x + n` with Gaussian n of power `b²(k)` at frequency k, zero outside some band. The spectrum alone
distinguishes band noise, rain, a moiré pattern, mains hum and flicker (arXiv 2510.09660, selective omission).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multisagd.covariance import SpectralCovariance
from multisagd.files import check_file, parse_json
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.spectrum import Spectrum
from multisagd.statistics import describe_axes, read_axes
from multisagd.table import Table

FORMAT_VERSION = 1
LevelScale = Literal["std", "bins"]


class Corruption:
    """Corrupt data with Gaussian noise that has a spectrum and a level on a grid.

    `scale` determines what `level` means. If it is `std`, the level is the standard deviation of the corruption,
    in units of the data: the papers' convention, in which a narrow band has much power in each of its bins. If it is
    `bins`, the level is the amplitude in the strongest bin, so that a level of 1 is as strong there as white noise of
    unit variance, for any width of the band. Noise is independent from channel to channel, or `shared` by all channels,
    like rain in the colours of an image.

    Raises:
        ValueError: If the level is not positive and finite, the scale is unknown, or the spectrum has no power.
    """

    def __init__(
        self, spectrum: Spectrum, grid: Grid, level: float = 1.0, scale: LevelScale = "std", shared: bool = False
    ) -> None:
        if not 0 < level < math.inf:
            raise ValueError(f"the level of a corruption must be positive and finite, got {level}")
        if scale not in ("std", "bins"):
            raise ValueError(f"unknown scale {scale!r}; choose std or bins")
        self.covariance = SpectralCovariance(spectrum, grid)
        self.level = level
        self.scale: LevelScale = scale
        self.shared = shared

    @classmethod
    def of_power(cls, power: Tensor, grid: Grid, shared: bool = False) -> Corruption:
        """Return the corruption that has this power on the half spectrum of a grid.

        Raises:
            ValueError: If the power has a different shape, is negative or not finite anywhere, or is zero everywhere.
        """
        std = math.sqrt(max(0.0, float(grid.mean(power.double()))))
        return cls(Table(power, grid), grid, std, shared=shared)

    def save(self, path: str | Path) -> None:
        """Write the power as safetensors, with the grid in the metadata."""
        described = {"format_version": FORMAT_VERSION, "axes": describe_axes(self.grid)}
        save_file({"power": self.power().contiguous()}, str(path), metadata={"corruption": json.dumps(described)})

    @classmethod
    def load(cls, path: Path, grid: Grid, shared: bool = False) -> Corruption:
        """Read a file written by `save`, interpolated in frequency if the grid differs.

        The file contains the spectrum only; the caller specifies whether channels share the corruption (`shared`).

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the file is not a corruption file, has a different format version, or has different axes.
        """
        check_file(path)
        try:
            with safe_open(str(path), framework="pt") as file:
                described: Any = parse_json((file.metadata() or {}).get("corruption", "{}"))
                if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
                    raise ValueError(f"{path} is not a corruption file of format {FORMAT_VERSION}")
                measured = read_axes(described["axes"])
                # Before reading: a header may declare any shape.
                if tuple(file.get_slice("power").get_shape()) != measured.half_shape:
                    raise ValueError(f"the power in {path} does not match its grid of shape {measured.shape}")
                power = file.get_tensor("power").to(torch.float64, copy=True)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is not a corruption file: {error}") from error
        return cls.of_power(Table(power, measured).power(grid), grid, shared)

    @property
    def grid(self) -> Grid:
        """The grid of the data."""
        return self.covariance.grid

    @property
    def std(self) -> float:
        """Standard deviation of the corruption over the grid."""
        return self._std()

    def _std(self, shape: Sequence[int] | None = None) -> float:
        strongest = 1.0 if self.scale == "std" else float(self.covariance.power(shape).max())
        return self.level / math.sqrt(strongest)

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the power `c²(k)` of the corruption in each channel, `(*half_shape,)`, float64."""
        return self._std(shape) ** 2 * self.covariance.power(shape)

    def noise(self, shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Draw the corruption of a batch of shape `(batch, channels, *grid)`, one seed per item."""
        split = len(shape) - self.grid.dimensions
        channels = (1,) * (split - 1) if self.shared else tuple(shape[1:split])
        drawn = self.covariance.sample(seeds, channels, tuple(shape[split:]))
        return self._std(tuple(shape[split:])) * drawn.expand(*shape)

    def corrupt(self, x0: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return `x0 + n` for x0 `(batch, channels, *grid)`, shaped like x0, one seed per item."""
        x0 = as_data(x0)
        return x0 + self.noise(x0.shape, seeds).to(x0)
