"""The section of an experiment on the results page: question, commands, conditions, conclusions, tables and figure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.experiments import claims
from benchmarks.experiments.design import REAL, Experiment
from benchmarks.experiments.plots import Picture
from benchmarks.experiments.published import PUBLISHED
from benchmarks.experiments.reading import Results
from benchmarks.experiments.tables import with_error
from benchmarks.experiments.verdicts import (
    FRECHET,
    Estimate,
    changes,
    detected_worse,
    gain,
    relative,
    sorted_out,
    verdict,
)

SEEDS = (0, 1, 2)
"""The seeds that `python -m benchmarks.experiments` trains by default."""
NOTES: Mapping[str, str] = {
    "power_law_mnist": "The arms `papers -.06` and so on have the papers' power laws with these amplitude exponents; a "
    "negative exponent gives zero frequency much more power than the others. `zero frequency of -.06 only` is white "
    "noise with the power of `papers -.06` at zero frequency; `slope of -.06 only` has the same slope, but zero "
    "frequency has only the power of the lowest other frequency.",
    "omission_mnist": "Names such as `[.1,.2]` are frequency bands, in units in which the corner of the spectrum is 1. "
    "The arms `white` use white noise and corrupted data. The arm `real without it` consists of real digits with the "
    "band set to the mean: omitting the band cannot give better results. With the papers' omission, the band of the "
    "samples is zero, and the network sees the corruption in training. The corruption has a standard deviation of 1; "
    "at 16×16 that is about 16, 25 and 47 times the power of clean digits in the bands that begin at .1, .2 and .4. "
    "Methods that restore the band, in the data or in the network, can give better results than omission.",
}
"""Notes that precede the numbers of an experiment."""
NOT_RUN = "<!-- not run: trains for minutes to hours -->"
"""The reason why the tests of the docs do not run the commands on the page."""


def section(experiment: Experiment, path: Path, command: str | None = None) -> tuple[str, list[Picture]]:
    """Return the section of an experiment, and its figures; `command` measures it, by default the runner's command."""
    command = command or runner(experiment)
    said = [f"## {experiment.title}", f"*{experiment.question}*", NOTES.get(experiment.name, "")]
    said.append(commands(experiment, command))
    pictures = []
    for size in ("cpu", "gpu"):
        results = Results.read(experiment, size, path)
        if size == "gpu" and not results.raw:
            continue
        if size == "gpu":
            said.append("### At the size for a GPU")
        if results.raw:
            picture = drawn(results)
            said += [conditions(results), bullets(conclusions(results)), table(results), paired(results)]
            if picture.panels:
                pictures.append(picture)
                said.append(f"![{experiment.title}: {picture.metric} and spectra](images/{picture.name})")
        said.append(missing(results, command))
    said.append(arms(experiment))
    return "\n\n".join(part for part in said if part), pictures


def runner(experiment: Experiment) -> str:
    """Return the command that measures the missing rows of an experiment."""
    return f"python -m benchmarks.experiments {experiment.name}"


def commands(experiment: Experiment, command: str) -> str:
    """Return the command of the experiment, and the command of one of its training runs."""
    first = next(iter(experiment.arms))
    words = [shlex.quote(word) for word in [*experiment.arguments(first, 0, "cpu"), f"run_dir=runs/{experiment.name}"]]
    lines, line = [], "multisagd train"
    for word in words:
        if len(line) + len(word) > 110:
            lines.append(line + " \\")
            line = "   "
        line += f" {word}"
    one = "\n".join([*lines, line])
    block = f"{NOT_RUN}\n```bash\n{command}\n{one}\n```"
    return f"{block}\n\nThe second command trains only `{first}`; what the other arms add to it is listed below."


def conditions(results: Results) -> str:
    """Return the conditions under which the rows were measured, each stated once if it is the same in all rows."""
    rows = [row for seeds in results.raw.values() for row in seeds.values()]
    untrained = results.experiment.untrained
    trained = [row for arm, seeds in results.raw.items() if arm not in untrained for row in seeds.values()]
    versions = {
        f"torch {row['versions'].get('torch')}, multisagd {row['versions'].get('multisagd')}"
        for row in rows
        if "versions" in row
    }
    return (
        f"Samples seen: {_each(row.get('samples_seen') for row in trained)}. "
        f"Evaluated with {_each(row.get('count') for row in rows)} samples, drawn in "
        f"{_each(row.get('steps') for row in trained)} steps of `{results.experiment.sampler}`, compared with "
        f"{_each(row.get('reference') for row in rows)} examples. {'; '.join(sorted(versions))}."
    )


def _each(values: Iterable[int | None]) -> str:
    return " or ".join(f"{value:,}" for value in sorted({value for value in values if value is not None})) or "?"


def headlines(results: Results) -> list[str]:
    """Return the answers to the question of the experiment."""
    arms = results.experiment.arms
    if {claims.WHOLE, claims.ZERO, claims.SLOPE} <= set(arms):
        return claims.attribute(results.numbers)
    if expected := claims.bands(results.experiment.cpu_arms or arms):
        return claims.aims(results.numbers, expected)
    said = [line for metric in results.focus[:1] for line in sorted_out(results.numbers, results.pairs, metric)]
    return said or ["No two arms that are compared have a seed in common, so nothing can be concluded yet."]


def conclusions(results: Results) -> list[str]:
    """Return all conclusions by the rules of `verdicts` and `claims`."""
    said = headlines(results)
    said += claims.closing(results.numbers, claims.bands(results.numbers))
    for metric in results.focus:
        said += sorted_out(results.numbers, results.pairs, metric)
    return list(dict.fromkeys(said))


