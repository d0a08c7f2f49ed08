"""The training loop: learn, log, save, report, and go on after what can be recovered from.

Checkpoints are saved by samples seen and, where those are far apart, by the clock of the first rank, which all follow.
What is learned does not depend on it: saving draws nothing, and what training goes back to is a checkpoint by samples.

Saved before it is reported, since reports may fail, and a run that continues from there makes them anew. A checkpoint
that cannot be written is a warning as long as training can go on without; steps that are not finite are skipped, and
after several in a row training goes back to the last checkpoint and on with other random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from modalities.base import Dataset
from recipes.base.errors import Interrupted, RecipeError
from recipes.base.progress import Display
from recipes.base.signals import StopNow, StopRequest
from recipes.data.order import batches
from recipes.runs.checkpoint import SaveError
from recipes.runtime.distribution import Agreement, FailedElsewhereError, is_first
from recipes.runtime.profiler import StepProfiler
from recipes.runtime.throughput import Monitor
from recipes.runtime.watchdog import Watchdog
from recipes.training.learner import DivergedError, Learner
from recipes.training.saving import Saver
from recipes.training.tracking import Silence, Tracker

LOOK_INTERVAL = 10.0
"""Seconds between two looks whether the run's folder is there."""


@dataclass
class Loop:
    """Trains until all samples are seen; `report` is called after every step, to look and draw when it is time.

    `check_folder` raises an error if the run's folder has vanished.
    """

    learner: Learner
    data: Dataset
    saver: Saver
    monitor: Monitor
    profiler: StepProfiler
    watchdog: Watchdog
    tracker: Tracker | Silence
    display: Display
    report: Callable[[], None]
    check_folder: Callable[[], None]
    _saved: float = field(default_factory=time.monotonic)
    _looked: float = float("-inf")
    _due: bool = False
    _attempts: int = 0  # returns to the checkpoint after so many samples:
    _returned_to: int = -1
    _agreement: Agreement = field(default_factory=Agreement)

    def run(self, stop: StopRequest) -> None:
        """Train.

        Raises:
            Interrupted: after a signal, once the state is saved.
            StopNow: after a signal before the first step.
            RecipeError: if training diverged again and again, or a checkpoint that matters cannot be written.
        """
        while self.learner.samples < self.learner.settings.training.samples:
            try:
                self._train(stop)
            except DivergedError as error:
                self._go_back(error)
        self._tell_profile(self.profiler.finish())

    def _train(self, stop: StopRequest) -> None:
        learner, settings = self.learner, self.learner.settings
        ahead = batches(self.data, learner.samples, replace(settings, seed=learner.seed), learner.runtime)
        self.monitor.restart()
        for batch in self.monitor.steps(ahead):
            before = learner.samples
            if not before and stop.signal_number is not None and learner.runtime.place.world == 1:
                raise StopNow  # there is nothing to save, and a first step that is compiled takes minutes
            learner.step(batch)
            now = learner.samples
            self.watchdog.progress(now)
            self.display.update(now, self._log() if crossed(before, now, settings.every.log) else None)
            self._look_for_folder()
            last, counted = now >= settings.training.samples, crossed(before, now, settings.every.checkpoint)
            signal_number, due = self._agreement.exchange(stop.signal_number, self._late())
            self._due = self._due or due
            with self.monitor.paused():
                self._tell_profile(self.profiler.step())
                # Not in the middle of trouble: what is worth going back to is the state before it.
                if last or signal_number or ((counted or self._due) and learner.healthy()):
                    must = bool(last or signal_number)
                    self._save(must=must, by_clock=not (must or counted))
                if signal_number:
                    raise stopped(self.saver.checkpoints.place(now), signal_number)
                self._report(stop)

    def _look_for_folder(self) -> None:
        """See now and then whether the run's folder is there, lest hours are spent on what cannot be saved."""
        now = time.monotonic()
        if now - self._looked >= LOOK_INTERVAL:
            self._looked = now
            self.check_folder()

    def _late(self) -> bool:
        """Tell on the first rank, once each time, that no checkpoint was saved for long."""
        every, now = self.learner.settings.every, time.monotonic()
        if not (is_first() and every.checkpoint and every.checkpoint_minutes):
            return False
        if now - self._saved < 60 * every.checkpoint_minutes:
            return False
        self._saved = now
        return True

    def _report(self, stop: StopRequest) -> None:
        """Look and draw; a signal ends that at once where nobody else waits, for it is done anew when continuing."""
        position = self.tracker.position
        try:
            with stop.hurried(self.learner.runtime.place.world == 1):
                self.report()
        except StopNow:
            self._save(must=True, position=position)
            raise stopped(self.saver.checkpoints.place(self.learner.samples), stop.signal_number) from None

    def _tell_profile(self, path: Path | None) -> None:
        if path is not None:
            self.display.say(f"profile of {self.profiler.steps} steps in {path}")

    def _log(self) -> str:
        """Record the metrics, and return them in a few words."""
        learner = self.learner
        values = learner.averages()
        self.tracker.metrics(learner.samples, "train", values)
        speed = self.monitor.window(learner.settings.training.batch)
        self.tracker.timing(learner.samples, speed)
        loss = f"loss {values['loss']:.4f}" if "loss" in values else "no finite loss"
        return f"{loss}, {speed['samples_per_second']:,.0f} samples/s"

    def _save(self, must: bool, by_clock: bool = False, position: int | None = None) -> None:
        """Save the state, with the metrics up to a position; unless it must be saved, training can go on without it."""
        self.check_folder()
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
        """Return to the last checkpoint, from where everything random is drawn anew.

        Raises:
            RecipeError: if there is no checkpoint, or this has been tried often enough.
        """
        learner, limit = self.learner, self.learner.settings.training.max_rollbacks
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
        self.report()  # of the checkpoint's own step, which was cut off with all that came after it


def stopped(folder: Path, signal_number: int | None) -> Interrupted:
    """Return what is raised after a signal, once the state is saved in a folder."""
    return Interrupted(f"stopped; saved in {folder}. The same command continues.", signal_number or 0)


def crossed(before: int, now: int, every: int) -> bool:
    """Tell whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and now // every > before // every
