"""The definition of an experiment: a YAML file in this folder, read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from benchmarks.experiments.metrics import metric
from benchmarks.experiments.statistics import ENOUGH

FOLDER = Path(__file__).parent
REAL = "real data"
"""The arm without training: other real examples in place of samples, which give the noise floor of every metric."""
FEW = 3
"""Number of seeds of an arm in `few`."""
CALIBRATION = 256
"""Number of samples by which samplers are calibrated."""
CPU = "cpu"
"""The size of `base`, at which all experiments are run."""
Expected = Literal["found", "silent"]
Page = Literal["results", "fields"]
"""A page of the documentation: docs/results.md, or docs/results-fields.md."""


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained in the same way except for their own arguments, and judged in the same way.

    `base` and `arms` contain arguments of `multisagd train`; `sizes` contains those that replace them at another size.
    Each run draws `count` samples in `steps` steps of two samplers and compares them with `reference` clean examples,
    at the end of training and at `points`, fractions of it; at its end, also in the numbers of steps in `more_steps`.
    With `even_in_time`, samples are also drawn in `steps` steps that are even in time, and with `calibrated`, by
    samplers whose power is corrected after every step. Arms in `few` are trained with `FEW` seeds, for an ablation, and
    judged only at the end and in `steps` steps; their comparisons have no verdict. If there are such arms, the seeds
    from `FEW` on of the others are judged in the same way.
    `likelihood` is the number of held-out items whose likelihood is computed. `against` has the arms with which each
    arm is compared seed by seed, by the metric `primary`; the comparisons in `headline` answer the question, and are in
    the summary of its `page`. Arms in `plain` are trained by `plain_loop`. `without` contains further arms without
    training: real examples from which a band is removed, in units in which the corner of the spectrum is 1. `expected`
    says what is known of an arm of a control: it is worse and must be `found`, or does not differ and must be `silent`.

    Raises:
        ValueError: If an arm or a comparison does not exist, the primary metric is unknown, the points are not
            multiples of the first or reach the end, the number of training samples is not given, or a comparison in
            `headline` has an arm in `few`.
    """

    name: str
    title: str
    question: str
    base: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]
    against: Mapping[str, tuple[str, ...]]
    headline: tuple[tuple[str, str], ...] = ()
    note: str = ""
    primary: str = "sde.frechet_distance"
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 20
    more_steps: tuple[int, ...] = ()
    count: int = 1000
    reference: int = 5000
    points: tuple[float, ...] = (0.25, 0.5)
    likelihood: int = 128
    even_in_time: bool = False
    calibrated: bool = False
    few: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    without: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    expected: Mapping[str, Expected] = field(default_factory=dict)
    page: Page = "results"

    def __post_init__(self) -> None:
        named = {*self.against, *(other for each in self.against.values() for other in each), *self.plain}
        named |= set(self.few)
        if unknown := {*named, *self.expected} - {*self.arms, *self.without}:
            raise ValueError(f"{self.name}: there are no arms {sorted(unknown)}")
        if unequal := [arm for arm in self.expected if len(self.against.get(arm, ())) != 1]:
            raise ValueError(f"{self.name}: each expected arm needs one arm to be compared with, but not so {unequal}")
        if wrong := {each for each in self.expected.values() if each not in ("found", "silent")}:
            raise ValueError(f"{self.name}: expected must be found or silent, got {sorted(wrong)}")
        if unplanned := set(self.headline) - set(self.comparisons):
            raise ValueError(f"{self.name}: the comparisons {sorted(unplanned)} of the headline are not in against")
        if undecided := [pair for pair in self.headline if set(pair) & set(self.few)]:
            raise ValueError(f"{self.name}: {undecided} in the headline have arms of {FEW} seeds, so no verdict")
        if self.page not in get_args(Page):
            raise ValueError(f"{self.name}: page must be one of {', '.join(get_args(Page))}, got {self.page!r}")
        metric(self.primary)
        parts = [point / self.points[0] for point in self.points]
        if any(not isclose(part, round(part)) for part in parts) or not all(0 < point < 1 for point in self.points):
            raise ValueError(
                f"{self.name}: points must be fractions of training below 1, multiples of the first, got {self.points}"
            )
        for size in (CPU, *self.sizes):
            for arm in self.arms:
                self.samples(arm, size)

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read an experiment; unknown and missing keys raise a TypeError, and `sizes` names files in sizes/.

        `like` names another experiment, from which keys are taken that are not given.
        """
        content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (other := content.pop("like", None)) is not None:
            content = yaml.safe_load(path.with_stem(other).read_text(encoding="utf-8")) | content
        content["arms"] = {name: tuple(arguments or ()) for name, arguments in content["arms"].items()}
        content["against"] = _against(content["against"], content["arms"])
        content["sizes"] = {size: _size(path.parent, name) for size, name in content.get("sizes", {}).items()}
        content["headline"] = tuple((arm, other) for arm, other in content.get("headline", ()))
        for name in {"base", "points", "plain", "more_steps", "few"} & content.keys():
            content[name] = tuple(content[name])
        return cls(name=path.stem, **content)

    def arguments(self, arm: str, seed: int, size: str) -> list[str]:
        """Return the arguments of `multisagd train` for one training run, without its folder.

        Checkpoints are kept at the points.
        """
        words = self._words(arm, size)
        if self.points:
            interval = round(self.samples(arm, size) * self.points[0])
            words += [f"every.checkpoint={interval}", f"keep_every={interval}"]
        return [*words, f"seed={seed}"]

    def shrunk(self, factor: int) -> Experiment:
        """Return the experiment with all numbers of samples, items and examples divided by a factor, for trials."""

        def divided(words: tuple[str, ...]) -> tuple[str, ...]:
            each = (word.partition("training.samples=") for word in words)
            return tuple(f"{key}{name}{int(value) // factor if name else value}" for key, name, value in each)

        numbers = {name: getattr(self, name) // factor for name in ("count", "reference", "likelihood")}
        sizes = {size: divided(words) for size, words in self.sizes.items()}
        arms = {arm: divided(words) for arm, words in self.arms.items()}
        return replace(self, base=divided(self.base), arms=arms, sizes=sizes, **numbers)

    def samples(self, arm: str, size: str) -> int:
        """Return the number of samples on which an arm is trained."""
        given = [word.split("=")[1] for word in self._words(arm, size) if word.startswith("training.samples=")]
        if not given:
            raise ValueError(f"{self.name}: base must contain training.samples=…")
        return int(given[-1])

    def _words(self, arm: str, size: str) -> list[str]:
        return [*self.base, *(() if size == CPU else self.sizes[size]), *self.arms[arm]]

    @property
    def untrained(self) -> tuple[str, ...]:
        """The arms that consist of real examples instead of samples."""
        return (*self.without, REAL)

    def seeds(self, arm: str) -> int:
        """Return the number of seeds that an arm needs."""
        return FEW if arm in self.few else ENOUGH

    def judged(self, arm: str, seed: int) -> Experiment:
        """Return the experiment with what the run of an arm is judged by: for an ablation, fewer ways to sample."""
        if arm in self.few or (self.few and seed >= FEW):
            return replace(self, points=(), more_steps=(), even_in_time=False)
        return self

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Each arm with each arm that it is compared with."""
        return [(arm, other) for arm, others in self.against.items() for other in others]


def _against(given: str | Mapping[str, str | list[str]], arms: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the arms with which each arm is compared; a single name is that of the arm for all others."""
    if isinstance(given, str):
        return {arm: (given,) for arm in arms if arm != given}
    return {arm: (others,) if isinstance(others, str) else tuple(others) for arm, others in given.items()}


def _size(folder: Path, name: str) -> tuple[str, ...]:
    return tuple(yaml.safe_load((folder / "sizes" / f"{name}.yaml").read_text(encoding="utf-8")))


def run_folder(arguments: list[str]) -> str:
    """Return a folder name made from the arguments of a training run, so that experiments with equal runs share it."""
    said = [word for word in arguments if re.match(r"(spectrum|denoiser|corruption|data|seed|process)\b", word)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(word.split(".")[-1] for word in said))[:60]
    return f"{readable}_{hashlib.sha256(json.dumps(sorted(arguments)).encode()).hexdigest()[:8]}"


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, the controls first."""
    found = {path.stem: Experiment.load(path) for path in sorted(FOLDER.glob("*.yaml"))}
    return dict(sorted(found.items(), key=lambda item: (not item[1].expected, item[0])))
