"""Write one HTML page about a run: `multisagd report …`, the same as `python -m recipes.report …`.

The steps: draw samples, if requested; read the folders of the run and of the runs to compare it with; plot losses,
spectra and the forward process; embed images, audio and video up to a maximum size; write the page. The page is
self-contained and needs neither network access nor the data. The run may be training, crashed or finished: a section
that cannot be shown gives the reason instead.

A folder may come from someone else: nothing in it is executed, and all text from it is escaped in the page.

Errors, each reported in one message: folders without a run, a different number of names than of runs, a page that would
replace a file of a different kind.
"""

import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from recipes.base.errors import RecipeError
from recipes.base.files import write_text
from recipes.cli.command import command
from recipes.config import compose as configuration
from recipes.config.addresses import hidden_values
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.reports.comparison import comparison_blocks
from recipes.reports.losses import loss_charts
from recipes.reports.page import Block, Budget, Note, Section, check_out, failure_note, render
from recipes.reports.process import forward_blocks, spectrum_blocks
from recipes.reports.run import MALFORMED, Overview, read_run
from recipes.reports.samples import evaluation_blocks, sample_blocks
from recipes.reports.summary import STATES, configuration_blocks, environment_blocks, summary_blocks
from recipes.runs.settings import Group

PAGE = "report.html"


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
    data: Group = field(default_factory=dict)
    allow_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.samples, self.examples, self.media, self.sets) < 0 or min(self.steps, self.pictures) < 1:
            raise ValueError("samples, examples, media and sets must be at least 0, and steps and pictures at least 1")
        if not 0 <= self.megabytes <= 1000:
            raise ValueError(f"megabytes must be from 0 to 1000, got {self.megabytes}")
        if self.names is not None and len(self.names) != 1 + len(self.others):
            raise ValueError(
                f"names has {len(self.names)} entries for {1 + len(self.others)} runs: add one name for each run"
            )
        if len(set(self.names or ())) < len(self.names or ()):
            raise ValueError("names contains the same name twice: use a different name for each run")


def report(config: Config) -> Path:
    """Write the page as configured, and return its path.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
    """
    settings = Builder().settings(ReportSettings, config, "")
    if settings.samples:
        draw_samples(settings)
    path, omitted = write_report(settings)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    if omitted:
        print(f"omitted because of the page's maximum size: {len(omitted)} files, listed at the end of the page")
    return path


def write_report(settings: ReportSettings) -> tuple[Path, list[str]]:
    """Write the page, and return its path and the omitted files. Raises the same errors as `report`."""
    out = settings.out or settings.run_dir / PAGE
    check_out(out)
    folders = (settings.run_dir, *settings.others)
    runs = [read_run(each, name) for each, name in zip(folders, settings.names or run_names(folders), strict=True)]
    budget, builder = Budget(int(settings.megabytes * 1e6)), Builder(settings.allow_targets).of_a_run(settings.data)
    comparison = f" compared with {', '.join(run.name for run in runs[1:])}" if len(runs) > 1 else ""
    description = f"{runs[0].folder}, {STATES[runs[0].state]}, {runs[0].seen:,} samples seen"
    parts = sections(runs, settings, builder, budget)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    hidden = [text for run in runs for text in hidden_values(run.config or {})]
    footer = f"Written by multisagd report at {now}. This page is self-contained."
    text = render(f"Run {runs[0].name}{comparison}", description, parts, footer, hidden)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise RecipeError(f"cannot write {out} ({error.strerror}): choose another out") from error
    return out, budget.omitted


def sections(runs: Sequence[Overview], settings: ReportSettings, builder: Builder, budget: Budget) -> list[Section]:
    """Return the sections of the page. Media are embedded in this order until the size limit is reached."""
    run = runs[0]
    sets = [each.sample_sets[: settings.sets] for each in runs]
    parts = [section("summary", "Summary", lambda: summary_blocks(run))]
    if len(runs) > 1:
        lead = f"The other sections are about {run.name} only."
        compare = partial(comparison_blocks, runs, sets, settings.pictures, budget)
        parts.append(section("comparison", "Comparison", compare, lead))
    samples = partial(sample_blocks, run, sets[0], settings.pictures, settings.media, budget)
    forward = partial(forward_blocks, run, sets[0], settings.examples, settings.data, builder, budget)
    parts += [
        section("losses", "Losses", lambda: loss_charts(run)),
        section("samples", "Samples", samples),
        section("spectra", "Spectra", lambda: spectrum_blocks(run, sets[0], builder)),
        section("process", "Forward process", forward),
        section("evaluation", "Evaluation", lambda: evaluation_blocks(run, sets[0], budget)),
        section("configuration", "Configuration", lambda: configuration_blocks(run)),
        section("environment", "Environment", lambda: environment_blocks(run)),
    ]
    if budget.omitted:
        notes = [Note(f"Not embedded in this page: {each}") for each in budget.omitted]
        parts.append(Section("omitted", "Omitted media", notes, "Increase megabytes=… to embed more."))
    return parts


def section(name: str, title: str, make: Callable[[], Sequence[Block | None]], lead: str = "") -> Section:
    """Return a section of the page, with the blocks that `make` returns, or with the reason if `make` fails."""
    try:
        return Section(name, title, [block for block in make() if block is not None], lead)
    except MALFORMED as error:
        return Section(name, title, [failure_note(error)], lead)


def draw_samples(settings: ReportSettings) -> None:
    """Draw samples from the run as `multisagd sample` does, and write them to its folder."""
    from recipes.sample import sample

    words = ["run_dir=.", f"count={settings.samples}", f"steps={settings.steps}"]
    config = configuration.load("sample", words)
    own = {"run_dir": str(settings.run_dir), "data": settings.data, "allow_targets": list(settings.allow_targets)}
    sample({**config, **own})


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return names of runs: their folders' names, with as many parent folders as needed to make them unique."""
    parts = [each.resolve().parts for each in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise RecipeError("the same folder is given twice: remove one")


main = command("report", report)

if __name__ == "__main__":
    sys.exit(main())
