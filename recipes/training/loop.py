"""The training loop: learn, log, save, report, and go on after what can be recovered from.

Checkpoints are saved by samples seen and, where those are far apart, by the clock of the first rank, which all follow.
What is learned does not depend on it: saving draws nothing, and what training goes back to is a checkpoint by samples.

Saved before it is reported, since reports may fail, and a run that continues from there makes them again. A checkpoint
that cannot be written is a warning as long as training can go on without; steps that are not finite are skipped, and
after several in a row training goes back to the last checkpoint and on with other random numbers.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

from recipes.base.errors import Interrupted, RecipeError
from recipes.base.progress import Display
from recipes.base.signals import Ended, ImmediateStop, StopRequest
from recipes.data.order import batches
from recipes.runs.checkpoint import Checkpoints, SaveError, State
from recipes.runtime.distribution import Agreement, FailedElsewhereError, are_sharded, is_first
from recipes.runtime.performance import Monitor, StepProfiler, peak_flops
from recipes.runtime.watchdog import Watchdog
from recipes.training.learner import DivergedError
from recipes.training.setup import Job, TrainingData, TrainingModel
from recipes.training.tracking import NullTracker, Tracker
from recipes.training.validation import save_samples, validate

LOOK_INTERVAL = 10.0
"""Seconds between two looks whether the run's folder is there."""
log = logging.getLogger("multisagd")


