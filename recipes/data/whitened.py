"""What noise that follows conditions hides of the data, measured on examples whitened by their own noise.

Where `Σ_i = R_i R_iᵀ`, the data `R_i⁻¹ x0` have white noise, so their power is the ratio of signal and noise.
"""

import math
import warnings
from collections.abc import Callable

from torch import Tensor

from modalities.base import Dataset
from modalities.buckets import reference_bucket
from modalities.reading import UnreadableFilesError, read_batch
from multisagd import DataStatistics, Flat, Process, SpectralCovariance, terminal_snr
from multisagd.analysis.design import spectral_ends
from multisagd.seeds import derive
from recipes.base.errors import as_recipe_error
from recipes.data.order import Order

EXAMPLES = 128
"""Maximum number of examples that are measured."""
BATCH = 32
HIDDEN = 0.05
"""Signal-to-noise ratio below which noise hides a frequency, and noise-to-signal ratio below which it is invisible."""


def noise_notes(process: Process, dataset: Dataset, seed: int, put: Callable[[Tensor], Tensor]) -> list[str]:
    """Return what noise that follows conditions hides of examples, as text; nothing for other noise.

    The examples have their conditions. `put` moves tensors to the device of the process.

    Raises:
        RecipeError: If too many examples cannot be read, or noise cannot be computed from their conditions.
    """
    if not process.covariance.item_wise:
        return []
    examples = reference_bucket(dataset) or dataset
    indices = Order(len(examples), derive(seed, "whitened")).indices(0, min(EXAMPLES, len(examples)))
    whitened = []
    for start in range(0, len(indices), BATCH):
        with as_recipe_error(UnreadableFilesError):
            batch = read_batch(examples, indices[start : start + BATCH])
        if batch.mask is not None and not bool(batch.mask.all()):
            return ["the data are padded, so what noise that follows the condition hides of them is not measured"]
        with as_recipe_error(ValueError, "covariance: "):
            covariance = process.bound(batch.condition(), batch.x0.shape).covariance
        whitened.append(covariance.whiten(put(batch.x0)).cpu())
    grid = examples.modality.grid()
    white = Process(process.schedule, SpectralCovariance(Flat(), grid))
    with as_recipe_error(ValueError, "covariance: "), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        statistics = DataStatistics.measure(whitened, grid)
        terminal_snr(white, statistics)
        low, high = spectral_ends(statistics, white, HIDDEN)
    return [
        f"next to their own noise, {len(indices)} examples are hidden below a log-SNR of {low:.3g}, and their noise is "
        f"invisible above {high:.3g}: sampling.ends=[{math.floor(low)},{math.ceil(high)}] takes no steps elsewhere",
        *(str(warning.message) for warning in caught),
    ]
