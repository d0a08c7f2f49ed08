"""The folder of a run: the names of its files, and functions that read and write them.

    config.yaml              the resolved configuration
    run.json                 metadata of the data and the model, and an entry for each start of the command
    statistics.safetensors   mean and power spectrum of the training data
    extents.safetensors      sizes of the data's files, if the modality sorts them (see `recipes.data.extents`)
    checkpoints/             states for continued training and for sampling
    metrics.jsonl            metrics that depend only on configuration and seed; the others are in timing.jsonl
    samples/, sampled/       samples drawn during training; sets of samples drawn by `multisagd sample`
    corruption.safetensors, restoration.safetensors   if the data are corrupted: the corruption, and the restoration

Each part is read on demand, with the functions of `recipes.base.untrusted`: the folder may come from someone else.
"""

import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from modalities.base import Dataset
from modalities.scalars import Scalar
from multisagd import Corruption, DataStatistics, GaussianRestoration, Grid
from recipes.base.errors import ROOT, RecipeError, as_recipe_error
from recipes.base.files import replace_file, write_text
from recipes.base.untrusted import read_configuration, read_object
from recipes.config import compose as configuration
from recipes.config.compose import Config
from recipes.config.groups import filled, flatten, under
from recipes.config.sources import own_key
from recipes.runs.checkpoint import Checkpoints
from recipes.runs.metrics import Metrics, read_metrics

MAX_SCALARS = 64
"""Maximum number of scalars that a network takes."""
MAX_CHANNELS = 4096
"""Maximum number of channels of a dense condition."""
DENSE = "dense condition"
CONFIG, METADATA, STATISTICS = "config.yaml", "run.json", "statistics.safetensors"
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
CORRUPTION, RESTORATION = "corruption.safetensors", "restoration.safetensors"
RESTORE = "restore it, or train again in another run_dir"
PACKAGES = (
    "multisagd", "torchvision", "torchaudio", "av", "soundfile", "soxr", "numpy", "scipy", "safetensors", "hydra-core",
    "diffusers", "transformers",
)  # fmt: skip
FREE = (
    "run_dir", "data.root", "data.condition_root", "corruption.path", "data.urls", "data.name", "data.index",
    "data.threads", "modality.statistics", "text.name", "text.cache", "text.device", "training.initial",
    "training.samples", "training.decay", "training.max_skips", "training.max_rollbacks", "every", "keep",
    "keep_every", "environment", "report", "tracking", "engine", "sampling", "sampler", "guidance", "validation.root",
    "validation.items", "validation.levels", "validation.bands", "validation.score", "validation.samples",
    "validation.patience",
)  # fmt: skip
"""Keys, or groups of keys, that may change when a run is continued. They do not affect the result, except that
`engine` may change rounding."""


