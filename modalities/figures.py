"""Plots of encoded tensors of any modality, from its grid only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from multisagd.grid import Axis, Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_tensors(
    tensors: Sequence[Tensor],
    grid: Grid,
    path: Path,
    columns: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Plot tensors `(channels, *grid)` in one PNG file: lines in one dimension, the first channel as an image in two.

    In three or more dimensions, the middle slice along all axes except the last two is drawn. Axes are labelled with
    units.

    Raises:
        ValueError: If there are no tensors, or the path does not end in .png.
    """
    figure = labelled_figure(len(tensors), path, _label(grid.axes[-1]), columns, names, cell=(2.4, 1.8))
    for plot, tensor in zip(figure.axes, tensors, strict=True):
        values = tensor.detach().float().cpu()
        if grid.dimensions == 1:
            axis = grid.axes[0]
            for channel in values:
                plot.plot([axis.spacing * sample for sample in range(axis.size)], channel.numpy(), linewidth=0.7)
        else:
            image = values[0]
            while image.ndim > 2:
                image = image[image.shape[0] // 2]
            vertical, horizontal = grid.axes[-2:]
            extent = (0.0, horizontal.size * horizontal.spacing, 0.0, vertical.size * vertical.spacing)
            plot.imshow(image.numpy(), aspect="auto", origin="lower", extent=extent)
            plot.set_ylabel(_label(vertical), fontsize="x-small")
    save_figure(figure, path)


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if count == 0:
        raise ValueError(f"a figure needs at least one {item}, got none for {path}")
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are written as PNG: {path} must end in .png")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(cell[0] * columns + margin, cell[1] * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for index in range(count):
        plot = figure.add_subplot(rows, columns, index + 1)
        if names is not None:
            plot.set_title(names[index], fontsize="small", parse_math=False)
        plot.set_xlabel(x_label, fontsize="x-small")
        plot.tick_params(labelsize="x-small")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100)


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
