"""Everything about the machine in one place: device, precision, and which share of a batch this process has."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from recipes.engine.errors import RecipeError


@dataclass(frozen=True)
class EngineSettings:
    """The `engine` group of a configuration.

    `precision` is that of the network's matrix products (bfloat16 by autocast); weights and noise stay float32.
    `workers` is the number of threads that load data ahead, and `threads` those of a CPU's operations (null: torch's).
    """

    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    workers: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")


@dataclass(frozen=True)
class Runtime:
    """One process's place: its device and its rank among `world` processes."""

    device: torch.device
    settings: EngineSettings
    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls, settings: EngineSettings) -> Runtime:
        """Choose the device and set what holds for the whole process.

        Raises:
            RecipeError: for a device that this machine does not have.
        """
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"engine.device={name} is not usable here ({reason}): try engine.device=cpu") from error
        if device.type == "cuda":
            # TF32 for float32 products: no visible loss in training, several times the speed.
            torch.set_float32_matmul_precision("high")
        return cls(device, settings)

    def share(self, batch: int) -> range:
        """Return the slots of a global batch that belong to this process."""
        each = batch // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the network runs."""
        wanted = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def compiled(self, network: nn.Module) -> nn.Module:
        """Return the network as it is called: compiled if asked for, sharing its weights with the one given."""
        return cast(nn.Module, torch.compile(network)) if self.settings.compile else network

    def put(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device, without waiting for it where the machine can."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def describe(self) -> str:
        """Name the device and precision in a few words."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{name}{threads}, {self.settings.precision}{', compiled' if self.settings.compile else ''}"
