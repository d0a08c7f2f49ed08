"""The definition of an experiment: a YAML file in this folder, read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
REAL = "real data"
"""The arm without training: other real examples in place of samples, which give the noise floor of every metric."""


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained in the same way except for their own arguments, and evaluated in the same way.

    `base` and `arms` contain arguments of `multisagd train`; `gpu` replaces some of them at a size for a GPU. Each run
    draws `count` samples in `steps` steps of `sampler`, and compares them with `reference` clean examples. `without`
    contains further arms without training: real examples from which a band is removed, in units in which the corner of
    the spectrum is 1. `against` is the arm with which all others are compared seed by seed, or a mapping from arms to
    the arm with which each is compared.

    Raises:
        ValueError: If `against` or `cpu_arms` names an arm that does not exist.
    """

    name: str
    title: str
    question: str
    base: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]
    against: str | Mapping[str, str]
    gpu: tuple[str, ...] = ()
    sampler: str = "dpm_solver"
    steps: int = 20
    count: int = 2000
    reference: int = 5000
    cpu_arms: tuple[str, ...] | None = None
    without: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [self.against] if isinstance(self.against, str) else [*self.against, *self.against.values()]
        if unknown := {*named, *(self.cpu_arms or ())} - {*self.arms, *self.without}:
            raise ValueError(f"{self.name}: there are no arms {sorted(unknown)}")

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read an experiment; the constructor raises an error for unknown and missing keys."""
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["arms"] = {name: tuple(arguments or ()) for name, arguments in content["arms"].items()}
        for name in ("base", "gpu", "cpu_arms"):
            if name in content:
                content[name] = tuple(content[name])
        return cls(name=path.stem, **content)

    def arguments(self, arm: str, seed: int, size: str) -> list[str]:
        """Return the arguments of `multisagd train` for one training run, without its folder."""
        return [*self.base, *(self.gpu if size == "gpu" else ()), *self.arms[arm], f"seed={seed}"]

    @property
    def untrained(self) -> tuple[str, ...]:
        """The arms that consist of real examples instead of samples."""
        return (*self.without, REAL)

    def other(self, arm: str) -> str | None:
        """Return the arm that this one is compared with, or None."""
        if isinstance(self.against, str):
            return self.against if arm != self.against else None
        return self.against.get(arm)


def run_folder(arguments: list[str]) -> str:
    """Return a folder name made from the arguments of a training run, so that experiments with equal runs share it."""
    said = [word for word in arguments if re.match(r"(spectrum|denoiser|corruption|data|seed|process)\b", word)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(word.split(".")[-1] for word in said))[:60]
    return f"{readable}_{hashlib.sha256(json.dumps(sorted(arguments)).encode()).hexdigest()[:8]}"


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name."""
    return {path.stem: Experiment.load(path) for path in sorted(FOLDER.glob("*.yaml"))}
