"""How close a run's samples are to its data: `multisagd fidelity …`, the same as `python -m recipes.fidelity …`.

What it does, in order: draw samples, on all processes there are (or take those of `samples=…`); train a classifier on
the run's training data, or take it from the cache; compare features. Samples are judged as the files that a person
would look at: clipped and rounded as the modality saves them. The table is printed, and kept as fidelity.json.

Everything is compared at the same counts: so many samples, as many real examples in the noise floor's splits, the same
number of reference examples; of conditional samples also per class, as many as were asked for. Only distances of equal
counts and the same classifier may be compared with each other.

Errors, each in one message: no run there, data without labels, samples of another shape, not finite or too few.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from multisagd.seeds import derive
from recipes.base.untrusted import read_tensors
from recipes.engine.build import Builder
from recipes.engine.command import run_configured
from recipes.engine.config import Config
from recipes.engine.data import hold_out
from recipes.engine.distribution import is_first, leave
from recipes.engine.errors import RecipeError
from recipes.engine.located import build_dataset, located
from recipes.engine.printing import tell
from recipes.engine.runtime import EngineSettings, Runtime
from recipes.engine.settings import Group, SampleSettings
from recipes.features import Readings, Training, cached_network, read_dataset, read_samples
from recipes.metrics import frechet_distance, matched_counts, noise_floor, take
from recipes.runs import record
from recipes.runs.model import check_folder, run_settings
from recipes.runs.run import CONFIG, Run
from recipes.sample import sample


@dataclass(frozen=True)
class FidelitySettings:
    """The keys of `configs/fidelity.yaml` that are not of `configs/sample.yaml`, and the run."""

    run_dir: Path
    samples: Path | None
    reference: int
    splits: int
    cache: Path
    classifier: Training
    data: Group
    allow_targets: tuple[str, ...]


def fidelity(config: Config) -> dict[str, Any]:
    """Compare samples with data as the configuration says; return what is also in fidelity.json.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    builder = Builder(tuple(config["allow_targets"]))
    own = {field.name for field in fields(FidelitySettings)}
    settings = builder.settings(FidelitySettings, {key: config[key] for key in own}, "")
    runtime = Runtime.start(builder.settings(EngineSettings, config["engine"], "engine"))
    train, test = real_data(settings.run_dir, builder, settings.data)
    if train.classes is None:
        raise RecipeError("features need labels to be trained on, and this run's data have none")
    path = find_or_draw(settings.samples, config, runtime)
    if path is None:
        return {}
    try:
        network, notes = cached_network(train, test, settings.cache, settings.classifier)
    except ValueError as error:
        raise RecipeError(str(error)) from error

    x0, labels = load_samples(path, train)
    modality = train.modality
    seen = torch.stack([modality.encode(modality.decode(each)) for each in x0])
    samples = read_samples(network, seen, labels)

    # Without labels everything is one group; with them, each class is compared in the proportion it was asked for.
    grouped, names = labels is not None, train.classes or ()
    groups = len(names) if grouped else 1
    pool = 2 * (len(x0) + settings.reference)
    made = by_group(samples, groups)
    real = by_group(read_dataset(network, train, chosen(train, pool)), groups)
    unseen = [] if test is None else by_group(read_dataset(network, test, chosen(test, 2 * len(x0))), groups)
    counts, references = matched_counts([len(g) for g in made], [len(g) for g in real], settings.reference)
    enough = bool(unseen) and all(len(group) >= count for group, count in zip(unseen, counts, strict=True))
    try:
        against = take(real, references, counts)
        distance = frechet_distance(take(made, counts), against)
        floor = noise_floor(real, counts, references, settings.splits)
        held_out = frechet_distance(take(unseen, counts), against) if enough else None
    except ValueError as error:
        raise RecipeError(str(error)) from error

    result = {
        "samples": str(path),
        "frechet_distance": distance,
        "noise_floor": asdict(floor),
        "frechet_distance_held_out": held_out,
        "classifier": notes,
        "accuracy": samples.accuracy() if grouped else None,
        "classes": by_class(samples, names),
    }
    kept = path.with_name("fidelity.json")
    kept.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))
    print(f"also in {kept}")
    return result


def find_or_draw(samples: Path | None, config: Config, runtime: Runtime) -> Path | None:
    """Return the file of tensors at `samples`, a folder or that file, or draw it now as `multisagd sample` does.

    All ranks draw a share; what follows is the work of the first, and the others get None.
    """
    path = samples or sample({field.name: config[field.name] for field in fields(SampleSettings)})
    leave()
    if not runtime.main:
        return None
    return path / "samples.safetensors" if path.is_dir() else path


