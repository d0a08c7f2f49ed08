"""Colour the noise of code that draws it with `torch.randn`, as programs written for diffusers do.

The core draws all noise in `SpectralCovariance.sample`, from one seed per item. Here the draws are made by other
code, with its own generators and in its own order, and are only coloured, `Σ^{1/2} ξ`. If the spectrum is flat, the
draws are unchanged, bit for bit.

Draws inside a library are intercepted by `torch.overrides.TorchFunctionMode`, PyTorch's hook for calls of its
functions. It acts within one thread and one `with` block, and does not patch the library.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from multisagd.channel_covariance import ChannelSpectrum
from multisagd.covariance import SpectralCovariance
from multisagd.description import describe, describe_axis, spectrum_of
from multisagd.grid import Axis, Grid
from multisagd.padding import PaddedCovariance
from multisagd.spectrum import Spectrum

Generators = torch.Generator | Sequence[torch.Generator] | None

NORMAL_DRAWS: tuple[Callable[..., Any], ...] = (torch.randn, torch.randn_like)
"""The functions whose results are noise. All draws in diffusers and torchsde use the first."""

_thread = threading.local()


class ShapedNoise:
    """Draw noise with a given spectrum from PyTorch's generators, for tensors `(batch, channels, *grid)` of any size.

    `ShapedNoise(PowerLaw(-0.5))` is noise for images; for other grids `axes` names the dimensions in the tensor's
    order, for example `("frame", "height", "width")` or `("time",)`. A spectrum in physical units needs the grid
    itself, for its spacing and units: `ShapedNoise(spectrum, grid=Grid.of(time=(16000, 1 / 16000, "s")))`. A covariance
    already has a grid. The last dimensions of a tensor are the grid; their sizes may differ from the sizes of `grid`.

    Raises:
        ValueError: If axes and a grid are both given, the noise is drawn on a padded grid, or it differs between
            channels.
    """

    def __init__(
        self, noise: Spectrum | SpectralCovariance, axes: Sequence[str] | None = None, grid: Grid | None = None
    ) -> None:
        if isinstance(noise, PaddedCovariance):
            raise ValueError("noise drawn on a padded grid cannot colour other noise: remove the padding")
        if isinstance(noise, SpectralCovariance):
            given, noise = noise.grid, noise.spectrum
            if axes is not None or grid is not None:
                raise ValueError("a covariance already has a grid: remove axes and grid")
            grid = given
        if axes is not None and grid is not None:
            raise ValueError("a grid already names its axes: remove axes")
        if isinstance(noise, ChannelSpectrum):
            raise ValueError(
                "noise that differs between channels cannot replace the draws of other programs, whose channels are "
                "unknown: use one spectrum for all channels"
            )
        self.spectrum = noise
        self.axes = grid.axes if grid else tuple(Axis(name, 1) for name in axes or ("height", "width"))
        self._covariance: SpectralCovariance | None = None

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> ShapedNoise:
        """Return the noise given by a description: the inverse of `describe`.

        Raises:
            ValueError: If the description is invalid; see `multisagd.description.spectrum_of`.
        """
        axes = description.get("axes") if isinstance(description, Mapping) else None
        if not isinstance(axes, list) or set(description) != {"spectrum", "axes"}:
            raise ValueError(f"noise must be described by a spectrum and a list of axes, got {description!r:.200}")
        try:
            grid = Grid(tuple(Axis(size=1, **axis) for axis in axes))
        except (TypeError, OverflowError) as error:
            raise ValueError(
                f"an axis of noise must have the keys name, spacing, unit, corner and periodic, got {axes!r:.200}"
            ) from error
        return cls(spectrum_of(description["spectrum"]), grid=grid)

    def describe(self) -> dict[str, Any]:
        """Return the noise as plain data for a configuration: its spectrum and its axes, without sizes.

        Raises:
            ValueError: If the spectrum has no description; see `multisagd.description.describe`.
        """
        axes = [describe_axis(axis) for axis in self.axes]
        without_size = [{name: value for name, value in axis.items() if name != "size"} for axis in axes]
        return {"spectrum": describe(self.spectrum), "axes": without_size}

    @property
    def dimensions(self) -> int:
        """Number of grid dimensions."""
        return len(self.axes)

    @property
    def layout(self) -> str:
        """The required shape of a tensor, as a string."""
        return f"(batch, channels, {', '.join(axis.name for axis in self.axes)})"

    def covariance_like(self, x: Tensor) -> SpectralCovariance:
        """Return the covariance of the noise for tensors `(batch, channels, *grid)` such as x, of any sizes.

        Power is in squared units of x.

        Raises:
            ValueError: If x has too few dimensions, or the spectrum is incompatible with the axes.
        """
        if x.dim() < self.dimensions + 2:
            raise ValueError(
                f"this noise is for tensors of shape {self.layout}, got {tuple(x.shape)}: name the axes of the grid, "
                "for example ShapedNoise(spectrum, axes=('time',))"
            )
        if self._covariance is None:
            self._covariance = SpectralCovariance(self.spectrum, Grid(self.axes).resize(x.shape[-self.dimensions :]))
        return self._covariance

    def color(self, white: Tensor) -> Tensor:
        """Colour white noise `(..., batch, channels, *grid)` of variance 1, in at least float32; its shape is kept."""
        return self.covariance_like(white).color(white)

    def noise(
        self,
        shape: Sequence[int],
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw noise with this shape and mean power 1: `torch.randn(shape, generator=…)`, coloured.

        If there are several generators, each draws one item. Noise is drawn on the generator's device and then moved.

        Raises:
            ValueError: If there are several generators, but not one per item.
        """
        if generator is None or isinstance(generator, torch.Generator):
            return self.color(_randn(shape, generator, device, dtype))
        if len(generator) != shape[0]:
            raise ValueError(f"expected 1 or {shape[0]} generators for a batch of {shape[0]}, got {len(generator)}")
        items = [_randn((1, *shape[1:]), each, device, dtype) for each in generator]
        return self.color(torch.cat(items))

    def noise_like(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Draw noise of mean power 1 with the shape, device and dtype of x: `torch.randn_like(x)`, coloured."""
        return self.noise(x.shape, generator, x.device, x.dtype)

    def draws(self, like: Tensor | None = None) -> Draws:
        """Return a context in which `torch.randn` and `torch.randn_like` draw this noise, in libraries too.

        It applies to shapes `(batch, channels, *grid)` and to shapes with more dimensions before the grid; draws with
        fewer dimensions remain white. The mean power is 1. If `like` is given, a draw that has neither the shape of
        `like` nor of one of its items raises ValueError.
        """
        return Draws(self, like)

    def white_odds(self, x: Tensor) -> float:
        """Return the log of the likelihood ratio between white noise and this noise for x.

        Both are Gaussian with unknown scale, so x `(batch, channels, *grid)` may be scaled by any number. If the
        spectrum has no power at some frequencies, the result is infinite: positive if x has power there, and negative
        if not. For x drawn from this noise, it exceeds `log k` with probability at most 1/k; for a flat spectrum it
        is 0.
        """
        covariance = self.covariance_like(x)
        x = x.detach().to("cpu", torch.float64)
        shape = x.shape[-self.dimensions :]
        energy, support = float(x.square().sum()), covariance.support(shape)
        if energy == 0:
            return 0.0
        if not bool(support.all()):
            empty = float(Grid(self.axes).resize(shape).mean((~support).to(torch.float64)))
            outside = 1 - float(covariance.project(x).square().sum()) / energy
            return math.inf if outside > empty / 2 else -math.inf
        whitened, items = covariance.whiten(x), x.numel() / math.prod(shape)
        gain = x.numel() * math.log(float(whitened.square().sum()) / energy)
        return (gain + items * float(covariance.logdet(shape))) / 2

    def __repr__(self) -> str:
        return f"ShapedNoise({self.spectrum}, axes={tuple(axis.name for axis in self.axes)})"


class Draws(TorchFunctionMode):
    """The context of `ShapedNoise.draws`. It counts draws that it `coloured`, and draws that it `left` white."""

    def __init__(self, shaped: ShapedNoise, like: Tensor | None = None) -> None:
        super().__init__()
        self.shaped = shaped
        self.shapes = None if like is None else (like.shape, (1, *like.shape[1:]), like.shape[1:])
        self.coloured = self.left = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and colour its draws."""
        kwargs = kwargs or {}
        # Contexts may be nested, for example a scheduler's in its pipeline's: the innermost one colours the noise.
        if func not in NORMAL_DRAWS or getattr(_thread, "white", False):
            return func(*args, **kwargs)
        with _white():
            white = func(*args, **kwargs)
        if not self._is_noise(white):
            self.left += 1
            return white
        self.coloured += 1
        # An item drawn by itself has no batch dimension.
        noise = self.shaped.color(white[None])[0]
        return noise if kwargs.get("out") is None else white.copy_(noise)

    def _is_noise(self, white: Tensor) -> bool:
        if self.shapes is None:
            return white.dim() >= self.shaped.dimensions + 2
        if white.shape in self.shapes and len(self.shapes[0]) >= self.shaped.dimensions + 2:
            return True
        raise ValueError(
            f"noise of shape {tuple(white.shape)} was drawn, which cannot be coloured: it must have the sample's "
            f"shape {tuple(self.shapes[0])}, which must have the form {self.shaped.layout}. Add noise to latents "
            "before they are packed"
        )


@contextmanager
def _white() -> Iterator[None]:
    """Keep draws in this thread white, inside any contexts."""
    before, _thread.white = getattr(_thread, "white", False), True
    try:
        yield
    finally:
        _thread.white = before


def _randn(
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    draw_device = device if generator is None else generator.device
    with _white():
        noise = torch.randn(tuple(shape), generator=generator, device=draw_device, dtype=dtype)
    return noise if device is None else noise.to(device)
