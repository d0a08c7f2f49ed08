"""The training loop: train, log, save checkpoints, report, and recover from divergence.

Checkpoints are saved by samples seen and, if those take long, by the first rank's clock. The result does not depend
on the clock: saving uses no random numbers, and training only returns to checkpoints saved by samples.

A report consists of validation and samples. The state is saved before a report, because the report may fail; a
continued run repeats it. If a validation has the lowest score so far, or ends training early, its state is saved too.
If a checkpoint cannot be written, a warning is printed, as long as training can continue without it. Steps with
non-finite gradients are skipped; after several consecutive ones, training returns to the last checkpoint and continues
with other random numbers.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from modalities.base import Dataset
from recipes.base.errors import Interrupted, RecipeError
from recipes.base.progress import Display
from recipes.base.quantities import duration_in_words
from recipes.base.signals import Ended, ImmediateStop, StopRequest
from recipes.data.order import batches
from recipes.runs.averages import snapshots
from recipes.runs.best import BEST, write_best
from recipes.runs.checkpoint import Checkpoints, SaveError, State, saved_by_clock
from recipes.runtime.distribution import Agreement, FailedElsewhereError, are_sharded, is_first
from recipes.runtime.performance import Monitor, StepProfiler, peak_flops
from recipes.runtime.watchdog import Watchdog
from recipes.training.learner import DivergedError
from recipes.training.selection import Selection
from recipes.training.setup import Job, TrainingData, TrainingModel
from recipes.training.tracking import NullTracker, Tracker
from recipes.training.validation import save_samples, validate

FOLDER_CHECK_INTERVAL = 10.0
"""Seconds between two checks that the run's folder exists."""
log = logging.getLogger("multisagd")


