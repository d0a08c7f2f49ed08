"""Load a trained model from a run's folder or an exported model.

An exported model is two files, and nothing in them can execute code:

    model.safetensors   the network's weights, `network.…`, and the data's statistics, as `DataStatistics` stores them
    model.json          configuration, classes, samples seen, versions, and the SHA-256 of model.safetensors

and, if the run was trained on corrupted data, corruption.safetensors, the power of the corruption.

Paths are resolved independently of the working folder. A configuration keeps them as typed. A relative path is relative
to the folder in which training was started (recorded in `run.json`); or, if run and data were moved together, to the
same position relative to the run; or else to the working folder.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import safetensors.torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.text import TextEncoder
from multisagd import DataStatistics, Denoiser
from multisagd.addresses import without_secrets
from multisagd.files import digest
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import replace_file, write_text
from recipes.base.untrusted import read_header, read_object, read_tensors
from recipes.config.addresses import mapped
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.config.groups import filled
from recipes.runs.assembly import Assembly
from recipes.runs.checkpoint import MAX_SAMPLES, Shapes, samples_of
from recipes.runs.run import CONFIG, CORRUPTION, Run, check_metadata, read_statistics, versions
from recipes.runs.settings import Group, ModelSettings, TrainSettings
from recipes.runs.state import load_module
from recipes.runtime.device import Runtime

Which = Literal["ema", "network"]
Chosen = int | str | None
"""A checkpoint by its number of samples seen, its folder, or `last` (the same as None)."""
T = TypeVar("T")
CheckShapes = Callable[[Shapes], None]
"""A function that checks the shapes of weights before they are read, and raises if they are wrong."""
FORMAT_VERSION = 1
WEIGHTS, NOTES = "model.safetensors", "model.json"
NETWORK = "network."
PARTS = ("spectrum", "schedule", "process", "denoiser", "network")
"""Groups of a configuration that define a model."""
PATHS = (
    "data.root", "data.urls", "data.index", "corruption.path", "modality.statistics", "modality.autoencoder.name",
    "text.name", "text.cache",
)  # fmt: skip
"""Keys of a run whose paths are used after training; a name on the Hub counts only if such a folder exists."""
OTHER_VERSION = ". The run may be from another version of multisagd; see its run.json"


@dataclass(frozen=True)
class TrainedWeights:
    """Weights by the network's parameter names, after `samples` samples."""

    samples: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainedModel:
    """A model for sampling: the run's `config` and `metadata` (classes and text), the data's statistics, and weights.

    It is in `folder`. `weights(which, check)` reads the last weights ("network") or their average ("ema"). An exported
    model contains only the weights `exported`. `located` is the configuration with resolved paths, from which parts are
    built; `given` are keys of the data from the command line.
    """

    folder: Path
    config: Config
    located: Config
    metadata: dict[str, Any]
    statistics: DataStatistics
    weights: Callable[[Which, CheckShapes], TrainedWeights]
    exported: Which | None = None
    given: Group = field(default_factory=dict)

    def assembly(self, builder: Builder) -> Assembly:
        """Return the assembly of the model's parts.

        Raises RecipeError if the modality is invalid or the corruption unreadable.
        """
        builder = builder.of_a_run(self.given)
        modality = builder.build(self.located["modality"], Modality, "modality")  # type: ignore[type-abstract]
        classes, text = self.metadata["classes"], self.metadata.get("text")
        return Assembly(
            ModelSettings.of(self.located, builder), builder, modality, self.statistics,
            None if classes is None else tuple(classes), None if text is None else text["width"],
            Run(self.folder).corruption(modality.grid(), self.config.get("corruption")),
        )  # fmt: skip


