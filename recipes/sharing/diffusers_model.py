"""Read a saved diffusers model: network, scheduler and weights, only from JSON and safetensors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from multisagd.files import read_json
from multisagd.integrations.architectures import KINDS, current_name
from multisagd.integrations.training_noise import TrainingNoise, UnsupportedSchedulerError
from recipes.base.errors import RecipeError, as_recipe_error, nearest
from recipes.base.untrusted import read_header, read_tensors

MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError)
NETWORKS = ("unet", "transformer", ".")
"""Possible folders of the network in a saved pipeline; the last one is for a model saved without a pipeline."""
STEM = "diffusion_pytorch_model"
SINGLE = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors")
"""File names of unsharded weights; the first existing one is used."""
FILES = (
    "config.json", "scheduler_config.json", "scheduler/scheduler_config.json", f"{STEM}*.safetensors",
    f"{STEM}*.index.json", "unet/config.json", "unet/*.safetensors", "unet/*.index.json",
    "transformer/config.json", "transformer/*.safetensors", "transformer/*.index.json",
)  # fmt: skip
"""Files to fetch from a model on the Hub."""


def read_network(folder: Path) -> tuple[Path, str, dict[str, Any]]:
    """Return the network's folder, class name and options. Raises RecipeError if the class is not supported."""
    for subfolder in (folder / name for name in NETWORKS):
        if not (subfolder / "config.json").exists():
            continue
        with as_recipe_error(MALFORMED, f"cannot read {subfolder / 'config.json'} (", "): is it a diffusers model?"):
            config = read_json(subfolder / "config.json", finite=False)
            name = config["_class_name"]
            options = {key: value for key, value in config.items() if not key.startswith("_")}
            if not _is_plain(options):
                raise ValueError("it contains strings that are not options of a network")
        if not isinstance(name, str) or name not in KINDS:
            reason = f"networks of class {name!r:.80} cannot be adopted"
            raise RecipeError(f"{subfolder}: {reason}{nearest(str(name), KINDS)}")
        return subfolder, name, options
    raise RecipeError(
        f"{folder} contains no network: there is no config.json in unet/, transformer/ or the folder itself"
    )


def _is_plain(value: Any) -> bool:
    """Whether all strings in a value are short and without special characters, and so no interpolations in YAML."""
    if isinstance(value, dict):
        return all(_is_plain(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or re.fullmatch(r"[\w ./+-]{0,200}", value) is not None


def read_scheduler(folder: Path) -> TrainingNoise:
    """Read the scheduler of a saved pipeline, or the scheduler file next to a model.

    Raises RecipeError if there is no scheduler, or it is unreadable or not supported.
    """
    paths = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    path = next((each for each in paths if each.exists()), None)
    if path is None:
        raise RecipeError(
            f"{folder} has no scheduler, which defines the training noise of its network: copy the pipeline's "
            "scheduler_config.json into this folder"
        )
    try:
        with as_recipe_error(UnsupportedSchedulerError, f"{path}: "):
            return TrainingNoise.of(read_json(path, finite=False))  # diffusers writes -Infinity
    except MALFORMED as error:
        raise RecipeError(f"cannot read the scheduler {path} ({error!r:.200}): fetch the model again") from error


@dataclass(frozen=True)
class Stored:
    """The weights of a diffusers network: the files that contain them, and the shapes from the files' headers."""

    network: str
    files: list[Path]
    shapes: dict[str, tuple[int, ...]]

    def read(self) -> dict[str, Tensor]:
        """Read the tensors, and return them as float32 by their current names in diffusers."""
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            with _explained(path):
                stored = read_tensors(path)
            tensors |= {current_name(self.network, name): tensor.float() for name, tensor in stored.items()}
        return tensors


def stored_weights(folder: Path, network: str) -> Stored:
    """Find the weights of a diffusers network, and read their shapes.

    Raises RecipeError if there are no safetensors files, or they are unreadable.
    """
    files = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with _explained(path):
            shapes |= {current_name(network, name): each.shape for name, each in read_header(path).items()}
    return Stored(network, files, shapes)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of reading a weights file into RecipeError."""
    with as_recipe_error((OSError, ValueError), f"cannot read the weights {path} (", "): fetch the model again"):
        yield


def _files(folder: Path) -> list[Path]:
    """Return the safetensors files with the weights of a network."""
    for name in SINGLE:
        if (folder / name).exists():
            return [folder / name]
    index = folder / f"{STEM}.safetensors.index.json"
    if index.exists():
        with as_recipe_error(MALFORMED, f"cannot read {index} (", "): fetch the model again"):
            names = sorted(set(read_json(index)["weight_map"].values()))
            if not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names):
                raise ValueError("it names files that are not safetensors files in its folder")
        return [folder / name for name in names]
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise RecipeError(
            f"{folder} has its weights only in {pickles[0]}, a format that can run code when read: use a model in "
            "safetensors or, if you trust the file, convert it (model.save_pretrained(folder))"
        )
    raise RecipeError(f"{folder} contains no weights: {SINGLE[0]} is missing; fetch the model again")
