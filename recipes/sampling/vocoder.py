"""Turn the log-mel spectrograms of samples into sound by a trained vocoder, in place of the Griffin-Lim algorithm.

A vocoder is a run with condition=mel, or an exported one, perhaps from someone else: it is opened like every run, so
its configuration builds allowed classes only, and its weights are tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Modality
from modalities.mel_condition import MelSpectrogram
from modalities.representation import LogMel
from modalities.scalars import Scalar
from modalities.vocoded import VocodedMel
from multisagd import DataStatistics, Denoiser
from multisagd.condition import as_condition, mapped
from multisagd.samplers import Sampler
from multisagd.sampling import sample
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.config.build import Builder
from recipes.runs.assembly import check_sampler
from recipes.runs.model import TrainedModel, open_model, trained_denoiser
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.condition import with_scalars
from recipes.sampling.generate import SamplingRequest, run_ends, step_times


@dataclass(frozen=True)
class VocoderOptions:
    """How to use the vocoder in `folder`: sampler, given the statistics of its data, number of steps, and seed."""

    folder: Path
    sampler: Callable[[DataStatistics], Sampler]
    steps: int = 20
    seed: int = 0

    @classmethod
    def of(cls, settings: SampleSettings, builder: Builder) -> Self | None:
        """Return the options in the settings of a command, or None if it names no vocoder."""
        if settings.vocoder is None:
            return None

        def sampler(statistics: DataStatistics) -> Sampler:
            return builder.build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]

        return cls(settings.vocoder, sampler, settings.vocoder_steps, settings.seed)


@dataclass(frozen=True, eq=False)
class Vocoder:
    """A trained vocoder of sounds like those of `audio`, conditioned on `frames`; all sounds have the same noise.

    It is called in one process, and makes no collective calls.
    """

    audio: Audio
    frames: MelSpectrogram
    denoiser: Denoiser
    request: SamplingRequest
    scalars: tuple[Scalar, ...]
    seed: int
    runtime: Runtime

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        """Return a waveform (audio channels, frames·hop) for log-mel values (audio channels, bands, frames).

        Frame k is centred on sample k·hop + hop//2.

        Raises:
            ValueError: If sampling fails, or the result is not finite.
        """
        dense = self.frames.frames.limited(values).flatten(0, 1)[None]
        condition = as_condition(with_scalars(None, self.scalars, {}, 1), True, True)._replace(dense=dense)
        samples, request = values.shape[-1] * self.frames.hop, self.request
        with self.runtime.autocast():
            x0 = sample(
                self.denoiser, request.sampler, (1, self.audio.channels, samples), request.steps, [self.seed],
                mapped(condition, self.runtime.put), times=request.times,
            )[0].float().cpu()  # fmt: skip
        if not bool(x0.isfinite().all()):
            raise ValueError("the vocoder made samples that are not finite: train it longer, or use more vocoder_steps")
        return self.audio.representation.decode(x0, samples, self.audio.rate)


def vocoded(modality: Modality, options: VocoderOptions | None, builder: Builder, runtime: Runtime) -> Modality:
    """Return a modality of log-mel spectrograms that decodes them by a vocoder; without options, it is unchanged.

    Raises:
        RecipeError: If the modality has no log-mel spectrograms, or the vocoder cannot be opened, is none, or was
            trained on other spectrograms.
    """
    if options is None:
        return modality
    if not isinstance(modality, Audio) or not isinstance(modality.representation, LogMel):
        raise RecipeError(
            f"vocoder={options.folder}: this run does not make log-mel spectrograms (modality=audio_mel), so there is "
            "nothing to turn into sound: remove vocoder"
        )
    with as_recipe_error(RecipeError, "vocoder: "):
        vocoder = opened(options, modality, builder, runtime)
    return replace(modality, representation=VocodedMel.of(modality.representation, vocoder))


def opened(options: VocoderOptions, spectrograms: Audio, builder: Builder, runtime: Runtime) -> Vocoder:
    """Return the vocoder in a folder for these log-mel spectrograms.

    Raises:
        RecipeError: If it cannot be opened, is none, or was trained on other spectrograms.
    """
    model = open_model(options.folder, builder)
    assembly = model.assembly(builder)
    audio, frames = assembly.modality, assembly.derived_condition()
    if not isinstance(frames, MelSpectrogram) or not isinstance(audio, Audio):
        raise RecipeError(
            f"{options.folder} is not a vocoder, because it is not conditioned on mel spectrograms: choose a run of "
            "experiment=audio_vocoder, or of modality=audio_waveform condition=mel"
        )
    check_alike(options.folder, spectrograms, audio, frames)
    check_unlabelled(options.folder, model)
    weights = model.weights(model.exported or "ema", assembly.check_weight_shapes)
    denoiser, sampler = trained_denoiser(assembly, weights, runtime), options.sampler(model.statistics)
    check_sampler(sampler, denoiser.process)
    request = SamplingRequest(sampler, options.steps, ends=run_ends(denoiser.process, model.config))
    with as_recipe_error(ValueError):
        request = replace(request, times=step_times(denoiser, request))
    seed = derive(options.seed, "vocoder")
    return Vocoder(audio, frames, denoiser, request, model.scalars, seed, runtime)


def check_alike(folder: Path, spectrograms: Audio, audio: Audio, frames: MelSpectrogram) -> None:
    """Raise a RecipeError that lists the differences if a vocoder was trained on other spectrograms."""
    assert isinstance(spectrograms.representation, LogMel)
    own, theirs = (described(*each) for each in ((spectrograms.representation, spectrograms), (frames.frames, audio)))
    different = [f"{name} {theirs[name]:g} (here {own[name]:g})" for name in own if own[name] != theirs[name]]
    if different:
        raise RecipeError(
            f"{folder} was trained on other log-mel spectrograms than those of this run: {', '.join(different)}. Train "
            "one of both with the settings of the other"
        )


def described(representation: LogMel, audio: Audio) -> dict[str, float]:
    """Return the settings on which log-mel values depend, by their names in configurations."""
    bands, low, high, window, rate = representation.settings(audio.rate)
    return {"rate": rate, "bands": bands, "window": window, "hop": representation.hop, "low": low, "high": high,
            "floor_db": representation.floor_db, "audio channels": audio.audio_channels}  # fmt: skip


def check_unlabelled(folder: Path, model: TrainedModel) -> None:
    """Raise RecipeError if a vocoder always needs a class or a caption, which samples do not have for it."""
    needs = "classes" if model.metadata["classes"] else "captions" if model.metadata.get("text") else None
    if needs is not None and not model.config["training"]["condition_dropout"]:
        raise RecipeError(
            f"{folder} was trained with {needs} and never without (training.condition_dropout=0): train it with "
            f"training.conditional=false{' and text=none' * (needs == 'captions')}"
        )