def open_model(folder: Path, builder: Builder, data: Group | None = None, checkpoint: Chosen = None) -> TrainedModel:
    """Open a run or an exported model, and read everything except its weights.

    `data` are keys of its data from the command line, such as their current location. `checkpoint` selects the weights;
    None takes the last checkpoint.

    Raises:
        RecipeError: If the folder contains neither, or a part is missing, unreadable or of a wrong type.
    """
    check_folder(folder)
    given, run, path = data or {}, Run(folder), folder / CONFIG
    if (folder / NOTES).exists():
        return _exported(run, builder, given, checkpoint)
    config = check_parts(run.config, path, builder)
    here = located(config, run.metadata, folder, given, builder)
    weights = partial(_run_weights, run, chosen_samples(checkpoint, run))
    return TrainedModel(folder, config, here, run.metadata, run.statistics, weights, given=given)


def chosen_samples(checkpoint: Chosen, run: Run) -> int | None:
    """Return the number of samples of a checkpoint that is given by number or folder, or as None for the last one."""
    if checkpoint in (None, "last"):
        return None
    name = Path(str(checkpoint)).name
    if not name.isdecimal():
        known = ", ".join(str(samples_of(path)) for path in run.checkpoints.folders())
        raise RecipeError(
            f"checkpoint={checkpoint}: expected last, or the samples seen of an existing one: {known or 'none yet'}"
        )
    return int(name)


def check_folder(folder: Path) -> None:
    """Raise RecipeError, which names nearby runs, if a folder contains neither a run nor an exported model."""
    marks = (CONFIG, NOTES)
    if any((folder / mark).exists() for mark in marks):
        return
    place = folder if folder.is_dir() else folder.parent
    near = sorted(each.parent.as_posix() for mark in marks for each in place.glob(f"*/{mark}"))
    hint = f"; there are {', '.join(near[:5])}" if near else ": `multisagd train` makes runs, `multisagd export` models"
    problem = "does not exist" if not folder.exists() else "holds neither" if folder.is_dir() else "is a file"
    raise RecipeError(f"no run or exported model is in {folder}, which {problem}{hint}")


def located(config: Config, metadata: Mapping[str, Any], folder: Path, given: Group, builder: Builder) -> Config:
    """Return a run's configuration with resolved paths, updated by data keys from the command line.

    `metadata` is the content of `run.json` in its `folder`; `given` are the command line's keys below `data`.

    Raises:
        RecipeError: If there is a key that the run's data do not have.
    """
    data = config.get("data")
    if given and isinstance(data, Mapping):
        builder.check_keys(data, Dataset, "data", given)
    homes = starting_folders(metadata, folder)
    found: Config = config
    for key in PATHS:
        found = _replaced(found, key.split("."), homes)
    if not given:
        return found
    found = {**found, "data": {**found.get("data", {}), **given}}
    modality = found["modality"]
    if "root" in given and isinstance(modality, Mapping) and modality.get("statistics") is not None:
        # Latents are scaled by the statistics in their folder.
        found["modality"] = {**modality, "statistics": given["root"]}
    return found


