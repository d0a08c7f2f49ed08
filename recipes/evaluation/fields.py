"""Metrics of fields, variable by variable in its unit: rings of frequency, single values, increments, and coherence.

They apply to every modality that names its variables (`Modality.variables`). Missing values are ignored.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from modalities.base import Dataset
from modalities.variables import Variable
from multisagd.analysis.profiles import RADIUS, unit_of
from multisagd.metrics.coherence import band_correlation, item_cross_powers
from multisagd.metrics.increments import ORDERS, lags_along, structure_error, structure_functions, structure_sums
from multisagd.metrics.one_point import (
    Moments,
    cumulative,
    difference_sums,
    distribution_edges,
    fractions,
    moments,
    power_sums,
    wasserstein_distance,
)
from multisagd.metrics.spectral import Curves, decibels, radial_curve, ring_errors
from recipes.evaluation.spectra import draw_spectra
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task
from recipes.plotting.figures import COLUMN, REAL, SAMPLES, save

SHOWN_EVERY = 8
"""Number of intervals between edges that one point of the plotted densities averages."""


def variables_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why there are no variables to compare, or None if there are."""
    return None if train.modality.variables else "the data are not fields of named variables (modality=field)"


def coherence_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why there are no two variables to compare, or None if there are."""
    if reason := variables_unavailable(train, settings):
        return reason
    return None if train.modality.channels > 1 else "there is only one variable"


@dataclass(frozen=True)
class Values:
    """The values of one variable in its unit, of samples or of real data: batches `(count, 1, *grid)` with masks."""

    task: Task
    number: int
    real: bool

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        variable, channel = _variables(self.task)[self.number], slice(self.number, self.number + 1)
        for x0, mask in self.task.sets.batches(real=self.real):
            yield (
                variable.decode(x0[:, channel].double()),
                mask if mask is None or mask.shape[1] == 1 else mask[:, channel],
            )

    def valid(self) -> Tensor:
        """Return all values that are not masked, `(values,)`."""
        return torch.cat([x.flatten() if mask is None else x[mask.expand_as(x)] for x, mask in self])


def _variables(task: Task) -> Sequence[Variable]:
    return task.modality.variables or ()


def _both(task: Task, number: int) -> tuple[Values, Values]:
    return Values(task, number, real=False), Values(task, number, real=True)


def _prefix(task: Task, variable: Variable) -> str:
    return f"{variable.name}: " if len(_variables(task)) > 1 else ""


def rings(task: Task) -> Result:
    """Compare the power of every variable in every ring of frequency, in decibels."""
    grid, (one, other) = task.modality.grid(), task.halves[0]
    rows: list[Row] = []
    curves: dict[str, tuple[Curves, Curves]] = {}
    for number, variable in enumerate(_variables(task)):
        made, real = (radial_curve(values, grid) for values in _both(task, number))
        curves[variable.label] = made, real
        for name, statistic in (
            ("rms over rings", lambda a, b: ring_errors(a, b).rms),
            ("quietest third of rings", lambda a, b: ring_errors(a, b).quietest_third),
            ("worst ring", lambda a, b: ring_errors(a, b).worst),
        ):
            rows.append(task.row(f"{_prefix(task, variable)}{name}", statistic, made.values, real.values, unit="dB"))

    def part(index: Tensor) -> dict[str, Curves]:
        return {name: Curves(real.frequency, real.values[index]) for name, (_, real) in curves.items()}

    made_curves = {name: made for name, (made, _) in curves.items()}
    units = dict.fromkeys(curves, unit_of(RADIUS, grid))
    draw_spectra(made_curves, part(one), part(other), units, task.figure_path("evaluate_rings.png"))
    details = {
        name: {
            "frequency": made.frequency.tolist(),
            "decibels": decibels(made.values, real.values[one]).tolist(),
            "samples": made.values.mean(0).tolist(),
            "data": real.values.mean(0).tolist(),
        }
        for name, (made, real) in curves.items()
    }
    return Result(tuple(rows), {"curves": details})


def distribution(task: Task) -> Result:
    """Compare the distribution of every variable's values, and of their differences between neighbours."""
    rows: list[Row] = []
    details: dict[str, object] = {}
    figure, plots = _columns(task)
    for number, (variable, plot) in enumerate(zip(_variables(task), plots, strict=True)):
        with _naming(variable):
            of_values, found = _moment_rows(task, number)
            of_differences, more = _difference_rows(task, number)
            rows += [*of_values, *of_differences, _distance_row(task, number, plot)]
        details[variable.name] = {"values": found, **more}
        plot.set(xlabel=variable.label, yscale="log")
    plots[0].set_ylabel("density")
    _finish(figure, plots, task, "evaluate_distribution.png")
    return Result(tuple(rows), {"variables": details})


