"""Reports during training: the loss on held-out data, and samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset
from modalities.buckets import bucketed
from modalities.reading import UnreadableFilesError, read_batch
from multisagd import DataStatistics, Denoiser, Grid
from multisagd.condition import Condition, mapped
from multisagd.masked_power import power_behind
from multisagd.seeds import derive_many
from recipes.base.errors import as_recipe_error
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import gathered
from recipes.sampling.condition import DenseConditions
from recipes.sampling.dense import save_conditions
from recipes.sampling.generate import generate
from recipes.sampling.sample_files import CONDITIONS, save_grid
from recipes.training.setup import Job, TrainingData, TrainingModel


def validate(
    denoiser: Denoiser, dataset: Dataset, statistics: DataStatistics, settings: TrainSettings, runtime: Runtime,
    conditional: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the losses and errors of a denoiser on the first `validation.items` examples of a dataset.

    Times, noise and examples are the same in every call, so that two results differ only because of the model. Each
    batch is divided among the ranks. If the modality has buckets, each batch is from one of them, and the results are
    the means over all examples. Raises RecipeError if too many files cannot be read.

    Returns:
        `loss`: the training loss, averaged over all noise levels.
        `level`: for each noise level, named by its time, its log-SNR, training loss, and mean squared error of x0.
        `band`: for each noise level, the squared error of x0 in each frequency band, relative to the data's power
            there: 0 is perfect, and 1 is no better than the mean of the data. Bands are in cycles per sample; the first
            is zero frequency. For padded data, power and error are those of the valid part.
    """
    parts = bucketed(dataset.subset(range(min(settings.validation.items, len(dataset)))))
    results = []
    for part in parts:
        own = statistics.at(part.modality.grid())
        results.append(validate_one_size(denoiser, part, own, settings, runtime, conditional))
    return results[0] if len(parts) == 1 else _weighted_mean(results, [len(part) for part in parts])


def _weighted_mean(results: Sequence[Mapping[str, Any]], weights: Sequence[int]) -> dict[str, Any]:
    """Return the weighted means of numbers in nested mappings; each is over the mappings that contain it."""
    mean: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results for key in result):
        pairs = [(result[key], weight) for result, weight in zip(results, weights, strict=True) if key in result]
        values, own = zip(*pairs, strict=True)
        if isinstance(values[0], Mapping):
            mean[key] = _weighted_mean(values, own)
        else:
            mean[key] = sum(value * weight for value, weight in pairs) / sum(own)
    return mean


