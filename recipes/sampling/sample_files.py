"""The folder of a set of samples: its files, and how a later set replaces them.

    samples/0000.png …    every sample as a file, and no other media files; with conditions from files, their names
    samples/samples.csv   the file name, seed, and class or prompt of every sample, in the format of `data.manifest`
    grid.png              all samples in one image, with their classes
    conditions.png        their dense conditions in the same order, if they have any
    samples.safetensors   x0 (count, channels, *grid), labels, seeds
    sample.json           settings and versions

A set replaces all files of an earlier one. Files that do not belong to a set are never overwritten.
"""

import csv
import hashlib
import inspect
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modalities.base import Modality
from multisagd import Process
from multisagd.files import read_json
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import as_stored, replace_file, write_text
from recipes.config.addresses import shareable
from recipes.config.compose import Config
from recipes.runs.settings import SampleSettings
from recipes.runs.state import is_count
from recipes.sampling.generate import designed_steps

FOLDER, TABLE = "samples", "samples.csv"
TENSORS, NOTES, GRID = "samples.safetensors", "sample.json", "grid.png"
CONDITIONS = "conditions.png"
PREVIEWS = (".png", ".wav", ".mp4")
"""Suffixes of preview files next to a sample or a grid."""
EVALUATION = "evaluate.json"
"""The evaluation of a set by `multisagd evaluate`, which lists its figures."""
MAX_SAMPLES = 10_000_000
"""Maximum number of samples that the record of a set may state; the record may come from someone else."""


def default_folder(
    config: Config, settings: SampleSettings, samples: int, prompts: Sequence[str] | None, process: Process
) -> Path:
    """Return the default folder of a set of samples, inside the run's folder.

    Its name contains the main settings, and a hash of all settings that change the result.
    """
    idle = ("run_dir", "out", "batch", "allow_targets", "prompts", "prompts_file", "text_model", "data", "checkpoint")
    relevant = {key: value for key, value in config.items() if key not in idle}
    steps = config["steps"]
    if (designed := designed_steps(settings.steps_file, process)) is not None:
        relevant["steps_file"] = list(designed.log_snrs)
        steps = f"{designed.steps}designed"
    if prompts is not None:
        relevant["prompts"] = list(prompts)
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]
    sampler = str(settings.sampler["_target_"]).rsplit(".", 1)[-1].lower()
    return settings.run_dir / "sampled" / f"{samples:012d}_{sampler}_{steps}_seed{config['seed']}_{digest}"


def check_free(out: Path, count: int, suffix: str, names: Sequence[str] | None = None) -> None:
    """Check that writing `count` samples with this suffix, and `names`, would overwrite only files of an earlier set.

    Raises RecipeError if another file would be overwritten.
    """
    if not out.exists():
        return
    own = former(out)
    if not own and any(not each.name.startswith(".") for each in out.iterdir()):
        raise RecipeError(
            f"{out} is not empty and does not contain a set of samples that this command could replace: choose "
            "another out"
        )
    for path in planned(out, count, suffix, names):
        if path.exists() and path not in own:
            raise RecipeError(
                f"{path} would be overwritten, but it does not belong to a set of samples: choose another out"
            )


def planned(out: Path, count: int, suffix: str, names: Sequence[str] | None = None) -> set[Path]:
    """Return the paths of all files that a set of `count` samples, with these names or numbered, may contain."""
    endings = {*PREVIEWS, suffix}
    media = {out / FOLDER / f"{stem}{ending}" for stem in names or stems(count) for ending in endings}
    grids = {(out / name).with_suffix(ending) for name in (GRID, CONDITIONS) for ending in PREVIEWS}
    return {*media, *grids, out / FOLDER / TABLE, out / TENSORS, out / NOTES}


def former(out: Path) -> set[Path]:
    """Return the existing files of the set of samples in a folder, or an empty result if there is no record of one."""
    record = notes(out)
    count, suffix = record.get("count"), record.get("suffix")
    if type(count) is not int or not 0 < count <= MAX_SAMPLES:
        return set()
    if not (isinstance(suffix, str) and re.fullmatch(r"(\.\w+)+", suffix)):
        suffix = ".png"
    return {path for path in planned(out, count, suffix, recorded_names(record)) if path.exists()}