def starting_folders(metadata: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return the base folders for the relative paths of a run in `folder`, most likely first."""
    starts = metadata.get("starts") or [{}]
    last = starts[-1] if isinstance(starts[-1], Mapping) else {}
    home, run_dir = last.get("folder"), last.get("run_dir")
    if not isinstance(home, str) or not isinstance(run_dir, str) or not home or not run_dir:
        return []  # an exported model records no starts, and a record may have been edited
    return [Path(home), Path(os.path.normpath(folder.absolute() / os.path.relpath(home, run_dir)))]


def _replaced(node: Config, parts: Sequence[str], homes: Sequence[Path]) -> Config:
    """Return a copy of nested values, with the path at a dotted key resolved."""
    name, *deeper = parts
    value = node.get(name)
    if deeper:
        return {**node, name: _replaced(dict(value), deeper, homes)} if isinstance(value, Mapping) else node
    if isinstance(value, list | tuple):
        return {**node, name: [_found(each, homes) for each in value]}
    return {**node, name: _found(value, homes)} if isinstance(value, str) else node


def _found(value: Any, homes: Sequence[Path]) -> Any:
    """Return a relative path joined to the first folder in which it exists, and any other value unchanged."""
    if not isinstance(value, str) or "://" in value or "::" in value or os.path.isabs(value):  # noqa: PTH117
        return value
    fixed = re.split(r"[*?\[{]", value)[0]  # the part before a pattern or a range
    if fixed != value:
        fixed = os.path.dirname(fixed)  # noqa: PTH120
    return next((str(home / value) for home in homes if os.path.exists(home / fixed)), value)  # noqa: PTH110 - no error


def check_config(config: Config, path: Path, builder: Builder) -> Config:
    """Check the parts of a run's configuration that sampling needs.

    Raises RecipeError that names the file and the wrong value.
    """
    with as_recipe_error(RecipeError, f"{path}: ", ". Restore the file that training wrote"):
        ModelSettings.of(config, builder)
    return config


def check_parts(config: Config, path: Path, builder: Builder) -> Config:
    """Check a run's configuration, and that the classes of a model's parts exist and accept its keys."""
    check_config(config, path, builder)
    with as_recipe_error(RecipeError, f"{path}: ", OTHER_VERSION):
        for name in PARTS:
            builder.check_keys(config[name], object, name, [key for key in config[name] if key != "_target_"])
    return config


def run_settings(config: Config, path: Path, builder: Builder) -> TrainSettings:
    """Return the training settings of a run. Raises RecipeError that names the file and the first wrong key."""
    with as_recipe_error(RecipeError, f"{path}: ", OTHER_VERSION):
        return builder.settings(TrainSettings, config, "")


def _run_weights(run: Run, samples: int | None, which: Which, check: CheckShapes) -> TrainedWeights:
    prefix = "module." if which == "ema" else ""  # prefix of averaged weights in a checkpoint

    def check_part(stored: Mapping[str, Shapes]) -> None:
        if which not in stored:
            raise RecipeError(f"the checkpoint has no {which}: choose other weights, or another checkpoint")
        check(_named(stored[which], prefix))

    checkpoints = run.checkpoints
    if samples is None or not checkpoints.folders():
        state = checkpoints.latest([which], check_part)
    else:
        state = checkpoints.chosen(samples, [which], check_part)
    if state is None:
        raise RecipeError(f"{run.folder} has no checkpoint yet: train first")
    return TrainedWeights(state.samples, _named(state.tensors[which], prefix))


def trained_denoiser(assembly: Assembly, weights: TrainedWeights, runtime: Runtime) -> Denoiser:
    """Return the denoiser of a run on the device, for sampling.

    Raises RecipeError if the weights do not fit its network.
    """
    network = assembly.network()
    load_module(network, weights.tensors, "weights")
    network.eval().requires_grad_(False).to(runtime.device, runtime.dtype)
    return assembly.denoiser(runtime.compiled(network), assembly.process().to(runtime.device, runtime.dtype)).eval()


def check_encoder(encoder: TextEncoder | None, metadata: Mapping[str, Any], run_dir: Path) -> None:
    """Raise RecipeError if an encoder differs from the one in the run's `metadata`."""
    text = metadata.get("text")
    if encoder is not None and text is not None and text["fingerprint"] != encoder.fingerprint:
        raise RecipeError(
            f"the text encoder {encoder.name} differs from the one that {run_dir} was trained with, {text['name']}: "
            "its weights differ"
        )


def write_model(model: TrainedModel, which: Which, weights: TrainedWeights, out: Path) -> None:
    """Write a model to a folder as two files; model.json is last, so its presence means that both are complete."""
    out.mkdir(parents=True, exist_ok=True)
    tensors, header = model.statistics.stored()
    tensors |= {f"{NETWORK}{name}": tensor.contiguous() for name, tensor in weights.tensors.items()}
    partial_file = out / f"{WEIGHTS}.partial"
    safetensors.torch.save_file(tensors, partial_file, header)
    partial_file.chmod(out.stat().st_mode & 0o666)  # safetensors files are for the owner only; models are shared
    notes = {
        "format_version": FORMAT_VERSION,
        "weights": which,
        "samples": weights.samples,
        "metadata": _needed_metadata(model.metadata),
        "sha256": digest(partial_file),
        "versions": {name: version for name, version in versions().items() if name != "platform"},
        "config": _needed_config(model.config),
    }
    partial_file.replace(out / WEIGHTS)
    if (corruption := model.folder / CORRUPTION).exists():
        replace_file(out / CORRUPTION, lambda path: shutil.copyfile(corruption, path))
    else:
        (out / CORRUPTION).unlink(missing_ok=True)  # left by another model
    write_text(out / NOTES, json.dumps(notes, indent=1))


def _needed_config(config: Config) -> Config:
    """Return the parts of a run's configuration that sampling needs: no data locations and no training settings."""
    needed = {key: config[key] for key in (field.name for field in fields(ModelSettings)) if key in config}
    needed["training"] = {"condition_dropout": config["training"]["condition_dropout"]}
    needed["loss"] = {"metric": config["loss"]["metric"]}
    for name, idle in (("text", ("cache", "device")), ("corruption", ("path",))):
        if isinstance(needed.get(name), Mapping):
            needed[name] = {key: value for key, value in needed[name].items() if key not in idle}
    return dict(mapped(needed, without_secrets))


def _needed_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's record that sampling needs: classes, untrained classes, and text encoder."""
    text = metadata.get("text")
    text = None if text is None else {key: text[key] for key in ("name", "fingerprint", "width")}
    return {"classes": metadata["classes"], "untrained": list(metadata.get("untrained", ())), "text": text}


def _exported(run: Run, builder: Builder, given: Group, checkpoint: Chosen) -> TrainedModel:
    folder = run.folder
    with _reading(folder):
        notes = read_object(folder / NOTES, finite=False)  # numbers are checked when objects are built
        if notes["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {notes['format_version']!r:.80}, this program reads {FORMAT_VERSION}")
        metadata, config = notes["metadata"], notes["config"]
        if not isinstance(metadata, dict) or not isinstance(config, dict):
            raise ValueError("its metadata or its configuration is missing")
        check_metadata(metadata)
        if notes["weights"] not in get_args(Which):
            raise ValueError(f"{notes['weights']!r:.80} is not the name of weights")
        if type(notes["samples"]) is not int or not 0 <= notes["samples"] < MAX_SAMPLES:
            raise ValueError(f"{notes['samples']!r:.80} is not a number of samples seen")
    if chosen_samples(checkpoint, run) not in (None, notes["samples"]):
        raise RecipeError(f"checkpoint={checkpoint}: {folder} only contains the one after {notes['samples']} samples")
    config = check_parts(filled(config), folder / NOTES, builder)
    statistics = read_statistics(folder / WEIGHTS, "export it again")
    here, weights = located(config, metadata, folder, given, builder), partial(_exported_weights, folder, notes)
    return TrainedModel(folder, config, here, metadata, statistics, weights, notes["weights"], given)


def _exported_weights(folder: Path, notes: Mapping[str, Any], which: Which, check: CheckShapes) -> TrainedWeights:
    if which != notes.get("weights"):
        raise RecipeError(f"{folder} only holds the weights {notes.get('weights')!r:.80}, but {which} was requested")
    with _reading(folder):
        shapes = {name: each.shape for name, each in read_header(folder / WEIGHTS).items()}
        check(_named(shapes, NETWORK))
        if digest(folder / WEIGHTS) != notes.get("sha256"):
            raise ValueError("its content was altered")
        tensors = read_tensors(folder / WEIGHTS, [name for name in shapes if name.startswith(NETWORK)])
        return TrainedWeights(notes["samples"], _named(tensors, NETWORK))


def _named(stored: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names have a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)}


def _reading(folder: Path) -> AbstractContextManager[None]:
    before, after = f"cannot read the exported model {folder} (", "): export it again"
    return as_recipe_error((OSError, ValueError, KeyError, TypeError), before, after)
