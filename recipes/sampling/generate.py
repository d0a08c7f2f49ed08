"""Sampling requests, and the generation of samples during training and in all commands."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Modality
from modalities.derived_conditions import FirstFrames
from modalities.mel_condition import MelSpectrogram
from modalities.reading import UnreadableFilesError
from modalities.video import Video
from multisagd import Denoiser, Flat, Process, RestoringDenoiser
from multisagd.analysis.design import DesignedSteps, spectral_ends
from multisagd.condition import AnyCondition, batch_size, mapped, says_what_is_shown
from multisagd.finishing import finish, residual_power
from multisagd.guidance import ClassifierFree
from multisagd.mixing import Refinement, sample_refined
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, Spacing, time_steps
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.config.compose import Config
from recipes.data.dataset import build_data
from recipes.data.extents import FILES, Record
from recipes.data.order import Order
from recipes.data.parts import NOTHING_HELD_OUT, hold_out
from recipes.runs.assembly import Assembly, check_refinement, check_sampler
from recipes.runs.settings import Guidance, SampleSettings, TrainSettings, check_ends
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import gathered, is_first
from recipes.sampling.start import Start

NO_REFINEMENT = Refinement(Flat(), iterations=0)
HIDDEN = 0.05
"""Signal-to-noise ratio below which noise hides a frequency, and noise-to-signal ratio below which it is invisible."""
FAR = 2.0
"""Factor by which an axis may be longer or shorter than in training without a warning."""
RESIDUAL_EXAMPLES = 1000
"""Maximum number of held-out examples for measuring the power that the estimate of a restored band lacks."""
log = logging.getLogger("multisagd")


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """How to draw samples: `batch` at a time, in `steps` sampler steps or at the given `times`.

    `residual` is the power that a restoring denoiser's estimate of the restored band lacks. With it, the band is
    sampled; without it, the band is the conditional mean.
    """

    sampler: Sampler
    steps: int = 20
    spacing: Spacing | None = None
    ends: tuple[float, float] | None = None
    times: Tensor | None = None
    guidance: Guidance = field(default_factory=Guidance)
    refinement: Refinement = NO_REFINEMENT
    residual: Tensor | None = None
    batch: int = 64


def chosen_modality(assembly: Assembly, sizes: Mapping[str, Any]) -> Modality:
    """Return the modality of samples of the requested `sizes` (as in `Modality.at`), by default the run's own.

    A warning is logged if an axis is far longer or shorter than in training, except for vocoders.

    Raises:
        RecipeError: If the modality does not have such a size, or a model of corrupted data would need another grid.
    """
    trained = assembly.modality
    if not sizes:
        return trained
    with as_recipe_error(ValueError):
        modality = trained.at(**sizes)
    grid, derived = modality.grid(), assembly.derived_condition()
    if assembly.corruption() is not None and grid != trained.grid():
        raise RecipeError(
            f"{' and '.join(sizes)}: a run on corrupted data is sampled at its own size only, because the corruption "
            "is known on one grid: remove the size"
        )
    if isinstance(derived, MelSpectrogram):
        return modality  # a spectrogram states the layout at any length
    continued = isinstance(trained, Audio | Video) and sizes.keys() <= {"seconds", "frames"}
    continued = continued and (assembly.dense is None or isinstance(derived, FirstFrames))
    hint = "; add overlap=FRACTION to draw them in windows of the length of training" * continued
    for axis, *sides in zip(grid.axes, *(each.grid().shape for each in trained.in_buckets()), strict=True):
        if is_first() and not min(sides) / FAR <= axis.size <= FAR * max(sides):
            log.warning(
                "%s has %d points, but %s in training: far from these sizes, samples may repeat themselves or lack an "
                "overall layout%s",
                axis.name, axis.size, " to ".join(map(str, sorted({min(sides), max(sides)}))),
                hint * (axis.size > max(sides)),
            )  # fmt: skip
    return modality


def sampling_request(
    settings: SampleSettings, denoiser: Denoiser, run_config: Config, assembly: Assembly, runtime: Runtime
) -> SamplingRequest:
    """Return the sampling request for these settings and a run with this configuration.

    Raises:
        RecipeError: If the sampler or refinement does not support the run's process, or the steps are invalid.
    """
    process, builder = denoiser.process, assembly.builder
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=assembly.statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    refinement = builder.build(settings.refine, Refinement, "refine")
    check_refinement(refinement, process)
    designed = designed_steps(settings.steps_file, process)
    times = None if designed is None else designed.times(process.schedule)
    if designed is not None and designed.sampler != str(sampler) and is_first():
        log.warning(
            "steps_file: these steps were designed for %.80r, not for %s: use the same sampler in `design` and here",
            designed.sampler, sampler,
        )  # fmt: skip
    ends = settings.ends or run_ends(process, run_config, settings.spacing)
    request = SamplingRequest(
        sampler, settings.steps, settings.spacing, ends, times, settings.guidance, refinement, batch=settings.batch
    )
    with as_recipe_error(ValueError):
        times = step_times(denoiser, request)
    return replace(request, times=times, residual=band_residual(denoiser, settings, run_config, assembly, runtime))


def run_ends(process: Process, config: Config, spacing: Spacing | None = None) -> tuple[float, float] | None:
    """Return `sampling.ends` of a run's configuration, if its noise follows conditions and steps are in log-SNR.

    The ends for other noise follow from the spectra of data and noise.
    """
    ends = (config.get("sampling") or {}).get("ends")
    if not process.covariance.item_wise or ends is None or spacing == "time":
        return None
    low, high = ends
    return float(low), float(high)


def step_times(denoiser: Denoiser, request: SamplingRequest) -> Tensor:
    """Return the decreasing times of a request's steps, `(steps + 1,)`.

    Steps in log-SNR lie between the `ends`, by default those outside which noise hides the data or is invisible.

    Raises:
        ValueError: If the ends are outside the range of the schedule, or given for steps that are even in time.
    """
    process, ends = denoiser.process, request.ends
    if request.times is not None:
        return request.times
    scalar = process.modulation is None and process.covariance.diagonal
    even = scalar or process.covariance.item_wise
    spacing = request.spacing or ("log_snr" if even and denoiser.statistics is not None else "time")
    check_ends(ends, spacing)
    if spacing == "time":
        return time_steps(process.schedule, request.steps)
    if ends is None and scalar and denoiser.statistics is not None:
        ends = spectral_ends(denoiser.statistics, process, HIDDEN)
    return time_steps(process.schedule, request.steps, spacing, ends=ends)


def designed_steps(path: Path | None, process: Process) -> DesignedSteps | None:
    """Return the designed steps in a file, or None if `path` is None.

    Raises RecipeError if they are invalid or outside the process's schedule.
    """
    if path is None:
        return None
    with as_recipe_error((OSError, ValueError), "steps_file: "):
        designed = DesignedSteps.load(path)
        designed.times(process.schedule)
    return designed


def band_residual(
    denoiser: Denoiser, settings: SampleSettings, run_config: Config, assembly: Assembly, runtime: Runtime
) -> Tensor | None:  # fmt: skip
    """Return the power that the estimate of a restored band lacks, measured on the run's data, or None with band=mean.

    Raises:
        RecipeError: If band=sample but the run restores no band, or its data cannot be read.
    """
    if settings.band == "mean":
        return None
    if not isinstance(denoiser, RestoringDenoiser):
        raise RecipeError(
            "band=sample requires a run that restores a corrupted band (denoiser=restoring): set band=mean"
        )
    if assembly.context is not None:
        raise RecipeError("band=sample does not support runs trained on captions: set band=mean")
    builder = assembly.builder
    run = builder.settings(TrainSettings, run_config, "")
    # Measured on held-out data, because the estimate is better on training data.
    known, other = (Record(settings.run_dir / name) for name in FILES)
    dataset = build_data(run.data, run.corruption, run.seed, assembly.modality, builder, known)
    held_out = hold_out(dataset, run, builder, other).held_out
    if held_out is None:
        raise RecipeError(f"band=sample: {NOTHING_HELD_OUT}; or set band=mean")
    indices = Order(len(held_out), derive(settings.seed, "residual")).indices(0, min(RESIDUAL_EXAMPLES, len(held_out)))

    held_out = assembly.conditioned(held_out)

    def batches() -> Iterator[tuple[Tensor, AnyCondition]]:
        for start in range(0, len(indices), settings.batch):
            batch = held_out.batch(indices[start : start + settings.batch])
            if batch.mask is not None and not bool(batch.mask.all()):
                raise RecipeError("band=sample cannot measure padded data: set band=mean")
            yield runtime.put(batch.x0), mapped(batch.condition(assembly.classes is not None), runtime.put)

    with as_recipe_error(UnreadableFilesError):
        return residual_power(denoiser, batches(), settings.seed)


@torch.no_grad()
def generate(
    denoiser: Denoiser, request: SamplingRequest, shape: Sequence[int], seeds: Sequence[int],
    condition: AnyCondition, runtime: Runtime, report: Callable[[int], None] | None = None, start: Start | None = None,
) -> Tensor:  # fmt: skip
    """Return one sample per seed, `(len(seeds), *shape)` float32 on the CPU, `shape` being (channels, *grid).

    `condition` is one class number per seed, int64 `(len(seeds),)`, or text embeddings `(len(seeds), tokens, width)`,
    or a `Condition` of these and scalars; None means no condition. Samples of a restoring denoiser are completed by
    `multisagd.finishing`. `report` is called with the number of samples drawn so far. Each rank draws a part of the
    samples, and every rank returns all of them. With a `start`, samples begin at its media, without
    refinement.

    Raises:
        ValueError: If the number of conditions differs from the number of seeds.
        RecipeError: If the settings of the process or the sampler are invalid.
    """
    if (given := batch_size(condition)) not in (None, len(seeds)):
        raise ValueError(f"expected one condition for each of {len(seeds)} seeds, got {given} conditions")
    # All ranks draw the same number, because gathering sharded weights is collective; the surplus is discarded.
    per_rank = -(-len(seeds) // runtime.process.world)
    own_indices = [
        min(index, len(seeds) - 1)
        for index in range(runtime.process.rank * per_rank, (runtime.process.rank + 1) * per_rank)
    ]
    with as_recipe_error(ValueError):
        times = step_times(denoiser, request)
    parts = []
    for first in range(0, per_rank, request.batch):
        indices = own_indices[first : first + request.batch]
        batch_seeds = [seeds[index] for index in indices]
        own = mapped(condition, itemgetter(indices))
        part = mapped(own, runtime.put)
        try:
            guided: AnyDenoiser = denoiser.bound(own, (len(indices), *shape))
            if request.guidance.scale != 1.0 and says_what_is_shown(condition):
                guided = ClassifierFree(guided, request.guidance.scale, request.guidance.interval)
            with runtime.autocast():
                if start is not None:
                    x0 = start.taken(indices, runtime.put).draw(guided, request.sampler, times, batch_seeds, part)
                else:
                    x0 = sample_refined(
                        guided, request.sampler, (len(indices), *shape), request.steps, batch_seeds, request.refinement,
                        condition=part, spacing=request.spacing or "time", times=times,
                    )  # fmt: skip
                if isinstance(denoiser, RestoringDenoiser):
                    x0 = finish(denoiser, x0, part, request.residual, batch_seeds)
        except (ValueError, ArithmeticError) as error:  # invalid settings of the process or the sampler
            raise RecipeError(f"sampling failed with these settings: {error}") from error
        parts.append(x0.float().cpu())
        if report is not None:
            report(min(len(seeds), (first + len(indices)) * runtime.process.world))
    return torch.cat(gathered(torch.cat(parts)))[: len(seeds)]
