"""Draw samples from a trained run: `multisagd sample …`, the same as `python -m recipes.sample …`.

The steps, each with the file that implements it (in recipes/):

    open the run or exported model: configuration, metadata, statistics   runs/model.py
    open the vocoder that turns log-mel spectrograms into sound           sampling/vocoder.py
    choose the size of the samples                                        sampling/generate.py
    read initial media and dense conditions, from files or held-out
    examples, and what is unknown of them                                 sampling/media.py
    check labels and guidance                                             sampling/condition.py
    read the weights of a checkpoint, or their average                    runs/model.py
    choose the folder; `evaluate` reuses one with the same settings       sampling/sample_files.py
    turn labels, or prompts with the run's text encoder, into a tensor    sampling/condition.py
    build the denoiser: network, diffusion process and statistics         runs/assembly.py
    sampler, steps, guidance and refinement                               sampling/generate.py
    with calibration=N, measure and correct the power of the states       sampling/calibration.py
    in batches, divided among the processes: draw noise with the run's
    spectrum from each sample's seed, and run the sampler back to x0      sampling/generate.py
    put the known values of media back                                    sampling/media.py
    or, with `overlap`, do so for one window after the other              sampling/windows.py
    with rollout=K, take each sample as the condition of the next         sampling/rollout.py
    decode x0 and write one file per sample, all of them as one image,
    the tensors, and sample.json with settings and versions               sampling/sample_files.py

The run's configuration defines the model, and the command defines how to sample from it. Every sample depends only on
the seed and its number, so the first 10 samples of count=100 equal those of count=10.

Errors, each reported in one message: a missing run or checkpoint, unknown labels, prompts for a run without text, a
text encoder other than the run's, a vocoder of other spectrograms, initial media or a dense condition that is missing,
unreadable or not of the run, an unknown part that is not one of the media, guidance for a run without a condition or
trained without condition dropout, a rollout of samples that cannot be conditions, a sampler that does not support the
run's process, a calibration of samples whose power is not known, a size that the modality does not have, a folder with
other files or with symbolic links that point outside the run.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from multisagd.condition import Condition
from multisagd.seeds import derive_many
from recipes.base.progress import Display
from recipes.base.untrusted import check_own
from recipes.cli.command import command
from recipes.config.addresses import shareable
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.model import open_model, trained_denoiser
from recipes.runs.run import versions
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import barrier
from recipes.sampling.calibration import Requested, calibrated
from recipes.sampling.condition import checked_labels, chosen_condition, chosen_prompts
from recipes.sampling.dense import check_requested, save_conditions
from recipes.sampling.generate import chosen_modality, generate, sampling_request
from recipes.sampling.media import MediaOptions, SamplingMedia, sampling_media
from recipes.sampling.rollout import chosen_rollout
from recipes.sampling.sample_files import FOLDER, GRID, already_drawn, check_free, default_folder, write_set
from recipes.sampling.vocoder import VocoderOptions, vocoded
from recipes.sampling.windows import Windows, WindowSampler


def sample(config: Config, reuse: bool = False) -> Path:
    """Draw the configured samples, and return the folder to which the first process writes them.

    With `reuse`, the folder is returned unchanged if it contains samples drawn with the same settings.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(SampleSettings, config, "")
    runtime = Runtime.start(settings.engine)

    # A run may come from someone else: its configuration says what to build, but only what allow_targets permits
    # is imported.
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    assembly = model.assembly(builder)
    vocoder = VocoderOptions.of(settings, builder)
    assembly = replace(assembly, modality=vocoded(assembly.modality, vocoder, builder, runtime))
    windows = Windows.chosen(settings, model, assembly)
    if windows is None:
        modality = chosen_modality(assembly, settings.sizes)
        media = sampling_media(MediaOptions.of(settings), model, assembly, modality)
    else:
        check_requested(model, settings.condition)
        modality, media = windows.whole, SamplingMedia(windows.count, windows.conditions())
    count, dense, joined = media.count, media.dense, None
    rollout = chosen_rollout(settings, modality, dense)
    saved = modality if rollout is None else rollout.modality
    prompts = chosen_prompts(settings, model.metadata.get("text") is not None, count)
    labels = checked_labels(model, count, settings.labels, prompts, settings.guidance, dense)
    weights = model.weights(settings.chosen_weights, assembly.check_weight_shapes)
    out = settings.out or default_folder(config, settings, weights.samples, prompts, assembly.process())
    # A folder that the user chose may contain samples with other settings; the default name depends on the settings.
    if reuse and already_drawn(out, weights.samples, None if settings.out is None else config):
        return out
    condition = chosen_condition(
        model, count, labels, prompts, settings.text_model, settings.scalars or {}, builder, runtime.device
    )
    denoiser = trained_denoiser(assembly, weights, runtime)
    request = sampling_request(settings, denoiser, model.located, assembly, runtime)
    media.check(request)
    known = dense.joined(condition.input)
    request = calibrated(
        settings.calibration, request, Requested(modality, media, known), denoiser, model, assembly, runtime
    )
    check_own(out, settings.run_dir)  # no symbolic link may point outside the run's folder
    check_free(out, count, saved.suffixes[0], dense.names)
    seeds = derive_many(settings.seed, "sample", 0, range(count))
    total = count * (settings.rollout or 1) if windows is None else windows.total
    with Display("sampling", total, quiet=not runtime.main) as display:
        if windows is not None:
            parts = (denoiser, request, runtime, model.statistics, settings.keep_known, seeds, known)
            joined = WindowSampler(windows, *parts).draw(display.update)
            x0 = torch.stack([modality.encode(each) for each in joined])
        elif rollout is not None and isinstance(known, Condition):
            x0 = rollout.draw(denoiser, request, settings.seed, known, runtime, display.update)
        else:
            x0 = media.finished(generate(
                denoiser, request, modality.tensor_shape, seeds, known, runtime, display.update, media.start
            ))  # fmt: skip
        barrier()  # only the first process writes; the others may leave now
        if not runtime.main:
            return out
        record = {"samples_seen": weights.samples, "settings": shareable(config), "classes": assembly.classes,
                  "prompts": condition.prompts, "names": dense.names, "versions": versions()}  # fmt: skip
        write_set(out, saved, x0, seeds, condition.labels, record, joined)
        save_conditions(out, dense)
        counted = f"{count} samples are" if count > 1 else "1 sample is"
        display.say(f"{counted} in {out / FOLDER}, and as one image in {out / GRID}")
    return out


main = command("sample", sample)

if __name__ == "__main__":
    sys.exit(main())
