"""The card of an exported model: README.md, for people and for the Hugging Face Hub, and its figures.

    README.md       description, data and evaluation of the model; the Hub's metadata at the top
    spectrum.png    power of noise and data along every axis
    samples.png     the last samples drawn during training, if they were drawn with these weights
    evaluate.json   the results of `multisagd evaluate` for these weights, if any

Everything comes from the records of a run. They may come from someone else, so all text is escaped.
"""

import json
import math
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import nn

from modalities.base import Modality
from multisagd import Process
from multisagd.addresses import for_others
from multisagd.channel_covariance import ChannelCovariance
from multisagd.files import check_file, read_json
from recipes.base.commands import setting
from recipes.base.files import replace_file, write_text
from recipes.config.addresses import mapped
from recipes.config.build import Builder
from recipes.reports.run import metric_cells, metric_notes, metric_rows
from recipes.runs.assembly import Assembly, process_notes
from recipes.runs.metrics import inner, number
from recipes.runs.model import TrainedModel, TrainedWeights, write_model
from recipes.runs.settings import Which, Width, chosen_weights
from recipes.sampling.dense import condition_in_words
from recipes.sampling.sample_files import EVALUATION

CARD, SPECTRUM, SAMPLES = "README.md", "spectrum.png", "samples.png"
TASKS = {"image": "text-to-image", "audio": "text-to-audio", "video": "text-to-video"}
WITHOUT_TEXT = {"image": "unconditional-image-generation"}
"""The Hub's task names for models without text; it has no names for unconditional audio and video."""
MAX_IMAGE_BYTES = 32 << 20
PNG = b"\x89PNG\r\n\x1a\n"
DRAWN = ("sampler", "steps", "guidance", "seed")
MAX_ROWS = 100
"""Maximum number of results from an evaluation in a card."""
LOCATION_KEYS = ("root", "urls", "index", "manifest", "match", "pattern", "path", "statistics", "cache", "folder")
"""Keys of settings that contain locations or names of files."""
LONGEST = 200
"""Number of characters after which a name or setting is cut off."""


@dataclass(frozen=True)
class Subject:
    """The subject of a card: a model with its parts and weights."""

    model: TrainedModel
    assembly: Assembly
    weights: TrainedWeights
    license: str | None = None


def check_license(name: str | None) -> None:
    """Raise ValueError if a licence is not an SPDX identifier, `other` or `unknown`; the Hub requires one of these."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", name):
        raise ValueError(f"license={name!r:.80} is not an SPDX identifier, such as apache-2.0, mit or cc-by-4.0")


def write_exported(
    model: TrainedModel, builder: Builder, which: Which | Width, out: Path, license: str | None = None
) -> TrainedWeights:
    """Write a model and its card as `multisagd export` does, and return the model's weights.

    Raises:
        RecipeError: If the weights cannot be read or do not fit.
    """
    assembly = model.assembly(builder)
    weights = model.weights(which, assembly.check_weight_shapes)
    write_model(model, weights, out)
    write_card(Subject(model, assembly, weights, license), out)
    return weights


def write_card(subject: Subject, out: Path) -> None:
    """Write the card and its figures to the folder of the exported model."""
    # Imported here, because importing matplotlib takes half a second, which loading a pipeline avoids.
    from recipes.plotting.figures import draw_profiles

    process, source = subject.assembly.process(), subject.model.folder
    powers = {"data": subject.model.statistics.power}
    if not process.covariance.item_wise:
        powers["noise"] = process.covariance.power()
    draw_profiles(powers, process.grid, out / SPECTRUM)
    image = last_samples(source, subject.weights.samples, subject.weights.which)
    if image is None:
        (out / SAMPLES).unlink(missing_ok=True)  # left by an earlier export
    elif image.resolve() != (out / SAMPLES).resolve():
        replace_file(out / SAMPLES, lambda path: shutil.copyfile(str(image), path))
    evaluation = latest_evaluation(source, subject.weights.samples, subject.weights.which)
    if evaluation is not None and not subject.model.exported:
        evaluation["data"] = last_part(subject.model.config["data"])
    if evaluation is None:
        (out / EVALUATION).unlink(missing_ok=True)
    else:
        write_text(out / EVALUATION, json.dumps(mapped(evaluation, for_others), indent=1, ensure_ascii=False))
    name = out.resolve().name
    head = yaml.safe_dump(fields_of_the_hub(subject, name, evaluation), sort_keys=False, allow_unicode=True)
    text = text_of_the_card(subject, name, process, evaluation, image is not None)
    write_text(out / CARD, f"---\n{head}---\n\n{text}")


def fields_of_the_hub(subject: Subject, name: str, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the metadata at the top of a card: https://huggingface.co/docs/hub/model-cards."""
    medium = slug(type(innermost(subject.assembly.modality)).__name__)
    metadata: dict[str, Any] = {"library_name": "multisagd", "tags": ["multisagd", "diffusion", medium]}
    task = (TASKS if subject.model.metadata.get("text") else WITHOUT_TEXT).get(medium)
    if task is not None:
        metadata["pipeline_tag"] = task
    if subject.license is not None:
        metadata["license"] = subject.license.lower()
    metrics = [
        {
            "type": slug(f"{kind} {row.get('name')}"),
            "name": one_line(f"{kind}: {row.get('name')}"),
            "value": number(row["value"]),
        }
        for kind, row in rows_of(evaluation)
        if not str(row.get("name")).startswith("band ")  # these are curves, not metrics
    ]
    if metrics:
        data = one_line((evaluation or {}).get("data", "unknown"))
        dataset = {"name": data, "type": slug(data)}
        result = {"task": {"type": task or "other"}, "dataset": dataset, "metrics": metrics}
        metadata["model-index"] = [{"name": one_line(name), "results": [result]}]
    return metadata


