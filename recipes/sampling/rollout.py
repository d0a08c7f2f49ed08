"""Roll a forecast out: each sample becomes the condition of the next one, so that it goes further than one step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.derived_conditions import FirstFrames
from modalities.forecasts import States
from multisagd import Denoiser
from multisagd.condition import Condition
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runs.assembly import Assembly
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.condition import DenseConditions
from recipes.sampling.generate import SamplingRequest, generate


@dataclass(frozen=True)
class Rollout(ABC):
    """Several samples in a row, `steps` of them; `modality` is that of all together, and `shape` that of one."""

    steps: int
    modality: Modality
    shape: tuple[int, ...]

    @abstractmethod
    def next_condition(self, dense: Tensor, x0: Tensor) -> Tensor:
        """Return the condition of the samples that follow x0 (count, channels, *grid), which were drawn with `dense`.

        Conditions are (count, channels of the condition, *grid), NaN where a value is unknown.
        """

    @abstractmethod
    def joined(self, samples: Sequence[Tensor]) -> Tensor:
        """Return the samples of all steps, each (count, channels, *grid), as one tensor of the modality."""

    def draw(
        self, denoiser: Denoiser, request: SamplingRequest, seed: int, condition: Condition, runtime: Runtime,
        report: Callable[[int], None],
    ) -> Tensor:  # fmt: skip
        """Return one sample of all steps for each dense condition.

        The first step of a sample is the sample that is drawn without a rollout. `report` is called with the number of
        steps of samples drawn so far. Raises RecipeError as `generate` does.
        """
        dense = condition.dense
        assert dense is not None
        count, samples = len(dense), list[Tensor]()

        def report_all(drawn: int) -> None:
            report(len(samples) * count + drawn)

        for step in range(self.steps):
            seeds = derive_many(seed, "sample", step, range(count))
            known = condition._replace(dense=dense)
            x0 = generate(denoiser, request, self.shape, seeds, known, runtime, report_all)
            samples.append(x0)
            dense = self.next_condition(dense, x0)
        return self.joined(samples)


@dataclass(frozen=True)
class StateRollout(Rollout):
    """Successive states of a field: each sample is the present state of the next one."""

    def next_condition(self, dense: Tensor, x0: Tensor) -> Tensor:
        """Return the known states without the earliest one, and with the sample; missing values remain unknown."""
        channels = x0.shape[1]
        return torch.cat([dense[:, channels:], x0.masked_fill(dense[:, -channels:].isnan(), torch.nan)], dim=1)

    def joined(self, samples: Sequence[Tensor]) -> Tensor:
        """Return the states of all steps (count, steps × channels, *grid)."""
        return torch.cat(list(samples), dim=1)


@dataclass(frozen=True)
class FrameRollout(Rollout):
    """A longer clip: the last `count` frames of each sample are the first frames of the next one."""

    count: int

    def next_condition(self, dense: Tensor, x0: Tensor) -> Tensor:
        """Return a condition of which only the first frames are known: the last ones of the sample."""
        known = torch.full_like(x0, torch.nan)
        known[:, :, : self.count] = x0[:, :, -self.count :]
        return known

    def joined(self, samples: Sequence[Tensor]) -> Tensor:
        """Return the clips in a row, without the first frames of all but the first one."""
        first, *others = samples
        return torch.cat([first, *(each[:, :, self.count :] for each in others)], dim=2)


def chosen_rollout(
    settings: SampleSettings, assembly: Assembly, modality: Modality, dense: DenseConditions
) -> Rollout | None:
    """Return how samples are rolled out, or None if they are not.

    Raises:
        RecipeError: If samples of this run, or without a condition, cannot be the condition of others.
    """
    if settings.rollout is None:
        return None
    asked = f"rollout={settings.rollout}"
    if dense.dense is None:
        raise RecipeError(f"{asked} needs the states that are known: add condition=FILE or condition=held_out")
    if isinstance(dense.modality, States):
        states = dense.modality.forecast(settings.rollout)
        return StateRollout(settings.rollout, states, modality.tensor_shape)
    derived = assembly.derived_condition()
    if not isinstance(derived, FirstFrames):
        raise RecipeError(
            f"{asked} is for forecasts (a run with data.lead) and for clips continued from their first frames "
            "(condition=first_frames): samples of this run are not conditions of others; remove it"
        )
    frames = modality.grid().shape[0]
    total = frames + (settings.rollout - 1) * (frames - derived.count)
    with as_recipe_error(ValueError, f"{asked}: "):
        longer = modality.at(frames=total)
    return FrameRollout(settings.rollout, longer, modality.tensor_shape, derived.count)
