"""Adopt a diffusers model: `multisagd adopt model=… out=…`, the same as `python -m recipes.adopt …`.

The steps: find the network and the scheduler of a saved pipeline (or of a model with its scheduler next to it); check
that the weights fit the network; write the weights, and an experiment with the original network, schedule and
prediction. `multisagd train --config-dir=OUT experiment=adopted` trains the model further. The output folder contains:

    out/experiment/adopted.yaml   network, schedule and prediction, for any training run
    out/adopted.safetensors       the weights, under the parameter names of this project's network

Only JSON and safetensors files are opened. Of the classes that the folder names, only those in
`multisagd.integrations` are imported.

Errors, each reported in one message: a missing model, an unsupported network or scheduler, weights that are pickles or
do not fit the network, an output folder with other contents.
"""

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from multisagd.integrations.architectures import KINDS, add_null_class, defaults
from multisagd.integrations.training_noise import TrainingNoise
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import check_replaceable, replace_file, write_text
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.assembly import at_most
from recipes.runs.state import mismatch, shapes
from recipes.sharing.diffusers_model import FILES, Stored, read_network, read_scheduler, stored_weights
from recipes.sharing.hub import local_folder

NETWORK = "multisagd.integrations.networks.DiffusersNetwork"
EXPERIMENT, WEIGHTS = Path("experiment", "adopted.yaml"), "adopted.safetensors"
MISFIT = "the model's weights do not fit its config.json"


@dataclass(frozen=True)
class AdoptSettings:
    """All keys of `configs/adopt.yaml`."""

    model: str
    out: Path
    revision: str | None
    null_class: Literal["added", "last"]


def adopt(config: Config) -> Path:
    """Adopt the configured model and return the output folder."""
    settings = Builder().settings(AdoptSettings, config, "")
    check_replaceable(settings.out, WEIGHTS, "multisagd adopt", key="out")
    folder = local_folder(settings.model, FILES, settings.revision)
    network_folder, name, options = read_network(folder)
    with as_recipe_error(ImportError):
        options = (
            defaults(name) | options
        )  # a model saved by an older version lacks newer options, and used their defaults
    noise = read_scheduler(folder)
    extended = add_null_class(name, options) if settings.null_class == "added" else None
    node = {"_target_": NETWORK, "name": name, "options": options, **noise.timesteps}
    tensors = fitting(node, stored_weights(network_folder, name), extended)

    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / EXPERIMENT).parent.mkdir(exist_ok=True)
    weights = settings.out / WEIGHTS
    replace_file(weights, lambda path: safetensors.torch.save_file(tensors, path))
    write_text(settings.out / EXPERIMENT, experiment(settings, node, noise, weights))
    count = sum(each.numel() for each in tensors.values())
    trained = f"trained with {noise.scheduler} to predict {noise.prediction}"
    print(f"{name} with {count:,} weights, {trained}, in {settings.out}")
    print(f"To continue its training: {training(settings.out)} run_dir=…")
    return settings.out


def fitting(node: Mapping[str, Any], stored: Stored, extended: str | None) -> dict[str, Tensor]:
    """Return the weights under the parameter names of this project's network. Their shapes are checked before reading.

    The embedding of "no class" is the mean of the class embeddings; the embedding of "no text" is zero. Raises
    RecipeError if the weights do not fit the network.
    """
    present = dict(stored.shapes)
    if extended in present:
        present[extended] = (present[extended][0] + 1, *present[extended][1:])
    present = {f"model.{name}": shape for name, shape in present.items()}
    expected = weight_shapes(node, 4 * len(present) + 4, 4 * sum(map(math.prod, present.values())) + 10**6)
    token = {name: shape for name, shape in expected.items() if name == "null"}
    if different := mismatch(present | token, expected):
        raise RecipeError(f"{MISFIT}: {different}")
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in stored.read().items()}
    if (embedding := tensors.get(f"model.{extended}")) is not None:
        tensors[f"model.{extended}"] = torch.cat([embedding, embedding.mean(0, keepdim=True)])
    return tensors | {name: torch.zeros(shape) for name, shape in token.items()}


def weight_shapes(node: Mapping[str, Any], count: int, elements: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's weights.

    Raises RecipeError if the network cannot be built, or has more than `count` weight tensors or `elements` values.
    """
    channels, dimensions = node["options"].get("in_channels"), KINDS[node["name"]].dimensions
    if type(channels) is not int or channels < 1:
        raise RecipeError(
            f"{node['name']}: its config.json has in_channels={channels!r:.80}, which is not a number of channels"
        )
    try:
        with torch.device("meta"), at_most(count, elements, MISFIT):
            network = Builder().build(node, nn.Module, "network", channels=channels, dimensions=dimensions)
            return shapes(network.state_dict())
    except RuntimeError as error:
        raise RecipeError(f"the network in its config.json cannot be built: {error!r:.300}") from error


def experiment(settings: AdoptSettings, node: Mapping[str, Any], noise: TrainingNoise, weights: Path) -> str:
    """Return the YAML file of an experiment that trains the adopted model."""
    options, name = node["options"], node["name"]
    size = options.get("sample_size")
    choices = {"schedule": noise.kind, "denoiser": "adopted", "network": "diffusers"}
    keys: dict[str, Any] = {"defaults": [{f"override /{group}": choice} for group, choice in choices.items()]}
    if KINDS[name].dimensions == 2 and options["in_channels"] in (1, 3) and size is not None:
        keys["modality"] = {"size": size, "channels": options["in_channels"]}
    keys["schedule"] = noise.schedule
    keys["denoiser"] = {"prediction": noise.prediction}
    keys["network"] = {key: value for key, value in node.items() if key != "_target_"}
    # A low learning rate keeps the first steps from undoing what the model has learned.
    keys["training"] = {"initial": str(weights.absolute()), "learning_rate": 1e-4}
    lines = [
        f"{name} of {settings.model}, trained with {noise.scheduler}: its own network, schedule and prediction.",
        "",
        f"  {training(settings.out)} run_dir=runs/adopted",
    ]
    description = "".join(f"# {' '.join(line.splitlines())}".rstrip() + "\n" for line in lines)
    return f"# @package _global_\n{description}" + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


def training(out: Path) -> str:
    """Return the `multisagd train` command for the model adopted in `out`, quoted for a shell."""
    return f"multisagd train --config-dir={shlex.quote(str(out))} experiment=adopted spectrum=power_law"


main = command("adopt", adopt)

if __name__ == "__main__":
    sys.exit(main())