def failures(results: Results) -> list[str]:
    """Return the failures: aims not met, arms worse than the arm to beat, arms without a verdict, and diverged runs."""
    said = [line for line in headlines(results) if claims.NOT_MET in line]
    pairs = [(arm, other) for arm, other in results.pairs if other != claims.CLEAN]
    for metric in results.focus[:1]:
        said += detected_worse(results.numbers, pairs, metric)
    for arm, seeds in results.numbers.items():
        lost = [seed for seed, row in seeds.items() if not any(metric.key in row for metric in results.metrics)]
        said += [f"`{arm}`, {_seeds(lost)}: no result is finite."] if lost else []
    return said


def bullets(lines: Sequence[str]) -> str:
    """Format lines as a list."""
    return "\n".join(f"- {line}" for line in lines)


def table(results: Results) -> str:
    """Return the table of means and standard errors of every arm, with real data last."""
    lines = []
    for arm, seeds in results.numbers.items():
        cells = [[row[metric.key] for row in seeds.values() if metric.key in row] for metric in results.metrics]
        name = f"*{arm}, the noise floor*" if arm == REAL else arm
        lines.append([name, *(with_error(cell) for cell in cells), str(len(seeds))])
    return markdown(["arm", *(metric.title for metric in results.metrics), "seeds"], lines)


def paired(results: Results) -> str:
    """Return the table of differences seed by seed, and the relative change of the distance next to the papers'."""
    published = PUBLISHED.get(results.experiment.name, {})
    chosen = next((m for m in results.focus if m.better == "less" and not m.decibels), None)
    lines = []
    for arm, other in results.pairs:
        moved = [] if chosen is None else [share(relative(results.numbers, arm, other, chosen))]
        theirs = f"{100 * published[arm].relative:+.0f} %" if arm in published else ""
        differences = [with_error(changes(results.numbers, arm, other, metric), sign="+") for metric in results.metrics]
        lead = gain(results.numbers, arm, other, results.focus[0]) if results.focus else None
        lines.append([arm, other, *differences, *moved, *([theirs] if published else []), verdict(lead)])
    if not lines:
        return ""
    heads = ["arm", "difference from", *(metric.compared for metric in results.metrics)]
    heads += [] if chosen is None else [f"relative change, {chosen.title}"]
    heads += ["papers' relative change, FID"] if published else []
    return markdown([*heads, f"verdict, {results.focus[0].compared}" if results.focus else "verdict"], lines)


def share(values: Sequence[float]) -> str:
    """Format the mean of relative changes, and its standard error, in per cent."""
    estimate = Estimate.of(values)
    return estimate.percent(digits=1, sign="+") if estimate is not None else ""


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def missing(results: Results, command: str) -> str:
    """Return what has no row yet, and the command that measures it."""
    experiment = results.experiment
    wanted = experiment.arms if results.size == "gpu" else experiment.cpu_arms or experiment.arms
    command += " --size gpu" if results.size == "gpu" else ""
    if not results.raw:
        return f"**Not measured.** Run `{command}` to measure it."
    gaps: dict[tuple[int, ...], list[str]] = {}
    for arm in (*wanted, *experiment.untrained):
        gaps.setdefault(tuple(seed for seed in SEEDS if seed not in results.raw.get(arm, {})), []).append(f"`{arm}`")
    said = [f"{', '.join(names)} ({_seeds(seeds)})" for seeds, names in gaps.items() if seeds]
    lines = [f"**Not measured**: {'; '.join(said)}. `{command}` measures what is missing."] if said else []
    left = [f"`{arm}`" for arm in experiment.arms if arm not in wanted and arm not in results.raw]
    if left:
        lines.append(
            f"Not trained on a CPU, to save time: {', '.join(left)}. `{runner(experiment)} --all-arms` trains them too."
        )
    return "\n\n".join(lines)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def arms(experiment: Experiment) -> str:
    """Return the list of arguments that each arm adds to the common ones."""
    lines = [[arm, " ".join(f"`{word}`" for word in words)] for arm, words in experiment.arms.items() if words]
    listed = markdown(["arm", "adds"], lines)
    return f"<details><summary>What each arm adds to the command</summary>\n\n{listed}\n\n</details>"


def drawn(results: Results) -> Picture:
    """Return the content of an experiment's figure: one panel, or one for each band that arms are named after.

    Panels without a number are omitted; a figure without panels is not shown.
    """
    experiment = results.experiment
    metric = results.focus[0] if results.focus else FRECHET
    bands = claims.bands(results.numbers)
    groups = {
        band: [arm for arm in results.numbers if ": " not in arm or arm.startswith(f"{band}: ")] for band in bands
    }
    panels = {
        band: (
            {arm: each for arm in names if (each := _column(results.numbers[arm], metric.key))},
            {
                arm: curves
                for arm in names
                if (curves := [r["rings_db"] for r in results.raw[arm].values() if "rings_db" in r])
            },
        )
        for band, names in (groups or {"": list(results.numbers)}).items()
    }
    panels = {band: panel for band, panel in panels.items() if panel[0]}
    suffix = "" if results.size == "cpu" else f"_{results.size}"
    baseline = experiment.against if isinstance(experiment.against, str) else None
    edges = {band: re.match(r"\[(\S+),(\S+)\]", band) for band in bands}
    corrupted = {band: (float(found[1]), float(found[2])) for band, found in edges.items() if found}
    return Picture(f"results_{experiment.name}{suffix}.png", panels, metric.title, baseline, corrupted)


def _column(seeds: Mapping[int, Mapping[str, float]], key: str) -> list[float]:
    return [row[key] for row in seeds.values() if key in row]