@dataclass(frozen=True)
class Run:
    """The run in a folder; any part may be missing."""

    folder: Path

    @property
    def begun(self) -> bool:
        """Whether training has written the configuration."""
        return (self.folder / CONFIG).exists()

    @cached_property
    def config(self) -> Config:
        """The resolved configuration, with missing keys at their defaults. Raises RecipeError if it cannot be read."""
        return filled(read_configuration(self.folder / CONFIG))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The contents of `run.json`. Raises RecipeError if it cannot be read or an entry is invalid."""
        with unreadable(self.folder / METADATA, f"check that {self.folder} is the folder of a training run"):
            metadata = read_object(self.folder / METADATA)
            check_metadata(metadata)
        return metadata

    @property
    def noted_metadata(self) -> dict[str, Any]:
        """The `metadata`, or an empty dictionary if the run was stopped before writing them."""
        return self.metadata if (self.folder / METADATA).exists() else {}

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalars that the network takes, as measured when the run began."""
        return scalars_of(self.metadata)

    @cached_property
    def statistics(self) -> DataStatistics:
        """Statistics of the training data. Raises RecipeError if they are missing or cannot be read."""
        return read_statistics(self.folder / STATISTICS, RESTORE)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints, for reading."""
        return Checkpoints(self.folder / "checkpoints")

    def metrics(self) -> Metrics:
        """Return the entries of `metrics.jsonl`; see `read_metrics`."""
        return read_metrics(self.folder / METRICS)

    def timing(self) -> Metrics:
        """Return the entries of `timing.jsonl`; see `read_metrics`."""
        return read_metrics(self.folder / TIMING, "timing")

    def corruption(self, grid: Grid, group: Mapping[str, Any] | None) -> Corruption | None:
        """Return the saved corruption of the data, or None; `group` is the configuration's group `corruption`.

        Raises:
            RecipeError: If it cannot be read.
        """
        path, shared = self.folder / CORRUPTION, bool((group or {}).get("shared"))
        with unreadable(path, RESTORE):
            return Corruption.load(path, grid, shared) if path.exists() else None

    def restoration(self) -> GaussianRestoration:
        """Return the saved restoration of the data. Raises RecipeError if it is missing or cannot be read."""
        with unreadable(self.folder / RESTORATION, RESTORE):
            return GaussianRestoration.load(self.folder / RESTORATION)

    def check_config(self, config: Config, begun: bool) -> None:
        """Check that the folder is empty or contains a run with this configuration.

        The configuration may change until the first checkpoint, after which `begun` is true.

        Raises:
            RecipeError: If the folder has other contents, or contains a run with a different configuration (the message
                names the keys that differ).
        """
        if not self.begun:
            if self.folder.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise RecipeError(f"{self.folder} is not empty and does not contain a run: choose another run_dir")
            return
        before, now = flatten(self.config), flatten(config)
        different = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        changed = {key for key in different if not under(own_key(key), FREE)}
        if changed and begun:
            pairs = {key: [repr(each[key]) if key in each else "missing" for each in (before, now)] for key in changed}
            listed = "".join(f"\n  {key}: {' -> '.join(pairs[key])}" for key in sorted(pairs))
            raise RecipeError(
                f"{self.folder} contains a run with a different configuration; these keys differ:{listed}\n"
                "Use the same values to continue it, or another run_dir to start a new run."
            )

    def check_data(self, dataset: Dataset | None, part: str = "data") -> None:
        """Check that data match the run's metadata, if there are any.

        `part` is the key of the metadata: "data", or "validation" for the data in `validation.root`, which may be None.
        Raises a RecipeError that names the first difference.
        """
        if "data" not in self.noted_metadata:
            return
        before, now = self.metadata.get(part) or {}, {} if dataset is None else data_metadata(dataset)
        names = {"data": "the data", "validation": "the validation data (validation.root)"}
        remedy = "Restore them to continue this run, or use another run_dir to start a new one"
        key = next((key for key in now or before if before.get(key) != now.get(key)), None)
        if key is not None:
            change = f"{before.get(key)!r} -> {now.get(key)!r}"
            raise RecipeError(f"{names[part]} of {self.folder} have changed; {key}: {change}. {remedy}")

    def write(self, config: Config, statistics: DataStatistics) -> None:
        """Write the run's configuration and the statistics of its data."""
        modality = config["modality"]
        if modality.get("statistics") is not None:
            # Sampling reads the scale of latents, and may be started in a different folder than training.
            config = {**config, "modality": {**modality, "statistics": str(Path(modality["statistics"]).absolute())}}
        configuration.write(config, self.folder / CONFIG)
        replace_file(self.folder / STATISTICS, statistics.save)

    def note_start(self, seed: int, samples: int, device: str, metadata: Mapping[str, Any]) -> None:
        """Add this start to `run.json`, with `metadata` that sampling needs (such as the classes)."""
        start = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "samples": samples,
            "command": sys.argv,
            "folder": str(Path.cwd()),  # base of the configuration's relative paths
            "run_dir": str(self.folder.absolute()),
            "device": device,
            "revision": revision(),
            "versions": versions(),
        }
        content = {"seed": seed, **metadata, "starts": [*self.noted_metadata.get("starts", []), start]}
        write_text(self.folder / METADATA, json.dumps(content, indent=1))


