"""A run by its folder: the one place that knows which files training keeps there, and reads them.

    config.yaml              the resolved configuration
    run.json                 what the data were, and one entry for each time the command was started
    statistics.safetensors   mean and power spectrum of the training data
    checkpoints/             states to continue from, and to sample with
    metrics.jsonl            what is a function of configuration and seed; timing.jsonl: what is not
    samples/, sampled/       pictures drawn while training; sets drawn by `multisagd sample`
    corruption.safetensors, restoration.safetensors   of corrupted data: what corrupts them, and what restores them

Each part is read when it is asked for, through `untrusted`: the folder may come from someone else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from multisagd import Corruption, DataStatistics, GaussianRestoration, Grid
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration, read_object
from recipes.config.compose import Config
from recipes.config.defaults import filled
from recipes.runs.checkpoint import Checkpoints
from recipes.runs.metrics import Metrics, read_metrics

CONFIG, FACTS, STATISTICS = "config.yaml", "run.json", "statistics.safetensors"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
CORRUPTION, RESTORATION = "corruption.safetensors", "restoration.safetensors"
RESTORE = "restore it, or train again in another run_dir"


@dataclass(frozen=True)
class Run:
    """The run in a folder, of which any part may be missing."""

    folder: Path

    @property
    def begun(self) -> bool:
        """Whether training has written its configuration."""
        return (self.folder / CONFIG).exists()

    @cached_property
    def config(self) -> Config:
        """The resolved configuration, with every key that it lacks at its default.

        Raises:
            RecipeError: if it is missing or cannot be read.
        """
        return filled(read_configuration(self.folder / CONFIG))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            RecipeError: if it is missing or cannot be read, or an entry is not what training writes there.
        """
        path = self.folder / FACTS
        try:
            found = read_object(path)
            check_facts(found)
        except (OSError, ValueError) as error:
            message = f"cannot read {path} ({error}): is {self.folder} the folder of a training run?"
            raise RecipeError(message) from error
        return found

    @property
    def noted_facts(self) -> dict[str, Any]:
        """What `run.json` holds, empty where a run was stopped before it was written.

        Raises:
            RecipeError: as `facts`.
        """
        return self.facts if (self.folder / FACTS).exists() else {}

    @cached_property
    def statistics(self) -> DataStatistics:
        """Statistics of the training data.

        Raises:
            RecipeError: if they are missing or cannot be read.
        """
        return read_statistics(self.folder / STATISTICS, RESTORE)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints, to be read."""
        return Checkpoints(self.folder / "checkpoints")

    def metrics(self) -> Metrics:
        """Return the entries of `metrics.jsonl`; see `read_metrics`."""
        return read_metrics(self.folder / METRICS)

    def timing(self) -> Metrics:
        """Return the entries of `timing.jsonl`; see `read_metrics`."""
        return read_metrics(self.folder / TIMING, "timing")

    def corruption(self, grid: Grid, group: Mapping[str, Any] | None) -> Corruption | None:
        """Return what corrupted the data, None if nothing was kept; `group` is that of the configuration.

        Raises:
            RecipeError: if it cannot be read.
        """
        return read_corruption(self.folder / CORRUPTION, grid, group)

    def restoration(self) -> GaussianRestoration:
        """Return what restores the data.

        Raises:
            RecipeError: if it is missing or cannot be read.
        """
        path = self.folder / RESTORATION
        try:
            return GaussianRestoration.load(path)
        except (OSError, ValueError) as error:
            raise RecipeError(f"cannot read {path} ({error}): {RESTORE}") from error


def read_statistics(path: Path, remedy: str, key: str = "") -> DataStatistics:
    """Read a file of statistics, which `key` names in a configuration.

    Raises:
        RecipeError: if it is missing or cannot be read, with the remedy.
    """
    try:
        return DataStatistics.load(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RecipeError(f"{key}cannot read {path} ({error}): {remedy}") from error


def read_corruption(path: Path, grid: Grid, group: Mapping[str, Any] | None) -> Corruption | None:
    """Read what corrupted a run's data, None if nothing was kept; `group` is that of its configuration, if any.

    Raises:
        RecipeError: if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return Corruption.load(path, grid, bool((group or {}).get("shared")))
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read {path} ({error}): {RESTORE}") from error


def check_facts(facts: Mapping[str, Any]) -> None:
    """Check the entries of `run.json` that are read; those with a default may be missing.

    Raises:
        ValueError: naming the first that is not what it should be.
    """

    def require(holds: bool, name: str) -> None:
        if not holds:
            raise ValueError(f"its {name} is not what it should be")

    classes, text, data = facts.get("classes"), facts.get("text"), facts.get("data")
    require("classes" in facts and (classes is None or _texts(classes)), "classes")
    untrained = facts.get("untrained", [])
    require(_texts(untrained), "untrained classes")
    require(set(untrained) <= set(classes or ()), "untrained classes")
    require(isinstance(facts.get("starts", []), list), "starts")
    require(text is None or isinstance(text, dict), "text")
    if text is not None:
        require(_texts([text.get("name"), text.get("fingerprint")]), "text")
        require(type(text.get("width")) is int and text["width"] > 0, "width of the text")
    require(data is None or (isinstance(data, dict) and {"examples", "classes", "fingerprint"} <= data.keys()), "data")


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)
