"""Write one HTML page about a run: `multisagd report …`, the same as `python -m recipes.report …`.

What it does, in order: draw samples, if asked to; read whatever is in the run's folder, and in those of other runs that
it is compared with; draw losses, spectra, the forward process and tables; take in pictures, sounds and clips within a
number of megabytes; write the page. It holds all it shows, needs no network and no data, and shows a run that is
training, has crashed or is finished: a part that cannot be made says why.

A folder may come from someone else: nothing in it is run, and no text of it becomes markup or script of the page.

Errors, each in one message: folders without a run, as many names as runs wanted and not given, a page that would
replace a file of another kind.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from modalities.base import Modality
from multisagd import Process
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.engine.command import run_configured
from recipes.engine.config import Config
from recipes.engine.errors import RecipeError
from recipes.engine.files import write_text
from recipes.reporting.blocks import Block, Note, Page, Section
from recipes.reporting.comparison import comparison_blocks
from recipes.reporting.curves import loss_charts
from recipes.reporting.data import examples
from recipes.reporting.defaults import settings as run_settings
from recipes.reporting.evaluation import evaluation_blocks
from recipes.reporting.media import Budget
from recipes.reporting.page import HEAD, is_report, render
from recipes.reporting.process import assembly, process_blocks, strips
from recipes.reporting.run import MALFORMED, Run, quoted, read_run, shortened
from recipes.reporting.samples import SampleSet, sample_blocks, sample_sets
from recipes.reporting.spectra import noise_power, power_of, spectrum_charts
from recipes.reporting.summary import environment_blocks, summary_blocks, told_state

PAGE = "report.html"
INSTEAD = 2
"""Samples that are shown at growing noise where there are no data."""


@dataclass(frozen=True)
class ReportSettings:
    """All keys of `configs/report.yaml`."""

    run_dir: Path
    others: tuple[Path, ...] = ()
    names: tuple[str, ...] | None = None
    out: Path | None = None
    samples: int = 0
    steps: int = 20
    examples: int = 2
    pictures: int = 24
    media: int = 12
    sets: int = 4
    megabytes: float = 24.0
    allow_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.samples, self.examples, self.media, self.sets) < 0 or min(self.steps, self.pictures) < 1:
            raise ValueError("expected samples, examples, media and sets >= 0, and steps and pictures >= 1")
        if not 0 <= self.megabytes <= 1000:
            raise ValueError(f"megabytes is from 0 to 1000, got {self.megabytes}")
        if self.names is not None and len(self.names) != 1 + len(self.others):
            raise ValueError(f"names has {len(self.names)} names for {1 + len(self.others)} runs: give one for each")


def report(config: Config) -> Path:
    """Write the page as the configuration says and return where it is.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    settings = Builder().settings(ReportSettings, config, "")
    if settings.samples:
        draw_samples(settings)
    path, left_out = write_report(settings)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    if left_out:
        print(f"left out: {len(left_out)} files, named at its end")
    return path


def write_report(settings: ReportSettings) -> tuple[Path, list[str]]:
    """Write the page; return where it is, and what was left out of it.

    Raises:
        RecipeError: for folders without a run, or a page that would replace another file.
    """
    out = settings.out or settings.run_dir / PAGE
    check_out(out)
    folders = (settings.run_dir, *settings.others)
    runs = [read_run(each, name) for each, name in zip(folders, settings.names or run_names(folders), strict=True)]
    budget = Budget(int(settings.megabytes * 1e6))
    page = Page(
        f"Run {runs[0].name}" + (f" beside {', '.join(run.name for run in runs[1:])}" if len(runs) > 1 else ""),
        f"{runs[0].folder}, {told_state(runs[0])}, {runs[0].seen:,} samples seen", sections(runs, settings, budget),
    )  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render(page, f"Written by multisagd report at {now}. This page holds all it shows."))
    return out, budget.left_out


