"""The card of an exported model: README.md, as a person and the Hugging Face hub read it, and what it shows.

    README.md       what the model is, learned from, and is worth; the hub's fields at its head
    spectrum.png    power of noise and data along every axis
    samples.png     samples that the training drew last, if it drew any with these weights
    evaluate.json   the numbers of `multisagd evaluate` of samples of these weights, if there are any

All of it is made from the records of a run, which may be someone else's: what is text in them is shown as text.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from multisagd import Process
from multisagd.addresses import for_others
from recipes.base.files import replace_file, write_text
from recipes.base.quoting import setting
from recipes.config.addresses import mapped
from recipes.runs.assembly import Assembly, process_notes
from recipes.runs.metrics import inner, number
from recipes.runs.model import TrainedModel, TrainedWeights, Which
from recipes.sharing.markdown import described, in_words, last_part, listed, one_line, shown, slug
from recipes.sharing.records import EVALUATION, SAMPLES, evaluated, found_evaluation, last_samples, rows_of

CARD, SPECTRUM = "README.md", "spectrum.png"
TASKS = {"image": "unconditional-image-generation", "audio": "text-to-audio", "video": "text-to-video"}
"""The hub's words for what models do; it knows none for sounds and videos that are made without a text."""


@dataclass(frozen=True)
class Subject:
    """What a card tells of: a model with its parts and weights, and the folder that it comes from."""

    model: TrainedModel
    assembly: Assembly
    weights: TrainedWeights
    which: Which
    source: Path
    license: str | None = None


def check_license(name: str) -> None:
    """Check that a licence is named as the hub does: an SPDX identifier, `other` or `unknown`.

    Raises:
        ValueError: if it cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", name):
        raise ValueError(f"license={name!r:.80} is no SPDX identifier, such as apache-2.0, mit or cc-by-4.0")


def write_card(subject: Subject, out: Path) -> None:
    """Write the card, and what it shows, into the folder of the exported model."""
    from recipes.plotting.figures import draw_profiles  # matplotlib takes half a second, which a pipeline need not wait

    process = subject.assembly.process()
    powers = {"data": subject.model.statistics.power, "noise": process.covariance.power()[None]}
    draw_profiles(powers, process.grid, out / SPECTRUM)
    picture = last_samples(subject.source, subject.weights.samples, subject.which)
    if picture is None:
        (out / SAMPLES).unlink(missing_ok=True)  # of what lay here before
    elif picture.resolve() != (out / SAMPLES).resolve():
        replace_file(out / SAMPLES, lambda path: shutil.copyfile(str(picture), path))
    evaluation = found_evaluation(subject.source, subject.weights.samples, subject.which)
    if evaluation is not None and not subject.model.exported:
        evaluation["data"] = last_part(subject.model.config["data"])
    if evaluation is None:
        (out / EVALUATION).unlink(missing_ok=True)
    else:
        write_text(out / EVALUATION, json.dumps(mapped(evaluation, for_others), indent=1, ensure_ascii=False))
    name = out.resolve().name
    head = yaml.safe_dump(fields_of_the_hub(subject, name, evaluation), sort_keys=False, allow_unicode=True)
    parts = sections(subject, name, process, evaluation, picture is not None)
    write_text(out / CARD, f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n")


def fields_of_the_hub(subject: Subject, name: str, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what stands at the head of a card: https://huggingface.co/docs/hub/model-cards."""
    medium = _medium(subject)
    told: dict[str, Any] = {"library_name": "multisagd", "tags": ["multisagd", "diffusion", medium]}
    task = TASKS.get(medium)
    if task is not None and (medium == "image" or subject.model.facts.get("text")):
        task = "text-to-image" if medium == "image" and subject.model.facts.get("text") else task
        told["pipeline_tag"] = task
    if subject.license is not None:
        told["license"] = subject.license.lower()
    metrics = [
        {
            "type": slug(f"{kind} {row.get('name')}"),
            "name": one_line(f"{kind}: {row.get('name')}"),
            "value": number(row["value"]),
        }
        for kind, row in rows_of(evaluation)
        if not str(row.get("name")).startswith("band ")  # these are curves rather than metrics
    ]
    if metrics:
        data = one_line((evaluation or {}).get("data", "unknown"))
        result = {
            "task": {"type": task or "other"},
            "dataset": {"name": data, "type": slug(data)},
            "metrics": metrics,
        }
        told["model-index"] = [{"name": one_line(name), "results": [result]}]
    return told


def sections(
    subject: Subject, name: str, process: Process, evaluation: Mapping[str, Any] | None, pictured: bool
) -> Iterator[str]:
    """Yield the card's sections as Markdown."""
    yield f"# {shown(name)}"
    yield (
        f"A diffusion model of {_medium(subject)} data, trained with multisagd on noise of the spectrum below. It "
        f"learned {_condition(subject)}."
    )
    if pictured:
        yield f"![Samples that the training drew last]({SAMPLES})"
    yield from _usage(name)
    yield "## What it learned from"
    yield _data(subject, process)
    if subject.assembly.corruption() is not None:
        yield _corruption(subject.model.config)
    yield "## Noise and schedule"
    yield f"![Power of data and noise along every axis]({SPECTRUM})"
    parts = {name: described(subject.model.config[name]) for name in ("spectrum", "schedule", "process", "denoiser")}
    yield listed(
        {
            "spectrum of the noise": parts["spectrum"],
            "in words": in_words(process),
            "schedule": parts["schedule"],
            "process": parts["process"],
            "prediction": parts["denoiser"],
        }
    )
    yield "## Network and training"
    yield _training(subject)
    yield "## Evaluation"
    yield from evaluated(evaluation)
    yield "## Limits"
    yield "\n".join(f"- {each}" for each in _limits(subject, process, evaluation))
    yield "## Licence"
    if subject.license is None:
        yield "None was chosen for this model, so nobody has been given a right to use it: ask who made it."
    else:
        yield f"{shown(subject.license)}. The data that it learned from may have terms of their own."