def text_of_the_card(
    subject: Subject, name: str, process: Process, evaluation: Mapping[str, Any] | None, pictured: bool
) -> str:
    """Return the body of the card as Markdown, with escaped text from the model's records."""
    model, grid = subject.model, process.grid
    starts = model.metadata.get("starts") or [{}]
    last = starts[-1] if isinstance(starts[-1], dict) else {}
    packages = inner(last, "versions")
    denoiser = subject.assembly.denoiser(nn.Identity(), process)
    cards = Environment(
        loader=PackageLoader("recipes.sharing"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=lambda value: value if isinstance(value, Markup) else shown(value),
    )  # fmt: skip
    cards.filters |= {"described": lambda node: Markup(described(node)), "shown": shown, "last_part": last_part}
    return cards.get_template("card.md.j2").render(
        name=name,
        subject=subject,
        medium=slug(type(innermost(subject.assembly.modality)).__name__),
        grid=grid,
        size=" × ".join(str(axis.size) for axis in grid.axes),
        text=model.metadata.get("text"),
        dense=described(model.config.get("condition") or {}),
        given=condition_in_words(model),
        examples=inner(model.metadata, "data").get("examples", "unknown number of"),
        corrupted=subject.assembly.corruption() is not None,
        noise=in_words(process),
        doubts=process_notes(process, denoiser, model.statistics, subject.assembly.modality),
        parameters=sum(each.numel() for each in subject.weights.tensors.values()),
        versions={key: packages[key] for key in ("multisagd", "torch", "python") if key in packages},
        revision=last.get("revision", ""),
        evaluation=_evaluation_values(evaluation),
        copies=any("repetitions" in str(row.get("name")) for _, row in rows_of(evaluation)),
        pictured=pictured,
        run_dir=setting("run_dir", name),
        quoted=json.dumps(name),
    )


def _evaluation_values(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the template's values for an evaluation, or None if there is no evaluation."""
    if evaluation is None:
        return None
    count = number(inner(evaluation, "counts").get("compared"))  # type: ignore[arg-type]
    notes = [note for kind in inner(evaluation, "results") for note in metric_notes(evaluation, kind)]  # type: ignore[arg-type]
    if absent := evaluation.get("unavailable"):
        notes.append(f"not computed: {', '.join(map(str, absent))}")
    return {
        "counted": "Samples" if math.isnan(count) else f"{count:,.0f} samples",
        "drawn": evaluation["drawn"],
        "rows": [(f"{kind}: {row.get('name')}", *metric_cells(row)) for kind, row in rows_of(evaluation)][:MAX_ROWS],
        "notes": notes,
    }


def last_samples(source: Path, samples: int, which: Which | Width) -> Path | None:
    """Return the path of the image with samples drawn from these weights, in a run or an exported model, or None.

    Training draws samples only with the average of width `training.ema`. Symbolic links that point outside the folder
    are ignored, except links from snapshots/COMMIT to blobs in the Hub's cache.
    """
    folder = source.resolve()
    allowed = [folder, folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [folder]
    drawn = [source / "samples" / f"{samples:012d}.png"] if which == "ema" else []
    for path in (*drawn, source / SAMPLES):
        try:
            check_file(path, MAX_IMAGE_BYTES)
            with path.open("rb") as file:
                is_png = file.read(len(PNG)) == PNG
        except (OSError, ValueError):
            continue
        if is_png and any(path.resolve().is_relative_to(each) for each in allowed):
            return path
    return None


def latest_evaluation(source: Path, samples: int, which: Which | Width) -> dict[str, Any] | None:
    """Return counts, rows and notes of the latest evaluation of these weights, with its sampling settings, or None."""
    evaluations: list[tuple[float, Path, dict[str, Any]]] = []
    for path in source.glob(f"sampled/*/{EVALUATION}"):
        try:
            made = read_json(path.with_name("sample.json"), finite=False)
            settings = made["settings"]
            if made["samples_seen"] == samples and chosen_weights(settings["weights"], settings.get("ema")) == which:
                drawn = {"sampler": last_part(settings["sampler"]).lower(), "steps": settings["steps"],
                         "guidance": settings["guidance"]["scale"], "seed": settings["seed"]}  # fmt: skip
                evaluations.append((path.stat().st_mtime, path, drawn))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    newest = max(evaluations, key=lambda each: each[0], default=None)
    path = newest[1] if newest else source / EVALUATION
    try:
        report = read_json(path, finite=False)
    except (OSError, ValueError):
        return None
    kinds = {
        str(kind): {"rows": [row for named, row in metric_rows(report) if named == kind][:MAX_ROWS],
                    "notes": metric_notes(report, kind)[:MAX_ROWS]}
        for kind in inner(report, "results")
    }  # fmt: skip
    drawn = newest[2] if newest else {key: value for key, value in inner(report, "drawn").items() if key in DRAWN}
    named = {"data": report["data"]} if isinstance(report.get("data"), str) else {}
    return named | {
        "counts": inner(report, "counts"),
        "drawn": drawn,
        "unavailable": list(inner(report, "unavailable")),
        "results": kinds,
    }


def rows_of(evaluation: Mapping[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of an evaluation whose value is a finite number, each with the name of its metric."""
    return [(kind, row) for kind, row in metric_rows(evaluation or {}) if math.isfinite(number(row.get("value")))]


def innermost(modality: Any) -> Modality:
    """Return the modality that latents encode, or any other modality unchanged."""
    return innermost(modality.modality) if hasattr(modality, "modality") else modality


def in_words(process: Process) -> str:
    """Describe the noise power relative to white noise, at zero frequency and in three bands, as mean of channels."""
    if process.covariance.item_wise:
        return "different for each sample, because it follows the sample's dense condition"
    grid = process.grid
    power = process.covariance.power().reshape(-1, *grid.half_shape).mean(0)
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    top, mean = float(radius.max()), float(grid.mean(power))

    def decibels(value: float) -> str:
        return f"{10 * math.log10(value / mean):+.1f} dB" if value > 1e-12 * mean else "no noise at all"

    levels = [f"at zero frequency {decibels(float(power.flatten()[0]))}"]
    for third, band in enumerate(("lowest", "middle", "highest")):
        weight = grid.multiplicity * ((radius > third * top / 3) & (radius <= (third + 1.001) * top / 3))
        if bool(weight.any()):
            level = float((power * weight).sum() / weight.sum())
            levels.append(f"in the {band} third of frequencies {decibels(level)}")
    text = ", ".join(levels) + ", relative to white noise of the same power"
    if not isinstance(process.covariance, ChannelCovariance):
        return text
    own = ", ".join(decibels(float(each)) for each in grid.mean(process.covariance.power()))
    related = "correlated" if process.covariance.mixed else "independent"
    return f"{text}; the channels are {related} and have {own}"


def described(node: Mapping[str, Any]) -> str:
    """Return a configuration group as escaped Markdown: the class name and the settings, without file locations."""
    kept = {key: value for key, value in node.items() if key != "_target_" and value is not None}
    settings = ", ".join(f"{shown(key)}={_setting(value)}" for key, value in kept.items() if not _private(key, value))
    name = shown(last_part(node))
    return f"{name} ({settings})" if settings else name


def last_part(node: Mapping[str, Any]) -> str:
    """Return the name of the class that a configuration group builds."""
    return str(node.get("_target_") or "none").rsplit(".", 1)[-1]


def shown(value: object) -> str:
    """Return a value as one short line of escaped Markdown, without links, markup or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&!$])", r"\\\1", one_line(value))


def one_line(value: object) -> str:
    """Return a value as one short line of printable characters."""
    text = for_others("".join(each for each in " ".join(str(value).split()) if each.isprintable()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def slug(text: str) -> str:
    """Return text as an identifier for the Hub: lower-case letters and digits, joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "unnamed"


def _private(key: Any, value: Any) -> bool:
    """Whether a setting is a file location: a path, an address, or a list of them."""
    if isinstance(value, list | tuple):
        return any(_private(key, each) for each in value)
    if not isinstance(value, str):
        return False
    if key == "name":
        return Path(value).is_absolute() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is None
    return key in LOCATION_KEYS or re.search(r"[\\/:?#@~]", value) is not None


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {_setting(each)}" for key, each in value.items())
        return described(value) if "_target_" in value else f"{{{inner}}}"
    return shown(value)
