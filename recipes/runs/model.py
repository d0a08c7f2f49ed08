"""Load a trained model from a run's folder or an exported model.

An exported model consists of these files, and nothing in them can execute code:

    model.safetensors        the network's weights, `network.…`, and the data's statistics in `DataStatistics`' format
    model.json               configuration, classes, which weights these are, samples seen, versions, and the SHA-256 of
                             model.safetensors
    corruption.safetensors   the power of the corruption, if the run was trained on corrupted data

A configuration contains paths as the user typed them. A relative path is looked up in the folder in which training was
started (recorded in `run.json`); then, in case run and data were moved together, at the same position relative to the
run; and last in the working folder.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import safetensors.torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.scalars import Scalar
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
from recipes.config.groups import filled, over
from recipes.runs.assembly import Assembly
from recipes.runs.averages import averaged_weights, check_width
from recipes.runs.best import read_best
from recipes.runs.checkpoint import MAX_SAMPLES, Check, Shapes, State, samples_of
from recipes.runs.run import (
    CONFIG,
    CORRUPTION,
    Run,
    check_metadata,
    dense_channels,
    read_statistics,
    scalars_of,
    versions,
)
from recipes.runs.settings import (
    Averages,
    Group,
    ModelSettings,
    TrainSettings,
    Which,
    Width,
    chosen_weights,
    weights_in_words,
)
from recipes.runs.state import load_module, named
from recipes.runtime.device import Runtime

Chosen = int | str | None
"""A checkpoint, given by its number of samples seen, its folder, `best` (the one with the lowest score on held-out
examples), or `last` (the same as None)."""
T = TypeVar("T")
CheckShapes = Callable[[Shapes], None]
"""A function that checks the shapes of weights before they are read, and raises an error if they are wrong."""
FORMAT_VERSION = 1
WEIGHTS, NOTES = "model.safetensors", "model.json"
NETWORK = "network."
PARTS = ("spectrum", "schedule", "process", "denoiser", "network")
"""Groups of a configuration that define a model."""
PATHS = (
    "data.condition_root", "data.root", "data.urls", "data.name", "data.index", "validation.root", "corruption.path",
    "modality.statistics", "modality.autoencoder.name", "text.name", "text.cache",
)  # fmt: skip
"""Keys of a run whose paths are used after training; a name on the Hub counts as a path only if the folder exists."""
OTHER_VERSION = ". The run may be from another version of multisagd; see its run.json"


@dataclass(frozen=True)
class TrainedWeights:
    """Weights after `samples` samples seen, by the network's parameter names; `which` is their name or width."""

    samples: int
    tensors: Mapping[str, Tensor]
    which: Which | Width


