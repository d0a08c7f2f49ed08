"""What an experiment is: a YAML file beside this one, read and checked."""

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
"""The arm that trains nothing: other real examples in place of samples, which is the noise floor of every metric."""


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained alike but for the arguments named, and judged alike.

    `base` and the arguments of an arm are those of `multisagd train`; `gpu` replaces some of them at a size for a GPU.
    Samples are drawn in `steps` steps of `sampler`, `count` of them, and compared with `reference` clean examples.
    `without` names more arms that train nothing: real examples of which a band is taken out, in units in which the
    corner of the spectrum is 1. `against` names what each arm is compared with seed by seed: one arm, or one for some
    of the others.

    Raises:
        ValueError: for an arm to compare with that is not there.
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
        """Read an experiment; unknown and missing keys are errors of the constructor."""
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["arms"] = {name: tuple(arguments or ()) for name, arguments in content["arms"].items()}
        for name in ("base", "gpu", "cpu_arms"):
            if name in content:
                content[name] = tuple(content[name])
        return cls(name=path.stem, **content)

    def arguments(self, arm: str, seed: int, size: str) -> list[str]:
        """Return the arguments of `multisagd train` for one training, all but its folder."""
        return [*self.base, *(self.gpu if size == "gpu" else ()), *self.arms[arm], f"seed={seed}"]

    @property
    def untrained(self) -> tuple[str, ...]:
        """The arms that are real examples and no samples."""
        return (*self.without, REAL)

    def other(self, arm: str) -> str | None:
        """Return the arm that this one is compared with, if there is one."""
        if isinstance(self.against, str):
            return self.against if arm != self.against else None
        return self.against.get(arm)


def run_folder(arguments: list[str]) -> str:
    """Name the folder of a training after its arguments, so that experiments that ask for the same share it."""
    said = [word for word in arguments if re.match(r"(spectrum|denoiser|corruption|data|seed|process)\b", word)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(word.split(".")[-1] for word in said))[:60]
    return f"{readable}_{hashlib.sha256(json.dumps(sorted(arguments)).encode()).hexdigest()[:8]}"


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name."""
    return {path.stem: Experiment.load(path) for path in sorted(FOLDER.glob("*.yaml"))}
