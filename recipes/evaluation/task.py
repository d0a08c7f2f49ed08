"""The input of metrics, and their results: rows of a table, each with its uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from modalities.base import Dataset, Modality
from multisagd.metrics.bootstrap import bootstrap_error
from multisagd.metrics.feature_network import ClassifierOutputs, FeatureNetwork, read_samples
from multisagd.metrics.spectral import Curves, item_curves
from recipes.data.parts import NOTHING_HELD_OUT
from recipes.evaluation.classifier import Training, cached_network
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.sets import Sets, read_real
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime

RECOGNISED, RADIAL_ERROR = "recognised as requested", "rms, radially averaged"
"""Names of the rows whose values are scores."""
WIDTH = 92
"""Minimum width of the table in characters, even on a narrow terminal: wrapped names are worse than wrapped lines."""


@dataclass(frozen=True)
class Likelihood:
    """Settings of bits per dimension: the numbers of held-out examples (0 turns it off), steps and random probes."""

    items: int = 0
    steps: int = 50
    probes: int = 1

    def __post_init__(self) -> None:
        if self.items < 0 or min(self.steps, self.probes) < 1:
            raise ValueError(f"expected items >= 0, steps >= 1 and probes >= 1, got {self}")


@dataclass(frozen=True)
class Neighbours:
    """Maximum numbers of samples (`items`) and of training examples (`examples`) in the search for near copies."""

    items: int = 1000
    examples: int = 60_000

    def __post_init__(self) -> None:
        if min(self.items, self.examples) < 2:
            raise ValueError(f"items and examples must be at least 2, got {self.items} and {self.examples}")


@dataclass(frozen=True)
class Networks:
    """Files of pretrained weights; None means the file in torch.hub's folder."""

    inception: Path | None = None
    vggish: Path | None = None
    r3d: Path | None = None


@dataclass(frozen=True)
class EvaluateSettings(SampleSettings):
    """All keys of `configs/evaluate.yaml`: the keys of `configs/sample.yaml`, and the evaluation settings."""

    samples: int
    conditions: int
    samples_from: Path | None
    reference: int | None
    reference_split: Literal["train", "test"]
    reference_root: str | None
    metrics: tuple[str, ...] | Literal["all"]
    splits: int
    bootstrap: int
    bands: int
    directions: int
    neighbours: Neighbours
    likelihood: Likelihood
    networks: Networks
    download: bool
    cache: Path
    classifier: Training

    def __post_init__(self) -> None:
        if self.overlap is not None:
            raise ValueError(
                f"overlap={self.overlap:g}: evaluate compares samples that are drawn at once with examples of their "
                "length: remove it"
            )
        super().__post_init__()
        if self.samples < 4 or self.splits < 1 or self.bootstrap < 0 or min(self.bands, self.directions) < 1:
            raise ValueError(
                "expected samples >= 4, splits >= 1, bootstrap >= 0, bands >= 1 and directions >= 1, got "
                f"{self.samples}, {self.splits}, {self.bootstrap}, {self.bands} and {self.directions}"
            )
        if self.reference is not None and self.reference < 4:
            raise ValueError(f"reference must be null, or at least 4 real examples, got {self.reference}")
        if self.rollout is not None:
            raise ValueError(
                f"rollout={self.rollout}: evaluate compares single samples with examples: remove it, and compare the "
                "files of `multisagd sample rollout=…` with what followed"
            )
        if min(self.conditions, self.members or 0) < 2:
            raise ValueError(
                f"ensembles need at least 2 conditions of 2 members, got conditions={self.conditions} and "
                f"members={self.members}"
            )

    @property
    def uses_test_data(self) -> bool:
        """Whether samples are compared with test data instead of training examples."""
        return self.reference_split == "test" or self.reference_root is not None


