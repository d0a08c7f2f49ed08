"""The section of an experiment on the results page: question, commands, conditions, tables and figure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import exp, isnan, sqrt
from statistics import mean, stdev

from benchmarks.experiments.design import CALIBRATION, CPU, REAL, Experiment
from benchmarks.experiments.metrics import BY_STEPS, SAMPLERS, Metric, at_steps, calibrated, even_in_time, other_sampler
from benchmarks.experiments.omission import CLEAN, bands, fractions
from benchmarks.experiments.plots import Picture
from benchmarks.experiments.reading import Comparison, Results, control
from benchmarks.experiments.statistics import ENOUGH, Paired

NOT_RUN = "<!-- not run: trains for minutes to hours -->"
"""The reason why the tests of the docs do not run the commands on the page."""
NO_VERDICT = "none, because of the controls"


def section(experiment: Experiment, measured: Sequence[Results], verdicts: bool) -> tuple[str, list[Picture]]:
    """Return the section of an experiment with its results at each size, and its figures.

    Without `verdicts`, because a control failed or is not measured, only numbers are given.
    """
    said = [f"## {experiment.title}", f"*{experiment.question}*", experiment.note.strip(), commands(experiment)]
    pictures = []
    for results in measured:
        if results.size != CPU and not results.raw:
            continue
        if results.size != CPU:
            said.append(f"### At the size `{results.size}`")
        if results.raw:
            picture = drawn(results)
            said += [conditions(results), table(results), calibrated_table(results), by_steps(results)]
            said.append(comparisons(results, verdicts))
            said.append(recovered(results))
            if picture.panels:
                pictures.append(picture)
                said.append(f"![{experiment.title}: {picture.metric} and spectra](images/{picture.name})")
        said.append(missing(results))
    said.append(arms(experiment))
    return "\n\n".join(part for part in said if part), pictures


def runner(experiment: Experiment) -> str:
    """Return the command that measures the missing rows of an experiment."""
    return f"python -m benchmarks.experiments {experiment.name}"


def commands(experiment: Experiment) -> str:
    """Return the command of the experiment, and the command of one of its training runs."""
    first = next(iter(experiment.arms))
    words = experiment.arguments(first, 0, CPU)
    if any("benchmarks." in word for word in words):
        words.append("allow_targets=[benchmarks]")
    lines, line = [], "multisagd train"
    for word in [*words, f"run_dir=runs/{experiment.name}"]:
        quoted = shlex.quote(word)
        if len(line) + len(quoted) > 110:
            lines.append(line + " \\")
            line = "   "
        line += f" {quoted}"
    one = "\n".join([*lines, line])
    block = f"{NOT_RUN}\n```bash\n{runner(experiment)}\n{one}\n```"
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
        f"Judged by {_each(row.get('count') for row in rows)} samples of each sampler, drawn in "
        f"{_each(row.get('steps') for row in trained)} steps, compared with "
        f"{_each(row.get('reference') or results.experiment.reference for row in rows)} examples. "
        f"{'; '.join(sorted(versions))}."
    )


def _each(values: Iterable[int | None]) -> str:
    return " or ".join(f"{value:,}" for value in sorted({value for value in values if value is not None})) or "?"


def with_error(values: Sequence[float]) -> str:
    """Format the mean of some values, and its standard error if there are several; empty if there are no values."""
    if not values:
        return ""
    shown = f"{mean(values):.3f}"
    return f"{shown} ± {stdev(values) / sqrt(len(values)):.3f}" if len(values) > 1 else shown


def table(results: Results) -> str:
    """Return the table of means and standard errors of every arm, with real data last."""
    lines = []
    for arm, seeds in results.numbers.items():
        cells = [[row[metric.key] for row in seeds.values() if metric.key in row] for metric in results.metrics]
        name = f"*{arm}, the noise floor*" if arm == REAL else arm
        lines.append([name, *(with_error(cell) for cell in cells), str(len(seeds))])
    return markdown(["arm", *(metric.title for metric in results.metrics), "seeds"], lines)


def calibrated_table(results: Results) -> str:
    """Return the table of the metrics of samples by calibrated samplers, or nothing if there are none."""
    metrics = [replace(each, key=calibrated(each.key)) for each in results.metrics]
    found = {key for seeds in results.numbers.values() for row in seeds.values() for key in row}
    if not (metrics := [each for each in metrics if each.key in found]):
        return ""
    arms = {
        arm: seeds for arm, seeds in results.numbers.items() if any(metrics[0].key in row for row in seeds.values())
    }
    lines = [
        [arm, *(with_error([row[each.key] for row in seeds.values() if each.key in row]) for each in metrics)]
        for arm, seeds in arms.items()
    ]
    return f"With `calibration={CALIBRATION}`, which corrects the power in every ring after each step:\n\n" + markdown(
        ["arm", *(each.title for each in metrics)], lines
    )


def by_steps(results: Results) -> str:
    """Return the table of the metrics in `BY_STEPS` for every number of steps, or nothing if there is only one way.

    The last column has steps that are even in time, if the experiment has them.
    """
    experiment = results.experiment
    if not experiment.more_steps and not experiment.even_in_time:
        return ""
    numbers = sorted({experiment.steps, *experiment.more_steps})
    lines = []
    for metric in results.metrics:
        if metric.key.partition(".")[2] not in BY_STEPS:
            continue
        for arm, seeds in results.numbers.items():
            keys = [metric.key if each == experiment.steps else at_steps(each, metric.key) for each in numbers]
            keys += [even_in_time(metric.key)] * experiment.even_in_time
            cells = [with_error([row[key] for row in seeds.values() if key in row]) for key in keys]
            # Real examples have only one value.
            if sum(map(bool, cells)) > 1:
                lines.append([metric.title, arm, *cells])
    heads = [f"{each} steps" for each in numbers] + [f"{experiment.steps}, even in time"] * experiment.even_in_time
    return markdown(["metric", "arm", *heads], lines) if lines else ""


def effect(metric: Metric, paired: Paired) -> str:
    """Format the effect and its 95 % interval: a ratio (geometric mean), or a difference with its sign."""
    low, high = paired.interval
    if metric.ratio:
        inside = "" if isnan(low) else f" [{exp(low):.3f}, {exp(high):.3f}]"
        return f"× {exp(paired.mean):.3f}{inside}"
    inside = "" if isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
    return f"{paired.mean:+.3f}{inside}"


def least(tested: Comparison) -> str:
    """Format the least effect that is detected with 80 % power: a ratio above 1 (or its inverse), or a difference."""
    if isnan(tested.detectable):
        return ""
    return f"× {exp(tested.detectable):.3f}" if tested.metric.ratio else f"± {tested.detectable:.3f}"


def probability(p: float | None) -> str:
    """Format a p-value; empty if there is none."""
    if p is None or isnan(p):
        return ""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def decided(results: Results, tested: Comparison, verdicts: bool) -> str:
    """Return the outcome of a control, the verdict, or why there is none."""
    if tested.corrected is None:
        return ""
    outcome = control(results.experiment, tested)
    if outcome is not None:
        return outcome
    if not tested.paired.enough:
        return f"none: {tested.paired.count} of {ENOUGH} seeds"
    if not verdicts:
        return NO_VERDICT
    return f"**{tested.verdict}**" if tested.verdict in ("better", "worse") else tested.verdict


def comparisons(results: Results, verdicts: bool) -> str:
    """Return the table of comparisons seed by seed: the primary metric with its verdict, then the others."""
    heads = [
        "arm", "compared with", "metric", "ratio or difference [95 %]", "p (t)", "p (Holm)", "p (sign flip)",
        "least detectable", "samples needed", "seeds", "verdict",
    ]  # fmt: skip
    lines = []
    for tested in results.tested:
        for each in (tested, *results.beside(tested)):
            if not each.paired.count:
                continue
            first = each.corrected is not None
            lines.append([
                each.arm if first else "", each.other if first else "",
                f"**{each.metric.title}**" if first else each.metric.title,
                effect(each.metric, each.paired), probability(each.paired.p),
                probability(each.corrected), probability(each.paired.sign_flip_p), least(each),
                results.needed(each.arm, each.other) if first else "",
                str(each.paired.count), decided(results, each, verdicts),
            ])  # fmt: skip
    return markdown(heads, lines) if lines else ""


def sentence(results: Results, tested: Comparison, verdicts: bool) -> str:
    """Return a comparison in one sentence: effect, interval, p-values, power, and the verdict if there may be one."""
    paired, said = tested.paired, decided(results, tested, verdicts)
    verdict = "" if said == NO_VERDICT else f": {said}"
    kind = "ratio" if tested.metric.ratio else "difference"
    return (
        f"`{tested.arm}` against `{tested.other}`{verdict}; {tested.metric.title} {effect(tested.metric, paired)}, "
        f"p {_equals(paired.p)} (Holm {probability(tested.corrected)}, sign flip "
        f"{probability(paired.sign_flip_p)}), {paired.count} seeds; a {kind} of {least(tested)} would "
        f"be detected with a probability of 80 %.{contradiction(results, tested)}"
    )


def contradiction(results: Results, tested: Comparison) -> str:
    """Return a sentence about the other sampler if its 95 % interval has the opposite sign, or else nothing."""
    twin = next((each for each in results.beside(tested) if each.metric.key == other_sampler(tested.metric.key)), None)
    if twin is None or not twin.paired.enough or twin.paired.mean * tested.paired.mean > 0:
        return ""
    low, high = twin.paired.interval
    if not low * high > 0:
        return ""
    return f" It depends on the sampler: {twin.metric.title} {effect(twin.metric, twin.paired)}."


def _equals(p: float) -> str:
    shown = probability(p)
    return shown if shown.startswith("<") else f"= {shown}"


def recovered(results: Results) -> str:
    """Return the table of what selective omission recovers, or nothing for other experiments."""
    if CLEAN not in results.experiment.arms or not bands(results.experiment.arms):
        return ""
    if not (lines := fractions(results)):
        return ""
    heads = ["band", "arm", *(f"gap in Fréchet distance closed, {sampler.upper()} [95 %]" for sampler in SAMPLERS)]
    return (
        "The gap lies between training with white noise on corrupted digits, 0 %, and on clean digits, 100 %:\n\n"
        + markdown(heads, lines)
    )


def bullets(lines: Sequence[str]) -> str:
    """Format lines as a list."""
    return "\n".join(f"- {line}" for line in lines)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def missing(results: Results) -> str:
    """Return what has no row yet and what diverged, and the command that measures what is missing."""
    experiment = results.experiment
    command = runner(experiment) + ("" if results.size == CPU else f" --size {results.size}")
    if not results.raw:
        return f"**Not measured.** Run `{command}` to measure it."
    gaps, diverged = dict[tuple[int, ...], list[str]](), dict[tuple[int, ...], list[str]]()
    for arm in (*experiment.arms, *experiment.untrained):
        rows = results.raw.get(arm, {})
        wanted = range(experiment.seeds(arm))
        gaps.setdefault(tuple(seed for seed in wanted if seed not in rows), []).append(f"`{arm}`")
        diverged.setdefault(tuple(seed for seed, row in rows.items() if "error" in row), []).append(f"`{arm}`")
    lines = [f"**Training diverged**: {_listed(diverged)}."] if any(diverged) else []
    lines += [f"**Not measured**: {_listed(gaps)}. `{command}` measures what is missing."] if any(gaps) else []
    return "\n\n".join(lines)


def _listed(arms: dict[tuple[int, ...], list[str]]) -> str:
    each = ((seeds, names) for seeds, names in arms.items() if seeds)
    return "; ".join(
        f"{', '.join(names)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for seeds, names in each
    )


def arms(experiment: Experiment) -> str:
    """Return the list of arguments that each arm adds to the common ones."""
    lines = [[arm, " ".join(f"`{word}`" for word in words)] for arm, words in experiment.arms.items() if words]
    lines += [[arm, "trained by `benchmarks/experiments/plain_loop.py`"] for arm in experiment.plain]
    listed = markdown(["arm", "adds"], lines)
    return f"<details><summary>What each arm adds to the command</summary>\n\n{listed}\n\n</details>"


def drawn(results: Results) -> Picture:
    """Return the content of an experiment's figure: one panel, or one for each band that arms are named after.

    Panels without a number are omitted; a figure without panels is not shown.
    """
    experiment, primary = results.experiment, results.primary
    named = bands(results.numbers)
    groups = {
        band: [arm for arm in results.numbers if ": " not in arm or arm.startswith(f"{band}: ")] for band in named
    }
    sampler = primary.key.partition(".")[0]
    panels = {}
    for band, names in (groups or {"": list(results.numbers)}).items():
        values = {
            arm: [row[primary.key] for row in results.numbers[arm].values() if primary.key in row] for arm in names
        }
        rings = {arm: [row.get(sampler, {}).get("rings_db") for row in results.raw[arm].values()] for arm in names}
        panels[band] = (
            {arm: each for arm, each in values.items() if each},
            {arm: [curve for curve in each if curve] for arm, each in rings.items() if any(each)},
        )
    suffix = "" if results.size == CPU else f"_{results.size}"
    others = {other for _, other in experiment.comparisons}
    edges = {band: re.match(r"\[(\S+),(\S+)\]", band) for band in named}
    return Picture(
        f"results_{experiment.name}{suffix}.png", {band: panel for band, panel in panels.items() if panel[0]},
        primary.title, others.pop() if len(others) == 1 else None,
        {band: (float(found[1]), float(found[2])) for band, found in edges.items() if found},
    )  # fmt: skip
