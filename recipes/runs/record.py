"""What training writes down about a run, and checks before it continues one; `Run` reads it back."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from modalities.base import Dataset
from multisagd import DataStatistics
from recipes.base.errors import RecipeError
from recipes.base.files import replace_file, write_text
from recipes.config import compose as configuration
from recipes.config.compose import Config
from recipes.config.groups import flatten
from recipes.runs.run import CONFIG, FACTS, STATISTICS, Run

PACKAGES = (
    "multisagd", "torchvision", "torchaudio", "av", "soundfile", "soxr", "numpy", "scipy", "safetensors", "hydra-core",
    "diffusers", "transformers",
)  # fmt: skip
FREE = (
    "run_dir",
    "data.root",
    "corruption.path",
    "data.urls",
    "data.index",
    "data.threads",
    "modality.statistics",
    "text.name",
    "text.cache",
    "text.device",
    "training.initial",
    "training.samples",
    "training.max_skips",
    "training.max_rollbacks",
    "every",
    "keep",
    "keep_every",
    "environment",
    "report",
    "tracking",
    "engine",
    "sampling",
    "sampler",
    "guidance",
    "validation.items",
    "validation.levels",
    "validation.bands",
)
"""Keys, or groups of keys, that may change when a run is continued: none of them alters what is learned, except that
`engine` may change rounding."""


def check_run(run_dir: Path, config: Config, begun: bool) -> None:
    """Check that the folder is free for this run, or belongs to it; a run that never saved a checkpoint may change.

    Raises:
        RecipeError: naming the keys that differ, if the folder holds a run of another configuration, or if it holds
            something else.
    """
    run = Run(run_dir)
    if not run.begun:
        if run_dir.exists() and any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
            raise RecipeError(f"{run_dir} is not empty and holds no run: choose another run_dir")
        return
    before, now = (flatten(each) for each in (run.config, config))
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key) and not _free(key)}
    if changed and begun:
        pairs = {key: [repr(each[key]) if key in each else "not there" for each in (before, now)] for key in changed}
        listed = "".join(f"\n  {key}: {' -> '.join(pairs[key])}" for key in sorted(pairs))
        raise RecipeError(
            f"{run_dir} holds a run with another configuration; these differ:{listed}\n"
            "Use the same values to continue it, or another run_dir to begin a new run."
        )


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """Return what must not change about the data while a run lasts, whatever folder they are moved to."""
    return {
        "examples": len(dataset),
        "classes": None if dataset.classes is None else list(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }


def check_data(run: Run, dataset: Dataset) -> None:
    """Check that the data are those that a run began with, if it says so.

    Raises:
        RecipeError: naming what differs.
    """
    before = run.noted_facts.get("data")
    now = data_facts(dataset)
    changed = [key for key in now if before is not None and before[key] != now[key]]
    if before is not None and changed:
        key = changed[0]
        raise RecipeError(
            f"the data are not those that {run.folder} began with; {key}: {before[key]!r} -> {now[key]!r}. "
            "Restore them to continue this run, or use another run_dir to begin a new one"
        )


def write_run(run_dir: Path, config: Config, statistics: DataStatistics) -> None:
    """Write down what the run is: its configuration, and the statistics of its data."""
    modality = config["modality"]
    if modality.get("statistics") is not None:
        # Sampling reads the scale of latents, and may start in another folder than training did.
        config = {**config, "modality": {**modality, "statistics": str(Path(modality["statistics"]).absolute())}}
    configuration.write(config, run_dir / CONFIG)
    replace_file(run_dir / STATISTICS, statistics.save)


def note_start(run_dir: Path, seed: int, samples: int, device: str, facts: dict[str, Any]) -> None:
    """Add this start to `run.json`, with `facts` about the run that sampling needs (such as the classes)."""
    starts = Run(run_dir).noted_facts.get("starts", [])
    start = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "samples": samples,
        "command": sys.argv,
        "folder": str(Path.cwd()),  # which relative paths of the configuration count from
        "run_dir": str(run_dir.absolute()),
        "device": device,
        "revision": revision(),
        "versions": versions(),
    }
    content = {"seed": seed, **facts, "starts": [*starts, start]}
    write_text(run_dir / FACTS, json.dumps(content, indent=1))


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that matter."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """Return the git revision of the source, marked `+changes` if the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