@dataclass(frozen=True)
class TrainedModel:
    """The model in `folder`: the run's `config` and `metadata` (classes and text), the data's statistics, and weights.

    `weights(which, check)` reads the last weights ("network"), their average ("ema"), or an average of another width.
    `exported` says which of them an exported model contains, and is None for a run. From an exported model, "ema" reads
    an average of any width. `located` is the configuration with resolved paths, from which parts are built. `given`
    contains keys of the data from the command line.
    """

    folder: Path
    config: Config
    located: Config
    metadata: dict[str, Any]
    statistics: DataStatistics
    weights: Callable[[Which | Width, CheckShapes], TrainedWeights]
    exported: Which | Width | None = None
    given: Group = field(default_factory=dict)

    def assembly(self, builder: Builder) -> Assembly:
        """Return an `Assembly`, which builds the model's parts.

        Raises RecipeError if the modality is invalid or the corruption cannot be read.
        """
        builder = builder.of_a_run(self.given)
        modality = builder.build(self.located["modality"], Modality, "modality")  # type: ignore[type-abstract]
        classes, text = self.metadata["classes"], self.metadata.get("text")
        return Assembly(
            ModelSettings.of(self.located, builder), builder, modality, self.statistics,
            None if classes is None else tuple(classes), None if text is None else text["width"],
            Run(self.folder).corruption(modality.grid(), self.config.get("corruption")), self.scalars, self.dense,
        )  # fmt: skip

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalars that the network takes."""
        return scalars_of(self.metadata)

    @property
    def dense(self) -> int | None:
        """The number of channels of the dense condition that the network takes, or None."""
        return dense_channels(self.metadata)


def open_model(folder: Path, builder: Builder, data: Group | None = None, checkpoint: Chosen = None) -> TrainedModel:
    """Open a run or an exported model, and return it with everything read except its weights.

    `data` contains keys of its data from the command line, such as their current location. `checkpoint` selects the
    weights; None selects the last checkpoint.

    Raises:
        RecipeError: If the folder contains neither, or a part is missing, unreadable or of the wrong type.
    """
    check_folder(folder)
    given, run, path = data or {}, Run(folder), folder / CONFIG
    if (folder / NOTES).exists():
        return _exported(run, builder, given, checkpoint)
    config = check_parts(run.config, path, builder)
    here = located(config, run.metadata, folder, given, builder)
    weights = partial(_run_weights, run, builder, chosen_samples(checkpoint, run))
    return TrainedModel(folder, config, here, run.metadata, run.statistics, weights, given=given)


def chosen_samples(checkpoint: Chosen, run: Run) -> int | None:
    """Return the number of samples of a checkpoint given by its number, folder or `best`, or None for the last one.

    Raises:
        RecipeError: If it is none of these, or no best checkpoint has been selected.
    """
    if checkpoint in (None, "last"):
        return None
    if checkpoint == "best":
        best = read_best(run.checkpoints.folder)
        if best is None:
            raise RecipeError(
                f"checkpoint=best: no checkpoint of {run.folder} is known to be the best, because none was saved at a "
                "validation during training: omit checkpoint=best to use the last one, or train with validation data, "
                "every.validation and every.checkpoint"
            )
        return best.samples
    name = Path(str(checkpoint)).name
    if not name.isdecimal():
        known = ", ".join(str(samples_of(path)) for path in run.checkpoints.folders())
        raise RecipeError(
            f"checkpoint={checkpoint}: expected last, best, or the number of samples seen at an existing checkpoint: "
            f"{known or 'none yet'}"
        )
    return int(name)


def check_folder(folder: Path) -> None:
    """Raise RecipeError if a folder contains neither a run nor an exported model; the message names nearby ones."""
    marks = (CONFIG, NOTES)
    if any((folder / mark).exists() for mark in marks):
        return
    parent = folder if folder.is_dir() else folder.parent
    near = sorted(each.parent.as_posix() for mark in marks for each in parent.glob(f"*/{mark}"))
    hint = f"; there are {', '.join(near[:5])}" if near else ": create one with `multisagd train` or `multisagd export`"
    problem = "does not exist" if not folder.exists() else "contains neither" if folder.is_dir() else "is a file"
    raise RecipeError(f"there is no run or exported model in {folder}, which {problem}{hint}")


def located(config: Config, metadata: Mapping[str, Any], folder: Path, given: Group, builder: Builder) -> Config:
    """Return a run's configuration with resolved paths, and with the data keys from the command line.

    `metadata` is the content of `run.json` in its `folder`; `given` contains the command line's keys below `data`.

    Raises:
        RecipeError: If a given key is not a key of the run's data.
    """
    data = config.get("data")
    if given and isinstance(data, Mapping):
        builder.check_keys(data, Dataset, "data", given)
    homes = starting_folders(metadata, folder)
    resolved: Config = config
    sources = data.get("sources") if isinstance(data, Mapping) else None
    names = list(sources) if isinstance(sources, Mapping) else []
    of_sources = [["data", "sources", name, *key.split(".")[1:]] for name in names for key in PATHS if "data." in key]
    for parts in (*(key.split(".") for key in PATHS), *of_sources):
        resolved = _with_resolved_path(resolved, parts, homes)
    if not given:
        return resolved
    resolved = {**resolved, "data": over(resolved.get("data", {}), given, by_class=True)}
    modality = resolved["modality"]
    if "root" in given and isinstance(modality, Mapping) and modality.get("statistics") is not None:
        # Latents are scaled by the statistics in their folder.
        resolved["modality"] = {**modality, "statistics": given["root"]}
    return resolved


def starting_folders(metadata: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return the folders in which to look up the relative paths of the run in `folder`, most likely first."""
    starts = metadata.get("starts") or [{}]
    last = starts[-1] if isinstance(starts[-1], Mapping) else {}
    home, run_dir = last.get("folder"), last.get("run_dir")
    if not isinstance(home, str) or not isinstance(run_dir, str) or not home or not run_dir:
        return []  # an exported model records no starts, and a user may have edited the record
    return [Path(home), Path(os.path.normpath(folder.absolute() / os.path.relpath(home, run_dir)))]


