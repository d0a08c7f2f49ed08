"""Estimate the memory that training needs, and the disk space of its checkpoints, and describe them as text."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from multisagd.networks.cost import activation_bytes
from recipes.base.quantities import size_in_words
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.performance import available_memory

MOMENTS = 2
"""Number of values that the optimiser keeps for every trained parameter."""


@dataclass(frozen=True)
class Cost:
    """Bytes that one process needs on its device, and bytes of files on disk.

    On the device: the network's `weights`, `state` (its gradients and optimiser state), all `averages` of its weights,
    and the `activations` of one forward pass of `samples` samples, which are None if unknown. On disk: one
    `checkpoint`, the maximum of all `checkpoints` at one time, and all `snapshots` of the averages.
    """

    weights: float
    state: float
    averages: float
    activations: int | None
    samples: int
    checkpoint: int
    checkpoints: int
    snapshots: int


def training_cost(
    network: nn.Module, shape: tuple[int, ...], settings: TrainSettings, runtime: Runtime, held_out: bool
) -> Cost:
    """Return the cost of training a network on samples of `shape` (channels, *grid).

    It must be called before the network is parallelised. `held_out` says whether there are held-out examples, whose
    scores select checkpoints to keep.
    """
    training, engine, world = settings.training, settings.engine, runtime.process.world
    trained = sum(each.nbytes for each in network.parameters() if each.requires_grad)
    weights = sum(each.nbytes for each in network.state_dict().values())
    widths = len(training.averages.widths) if training.averages.snapshots else 0
    samples = len(runtime.share(training.batch)) // training.accumulation
    with runtime.autocast():
        activations = activation_bytes(network, (samples, *shape), runtime.device, engine.recompute)
    sharded = world > 1 and engine.distribution == "fsdp"
    parts = (engine.shard_ranks or world) if sharded else 1
    # DDP keeps a second copy of the gradients, to exchange them.
    state = (1 + MOMENTS + (world > 1 and not sharded)) * trained
    checkpoint = (2 + widths) * weights + MOMENTS * trained
    return Cost(
        weights / parts, state / parts, (1 + widths) * weights / parts, activations, samples,
        checkpoint, _most_checkpoints(settings, held_out) * checkpoint, training.averages.snapshots * widths * weights,
    )  # fmt: skip


def _most_checkpoints(settings: TrainSettings, held_out: bool) -> int:
    """Return the maximum number of checkpoints that exist at one time."""
    every, kept = settings.every, settings.keep + 1  # one is written before another is removed
    if not every.checkpoint:
        return kept
    kept += every.checkpoint_minutes > 0  # the last one that was saved by samples is kept besides
    kept += settings.training.samples // settings.keep_every if settings.keep_every else 0
    if held_out and every.validation:
        # The best one; between regular checkpoints also the last one, and the best one before each of the kept ones.
        kept += 1 if every.validation % every.checkpoint == 0 else settings.keep + 2
    return kept


def cost_lines(cost: Cost, settings: TrainSettings, runtime: Runtime) -> Iterator[str]:
    """Yield a line with the memory and disk space that training needs, and a note if the memory is not free now."""
    snapshots = f" (and snapshots of averages {size_in_words(cost.snapshots)})" if cost.snapshots else ""
    files = (
        f"checkpoints take {size_in_words(cost.checkpoint)} each, at most {size_in_words(cost.checkpoints)}{snapshots}"
    )
    if cost.activations is None:
        yield files
        return
    engine, several = settings.engine, runtime.process.world > 1
    offloaded = engine.offload and several and engine.distribution == "fsdp"
    resident = 0 if offloaded else cost.weights + cost.state + cost.averages
    how = f"{', recomputed' if engine.recompute else ''}{', at most, as it is compiled' if engine.compile else ''}"
    yield (
        f"needs about {size_in_words(resident + cost.activations)} of memory on {runtime.device}"
        f"{' in every process' if several else ''}: weights, gradients and optimiser "
        f"{size_in_words(cost.weights + cost.state)}, averages {size_in_words(cost.averages)}"
        f"{' (both in the memory of the CPU)' if offloaded else ''}, activations {size_in_words(cost.activations)} for "
        f"{cost.samples:,} sample{'s' * (cost.samples > 1)} at a time{how}; {files}"
    )
    free = available_memory(runtime.device)
    # The weights and the averages are on the device already.
    room = None if free is None else free - (0 if offloaded else cost.state)
    if room is not None and cost.activations > room:
        yield f"note: {_remedy(cost, settings, runtime, room, free or 0)}"


def _remedy(cost: Cost, settings: TrainSettings, runtime: Runtime, room: float, free: int) -> str:
    """Return the note for activations that do not fit into `room` bytes."""
    batch, share = settings.training.batch, len(runtime.share(settings.training.batch))
    each = (cost.activations or 0) / cost.samples
    divisors = (parts for parts in range(settings.training.accumulation + 1, share + 1) if share % parts == 0)
    fitting = next((parts for parts in divisors if each * share / parts <= room), None)
    lack = f"this is more than the {size_in_words(free)} of memory that is free on {runtime.device} now"
    if fitting is not None:
        return (
            f"{lack}: training.accumulation={fitting} needs less, with the same result; a training.batch below {batch} "
            "needs less too, but changes the result"
        )
    other = "a smaller network" if settings.engine.recompute else "engine.recompute=true, or a smaller network"
    return f"{lack}, and one sample at a time (training.accumulation={share}) would not fit either: try {other}"