def _condition(subject: Subject) -> str:
    """Return what the model was conditioned on, in words."""
    text, classes = subject.model.facts.get("text"), subject.model.facts["classes"]
    if classes:
        return f"{len(classes)} classes: {', '.join(map(shown, classes[:20]))}{', …' * (len(classes) > 20)}"
    return f"from texts, read by the encoder {shown(text['name'])}" if text else "neither classes nor texts"


def _usage(name: str) -> Iterator[str]:
    yield "## How to use it"
    yield f"```bash\nmultisagd sample {setting('run_dir', name)} count=16 steps=20\n```"
    yield (
        "```python\nfrom recipes.sharing.pipeline import Pipeline\n\n"
        f"pipeline = Pipeline.from_pretrained({json.dumps(name)})\n"
        'pipeline(count=4, steps=20).save("drawn")\n```'
    )
    yield (
        "Both take the folder of this card. Its weights are safetensors and all else is JSON: loading them runs no "
        "code that comes with the model."
    )


def _data(subject: Subject, process: Process) -> str:
    """Return what is known of the data; an exported model says nothing of where they came from."""
    model, statistics = subject.model, subject.model.statistics
    axes = " × ".join(
        f"{shown(axis.name)} {axis.size} ({axis.spacing:.4g} {shown(axis.unit)})" for axis in process.grid.axes
    )
    examples = shown((model.facts.get("data") or {}).get("examples", "unknown number of"))
    return listed(
        {
            "data": "" if model.exported else f"{examples} examples, read as {described(model.config['data'])}",
            "one datum, channels × axes": f"{statistics.mean.shape[0]} × {axes}",
            "medium": described(model.config["modality"]),
            "statistics": f"of {statistics.count:,} examples; standard deviation {statistics.sigma_data:.4g} about "
            "their mean",
        }
    )


def _training(subject: Subject) -> str:
    """Return how the network was trained; an exported model says nothing of the training's settings."""
    model, config = subject.model, subject.model.config
    starts = model.facts.get("starts") or [{}]
    last = starts[-1] if isinstance(starts[-1], dict) else {}
    versions, training = inner(last, "versions"), config["training"]
    named = [f"{shown(key)} {shown(versions[key])}" for key in ("multisagd", "torch", "python") if key in versions]
    return listed(
        {
            "network": described(config["network"]),
            "parameters": f"{sum(each.numel() for each in subject.weights.tensors.values()):,}",
            "weights": {"ema": "average over the training", "network": "last ones"}[subject.which],
            "samples seen": f"{subject.weights.samples:,}",
            "batch": "" if model.exported else shown(training.get("batch")),
            "learning rate": "" if model.exported else shown(training.get("learning_rate")),
            "seed": shown(config["seed"]),
            "versions": ", ".join(named),
            "revision": shown(last.get("revision", "")),
        }
    )


def _corruption(config: Mapping[str, Any]) -> str:
    group, spectrum, denoiser = (config.get(name) or {} for name in ("corruption", "spectrum", "denoiser"))
    done = "Nothing was done about it: its samples show it too."
    if group.get("restored"):
        done = "They were restored there by their own covariance before training."
    elif last_part(denoiser) == "RestoringDenoiser":
        done = "It restores that part in its samples, from the rest or through a noise floor."
    elif last_part(spectrum) == "Omitting":
        done = "It omits that part: its noise leaves it out, and its samples have no more there than their mean."
    return f"**Its data were corrupted in a part of their spectrum**: {described(group)}. {done}"


def _limits(subject: Subject, process: Process, evaluation: Mapping[str, Any] | None) -> list[str]:
    size = " × ".join(str(axis.size) for axis in process.grid.axes)
    said = [
        f"It makes data like those it learned from, with their biases, and was trained at {size} alone.",
        "Diffusion models repeat training examples when these are few: "
        + (
            "see the row on repetitions above."
            if _tells_copies(evaluation)
            else "whether this one does was not looked at."
        ),
    ]
    denoiser = subject.assembly.denoiser(nn.Identity(), process)
    return said + [shown(note) + "." for note in process_notes(process, denoiser, subject.model.statistics)]


def _tells_copies(evaluation: Mapping[str, Any] | None) -> bool:
    return any("repetitions" in str(row.get("name")) for _, row in rows_of(evaluation))


def _medium(subject: Subject) -> str:
    modality: Any = subject.assembly.modality
    while hasattr(modality, "modality"):  # latents are of something
        modality = modality.modality
    return slug(type(modality).__name__)
