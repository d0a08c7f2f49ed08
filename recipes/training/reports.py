"""What is reported while training goes on: the loss on held-out data, and pictures of samples."""

from __future__ import annotations

from dataclasses import dataclass

from multisagd.seeds import derive_many
from recipes.base.progress import Display
from recipes.sampling.generate import generate
from recipes.sampling.sample_files import save_grid
from recipes.training.loop import crossed
from recipes.training.setup import Job, TrainingData, TrainingModel
from recipes.training.tracking import Silence, Tracker
from recipes.training.validation import validate


@dataclass(frozen=True, eq=False)
class Reports:
    """Reports of the averaged weights of a training; every process makes the same calls."""

    job: Job
    data: TrainingData
    model: TrainingModel
    tracker: Tracker | Silence
    display: Display

    @property
    def samples(self) -> int:
        """Number of samples seen so far."""
        return self.model.learner.samples

    def report(self, final: bool = False) -> None:
        """Validate and draw when it is time, or at the end when it is not; checkpoints never hold these metrics."""
        every, now = self.job.settings.every, self.samples
        before = now - self.job.settings.training.batch
        if every.validation and crossed(before, now, every.validation) != final:
            self.validate()
        if every.samples and crossed(before, now, every.samples) != final:
            self.job.check_folder()
            self.save_samples()

    def validate(self) -> None:
        """Measure the averaged weights on held-out data, if there are any."""
        if self.data.held_out is None:
            return
        values = validate(
            self.model.averaged, self.data.held_out, self.data.statistics, self.job.settings, self.job.runtime,
            self.data.condition.learned,
        )  # fmt: skip
        self.tracker.metrics(self.samples, "validation", values)
        self.display.say(f"{self.samples:,} samples seen: validation loss {values['loss']:.4f}")

    def save_samples(self) -> None:
        """Save a picture of samples from the averaged weights, always from the same seeds."""
        settings, data = self.job.settings, self.data
        path = settings.run_dir / "samples" / f"{self.samples:012d}.png"
        seeds = derive_many(settings.seed, "sample", 0, range(settings.sampling.count))
        try:
            x0 = generate(self.model.averaged, self.model.request, data.shape, seeds, data.shown, self.job.runtime)
            if self.job.runtime.main:
                media = [data.modality.decode(each) for each in x0]
                save_grid(data.modality, media, path, data.condition.names(data.shown))
        except (ValueError, OSError) as error:
            # A picture is not worth a training: early weights may well sample to infinity, or the disk be full.
            self.display.say(f"note: no samples after {self.samples:,} samples seen: {error}")
            return
        self.display.say(f"{self.samples:,} samples seen: samples in {path}")
