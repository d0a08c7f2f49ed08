"""Use a trained model in a few lines of Python, as with diffusers pipelines.

    pipeline = Pipeline.from_pretrained("models/digits")
    drawn = pipeline(count=4, steps=20, labels="3-6")
    drawn.images[0]

A pipeline draws the same samples as `multisagd sample` with an exported model, bit for bit. It is not in the core,
because it uses media. Loading runs no code from the model's folder: see `recipes.runs.model`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Modality
from modalities.image import Image
from modalities.video import Video
from multisagd import DataStatistics, Denoiser
from multisagd.libraries import importing
from multisagd.samplers import Sampler
from multisagd.sampling import Spacing
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import check_replaceable
from recipes.base.progress import Display
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.assembly import Assembly, check_sampler
from recipes.runs.model import NOTES, WEIGHTS, Chosen, TrainedModel, open_model, trained_denoiser
from recipes.runs.run import CORRUPTION, versions
from recipes.runs.settings import Guidance, Which, Width, chosen_weights, given_sizes
from recipes.runtime.device import EngineSettings, Runtime
from recipes.sampling.calibration import Requested, calibrated
from recipes.sampling.condition import checked_labels, chosen_condition
from recipes.sampling.generate import SamplingRequest, chosen_modality, generate, run_ends
from recipes.sampling.media import MediaOptions, sampling_media
from recipes.sampling.sample_files import EVALUATION, write_set
from recipes.sampling.unknown import Unknown
from recipes.sampling.vocoder import VocoderOptions, vocoded
from recipes.sharing.card import CARD, SAMPLES, SPECTRUM, check_license, innermost, write_exported
from recipes.sharing.hub import local_folder

FILES = (NOTES, WEIGHTS, CORRUPTION, CARD, SPECTRUM, SAMPLES, EVALUATION)
"""Files to fetch from a model on the Hub."""


@dataclass(frozen=True, repr=False)
class PipelineOutput:
    """Samples x0 `(count, channels, *grid)`, float32 on the CPU, with the seed of each, and its class or prompt."""

    samples: Tensor
    modality: Modality
    seeds: list[int]
    labels: list[int] | None = None
    prompts: list[str] | None = None
    classes: tuple[str, ...] | None = None
    """Names of the classes that `labels` index."""

    def __repr__(self) -> str:
        """Return a short description: count, modality and tensor shape."""
        return f"{type(self).__name__}({len(self.samples)} of {type(self.modality).__name__}, {_sizes(self.modality)})"

    @property
    def media(self) -> list[Any]:
        """The decoded samples: uint8 pixels of images and videos, float32 waveforms of audio."""
        return [self.modality.decode(each) for each in self.samples]

    @property
    def images(self) -> list[Any]:
        """PIL images.

        Raises:
            AttributeError: If the model generates a different medium. `audios` and `videos` raise it likewise.
        """
        from torchvision.transforms.functional import to_pil_image

        return [to_pil_image(each) for each in self._of(Image, "images")]

    @property
    def audios(self) -> list[Tensor]:
        """Waveforms `(channels, samples)`, float32, about in [-1, 1]; `modality.rate` is in samples per second."""
        return self._of(Audio, "audios")

    @property
    def videos(self) -> list[Tensor]:
        """Videos `(channels, frames, height, width)`, uint8; `modality.fps` is in frames per second."""
        return self._of(Video, "videos")

    def save(self, folder: str | Path) -> None:
        """Write the samples as `multisagd sample` does: as files in `samples/`, as one image, and as tensors.

        Raises:
            RecipeError: If the folder has other contents.
        """
        made = {"classes": self.classes, "prompts": self.prompts, "versions": versions()}
        write_set(Path(folder), self.modality, self.samples, self.seeds, self.labels, made)

    def _of(self, kind: type[Modality], name: str) -> list[Any]:
        if not isinstance(innermost(self.modality), kind):
            raise AttributeError(f"these are samples of {type(self.modality).__name__}, not {name}: use .media")
        return self.media


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling, except the numbers of samples and steps.

    Samples are a function of `seed`, as in `multisagd sample`. Instead, `seeds` can specify the seed of each sample, or
    a `generator` can draw the seeds. `labels` are classes to cycle through, by name or number ("3", "0-9",
    ["cat", "dog"]), "all", or None for no class. `prompts` are prompts to cycle through; `text_model` is the location
    of their encoder, if it has moved since training. `guidance` is applied within `guidance_interval` in log-SNR, or
    everywhere if that is None. `sampler` is a sampler, or the name of one in configs/sampler. `batch` samples are
    computed at a time. `size` (of images and clips, in pixels), `seconds` (of sounds) and `frames` (of clips) choose
    another size than the model's own. `scalars` are values of the scalars that the model takes, in their units; the
    others have their mean in the training data. `condition` is the dense condition, for models that take one: a folder
    of media or one file, which the samples have in turn, or a tensor (conditions, channels, *grid or coarser),
    dimensionless, NaN where it is unknown; "none" draws without one.

    `initial` are media from which samples start: likewise a folder, a file or a tensor (media, channels, *grid), NaN
    where they lack values. `strength` is the fraction of the steps that is taken (see `multisagd.u_turn.vary`), 0.7 by
    default, or 1 if a part is `unknown`. That part, which is filled in, is a file as in `multisagd sample`, "missing",
    a box such as {"width": (8, 16)} in the units of the axes or a list of boxes, or a bool tensor, True for unknown
    values; all others are put back into the samples at the end, if `keep_known`.

    `calibration` is the number of samples by which the sampler is calibrated before (see `multisagd.calibration`), or
    None. `vocoder` is the folder of a run of experiment=audio_vocoder, or of an exported one, that turns log-mel
    spectrograms into sound in `vocoder_steps` steps, in place of the Griffin-Lim algorithm.
    """

    seed: int = 0
    seeds: Sequence[int] | None = None
    generator: torch.Generator | None = None
    labels: str | int | Sequence[str | int] | None = "all"
    prompts: str | Sequence[str] | None = None
    text_model: str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    sampler: str | Sampler = "dpm_solver_sde"
    spacing: Spacing | None = None
    batch: int = 64
    progress: bool = True
    size: int | tuple[int, int] | None = None
    seconds: float | None = None
    frames: int | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    condition: str | Path | Tensor | None = None
    initial: str | Path | Tensor | None = None
    strength: float | None = None
    unknown: Unknown | None = None
    keep_known: bool = True
    calibration: int | None = None
    vocoder: str | Path | None = None
    vocoder_steps: int = 20

    @property
    def sizes(self) -> dict[str, Any]:
        """The size of the samples, as arguments of `Modality.at`; empty for the model's own size."""
        return given_sizes(self.size, self.seconds, self.frames)

    def media(self, count: int) -> MediaOptions:
        """Return the media of `count` samples."""
        own_labels = isinstance(self.labels, str) and self.labels == "all"
        return MediaOptions(
            self.initial, self.condition, self.strength, self.unknown, self.keep_known, count, self.seed, own_labels
        )  # fmt: skip

    def seeds_of(self, count: int) -> list[int]:
        """Return the seed of each sample: `seeds` if given, else `count` seeds from the generator or from `seed`."""
        if self.seeds is not None:
            return [int(each) for each in self.seeds]
        if self.generator is not None:
            device = self.generator.device
            return [int(each) for each in torch.randint(2**32, (count,), generator=self.generator, device=device)]
        return derive_many(self.seed, "sample", 0, range(count))