def sections(runs: Sequence[Run], settings: ReportSettings, budget: Budget) -> list[Section]:
    """Return the parts of the page. Media are taken in by their order here, until there is no room left."""
    run, builder = runs[0], Builder(settings.allow_targets)
    sets = [sample_sets(each)[: settings.sets] for each in runs]
    found = [section("summary", "Summary", lambda: summary_blocks(run))]
    if len(runs) > 1:
        lead = f"The other sections are about {run.name} alone."
        made = section("comparison", "Comparison", lambda: compared(runs, sets, settings, budget), lead)
        found.append(made)
    found += [
        section("losses", "Losses", lambda: loss_charts(run)),
        section("samples", "Samples", lambda: sample_blocks(run, sets[0], settings.pictures, settings.media, budget)),
        section("spectra", "Spectra", lambda: spectra(run, sets[0], builder)),
        section("process", "Forward process", lambda: forward(run, sets[0], settings, builder, budget)),
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
        command = f"multisagd sample run_dir={quoted(run.folder)} count=256"
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


def forward(
    run: Run, sets: Sequence[SampleSet], settings: ReportSettings, builder: Builder, budget: Budget
) -> list[Block]:
    """Return the schedule and what it leaves of the data, and data or else samples at growing noise."""
    parts = assembly(run, builder)
    process: Process = parts.process()
    blocks = process_blocks(parts, process)
    try:
        modality = builder.build(parts.config["modality"], Modality, "modality")  # type: ignore[type-abstract]
        x0, of = None, "Example"
        if settings.examples:
            try:
                x0 = examples(parts.config, modality, builder, settings.examples)
            except MALFORMED as error:
                blocks.append(Note(f"The run's data are not at hand. {shortened(error)}"))
        if x0 is None and sets and run.statistics is not None:
            x0, of = sets[0].read(run.statistics, INSTEAD), "Sample"
        if x0 is not None:
            return [*blocks, *strips(x0, modality, process, parts.config["seed"], budget, of)]
        command = f"multisagd sample run_dir={quoted(run.folder)}"
        return [*blocks, Note("Neither data nor samples are at hand to be shown at growing noise.", command)]
    except MALFORMED as error:
        return [*blocks, unmade(error)]


def compared(
    runs: Sequence[Run], sets: Sequence[Sequence[SampleSet]], settings: ReportSettings, budget: Budget
) -> list[Block]:
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
    return comparison_blocks(runs, sets, powers, grid, settings.pictures, budget)


def configured(run: Run) -> list[Block]:
    """Return the configuration, if it is there."""
    if run.config is None:
        return [Note("config.yaml is not there, or could not be read.")]
    return [run_settings(run.config)]


def unmade(error: BaseException) -> Note:
    """Say why something could not be shown."""
    return Note(f"This could not be shown. {shortened(error)}")


def draw_samples(settings: ReportSettings) -> None:
    """Draw samples of the run as `multisagd sample` does, into its folder.

    Raises:
        RecipeError: as that command does.
    """
    from recipes.sample import sample

    words = ["run_dir=.", f"count={settings.samples}", f"steps={settings.steps}"]
    config = configuration.load("sample", words)
    sample({**config, "run_dir": str(settings.run_dir), "allow_targets": list(settings.allow_targets)})


def check_out(out: Path) -> None:
    """Check that a page may be written there.

    Raises:
        RecipeError: if something lies there that this command did not write.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"out={out}: the page is HTML, so its name should end in .html")
    for path in (out, out.with_name(f"{out.name}.partial")):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RecipeError(f"{path} is a link or no file, and the page would be written there: remove it")
    if out.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            if not is_report(file.read(HEAD)):
                raise RecipeError(f"{out} is not a page that this command wrote: remove it, or choose another out")


def run_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders, with as many of the folders above as tell them apart."""
    parts = [each.resolve().parts for each in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise RecipeError("the same folder is named twice: leave out one of them")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("report", arguments, report)


if __name__ == "__main__":
    sys.exit(main())
