"""Show the input of a model: `multisagd inspect …`, the same as `python -m recipes.inspect …`.

The command takes the configuration of a training run, and writes to `run_dir`:

    originals/ originals.png     examples as loaded, cropped and augmented as in training; media files of the first 8
    decoded/   decoded.png       the same examples, encoded and decoded: what the representation preserves
    noise/     noise.png         samples of the configured noise alone, with the data's standard deviation
    forward.png                  the first example at increasing times of the forward process
    spectrum.png                 power of data and noise along every axis, in the axis's units
    inspect.json                 units, range, round-trip error, padding, sizes of the parts, the classes and the
                                 buckets, files omitted for their size, remarks about files, warnings about the process

If the modality has buckets, the examples are those of the first one, the modality's own size.

Errors, each reported in one message: the errors of data and configuration, as in training; a `run_dir` with contents
other than an earlier inspection, which is replaced.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.buckets import reference_bucket
from modalities.derived_conditions import DerivedCondition, with_derived_condition
from modalities.reading import MediaFiles, UnreadableFilesError
from modalities.wrapped import untouched
from multisagd import DataStatistics, Process, seeds
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import check_replaceable, write_text
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import colour_note, configured_data, data_as_trained_on, measure
from recipes.data.extents import bucket_counts, omitted_counts
from recipes.data.order import order_of
from recipes.data.parts import held_out_note, hold_out
from recipes.data.whitened import noise_notes
from recipes.plotting.figures import draw_profiles
from recipes.runs.assembly import Assembly, build_derived_condition, process_notes
from recipes.runs.settings import ModelSettings, TrainSettings

REPORT = "inspect.json"
FOLDERS = ("originals", "decoded", "noise")
FILES = 8
"""Number of examples that are also written as media files."""
SHOWN_CLASSES = 20
"""Number of classes that are printed with their counts; all are in `inspect.json`."""
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def inspect(config: Config) -> Path:
    """Write the files listed at the top of this file, and return their folder."""
    config = dict(config)
    count = config.pop("count")
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(TrainSettings, config, "")
    out = settings.run_dir
    if not isinstance(count, int) or count < 1:
        raise RecipeError(f"count must be a positive integer, got {count!r}")
    check_replaceable(out, REPORT, "inspect")
    configured = configured_data(settings, builder)
    parts = hold_out(configured, settings, builder)
    dataset = data_as_trained_on(configured, settings, builder)
    modality = dataset.modality
    derived = build_derived_condition(settings.condition, modality, builder)
    statistics = measure(dataset, settings)
    assembly = Assembly(ModelSettings.of(config, builder), builder, modality, statistics, dataset.classes)
    process = assembly.process()
    notes = process_notes(process, assembly.denoiser(torch.nn.Identity(), process), statistics, modality)
    notes += noise_notes(process, assembly.conditioned(dataset), settings.seed, lambda tensor: tensor)
    notes += filter(None, (held_out_note(parts, settings), colour_note(dataset)))

    for folder in FOLDERS:  # from an earlier inspection
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / "unreadable.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, "{}")  # marks the folder as an output of this command
    shown = reference_bucket(dataset) or dataset
    report = show_examples(shown, count, settings.seed, out)
    with as_recipe_error(ValueError, "covariance: "):
        show_noise(assembly.conditioned(shown), process, statistics, min(count, FILES), settings.seed, out)
        show_forward(assembly.conditioned(shown), process, settings.seed, out)
    powers = {"data": statistics.power}
    if not process.covariance.item_wise:
        powers["noise"] = statistics.sigma_data**2 * process.covariance.power()
    draw_profiles(powers, modality.grid(), out / "spectrum.png")
    dataset.save_unreadable(out / "unreadable.json")
    report |= {
        "examples": len(dataset),
        "parts": {
            "training": len(parts.training),
            "validation": len(parts.held_out or ()),
            "test": len(parts.test or ()),
        },
        "classes": class_counts(dataset),
        "scalars": dict(dataset.scalars),
        "conditions": condition_shape(shown, derived, settings.seed),
        "buckets": None if modality.buckets is None else bucket_counts(dataset),
        "omitted": omitted_counts(configured),
        "channels": modality.channels,
        "axes": [asdict(axis) for axis in modality.grid().axes],
        "standard_deviation": statistics.sigma_data,
        "unreadable": len(dataset.unreadable),
        "remarks": dict(dataset.remarks),
        "notes": notes,
    }
    write_text(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False))
    print(summary(report, out))
    return out


def condition_shape(dataset: Dataset, derived: DerivedCondition | None, seed: int) -> list[int] | None:
    """Return the shape of the dense condition of an example, or None if there is none.

    Raises RecipeError if it cannot be derived.
    """
    if derived is None:
        given = dataset.condition_modality
        return None if given is None else list(given.tensor_shape)
    with as_recipe_error(UnreadableFilesError):
        batch = with_derived_condition(dataset, derived, seed).batch([0])
    return None if batch.dense is None else list(batch.dense.shape[1:])


def show_examples(dataset: Dataset, count: int, seed: int, out: Path) -> dict[str, Any]:
    """Write examples as loaded, and encoded and decoded; return range, round-trip error and fraction of padding."""
    modality, order = dataset.modality, order_of(dataset, seed)
    indices = order.indices(0, min(count, len(dataset)))
    augmentation = [seeds.derive(seed, "augmentation", number) for number in range(len(indices))]
    with as_recipe_error(UnreadableFilesError):
        batch = dataset.batch(indices, augmentation)
    decoded = [modality.decode(x0) for x0 in batch.x0]
    originals = decoded
    files = untouched(dataset)
    if isinstance(files, MediaFiles):
        # In the batch, another file replaced each unreadable one, and only its tensor is known.
        originals = [
            decoded[number] if files.read(index, drawn) is None else files.load(index, drawn)
            for number, (index, drawn) in enumerate(zip(indices, augmentation, strict=True))
        ]
    for name, media in zip(FOLDERS, (originals, decoded), strict=False):
        save_all(modality, media, out / name)
    again = torch.stack([modality.encode(each) for each in decoded])
    return {
        "range": [float(batch.x0.min()), float(batch.x0.max())],
        "round_trip_error": float((again - batch.x0).square().mean().sqrt() / batch.x0.square().mean().sqrt()),
        "padding": 0.0 if batch.mask is None else 1 - float(batch.mask.double().mean()),
    }


def show_noise(
    dataset: Dataset, process: Process, statistics: DataStatistics, count: int, seed: int, out: Path
) -> None:
    """Write noise as media files, with the standard deviation of the data, but without their mean.

    Whoever measures the files expects nothing but the noise in them. Noise that follows conditions is that of the
    examples that are shown.
    """
    modality = dataset.modality
    noise_seeds = seeds.derive_many(seed, "inspect", 0, range(count))
    if process.covariance.item_wise:
        count = min(count, len(dataset))
        condition = dataset.batch(order_of(dataset, seed).indices(0, count)).condition()
        process = process.bound(condition, (count, *modality.tensor_shape))
    noise = process.noise((count, *modality.tensor_shape), noise_seeds[:count])
    decoded = [within_scale(modality, modality.decode(statistics.sigma_data * each)) for each in noise]
    save_all(modality, decoded, out / "noise")


def show_forward(dataset: Dataset, process: Process, seed: int, out: Path) -> None:
    """Plot the first example at increasing times of the forward process."""
    modality = dataset.modality
    batch = dataset.batch(order_of(dataset, seed).indices(0, 1))
    x0, process = batch.x0, process.bound(batch.condition(), batch.x0.shape)
    noise = process.noise(x0.shape, [seeds.derive(seed, "inspect", 1)])
    times = torch.tensor(TIMES, dtype=torch.float64).split(1)
    steps = [within_scale(modality, modality.decode(process.in_range(x0, t, noise)[0])) for t in times]
    modality.save_grid(steps, out / "forward.png")


def within_scale(modality: Modality, media: Any) -> Any:
    """Return sound that exceeds full scale at a lower level, so that it is not clipped, and other media as they are."""
    if not isinstance(modality, Audio):
        return media
    return media / max(1.0, float(media.abs().max()))


def class_counts(dataset: Dataset) -> dict[str, int] | None:
    """Return the number of examples of each class, or None if there are no classes."""
    if dataset.classes is None:
        return None
    counts = Counter(dataset.label(index) for index in range(len(dataset)))
    return {name: counts[label] for label, name in enumerate(dataset.classes)}


def save_all(modality: Modality, media: Sequence[Any], folder: Path) -> None:
    """Write the first media to a folder as numbered files, and all as one image next to the folder."""
    for number, each in enumerate(media[:FILES]):
        modality.save(each, folder / f"{number}{modality.suffixes[0]}")
    modality.save_grid(media, folder.with_suffix(".png"))


def summary(report: dict[str, Any], out: Path) -> str:
    """Return a summary of the results, with the path of the folder."""
    axes = " × ".join(
        f"{axis['name']} {axis['size']} ({axis['spacing']:.4g} {axis['unit']})" for axis in report["axes"]
    )
    low, high = report["range"]
    lines = [
        f"{report['examples']:,} examples of {report['channels']} × {axes}",
        "parts: " + ", ".join(f"{count:,} for {name}" for name, count in report["parts"].items() if count),
        f"values from {low:.2f} to {high:.2f}, standard deviation {report['standard_deviation']:.3f} about the mean",
        f"decoding and encoding changes the values by {report['round_trip_error']:.2g} times their root mean square",
    ]
    if report["classes"] is not None:
        named = [f"{name} {count:,}" for name, count in report["classes"].items()]
        rest = f" and {len(named) - SHOWN_CLASSES:,} more" if len(named) > SHOWN_CLASSES else ""
        lines.insert(2, f"{len(named):,} classes: {', '.join(named[:SHOWN_CLASSES])}{rest}")
    if report["scalars"]:
        named = [f"{name} ({unit})" if unit else name for name, unit in report["scalars"].items()]
        lines.append(f"numbers about each example, for training.scalars: {', '.join(named)}")
    if report["conditions"] is not None:
        lines.append(f"conditions: {' × '.join(map(str, report['conditions']))}")
    if report["buckets"] is not None:
        width = max(map(len, report["buckets"]))
        lines.append("buckets, of which the first is shown in the figures, with their numbers of examples:")
        lines += [f"  {size:<{width}}  {number:,}" for size, number in report["buckets"].items()]
    lines += [f"{number:,} files are not used: modality.{name}" for name, number in report["omitted"].items()]
    if report["padding"]:
        lines.append(f"{report['padding']:.0%} of the values shown are padding, excluded from losses and statistics")
    if report["unreadable"]:
        lines.append(f"{report['unreadable']} files could not be read: {out / 'unreadable.json'}")
    lines += [f"note: {count} of the files read: {text}" for text, count in report["remarks"].items()]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join([*lines, f"figures and media files are in {out}: look at spectrum.png and forward.png first"])


main = command("inspect", inspect)

if __name__ == "__main__":
    sys.exit(main())
