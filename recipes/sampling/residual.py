"""What the estimate of a restored band lacks, measured on data that the run has held out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from modalities.reading import UnreadableFilesError
from multisagd import Denoiser, RestoringDenoiser
from multisagd.finishing import residual_power
from multisagd.seeds import derive
from recipes.base.errors import RecipeError
from recipes.config.compose import Config
from recipes.data.dataset import NOTHING_HELD_OUT, build_data, hold_out
from recipes.data.order import Order
from recipes.runs.assembly import Assembly
from recipes.runs.settings import SampleSettings, TrainSettings
from recipes.runtime.device import Runtime

RESIDUAL_EXAMPLES = 1000
"""Held-out examples, at most, on which the power that a restored band lacks is measured."""


def band_residual(
    denoiser: Denoiser, settings: SampleSettings, run_config: Config, assembly: Assembly, runtime: Runtime
) -> Tensor | None:  # fmt: skip
    """Return the power that the estimate of a restored band lacks, measured on the run's data; None to leave it so.

    Raises:
        RecipeError: if it is asked for and the run restores no band, or its data cannot be read.
    """
    if settings.band == "mean":
        return None
    if not isinstance(denoiser, RestoringDenoiser):
        raise RecipeError("band=sample is for runs that restore a corrupted band (denoiser=restoring): leave it out")
    if assembly.context is not None:
        raise RecipeError("band=sample is not for runs that learned from text: leave it out")
    builder = assembly.builder
    run = builder.settings(TrainSettings, run_config, "")
    # What the network was not trained on: towards that, its estimates lack more.
    _, held_out = hold_out(build_data(run.data, run.corruption, run.seed, assembly.modality, builder), run)
    if held_out is None:
        raise RecipeError(f"band=sample: {NOTHING_HELD_OUT}; or leave it out")
    chosen = Order(len(held_out), derive(settings.seed, "residual")).indices(0, min(RESIDUAL_EXAMPLES, len(held_out)))

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, len(chosen), settings.batch):
            batch = held_out.batch(chosen[start : start + settings.batch])
            if batch.mask is not None and not bool(batch.mask.all()):
                raise RecipeError("band=sample cannot measure padded data: leave it out")
            told = batch.labels if assembly.classes is not None else None
            yield runtime.put(batch.x0), None if told is None else runtime.put(told)

    try:
        return residual_power(denoiser, batches(), settings.seed)
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error