@dataclass(frozen=True)
class Row:
    """One value for the samples, and its noise floor: the same statistic for real data, compared with other real data.

    The value and the floor are for equal counts. Errors are standard deviations, or None. `ideal` is the value for
    equal distributions and infinite counts, which shows whether larger or smaller is better.
    """

    name: str
    value: float
    error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    ideal: float | None = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Result:
    """The result of one metric: rows, further contents of the JSON, and notes on the values."""

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON."""
        return {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes), **self.details}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation, which is None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


@dataclass(eq=False)
class Task:
    """The run being evaluated, and the sets of examples to compare.

    Figures are written to `folder`, which contains the samples; `figures` lists their names. `members` is the folder of
    the samples for metrics of ensembles, or None if there are none.
    """

    settings: EvaluateSettings
    runtime: Runtime
    train: Dataset
    test: Dataset | None
    sets: Sets
    folder: Path
    members: Path | None = None
    figures: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> Dataset:
        """Examples that the run was not trained on. Raises ValueError if no example was held out."""
        if self.test is None:
            raise ValueError(NOTHING_HELD_OUT)
        return self.test

    @property
    def modality(self) -> Modality:
        """The modality of the data."""
        return self.train.modality

    @cached_property
    def curves(self) -> tuple[dict[str, Curves], dict[str, Curves]]:
        """The power spectrum of every sample, and of every real example."""
        grid, bands = self.modality.grid(), self.settings.bands
        made, real = (item_curves(self.sets.batches(real=each), grid, bands) for each in (False, True))
        return made, real

    @cached_property
    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """Divisions of the real examples into (reference, others), by `Sets.halves`."""
        return [self.sets.halves(number) for number in range(self.settings.splits)]

    def row(
        self, name: str, statistic: Callable[[Tensor, Tensor], float], made: Tensor, real: Tensor,
        ideal: float | None = 0.0, unit: str = "",
    ) -> Row:  # fmt: skip
        """Return a table row for `statistic(samples, reference)`, with its bootstrap error and its noise floor.

        `made` has one entry for each sample and `real` one for each real example. If `unit` is `%`, `statistic` must
        return a fraction in [0, 1]; the row contains percentages.
        """
        sets, scale = self.sets, 100 if unit == "%" else 1
        floors = [scale * statistic(real[other], real[one]) for one, other in self.halves]
        reference = real[: sets.reference_count]
        error = bootstrap_error(
            lambda a, b: statistic(made[a], reference[b]), sets.sizes, self.settings.bootstrap, sets.references
        )
        value = scale * statistic(made, reference)
        return Row(name, value, None if error is None else scale * error, *mean_and_std(floors), ideal, unit)

    def read_held_out(self, counts: Sequence[int]) -> list[Tensor]:
        """Return up to `counts` held-out examples per class (or in total), rounded as in decoded files.

        Raises ValueError if no example was held out.
        """
        return read_real(self.held_out, counts, self.sets.labels is not None, "reading held-out examples")[0]

    @cached_property
    def classifier(self) -> tuple[FeatureNetwork, dict[str, Any]]:
        """The classifier of the data and its record, from the cache or trained now.

        Raises ValueError if neither is possible.
        """
        return cached_network(self.train, self.test, self.settings.cache, self.settings.classifier)

    @cached_property
    def classifier_outputs(self) -> tuple[ClassifierOutputs, ClassifierOutputs]:
        """The classifier's outputs for the samples and for the real examples."""
        network, _ = self.classifier
        return read_samples(network, self.sets.samples, self.sets.labels), read_samples(network, self.sets.real)

    def figure_path(self, name: str) -> Path:
        """Add a figure's name to `figures`, and return its path."""
        self.figures.append(name)
        return self.folder / name


def as_vectors(x0: Tensor) -> Tensor:
    """Return data as vectors `(count, channels * samples)`, float32."""
    return x0.flatten(1).to(torch.float32)


def scores(results: Mapping[str, Result]) -> dict[str, float | None]:
    """Return the most informative values of the computed metrics.

    `frechet_distance` is from the first metric in `METRICS` that has one, and `frechet_distance_floor` is its value for
    real data. `recognised` is the fraction of samples that the classifier recognises, from 0 to 1. `spectrum_error_db`
    is the root mean square error of the radially averaged power, in dB.
    """
    rows = [row for kind in METRICS if kind in results for row in results[kind].rows]
    result: dict[str, float | None] = {}
    if distances := [row for row in rows if row.name.endswith("Fréchet distance")]:
        result = {"frechet_distance": distances[0].value, "frechet_distance_floor": distances[0].floor}
    named = {row.name: row.value for row in rows}
    if RECOGNISED in named:
        result["recognised"] = named[RECOGNISED] / 100
    if RADIAL_ERROR in named:
        result["spectrum_error_db"] = named[RADIAL_ERROR]
    return result


def remarks(task: Task, results: Mapping[str, Result], unavailable: Mapping[str, str]) -> list[str]:
    """Return remarks on the values: uncertainty, bias, fewer items than requested, missing metrics."""
    sets, settings = task.sets, task.settings
    unreadable = {**task.train.unreadable, **(task.test.unreadable if task.test is not None else {})}
    lines = [
        f"± of samples is a standard error (from {settings.bootstrap} bootstrap resamples, or over independent items); "
        f"± of real data is the standard deviation over {settings.splits} divisions into halves.",
        "Bias: with finite counts, Fréchet and sliced distances and root mean square errors are too large, and "
        "precision, recall and coverage are too small; the column of real data shows by how much for "
        f"{sets.count:,} samples. Fractions in other classes are too large. KID and the errors of single bands have no "
        "bias. Compare only values for equal counts.",
    ]
    if all(METRICS[name].ensembles for name in results):
        lines = []  # no sets are compared
    elif sets.count < sets.requested:
        of = "" if sets.labels is None else " of their classes"
        lines.append(
            f"note: {sets.count:,} of {sets.requested:,} samples were compared: there are too few real examples{of}"
        )
    lines += [f"note: {note}" for result in results.values() for note in result.notes]
    if unreadable:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:5])
        lines.append(f"note: {len(unreadable)} files could not be read and were replaced by others: {named}")
    return lines + [
        f"not computed: {name} ({METRICS[name].description}): {reason}" for name, reason in unavailable.items()
    ]


def show(title: str, results: Mapping[str, Result], lines: Sequence[str]) -> None:
    """Print the rows as a table, followed by the notes."""
    table = Table("what", "samples", "real against real", "ideal", box=box.SIMPLE, title=title, title_justify="left")
    for kind, result in results.items():
        table.add_section()
        table.add_row(f"[bold]{kind}[/bold]", "", "", "")
        for row in result.rows:
            ideal = "" if row.ideal is None else f"{row.ideal:g}"
            table.add_row(
                f"  {row.name}", _number(row.value, row.error, row.unit), _number(row.floor, row.floor_error, row.unit),
                ideal,
            )  # fmt: skip
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _number(value: float | None, error: float | None, unit: str) -> str:
    if value is None:
        return "-"
    unit = f" {unit}" if unit else ""
    return f"{value:.4g}{unit}" if error is None else f"{value:.4g} ± {error:.2g}{unit}"
