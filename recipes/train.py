"""Train a diffusion model: `multisagd train …`, the same as `python -m recipes.train …`.

What it does, in order: build modality and data, hold some out; measure the data's mean and power spectrum; build
process, network and denoiser; go on from the newest checkpoint if there is one; learn; report; leave final samples. The
command then shows the run as one page, as recipes.report does.

Training time is counted in samples seen. Data order, times, noise and dropout are functions of (seed, samples seen), so
a run that was stopped and continued is, on a CPU, bit for bit the run that was not: weights, averages, optimiser and
metrics. Under torchrun several processes share every batch; the first alone writes and speaks. Features: gradient
accumulation and clipping, warm-up, mixed precision, compilation, weight averaging, weights of another run or of
diffusers to start from, classes or text as condition with dropout, validation by noise level and frequency band,
TensorBoard and Weights & Biases.

Errors, each in one message and without a traceback: unknown keys and choices, values of a wrong type, missing or
unreadable data, data or losses that are not finite, a run folder of another configuration, unreadable checkpoints.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

import torch

from modalities.base import Dataset, Modality
from multisagd import Corruption, DataStatistics
from multisagd.ema import PowerEMA
from multisagd.libraries import failed_import
from multisagd.samplers import Sampler
from multisagd.seeds import derive_many
from recipes.engine import contents
from recipes.engine.altered import Restored
from recipes.engine.announcing import ending, introduction, name_unreadable
from recipes.engine.assemble import Assembly, check_sampler
from recipes.engine.build import Builder
from recipes.engine.checkpoint import Checkpoints, SaveError
from recipes.engine.colour import colour_note
from recipes.engine.command import run_configured
from recipes.engine.condition import check_encoder, check_guidance, learned_condition
from recipes.engine.config import Config
from recipes.engine.corrupted import (
    build_corruption,
    build_data,
    fit_restoration,
    handling,
)
from recipes.engine.data import held_out_note, hold_out, measure, process_notes
from recipes.engine.distribution import Place, from_first, separate_group, wait_for_all, wait_patiently
from recipes.engine.errors import RecipeError
from recipes.engine.files import replace_file
from recipes.engine.flops import peak_flops, training_flops
from recipes.engine.initial import load_initial
from recipes.engine.interrupt import Ended, StopNow, StopRequest
from recipes.engine.learner import Learner
from recipes.engine.loop import Loop, crossed, stopped
from recipes.engine.monitor import Monitor
from recipes.engine.profiling import StepProfiler
from recipes.engine.progress import Display
from recipes.engine.runtime import Runtime
from recipes.engine.saving import Saver
from recipes.engine.settings import TrainSettings
from recipes.engine.tracking import Silence, Tracker
from recipes.engine.validation import validate
from recipes.engine.watchdog import Watchdog
from recipes.engine.words import setting
from recipes.runs import record
from recipes.runs.lock import Hold, check_shared, held
from recipes.runs.run import CORRUPTION, RESTORATION, Run
from recipes.sampling.generate import generate
from recipes.sampling.request import SamplingRequest
from recipes.sampling.sample_files import save_grid

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LINGERING = 20.0
"""Seconds that the processes of an attempt before this one may take to end after what started them is gone."""
log = logging.getLogger("multisagd")


def train(config: Config) -> None:
    """Train as the configuration says, from where the run folder's last checkpoint left off.

    Raises:
        RecipeError: for every mistake listed at the head of this file.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(TrainSettings, config, "")
    runtime = Runtime.start(settings.engine)
    runtime.share(settings.training.batch)
    patience = LINGERING if runtime.place.world > 1 else 0.0
    with held(settings.run_dir, patience) if runtime.main else nullcontext() as hold:
        wait_for_all()
        check_shared(settings.run_dir, patience)
        try:
            learn(config, builder, settings, runtime, hold)
        except Ended:
            if hold is not None and hold.new and not (settings.run_dir / "checkpoints").exists():
                shutil.rmtree(settings.run_dir)  # nothing was learned, and another command may take the name
            raise
        except (OSError, SaveError) as error:
            if hold is not None:
                hold.check()  # which says so if that is why
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise RecipeError(f"cannot write into {settings.run_dir} ({error}): make room") from error
            raise


