"""What a training is made of before its first step: the job, its data, its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.wrapped import Restored
from multisagd import Corruption, DataStatistics, Denoiser, GaussianRestoration, Process
from multisagd.ema import PowerEMA
from multisagd.samplers import Sampler
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data import contents
from recipes.data.dataset import build_data, colour_note, fit_restoration, held_out_note, hold_out, measure
from recipes.runs import record
from recipes.runs.assembly import Assembly, build_corruption, check_sampler, process_notes
from recipes.runs.checkpoint_files import State
from recipes.runs.lock import Hold
from recipes.runs.model import check_encoder
from recipes.runs.run import Run
from recipes.runs.settings import CorruptionOptions, ModelSettings, TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import from_first, wait_patiently
from recipes.runtime.flops import training_flops
from recipes.sampling.request import SamplingRequest
from recipes.training.conditioning import Condition, check_guidance, learned_condition
from recipes.training.initial import load_initial
from recipes.training.learner import Learner


@dataclass(frozen=True, eq=False)
class Job:
    """One start of a training: what is asked for, where it runs, and the folder that its first process holds."""

    config: Config
    settings: TrainSettings
    builder: Builder
    runtime: Runtime
    hold: Hold | None

    @property
    def model(self) -> ModelSettings:
        """The keys of the configuration that the model is built from."""
        return ModelSettings.of(self.config, self.builder)

    @property
    def run(self) -> Run:
        """The run's folder, as it is now."""
        return Run(self.settings.run_dir)

    def check_folder(self) -> None:
        """Check, in the process that holds it, that the folder is still there.

        Raises:
            VanishedError: if it is not.
        """
        if self.hold is not None:
            self.hold.check()


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of a run: all of them, the parts that are trained on and held out, and what is known of them.

    `training` and `held_out` come with what the network is conditioned on. `restoration` is what restores corrupted
    data, if it was measured now. `shown` are the conditions of the pictures drawn while training, `texts` what they
    say if they are texts.
    """

    modality: Modality
    dataset: Dataset
    training: Dataset
    held_out: Dataset | None
    condition: Condition
    statistics: DataStatistics
    corruption: Corruption | None
    restoration: GaussianRestoration | None
    shown: Tensor | None
    texts: list[str] | None
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one datum, (channels, *grid)."""
        return (self.modality.channels, *self.modality.grid().shape)


def prepare_data(job: Job, begun: bool) -> TrainingData:
    """Build the data of a run, and measure them or, once it has `begun`, read what was measured.

    Raises:
        RecipeError: for data that cannot be read, or are not those that the run began with, and for settings of the
            process that make no sense with them, before anything is measured.
    """
    settings, builder, runtime, run = job.settings, job.builder, job.runtime, job.run
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset = build_data(settings.data, settings.corruption, settings.seed, modality, builder)
    if begun:
        record.check_data(run, dataset)
    changed = contents.changes(run.folder, dataset) if begun and runtime.main else None
    wait_patiently()
    training, held_out = hold_out(dataset, settings)
    corruption = _corruption(job, modality, begun)
    if not begun:
        # A mistake in them is told before the data are measured, which takes minutes.
        Assembly(job.model, builder, modality, placeholder_statistics(modality), None, None, corruption).process()
    options, restoration = CorruptionOptions.of(settings.corruption, builder), None
    if corruption is not None and options.restored:
        restoration = None if begun else fit_restoration(training, corruption, options, settings.seed)
        fitted = restoration or run.restoration()
        dataset = Restored(dataset, fitted, settings.seed, options.restored == "sample")
        training, held_out = hold_out(dataset, settings)
    condition = learned_condition(settings, training, builder, runtime.device)
    check_guidance(settings.guidance, settings.training, condition)
    if begun:
        check_encoder(condition.encoder, run.facts, run.folder)
    learned, validated = condition.embedded(training), None if held_out is None else condition.embedded(held_out)
    statistics = run.statistics if begun else measured(training, settings, runtime)
    shown, texts = condition.shown(training if held_out is None else held_out, settings.sampling.count)
    grey = colour_note(dataset) if runtime.main and not begun else None
    notes = [changed, held_out_note(training, held_out, settings), grey, *condition.notes()]
    return TrainingData(
        modality, dataset, learned, validated, condition, statistics, corruption, restoration, shown, texts,
        tuple(filter(None, notes)),
    )  # fmt: skip


