"""Draw samples in batches: the one place, for pictures during training and for every command alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multisagd.denoiser import Denoiser
from multisagd.finishing import finish
from multisagd.guidance import ClassifierFree
from multisagd.mixing import sample_refined
from multisagd.restoration import RestoringDenoiser
from multisagd.sampling import AnyDenoiser
from recipes.base.errors import RecipeError
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import gathered
from recipes.sampling.request import SamplingRequest


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    request: SamplingRequest,
    shape: Sequence[int],
    seeds: Sequence[int],
    condition: Tensor | None,
    runtime: Runtime,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Return one sample per seed, `(len(seeds), *shape)` float32 on the CPU, `shape` being (channels, *grid).

    `condition` is one class number per seed, int64 `(len(seeds),)`, or text embeddings `(len(seeds), tokens, width)`;
    None draws without one. Samples of a restoring denoiser are finished (`multisagd.finishing`). `report` is called
    with the number of samples done so far. Several ranks draw a share each, and every one returns all.

    Raises:
        ValueError: if there is not one condition per seed.
        RecipeError: for numbers in the settings of process or sampler that nothing can be drawn with.
    """
    if condition is not None and len(condition) != len(seeds):
        raise ValueError(f"{len(seeds)} samples need as many conditions, got {len(condition)}")
    guided: AnyDenoiser = denoiser
    if request.guidance.scale != 1.0 and condition is not None:
        guided = ClassifierFree(denoiser, request.guidance.scale, request.guidance.interval)
    # All ranks draw equally many, for sharded weights are gathered together: what is too much is cut off at the end.
    share = -(-len(seeds) // runtime.place.world)
    mine = [min(place, len(seeds) - 1) for place in range(runtime.place.rank * share, (runtime.place.rank + 1) * share)]
    parts = []
    for start in range(0, share, request.batch):
        places = mine[start : start + request.batch]
        chosen = [seeds[place] for place in places]
        told = None if condition is None else runtime.put(condition[places])
        try:
            with runtime.autocast():
                x0 = sample_refined(
                    guided, request.sampler, (len(chosen), *shape), request.steps, chosen, request.refinement,
                    condition=told, spacing=request.spacing, times=request.times,
                )  # fmt: skip
                if isinstance(denoiser, RestoringDenoiser):
                    x0 = finish(denoiser, x0, told, request.residual, chosen)
        except (ValueError, ArithmeticError) as error:  # settings of a process or sampler that make no sense together
            raise RecipeError(f"nothing can be drawn with these settings: {error}") from error
        parts.append(x0.float().cpu())
        if report is not None:
            report(min(len(seeds), (start + len(chosen)) * runtime.place.world))
    return torch.cat(gathered(torch.cat(parts)))[: len(seeds)]