def learn(config: Config, builder: Builder, settings: TrainSettings, runtime: Runtime, hold: Hold | None) -> None:
    """Train in a folder that the first process holds; see `train`."""
    run_dir, seed, every, timeout = settings.run_dir, settings.seed, settings.every, settings.engine.timeout

    # The past, if there is one.
    checkpoints = Checkpoints(run_dir / "checkpoints", settings.keep, settings.keep_every, separate_group(timeout))
    state = checkpoints.latest()
    run = Run(run_dir)
    record.check_run(run_dir, config, begun=state is not None)

    # Data.
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset = build_data(settings.data, settings.corruption, seed, modality, builder)
    if state is not None:
        record.check_data(run, dataset)
    changed = contents.changes(run_dir, dataset) if state is not None and runtime.main else None
    wait_patiently()
    training, held_out = hold_out(dataset, settings)
    wishes = handling(settings.corruption, builder)
    corruption = known_corruption(run, settings, modality, builder, begun=state is not None)
    if state is None:
        check_process(config, builder, modality, corruption)
    restoration = None
    if corruption is not None and wishes.restored:
        if state is None:
            restoration = fit_restoration(training, corruption, wishes, seed)
        dataset = Restored(dataset, restoration or run.restoration(), seed, wishes.restored == "sample")
        training, held_out = hold_out(dataset, settings)
    condition = learned_condition(settings, training, builder, runtime.device)
    check_guidance(settings.guidance, settings.training, condition)
    if state is not None:
        check_encoder(condition.encoder, run.facts, run_dir)
    told, told_held_out = condition.embedded(training), None if held_out is None else condition.embedded(held_out)
    statistics = measured(training, settings, runtime) if state is None else run.statistics
    slots = range(settings.sampling.count)
    shown, texts = condition.shown(training if held_out is None else held_out, len(slots))

    # Model.
    assembly = Assembly(config, builder, modality, statistics, condition.classes, condition.width, corruption)
    process = assembly.process().to(runtime.device, runtime.dtype)
    network = assembly.network()
    initial = None if state is None else run.facts.get("initial")
    if state is None and settings.training.initial is not None:
        initial = load_initial(network, settings.training.initial, builder)
    network.to(runtime.device, runtime.dtype)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    average = PowerEMA(network, sigma_rel=settings.training.ema)
    flops = training_flops(network, (modality.channels, *modality.grid().shape))
    runtime.sharded(average.module)
    spread = runtime.spread(network)
    denoiser = assembly.denoiser(runtime.compiled(spread), process)
    null_label = None if condition.classes is None else len(condition.classes)
    learner = Learner(denoiser, network, spread, average, settings, runtime, null_label)
    averaged = assembly.denoiser(average.module, process).eval()
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    request = SamplingRequest(sampler, settings.sampling.steps, settings.sampling.spacing, guidance=settings.guidance)
    position = learner.restore(state) if state is not None else 0

    def look() -> None:
        """Measure the averaged weights on held-out data, if there are any."""
        if told_held_out is None:
            return
        values = validate(
            averaged, told_held_out, statistics, settings.validation, settings.loss, runtime, seed,
            condition.learned, settings.training.batch,
        )  # fmt: skip
        tracker.metrics(learner.samples, "validation", values)
        display.say(f"{learner.samples:,} samples seen: validation loss {values['loss']:.4f}")

    def draw() -> None:
        """Save a picture of samples from the averaged weights, always from the same seeds."""
        path = run_dir / "samples" / f"{learner.samples:012d}.png"
        try:
            x0 = generate(
                averaged, request, (modality.channels, *modality.grid().shape), derive_many(seed, "sample", 0, slots),
                shown, runtime,
            )  # fmt: skip
            if runtime.main:
                save_grid(modality, [modality.decode(each) for each in x0], path, condition.names(shown))
        except (ValueError, OSError) as error:
            # A picture is not worth a training: early weights may well sample to infinity, or the disk be full.
            display.say(f"note: no samples after {learner.samples:,} samples seen: {error}")
            return
        display.say(f"{learner.samples:,} samples seen: samples in {path}")

    def report(final: bool = False) -> None:
        """Look and draw when it is time, or at last when it is not; no checkpoint counts the metrics of its state."""
        before = learner.samples - settings.training.batch
        if every.validation and crossed(before, learner.samples, every.validation) != final:
            look()
        if every.samples and crossed(before, learner.samples, every.samples) != final:
            check_folder()
            draw()

    def check_folder() -> None:
        if hold is not None:
            hold.check()

    # From here on the folder belongs to this run.
    peak = settings.engine.peak_flops or peak_flops(runtime.device, runtime.products)
    profiler = StepProfiler(run_dir / "profile", runtime.place.rank, runtime.device, settings.engine.profile)
    with StopRequest() as stop, ExitStack() as at_last:
        if runtime.main:
            at_last.callback(name_unreadable, dataset, run_dir)
            for path in checkpoints.set_aside(learner.samples):
                log.warning("%s is not gone on from: it is put aside, and removed once training has passed it", path)
            record.write_run(run_dir, config, statistics)
            if state is None:
                contents.keep(run_dir, dataset)
            if restoration is not None:
                replace_file(run_dir / RESTORATION, restoration.save)
            if corruption is not None and state is None:
                replace_file(run_dir / CORRUPTION, corruption.save)
            facts = condition.facts(texts) | {"parameters": parameters, "data": record.data_facts(dataset)}
            facts |= {"held_out": 0 if held_out is None else len(held_out)}
            facts |= {} if initial is None else {"initial": initial}
            record.note_start(run_dir, seed, learner.samples, runtime.describe(), facts)
        wait_patiently()
        with (
            closing(
                Tracker(run_dir, settings.tracking, config, position, learner.samples) if runtime.main else Silence()
            ) as tracker,
            Display("training", settings.training.samples, learner.samples, quiet=not runtime.main) as display,
            Saver(checkpoints, settings.engine.save_in_background) as saver,
            Watchdog(runtime.place, min(settings.engine.hang_report, timeout / 2), learner.samples) as watchdog,
        ):
            display.say(introduction(runtime, parameters, told, held_out, statistics.count, learner.samples))
            for note in [
                changed, held_out_note(training, held_out, settings),
                colour_note(dataset) if runtime.main and state is None else None,
                *condition.notes(), *process_notes(process, denoiser, statistics),
            ]:  # fmt: skip
                if note is not None:
                    display.say(f"note: {note}")
            # A state is saved before it is reported: of that which training continues from, and of the last, nothing
            # is lost by stopping within the report.
            try:
                with stop.hurried(bool(learner.samples) and runtime.place.world == 1):
                    if learner.samples:
                        report()  # cut off since, or it never came to be
                monitor = Monitor(runtime, spread, flops, peak)
                Loop(learner, told, saver, monitor, profiler, watchdog, tracker, display, report, check_folder).run(
                    stop
                )
                with stop.hurried(runtime.place.world == 1):
                    report(final=True)
            except StopNow:
                if not learner.samples:
                    raise Ended(stop.signal_number or 0) from None
                raise stopped(checkpoints.place(learner.samples), stop.signal_number) from None
            wait_for_all()  # a process that leaves earlier than the others may take their connections with it
            check_folder()
            if runtime.main:
                display.say(ending(run_dir, checkpoints.place(learner.samples), dataset))


