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
    from matplotlib.image import AxesImage

    from modalities.variables import Variable


MAX_PIXELS = 4e7
"""Maximum number of pixels of a figure: one with many examples and channels has a lower resolution."""
MAX_PLOTS = 36
"""Maximum number of images with axes of their own; more are drawn as tiles, because plots take 0.1 s each."""
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

    One dimension is drawn as lines, two as images with a colour bar (without ticks if there are many), and of more
    dimensions the middle slice along all axes except the last two. The scale of a channel is the same for all tensors,
    and in its unit if `variables` gives it. Points where a mask `(1 or channels, *grid)` is false, or a value is not
    finite, are grey in images, and gaps in lines. Axes are labelled with units.

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
    width, height = (2.4, 1.8) if grid.dimensions == 1 or len(tensors) <= MAX_PLOTS else (1.2, 0.9)
    figure = _empty_figure(width * columns + 1.4, channels * (height * rows + 0.6))
    blocks = figure.subfigures(channels, 1, squeeze=False)[:, 0]
    draw = _draw_lines if grid.dimensions == 1 else _draw_images if len(tensors) <= MAX_PLOTS else _draw_tiles
    for channel, block in enumerate(blocks):
        variable = None if variables is None else variables[channel]
        values = [x[channel] if variable is None else variable.decode(x[channel]) for x in shown]
        label = f"channel {channel + 1}" if variable is None and channels > 1 else variable.label if variable else ""
        draw(block, values, grid, columns, names, label)
    save_figure(figure, path)


def _valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return a tensor as float64 on the CPU, with NaN where it is masked or not finite."""
    x = x.detach().to("cpu", torch.float64)
    hidden = ~x.isfinite() if mask is None else ~(x.isfinite() & mask.cpu())
    return x.masked_fill(hidden, math.nan)


def _draw_lines(
    block: SubFigure, values: Sequence[Tensor], grid: Grid, columns: int, names: Sequence[str] | None, label: str
) -> None:
    axis, (low, high) = grid.axes[0], _range(values)
    margin = 0.05 * (high - low)
    plots = _add_plots(block, len(values), columns, _label(axis), names)
    for plot, line in zip(plots, values, strict=True):
        plot.plot([axis.spacing * sample for sample in range(axis.size)], line.numpy(), linewidth=0.7)
        plot.set_ylim(low - margin, high + margin)
    block.supylabel(label, fontsize="small")


def _draw_images(
    block: SubFigure, values: Sequence[Tensor], grid: Grid, columns: int, names: Sequence[str] | None, label: str
) -> None:
    vertical, horizontal = grid.axes[-2:]
    extent = (0.0, horizontal.size * horizontal.spacing, 0.0, vertical.size * vertical.spacing)
    plots = _add_plots(block, len(values), columns, _label(horizontal), names)
    limits = _range(values)
    images = [_image(plot, each, extent, limits) for plot, each in zip(plots, values, strict=True)]
    for plot in plots:
        plot.set_ylabel(_label(vertical), fontsize="x-small")
        plot.label_outer()
    _add_bar(block, images[0], plots, label)


def _draw_tiles(
    block: SubFigure, values: Sequence[Tensor], grid: Grid, columns: int, names: Sequence[str] | None, label: str
) -> None:
    """Draw many images side by side in one plot, without ticks."""
    width, height = (grid.axes[dim].size * grid.axes[dim].spacing for dim in (-1, -2))
    plot, images, limits = block.add_subplot(), [], _range(values)
    for index, each in enumerate(values):
        left, top = 1.05 * width * (index % columns), -1.2 * height * (index // columns)
        images.append(_image(plot, each, (left, left + width, top - height, top), limits))
        if names is not None:
            plot.text(left, top, names[index], fontsize="x-small", parse_math=False, clip_on=True, va="bottom")
    plot.set(xlim=(0, 1.05 * width * columns), ylim=(top - height, 0.2 * height))
    plot.set(xticks=(), yticks=(), frame_on=False)
    for name, axis, size in (("xlabel", grid.axes[-1], width), ("ylabel", grid.axes[-2], height)):
        plot.set(**{name: f"{_label(axis)}, each 0 to {size:.4g}"})
    _add_bar(block, images[0], [plot], label)


def _image(
    plot: Axes, values: Tensor, extent: tuple[float, float, float, float], limits: tuple[float, float]
) -> AxesImage:
    import matplotlib

    while values.ndim > 2:
        values = values[values.shape[0] // 2]
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=MASKED)
    low, high = limits
    return plot.imshow(values.numpy(), colours, aspect="auto", origin="lower", extent=extent, vmin=low, vmax=high)


def _add_bar(block: SubFigure, image: AxesImage, plots: Sequence[Axes], label: str) -> None:
    bar = block.colorbar(image, ax=list(plots), fraction=0.05, aspect=30)
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
