"""Device, precision, and this process's rank."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from multisagd.networks.cost import blocks, recompute
from recipes.base.errors import RecipeError, check_minimum
from recipes.runtime import distribution
from recipes.runtime.distribution import SINGLE, Distribution, Rank

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions that apply only to matrix products."""


@dataclass(frozen=True)
class EngineSettings:
    """The group `engine` of a configuration.

    `precision` is the precision of the network's matrix products (bfloat16 and float16 by autocast); weights and noise
    stay float32. With float16, training scales the loss (`recipes.training.loss_scale`). With float64, everything is in
    double precision, to distinguish rounding errors from programming errors. `workers` is the number of threads that
    prefetch data, and `threads` the number for CPU operations (null: torch's default).

    Some settings apply only to several processes: `distribution`, and for fsdp `shard_ranks`, `reshard` and `offload`
    (`recipes.runtime.distribution`). A process waits for another for up to `timeout` seconds. After `hang_report`
    seconds without a step, the position of each process is reported (`recipes.runtime.watchdog`).

    With `recompute`, activations are computed again in the backward pass instead of being stored. With
    `save_in_background`, checkpoints are written while training continues. `profile` steps are profiled
    (`recipes.runtime.performance`), and `peak_flops` is one device's peak rate, if its name does not determine it.
    """

    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    compile: bool = False
    workers: int = 0
    threads: int | None = None
    distribution: Distribution = "ddp"
    shard_ranks: int | None = None
    reshard: bool = True
    offload: bool = False
    timeout: float = 600.0
    hang_report: float = 300.0
    recompute: bool = False
    save_in_background: bool = True
    profile: int = 0
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        check_minimum(self, 1, "threads")
        check_minimum(self, 0, "workers", "hang_report", "profile")
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ValueError(f"peak_flops must be above 0, got {self.peak_flops}")
        if self.timeout <= 0 or (self.shard_ranks is not None and self.shard_ranks < 1):
            raise ValueError(f"timeout and shard_ranks must be above 0, got {self.timeout} and {self.shard_ranks}")


@dataclass(frozen=True)
class Runtime:
    """One process's device and rank."""

    device: torch.device
    settings: EngineSettings
    process: Rank = SINGLE

    @classmethod
    def start(cls, settings: EngineSettings) -> Self:
        """Choose the device, set process-wide options, and connect to the other processes, if any.

        Raises RecipeError if the device is unavailable, weights would be offloaded from a CPU to itself, or torchrun's
        variables are incomplete.
        """
        process = Rank.from_environment()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and process.world > 1:
            name = f"cuda:{process.local_rank}"
        try:
            device = torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            message = f" is not usable here ({reason}): try engine.device=cpu"
            if "device string" in reason:
                message = ": unknown kind of device; write auto, cpu, cuda or cuda:1"
            raise RecipeError(f"engine.device={name}{message}") from error
        if device.type == "cuda":
            # TF32 for float32 products: several times faster, with no visible effect on training.
            torch.set_float32_matmul_precision("high")
            torch.cuda.set_device(device)
        if settings.offload and settings.distribution == "fsdp" and process.world > 1 and device.type == "cpu":
            raise RecipeError(
                "engine.offload=true moves weights from a GPU to the CPU, but this device is a CPU: set it to false"
            )
        distribution.join(process, device, settings.timeout)
        return cls(device, settings, process)

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.process.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and data."""
        return torch.float64 if self.settings.precision == "float64" else torch.float32

    @property
    def products(self) -> torch.dtype:
        """Precision of the network's matrix products."""
        return HALF.get(self.settings.precision, self.dtype)

    def share(self, batch: int, accumulation: int = 1) -> range:
        """Return the range of samples in a global batch of size `batch` that this process handles.

        Raises RecipeError if the ranges would have different sizes, or cannot be split into `accumulation` equal parts.
        """
        each, rest = divmod(batch, self.process.world)
        if rest:
            world = self.process.world
            raise RecipeError(
                f"training.batch={batch} cannot be split over {world} processes: choose a multiple of {world}"
            )
        if each % accumulation:
            raise RecipeError(
                f"training.batch={batch} gives each of {self.process.world} processes {each} samples, which cannot be "
                f"split into training.accumulation={accumulation} equal parts: choose a divisor of {each}"
            )
        return range(self.process.rank * each, (self.process.rank + 1) * each)

    def parallelize(self, network: nn.Module) -> nn.Module:
        """Return a network, already on the device, parallelised over all ranks for training.

        With fsdp the network itself is sharded; with ddp the result wraps the full network.
        """
        if self.settings.recompute:
            recompute(network)
        if self.process.world == 1:
            return network
        if self.settings.distribution == "ddp":
            return distribution.replicate(network, self.device)
        return self.sharded(network, self.settings.reshard)

    def sharded(self, network: nn.Module, reshard: bool = True) -> nn.Module:
        """Return a network, sharded in place with fsdp, and otherwise unchanged.

        Its blocks are sharded one by one, so that only a few are gathered at a time. `reshard` frees the weights of a
        block after its forward pass, and gathers them again for the backward pass. In bfloat16 and float16, gradients
        are reduced in float32. Raises RecipeError if `shard_ranks` does not divide the number of processes.
        """
        settings, world = self.settings, self.process.world
        if world == 1 or settings.distribution != "fsdp":
            return network
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        copies, rest = divmod(world, settings.shard_ranks or world)
        if rest:
            raise RecipeError(
                f"engine.shard_ranks={settings.shard_ranks} does not divide the {world} processes: choose a divisor"
            )
        shape, names = ((world,), None) if copies == 1 else ((copies, world // copies), ("copy", "shard"))
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        half = settings.precision in HALF
        precision = MixedPrecisionPolicy(self.products, torch.float32) if half else MixedPrecisionPolicy()
        policy = CPUOffloadPolicy() if settings.offload else OffloadPolicy()
        for block in (*blocks(network), network):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=precision, offload_policy=policy)
        return network

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context manager for calls of the network, which sets the precision of its products."""
        half = self.settings.precision in HALF
        return torch.autocast(self.device.type, self.products if half else torch.bfloat16, enabled=half)

    def compiled(self, network: nn.Module, sizes: int = 1) -> nn.Module:
        """Return the network, compiled if configured, with the same weights.

        For inputs of several `sizes`, one graph is compiled for each: graphs for any size are slower, and their number
        is not known.
        """
        if not self.settings.compile:
            return network
        if sizes == 1:
            return cast(nn.Module, torch.compile(network))
        import torch._dynamo.config as limits

        # Beyond the limit, torch would run the network without compiling it. Training and evaluation may differ.
        limits.recompile_limit = max(limits.recompile_limit, 2 * sizes)
        return cast(nn.Module, torch.compile(network, dynamic=False))

    def put(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device, moved asynchronously if possible; floats are converted to `dtype`."""
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def describe(self) -> str:
        """Return a short description of device, precision and processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        ranks = f", {self.process.world} processes ({self.settings.distribution})" if self.process.world > 1 else ""
        return f"{name}{threads}, {self.settings.precision}{', compiled' if self.settings.compile else ''}{ranks}"
