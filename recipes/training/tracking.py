"""The outputs of a run: its configuration and metadata, its metrics, and optionally TensorBoard and Weights & Biases.

`metrics.jsonl` contains only values that are determined by configuration and seed, so that two runs can be compared
byte for byte; durations are in `timing.jsonl`. A resumed run truncates `metrics.jsonl` to the length at its checkpoint,
and then appends to both files.
"""

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modalities.forecasts import States
from multisagd.libraries import importing
from recipes.base.commands import setting
from recipes.base.errors import RecipeError
from recipes.base.files import replace_file
from recipes.base.untrusted import read_object
from recipes.config.addresses import shareable
from recipes.config.conditions import modality_of_conditions
from recipes.data import contents, extents
from recipes.runs.averages import snapshots
from recipes.runs.best import read_best
from recipes.runs.checkpoint import Checkpoints
from recipes.runs.run import CORRUPTION, METRICS, RESTORATION, TIMING, Run, data_metadata
from recipes.runs.settings import TrackingSettings
from recipes.runtime.distribution import gathered
from recipes.training.setup import Job, TrainingData, TrainingModel

UNREADABLE, UNREADABLE_VALIDATION = "unreadable.json", "unreadable_validation.json"

log = logging.getLogger("multisagd")


def write_record(job: Job, data: TrainingData, model: TrainingModel, checkpoints: Checkpoints, begun: bool) -> None:
    """Write the run's configuration, statistics and metadata, and an entry for this start."""
    run_dir, samples = job.settings.run_dir, model.learner.samples
    for path in checkpoints.set_aside(samples):
        log.warning(
            "%s was saved after the state from which training continues: it is set aside now and removed later",
            path,
        )
    snapshots(run_dir).set_aside(samples)
    run = Run(run_dir)
    run.write(job.config, data.statistics)
    if not begun:
        contents.keep(run_dir, *data.parts.stored_in(data.dataset))
        for name, dataset in zip(extents.FILES, data.parts.stored_in(data.dataset), strict=False):
            extents.keep(run_dir / name, dataset)
    if data.restoration is not None:
        replace_file(run_dir / RESTORATION, data.restoration.save)
    if data.corruption is not None and not begun:
        replace_file(run_dir / CORRUPTION, data.corruption.save)
    given = data.training.condition_modality
    known = given.described(job.settings.modality) if isinstance(given, States) else None
    metadata = data.condition.metadata(data.captions, known or modality_of_conditions(job.settings.data))
    metadata |= {"parameters": model.parameters, "data": data_metadata(data.dataset)}
    if data.parts.separate is not None:
        metadata["validation"] = data_metadata(data.parts.separate)
    metadata |= {"held_out": 0 if data.held_out is None else len(data.held_out)}
    metadata |= {} if model.initial is None else {"initial": model.initial}
    run.note_start(job.settings.seed, samples, job.runtime.describe(), metadata)


def name_unreadable(data: TrainingData, run_dir: Path) -> None:
    """Write the lists of unreadable files, if there are any. If a list cannot be written, log a warning."""
    try:
        if run_dir.is_dir():
            data.dataset.save_unreadable(run_dir / UNREADABLE)
            if data.parts.separate is not None:
                data.parts.separate.save_unreadable(run_dir / UNREADABLE_VALIDATION)
    except OSError as error:
        log.warning("cannot write %s: %s", run_dir / UNREADABLE, error)


def recall_unreadable(data: TrainingData, run_dir: Path) -> None:
    """Add the files that could not be read before this run was continued, so that its lists stay complete."""
    for name, dataset in zip((UNREADABLE, UNREADABLE_VALIDATION), data.parts.stored_in(data.dataset), strict=False):
        path = run_dir / name
        try:
            listed = read_object(path)["unreadable"]
            reasons = {str(each["path"]): str(each["reason"]) for each in listed}
            dataset.recall_unreadable(reasons, path.stat().st_mtime)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read %s (%s): files that it lists are named again when they are read", path, error)


