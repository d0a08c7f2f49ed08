"""Latents: a modality encoded by an autoencoder, on a coarser grid, scaled to mean 0 and standard deviation 1.

The grid keeps the physical units of the wrapped modality: names, units and corner frequencies of the axes do not
change, and their spacing is multiplied by the autoencoder's stride, so that a spectrum in cycles per pixel or hertz
keeps its meaning.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.autoencoders import Autoencoder
from modalities.base import Modality
from modalities.encoding import describe, differences
from modalities.latent_layout import Layout, extended, find_layout, pooled
from multisagd.files import read_json
from multisagd.grid import Axis, Grid

FORMAT_VERSION = 1
STATISTICS = "statistics.json"
"""Name of the file that contains the measured scale of encoded data."""


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of each latent channel, and their `encoding` (see `Latent.encoding`).

    Raises:
        ValueError: If their lengths differ, a value is not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    encoding: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not all(map(math.isfinite, numbers)) or not min(self.std, default=0) > 0:
            raise ValueError(
                "a scale must have one finite mean and one positive standard deviation for each latent channel"
            )

    @classmethod
    def load(cls, path: Path) -> LatentScale:
        """Read a scale; `path` is the file, or the folder of encoded data that contains it.

        Raises:
            ValueError: If the file is missing, is unreadable or has a different format version.
        """
        path = path / STATISTICS if path.is_dir() else path
        try:
            record = read_json(path)
            if record["format_version"] != FORMAT_VERSION:
                version = record["format_version"]
                raise ValueError(
                    f"its format version is {version}, but this version of multisagd reads {FORMAT_VERSION}"
                )
            return cls(tuple(map(float, record["mean"])), tuple(map(float, record["std"])), dict(record["encoding"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"cannot read the scale of the latents in {path.absolute()} ({error}): "
                "set statistics (with data=latents: data.root) to a folder that `multisagd encode` completed; if a "
                "run's latents were moved, add data.root=… to the command"
            ) from error

    def text(self) -> str:
        """Return the content of the file that `load` reads."""
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"


@dataclass(frozen=True)
class Latent(Modality):
    """A `modality` encoded by an `autoencoder`; `decode(encode(media))` loses only what the autoencoder loses.

    `statistics` is a folder written by `multisagd encode`, or its statistics.json: latents are then shifted and
    scaled to mean 0 and standard deviation 1 per channel. If it is None, latents are not scaled; this is meant for
    encoding only, since unscaled latents do not match the noise levels of a schedule.

    If the autoencoder cannot return the exact size, data are padded by repeating their last samples and cropped
    after decoding. A single channel is repeated for a colour or stereo autoencoder, and averaged after decoding.

    Raises:
        ValueError: If the modality has buckets, or the statistics cannot be read or belong to a different encoding; the
            message names the differences.
    """

    modality: Modality
    autoencoder: Autoencoder
    statistics: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.modality.buckets is not None:
            raise ValueError(
                "latents have one size, because they are encoded and scaled once: set modality.buckets of the encoded "
                "modality to null, and encode one size"
            )
        if self.statistics is not None:
            object.__setattr__(self, "statistics", Path(self.statistics))
            if different := differences(self.scale.encoding if self.scale else {}, self.encoding()):
                raise ValueError(f"the statistics in {self.statistics} belong to a different encoding; {different}")
            if self.scale and len(self.scale.mean) != self.channels:
                raise ValueError(
                    f"the statistics in {self.statistics} have {len(self.scale.mean)} channels, but the autoencoder "
                    f"produces {self.channels}: encode the data again"
                )

    @cached_property
    def scale(self) -> LatentScale | None:
        """Mean and standard deviation by which latents are scaled; None if they are not scaled."""
        return None if self.statistics is None else LatentScale.load(self.statistics)

    @cached_property
    def layout(self) -> Layout:
        """The shapes before and after the autoencoder, determined by calling it.

        Raises:
            ValueError: If the autoencoder does not accept data of this shape, or its output is smaller than the data.
        """
        return find_layout(self.autoencoder, self.modality.channels, self.modality.grid().shape)

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return self.layout.latents[0]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes of the wrapped modality."""
        return self.modality.suffixes

    def grid(self) -> Grid:
        """Return the latent grid, which is coarser than the wrapped grid.

        Causal autoencoders encode the first frame alone. A periodic axis stays periodic if the latents cover the circle
        exactly once.
        """

        def coarser(axis: Axis, size: int, stride: float) -> Axis:
            # An axis without an explicit corner frequency would derive it from its new spacing.
            spacing, circle = axis.spacing * stride, axis.periodic and size * stride == axis.size
            return dataclasses.replace(axis, size=size, spacing=spacing, corner=axis.corner_frequency, periodic=circle)

        sizes, strides = self.layout.latents[1:], self.layout.strides
        return Grid(tuple(map(coarser, self.modality.grid().axes, sizes, strides)))

    def encoding(self) -> dict[str, Any]:
        """Return the settings that the latents depend on, as a mapping from dotted names to JSON values.

        Raises:
            ValueError: If JSON cannot represent a setting; the message names it.
        """
        return {**describe(self.modality, "modality"), **describe(self.autoencoder, "autoencoder")}

    def load(self, path: Path, seed: int | None = None) -> Any:
        """Read one file of the wrapped modality."""
        return self.modality.load(path, seed)

    def encode(self, media: Any) -> Tensor:
        """Return the scaled latents of media, float32 `(latent channels, *latent grid)`."""
        return self.scaled(self.compress(self.modality.encode(media).unsqueeze(0)))[0]

    def decode(self, x0: Tensor) -> Any:
        """Decode scaled latents `(latent channels, *latent grid)` to media.

        Raises:
            ValueError: If a value is not finite.
        """
        if not bool(torch.isfinite(x0).all()):
            raise ValueError("the latents to decode have values that are not finite: sampling or training diverged")
        z = x0.detach().to("cpu", torch.float32).unsqueeze(0)
        if self.scale is not None:
            z = z * _per_channel(z, self.scale.std) + _per_channel(z, self.scale.mean)
        return self.modality.decode(self.expand(z)[0])

    def mask(self, media: Any) -> Tensor | None:
        """Return a bool mask `(1, *latent grid)` that is True where latents depend on data only, not on padding."""
        mask = self.modality.mask(media)
        return None if mask is None else self.coarser_mask(mask)

    def save(self, media: Any, path: Path) -> None:
        """Write one file of the wrapped modality."""
        self.modality.save(media, path)

    def save_grid(self, media: Sequence[Any], path: Path, *, names: Sequence[str] | None = None) -> None:
        """Write several media as one image, as the wrapped modality does."""
        if names is None:
            self.modality.save_grid(media, path)
        else:
            self.modality.save_grid(media, path, names=names)

    def compress(self, x: Tensor) -> Tensor:
        """Return the unscaled latents of encoded data `(batch, channels, *grid)` of the wrapped modality."""
        inputs = extended(x, self.layout.inputs[1:], self.modality.grid().periodic)
        if inputs.shape[1] != self.layout.inputs[0]:
            inputs = inputs.expand(-1, self.layout.inputs[0], *inputs.shape[2:])
        return self.autoencoder.encode(inputs)

    def expand(self, z: Tensor) -> Tensor:
        """Return data `(batch, channels, *grid)` of the wrapped modality from unscaled latents."""
        x = self.autoencoder.decode(z)
        if x.shape[1] != self.modality.channels:
            x = x.mean(1, keepdim=True)
        for axis, size in enumerate(self.modality.grid().shape, 2):
            x = x.narrow(axis, 0, size)
        return x

    def scaled(self, z: Tensor) -> Tensor:
        """Scale latents `(batch, latent channels, *latent grid)` to mean 0 and standard deviation 1, as float32."""
        z = z.to(torch.float32)
        return z if self.scale is None else (z - _per_channel(z, self.scale.mean)) / _per_channel(z, self.scale.std)

    def coarser_mask(self, mask: Tensor) -> Tensor:
        """Convert a mask `(..., 1 or channels, *grid)` of the wrapped modality to `(..., 1, *latent grid)`."""
        # An autoencoder mixes channels, so a latent is padding where any channel is.
        mask = mask.all(-1 - len(self.layout.strides), keepdim=True)
        lead = mask.shape[: -len(self.layout.strides)]
        hidden = (~mask).float().reshape(-1, 1, *mask.shape[len(lead) :])
        hidden = extended(hidden, self.layout.inputs[1:], self.modality.grid().periodic)
        for axis, (size, stride) in enumerate(zip(self.layout.latents[1:], self.layout.strides, strict=True), 2):
            # The first latent of a causal autoencoder covers one sample; it is repeated to cover as many as the others.
            before = round(size * stride) - hidden.shape[axis]
            first = hidden.narrow(axis, 0, 1).expand(*[max(0, before) if i == axis else -1 for i in range(hidden.ndim)])
            hidden = pooled(torch.cat([first, hidden], axis), axis, size)
        return hidden.reshape(*lead, *self.layout.latents[1:]) == 0


def _per_channel(z: Tensor, values: Sequence[float]) -> Tensor:
    """Return one value per channel in a shape that broadcasts over `(batch, channels, *grid)`."""
    return torch.tensor(values, device=z.device).view(-1, *[1] * (z.ndim - 2))
