"""Train a diffusion model: `multisagd train …`, the same as `python -m recipes.train …`.

The steps, each with the file that implements it (in recipes/):

    lock the run folder, and find the newest checkpoint                   runs/lock.py, runs/checkpoint.py
    build the dataset, hold some of it out, measure mean and spectrum     training/setup.py, data/parts.py
    build diffusion process, network and denoiser, load the checkpoint    training/setup.py, runs/assembly.py
    write config.yaml, run.json and statistics.safetensors                training/tracking.py
    for every batch                                                       training/loop.py
        load its examples ahead of time, in the order given by the seed   data/order.py
        draw diffusion times and noise; compute loss and gradients        training/learner.py
        take a step unless it is not finite; update the averaged weights  training/learner.py
        at the intervals of `every`:
            append to metrics.jsonl, TensorBoard, Weights & Biases        training/tracking.py
            save weights, their average, optimiser and samples seen       runs/checkpoint.py
            validate on held-out examples, save an image of samples       training/validation.py
            score the validation, keep the best checkpoint, end early     training/scores.py, training/selection.py
        after a signal, save and stop; after many steps that are not
        finite, return to the last checkpoint
    write the run as one HTML page                                        report.py

Progress is counted in samples seen. Data order, diffusion times, noise and dropout depend only on (seed, samples seen).
On a CPU, a run that was stopped and continued is therefore bit for bit the same as an uninterrupted one: weights,
averages, optimiser and metrics. Under torchrun, every batch is divided among the processes, and only the first process
writes files and prints.

Errors, each reported in one message without a traceback: unknown keys and choices, values of the wrong type, missing or
unreadable data, data or losses that are not finite, a run folder with a different configuration, unreadable
checkpoints.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from multisagd.libraries import failed_import
from recipes.base.commands import setting
from recipes.base.errors import Interrupted
from recipes.base.progress import Display
from recipes.base.signals import StopRequest
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.checkpoint import Checkpoints
from recipes.runs.lock import lock_run_on_first_rank
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import Rank, barrier, long_barrier, separate_group
from recipes.runtime.watchdog import Watchdog
from recipes.training.loop import Loop, Saver
from recipes.training.scores import prepare_score
from recipes.training.selection import Selection
from recipes.training.setup import Job, introduction, prepare_data, prepare_model
from recipes.training.tracking import (
    NullTracker,
    Tracker,
    ending,
    gather_unreadable,
    name_unreadable,
    recall_unreadable,
    write_record,
)


def train(config: Config) -> None:
    """Train the configured model, continuing from the last checkpoint in the run folder, if there is one.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
        Interrupted: After a stop request, once the state is saved.
        Ended: After a stop request before the first step, when there is nothing to save.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(TrainSettings, config, "")
    runtime = Runtime.start(settings.engine)
    runtime.share(settings.training.batch, settings.training.accumulation)
    run_dir = settings.run_dir
    with lock_run_on_first_rank(run_dir, runtime) as run_lock:
        job = Job(config, settings, builder, runtime, run_lock)
        group = separate_group(settings.engine.timeout)
        checkpoints = Checkpoints(run_dir / "checkpoints", settings.keep, settings.keep_every, group)
        state = checkpoints.latest()
        resuming = state is not None
        Run(run_dir).check_config(config, resuming)
        data = prepare_data(job, resuming)
        model = prepare_model(job, data, state)
        selection = Selection(settings, prepare_score(job, data, model))
        changed = selection.restore(state.record) if state is not None else None
        # From here on, files are written, and after the first step a signal saves a checkpoint before training ends.
        with StopRequest() as stop, ExitStack() as cleanup:
            if runtime.main:
                if resuming:
                    recall_unreadable(data, run_dir)
                cleanup.callback(name_unreadable, data, run_dir)
                write_record(job, data, model, checkpoints, resuming)
            long_barrier()
            seen = model.learner.samples
            tracking = (run_dir, settings.tracking, config, model.position, seen)
            tracker = Tracker(*tracking) if runtime.main else NullTracker()
            cleanup.callback(tracker.close)
            display = Display("training", settings.training.samples, seen, quiet=not runtime.main)
            cleanup.enter_context(display)
            saver = cleanup.enter_context(Saver(checkpoints, settings.engine.save_in_background))
            watchdog = cleanup.enter_context(Watchdog(runtime, seen))
            for line in (*introduction(job, data, model), *([f"note: {changed}"] if changed else [])):
                display.say(line)
            # For every batch: load it, take a step, and at the configured intervals log, save and validate.
            try:
                Loop(job, data, model, selection, saver, watchdog, tracker, display).run(stop)
            except Interrupted:  # after the same step in every process
                gather_unreadable(data)
                raise
            gather_unreadable(data)
            barrier()  # a process that ends early can break the connections of the others
            job.check_folder()
            if runtime.main:
                display.say(ending(run_dir, checkpoints.place(model.learner.samples), data))


def train_and_report(config: Config) -> None:
    """Train, and write the report of the run if `report` is set. An error in the report is only printed."""
    train(config)
    if config["report"] and Rank.from_environment().rank == 0:
        run_dir = Path(config["run_dir"])
        try:
            from recipes.report import ReportSettings, write_report

            path, _ = write_report(ReportSettings(run_dir, examples=1, allow_targets=tuple(config["allow_targets"])))
            print(f"Losses, samples and spectra are on one page: {path}")
        except Exception as error:  # training succeeded, and an error in the report must not hide that
            reason = failed_import(error) or error
            print(
                f"note: no report was written ({reason}); to try again: multisagd report {setting('run_dir', run_dir)}"
            )


main = command("train", train_and_report)

if __name__ == "__main__":
    sys.exit(main())