def _with_resolved_path(node: Config, parts: Sequence[str], homes: Sequence[Path]) -> Config:
    """Return a copy of nested values, with the path at the dotted key `parts` resolved."""
    name, *deeper = parts
    value = node.get(name)
    if deeper:
        return {**node, name: _with_resolved_path(dict(value), deeper, homes)} if isinstance(value, Mapping) else node
    if isinstance(value, list | tuple):
        return {**node, name: [_resolve_path(each, homes) for each in value]}
    return {**node, name: _resolve_path(value, homes)} if isinstance(value, str) else node


def _resolve_path(value: Any, homes: Sequence[Path]) -> Any:
    """Return a relative path joined to the first folder in which it exists, and any other value unchanged."""
    if not isinstance(value, str) or "://" in value or "::" in value or os.path.isabs(value):  # noqa: PTH117
        return value
    fixed = re.split(r"[*?\[{]", value)[0]  # the part before a pattern or a range
    if fixed != value:
        fixed = os.path.dirname(fixed)  # noqa: PTH120
    return next((str(home / value) for home in homes if os.path.exists(home / fixed)), value)  # noqa: PTH110 - no error


def check_config(config: Config, path: Path, builder: Builder) -> Config:
    """Return a run's configuration, after checking the parts that sampling needs.

    Raises a RecipeError that names the file and the wrong value.
    """
    with as_recipe_error(RecipeError, f"{path}: ", ". Restore the file that training wrote"):
        ModelSettings.of(config, builder)
    return config


def check_parts(config: Config, path: Path, builder: Builder) -> Config:
    """Return a run's configuration, after checking it, and that the classes of the model's parts accept its keys."""
    check_config(config, path, builder)
    with as_recipe_error(RecipeError, f"{path}: ", OTHER_VERSION):
        for name in PARTS:
            builder.check_keys(config[name], object, name, [key for key in config[name] if key != "_target_"])
    return config


def run_settings(config: Config, path: Path, builder: Builder) -> TrainSettings:
    """Return the training settings of a run. Raises a RecipeError that names the file and the first wrong key."""
    with as_recipe_error(RecipeError, f"{path}: ", OTHER_VERSION):
        return builder.settings(TrainSettings, config, "")


def _run_weights(
    run: Run, builder: Builder, samples: int | None, which: Which | Width, check: CheckShapes
) -> TrainedWeights:
    if isinstance(which, float):
        settings = builder.settings(Averages, run.config["training"].get("averages", {}), "training.averages")
        state = _checkpoint(run, samples, check_width(settings, which))
        return TrainedWeights(state.samples, averaged_weights(run.folder, state, settings, which, check), which)
    prefix = "module." if which == "ema" else ""  # prefix of averaged weights in a checkpoint

    def check_part(stored: Mapping[str, Shapes]) -> None:
        if which not in stored:
            raise RecipeError(f"the checkpoint has no {which} weights: choose other weights, or another checkpoint")
        check(named(stored[which], prefix))

    state = _checkpoint(run, samples, [which], check_part)
    return TrainedWeights(state.samples, named(state.tensors[which], prefix), which)


def _checkpoint(run: Run, samples: int | None, parts: Collection[str], check: Check | None = None) -> State:
    """Load some parts of a run's checkpoint after a number of samples, or of the last one if `samples` is None."""
    checkpoints = run.checkpoints
    if samples is None or not checkpoints.folders():
        state = checkpoints.latest(parts, check)
    else:
        state = checkpoints.chosen(samples, parts, check)
    if state is None:
        raise RecipeError(f"{run.folder} has no checkpoint yet: train until one is saved")
    return state


def trained_denoiser(assembly: Assembly, weights: TrainedWeights, runtime: Runtime) -> Denoiser:
    """Return the denoiser of a run on the device, for sampling.

    Raises RecipeError if the weights do not fit its network.
    """
    network = assembly.network()
    load_module(network, weights.tensors, "weights")
    network.eval().requires_grad_(False).to(runtime.device, runtime.dtype)
    return assembly.denoiser(runtime.compiled(network), assembly.process().to(runtime.device, runtime.dtype)).eval()


def check_encoder(encoder: TextEncoder | None, metadata: Mapping[str, Any], run_dir: Path) -> None:
    """Raise RecipeError if a text encoder is not the one in the run's `metadata`."""
    text = metadata.get("text")
    if encoder is not None and text is not None and text["fingerprint"] != encoder.fingerprint:
        raise RecipeError(
            f"the text encoder {encoder.name} differs from the one that {run_dir} was trained with, {text['name']}: "
            "the weights differ. Use the original files"
        )