def gather_unreadable(data: TrainingData) -> None:
    """Add the files that other processes could not read; every process must call this."""
    for dataset in data.parts.stored_in(data.dataset):
        own = torch.frombuffer(bytearray(json.dumps(dict(dataset.unreadable)).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in gathered(torch.tensor(len(own)))]
        padded = torch.nn.functional.pad(own, (0, max(sizes) - len(own)))
        for size, other in zip(sizes, gathered(padded), strict=True):
            dataset.recall_unreadable(json.loads(other[:size].numpy().tobytes()), math.inf)


def ending(run_dir: Path, checkpoint: Path, data: TrainingData) -> str:
    """Return a message that lists the run's files, and the command that draws samples."""
    dataset = data.dataset
    best = read_best(checkpoint.parent)
    lines = [
        f"done. In {run_dir}:",
        *(["  samples      samples/"] if (run_dir / "samples").is_dir() else []),
        "  metrics      metrics.jsonl",
        f"  checkpoint   {checkpoint.relative_to(run_dir)}",
        *([] if best is None else [f"  best         checkpoints/{best.samples:012d} (checkpoint=best)"]),
        "  record       config.yaml, run.json, statistics.safetensors",
    ]
    if dataset.unreadable:
        lines.append(f"  unreadable   {len(dataset.unreadable)} files, named in {UNREADABLE}")
    condition = "" if data.condition.dense is None else " condition=FOLDER"
    return "\n".join([*lines, f"More samples: multisagd sample {setting('run_dir', run_dir)}{condition}"])


class Journal:
    """A JSON Lines file to append to; first truncated to `position` bytes, if given."""

    def __init__(self, path: Path, position: int | None = None) -> None:
        self.path, self._failed = path, False
        self._file = path.open("ab", buffering=0)
        if position is not None:
            self.cut(position)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry, unbuffered. An entry that cannot be written is dropped, the first one with a warning."""
        line, before = json.dumps(entry).encode() + b"\n", self.position
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.truncate(self._file.fileno(), before)
            if not self._failed:
                log.warning("cannot write %s (%s): entries are dropped until there is space", self.path, error)
            self._failed = True
        else:
            self._failed = False

    @property
    def position(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def cut(self, position: int) -> None:
        """Truncate the file to a position."""
        if self.position < position:
            log.warning("%s is shorter than when the checkpoint was saved: some of its entries are lost", self.path)
        os.truncate(self._file.fileno(), min(position, self.position))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker:
    """Writes metrics to the run folder and to the services in `settings`; `position` and `samples` are a checkpoint's.

    Raises:
        BrokenLibraryError: If the library of a configured service cannot be imported.
        RecipeError: If Weights & Biases does not start because there is no login or no connection.
    """

    def __init__(
        self, run_dir: Path, settings: TrackingSettings, config: Mapping[str, Any], position: int = 0, samples: int = 0
    ) -> None:
        self._metrics, self._timing = Journal(run_dir / METRICS, position), Journal(run_dir / TIMING)
        self._failed: set[str] = set()
        self._board = _tensorboard(run_dir, samples) if settings.tensorboard else None
        self._wandb = _wandb(run_dir, settings, config) if settings.wandb else None

    def metrics(self, samples: int, kind: str, values: Mapping[str, Any]) -> None:
        """Record metrics of one `kind` ("train" or "validation") at a number of samples seen."""
        self._metrics.write({"samples": samples, "kind": kind, **values})
        self._log_scalars(samples, dict(scalar_items(values, kind)))

    def timing(self, samples: int, values: Mapping[str, Any]) -> None:
        """Record durations, which are in a separate file because they differ between equal runs."""
        self._timing.write({"samples": samples, **values})
        self._log_scalars(samples, dict(scalar_items(values, "timing")))

    def _log_scalars(self, samples: int, scalars: Mapping[str, float]) -> None:
        if self._board is not None:
            with self._errors_as_warnings("TensorBoard"):
                for name, value in scalars.items():
                    self._board.add_scalar(name, value, samples)
        if self._wandb is not None:
            with self._errors_as_warnings("Weights & Biases"):
                self._wandb.log({"samples": samples, **scalars})

    @contextmanager
    def _errors_as_warnings(self, service: str) -> Iterator[None]:
        """Inside the context, turn the first error of a service into a warning, and ignore later ones."""
        try:
            yield
        except Exception as error:
            if service not in self._failed:
                log.warning("%s failed (%s): training continues, and %s contains all metrics", service, error, METRICS)
            self._failed.add(service)

    def cut(self, position: int) -> None:
        """Remove the metrics after a position, when training returns to a checkpoint. Services keep both versions."""
        self._metrics.cut(position)

    @property
    def position(self) -> int:
        """Length of `metrics.jsonl` in bytes, for a checkpoint."""
        return self._metrics.position

    def close(self) -> None:
        """Close files and services."""
        self._metrics.close()
        self._timing.close()
        with self._errors_as_warnings("TensorBoard"):
            if self._board is not None:
                self._board.close()
        with self._errors_as_warnings("Weights & Biases"):
            if self._wandb is not None:
                self._wandb.finish()


class NullTracker:
    """Replaces `Tracker` on all ranks except the first, and records nothing."""

    position = 0

    def metrics(self, *_: Any) -> None:
        """Do nothing."""

    timing = cut = close = metrics


def scalar_items(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the path, such as `validation/level/t=0.10/loss`, and the value of each number in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from scalar_items(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


def _tensorboard(run_dir: Path, samples: int) -> Any:
    with importing("tensorboard", "tracking.tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=samples + 1 if samples else None)


def _wandb(run_dir: Path, settings: TrackingSettings, config: Mapping[str, Any]) -> Any:
    with importing("wandb", "tracking.wandb"):
        import wandb
    identity = run_dir / "wandb_id"  # identifies the curves that a resumed run continues
    try:
        run = wandb.init(
            project=settings.project,
            name=settings.name or run_dir.name,
            id=identity.read_text(encoding="utf-8") if identity.exists() else None,
            resume="allow",
            dir=str(run_dir),
            config=shareable(config),
        )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"tracking.wandb: Weights & Biases cannot start ({reason:.300}). Log in with `wandb login`, or set "
            "WANDB_MODE=offline to keep its record in the run folder"
        ) from error
    if not identity.exists():
        identity.write_text(run.id, encoding="utf-8")
    run.define_metric("*", step_metric="samples")
    return run