def recorded_names(record: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the samples in the record of a set, or None if they are numbered.

    The record may come from someone else, and the files of these names are replaced: they must be in the folder.
    """
    names = record.get("names")
    if not isinstance(names, list) or len(names) != record.get("count"):
        return None
    inside = all(isinstance(each, str) and re.fullmatch(r"[^/\\\0]+", each) and each.strip(".") for each in names)
    return names if inside else None


def notes(out: Path) -> dict[str, Any]:
    """Return the record of the set of samples in a folder, or an empty dictionary."""
    try:
        record = read_json(out / NOTES, finite=False)  # the noise range of a sampler may be infinite
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "versions" in record else {}


def samples_seen(out: Path) -> int | None:
    """Return how many samples the model that drew the samples in a folder had seen in training, or None if unknown."""
    seen = notes(out).get("samples_seen")
    return seen if is_count(seen) else None


def already_drawn(out: Path, seen: int, config: Config | None) -> bool:
    """Whether a folder contains samples of the model after `seen` training samples, drawn with the settings `config`.

    If `config` is None, samples with any settings count.
    """
    record = notes(out)
    same = config is None or record.get("settings") == as_stored(shareable(config))
    return same and record.get("samples_seen") == seen and (out / TENSORS).is_file()


def stems(count: int) -> list[str]:
    """Return the file names of `count` samples, without suffixes."""
    return [f"{number:0{len(str(count - 1))}d}" for number in range(count)]


def write_set(
    out: Path, modality: Modality, x0: Tensor, seeds: Sequence[int], labels: Sequence[int] | None,
    made: Mapping[str, Any], media: Sequence[Any] | None = None,
) -> None:  # fmt: skip
    """Write a set of samples x0 `(count, channels, *grid)`, or these `media` of them, replacing an earlier one.

    `made` is the record, to which the count and the suffix are added. Its `classes` are the names that `labels` index,
    its `prompts` are the prompts, and its `names` those of the samples, which are else numbered; each may be None.

    Raises:
        RecipeError: If samples cannot be decoded (the message names the file of tensors), or a file that does not
            belong to a set would be overwritten.
    """
    classes, prompts = made["classes"], made["prompts"]
    count, suffix = len(x0), modality.suffixes[0]
    names_of_files = made.get("names")
    check_free(out, count, suffix, names_of_files)
    record = {**made, "count": count, "suffix": suffix}
    clear(out, with_evaluation=notes(out) != as_stored(record))
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(out / NOTES, json.dumps(record, indent=1))  # first, because it marks the other files as parts of a set
    # Tensors next, so that samples are not lost if they cannot be decoded here.
    tensors = {"x0": x0, "seeds": torch.tensor(seeds)}
    if labels is not None:
        tensors["labels"] = torch.tensor(labels)
    replace_file(out / TENSORS, lambda path: safetensors.torch.save_file(tensors, path))
    with as_recipe_error(ValueError, after=f". The samples are in {out / TENSORS} as tensors"):
        media = [modality.decode(each) for each in x0] if media is None else media
    names = None if labels is None or classes is None else [classes[label] for label in labels]
    save_grid(modality, media, out / GRID, names)
    files = [f"{stem}{suffix}" for stem in names_of_files or stems(count)]
    for name, each in zip(files, media, strict=True):
        modality.save(each, out / FOLDER / name)
    columns: dict[str, Sequence[Any]] = {"file": files, "seed": seeds}
    columns |= {} if names is None else {"label": names}
    columns |= {} if prompts is None else {"text": prompts}
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([columns, *zip(*columns.values(), strict=True)])
    write_text(out / FOLDER / TABLE, table.getvalue())


def save_grid(modality: Modality, media: Sequence[Any], path: Path, names: Sequence[str] | None) -> None:
    """Write media as one image, with their names if the modality supports names."""
    if names is not None and "names" in inspect.signature(modality.save_grid).parameters:
        modality.save_grid(media, path, names=names)
    else:
        modality.save_grid(media, path)


def clear(out: Path, with_evaluation: bool) -> None:
    """Remove the set of samples in a folder, and also its evaluation if `with_evaluation`.

    The record, which identifies a set, is removed last.
    """
    files = former(out) - {out / NOTES}
    if with_evaluation and notes(out):
        files.add(out / EVALUATION)
        try:
            figures = read_json(out / EVALUATION, finite=False)["figures"]
            files |= {out / name for name in figures if name.startswith("evaluate_") and Path(name).name == name}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # the set was not evaluated
    for path in files:
        path.unlink(missing_ok=True)
    if notes(out):
        (out / NOTES).unlink()
