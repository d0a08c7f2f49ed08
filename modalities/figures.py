"""Plots of encoded tensors of any modality, from its grid only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multisagd.grid import Axis, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase, SubFigure

    from modalities.base import Variable


MAX_PIXELS = 4e7
"""Maximum number of pixels of a figure: one with many examples and channels has a lower resolution."""
MASKED = "0.6"
"""Grey of masked points, which the colours of values do not contain."""


def plot_tensors(
    tensors: Sequence[Tensor],
    grid: Grid,
    path: Path,
    columns: int | None = None,
    names: Sequence[str] | None = None,
    *,
    masks: Sequence[Tensor | None] | None = None,
    variables: Sequence[Variable] | None = None,
) -> None:
    """Plot tensors `(channels, *grid)` in one PNG file, each channel in a block of its own with a scale of its own.

    One dimension is drawn as lines, two as images with a colour bar, and of more dimensions the middle slice along all
    axes except the last two. The scale of a channel is the same for all tensors, and in its unit if `variables` gives
    it. Points where a mask `(1 or channels, *grid)` is false, or a value is not finite, are grey in images, and gaps in
    lines. Axes are labelled with units.

    Raises:
        ValueError: If there are no tensors, the path does not end in .png, or `variables` does not have one variable
            per channel.
    """
    _check(len(tensors), path, "item")
    channels = len(tensors[0])
    if variables is not None and len(variables) != channels:
        raise ValueError(f"variables must describe each of {channels} channels, got {len(variables)}")
    shown = [_valid(x, mask) for x, mask in zip(tensors, masks or [None] * len(tensors), strict=True)]
    columns = columns or math.ceil(math.sqrt(len(tensors)))
    rows = math.ceil(len(tensors) / columns)
    figure = _empty_figure(2.4 * columns + 1.4, channels * (1.8 * rows + 0.6))
    blocks = figure.subfigures(channels, 1, squeeze=False)[:, 0]
    for channel, block in enumerate(blocks):
        variable = None if variables is None else variables[channel]
        values = [x[channel] if variable is None else variable.offset + variable.scale * x[channel] for x in shown]
        plots = _add_plots(block, len(tensors), columns, _label(grid.axes[-1]), names)
        label = f"channel {channel + 1}" if variable is None and channels > 1 else variable.label if variable else ""
        (_draw_lines if grid.dimensions == 1 else _draw_images)(block, plots, values, grid, label)
    save_figure(figure, path)


def _valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return a tensor as float64 on the CPU, with NaN where it is masked or not finite."""
    x = x.detach().to("cpu", torch.float64)
    hidden = ~x.isfinite() if mask is None else ~(x.isfinite() & mask.cpu())
    return x.masked_fill(hidden, math.nan)


def _draw_lines(block: SubFigure, plots: Sequence[Axes], values: Sequence[Tensor], grid: Grid, label: str) -> None:
    axis, (low, high) = grid.axes[0], _range(values)
    margin = 0.05 * (high - low)
    for plot, line in zip(plots, values, strict=True):
        plot.plot([axis.spacing * sample for sample in range(axis.size)], line.numpy(), linewidth=0.7)
        plot.set_ylim(low - margin, high + margin)
    block.supylabel(label, fontsize="small")


def _draw_images(block: SubFigure, plots: Sequence[Axes], values: Sequence[Tensor], grid: Grid, label: str) -> None:
    import matplotlib

    colours = matplotlib.colormaps["viridis"].with_extremes(bad=MASKED)
    vertical, horizontal = grid.axes[-2:]
    extent = (0.0, horizontal.size * horizontal.spacing, 0.0, vertical.size * vertical.spacing)
    low, high = _range(values)
    for plot, image in zip(plots, values, strict=True):
        while image.ndim > 2:
            image = image[image.shape[0] // 2]
        drawn = plot.imshow(image.numpy(), colours, aspect="auto", origin="lower", extent=extent, vmin=low, vmax=high)
        plot.set_ylabel(_label(vertical), fontsize="x-small")
        plot.label_outer()
    bar = block.colorbar(drawn, ax=list(plots), fraction=0.05, aspect=30)
    bar.set_label(label, fontsize="small")
    bar.ax.tick_params(labelsize="x-small")


def _range(values: Sequence[Tensor]) -> tuple[float, float]:
    """Return the lowest and the highest value, further apart than 0; NaN is ignored."""
    every = torch.cat([each.flatten() for each in values])
    every = every[~every.isnan()]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def labelled_figure(
    count: int,
    path: Path,
    x_label: str,
    columns: int | None = None,
    names: Sequence[str] | None = None,
    *,
    cell: tuple[float, float],
    margin: float = 0.6,
    item: str = "item",
) -> Figure:
    """Return a figure with a grid of `count` empty plots, titled by `names`, to be saved at `path`.

    `cell` is the width and height of a plot, and `margin` the additional width of the figure, all in inches. `item` is
    the word for a plotted object in the error message.

    Raises:
        ValueError: If `count` is 0, or the path does not end in .png.
    """
    _check(count, path, item)
    columns = columns or math.ceil(math.sqrt(count))
    figure = _empty_figure(cell[0] * columns + margin, cell[1] * math.ceil(count / columns) + 0.6)
    _add_plots(figure, count, columns, x_label, names)
    return figure


def _check(count: int, path: Path, item: str) -> None:
    if count == 0:
        raise ValueError(f"a figure needs at least one {item}, got none for {path}")
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are written as PNG: {path} must end in .png")


def _empty_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _add_plots(figure: FigureBase, count: int, columns: int, x_label: str, names: Sequence[str] | None) -> list[Axes]:
    """Add a grid of `count` empty plots, titled by `names`, to a figure or a part of one."""
    plots = []
    for index in range(count):
        plot = figure.add_subplot(math.ceil(count / columns), columns, index + 1)
        if names is not None:
            plot.set_title(names[index], fontsize="small", parse_math=False)
        plot.set_xlabel(x_label, fontsize="x-small")
        plot.tick_params(labelsize="x-small")
        plots.append(plot)
    return plots


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = figure.get_size_inches()
    # Beyond 2^16 pixels on a side, matplotlib refuses.
    dpi = min(100.0, math.sqrt(MAX_PIXELS / (width * height)), 6e4 / max(width, height))
    figure.savefig(path, format="png", dpi=dpi)


def name_strip(name: str, width: int, height: int = 14) -> Tensor:
    """Draw a name as an image `(1, height, width)`, uint8, white on black, shortened to fit the width."""
    import matplotlib
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont
    from torchvision.transforms.v2.functional import pil_to_tensor

    # This font covers many scripts; Pillow's font does not.
    font = PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), height - 4)
    shown = " ".join(name.split())
    while len(shown) > 1 and font.getlength(shown) > width - 2:
        shown = f"{shown[:-2]}…"
    strip = PIL.Image.new("L", (width, height))
    PIL.ImageDraw.Draw(strip).text((1, 0), shown, fill=255, font=font)
    return pil_to_tensor(strip)


def _label(axis: Axis) -> str:
    return f"{axis.name} ({axis.unit})"
