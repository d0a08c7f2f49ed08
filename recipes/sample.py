"""Draw samples from a trained run: `multisagd sample …`, the same as `python -m recipes.sample …`.

The run's own configuration says what the model is; the command says how to sample it. Every sample follows from the
seed and its number alone, so 100 samples begin with the 10 that count=10 gives. The results lie in one folder:

    samples/   each sample as a file, with a table of their classes or texts and seeds
    grid.png   all samples in one picture       samples.safetensors   x0 (count, channels, *grid), labels, seeds
                                                sample.json           how they were made

A run that learned from text is told what to draw by prompts, and by the same encoder, which its configuration names.

Errors, each in one message: no run or no checkpoint there, unknown labels, prompts for a run without text or another
encoder, guidance of a run without condition or that never left one out, a sampler that cannot follow the run's process.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.text import TextEncoder
from multisagd import Denoiser, Process
from multisagd.analysis.design import DesignedSteps
from multisagd.mixing import Refinement
from multisagd.samplers import Sampler
from multisagd.seeds import derive_many
from recipes.base.untrusted import check_own
from recipes.engine.addressed import shareable
from recipes.engine.assemble import Assembly, check_refinement, check_sampler
from recipes.engine.build import Builder
from recipes.engine.command import run_configured
from recipes.engine.condition import check_encoder
from recipes.engine.config import Config
from recipes.engine.distribution import wait_for_all
from recipes.engine.errors import RecipeError
from recipes.engine.generate import generate
from recipes.engine.labels import chosen_labels
from recipes.engine.progress import Display
from recipes.engine.residual import band_residual
from recipes.engine.runtime import Runtime
from recipes.engine.sample_files import FOLDER, GRID, check_free, write_set
from recipes.engine.settings import Group, Guidance, SampleSettings
from recipes.engine.state import load_module
from recipes.runs import record
from recipes.runs.model import TrainedModel, TrainedWeights, open_model


def sample(config: Config) -> Path:
    """Draw samples as the configuration says and return the folder they are in.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(SampleSettings, config, "")
    runtime = Runtime.start(settings.engine)

    # The run. Its configuration came with a checkpoint, so it says what to build but not what is allowed.
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    run_config, facts = model.located, model.facts
    assembly = model.assembly(builder)
    modality = assembly.modality
    classes, text = assembly.classes, facts.get("text")
    prompts = chosen_prompts(settings, text is not None)
    labels = chosen_labels(settings.labels, classes, settings.count, text is not None, facts.get("untrained", ()))
    check_guided(settings.guidance, labels is not None or prompts is not None, run_config)
    weights = model.weights(settings.weights, assembly.check_outline)

    condition = None if labels is None else torch.tensor(labels)
    if prompts is not None and text is not None:
        condition = embed(prompts, model, settings.run_dir, settings.text_model, builder, runtime)

    # The model.
    denoiser = trained(assembly, weights, runtime)
    process = denoiser.process
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=assembly.statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    refinement = builder.build(settings.refine, Refinement, "refine")
    check_refinement(refinement, process.grid)
    designed, times = designed_steps(settings.steps_file, process)
    residual = band_residual(denoiser, settings, run_config, assembly, runtime)

    # The samples.
    out = settings.out or settings.run_dir / "sampled" / folder_name(config, weights.samples, prompts, designed)
    check_own(out, settings.run_dir)
    check_free(out, settings.count, modality.suffixes[0])
    seeds = derive_many(settings.seed, "sample", 0, range(settings.count))
    shape = (modality.channels, *modality.grid().shape)
    with Display("sampling", settings.count, quiet=not runtime.main) as display:
        x0 = generate(
            denoiser, sampler, shape, settings.steps, seeds, condition, runtime, settings.guidance,
            settings.spacing, settings.batch, refinement, display.update, times,
            residual,
        )  # fmt: skip
        wait_for_all()  # the others need not wait while files are written
        if not runtime.main:
            return out
        made = {"samples_seen": weights.samples, "settings": shareable(config), "classes": classes, "prompts": prompts}
        made["versions"] = record.versions()
        write_set(out, modality, x0, seeds, labels, classes, prompts, made)
        display.say(f"{settings.count} samples in {out / FOLDER}, all in one picture in {out / GRID}")
    return out


def trained(assembly: Assembly, weights: TrainedWeights, runtime: Runtime) -> Denoiser:
    """Return the denoiser of a run with trained weights, on the device, for sampling.

    Raises:
        RecipeError: if the weights do not fit the configured network.
    """
    network = assembly.network()
    load_module(network, weights.tensors, "weights")
    network.eval().requires_grad_(False).to(runtime.device, runtime.dtype)
    return assembly.denoiser(runtime.compiled(network), assembly.process().to(runtime.device, runtime.dtype)).eval()


def designed_steps(path: Path | None, process: Process) -> tuple[DesignedSteps | None, Tensor | None]:
    """Return designed steps and their times in a process's schedule, or None for both without a file.

    Raises:
        RecipeError: if it holds none, or the schedule does not reach them.
    """
    if path is None:
        return None, None
    try:
        designed = DesignedSteps.load(path)
        return designed, designed.times(process.schedule)
    except (OSError, ValueError) as error:
        raise RecipeError(f"steps_file: {error}") from error


def check_guided(guidance: Guidance, told: bool, run_config: Mapping[str, Any]) -> None:
    """Check that samples can be guided, if they are to be; `told` says whether there is a condition.

    Raises:
        RecipeError: for guidance without a condition, or of a network that never did without one.
    """
    if guidance.scale != 1.0 and not told:
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


def folder_name(
    config: Config, samples: int, prompts: Sequence[str] | None, designed: DesignedSteps | None = None
) -> str:
    """Name a set of samples by the settings that matter most, and by a hash of all that change the result."""
    sampler: Group = config["sampler"]
    idle = ("run_dir", "out", "batch", "allow_targets", "prompts", "prompts_file", "text_model", "data", "checkpoint")
    relevant = {key: value for key, value in config.items() if key not in idle}
    steps = config["steps"]
    if designed is not None:
        relevant["steps_file"] = list(designed.log_snrs)
        steps = f"{designed.steps}designed"
    if prompts is not None:
        relevant["prompts"] = list(prompts)
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]
    name = str(sampler["_target_"]).rsplit(".", 1)[-1].lower()
    return f"{samples:012d}_{name}_{steps}_seed{config['seed']}_{digest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("sample", arguments, sample)


if __name__ == "__main__":
    sys.exit(main())
