"""Set up training: the data, the condition, the model and its initial weights."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalities.base import Dataset, Modality
from modalities.buckets import bucketed
from modalities.forecasts import States
from modalities.wrapped import Restored
from multisagd import (
    Corruption,
    DataStatistics,
    Denoiser,
    GaussianRestoration,
    OctaveTimes,
    PerFrequency,
    Process,
)
from multisagd.analysis.octaves import octave_log_snrs
from multisagd.channel_covariance import check_unmixed
from multisagd.condition import AnyCondition
from multisagd.cross_spectra import check_cross_size
from multisagd.ema import PowerEMA
from multisagd.networks.cost import training_flops
from multisagd.samplers import Sampler
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.untrusted import read_header, read_tensors
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data import contents, extents
from recipes.data.dataset import build_data, colour_note, fit_restoration, measure, needs_cross
from recipes.data.parts import Parts, held_out_note, hold_out, validated
from recipes.data.whitened import noise_notes
from recipes.runs.assembly import Assembly, build_corruption, check_sampler, process_notes
from recipes.runs.checkpoint import Shapes, State
from recipes.runs.lock import RunLock
from recipes.runs.model import check_encoder, open_model
from recipes.runs.run import Run
from recipes.runs.settings import CorruptionOptions, ModelSettings, TrainSettings, average_part
from recipes.runs.state import load_module, mismatch, shapes
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import broadcast_from_rank0, long_barrier
from recipes.sampling.generate import SamplingRequest, step_times
from recipes.training.conditioning import LearnedCondition, check_scalars, learned_condition, measured_scalars
from recipes.training.cost import Cost, cost_lines, training_cost
from recipes.training.learner import Learner
from recipes.training.selection import check_score

INITIAL = "training.initial"


@dataclass(frozen=True, eq=False)
class Job:
    """One start of a training run: configuration, runtime, and the folder's lock, which the first process holds."""

    config: Config
    settings: TrainSettings
    builder: Builder
    runtime: Runtime
    run_lock: RunLock | None

    def check_folder(self) -> None:
        """In the process that has locked the run's folder, raise VanishedError if the folder has vanished."""
        if self.run_lock is not None:
            self.run_lock.check()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of a run: the dataset, its parts, and what was measured on them.

    `training` and `held_out` are two of the parts, with the condition. `restoration` restores corrupted data; it is
    None if it is not used or was measured in an earlier start. `shown` contains the conditions of the samples drawn
    during training, and `captions` their captions, if any. `notes` are printed before the first step.
    """

    modality: Modality
    dataset: Dataset
    parts: Parts
    training: Dataset
    held_out: Dataset | None
    condition: LearnedCondition
    statistics: DataStatistics
    corruption: Corruption | None
    restoration: GaussianRestoration | None
    shown: AnyCondition
    captions: list[str] | None
    notes: tuple[str, ...]

    @cached_property
    def buckets(self) -> list[Dataset]:
        """The training examples of each size; one dataset if there are no buckets."""
        return bucketed(self.training)


def prepare_data(job: Job, begun: bool) -> TrainingData:
    """Build the data of a run and measure them; if the run has already `begun`, read its measurements instead.

    Raises:
        RecipeError: If the data are unreadable or have changed since the run began, or if the settings of the
            process are invalid for these data; the settings are checked before anything is measured.
    """
    settings, builder, runtime, run = job.settings, job.builder, job.runtime, Run(job.settings.run_dir)
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    known, other = (extents.Record(run.folder / name if begun else None, shared=True) for name in extents.FILES)
    dataset = build_data(settings.data, settings.corruption, settings.seed, modality, builder, known)
    if begun:
        run.check_data(dataset)
    parts = hold_out(dataset, settings, builder, other)
    if begun:
        run.check_data(parts.separate, "validation")
    changed = contents.changes(run.folder, *parts.stored_in(dataset)) if begun and runtime.main else None
    long_barrier()
    check_score(settings, parts.training, parts.held_out)
    corruption = run.corruption(modality.grid(), settings.corruption) if begun else None
    corruption = corruption or build_corruption(settings.corruption, modality, builder)
    process = None if begun else checked_process(job, modality, corruption)
    options, restoration = CorruptionOptions.of(settings.corruption, builder), None
    if corruption is not None and options.restored:
        restoration = None if begun else fit_restoration(parts.training, corruption, options, settings.seed)
        fitted = restoration or run.restoration()
        dataset = Restored(dataset, fitted, settings.seed, options.restored == "sample")
        parts = hold_out(dataset, settings, builder)
    training, held_out = parts.training, parts.held_out
    condition = learned_condition(settings, training, builder, runtime.device)
    if begun:
        check_encoder(condition.encoder, run.metadata, run.folder)
    check_scalars(settings.training.scalars, training)
    scalars = run.scalars if begun else measured_scalars(training, settings, runtime)
    condition = replace(condition, scalars=scalars)
    learned = condition.embedded(training)
    measured_on = None if held_out is None else condition.embedded(validated(held_out, settings))
    shown, captions = condition.shown(training if held_out is None else held_out, settings.sampling.count)
    if process is not None:
        with as_recipe_error(ValueError, "covariance: "):  # if the noise cannot be computed from the conditions
            process.bound(shown, (settings.sampling.count, *modality.tensor_shape))
    statistics = run.statistics if begun else measured(training, settings, runtime)
    grey = colour_note(training) if runtime.main and not begun else None
    notes = (changed, held_out_note(parts, settings), grey, condition.note)
    return TrainingData(
        modality, dataset, parts, learned, measured_on, condition, statistics, corruption, restoration, shown, captions,
        tuple(filter(None, notes)),
    )  # fmt: skip


def checked_process(job: Job, modality: Modality, corruption: Corruption | None) -> Process:
    """Return the process of a run before its data are measured, which takes minutes, to report errors in the settings.

    Raises RecipeError if settings are invalid, or noise that follows conditions and another setting exclude each other.
    """
    settings, builder = job.settings, job.builder
    placeholder = placeholder_statistics(modality, cross=needs_cross(settings.spectrum))
    assembly = Assembly(ModelSettings.of(job.config, builder), builder, modality, placeholder, None, None, corruption)
    process = assembly.process()
    if process.covariance.item_wise:
        assembly.denoiser(nn.Identity(), process)
        check_sampler(builder.build(settings.sampler, Sampler, "sampler", statistics=placeholder), process)  # type: ignore[type-abstract]
        loss = settings.loss
        if isinstance(loss.weighting, PerFrequency) or loss.metric == "whitened":
            with as_recipe_error(ValueError, "loss: "):
                process.covariance.require_diagonal("a loss per frequency")
        with_times(settings, placeholder, process)
    return process


def placeholder_statistics(modality: Modality, *, cross: bool = False) -> DataStatistics:
    """Return placeholder statistics (of white data), which measured statistics replace later.

    Raises:
        RecipeError: If they are to have a cross power that would not fit into memory.
    """
    grid, channels = modality.grid(), modality.channels
    mean = torch.ones(channels, *grid.shape, dtype=torch.float64)
    power = torch.ones(channels, *grid.half_shape, dtype=torch.float64)
    products = None
    if cross:
        with as_recipe_error(ValueError, "spectrum.channels: "):
            check_cross_size(channels, grid)
        unit = torch.eye(channels, dtype=torch.complex128).reshape(channels, channels, *(1,) * grid.dimensions)
        products = unit.expand(channels, *power.shape).contiguous()
    return DataStatistics(mean, power, grid, 1, products)


def measured(dataset: Dataset, settings: TrainSettings, runtime: Runtime) -> DataStatistics:
    """Return the statistics of the data, measured on rank 0 and broadcast to all ranks."""
    cross = needs_cross(settings.spectrum)
    main = runtime.main
    statistics = measure(dataset, settings) if main else placeholder_statistics(dataset.modality, cross=cross)
    long_barrier()
    count = torch.tensor(statistics.count)
    products = None if statistics.cross is None else torch.view_as_real(statistics.cross)
    for tensor in (statistics.mean, statistics.power, count, *(() if products is None else (products,))):
        broadcast_from_rank0(tensor)
    return replace(statistics, count=int(count))


@dataclass(frozen=True, eq=False)
class TrainingModel:
    """The model of a run: `learner` trains its network, and `averaged` is the denoiser with averaged weights.

    `request` defines how samples are drawn during training. `initial` is the source of the initial weights, or None
    if they are random. `position` is the position in the metrics file from which training continues. `flops` is the
    number of operations for one sample in a training step, or None if unknown. `cost` is the memory and disk space that
    training needs.
    """

    learner: Learner
    averaged: Denoiser
    request: SamplingRequest
    initial: dict[str, Any] | None
    position: int
    flops: int | None
    cost: Cost

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.learner.network.parameters())


def prepare_model(job: Job, data: TrainingData, state: State | None) -> TrainingModel:
    """Build the model of a run, with initial weights or with the state of a checkpoint.

    Raises:
        RecipeError: If parts are incompatible with each other or with the data, or weights do not match the network.
    """
    settings, builder, runtime = job.settings, job.builder, job.runtime
    classes, encoder = data.condition.classes, data.condition.encoder
    width = None if encoder is None else encoder.width
    described = ModelSettings.of(job.config, builder)
    assembly = Assembly(
        described, builder, data.modality, data.statistics, classes, width, data.corruption, data.condition.scalars,
        data.condition.dense,
    )  # fmt: skip
    process = assembly.process().to(runtime.device, runtime.dtype)
    network = assembly.network()
    initial = None if state is None else Run(settings.run_dir).metadata.get("initial")
    if state is None and settings.training.initial is not None:
        initial = load_initial(network, settings.training.initial, builder, settings.training.scalars)
    network.to(runtime.device, runtime.dtype)
    average = PowerEMA(network, sigma_rel=settings.training.ema)
    sizes = [part.modality.tensor_shape for part in data.buckets]
    flops = mean_flops(network, data.buckets)
    cost = training_cost(network, max(sizes, key=math.prod), settings, runtime, data.held_out is not None)
    widths = settings.training.averages.widths if settings.training.averages.snapshots else ()
    stored = {average_part(width): PowerEMA(network, sigma_rel=width) for width in widths}
    for each in (average, *stored.values()):
        runtime.sharded(each.module)
    parallel = runtime.parallelize(network)
    settings = with_times(settings, data.statistics, process)
    if isinstance(settings.loss.weighting, PerFrequency):
        with as_recipe_error(ValueError, "loss: "):
            process.covariance.require_diagonal("a weighting per frequency")
            check_unmixed(process.covariance, "a weighting per frequency")
    denoiser = assembly.denoiser(runtime.compiled(parallel, len(sizes)), process)
    null_label = None if classes is None else len(classes)
    learner = Learner(denoiser, network, parallel, average, settings, runtime, null_label, stored)
    averaged = assembly.denoiser(average.module, process).eval()
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=data.statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    sampling = settings.sampling
    request = SamplingRequest(sampler, sampling.steps, sampling.spacing, sampling.ends, guidance=settings.guidance)
    if settings.every.samples:
        with as_recipe_error(ValueError, "sampling: "):  # not only when the first samples are drawn
            step_times(averaged, request)
    position = learner.restore(state) if state is not None else 0
    return TrainingModel(learner, averaged, request, initial, position, flops, cost)


def with_times(settings: TrainSettings, statistics: DataStatistics, process: Process) -> TrainSettings:
    """Return settings whose training times know the log-SNRs of the data, if they need them.

    Raises:
        RecipeError: If the data or the noise have no such log-SNRs.
    """
    times = settings.loss.times
    if not isinstance(times, OctaveTimes) or times.log_snrs is not None:
        return settings
    with as_recipe_error(ValueError, "loss.times: "):
        times = times.of(octave_log_snrs(statistics, process))
    return replace(settings, loss=replace(settings.loss, times=times))


def mean_flops(network: nn.Module, buckets: Sequence[Dataset]) -> int | None:
    """Return the mean number of operations for one example in a training step, or None if it is unknown."""
    each = [training_flops(network, part.modality.tensor_shape) for part in buckets]
    known = [flops * len(part) for flops, part in zip(each, buckets, strict=True) if flops is not None]
    return None if len(known) < len(each) else round(sum(known) / sum(map(len, buckets)))


def introduction(job: Job, data: TrainingData, model: TrainingModel) -> Iterator[str]:
    """Yield lines that describe the training run, and notes about data, condition and process."""
    samples, training, names = model.learner.samples, data.training, data.training.classes
    again = f"continuing after {samples:,} samples; " if samples else ""
    condition = (
        "" if names is None else f" of {len(names)} classes ({', '.join(names[:10])}{', …' * (len(names) > 10)})"
    )
    if data.condition.encoder is not None:
        condition = f" with captions, encoded by {data.condition.encoder.name}"
    if data.condition.dense is not None:
        condition += f", each with a dense condition of {channels_in_words(data.condition.dense)}"
        known = training.condition_modality
        condition += f": {known}" if isinstance(known, States) else ""
    yield (
        f"{again}{len(training):,} examples{condition} ({data.parts}, statistics of {data.statistics.count:,}), "
        f"{model.parameters:,} parameters, on {job.runtime.describe()}"
    )
    if data.modality.buckets is not None:
        yield extents.buckets_in_words(training)
    yield from cost_lines(model.cost, job.settings, job.runtime)
    denoiser = model.learner.denoiser
    if note := model.learner.decay_note():
        yield f"note: {note}"
    main = job.runtime.main  # other processes print nothing
    followed = noise_notes(denoiser.process, training, job.settings.seed, job.runtime.put) if main else []
    for note in (*data.notes, *followed, *process_notes(denoiser.process, denoiser, data.statistics, data.modality)):
        yield f"note: {note}"


def channels_in_words(count: int) -> str:
    """Return a number of channels as text."""
    return "1 channel" if count == 1 else f"{count} channels"


def load_initial(network: nn.Module, source: Path, builder: Builder, scalars: Sequence[str] = ()) -> dict[str, Any]:
    """Load a network's initial weights from `source`, and return their path and SHA-256 for `run.json`.

    The source is read only when a run begins, so a run continues without it. It is a safetensors file with the
    network's parameter names, or the folder of a run (its averaged weights) or of an exported model (its weights).
    `scalars` are the names of those that the network takes.

    Raises:
        RecipeError: If the weights are missing, are unreadable, or do not match the network or its scalars.
    """
    expected = shapes(network.state_dict())

    def check(stored: Shapes) -> None:
        if different := mismatch(stored, expected):
            raise RecipeError(
                f"{INITIAL}={source} does not match the configured network: {different}. Configure the network that "
                "has these weights, with the same number of channels and classes (with training.conditional=false, "
                "it has no classes)"
            )

    try:
        if source.is_dir():
            model = open_model(source, builder)
            tensors = model.weights(model.exported or "ema", check).tensors
            if (own := [each.name for each in model.scalars]) != list(scalars):
                raise RecipeError(
                    f"{INITIAL}={source} was trained with training.scalars=[{','.join(own)}], but this run has "
                    f"[{','.join(scalars)}]: name the same scalars in the same order, because each has its own weights"
                )
        else:
            check({name: each.shape for name, each in read_header(source).items()})
            tensors = {name: tensor.float() for name, tensor in read_tensors(source).items()}
    except RecipeError as error:
        raise error if str(error).startswith(INITIAL) else RecipeError(f"{INITIAL}={source}: {error}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{INITIAL}={source} cannot be read ({error}): choose a safetensors file, an exported model or a run"
        ) from error
    load_module(network, tensors, INITIAL)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].detach().contiguous().cpu().numpy().tobytes())
    return {"from": str(source.absolute()), "sha256": digest.hexdigest()}
