"""Judge samples of runs with a dense condition: several for each of some held-out examples, compared with these.

The rows are for every variable in its unit, or for all channels of other data: errors of the mean of the samples
(`members`), of single samples and of a plain estimate, CRPS, spread and ranks, and the power of single samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.variables import Variable
from modalities.video import Video
from multisagd import Grid
from multisagd.analysis.profiles import radial_profile
from multisagd.metrics.bootstrap import bootstrap_error
from multisagd.metrics.ensemble import crps, rank_histogram, skill_sums, spread_skill
from multisagd.metrics.spectral import decibels
from multisagd.statistics import transforms_about
from recipes.data.parts import NOTHING_HELD_OUT
from recipes.evaluation.ensemble_figures import Curves, draw_examples, draw_scores
from recipes.evaluation.members import Ensemble, read_ensemble
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task
from recipes.plotting.figures import REAL, SAMPLES
from recipes.runs.run import Run, dense_channels
from recipes.sampling.held_out import HELD_OUT

QUIET = -40.0
"""Rings of frequency with less power than this, in dB relative to the strongest one, are not judged."""
PIXELS = Variable("", scale=0.5, offset=0.5)
"""Values of images and videos, in [0, 1]."""


def ensemble_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why ensembles are unavailable, or None if they are available."""
    metadata = Run(settings.run_dir).noted_metadata
    if dense_channels(metadata) is None:
        return (
            "the run has no dense condition: train with condition=coarse, first_frames or masked, or with "
            "data.condition_root or data.lead"
        )
    if settings.samples_from is not None:
        return "it draws samples of its own: remove samples_from"
    if settings.initial is not None:
        return (
            "its samples are drawn from noise, with the condition of the example that they are compared with: "
            "remove initial"
        )
    held_out = metadata.get("held_out", 0)
    if held_out < 2:
        return NOTHING_HELD_OUT if not held_out else "the run has only one held-out example: hold out more"
    return None


def ensemble(task: Task) -> Result:
    """Compare several samples for each of some held-out examples with these.

    Raises:
        ValueError: If there is nothing to compare, because every value is known or missing.
    """
    result, settings = judged(task, read_ensemble(task), "evaluate_ensemble"), task.settings
    usual = {"condition": (None, HELD_OUT), "reference_root": (None,), "reference_split": ("train",)}
    notes = [
        f"ensemble: {key}={value} has no effect on this metric, which is always of held-out examples"
        for key, defaults in usual.items() if (value := getattr(settings, key)) not in defaults
    ]  # fmt: skip
    return replace(result, notes=(*result.notes, *notes))


def judged(task: Task, made: Ensemble, figure: str) -> Result:
    """Return the rows and figures of an ensemble; the names of the figures begin with `figure`.

    Raises:
        ValueError: If there is nothing to compare, because every value is known or missing.
    """
    if not bool(made.compared.any()):
        raise ValueError("there is nothing to compare: every value is known from the condition, or missing")
    rows: list[Row] = []
    details: dict[str, object] = {"plain": made.plain_name, "conditions": len(made.truth), "members": len(made.members)}
    grid, found = task.modality.grid(), dict[str, Curves]()
    for variable, channels in quantities(task.modality):
        scores = item_scores(made, variable, channels, grid)
        prefix = f"{variable.name}: " if task.modality.variables and task.modality.channels > 1 else ""
        rows += score_rows(scores, made, prefix, variable.unit, task.settings.bootstrap)
        found[variable.label] = Curves(
            scores.frequency, {name: each.mean(0) for name, each in scores.power.items()}, rank_fractions(scores)
        )
        details[variable.name or "values"] = {
            "ranks": rank_fractions(scores).tolist(),
            "frequency": scores.frequency.tolist(),
            "power": {name: each.mean(0).tolist() for name, each in scores.power.items()},
        }
    draw_examples(made, task.modality, task.figure_path(f"{figure}.png"))
    draw_scores(found, COLOURS, grid, task.figure_path(f"{figure}_scores.png"))
    where = "what the condition hides" if made.hides else "all values"
    count = len(made.truth)
    notes = [
        f"ensemble: errors are root mean squares over {where} of {count} held-out examples, with {len(made.members)} "
        f"samples for each; ± is a standard error over these examples; rings more than {-QUIET:g} dB below the "
        "strongest one are ignored"
    ]
    if count < task.settings.conditions:
        notes.append(f"there are only {count} held-out examples, not {task.settings.conditions} (conditions)")
    return Result(tuple(rows), details, tuple(notes))


def quantities(modality: Modality) -> list[tuple[Variable, slice]]:
    """Return what is judged by itself, each with its channels: every variable, or all channels together."""
    if modality.variables:
        return [(variable, slice(number, number + 1)) for number, variable in enumerate(modality.variables)]
    return [(PIXELS if isinstance(modality, Image | Video) else Variable(""), slice(None))]


