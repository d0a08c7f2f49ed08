"""Draw samples in batches, for pictures during training and for the `sample` command alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multisagd.denoiser import Denoiser
from multisagd.finishing import finish
from multisagd.guidance import ClassifierFree
from multisagd.mixing import Refinement, sample_refined
from multisagd.restoration import RestoringDenoiser
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, Spacing
from multisagd.spectrum import Flat
from recipes.engine.distribution import gathered
from recipes.engine.errors import RecipeError
from recipes.engine.runtime import Runtime
from recipes.engine.settings import Guidance

ONCE = Refinement(Flat(), iterations=0)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    sampler: Sampler,
    shape: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    condition: Tensor | None,
    runtime: Runtime,
    guidance: Guidance | None = None,
    spacing: Spacing = "time",
    batch: int = 64,
    refinement: Refinement | None = None,
    report: Callable[[int], None] | None = None,
    times: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return one sample per seed, `(len(seeds), *shape)` float32 on the CPU, `shape` being (channels, *grid).

    `condition` is one class number per seed, int64 `(len(seeds),)`, or text embeddings `(len(seeds), tokens, width)`;
    None draws without one. `times` override steps and spacing. With a `refinement` samples are drawn again, as
    `sample_refined` says; those of a restoring denoiser are finished (`multisagd.finishing`), by its mean or with
    a `residual` by a sample. `report` hears the number of samples done so far. Several ranks draw a share each, and
    every one returns all.

    Raises:
        ValueError: if there is not one condition per seed.
        RecipeError: for numbers in the settings of process or sampler that nothing can be drawn with.
    """
    if condition is not None and len(condition) != len(seeds):
        raise ValueError(f"{len(seeds)} samples need as many conditions, got {len(condition)}")
    guided: AnyDenoiser = denoiser
    if guidance is not None and guidance.scale != 1.0 and condition is not None:
        guided = ClassifierFree(denoiser, guidance.scale, guidance.interval)
    # All ranks draw equally many, for sharded weights are gathered together: what is too much is cut off at the end.
    share = -(-len(seeds) // runtime.place.world)
    mine = [min(place, len(seeds) - 1) for place in range(runtime.place.rank * share, (runtime.place.rank + 1) * share)]
    parts = []
    for start in range(0, share, batch):
        places = mine[start : start + batch]
        chosen = [seeds[place] for place in places]
        told = None if condition is None else runtime.put(condition[places])
        try:
            with runtime.autocast():
                x0 = sample_refined(
                    guided, sampler, (len(chosen), *shape), steps, chosen, refinement or ONCE, condition=told,
                    spacing=spacing, times=times,
                )  # fmt: skip
                if isinstance(denoiser, RestoringDenoiser):
                    x0 = finish(denoiser, x0, told, residual, chosen)
        except (ValueError, ArithmeticError) as error:  # settings of a process or sampler that make no sense together
            raise RecipeError(f"nothing can be drawn with these settings: {error}") from error
        parts.append(x0.float().cpu())
        if report is not None:
            report(min(len(seeds), (start + len(chosen)) * runtime.place.world))
    return torch.cat(gathered(torch.cat(parts)))[: len(seeds)]