class Saver:
    """Writes checkpoints, `in_background` or at once; leaving it as a context waits for the last.

    In the background, a copy on the CPU is taken at once and written by another thread, one at a time. It is not waited
    for where a person has lost patience: half a checkpoint does no harm. An error of the background is raised by the
    call that waits for it: the next `save`, or `finish`. All ranks make the same calls, so all meet it at the same
    place.
    """

    def __init__(self, checkpoints: Checkpoints, in_background: bool) -> None:
        self.checkpoints, self.in_background = checkpoints, in_background
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        impatient = kind is KeyboardInterrupt
        self._pool.shutdown(wait=not impatient, cancel_futures=impatient)
        if not impatient and self._pending is not None and (failed := self._pending.exception()) is not None:
            log.warning("%s", failed)

    def save(self, state: State) -> None:
        """Save a state; what happens to its tensors afterwards does not matter. SaveError if it cannot be written."""
        self.finish()
        if self.in_background:
            self._pending = self._pool.submit(self.checkpoints.save, staged(state))
        else:
            self.checkpoints.save(state)

    def finish(self) -> None:
        """Wait until what was saved is on disk; SaveError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def staged(state: State) -> State:
    """Return a state with copies on the CPU of those tensors that this rank writes."""
    written = {part: named if is_first() or are_sharded(named) else {} for part, named in state.tensors.items()}
    tensors = {
        part: {name: each.detach().to("cpu", copy=True) for name, each in named.items()}
        for part, named in written.items()
    }
    return replace(state, tensors=tensors, record=dict(state.record))


class Loop:
    """Trains until all samples are seen; every process makes the same calls."""

    def __init__(
        self, job: Job, data: TrainingData, model: TrainingModel, saver: Saver, watchdog: Watchdog,
        tracker: Tracker | NullTracker, display: Display,
    ) -> None:  # fmt: skip
        self.job, self.data, self.model = job, data, model
        self.saver, self.watchdog, self.tracker, self.display = saver, watchdog, tracker, display
        self.settings, self.learner = job.settings, model.learner
        runtime, engine = job.runtime, job.settings.engine
        self.alone = runtime.process.world == 1
        peak = engine.peak_flops or peak_flops(runtime.device, runtime.products)
        self.monitor = Monitor(runtime, self.learner.parallel, model.flops, peak)
        folder = self.settings.run_dir / "profile"
        self.profiler = StepProfiler(folder, runtime.process.rank, runtime.device, engine.profile)
        self._saved, self._looked, self._due = time.monotonic(), float("-inf"), False
        self._attempts, self._returned_to = 0, -1  # returns to the checkpoint after that number of samples
        self._agreement = Agreement()

    def run(self, stop: StopRequest) -> None:
        """Train; a run that continues first reports, for the training before may have stopped within its report.

        Each state is saved before it is reported, so stopping within the first or the last report loses nothing.

        Raises:
            Interrupted: after a signal, once the state is saved.
            Ended: after a signal before the first step, when there is nothing to save.
            RecipeError: if training diverged repeatedly, or a checkpoint that matters cannot be written.
        """
        learner = self.learner
        try:
            with stop.interruptible(bool(learner.samples) and self.alone):
                if learner.samples:
                    self._report()
            while learner.samples < self.settings.training.samples:
                try:
                    self._train(stop)
                except DivergedError as error:
                    self._go_back(error)
            self._announce(self.profiler.finish())
            with stop.interruptible(self.alone):
                self._report(final=True)
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
                raise ImmediateStop  # there is nothing to save, and a first step that is compiled takes minutes
            learner.step(batch)
            now = learner.samples
            self.watchdog.progress(now)
            self.display.update(now, self._log() if crossed(before, now, settings.every.log) else None)
            self._look_for_folder()
            last, counted = now >= settings.training.samples, crossed(before, now, settings.every.checkpoint)
            signal_number, due = self._agreement.exchange(stop.signal_number, self._late())
            self._due = self._due or due
            with self.monitor.paused():
                self._announce(self.profiler.step())
                # Not in the middle of trouble: what is worth going back to is the state before it.
                if last or signal_number or ((counted or self._due) and learner.healthy()):
                    must = bool(last or signal_number)
                    self._save(must=must, by_clock=not (must or counted))
                if signal_number:
                    raise self._stopped(signal_number)
                self._report_or_stop(stop)

    def _look_for_folder(self) -> None:
        """See now and then whether the run's folder is there, lest hours are spent on what cannot be saved."""
        now = time.monotonic()
        if now - self._looked >= LOOK_INTERVAL:
            self._looked = now
            self.job.check_folder()

    def _late(self) -> bool:
        """Return on the first rank, once each time, that no checkpoint was saved for long."""
        every, now = self.settings.every, time.monotonic()
        wanted = is_first() and every.checkpoint and every.checkpoint_minutes
        if late := bool(wanted and now - self._saved >= 60 * every.checkpoint_minutes):
            self._saved = now
        return late

    def _log(self) -> str:
        """Record the metrics, and return them in a few words."""
        learner = self.learner
        values = learner.averages()
        self.tracker.metrics(learner.samples, "train", values)
        speed = self.monitor.window(self.settings.training.batch)
        self.tracker.timing(learner.samples, speed)
        loss = f"loss {values['loss']:.4f}" if "loss" in values else "no finite loss"
        return f"{loss}, {speed['samples_per_second']:,.0f} samples/s"

    def _report_or_stop(self, stop: StopRequest) -> None:
        """Report; a signal ends that at once where nobody else waits, since it is done again when continuing."""
        position = self.tracker.position
        try:
            with stop.interruptible(self.alone):
                self._report()
        except ImmediateStop:
            self._save(must=True, position=position)
            raise self._stopped(stop.signal_number) from None

    def _report(self, final: bool = False) -> None:
        """Validate and save samples when it is time, or at the end when it is not; checkpoints hold none of it."""
        every, now = self.settings.every, self.learner.samples
        before = now - self.settings.training.batch
        if every.validation and crossed(before, now, every.validation) != final and self.data.held_out is not None:
            values = validate(
                self.model.averaged, self.data.held_out, self.data.statistics, self.settings, self.job.runtime,
                self.data.condition.learned,
            )  # fmt: skip
            self.tracker.metrics(now, "validation", values)
            self.display.say(f"{now:,} samples seen: validation loss {values['loss']:.4f}")
        if every.samples and crossed(before, now, every.samples) != final:
            self.job.check_folder()
            self.display.say(save_samples(self.job, self.data, self.model))

    def _announce(self, profile: Path | None) -> None:
        if profile is not None:
            self.display.say(f"profile of {self.profiler.steps} steps in {profile}")

    def _save(self, must: bool, by_clock: bool = False, position: int | None = None) -> None:
        """Save the state, with the metrics up to a position; unless it must be saved, training can go on without it."""
        self.job.check_folder()
        self._saved, self._due = time.monotonic(), False
        self._or_warn(self.saver.finish)  # of the one before
        state = self.learner.state(self.tracker.position if position is None else position)
        state.by_clock = by_clock
        if must:
            self.saver.save(state)
            self.saver.finish()
        else:
            self._or_warn(lambda: self.saver.save(state))

    def _or_warn(self, save: Callable[[], None]) -> None:
        try:
            save()
        except (SaveError, FailedElsewhereError) as error:
            self.display.say(f"warning: {error}. Training goes on, and so will the next checkpoint be tried")

    def _go_back(self, error: DivergedError) -> None:
        """Return to the last checkpoint, from where everything random is drawn again; RecipeError if it is in vain."""
        learner, limit = self.learner, self.settings.training.max_rollbacks
        remedy = "In another run_dir, try a lower learning_rate, a longer warmup or engine.precision=float32"
        self._or_warn(self.saver.finish)
        state = self.saver.checkpoints.latest(counted=True)
        if state is None:
            raise RecipeError(f"{error}, and there is no checkpoint to go back to. {remedy}") from error
        self._attempts = self._attempts + 1 if state.samples == self._returned_to else 1
        if self._attempts > limit:
            raise RecipeError(f"{error}, after {limit} returns to the last checkpoint. {remedy}") from error
        self._returned_to = state.samples
        self.saver.checkpoints.set_aside(state.samples)
        skipped, rollbacks = learner.skipped, learner.rollbacks
        self.tracker.cut(learner.restore(state))
        learner.skipped, learner.rollbacks = skipped, rollbacks + 1
        self.display.say(
            f"warning: {error}; back to the checkpoint after {state.samples:,}, and on with other random numbers"
        )
        self._report()  # of the checkpoint's own step, which was cut off with all that came after it

    def _stopped(self, signal_number: int | None) -> Interrupted:
        """Return what is raised after a signal, once the state is saved."""
        folder = self.saver.checkpoints.place(self.learner.samples)
        return Interrupted(f"stopped; saved in {folder}. The same command continues.", signal_number or 0)


def crossed(before: int, now: int, every: int) -> bool:
    """Return whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and now // every > before // every