def _corruption(job: Job, modality: Modality, begun: bool) -> Corruption | None:
    """Return what corrupts the data: as the run has kept it, or as the configuration says."""
    group = job.settings.corruption
    kept = job.run.corruption(modality.grid(), group) if begun else None
    return kept or build_corruption(group, modality, job.builder)


def placeholder_statistics(modality: Modality) -> DataStatistics:
    """Return what stands for statistics of white data until they are measured."""
    grid = modality.grid()
    mean, power = (
        torch.ones(modality.channels, *shape, dtype=torch.float64) for shape in (grid.shape, grid.half_shape)
    )
    return DataStatistics(mean, power, grid, 1)


def measured(dataset: Dataset, settings: TrainSettings, runtime: Runtime) -> DataStatistics:
    """Measure the data on the first rank, for all."""
    found = measure(dataset, settings) if runtime.main else placeholder_statistics(dataset.modality)
    wait_patiently()
    count = torch.tensor(found.count)
    for tensor in (found.mean, found.power, count):
        from_first(tensor)
    return DataStatistics(found.mean, found.power, found.grid, int(count))


@dataclass(frozen=True, eq=False)
class TrainingModel:
    """The model of a run: the `learner` trains its network, `averaged` is the denoiser of the averaged weights.

    `request` is how pictures are drawn while training. `initial` says where the first weights came from, None if they
    are random. `position` is that of the metrics at the state that training continues from. `flops` are the operations
    of a training step per sample, None if they cannot be counted.
    """

    process: Process
    learner: Learner
    averaged: Denoiser
    request: SamplingRequest
    initial: dict[str, Any] | None
    position: int
    flops: int | None

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.learner.network.parameters())


def prepare_model(job: Job, data: TrainingData, state: State | None) -> TrainingModel:
    """Build the model of a run, with its first weights or those of a checkpoint's state.

    Raises:
        RecipeError: for parts that do not fit each other or the data, and weights that do not fit the network.
    """
    settings, builder, runtime, condition = job.settings, job.builder, job.runtime, data.condition
    assembly = Assembly(
        job.model, builder, data.modality, data.statistics, condition.classes, condition.width, data.corruption
    )
    process = assembly.process().to(runtime.device, runtime.dtype)
    network = assembly.network()
    initial = None if state is None else job.run.facts.get("initial")
    if state is None and settings.training.initial is not None:
        initial = load_initial(network, settings.training.initial, builder)
    network.to(runtime.device, runtime.dtype)
    average = PowerEMA(network, sigma_rel=settings.training.ema)
    flops = training_flops(network, data.shape)
    runtime.sharded(average.module)
    spread = runtime.spread(network)
    denoiser = assembly.denoiser(runtime.compiled(spread), process)
    null_label = None if condition.classes is None else len(condition.classes)
    learner = Learner(denoiser, network, spread, average, settings, runtime, null_label)
    averaged = assembly.denoiser(average.module, process).eval()
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=data.statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    drawn = settings.sampling
    request = SamplingRequest(sampler, drawn.steps, drawn.spacing, guidance=settings.guidance)
    position = learner.restore(state) if state is not None else 0
    return TrainingModel(process, learner, averaged, request, initial, position, flops)


def doubts(model: TrainingModel, data: TrainingData) -> list[str]:
    """Return what is to be said before the first step of data, condition and process."""
    return [*data.notes, *process_notes(model.process, model.learner.denoiser, data.statistics)]
