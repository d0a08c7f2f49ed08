"""Calibrate the sampler of a request: correct the power of its states to that of the forward process."""

from dataclasses import dataclass, replace

import torch

from modalities.base import Modality
from multisagd import DataStatistics, Denoiser
from multisagd.calibration import Calibrated, calibrate
from multisagd.condition import AnyCondition, Condition, as_condition, mapped
from multisagd.covariance import to_half_spectrum
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.progress import Display
from recipes.runs.assembly import Assembly
from recipes.runs.model import TrainedModel
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import broadcast_from_rank0
from recipes.sampling.condition import trained_classes
from recipes.sampling.generate import SamplingRequest, step_times
from recipes.sampling.held_out import read_held_out
from recipes.sampling.media import SamplingMedia


@dataclass(frozen=True, eq=False)
class Requested:
    """The samples that are requested: their modality, media, and the condition that the network gets."""

    modality: Modality
    media: SamplingMedia
    condition: AnyCondition


def calibrated(
    count: int | None, request: SamplingRequest, samples: Requested, denoiser: Denoiser, model: TrainedModel,
    assembly: Assembly, runtime: Runtime, quiet: bool = False,
) -> SamplingRequest:  # fmt: skip
    """Return the request with its sampler calibrated by `count` samples of the run; the same one if `count` is None.

    Samples for the calibration have all trained classes in turn, or the dense conditions of held-out examples, if the
    requested samples have such a condition. They depend neither on the seed nor on the number of the requested samples.

    Raises:
        RecipeError: If the power of such samples is not known, or held-out examples cannot be read.
    """
    if count is None:
        return request
    _check(request, samples, denoiser, model, assembly)
    known, statistics = _conditions(count, samples, model, assembly)
    times, seeds = step_times(denoiser, request), derive_many(0, "calibration", 0, range(count))
    put = mapped(known, runtime.put)
    with (
        Display("calibrating", len(times) - 1, quiet=quiet or not runtime.main) as display,
        torch.no_grad(), runtime.autocast(), as_recipe_error((ValueError, ArithmeticError), "calibration: "),
    ):  # fmt: skip
        sampler = calibrate(
            request.sampler, denoiser, statistics, times, seeds, put, batch=request.batch,
            callback=lambda step, *_: display.update(step),
        )  # fmt: skip
    return replace(request, sampler=_shared(sampler), times=times)


def _shared(sampler: Calibrated) -> Calibrated:
    """Return the sampler with the factors of rank 0 on every rank: devices may round differently."""
    gains = sampler.gains.contiguous()
    broadcast_from_rank0(gains)
    return replace(sampler, gains=gains)


def _check(
    request: SamplingRequest,
    samples: Requested,
    denoiser: Denoiser,
    model: TrainedModel,
    assembly: Assembly,
) -> None:
    reasons = {
        "guidance changes the power of samples, so it is not that of the data: set guidance.scale=1":
            request.guidance.scale != 1.0,
        "samples that start from media have another power: remove initial": samples.media.start is not None,
        "refined samples have another power: set refine=none": request.refinement.iterations > 0,
        "the power of the data is known at the size of training only: remove the size":
            samples.modality.grid() != assembly.modality.grid(),
        "the run was trained on corrupted data, whose power its samples do not have: remove calibration":
            assembly.corruption() is not None,
        "the noise of this run follows the condition of each item, and so does their power: remove calibration":
            denoiser.process.covariance.item_wise,
        "the run was trained on captions, of which samples have only some: remove calibration":
            assembly.context is not None,
        "the run was trained with scalars, of which samples have only some: remove calibration": bool(assembly.scalars),
        "the conditions of held-out examples are needed, but an exported model has no data: use the run":
            samples.media.dense.dense is not None and model.exported is not None,
    }  # fmt: skip
    for reason, applies in reasons.items():
        if applies:
            raise RecipeError(f"calibration: {reason}")


def _conditions(
    count: int, samples: Requested, model: TrainedModel, assembly: Assembly
) -> tuple[AnyCondition, DataStatistics]:
    """Return conditions like those of the requested samples, but of all kinds, and the statistics of their data.

    What a dense condition says of held-out examples is theirs, so their own power is that of samples.
    """
    given, statistics = as_condition(samples.condition, classes=True, text=False), assembly.statistics
    if given.dense is None:
        trained = trained_classes(assembly.classes or (), model.metadata.get("untrained", ()))
        labels = None if given.labels is None else torch.tensor(trained)[torch.arange(count) % len(trained)]
        return labels, statistics
    with as_recipe_error(RecipeError, "calibration takes the conditions of held-out examples; remove it, or: "):
        held_out = read_held_out(model, assembly, samples.modality, count, 0, "condition")
    assert held_out.dense is not None
    rows = torch.arange(count) % len(held_out.dense)
    labels = None if given.labels is None or held_out.labels is None else held_out.labels[rows]
    present = held_out.media.present
    if present is None or bool(present.all()):
        about = held_out.media.x0.double()[rows] - statistics.mean
        power = to_half_spectrum(about, statistics.grid.dimensions).abs().square().mean(0) / statistics.grid.numel
        statistics = replace(statistics, power=power, cross=None)
    return Condition(labels, dense=held_out.dense[rows]), statistics