def real_data(
    run_dir: Path, builder: Builder, given: Group | None = None, seed: int | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the run's training examples, and its dataset's own test set or else what it held out, if any.

    `given` are keys of its data that the command line gives, such as where they are now. With a `seed`, what is held
    out is what a run of that seed would have held out.

    Raises:
        RecipeError: if there is no run, its data cannot be built, or they have other classes than it learned.
    """
    check_folder(run_dir)
    if not Run(run_dir).begun:
        raise RecipeError(
            f"{run_dir} is an exported model, which does not say what data it learned from: give the run that it was "
            "exported from"
        )
    source, given = Run(run_dir), given or {}
    facts = source.noted_facts
    builder, path = builder.of_a_run(given), run_dir / CONFIG
    config = located(source.config, facts, run_dir, given, builder)
    run = run_settings(config if seed is None else {**config, "seed": seed}, path, builder)
    modality = builder.build(run.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset = build_dataset(run.data, modality, builder)
    check_same(dataset, facts)
    train, held_out = hold_out(dataset, run)
    if run.data.get("train") is not True:
        return train, held_out
    return train, build_dataset({**run.data, "train": False}, modality, builder)


def check_same(dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """Check that data are those that a run was trained on, as far as `run.json` tells; say so if they differ.

    Raises:
        RecipeError: if they have other classes: labels of samples would mean something else.
    """
    before, now = facts.get("data"), record.data_facts(dataset)
    if before is None:
        return
    changed = [key for key in now if before[key] != now[key]]
    if "classes" in changed:
        raise RecipeError(
            f"these data have other classes than those that the run was trained on: {now['classes']!r:.200} in place "
            f"of {before['classes']!r:.200}. Name those it was trained on: data.root=…, or data.urls=…"
        )
    if changed and is_first():
        tell(
            "note: these data are not the same files that the run was trained on, so examples that it learned from and "
            f"examples that it held out may be mixed; {before['examples']:,} examples then, {now['examples']:,} now"
        )


def load_samples(path: Path, dataset: Dataset) -> tuple[Tensor, Tensor | None]:
    """Read `x0` (count, channels, *grid) and `labels` (count,), None if there are none.

    Raises:
        RecipeError: if the file is unreadable, or does not hold finite samples of the dataset's shape and classes.
    """
    try:
        tensors = read_tensors(path)
        x0, labels = tensors["x0"], tensors.get("labels")
        if not len(x0) or not x0.is_floating_point() or (labels is not None and labels.dtype != torch.int64):
            raise ValueError("it holds none, or of another kind")
    except (OSError, KeyError, ValueError) as error:
        raise RecipeError(f"cannot read samples from {path} ({error}): make them with multisagd sample") from error
    shape = (dataset.modality.channels, *dataset.modality.grid().shape)
    if tuple(x0.shape[1:]) != shape:
        raise RecipeError(f"{path} holds samples of shape {tuple(x0.shape[1:])}, the run's data have {shape}")
    if broken := int((~x0.flatten(1).isfinite()).any(1).sum()):
        raise RecipeError(f"{broken} of {len(x0)} samples in {path} are not finite: sample again with more steps")
    if labels is not None and (
        labels.shape != x0.shape[:1] or not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes or ())
    ):
        raise RecipeError(f"the labels in {path} are not those of the run's {len(dataset.classes or ())} classes")
    return x0, labels


def chosen(dataset: Dataset, count: int) -> list[int]:
    """Return `count` indices of a dataset in an order that never changes: files may be sorted by class or writer."""
    generator = torch.Generator().manual_seed(derive(0, "fidelity"))
    indices: list[int] = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return indices


def by_group(readings: Readings, groups: int) -> list[Tensor]:
    """Return the features of each class apart, or all of them for one group."""
    if groups == 1 or readings.labels is None:
        return [readings.features]
    return [readings.features[readings.labels == number] for number in range(groups)]


def by_class(samples: Readings, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return per class how many samples were asked for, how many of those were recognised, and how many were seen."""
    rows = []
    for number, name in enumerate(names):
        asked = None if samples.labels is None else samples.labels == number
        predicted = samples.predictions == number
        rows.append(
            {
                "name": name,
                "asked": None if asked is None else int(asked.sum()),
                "recognised": None if asked is None else int((asked & predicted).sum()),
                "seen": int(predicted.sum()),
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the result as lines to read."""
    floor, record, held_out = result["noise_floor"], result["classifier"], result["frechet_distance_held_out"]
    shown = "none, or too few of them" if held_out is None else f"{held_out:.3f}"
    lines = [
        f"Fréchet distance of classifier features, {floor['count']:,} against {floor['reference_count']:,} real:",
        f"  samples               {result['frechet_distance']:.3f}",
        f"  real (noise floor)    {floor['mean']:.3f} ± {floor['std']:.3f} over {floor['splits']} splits",
        f"  held-out real         {shown}",
        "Recognised by the classifier:",
        f"  held-out real         {record['accuracy']:.2%} of {record['test_count']:,}",
    ]
    if record["accuracy"] < 0.98:
        lines.append("  note: below 98 %, so read the figures of samples with that in mind")
    if result["accuracy"] is None:
        lines.append("  samples               drawn without classes; seen as: " + _seen(result["classes"]))
        return "\n".join(lines)
    lines.append(f"  samples               {result['accuracy']:.2%}")
    lines += [
        f"    {row['name']:<20}{row['recognised']:>6} of {row['asked']:<6} seen as this: {row['seen']}"
        for row in result["classes"]
    ]
    return "\n".join(lines)


def _seen(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{row['name']} {row['seen']}" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("fidelity", arguments, fidelity)


if __name__ == "__main__":
    sys.exit(main())