def write_model(model: TrainedModel, weights: TrainedWeights, out: Path) -> None:
    """Write an exported model to a folder; model.json is written last, so its presence means that all is complete."""
    out.mkdir(parents=True, exist_ok=True)
    tensors, header = model.statistics.stored()
    tensors |= {f"{NETWORK}{name}": tensor.contiguous() for name, tensor in weights.tensors.items()}
    partial_file = out / f"{WEIGHTS}.partial"
    safetensors.torch.save_file(tensors, partial_file, header)
    partial_file.chmod(
        out.stat().st_mode & 0o666
    )  # safetensors restricts its files to their owner, but models are shared
    notes = {
        "format_version": FORMAT_VERSION,
        "weights": "ema" if isinstance(weights.which, float) else weights.which,
        "ema": weights.which if isinstance(weights.which, float) else None,
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
    for name, unused in (("text", ("cache", "device")), ("corruption", ("path",))):
        if isinstance(needed.get(name), Mapping):
            needed[name] = {key: value for key, value in needed[name].items() if key not in unused}
    return dict(mapped(needed, without_secrets))


def _needed_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a run's metadata that sampling needs: what its condition is."""
    text = metadata.get("text")
    text = None if text is None else {key: text[key] for key in ("name", "fingerprint", "width")}
    known = {"untrained": list(metadata.get("untrained", ())), "scalars": list(metadata.get("scalars", ()))}
    if metadata.get("condition") is not None:
        known["condition"] = mapped(metadata["condition"], without_secrets)
    return {"classes": metadata["classes"], "text": text, **known}


def _exported(run: Run, builder: Builder, given: Group, checkpoint: Chosen) -> TrainedModel:
    folder = run.folder
    with _reading(folder):
        notes = read_object(folder / NOTES, finite=False)  # numbers are checked when objects are built
        if notes["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"its format version is {notes['format_version']!r:.80}, but this program reads {FORMAT_VERSION}"
            )
        metadata, config = notes["metadata"], notes["config"]
        if not isinstance(metadata, dict) or not isinstance(config, dict):
            raise ValueError("its metadata or its configuration is missing")
        check_metadata(metadata)
        if notes["weights"] not in get_args(Which):
            raise ValueError(f"{notes['weights']!r:.80} is not a kind of weights")
        width = notes.get("ema")  # missing in models of earlier versions
        if width is not None and (type(width) is not float or not 0 < width < 0.28 or notes["weights"] != "ema"):
            raise ValueError(f"ema={width!r:.80} is not the width of an average")
        if type(notes["samples"]) is not int or not 0 <= notes["samples"] < MAX_SAMPLES:
            raise ValueError(f"{notes['samples']!r:.80} is not a number of samples seen")
    if checkpoint == "best" or chosen_samples(checkpoint, run) not in (None, notes["samples"]):
        raise RecipeError(
            f"checkpoint={checkpoint}: {folder} contains only the checkpoint after {notes['samples']} samples; omit "
            "checkpoint=…"
        )
    config = check_parts(filled(config), folder / NOTES, builder)
    statistics = read_statistics(folder / WEIGHTS, "export it again")
    here, which = located(config, metadata, folder, given, builder), chosen_weights(notes["weights"], width)
    weights = partial(_exported_weights, folder, notes, which)
    return TrainedModel(folder, config, here, metadata, statistics, weights, which, given)


def _exported_weights(
    folder: Path, notes: Mapping[str, Any], exported: Which | Width, which: Which | Width, check: CheckShapes
) -> TrainedWeights:
    if which not in (exported, notes["weights"]):
        raise RecipeError(
            f"{folder} contains only the weights {weights_in_words(exported)!r}, but {weights_in_words(which)} was "
            "requested: omit weights=… and ema=…, or export the run again with the requested weights"
        )
    with _reading(folder):
        shapes = {name: each.shape for name, each in read_header(folder / WEIGHTS).items()}
        check(named(shapes, NETWORK))
        if digest(folder / WEIGHTS) != notes.get("sha256"):
            raise ValueError("its content was altered")
        tensors = read_tensors(folder / WEIGHTS, [name for name in shapes if name.startswith(NETWORK)])
        return TrainedWeights(notes["samples"], named(tensors, NETWORK), exported)


def _reading(folder: Path) -> AbstractContextManager[None]:
    before, after = f"cannot read the exported model {folder} (", "): export it again"
    return as_recipe_error((OSError, ValueError, KeyError, TypeError), before, after)
