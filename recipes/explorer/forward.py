"""The noise itself and the forward process, white beside shaped, as tensors and as media.

Both are coloured from the same white noise, drawn from one seed: what differs between two pictures is the spectrum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multisagd import Flat, Process, SpectralCovariance, seeds
from recipes.engine.noised import in_range
from recipes.explorer.examples import Example
from recipes.explorer.settings import Settings, build_process

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Noise levels that are shown beside one another."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One datum under two forward processes of the same schedule, and the noise of each, `(channels, *grid)`."""

    example: Example
    processes: Mapping[str, Process]
    noises: Mapping[str, Tensor]

    @classmethod
    def of(cls, example: Example, settings: Settings, group: Mapping[str, Any]) -> Pair:
        """Build the processes "white" and "shaped", and draw from `settings.seed`.

        Raises:
            RecipeError: if the settings make no process.
            ValueError: if the spectrum has no power on the grid.
        """
        shaped = build_process(settings, example, group)
        white = Process(shaped.schedule, SpectralCovariance(Flat(), example.grid))
        processes = {"white": white, "shaped": shaped}
        shape, drawn = (1, *example.x0.shape), [seeds.derive(settings.seed, "explore")]
        return cls(example, processes, {name: each.noise(shape, drawn)[0] for name, each in processes.items()})

    def noise_media(self) -> dict[str, Any]:
        """Return both noises as media, with the standard deviation of the data."""
        sigma, modality = self.example.statistics.sigma_data, self.example.modality
        return {name: modality.decode(sigma * noise) for name, noise in self.noises.items()}

    def noised(self, name: str, time: float) -> Tensor:
        """Return the datum at a time, in the range of data."""
        t = torch.tensor([time], dtype=torch.float64)
        return in_range(self.processes[name], self.example.x0[None], t, self.noises[name][None])[0]

    def media_at(self, time: float) -> dict[str, Any]:
        """Return the datum at a time under both processes, as media."""
        return {name: self.example.modality.decode(self.noised(name, time)) for name in self.processes}
