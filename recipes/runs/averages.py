"""Averages of any width, made after training from stored averages of other widths.

    averages/000000003000/average_050.safetensors, average_150.safetensors, checkpoint.json

Every snapshot has the form of a checkpoint. The averages at a checkpoint are in the checkpoint itself.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from multisagd.ema import reconstruction
from recipes.base.errors import RecipeError
from recipes.runs.checkpoint import Checkpoints, Shapes, State, load, samples_of
from recipes.runs.settings import Averages, average_part
from recipes.runs.state import named, shapes
from recipes.runtime.distribution import Group

FOLDER = "averages"
PREFIX = "module."
ALL = 10**9
"""Number of snapshots to keep."""


def snapshots(run_dir: Path, group: Group = None) -> Checkpoints:
    """Return the snapshots of a run's averages."""
    return Checkpoints(run_dir / FOLDER, keep=ALL, group=group)


def check_width(settings: Averages, width: float) -> dict[str, float]:
    """Return the stored widths by the names of their parts, if they can make an average of this width.

    Raises:
        RecipeError: If the run stored no averages, or the width is not between the smallest and the largest.
    """
    widths = sorted(settings.widths)
    if not settings.snapshots:
        raise RecipeError(
            f"ema={width:g}: this run stored no averages of other widths; train with training.averages.snapshots=16"
        )
    if not widths[0] <= width <= widths[-1]:
        raise RecipeError(f"ema={width:g}: this run's averages can make widths from {widths[0]:g} to {widths[-1]:g}")
    return {average_part(each): each for each in widths}


def averaged_weights(
    run_dir: Path, checkpoint: State, settings: Averages, width: float, check: Callable[[Shapes], None]
) -> dict[str, Tensor]:
    """Return the network's weights averaged with another width, by parameter name, at a checkpoint.

    `checkpoint` contains the averages there; `check` is called with the shapes of every average before it is read.

    Raises:
        RecipeError: As `check_width` does, or if the averages are unreadable or do not match the network.
    """
    parts = check_width(settings, width)

    def check_parts(stored: Mapping[str, Shapes]) -> None:
        for part in parts:
            if part not in stored:
                raise RecipeError(f"ema={width:g}: {part} is missing in the run's averages")
            check(named(stored[part], PREFIX))

    folders = [path for path in snapshots(run_dir).folders() if samples_of(path) < checkpoint.samples]
    states = [load(path, parts=parts, check=check_parts) for path in folders]
    check_parts({part: shapes(tensors) for part, tensors in checkpoint.tensors.items()})
    stored = [(state.tensors[part], each) for state in (*states, checkpoint) for part, each in parts.items()]
    now = _updates(stored[-1][0])
    factors = reconstruction([(_updates(tensors), each) for tensors, each in stored], now, width)
    return _combined([tensors for tensors, _ in stored], factors.tolist())


def _combined(stored: Sequence[Mapping[str, Tensor]], factors: Sequence[float]) -> dict[str, Tensor]:
    """Return the linear combination of weights, summed in float64; buffers and integers are those of the last."""
    result = {}
    for name, last in named(stored[-1], PREFIX).items():
        if not last.is_floating_point():
            result[name] = last
            continue
        total = torch.zeros(last.shape, dtype=torch.float64)
        for tensors, factor in zip(stored, factors, strict=True):
            total += factor * tensors[f"{PREFIX}{name}"].double()
        result[name] = total.to(last.dtype)
    return result


def _updates(tensors: Mapping[str, Tensor]) -> int:
    count = int(tensors["_extra_state"])
    if count < 1:
        raise RecipeError(f"an average has {count} updates: remove the run's folder {FOLDER}")
    return count
