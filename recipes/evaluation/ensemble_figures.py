"""Figures of ensembles: some examples with their samples, and scores by frequency and rank."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from modalities.base import Modality
from modalities.figures import plot_tensors
from modalities.image import Image
from multisagd import Grid
from multisagd.analysis.profiles import RADIUS, Profile, unit_of
from recipes.evaluation.members import Ensemble
from recipes.plotting.figures import COLUMN, SAMPLES, draw_power, save

EXAMPLES, SHOWN = 4, 3
"""Maximum numbers of examples, and of samples of each, in a figure."""


class Curves(NamedTuple):
    """What is plotted of a variable: power by name at the frequencies of rings, and the fractions of ranks."""

    frequency: Tensor
    power: Mapping[str, Tensor]
    ranks: Tensor


def draw_examples(made: Ensemble, modality: Modality, path: Path) -> None:
    """Draw a row for each of some examples: condition, truth, plain estimate, some samples, and the mean of all.

    Samples of a coarser condition are repeated. What is unknown of it is grey, or 0 if the medium has no grey. A
    condition with other channels than the data is not shown.
    """
    with_condition = made.condition.shape[1] == modality.channels
    count = min(SHOWN, len(made.members))
    tensors: list[Tensor] = []
    masks: list[Tensor | None] = []
    names: list[str] = []
    for item in range(min(EXAMPLES, len(made.truth))):
        valid = None if made.valid is None else made.valid[item]
        row = [made.truth[item], made.plain[item], *made.members[:count, item], made.members[:, item].mean(0)]
        names += ["condition"] * with_condition
        names += ["truth", "plain", *(f"sample {number}" for number in range(1, count + 1)), "mean"]
        if with_condition:
            tensors.append(repeated(made.condition[item], modality.grid()))
            masks.append(tensors[-1].isfinite())
        tensors += row
        masks += [valid] * len(row)
    columns = count + 3 + with_condition
    if isinstance(modality, Image):
        media = [modality.decode(each.nan_to_num(0.0)) for each in tensors]
        modality.save_grid(media, path, columns, names=names)
    else:
        plot_tensors(
            tensors, modality.grid(), path, columns, names, masks=masks, variables=modality.variables or None
        )  # fmt: skip


def repeated(condition: Tensor, grid: Grid) -> Tensor:
    """Return a condition (channels, *grid or coarser) on the grid, by repeating its samples."""
    for axis, size in enumerate(grid.shape, start=1):
        condition = condition.repeat_interleave(size // condition.shape[axis], dim=axis)
    return condition


def draw_scores(found: Mapping[str, Curves], colours: Mapping[str, str], grid: Grid, path: Path) -> None:
    """Plot the power of each variable in rings of frequency, and below it the histogram of ranks."""
    figure = Figure(figsize=(COLUMN * len(found) + 0.6, 5.6), layout="constrained")
    above, below = figure.subplots(2, len(found), squeeze=False, height_ratios=(3, 2))
    for upper, lower, (name, curves) in zip(above, below, found.items(), strict=True):
        for label, power in curves.power.items():
            draw_power(upper, Profile(curves.frequency, power), label, markersize=4, color=colours[label])
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_minor_formatter(NullFormatter())
        upper.set(title=name, xlabel=unit_of(RADIUS, grid))
        _draw_ranks(lower, curves.ranks)
    above[0].set_ylabel("power")
    below[0].set_ylabel("fraction of points")
    figure.legend(*above[0].get_legend_handles_labels(), fontsize="small", loc="outside upper right", ncols=2)
    save(figure, path)


def _draw_ranks(plot: Axes, ranks: Tensor) -> None:
    plot.bar(range(len(ranks)), ranks.tolist(), 0.9, color=SAMPLES)
    plot.axhline(1 / len(ranks), color="black", linewidth=0.8, linestyle="--")
    plot.set(xlabel="samples that are smaller than the truth")