@dataclass(repr=False)
class Pipeline:
    """A trained model for sampling; create it with `from_pretrained`."""

    model: TrainedModel
    which: Which | Width
    denoiser: Denoiser
    assembly: Assembly
    builder: Builder
    runtime: Runtime
    folder: Path

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, device: str = "auto", weights: Which | None = None,
        allow_targets: Sequence[str] = (), precision: str = "float32", checkpoint: Chosen = None,
        ema: Width | None = None,
    ) -> Self:  # fmt: skip
        """Load an exported model or a run, from a folder or from the Hub (by name, and optionally `revision`).

        `weights` selects the averaged weights of a run ("ema", the default) or its last ones ("network"), and `ema` an
        average of another width, if the run was trained with `training.averages`. `checkpoint` is a number of samples
        seen, or "best" for the lowest score; by default, the last one is loaded. `allow_targets` are additional
        packages that the model's configuration may name.

        Raises:
            RecipeError: If the model does not exist, cannot be fetched, read or built, or names a package that is not
                allowed.
        """
        builder = Builder(tuple(allow_targets))
        engine = builder.settings(EngineSettings, {"device": device, "precision": precision}, "engine")
        runtime = Runtime.start(engine)
        folder = local_folder(name, FILES, revision)
        model = open_model(folder, builder, checkpoint=checkpoint)
        which = weights or model.exported or "ema"
        if ema is not None:
            with as_recipe_error(ValueError):
                which = chosen_weights(weights or "ema", ema)
        assembly = model.assembly(builder)
        denoiser = trained_denoiser(assembly, model.weights(which, assembly.check_weight_shapes), runtime)
        return cls(model, which, denoiser, assembly, builder, runtime, folder)

    @property
    def modality(self) -> Modality:
        """The modality of the samples, at the size of the training data."""
        return self.assembly.modality

    def __repr__(self) -> str:
        """Return a description of the model in a few lines, without its weights."""
        classes, text = self.model.metadata["classes"], self.model.metadata.get("text")
        condition = f"{len(classes)} classes" if classes else "captions" if text else "no condition"
        condition = condition if self.model.dense is None else f"{condition}, {self.model.dense} dense channels"
        count = sum(each.numel() for each in self.denoiser.parameters())
        network, schedule = (type(each).__name__ for each in (self.denoiser.network, self.denoiser.process.schedule))
        return (
            f"{type(self).__name__}({str(self.folder)!r}, weights={self.which!r}\n"
            f"  {network} of {count:,} parameters, {schedule}, on {self.runtime.device}\n"
            f"  {type(self.modality).__name__} of {_sizes(self.modality)}, {condition})"
        )

    @torch.no_grad()
    def __call__(self, count: int = 4, steps: int = 20, **options: Any) -> PipelineOutput:
        """Draw `count` samples in `steps` sampler steps; `options` are the fields of `SamplingOptions`.

        Raises:
            RecipeError: If the condition is unknown, guidance is requested without a condition, the model has no such
                size, or the sampler is unknown or does not support the model's process.
            TypeError: If an option does not exist.
        """
        settings = SamplingOptions(**options)
        seeds = settings.seeds_of(count)
        if not seeds or steps < 1 or settings.batch < 1:
            raise RecipeError(
                f"count, steps and batch must be at least 1, got {len(seeds)}, {steps} and {settings.batch}"
            )
        if settings.prompts is not None and self.model.metadata.get("text") is None:
            raise RecipeError("prompts: this model was trained without text; remove them")
        given = [settings.prompts] if isinstance(settings.prompts, str) else list(settings.prompts or ())
        prompts = [given[slot % len(given)] for slot in range(len(seeds))] if given else None
        scale = {"scale": settings.guidance, "interval": settings.guidance_interval}
        guidance = self.builder.settings(Guidance, scale, "guidance")
        modality = vocoded(
            chosen_modality(self.assembly, settings.sizes), self._vocoder(settings), self.builder, self.runtime
        )
        media = sampling_media(settings.media(len(seeds)), self.model, self.assembly, modality)
        dense = media.dense
        labels = checked_labels(self.model, len(seeds), settings.labels, prompts, guidance, dense)
        condition = chosen_condition(
            self.model,
            len(seeds),
            labels,
            prompts,
            settings.text_model,
            settings.scalars,
            self.builder,
            self.runtime.device,
        )
        sampler = self._sampler(settings.sampler, self.model.statistics)
        check_sampler(sampler, self.denoiser.process)
        ends = run_ends(self.denoiser.process, self.model.config, settings.spacing)
        request = SamplingRequest(sampler, steps, settings.spacing, ends, guidance=guidance, batch=settings.batch)
        shape, known = modality.tensor_shape, dense.joined(condition.input)
        request = calibrated(
            settings.calibration, request, Requested(modality, media, known), self.denoiser, self.model, self.assembly,
            self.runtime, not settings.progress,
        )  # fmt: skip
        with Display("sampling", len(seeds), quiet=not settings.progress) as display:
            x0 = generate(self.denoiser, request, shape, seeds, known, self.runtime, display.update, media.start)
        x0 = media.finished(x0)
        classes = self.model.metadata["classes"]
        return PipelineOutput(
            x0, modality, seeds, condition.labels, condition.prompts, None if classes is None else tuple(classes)
        )

    def to(self, device: str) -> Self:
        """Move the model to a device and return the pipeline."""
        engine = EngineSettings(device=device, precision=self.runtime.settings.precision)
        self.runtime = Runtime.start(engine)
        self.denoiser.to(self.runtime.device)
        return self

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> None:
        """Write the model and its card as `multisagd export` does. The weights are read again from their source.

        Raises:
            RecipeError: If the folder has other contents, or the weights no longer exist.
            ValueError: If `license` is not an SPDX identifier.
        """
        check_license(license)
        out = Path(folder)
        check_replaceable(out, NOTES, "multisagd export", key="out")
        write_exported(self.model, self.builder, self.which, out, license)

    def push_to_hub(self, name: str, license: str | None = None, **options: Any) -> None:
        """Upload the model and its card to the repository `name` (owner/name), which is created if necessary.

        `options` are arguments of `HfApi.create_repo`. Requires huggingface_hub, and a login (`hf auth login`).
        """
        with importing("huggingface_hub", "uploading a model"):
            from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder, name.rsplit("/", 1)[-1])
            self.save_pretrained(named, license)
            HfApi().create_repo(name, exist_ok=True, **options)
            HfApi().upload_folder(repo_id=name, folder_path=named)

    def _sampler(self, sampler: str | Sampler, statistics: DataStatistics) -> Sampler:
        if not isinstance(sampler, str):
            return sampler
        node = configuration.load("sample", [f"sampler={sampler}", "run_dir=."])["sampler"]
        return self.builder.build(node, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]

    def _vocoder(self, options: SamplingOptions) -> VocoderOptions | None:
        if options.vocoder is None:
            return None
        sampler = partial(self._sampler, options.sampler)
        return VocoderOptions(Path(options.vocoder), sampler, options.vocoder_steps, options.seed)


def _sizes(modality: Modality) -> str:
    return " × ".join(map(str, modality.tensor_shape))
