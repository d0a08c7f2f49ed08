"""The record a run keeps in its folder: resolved configuration, versions, revision and seeds.

config.yaml   the resolved configuration
run.json      what the data were, and one entry for each time the command was started
"""

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
from multisagd.files import read_json
from recipes.engine import config as configuration
from recipes.engine.config import Config
from recipes.engine.defaults import filled
from recipes.engine.errors import RecipeError
from recipes.engine.files import replace_file, write_text
from recipes.engine.outline import flatten

STATISTICS = "statistics.safetensors"
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
    path = run_dir / "config.yaml"
    if not path.exists():
        if run_dir.exists() and any(not entry.name.startswith(".") for entry in run_dir.iterdir()):
            raise RecipeError(f"{run_dir} is not empty and holds no run: choose another run_dir")
        return
    before, now = (flatten(each) for each in (filled(configuration.read(path)), config))
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


def check_data(run_dir: Path, dataset: Dataset) -> None:
    """Check that the data are those that the run in this folder began with, if it says so.

    Raises:
        RecipeError: naming what differs.
    """
    before = read_facts(run_dir).get("data") if (run_dir / "run.json").exists() else None
    now = data_facts(dataset)
    changed = [key for key in now if before is not None and before[key] != now[key]]
    if before is not None and changed:
        key = changed[0]
        raise RecipeError(
            f"the data are not those that {run_dir} began with; {key}: {before[key]!r} -> {now[key]!r}. "
            "Restore them to continue this run, or use another run_dir to begin a new one"
        )


def write_run(run_dir: Path, config: Config, statistics: DataStatistics) -> None:
    """Write down what the run is: its configuration, and the statistics of its data."""
    modality = config["modality"]
    if modality.get("statistics") is not None:
        # Sampling reads the scale of latents, and may start in another folder than training did.
        config = {**config, "modality": {**modality, "statistics": str(Path(modality["statistics"]).absolute())}}
    configuration.write(config, run_dir / "config.yaml")
    replace_file(run_dir / STATISTICS, statistics.save)


def note_start(run_dir: Path, seed: int, samples: int, device: str, facts: dict[str, Any]) -> None:
    """Add this start to `run.json`, with `facts` about the run that sampling needs (such as the classes)."""
    path = run_dir / "run.json"
    starts = read_facts(run_dir).get("starts", []) if path.exists() else []
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
    write_text(path, json.dumps(content, indent=1))


def read_facts(run_dir: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        RecipeError: if it is missing or cannot be read, or an entry is not what training writes there.
    """
    path = run_dir / "run.json"
    try:
        facts = read_json(path)
        check_facts(facts)
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read {path} ({error}): is {run_dir} the folder of a training run?") from error
    return dict(facts)


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


def check_facts(facts: Any) -> None:
    """Check the entries of `run.json` that are read; those with a default may be missing.

    Raises:
        ValueError: naming the first that is not what it should be.
    """

    def require(holds: bool, name: str) -> None:
        if not holds:
            raise ValueError(f"its {name} is not what it should be")

    require(isinstance(facts, dict), "content")
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


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