@torch.no_grad()
def validate_one_size(
    denoiser: Denoiser, dataset: Dataset, statistics: DataStatistics, settings: TrainSettings, runtime: Runtime,
    conditional: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return what `validate` returns for a dataset on the grid of the statistics."""
    grid, loss, validation, size = statistics.grid, settings.loss, settings.validation, settings.training.batch
    members, names = band_members(grid, validation.bands)
    data_power = _by_band(statistics.power, members)
    times = [(level + 0.5) / validation.levels for level in range(validation.levels)]
    count = min(validation.items, len(dataset))
    levels, bands, total = {}, {}, 0.0
    for number, time in enumerate(times):
        losses, errors, power, hidden = 0.0, 0.0, *torch.zeros(2, len(names), dtype=torch.float64)
        for start in range(0, count, size):
            full_batch = range(start, min(start + size, count))
            # A rank without examples repeats one of another rank, uncounted: gathering sharded weights is collective.
            mine = full_batch[runtime.process.rank :: runtime.process.world]
            items, counted = (mine, 1.0) if mine else (full_batch[:1], 0.0)
            with as_recipe_error(UnreadableFilesError):
                batch = read_batch(dataset, items)
            given = batch.condition(conditional)
            with as_recipe_error(ValueError, "covariance: "):
                bound = denoiser.bound(given, batch.x0.shape)
            condition = mapped(given, runtime.put)
            x0, mask = runtime.put(batch.x0), None if batch.mask is None else runtime.put(batch.mask)
            noise = bound.process.noise(x0.shape, derive_many(settings.seed, "validation", number, items))
            t = torch.full((len(items),), time, device=x0.device)
            with runtime.autocast():
                output_error = bound.error(x0, t, noise, condition)
                values = bound.weigh(output_error, t, mask, loss.metric, loss.weighting)
                error = bound.x0_error(output_error, t).double()
            valid = torch.ones_like(error) if mask is None else mask.expand_as(error).double()
            error = error * valid
            dims = tuple(range(-grid.dimensions, 0))
            spectrum = torch.fft.rfftn(error, dim=dims, norm="ortho").abs().square().sum(0).cpu()
            losses += counted * float(values.double().sum())
            errors += counted * float((error.square().flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)).sum())
            power += counted * _by_band(spectrum, members)
            if mask is not None:
                valid_power = power_behind(mask, statistics.power, grid)
                hidden += counted * len(items) * _by_band(statistics.power - valid_power, members)
        sums = torch.cat([torch.tensor([losses, errors], dtype=torch.float64), power, hidden])
        losses, errors, *of_bands = torch.stack(gathered(sums)).sum(0).tolist()
        power, hidden = torch.tensor(of_bands, dtype=torch.float64).split(len(names))
        reference = (data_power - hidden / count).clamp(min=1e-12)
        log_snr = float(denoiser.process.schedule.log_snr(torch.tensor([time], dtype=torch.float64)))
        key = f"t={time:.3f}"
        levels[key] = {"log_snr": log_snr, "loss": losses / count, "error": errors / count}
        bands[key] = dict(zip(names, (power / count / reference).tolist(), strict=True))
        total += losses / count / len(times)
    return {"loss": total, "level": levels, "band": bands}


def band_members(grid: Grid, bands: int) -> tuple[Tensor, list[str]]:
    """Return the weight of every bin in every band, `(bands, *half_shape)`, and the names of the non-empty bands.

    The bands are those of `Grid.bands`: zero frequency, then rings of equal width, in cycles per sample.
    """
    rings = grid.bands(bands)
    return torch.stack([weight for *_, weight in rings]), [f"{a:.2f}-{b:.2f}" if b else "0" for a, b, _ in rings]


def _by_band(power: Tensor, members: Tensor) -> Tensor:
    """Return the power `(channels, *half_shape)` summed over channels and over the bins of each band, `(bands,)`."""
    return (members * power.sum(0)).flatten(1).sum(1)


def save_shown_conditions(data: TrainingData, folder: Path) -> None:
    """Write the dense conditions of the samples drawn during training, which are always the same, if there are any."""
    modality = data.training.condition_modality
    dense = data.shown.dense if isinstance(data.shown, Condition) else None
    if modality is not None and not (folder / CONDITIONS).exists():
        save_conditions(folder, DenseConditions(dense, modality.in_buckets()[0]))


def save_samples(job: Job, data: TrainingData, model: TrainingModel) -> str:
    """Draw samples with the averaged weights and fixed seeds, save them as one image, and return a message."""
    settings, samples = job.settings, model.learner.samples
    path = settings.run_dir / "samples" / f"{samples:012d}.png"
    seeds = derive_many(settings.seed, "sample", 0, range(settings.sampling.count))
    classes = data.condition.classes
    try:
        x0 = generate(model.averaged, model.request, data.modality.tensor_shape, seeds, data.shown, job.runtime)
        if job.runtime.main:
            media = [data.modality.decode(each) for each in x0]
            labels = data.shown.labels if isinstance(data.shown, Condition) else data.shown
            titles = None if classes is None or labels is None else [classes[each] for each in labels.tolist()]
            save_grid(data.modality, media, path, titles)
            save_shown_conditions(data, path.parent)
    except (ValueError, OSError) as error:
        # An error here must not end training: early weights may produce infinite samples, or the disk may be full.
        return f"note: no samples after {samples:,} samples seen: {error}"
    return f"{samples:,} samples seen: samples in {path}"
