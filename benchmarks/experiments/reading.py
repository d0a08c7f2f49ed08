"""The measured results of an experiment, its comparisons, and what the controls show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isnan
from pathlib import Path
from statistics import median_high
from typing import Any, Literal

from benchmarks.experiments.design import CPU, Experiment
from benchmarks.experiments.metrics import BITS, METRICS, MOST_BITS, Metric, flat, metric, other_sampler
from benchmarks.experiments.statistics import ENOUGH, LEVEL, Paired, holm, samples_needed
from benchmarks.rows import rows

Verdict = Literal["better", "worse", "no difference detected", "no verdict"]


@dataclass(frozen=True)
class Comparison:
    """A comparison of two arms by one metric; `corrected` is its p-value corrected by Holm's method.

    Only the primary metric is corrected, and gives a verdict. `level` is the level that always suffices for a verdict:
    .05 divided by the number of comparisons, at which Holm's method tests the smallest p-value.
    """

    arm: str
    other: str
    metric: Metric
    paired: Paired
    corrected: float | None = None
    level: float = LEVEL

    @property
    def detectable(self) -> float:
        """The least log ratio or difference that is detected with a probability of 80 %."""
        return self.paired.detectable(self.level)

    @property
    def verdict(self) -> Verdict:
        """The verdict by the fixed rules, as if all controls had passed."""
        if self.corrected is None or not self.paired.enough:
            return "no verdict"
        if not self.corrected < LEVEL:
            return "no difference detected"
        return "better" if self.metric.improves(self.paired.mean) else "worse"


@dataclass(frozen=True)
class Results:
    """The rows of an experiment at one size: as numbers by arm, seed and key, and unchanged (`raw`)."""

    experiment: Experiment
    size: str
    raw: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @classmethod
    def read(cls, experiment: Experiment, size: str, path: Path) -> Results:
        """Read the rows of an experiment from the results file; arms have the order of the experiment's file."""
        measured: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows(experiment.name, path):
            if row["arm"]["size"] == size:
                measured.setdefault(row["arm"]["arm"], {})[row["arm"]["seed"]] = row
        order = (*experiment.arms, *experiment.untrained)
        return cls(experiment, size, {arm: measured[arm] for arm in order if arm in measured})

    @cached_property
    def numbers(self) -> dict[str, dict[int, dict[str, float]]]:
        """The finite numbers by arm, seed and key, without likelihoods that are no densities (`MOST_BITS`)."""

        def kept(row: Mapping[str, Any]) -> dict[str, float]:
            return {key: value for key, value in flat(row).items() if key != BITS.key or value <= MOST_BITS}

        return {arm: {seed: kept(row) for seed, row in seeds.items()} for arm, seeds in self.raw.items()}

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that occur in at least one row."""
        found = {key for seeds in self.numbers.values() for row in seeds.values() for key in row}
        return [each for each in METRICS if each.key in found]

    @property
    def primary(self) -> Metric:
        """The metric that gives the verdicts."""
        return metric(self.experiment.primary)

    @property
    def secondary(self) -> list[Metric]:
        """The measured metrics that stand beside the primary one, without a verdict."""
        key = self.primary.key
        sampler = key.partition(".")[0]
        names = ["spectrum_error_db", "axis_errors_db.frame", "watched_db", "elsewhere_db"]
        wanted = [other_sampler(key), *(f"{sampler}.{name}" for name in names), BITS.key]
        return [each for each in self.metrics if each.key in wanted and each.key != key]

    def compared(self, arm: str, other: str, by: Metric) -> Paired:
        """Return the paired values of two arms, which may be empty."""
        return by.paired(self.numbers.get(arm, {}), self.numbers.get(other, {}))

    @cached_property
    def tested(self) -> list[Comparison]:
        """All comparisons by the primary metric, also those without rows.

        The p-values of planned comparisons are corrected for their number. A silent control has one test of its own,
        and arms of few seeds have none.
        """
        found = [Comparison(arm, other, self.primary, self.compared(arm, other, self.primary))
                 for arm, other in self.experiment.comparisons]  # fmt: skip
        few = set(self.experiment.few)
        alone = [
            self.experiment.expected.get(each.arm) == "silent" or bool(few & {each.arm, each.other}) for each in found
        ]
        family = [each for each, own in zip(found, alone, strict=True) if not own]
        p_values = iter(holm([each.paired.p if each.paired.enough else float("nan") for each in family]))
        return [
            replace(each, corrected=each.paired.p) if own
            else replace(each, corrected=next(p_values), level=LEVEL / len(family))
            for each, own in zip(found, alone, strict=True)
        ]  # fmt: skip

    def beside(self, tested: Comparison) -> list[Comparison]:
        """Return the comparisons of the same arms by the secondary metrics."""
        each = ((by, self.compared(tested.arm, tested.other, by)) for by in self.secondary)
        return [Comparison(tested.arm, tested.other, by, paired) for by, paired in each if paired.count]

    def needed(self, arm: str, other: str) -> str:
        """Return the fraction of the other arm's samples after which an arm reaches its final metric, in words.

        It is the median over seeds, interpolated between the points at which an arm was judged.
        """
        key, fractions = self.primary.key, []
        for seed in sorted(self.raw.get(arm, {}).keys() & self.raw.get(other, {}).keys()):
            mine, theirs = self.numbers[arm][seed], self.numbers[other][seed]
            values = {
                int(samples): flat(point)[key]
                for samples, point in self.raw[arm][seed].get("points", {}).items() if key in flat(point)
            }  # fmt: skip
            if not values or key not in mine or key not in theirs:
                continue
            reached = samples_needed(values | {int(mine["samples_seen"]): mine[key]}, theirs[key])
            fraction = reached.samples / theirs["samples_seen"]
            fractions.append((inf if reached.relation == ">" else fraction, fraction, reached.relation))
        if not fractions or not self.primary.ratio:
            return ""
        _, fraction, relation = median_high(fractions)
        return f"{relation if relation != '=' else ''}{fraction:.2f}"


def blocked(experiments: Iterable[Experiment], path: Path) -> list[str]:
    """Return why there are no verdicts: controls that failed or are not measured; empty if all passed."""
    controls = [Results.read(each, CPU, path) for each in experiments if each.expected]
    said = [f"`{each.arm}`: {outcome}" for results in controls for each in results.tested
            if (outcome := control(results.experiment, each)) is not None and outcome not in PASSED]  # fmt: skip
    return said if controls else ["there are no controls"]


FOUND, SILENT = "found, as it must be", "silent, as it must be"
PASSED = (FOUND, SILENT)


def control(experiment: Experiment, tested: Comparison) -> str | None:
    """Return the outcome of a control in words, or None if the comparison is not one."""
    expected = experiment.expected.get(tested.arm)
    if expected is None:
        return None
    if not tested.paired.enough or tested.corrected is None or isnan(tested.corrected):
        return f"not measured ({tested.paired.count} of {ENOUGH} seeds)"
    if expected == "found":
        return FOUND if tested.verdict == "worse" else f"**failed**: {tested.verdict}, but it is known to be worse"
    return SILENT if tested.verdict == "no difference detected" else "**failed**: differs, but it is the same training"
