"""The network, data and settings of one of our training runs, so that peers start from the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from modalities.base import Batch, Dataset, Modality
from multisagd import PowerEMA
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import measure
from recipes.data.order import batches
from recipes.data.parts import hold_out
from recipes.runs.assembly import Assembly
from recipes.runs.settings import ModelSettings, TrainSettings
from recipes.runtime.device import Runtime
from recipes.training.conditioning import learned_condition
from recipes.training.learner import Learner


@dataclass(frozen=True)
class Setting:
    """The parts of a training run that do not depend on the training method."""

    settings: TrainSettings
    runtime: Runtime
    data: Dataset
    assembly: Assembly

    @classmethod
    def of(cls, arguments: list[str], threads: int | None) -> Setting:
        """Compose the parts of `multisagd train ARGUMENTS`, and measure the data in the same way."""
        words = [*arguments, f"engine.threads={'null' if threads is None else threads}", "run_dir=none"]
        config, builder = configuration.load("train", words), Builder()
        settings = builder.settings(TrainSettings, config, "")
        runtime = Runtime.start(settings.engine)
        modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
        dataset = builder.build(settings.data, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
        training = hold_out(dataset, settings, builder).training
        condition = learned_condition(settings, training, builder, runtime.device)
        statistics = measure(training, settings)
        model = ModelSettings.of(config, builder)
        return cls(settings, runtime, training, Assembly(model, builder, modality, statistics, condition.classes))

    @property
    def null_label(self) -> int | None:
        """The label that means no class; None without classes."""
        return None if self.assembly.classes is None else len(self.assembly.classes)

    def batches(self) -> Iterator[Batch]:
        """Yield the training batches, in order."""
        for parts in batches(self.data, 0, self.settings, self.runtime):
            yield from parts

    def network(self) -> nn.Module:
        """Return the network with the initial weights of the run."""
        return self.assembly.network().to(self.runtime.device)

    def learner(self) -> Learner:
        """Return our own training step."""
        network, process = self.network(), self.assembly.process().to(self.runtime.device)
        average = PowerEMA(network, sigma_rel=self.settings.training.ema)
        denoiser = self.assembly.denoiser(network, process)
        return Learner(denoiser, network, network, average, self.settings, self.runtime, self.null_label)
