"""A run as its folder tells it, whatever of it is there: it may be training, have crashed, or hold nothing yet.

A folder may come from someone else. Nothing in it is run, links that lead out of it are not followed, and what cannot
be read is named among what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from multisagd import DataStatistics
from multisagd.files import read_json
from recipes.base.errors import RecipeError
from recipes.base.quoting import setting
from recipes.base.untrusted import inside
from recipes.config.compose import Config
from recipes.reports.blocks import Note
from recipes.runs.lock import is_held
from recipes.runs.metrics import Entry, Metrics, inner, number
from recipes.runs.run import CONFIG, FACTS, METRICS, STATISTICS, TIMING
from recipes.runs.run import Run as Stored

MALFORMED = (
    RecipeError, SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    RuntimeError, MemoryError,
)  # fmt: skip
"""What reading and drawing something that is not what it should be can raise."""

State = Literal["finished", "in progress", "interrupted", "not begun"]


@dataclass(frozen=True, eq=False)
class Run:
    """What is known of a run. `missing` says what could not be read; `config` and `statistics` are None without."""

    folder: Path
    name: str
    config: Config | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    timing: Metrics = field(default_factory=Metrics)
    statistics: DataStatistics | None = None
    missing: tuple[Note, ...] = ()

    @property
    def train(self) -> list[Entry]:
        """Metrics of training steps."""
        return self.metrics.of("train")

    @property
    def validation(self) -> list[Entry]:
        """Metrics of held-out data."""
        return self.metrics.of("validation")

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The times that training was started."""
        found = self.facts.get("starts")
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    @property
    def target(self) -> int | None:
        """Samples that the run is to see."""
        found = number(inner(self.config or {}, "training").get("samples"))
        return int(found) if 0 < found < 1e18 else None

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        folder = self.folder / "checkpoints"
        named = [each for each in folder.iterdir() if each.name.isdecimal()] if folder.is_dir() else []
        return sorted((each for each in named if each.is_dir()), key=lambda each: int(each.name))

    @property
    def seen(self) -> int:
        """Samples seen, by the last entry or checkpoint."""
        told = [int(number(entry["samples"])) for entry in (*self.train[-1:], *self.validation[-1:])]
        return max([0, *told, *(int(each.name) for each in self.checkpoints[-1:])])

    @property
    def state(self) -> State:
        """How far the run is."""
        if self.target is not None and self.seen >= self.target:
            return "finished"
        if inside(self.folder / ".lock", self.folder) and is_held(self.folder):
            return "in progress"
        return "interrupted" if self.seen or self.starts else "not begun"


FILES = (CONFIG, FACTS, METRICS, TIMING, STATISTICS)


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read whatever of a run is there.

    Raises:
        RecipeError: if the folder is none, or holds nothing of a run at all.
    """
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}: name that of a training run")
    if not any((folder / name).exists() for name in FILES):
        command = f"multisagd train … {setting('run_dir', folder)}"
        raise RecipeError(f"{folder} holds nothing of a training run; to make one: {command}")
    missing: list[Note] = []
    source = Stored(folder)

    def attempt(what: str, name: str, read: Callable[[], Any]) -> Any:
        path = folder / name
        try:
            if not path.exists():
                raise FileNotFoundError(path)
            if not inside(path, folder):
                raise ValueError("it is a link to somewhere else")
            return read()
        except FileNotFoundError:
            missing.append(Note(f"{path.name} is not there: {what}."))
        except MALFORMED as error:
            missing.append(Note(f"{path.name} could not be read: {what}. {shortened(error)}"))
        return None

    run = Run(
        folder,
        name or folder.resolve().name,
        config=attempt("without it neither settings nor process are known", CONFIG, lambda: source.config),
        facts=attempt("without it neither versions nor starts are known", FACTS, lambda: source.facts) or {},
        metrics=attempt("there are no losses to draw", METRICS, source.metrics) or Metrics(),
        timing=attempt("there is no speed to draw", TIMING, source.timing) or Metrics(),
        statistics=attempt("the spectrum of the data is not known", STATISTICS, lambda: source.statistics),
    )
    for metrics, file in ((run.metrics, METRICS), (run.timing, TIMING)):
        if metrics.broken:
            missing.append(Note(f"{file}: {metrics.broken:,} lines are no entries, and were passed over."))
    return replace(run, missing=tuple(missing))


def own_json(path: Path, folder: Path) -> Any:
    """Return the content of a JSON file in a folder.

    Raises:
        OSError, ValueError: if it cannot be read, or is a link to somewhere else.
    """
    if not inside(path, folder):
        raise ValueError(f"{path.name} is a link to somewhere else")
    return read_json(path, finite=False)


def shortened(error: BaseException, most: int = 400) -> str:
    """Return the message of an error in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
