"""Roll a forecast out: each sample becomes the condition of the next one, so that it goes further than one step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.forecasts import States
from multisagd import Denoiser
from multisagd.condition import Condition
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.condition import DenseConditions
from recipes.sampling.generate import SamplingRequest, generate


@dataclass(frozen=True)
class Rollout:
    """Successive states of a field, `steps` of them; `modality` is that of all together, and `shape` that of one."""

    steps: int
    modality: Modality
    shape: tuple[int, ...]

    def draw(
        self, denoiser: Denoiser, request: SamplingRequest, seed: int, condition: Condition, runtime: Runtime,
        report: Callable[[int], None],
    ) -> Tensor:  # fmt: skip
        """Return the states of all steps (count, steps × channels, *grid) for each dense condition.

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
            dense = next_condition(dense, x0)
        return torch.cat(samples, dim=1)


def next_condition(dense: Tensor, x0: Tensor) -> Tensor:
    """Return the known states (count, states × channels, *grid) without the earliest one, and with the sample x0.

    Values that are unknown in the last state, NaN, remain unknown. x0 is (count, channels, *grid).
    """
    channels = x0.shape[1]
    return torch.cat([dense[:, channels:], x0.masked_fill(dense[:, -channels:].isnan(), torch.nan)], dim=1)


def chosen_rollout(settings: SampleSettings, modality: Modality, dense: DenseConditions) -> Rollout | None:
    """Return how samples are rolled out, or None if they are not.

    Raises:
        RecipeError: If samples of this run, or without a condition, cannot be the condition of others.
    """
    if settings.rollout is None:
        return None
    asked = f"rollout={settings.rollout}"
    if dense.dense is None:
        raise RecipeError(f"{asked} needs the states that are known: add condition=FILE or condition=held_out")
    if not isinstance(dense.modality, States):
        raise RecipeError(
            f"{asked} is for forecasts (a run with data.lead): samples of this run are not the conditions of others; "
            "remove it. Sounds and clips are continued with overlap=FRACTION"
        )
    return Rollout(settings.rollout, dense.modality.forecast(settings.rollout), modality.tensor_shape)
