"""The parts of the page, in their order. One that cannot be made says why, and the others are made all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from modalities.base import Modality
from recipes.base.quoting import setting
from recipes.config.build import Builder
from recipes.reports.blocks import Block, Note, Section
from recipes.reports.comparison import comparison_blocks
from recipes.reports.defaults import settings as run_settings
from recipes.reports.evaluation import evaluation_blocks
from recipes.reports.losses import loss_charts
from recipes.reports.media import Budget
from recipes.reports.process import assembly, examples, process_blocks, strips
from recipes.reports.run import MALFORMED, Run, shortened
from recipes.reports.samples import SampleSet, sample_blocks, sample_sets
from recipes.reports.spectra import noise_power, power_of, spectrum_charts
from recipes.reports.summary import environment_blocks, summary_blocks
from recipes.runs.located import located
from recipes.runs.settings import Group

INSTEAD = 2
"""Samples that are shown at growing noise where there are no data."""


@dataclass(frozen=True)
class Shown:
    """How much is shown: examples of the data, pictures of training, samples of a set, and sets, at most.

    `data` are keys of the run's data that the command line gives, such as where they are now.
    """

    examples: int
    pictures: int
    media: int
    sets: int
    data: Group


def sections(runs: Sequence[Run], shown: Shown, builder: Builder, budget: Budget) -> list[Section]:
    """Return the parts of the page. Media are taken in by their order here, until there is no room left."""
    run = runs[0]
    sets = [sample_sets(each)[: shown.sets] for each in runs]
    found = [section("summary", "Summary", lambda: summary_blocks(run))]
    if len(runs) > 1:
        lead = f"The other sections are about {run.name} alone."
        made = section("comparison", "Comparison", lambda: compared(runs, sets, shown, budget), lead)
        found.append(made)
    found += [
        section("losses", "Losses", lambda: loss_charts(run)),
        section("samples", "Samples", lambda: sample_blocks(run, sets[0], shown.pictures, shown.media, budget)),
        section("spectra", "Spectra", lambda: spectra(run, sets[0], builder)),
        section("process", "Forward process", lambda: forward(run, sets[0], shown, builder, budget)),
        section("evaluation", "Evaluation", lambda: evaluation_blocks(run, sets[0], budget)),
        section("configuration", "Configuration", lambda: configured(run)),
        section("environment", "Environment", lambda: environment_blocks(run)),
    ]
    if budget.left_out:
        notes = [Note(f"Not taken into this page: {each}") for each in budget.left_out]
        found.append(Section("left-out", "Left out", notes, "megabytes=… makes room for more."))
    return found


def section(name: str, title: str, make: Callable[[], list[Block]], lead: str = "") -> Section:
    """Return a part of the page; one that cannot be made says why, and the others are made all the same."""
    try:
        return Section(name, title, make(), lead)
    except MALFORMED as error:
        return Section(name, title, [unmade(error)], lead)


def spectra(run: Run, sets: Sequence[SampleSet], builder: Builder) -> list[Block]:
    """Return the power of data, noise and samples, of whichever there are."""
    if run.statistics is None:
        return [Note("The spectrum of the data is measured when training begins, and is not there.")]
    powers: dict[str, Tensor] = {"data": run.statistics.power}
    notes: list[Block] = []
    try:
        powers["noise"] = noise_power(assembly(run, builder).process(), run.statistics)
    except MALFORMED as error:
        notes.append(unmade(error))
    made, problems = sample_powers(run, sets[:2])
    if not sets:
        command = f"multisagd sample {setting('run_dir', run.folder)} count=256"
        problems.append(Note("There are no samples yet whose spectrum could be shown beside.", command))
    return [*spectrum_charts(powers | made, run.statistics.grid), *notes, *problems]


def sample_powers(run: Run, sets: Sequence[SampleSet]) -> tuple[dict[str, Tensor], list[Block]]:
    """Return the power of some sets of samples by name, and what could not be measured."""
    powers: dict[str, Tensor] = {}
    problems: list[Block] = []
    for each in sets:
        try:
            assert run.statistics is not None
            x0 = each.read(run.statistics)
            powers[f"samples {len(powers) + 1}: {len(x0)}, {each.sampler}"] = power_of(x0, run.statistics.grid)
        except MALFORMED as error:
            problems.append(unmade(error))
    return powers, problems


def forward(run: Run, sets: Sequence[SampleSet], shown: Shown, builder: Builder, budget: Budget) -> list[Block]:
    """Return the schedule and what it leaves of the data, and data or else samples at growing noise."""
    parts = assembly(run, builder)
    process = parts.process()
    blocks = process_blocks(parts, process)
    try:
        config = located(run.config or {}, run.facts, run.folder, shown.data, builder)
        modality = builder.build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
        x0, of = None, "Example"
        if shown.examples:
            try:
                x0 = examples(config, modality, builder, shown.examples)
            except MALFORMED as error:
                blocks.append(Note(f"The run's data are not at hand. {shortened(error)}"))
        if x0 is None and sets and run.statistics is not None:
            x0, of = sets[0].read(run.statistics, INSTEAD), "Sample"
        if x0 is not None:
            return [*blocks, *strips(x0, modality, process, parts.settings.seed, budget, of)]
        command = f"multisagd sample {setting('run_dir', run.folder)}"
        return [*blocks, Note("Neither data nor samples are at hand to be shown at growing noise.", command)]
    except MALFORMED as error:
        text = "Nothing can be shown at growing noise. A report fetches nothing, autoencoders of the hub included."
        return [*blocks, Note(f"{text} {shortened(error)}")]


def compared(runs: Sequence[Run], sets: Sequence[Sequence[SampleSet]], shown: Shown, budget: Budget) -> list[Block]:
    """Return the comparison of runs; spectra only of those that share a grid."""
    statistics = runs[0].statistics
    same = statistics is not None and all(
        run.statistics is not None and run.statistics.grid == statistics.grid for run in runs
    )
    powers: dict[str, Tensor] = {}
    if statistics is not None and same:
        powers["data"] = statistics.power
        for run, of_run in zip(runs, sets, strict=True):
            powers |= {f"samples of {run.name}": power for power in sample_powers(run, of_run[:1])[0].values()}
    grid = statistics.grid if statistics is not None and same else None
    return comparison_blocks(runs, sets, powers, grid, shown.pictures, budget)


def configured(run: Run) -> list[Block]:
    """Return the configuration, if it is there."""
    if run.config is None:
        return [Note("config.yaml is not there, or could not be read.")]
    return [run_settings(run.config)]


def unmade(error: BaseException) -> Note:
    """Say why something could not be shown."""
    return Note(f"This could not be shown. {shortened(error)}")
