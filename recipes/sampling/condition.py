"""What each sample is to be: a class, a text, or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.text import TextEncoder
from recipes.base.errors import RecipeError
from recipes.config.build import Builder
from recipes.runs.model import TrainedModel, check_encoder
from recipes.runs.settings import Guidance, SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.labels import chosen_labels


@dataclass(frozen=True, eq=False)
class Condition:
    """What each sample is to be: `labels` are class numbers, `prompts` texts, `tensor` what the network is given."""

    labels: list[int] | None = None
    prompts: list[str] | None = None
    tensor: Tensor | None = None


def chosen_condition(settings: SampleSettings, model: TrainedModel, builder: Builder, runtime: Runtime) -> Condition:
    """Return what the samples are to be, by the settings and by what the model has learned.

    Raises:
        RecipeError: for classes or texts that it has not learned, another encoder, or guidance without a condition.
    """
    facts, text = model.facts, model.facts.get("text")
    prompts = chosen_prompts(settings, text is not None)
    labels = chosen_labels(
        settings.labels, facts["classes"], settings.count, text is not None, facts.get("untrained", ())
    )
    check_guided(settings.guidance, labels is not None or prompts is not None, model.config)
    if prompts is not None:
        return Condition(None, prompts, embed(prompts, model, settings.run_dir, settings.text_model, builder, runtime))
    return Condition(labels, None, None if labels is None else torch.tensor(labels))


def check_guided(guidance: Guidance, conditional: bool, run_config: Mapping[str, Any]) -> None:
    """Check that samples can be guided, if they are to be; `conditional` says whether there is a condition.

    Raises:
        RecipeError: for guidance without a condition, or of a network that never did without one.
    """
    if guidance.scale != 1.0 and not conditional:
        raise RecipeError("guidance.scale needs labels or prompts, and here there are none: leave it at 1")
    if guidance.scale != 1.0 and not run_config["training"]["condition_dropout"]:
        raise RecipeError(
            "guidance.scale needs a network that also knows no condition, and this run was trained with "
            "training.condition_dropout=0: leave it at 1, or train with condition_dropout=0.1"
        )


def embed(
    prompts: Sequence[str], model: TrainedModel, folder: Path, text_model: str | None, builder: Builder,
    runtime: Runtime,
) -> Tensor:  # fmt: skip
    """Return the embeddings of prompts by the encoder that a model learned from, or by the same at `text_model`.

    Raises:
        RecipeError: if it cannot be loaded, or is another one now.
    """
    node = {**model.located["text"], "device": str(runtime.device)}
    if text_model is not None:
        node |= {"name": text_model, "revision": None}
    encoder = builder.of_a_run(text_model).build(node, TextEncoder, "text")
    check_encoder(encoder, model.facts, folder)
    return encoder(prompts)


def chosen_prompts(settings: SampleSettings, learned: bool) -> list[str] | None:
    """Return a prompt for each sample, taking those given in turn; None to draw without text.

    Raises:
        RecipeError: for prompts of a run that learned no text, two sources of them, or an unreadable or empty one.
    """
    if settings.prompts is None and settings.prompts_file is None:
        return None
    if not learned:
        raise RecipeError("prompts: this run learned no text; leave them out, or train with text=encoder")
    if settings.prompts is not None and settings.prompts_file is not None:
        raise RecipeError("prompts and prompts_file are two sources of the same: leave out one")
    if settings.prompts_file is not None:
        try:
            lines = settings.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"prompts_file: cannot read {settings.prompts_file}: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        prompts = [settings.prompts] if isinstance(settings.prompts, str) else list(settings.prompts or ())
    if not prompts:
        raise RecipeError("prompts is empty: give at least one, or leave it null to draw without text")
    return [prompts[slot % len(prompts)] for slot in range(settings.count)]