def data_metadata(dataset: Dataset) -> dict[str, Any]:
    """Return the metadata of the data that must not change during a run; they do not depend on the data's location."""
    return {
        "examples": len(dataset),
        "classes": None if dataset.classes is None else list(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the main packages."""
    result = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            result[package] = importlib.metadata.version(package)
    return result


def revision() -> str | None:
    """Return the git revision of the source, with `+changes` if files are modified, or None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return f"{head}+changes" if git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def read_statistics(path: Path, remedy: str, key: str = "") -> DataStatistics:
    """Read a file of data statistics; `key` is a prefix for error messages, such as the configuration's key for it.

    Raises RecipeError with the `remedy` if it cannot be read.
    """
    with unreadable(path, remedy, key):
        return DataStatistics.load(path)


def unreadable(path: Path, remedy: str, key: str = "") -> AbstractContextManager[None]:
    """Inside the context, add the name of the unreadable file and the remedy to errors."""
    kinds = (OSError, ValueError, KeyError, SafetensorError)
    return as_recipe_error(kinds, f"{key}cannot read {path} (", f"): {remedy}")


def scalars_of(metadata: Mapping[str, Any]) -> tuple[Scalar, ...]:
    """Return the scalars in the content of `run.json` or in the metadata of an exported model."""
    return tuple(Scalar(**each) for each in metadata.get("scalars", ()))


def dense_channels(metadata: Mapping[str, Any]) -> int | None:
    """Return the channels of the dense condition in such metadata, or None if the network takes none."""
    condition = metadata.get("condition")
    return None if condition is None else condition["channels"]


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Check the entries of `run.json` that are used. Raises a ValueError that names the first invalid one."""

    def require(holds: bool, name: str) -> None:
        if not holds:
            raise ValueError(f"its {name} is invalid")

    classes, text = metadata.get("classes"), metadata.get("text")
    require("classes" in metadata and (classes is None or _is_list_of_strings(classes)), "classes")
    untrained = metadata.get("untrained", [])
    require(_is_list_of_strings(untrained), "untrained classes")
    require(set(untrained) <= set(classes or ()), "untrained classes")
    require(isinstance(metadata.get("starts", []), list), "starts")
    require(text is None or isinstance(text, dict), "text")
    if text is not None:
        require(_is_list_of_strings([text.get("name"), text.get("fingerprint")]), "text")
        require(type(text.get("width")) is int and text["width"] > 0, "width of the text")
    scalars = metadata.get("scalars", [])
    require(isinstance(scalars, list) and len(scalars) <= MAX_SCALARS, "scalars")
    for each in scalars:
        require(isinstance(each, dict) and each.keys() == {"name", "unit", "mean", "std"}, "scalars")
        require(_is_list_of_strings([each["name"], each["unit"]]), "scalars")
        require(all(type(each[key]) is float and math.isfinite(each[key]) for key in ("mean", "std")), "scalars")
        require(each["std"] > 0, "scalars")
    held_out = metadata.get("held_out", 0)
    require(type(held_out) is int and held_out >= 0, "number of held-out examples")
    condition = metadata.get("condition")
    require(condition is None or (isinstance(condition, dict) and condition.keys() == {"channels", "modality"}), DENSE)
    if condition is not None:
        require(type(condition["channels"]) is int and 0 < condition["channels"] <= MAX_CHANNELS, DENSE)
        require(condition["modality"] is None or isinstance(condition["modality"], dict), DENSE)
    for name in ("data", "validation"):
        data = metadata.get(name)
        facts = {"examples", "classes", "fingerprint"}
        require(data is None or (isinstance(data, dict) and facts <= data.keys()), name)


def _is_list_of_strings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)