def known_corruption(
    run: Run, settings: TrainSettings, modality: Modality, builder: Builder, begun: bool
) -> Corruption | None:
    """Return what corrupts the data: as the run has kept it, or as the configuration says.

    Raises:
        RecipeError: if it makes no sense, or what the run has kept is unreadable.
    """
    kept = run.corruption(modality.grid(), bool(settings.corruption.get("shared"))) if begun else None
    return kept or build_corruption(settings.corruption, modality, builder)


def check_process(config: Config, builder: Builder, modality: Modality, corruption: Corruption | None) -> None:
    """Refuse a spectrum, schedule or process that makes no sense before the data are measured, which takes minutes.

    Raises:
        RecipeError: as `Assembly.process`.
    """
    Assembly(config, builder, modality, blank(modality), None, None, corruption).process()


def blank(modality: Modality) -> DataStatistics:
    """Return what stands for statistics of white data until they are measured."""
    grid = modality.grid()
    mean, power = (
        torch.ones(modality.channels, *shape, dtype=torch.float64) for shape in (grid.shape, grid.half_shape)
    )
    return DataStatistics(mean, power, grid, 1)


def measured(dataset: Dataset, settings: TrainSettings, runtime: Runtime) -> DataStatistics:
    """Measure the data on the first rank, for all."""
    found = measure(dataset, settings) if runtime.main else blank(dataset.modality)
    wait_patiently()
    count = torch.tensor(found.count)
    for tensor in (found.mean, found.power, count):
        from_first(tensor)
    return DataStatistics(found.mean, found.power, found.grid, int(count))


def train_and_report(config: Config) -> None:
    """Train, and then show the run as one page, if the configuration says so; that can fail, and training has not."""
    train(config)
    if config["report"] and Place.of_environment().rank == 0:
        run_dir = Path(config["run_dir"])
        try:
            from recipes.report import ReportSettings, write_report

            path, _ = write_report(ReportSettings(run_dir, examples=1, allow_targets=tuple(config["allow_targets"])))
            print(f"Losses, samples and spectra on one page: {path}")
        except Exception as error:  # the run is there, and whatever goes wrong here must not count as its failure
            reason = failed_import(error) or error
            print(
                f"note: no report was written ({reason}); to try again: multisagd report {setting('run_dir', run_dir)}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("train", arguments, train_and_report)


if __name__ == "__main__":
    sys.exit(main())
