"""Vorticity of turbulence with a passive tracer: fields of two related variables that need no download."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from modalities.field import Field
from modalities.field_sets import Vorticity
from modalities.navier_stokes import NavierStokes
from modalities.passive_tracer import TracerFlow
from multisagd.seeds import derive


class VorticityTracer(Vorticity):
    """Vorticity of two-dimensional turbulence, and a tracer that its flow carries down a mean gradient along y.

    It is simulated, stored and held out like `Vorticity`, which also describes the other arguments. With an
    augmentation seed, an example is shifted and reflected at random, which are the symmetries of flow and gradient.

    Args:
        modality: a `Field` of two variables, vorticity in 1/s and tracer, on two periodic axes of equal size.
        diffusivity: of the tracer in m²/s.
        gradient: mean gradient of the tracer along y, in its unit per metre.
        trajectories: number of independent solutions.
        snapshots: number of fields of each.
        interval: time between two snapshots in seconds.
        spin_up: time before the first snapshot in seconds; there are no deviations of the tracer at its beginning.
        viscosity: in m²/s.
        drag: rate of a linear drag in 1/s.
        injection: enstrophy that the forcing injects per second, in 1/s³.
        wavenumbers: lowest and highest forced wavenumber, in waves per side.
        initial: standard deviation of the first vorticity in 1/s.
        step: maximum time step in seconds (None: 1.92 / points along an axis).
        validation: fraction of the trajectories that is held out for validation.
        test: fraction of the trajectories that is held out for testing.
        seed: random seed.
        cache: folder in which the simulation is stored (None: the user's cache folder).
        trusted: False if the settings came with another person's run: nothing is then written.

    Raises:
        ValueError: If the modality does not fit, or a setting is out of range.
    """

    stored_as, lasting = "vorticity_tracer", "a few minutes"
    variable_count = 2

    def __init__(
        self,
        modality: Field,
        diffusivity: float = 0.0125,
        gradient: float = 1.0,
        trajectories: int = 128,
        snapshots: int = 32,
        interval: float = 4.0,
        spin_up: float = 15.0,
        viscosity: float = 0.0125,
        drag: float = 0.3,
        injection: float = 1.0,
        wavenumbers: tuple[float, float] = (2.0, 4.0),
        initial: float = 1.5,
        step: float | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        cache: Path | None = None,
        trusted: bool = True,
    ) -> None:
        super().__init__(
            modality, trajectories, snapshots, interval, spin_up, viscosity, drag, injection, wavenumbers, initial,
            step, validation, test, seed, cache, trusted,
        )  # fmt: skip
        flow = {each.name: getattr(self.solver, each.name) for each in fields(NavierStokes)}
        self.solver = TracerFlow(**flow, diffusivity=diffusivity, gradient=gradient)

    def first(self, seeds: Sequence[int]) -> Tensor:
        """Return the first states `(trajectories, 2, size, size)` in their units, of one seed each."""
        vorticity = super().first(seeds)
        return torch.stack([vorticity, torch.zeros_like(vorticity)], dim=1)

    def moved(self, field: Tensor, seed: int) -> Tensor:
        """Return a field `(2, size, size)` in its units, shifted and reflected at random."""
        draw = random.Random(derive(seed, "symmetry"))
        size = field.shape[-1]
        vorticity, tracer = field.roll((draw.randrange(size), draw.randrange(size)), (-2, -1)).unbind()
        # A reflection reverses the sense of rotation; one along y also reverses the gradient.
        if draw.randrange(2):
            vorticity, tracer = -vorticity.flip(1), tracer.flip(1)
        if draw.randrange(2):
            vorticity, tracer = -vorticity.flip(0), -tracer.flip(0)
        return torch.stack([vorticity, tracer])