def _moment_rows(task: Task, number: int) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Return the rows of the moments of one variable's values, and the moments themselves."""
    made, real = _both(task, number)
    variable = _variables(task)[number]
    prefix, total = _prefix(task, variable), power_sums(real).sum(0)
    centre = float(total[1] / total[0])
    sums = power_sums(made, centre), power_sums(real, centre)
    rows = [
        replace(task.row(f"{prefix}mean difference", _difference("mean"), *sums), unit=variable.unit),
        task.row(f"{prefix}deviation ratio", _ratio("deviation"), *sums, ideal=1.0),
        task.row(f"{prefix}skewness difference", _difference("skewness"), *sums),
        task.row(f"{prefix}kurtosis ratio", _ratio("kurtosis"), *sums, ideal=1.0),
    ]
    return rows, _described(*sums, centre, task.sets.reference_count)


def _difference_rows(task: Task, number: int) -> tuple[list[Row], dict[str, dict[str, dict[str, float]]]]:
    """Return the rows of the kurtosis of differences between neighbours, along single axes and pairs of axes."""
    grid = task.modality.grid()
    made, real = _both(task, number)
    long = [axis.name for axis in grid.axes if axis.size > 1]
    rows, found = [], {}
    for names in (*combinations(long, 1), *combinations(long, 2)):
        sums = difference_sums(made, grid, names), difference_sums(real, grid, names)
        what = "".join(f"∂{name}" for name in names)
        name = f"{_prefix(task, _variables(task)[number])}kurtosis ratio of {what}"
        rows.append(task.row(name, _ratio("kurtosis"), *sums, ideal=1.0))
        found[what] = _described(*sums, 0.0, task.sets.reference_count)
    return rows, found


def _distance_row(task: Task, number: int, plot: Axes) -> Row:
    """Return the row of the distance between one variable's distributions, and plot their densities."""
    made, real = _both(task, number)
    variable = _variables(task)[number]
    edges = distribution_edges(torch.cat([made.valid(), real.valid()]))
    counts = cumulative(made, edges), cumulative(real, edges)
    for each, label, colour in (
        (counts[1][: task.sets.reference_count], "data", REAL),
        (counts[0], "samples", SAMPLES),
    ):
        _draw_density(plot, fractions(each), edges, label, colour)

    def distance(one: Tensor, other: Tensor) -> float:
        return wasserstein_distance(one, other, edges)

    row = task.row(f"{_prefix(task, variable)}Wasserstein-1 distance", distance, *counts)
    return replace(row, unit=variable.unit)


def _difference(name: str) -> Callable[[Tensor, Tensor], float]:
    return lambda made, real: float(getattr(moments(made), name) - getattr(moments(real), name))


def _ratio(name: str) -> Callable[[Tensor, Tensor], float]:
    return lambda made, real: float(getattr(moments(made), name) / getattr(moments(real), name))