MEMBERS, TRUTH, MEAN, PLAIN = "single samples", "truth", "mean of samples", "plain estimate"
"""Names of powers."""
COLOURS = {TRUTH: REAL, MEMBERS: SAMPLES, MEAN: "tab:green", PLAIN: "0.5"}


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the compared points of every item, from which the scores of any set of items follow.

    `skill` (items, 3) are those of `skill_sums`, `single` and `plain` (items,) of the squared errors of single samples
    and of the plain estimate, `crps` (items,) of the CRPS, and `ranks` (items, members + 1) the counts of ranks.
    `power` (items, rings) by name is averaged over channels, at the `frequency` (rings,), in cycles per sample.
    """

    skill: Tensor
    single: Tensor
    plain: Tensor
    crps: Tensor
    ranks: Tensor
    power: Mapping[str, Tensor]
    frequency: Tensor


def item_scores(made: Ensemble, variable: Variable, channels: slice, grid: Grid) -> Scores:
    """Return the scores of an ensemble, for some channels in the unit of a variable."""
    sums: list[tuple[Tensor, ...]] = []
    powers: dict[str, list[Tensor]] = {name: [] for name in (TRUTH, MEMBERS, MEAN, PLAIN)}
    centre = variable.decode(made.truth[:, channels].double()).mean()
    for item in range(len(made.truth)):
        truth, plain = (variable.decode(each[item, channels].double()) for each in (made.truth, made.plain))
        members = variable.decode(made.members[:, item, channels].double())
        compared = made.compared[item, channels]
        sums.append(_sums(members, truth, plain, compared))
        valid = None if made.valid is None else made.valid[item, channels]
        for name, x in ((TRUTH, truth[None]), (MEMBERS, members), (MEAN, members.mean(0)[None]), (PLAIN, plain[None])):
            mask = None if valid is None else valid.expand_as(x)
            transform = next(transforms_about(centre, [(x, mask)], grid))
            powers[name].append(transform.abs().square().mean((0, 1)))
    rings = {name: radial_profile(torch.stack(each), grid) for name, each in powers.items()}
    skill, single, of_plain, scored, counted = (torch.stack(each) for each in zip(*sums, strict=True))
    power = {name: profile.power[:, 1:] for name, profile in rings.items()}
    return Scores(skill, single, of_plain, scored, counted, power, rings[TRUTH].frequency[1:])


def _sums(members: Tensor, truth: Tensor, plain: Tensor, compared: Tensor) -> tuple[Tensor, ...]:
    """Return the sums of one item, as in `Scores`, from values `(channels, *grid)` and `(members, channels, *grid)`."""
    count = compared.sum()
    ranks = torch.zeros(len(members) + 1, dtype=torch.float64)
    if count:
        ranks = count * rank_histogram(members[:, None], truth[None], compared[None])
    return (
        skill_sums(members[:, None], truth[None], compared[None])[0],
        (members - truth).square().mean(0)[compared].sum(),
        (plain - truth).square()[compared].sum(),
        crps(members[:, None], truth[None])[0][compared].sum(),
        ranks,
    )


def score_rows(scores: Scores, made: Ensemble, prefix: str, unit: str, resamples: int) -> list[Row]:
    """Return the rows of a variable, each with its standard error over items."""
    members, everything = len(made.members), torch.arange(len(made.truth))

    def row(name: str, statistic: Callable[[Tensor], float], ideal: float | None = None, own: str = unit) -> Row:
        error = bootstrap_error(lambda items, _: statistic(items), [len(made.truth)], resamples)
        return Row(f"{prefix}{name}", statistic(everything), error, ideal=ideal, unit=own)

    def root(squares: Tensor) -> Callable[[Tensor], float]:
        return lambda items: float((squares[items].sum() / scores.skill[items, 0].sum()).sqrt())

    def outside(items: Tensor) -> float:
        counted = scores.ranks[items].sum(0)
        return 100 * float((counted[0] + counted[-1]) / counted.sum())

    def rings(name: str, worst: bool) -> Callable[[Tensor], float]:
        return lambda items: ring_error(scores.power[name][items], scores.power[TRUTH][items], worst)

    return [
        row("error of the mean of samples", root(scores.skill[:, 2])),
        row("error of single samples", root(scores.single)),
        row(f"error of {made.plain_name}", root(scores.plain)),
        row("spread of samples", root(scores.skill[:, 1])),
        row("spread/skill", lambda items: spread_skill(scores.skill[items].sum(0), members).ratio, 1.0, ""),
        row("CRPS", lambda items: float(scores.crps[items].sum() / scores.skill[items, 0].sum())),
        row("truth outside of all samples", outside, 200 / (members + 1), "%"),
        row("rings of single samples, rms", rings(MEMBERS, worst=False), 0.0, "dB"),
        row("rings of single samples, worst", rings(MEMBERS, worst=True), 0.0, "dB"),
        row(f"rings of {made.plain_name}, worst", rings(PLAIN, worst=True), 0.0, "dB"),
    ]


def ring_error(made: Tensor, truth: Tensor, worst: bool) -> float:
    """Return the root mean square or the largest error of power `(items, rings)` in dB, over rings that are not quiet.

    It is NaN if there is no ring, as on a grid of a single sample.
    """
    strength = truth.mean(0)
    loud = strength >= 10 ** (QUIET / 10) * strength.amax() if len(strength) else torch.zeros(0, dtype=torch.bool)
    errors = decibels(made, truth)[loud].abs()
    if not len(errors):
        return float("nan")
    return float(errors.max() if worst else errors.square().mean().sqrt())


def rank_fractions(scores: Scores) -> Tensor:
    """Return how often the truth has each rank among the samples, over all items, fractions `(members + 1,)`."""
    counted = scores.ranks.sum(0)
    return counted / counted.sum()