class Saver:
    """Writes checkpoints, `in_background` or synchronously. Leaving the context waits for the last checkpoint.

    In the background, the state is copied to the CPU at once, and another thread writes the copies, one at a time. A
    second Ctrl-C does not wait for that thread: an incomplete checkpoint does no harm. The next call of `save` or
    `finish` waits for the thread and raises its error. All ranks make the same calls, so they raise it at the same
    point.
    """

    def __init__(self, checkpoints: Checkpoints, in_background: bool) -> None:
        self.checkpoints, self.in_background = checkpoints, in_background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        if self.in_background:
            # If a signal interrupted the start of the thread within a report, the pool would start a second one.
            self._pool.submit(int).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        at_once = kind is KeyboardInterrupt
        self._pool.shutdown(wait=not at_once, cancel_futures=at_once)
        if not at_once and self._pending is not None and (error := self._pending.exception()) is not None:
            log.warning("%s", error)

    def save(self, state: State) -> None:
        """Save a state; its tensors may be changed afterwards. Raises SaveError if it cannot be written."""
        self.finish()
        if self.in_background:
            self._pending = self._pool.submit(self.checkpoints.save, staged(state))
        else:
            self.checkpoints.save(state)

    def finish(self) -> None:
        """Wait until the last saved state is on disk. Raises SaveError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def staged(state: State) -> State:
    """Return a state with CPU copies of the tensors that this rank writes."""
    written = {part: named if is_first() or are_sharded(named) else {} for part, named in state.tensors.items()}
    tensors = {
        part: {name: each.detach().to("cpu", copy=True) for name, each in named.items()}
        for part, named in written.items()
    }
    return replace(state, tensors=tensors, record=dict(state.record))


class Loop:
    """Trains until `training.samples` samples are seen; every process must make the same calls."""

    def __init__(
        self, job: Job, data: TrainingData, model: TrainingModel, selection: Selection, saver: Saver,
        watchdog: Watchdog, tracker: Tracker | NullTracker, display: Display,
    ) -> None:  # fmt: skip
        self.job, self.data, self.model, self.selection = job, data, model, selection
        self.saver, self.watchdog, self.tracker, self.display = saver, watchdog, tracker, display
        self.settings, self.learner = job.settings, model.learner
        runtime, engine = job.runtime, job.settings.engine
        self.alone = runtime.process.world == 1
        peak = engine.peak_flops or peak_flops(runtime.device, runtime.products)
        self.monitor = Monitor(runtime, self.learner.parallel, model.flops, peak)
        folder = self.settings.run_dir / "profile"
        self.profiler = StepProfiler(folder, runtime.process.rank, runtime.device, engine.profile)
        self.snapshots = snapshots(self.settings.run_dir, saver.checkpoints.group)
        self._saved, self._folder_checked, self._due = time.monotonic(), float("-inf"), False
        # Number of samples of the last checkpoint, unless it was saved by the clock.
        place = saver.checkpoints.place(self.learner.samples)
        self._last_counted = self.learner.samples if place.is_dir() and not saved_by_clock(place) else -1
        # How many times in a row training returned to the same checkpoint, and its number of samples.
        self._attempts, self._returned_to = 0, -1
        self._agreement = Agreement()

    def run(self, stop: StopRequest) -> None:
        """Train until all samples are seen, or the score no longer improves.

        A continued run first repeats the last report, which may be incomplete.

        Because each state is saved before its report, stopping during the first or last report loses nothing.

        Raises:
            Interrupted: After a signal, once the state is saved.
            Ended: After a signal before the first step, when there is nothing to save.
            RecipeError: If training diverged repeatedly, or a required checkpoint cannot be written.
        """
        learner = self.learner
        try:
            self._write_best()  # as recorded in the state from which training continues
            with stop.interruptible(bool(learner.samples) and self.alone):
                if learner.samples:
                    self._report()
            while learner.samples < self.settings.training.samples and not self.selection.ended:
                try:
                    self._train(stop)
                except DivergedError as error:
                    self._return_to_checkpoint(error)
            self._announce(self.profiler.finish())
            with stop.interruptible(self.alone):
                self._report(final=True)
            if self.selection.ended and learner.samples < self.settings.training.samples:
                self.display.say(self.selection.ending())
        except ImmediateStop:
            if not learner.samples:
                raise Ended(stop.signal_number or 0) from None
            raise self._stopped(stop.signal_number) from None

    def _train(self, stop: StopRequest) -> None:
        learner, settings = self.learner, self.settings
        ahead = batches(self.data.training, learner.samples, replace(settings, seed=learner.seed), self.job.runtime)
        self.monitor.restart()
        for batch in self.monitor.steps(ahead):
            before = learner.samples
            if not before and stop.signal_number is not None and self.alone:
                raise ImmediateStop  # there is nothing to save, and compiling the first step takes minutes
            learner.step(batch)
            now = learner.samples
            self.watchdog.progress(now)
            self.display.update(now, self._log() if crossed(before, now, settings.every.log) else None)
            self._estimate(now)
            self._check_folder()
            if crossed(before, now, learner.snapshot_interval):
                state = State(now, learner.stored_averages())
                self._or_warn(partial(self.snapshots.save, state))
            last, counted = now >= settings.training.samples, crossed(before, now, settings.every.checkpoint)
            signal_number, due = self._agreement.exchange(stop.signal_number, self._checkpoint_due())
            self._due = self._due or due
            with self.monitor.paused():
                self._announce(self.profiler.step())
                # Not after a non-finite step: training should return to a state before such steps.
                if last or signal_number or ((counted or self._due) and learner.healthy()):
                    must = bool(last or signal_number)
                    self._save(must=must, by_clock=not (must or counted))
                if signal_number:
                    raise self._stopped(signal_number)
                self._report_or_stop(stop)
            if self.selection.ended:
                return

    def _check_folder(self) -> None:
        """Check periodically that the run's folder exists, so that hours of work are not lost."""
        now = time.monotonic()
        if now - self._folder_checked >= FOLDER_CHECK_INTERVAL:
            self._folder_checked = now
            self.job.check_folder()

    def _checkpoint_due(self) -> bool:
        """Whether a checkpoint by the clock is due: at most once per interval, and only on the first rank."""
        every, now = self.settings.every, time.monotonic()
        by_clock = is_first() and every.checkpoint and every.checkpoint_minutes
        if due := bool(by_clock and now - self._saved >= 60 * every.checkpoint_minutes):
            self._saved = now
        return due

    def _estimate(self, now: int) -> None:
        """Print once, after the first steps, how long the remaining samples will take. No file contains this time."""
        rate, left = self.monitor.first_rate(self.settings.training.batch), self.settings.training.samples - now
        if rate is None or not left > 0:
            return
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        self.display.say(
            f"about {duration_in_words(left / rate)} for the remaining {left:,} samples, at {speed} samples/s, not "
            "counting validation and sampling"
        )

    def _log(self) -> str:
        """Record the metrics, and return a short summary."""
        learner = self.learner
        values = learner.averages()
        self.tracker.metrics(learner.samples, "train", values)
        speed = self.monitor.window(self.settings.training.batch)
        self.tracker.timing(learner.samples, speed)
        loss = f"loss {values['loss']:.4f}" if "loss" in values else "no finite loss"
        return f"{loss}, {speed['samples_per_second']:,.0f} samples/s"

    def _report_or_stop(self, stop: StopRequest) -> None:
        """Report. With one process, a signal ends the report at once; a continued run repeats it."""
        position, selected = self.tracker.position, self.selection.current
        try:
            with stop.interruptible(self.alone):
                self._report()
        except ImmediateStop:
            self.selection.current = selected
            self._save(must=True, position=position)
            raise self._stopped(stop.signal_number) from None

    def _report(self, final: bool = False) -> None:
        """Validate and save samples when due, or at the end (`final`) unless just done. Checkpoints precede reports."""
        every, now = self.settings.every, self.learner.samples
        before = now - self.settings.training.batch
        if every.validation and crossed(before, now, every.validation) != final and self.data.held_out is not None:
            self._validate(self.data.held_out)
        if every.samples and crossed(before, now, every.samples) != final:
            self.job.check_folder()
            self.display.say(save_samples(self.job, self.data, self.model))

    def _validate(self, held_out: Dataset) -> None:
        """Validate, and save the state if it is the best so far or training ends with it."""
        now, selection = self.learner.samples, self.selection
        values = validate(
            self.model.averaged, held_out, self.data.statistics, self.settings, self.job.runtime,
            self.data.condition.learned,
        )  # fmt: skip
        values["score"] = score = selection.score(values)
        # Not after a non-finite step, after which no checkpoint is saved.
        if selection.keeps and self.learner.healthy():
            after = selection.current.after(now, score)
            improved, ends = after.best != selection.current.best, selection.ends(after)
            if not (improved or ends) or self._saved_here(must=ends):
                selection.current = after
                self._write_best()
        self.tracker.metrics(now, "validation", values)
        self.display.say(f"{now:,} samples seen: {selection.summary(now, values['loss'], score)}")

    def _saved_here(self, must: bool) -> bool:
        """Whether the current state is saved by samples, or is saved now; if `must` is set, an error is raised."""
        saved = self._last_counted == self.learner.samples or self._save(must, only_best=not must)
        return self._or_warn(self.saver.finish) and saved

    def _write_best(self) -> None:
        """Write which checkpoint is the best to the run's folder."""
        folder = self.saver.checkpoints.folder
        if is_first() and folder.is_dir():
            try:
                write_best(folder, self.selection.current.best)
            except OSError as error:
                self.display.say(
                    f"warning: cannot write {folder.parent / BEST} ({error}), so checkpoint=best may mean an earlier "
                    "checkpoint until it is written again, at the next best checkpoint or when training continues"
                )

    def _announce(self, profile: Path | None) -> None:
        if profile is not None:
            self.display.say(f"profile of {self.profiler.steps} steps in {profile}")

    def _save(
        self, must: bool, by_clock: bool = False, position: int | None = None, only_best: bool = False
    ) -> bool:  # fmt: skip
        """Save the state, with a `position` in the metrics file, by default the current one.

        `by_clock` and `only_best` are described in `State`. If saving fails, print a warning and return False, or raise
        SaveError if `must` is set.
        """
        self.job.check_folder()
        self._saved, self._due = time.monotonic(), False
        self._or_warn(self.saver.finish)  # of the previous checkpoint
        state = self.learner.state(self.tracker.position if position is None else position)
        state.record["selection"] = self.selection.current.record()
        state.by_clock, state.only_best = by_clock, only_best
        if must:
            self.saver.save(state)
            self.saver.finish()
        elif not self._or_warn(lambda: self.saver.save(state)):
            return False
        self._last_counted = -1 if by_clock else state.samples
        return True

    def _or_warn(self, save: Callable[[], object]) -> bool:
        try:
            save()
        except (SaveError, FailedElsewhereError) as error:
            self.display.say(f"warning: {error}. Training continues; the next checkpoint will be attempted as usual")
            return False
        return True

    def _return_to_checkpoint(self, error: DivergedError) -> None:
        """Return to the last checkpoint, and use other random numbers. Raises RecipeError after too many returns."""
        learner, limit = self.learner, self.settings.training.max_rollbacks
        remedy = "In another run_dir, try a lower learning_rate, a longer warmup or engine.precision=float32"
        self._or_warn(self.saver.finish)
        state = self.saver.checkpoints.latest(counted=True)
        if state is None:
            raise RecipeError(f"{error}, and there is no checkpoint to return to. {remedy}") from error
        self._attempts = self._attempts + 1 if state.samples == self._returned_to else 1
        if self._attempts > limit:
            raise RecipeError(f"{error}, after {limit} returns to the last checkpoint. {remedy}") from error
        self._returned_to, self._last_counted = state.samples, -1 if state.by_clock else state.samples
        for checkpoints in (self.saver.checkpoints, self.snapshots):
            checkpoints.set_aside(state.samples)
        skipped, rollbacks = learner.skipped, learner.rollbacks
        self.tracker.cut(learner.restore(state))
        learner.skipped, learner.rollbacks = skipped, rollbacks + 1
        self.selection.restore(state.record)
        self._write_best()
        self.display.say(
            f"warning: {error}; returning to the checkpoint after {state.samples:,} samples, with other random numbers"
        )
        self._report()  # the metrics of this report were removed with the later ones

    def _stopped(self, signal_number: int | None) -> Interrupted:
        """Return the exception to raise after a signal, once the state is saved."""
        folder = self.saver.checkpoints.place(self.learner.samples)
        return Interrupted(f"stopped; saved in {folder}. Run the same command to continue.", signal_number or 0)


def crossed(before: int, now: int, every: int) -> bool:
    """Whether `every` is not 0 and has a multiple in (before, now]."""
    return every > 0 and now // every > before // every