@contextmanager
def _naming(variable: Variable) -> Iterator[None]:
    """Name the variable in errors of the `with` block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{variable.name}: {error}") from error


def _described(made: Tensor, real: Tensor, centre: float, reference: int) -> dict[str, dict[str, float]]:
    both: dict[str, Moments] = {"samples": moments(made, centre), "data": moments(real[:reference], centre)}
    return {name: each._asdict() for name, each in both.items()}


def _draw_density(plot: Axes, below: Tensor, edges: Tensor, label: str, colour: str) -> None:
    """Plot a density from the fractions of values `(edges,)` that are at most each edge."""
    kept = torch.arange(0, len(edges), SHOWN_EVERY)
    density = below[kept].diff() / edges[kept].diff()
    middle = (edges[kept][1:] + edges[kept][:-1]) / 2
    shown = density.where(density > 0, float("nan"))  # a logarithmic axis has no zero
    plot.plot(middle.numpy(), shown.numpy(), color=colour, label=label)


def increments(task: Task) -> Result:
    """Compare structure functions, the mean absolute powers of increments, along every axis and at several lags."""
    grid = task.modality.grid()
    axes = [axis for axis in grid.axes if lags_along(axis)]
    if not axes:
        raise ValueError("there are no increments: every axis has a single sample")
    rows: list[Row] = []
    details: dict[str, object] = {}
    figure, plots = _columns(task)
    for number, (variable, plot) in enumerate(zip(_variables(task), plots, strict=True)):
        found: dict[str, object] = {}
        for axis in axes:
            lags = lags_along(axis)
            made, real = (structure_sums(values, grid, axis.name, lags) for values in _both(task, number))
            for place, order in enumerate(ORDERS):
                name = f"{_prefix(task, variable)}S{order} along {axis.name}, rms"
                rows.append(task.row(name, partial(structure_error, number=place), made, real, unit="dB"))
            distances = [lag * axis.spacing for lag in lags]
            curves = structure_functions(made), structure_functions(real[: task.sets.reference_count])
            found[axis.name] = {
                "distance": distances, "unit": axis.unit, "orders": ORDERS,
                "samples": curves[0].tolist(), "data": curves[1].tolist(),
            }  # fmt: skip
            if axis is axes[-1]:
                _draw_structure(plot, distances, *curves)
                plot.set(xlabel=f"{axis.name}, {axis.unit}", title=variable.label)
        details[variable.name] = found
    plots[0].set_ylabel("structure functions S2, S3, S4")
    _finish(figure, plots, task, "evaluate_increments.png")
    return Result(tuple(rows), {"variables": details})


def _draw_structure(plot: Axes, distances: Sequence[float], made: Tensor, real: Tensor) -> None:
    for curves, label, colour in ((real, "data", REAL), (made, "samples", SAMPLES)):
        for place in range(len(ORDERS)):
            shown = {"label": label} if place == 0 else {}
            plot.loglog(distances, curves[:, place].clamp(min=1e-300).numpy(), marker=".", color=colour, **shown)


def coherence(task: Task) -> Result:
    """Compare the correlation of every two variables in every band of frequency; its square is the coherence."""
    grid, names = task.modality.grid(), [variable.name for variable in _variables(task)]

    def decoded(real: bool) -> list[tuple[Tensor, Tensor | None]]:
        batches = task.sets.batches(real=real)
        return [
            (torch.stack([v.decode(x0[:, n].double()) for n, v in enumerate(_variables(task))], dim=1), mask)
            for x0, mask in batches
        ]

    (edges, made), (_, real) = (item_cross_powers(decoded(each), grid, task.settings.bands) for each in (False, True))
    curves = band_correlation(made), band_correlation(real[: task.sets.reference_count])
    rows, details = [], {}
    for one, other in combinations(range(len(names)), 2):

        def error(a: Tensor, b: Tensor, one: int = one, other: int = other) -> float:
            difference = (band_correlation(a) - band_correlation(b))[:, one, other]
            return float(difference.square().mean().sqrt())

        pair = f"{names[one]} and {names[other]}"
        rows.append(task.row(f"{pair}: correlation, rms", error, made, real))
        details[pair] = {
            "samples": curves[0][:, one, other].tolist(), "data": curves[1][:, one, other].tolist(),
        }  # fmt: skip
    _draw_coherence(edges, details, task)
    return Result(tuple(rows), {"edges": edges, "correlation": details})


def _draw_coherence(edges: Sequence[tuple[float, float]], pairs: dict[str, dict[str, list[float]]], task: Task) -> None:
    figure = Figure(figsize=(COLUMN * len(pairs) + 0.4, 3.2), layout="constrained")
    plots = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for plot, (pair, curves) in zip(plots, pairs.items(), strict=True):
        for name, colour in (("data", REAL), ("samples", SAMPLES)):
            plot.plot([(low + high) / 2 for low, high in edges], curves[name], marker=".", color=colour, label=name)
        plot.set(title=pair, xlabel="cycles per sample", ylim=(-1.05, 1.05))
    plots[0].set_ylabel("correlation in the band")
    _finish(figure, plots, task, "evaluate_coherence.png")


def _columns(task: Task) -> tuple[Figure, Sequence[Axes]]:
    count = len(_variables(task))
    figure = Figure(figsize=(COLUMN * count + 0.4, 3.4), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _finish(figure: Figure, plots: Sequence[Axes], task: Task, name: str) -> None:
    figure.legend(*plots[0].get_legend_handles_labels(), fontsize="small", loc="outside upper right", ncols=2)
    save(figure, task.figure_path(name))
