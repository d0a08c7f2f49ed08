"""Read the folder of a run for a report. The run may be training, have crashed, or be incomplete.

A folder may come from someone else. Nothing in it is executed, symbolic links that point outside it are not followed,
and unreadable parts are listed as missing.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from torch import Tensor

from multisagd import DataStatistics
from multisagd.files import read_json
from recipes.base.commands import setting
from recipes.base.errors import RecipeError
from recipes.base.untrusted import inside, read_header, read_rows
from recipes.config.compose import Config
from recipes.runs.best import Selected, read_best
from recipes.runs.checkpoint import INDEX, samples_of
from recipes.runs.lock import is_locked
from recipes.runs.metrics import Entry, Metrics, inner, number
from recipes.runs.run import CONFIG, METADATA, METRICS, STATISTICS, TIMING, Run
from recipes.sampling.sample_files import EVALUATION, NOTES, TENSORS

MALFORMED = (
    RecipeError, SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
    RuntimeError, MemoryError,
)  # fmt: skip
"""Errors raised by reading or drawing invalid files."""
MAX_SAMPLES = 1000
"""Maximum number of samples of a set for measuring its spectrum."""
MAX_NUMBERS = 1 << 25
"""Maximum number of values in these samples."""
LONGEST = 300
"""Number of characters after which a value is cut off."""

State = Literal["finished", "ended early", "in progress", "interrupted", "not begun"]


@dataclass(frozen=True)
class SampleSet:
    """A set of samples in the run folder `root`; `made` is its record, written by `multisagd sample`."""

    folder: Path
    root: Path
    made: dict[str, Any]

    @property
    def title(self) -> str:
        """A readable name: samples seen by the model, sampler and steps, or the folder's name."""
        seen = number(self.made.get("samples_seen"))
        after = "" if math.isnan(seen) else f"after {seen:,.0f} samples seen, "
        return f"{after}{self.sampler or self.folder.name}"

    @property
    def sampler(self) -> str:
        """The sampler and its steps, or "" if unknown."""
        settings = inner(self.made, "settings")
        name = str(inner(settings, "sampler").get("_target_", "")).rsplit(".", 1)[-1]
        return f"{name} in {settings.get('steps')} steps" if name else ""

    def evaluation(self) -> Any:
        """Return the set's evaluation by `multisagd evaluate`. Raises the same errors as `own_json`."""
        return own_json(self.folder / EVALUATION, self.root)

    def read(self, statistics: DataStatistics, maximum: int = MAX_SAMPLES) -> Tensor:
        """Return the first samples of the set, `(count, channels, *grid)`.

        Raises ValueError if their shape differs from the data's.
        """
        path = self.folder / TENSORS
        shape = read_header(path)["x0"].shape
        if shape[1:] != tuple(statistics.mean.shape) or not shape[0]:
            raise ValueError(f"{path} holds samples of shape {shape}, but the data have {tuple(statistics.mean.shape)}")
        x0 = read_rows(path, "x0", max(2, min(maximum, MAX_NUMBERS // statistics.mean.numel()))).float()
        if not bool(x0.isfinite().all()):
            raise ValueError(f"some samples in {path} are not finite: sample again with more steps")
        return x0

    def names(self, classes: Sequence[str], count: int) -> list[str]:
        """Return the class or prompt of each of the first `count` samples, or an empty list if unknown."""
        prompts = self.made.get("prompts")
        if isinstance(prompts, list):
            return [str(each) for each in prompts[:count]]
        try:
            return [classes[label] for label in read_rows(self.folder / TENSORS, "labels", count).tolist()]
        except MALFORMED:
            return []


@dataclass(frozen=True, eq=False)
class Overview:
    """The readable parts of a run. `missing` describes the other parts; `config` and `statistics` may be None."""

    folder: Path
    name: str
    config: Config | None
    metadata: dict[str, Any]
    train: list[Entry]
    validation: list[Entry]
    timing: list[Entry]
    subsampled: bool
    """Whether some entries were omitted."""
    statistics: DataStatistics | None
    missing: tuple[str, ...]

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """The recorded starts of training."""
        starts = self.metadata.get("starts")
        return [each for each in starts if isinstance(each, dict)] if isinstance(starts, list) else []

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, or an empty list for a run without classes."""
        return self.metadata.get("classes") or []

    @cached_property
    def target(self) -> int | None:
        """The number of samples after which training ends, or None if unknown."""
        samples = number(inner(self.config or {}, "training").get("samples"))
        return int(samples) if 0 < samples < 1e18 else None

    @cached_property
    def saved(self) -> int | None:
        """Samples seen at the last checkpoint, or None."""
        return next((samples_of(each) for each in reversed(Run(self.folder).checkpoints.folders())), None)

    @cached_property
    def seen(self) -> int:
        """Number of samples seen, according to the last entry or checkpoint."""
        logged = [int(number(entry["samples"])) for entry in (*self.train[-1:], *self.validation[-1:])]
        return max([self.saved or 0, *logged])

    @cached_property
    def state(self) -> State:
        """The state of the run."""
        if self.target is not None and self.seen >= self.target:
            return "finished"
        if inside(self.folder / ".lock", self.folder) and is_locked(self.folder):
            return "in progress"
        if self._ended_early():
            return "ended early"
        return "interrupted" if self.seen or self.starts else "not begun"

    def _ended_early(self) -> bool:
        """Whether training ended because the score no longer improved."""
        patience = number(inner(self.config or {}, "validation").get("patience"))
        if self.saved is None or not self.validation or self.validation[-1].get("samples") != self.saved:
            return False
        checkpoints = Run(self.folder).checkpoints
        try:
            best = read_best(checkpoints.folder)
            selected = Selected.of(own_json(checkpoints.place(self.saved) / INDEX, self.folder)["record"])
        except MALFORMED:
            return False
        # A checkpoint does not count the validation that follows it.
        return (best is None or best.samples < self.saved) and selected.since + 1 >= patience

    @cached_property
    def images(self) -> dict[int, Path]:
        """Images of samples drawn during training, by number of samples seen."""
        folder = self.folder / "samples"
        files = folder.glob("*.png") if folder.is_dir() and inside(folder, self.folder) else ()
        named = {int(path.stem): path for path in files if path.stem.isdecimal() and len(path.stem) < 19}
        return dict(sorted(named.items()))

    @cached_property
    def sample_sets(self) -> list[SampleSet]:
        """The sets of samples in the run's folder `sampled`, newest first."""
        root = self.folder / "sampled"
        sets = []
        for folder in root.iterdir() if root.is_dir() else ():
            samples = folder / TENSORS
            if samples.is_file() and inside(samples, self.folder):
                try:
                    made = own_json(folder / NOTES, self.folder)
                except MALFORMED:
                    made = {}
                sets.append(SampleSet(folder, self.folder, made if isinstance(made, dict) else {}))
        return sorted(sets, key=lambda each: (each.folder / TENSORS).stat().st_mtime, reverse=True)


def read_run(folder: Path, name: str | None = None) -> Overview:
    """Read the available parts of a run. Raises RecipeError if the folder does not exist or has no part of a run."""
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}: specify the folder of a training run")
    if not any((folder / name).exists() for name in (CONFIG, METADATA, METRICS, TIMING, STATISTICS)):
        command = f"multisagd train … {setting('run_dir', folder)}"
        raise RecipeError(f"{folder} is not the folder of a training run; to create one: {command}")
    missing: list[str] = []
    source = Run(folder)

    def attempt(effect: str, name: str, read: Callable[[], Any]) -> Any:
        path = folder / name
        try:
            if not path.exists():
                raise FileNotFoundError(path)
            if not inside(path, folder):
                raise ValueError("it is a symbolic link that points outside the run")
            return read()
        except FileNotFoundError:
            missing.append(f"{name} is missing: {effect}.")
        except MALFORMED as error:
            missing.append(f"{name} could not be read: {effect}. {shortened(error)}")
        return None

    config = attempt("without it, settings and process are unknown", CONFIG, lambda: source.config)
    metadata = attempt("without it, versions and starts are unknown", METADATA, lambda: source.metadata) or {}
    metrics = attempt("losses cannot be drawn", METRICS, source.metrics) or Metrics()
    timing = attempt("speed cannot be drawn", TIMING, source.timing) or Metrics()
    statistics = attempt("the spectrum of the data is unknown", STATISTICS, lambda: source.statistics)
    for entries, file in ((metrics, METRICS), (timing, TIMING)):
        if entries.broken:
            missing.append(f"{file}: {entries.broken:,} lines are not valid entries and were skipped.")
    return Overview(
        folder, name or folder.resolve().name, config, metadata, metrics.of("train"), metrics.of("validation"),
        timing.of("timing"), metrics.subsampled or timing.subsampled, statistics, tuple(missing),
    )  # fmt: skip


def metric_rows(report: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of the metric and the row of every value in an evaluate.json."""
    for kind, result in inner(report, "results").items():
        rows = result.get("rows") if isinstance(result, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                yield str(kind), row


def metric_notes(report: Any, kind: str) -> list[str]:
    """Return the notes on the values of one metric in an evaluate.json."""
    notes = inner(report, "results", kind).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def metric_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return a row of an evaluate.json as strings: samples, real data, ideal."""
    ideal = number(row.get("ideal"))
    floor = with_error(row, "floor", "floor_error")
    return with_error(row, "value", "error"), floor, "" if math.isnan(ideal) else f"{ideal:g}"


def with_error(row: dict[str, Any], value: str, error: str) -> str:
    """Return the number under the key `value` of a row as text, with its uncertainty and unit."""
    mean, uncertainty = number(row.get(value)), number(row.get(error))
    if math.isnan(mean):
        return "-"
    unit = f" {row['unit']}" if row.get("unit") else ""
    return f"{mean:.4g}{unit}" if math.isnan(uncertainty) else f"{mean:.4g} ± {uncertainty:.2g}{unit}"


def own_json(path: Path, folder: Path) -> Any:
    """Return the content of a JSON file in a folder.

    Raises OSError or ValueError if it is unreadable or outside the folder.
    """
    if not inside(path, folder):
        raise ValueError(f"{path.name} is a symbolic link that points outside the folder")
    return read_json(path, finite=False)


def shown(value: Any) -> str:
    """Return a value as text of at most `LONGEST` characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def shortened(error: BaseException, maximum: int = 400) -> str:
    """Return the message of an error in one line of at most `maximum` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= maximum else f"{text[:maximum]}…"
