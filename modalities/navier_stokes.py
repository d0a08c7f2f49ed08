"""Solve the two-dimensional Navier–Stokes equations on a periodic square, with a pseudo-spectral method.

The unknown is the vorticity w, with the velocity u that it induces, viscosity nu, linear drag mu and a forcing f:

    dw/dt + u · grad w = nu laplace(w) - mu w + f

Products are computed on the grid, and wavenumbers above a third of its points are removed (the 2/3 rule), so that no
aliases remain and, without viscosity, drag and forcing, energy and enstrophy are conserved (S. A. Orszag, Journal of
the Atmospheric Sciences 28, 1971). The linear terms are solved exactly by an integrating factor, the others by the
fourth-order Runge–Kutta method. All numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from multisagd.seeds import checked_seeds, generator_seed

EXACT = torch.float64
COURANT = 2.8
"""Maximum of (|u| + |v|) × largest wavenumber × time step for which the Runge–Kutta method is stable."""
MARGIN, CHECKED_EVERY = 1.3, 8
"""By how much velocities may grow until the next check, and the number of steps between two checks."""
MAX_HALVINGS = 8
CHUNK = 16
"""Number of trajectories solved at a time: more do not fit into a processor's cache."""
MAX_KICKS = 1 << 22
"""Maximum number of steps times forced wavenumbers of one call: 1 GiB of random numbers."""


@dataclass(frozen=True)
class RingForcing:
    """Random forcing of all wavenumbers from `low` to `high` (multiples of 2π / side), independent at all times.

    `rate` is the mean enstrophy that it injects per unit of time, in 1/s³.

    Raises:
        ValueError: If the ring contains no wavenumber, or the rate is negative or not finite.
    """

    rate: float
    low: float = 2.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate must be 0 or positive, and finite, got {self.rate}")
        if not 0 < self.low <= self.high or self.high < 1:
            raise ValueError(f"expected 0 < low <= high and high >= 1, got low={self.low} and high={self.high}")
        if self.high > MAX_KICKS or not self.modes:
            raise ValueError(
                f"no wavenumber is from low={self.low:g} to high={self.high:g}, or too many: each is the length of a "
                "vector of two integers"
            )

    @property
    def modes(self) -> int:
        """Number of wavenumbers in the ring, of which opposite ones count once."""
        count, squares = 0, ((self.low - 1e-9) ** 2, (self.high + 1e-9) ** 2)
        for row in range(1, math.floor(self.high + 1e-9) + 1):
            first, last = (math.sqrt(max(0.0, each - row**2)) for each in squares)
            count += 2 * (math.floor(last) - math.ceil(first) + 1) - (first == 0)
        return count + math.floor(self.high + 1e-9) - math.ceil(self.low - 1e-9) + 1


@dataclass(frozen=True)
class NavierStokes:
    """The equations on a square of `side` metres with `size` × `size` points, solved in time steps of `step` seconds.

    Steps are halved as often as the velocities need. `viscosity` is in m²/s and `drag` in 1/s. States are vorticities
    in 1/s, float64 `(batch, size, size)` on the axes y and x. A trajectory does not depend on the others of its batch.

    Raises:
        ValueError: If a number is out of range, or the forcing is of wavenumbers that the grid does not resolve.
    """

    size: int
    viscosity: float
    drag: float = 0.0
    forcing: RingForcing | None = None
    step: float = 0.05
    side: float = 2 * math.pi

    def __post_init__(self) -> None:
        if self.size < 4:
            raise ValueError(f"size must be at least 4 points, got {self.size}")
        for name, least in (("viscosity", 0.0), ("drag", 0.0), ("step", 1e-9), ("side", 1e-9)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {least:g} and finite, got {getattr(self, name)}")
        if self.forcing is not None and self.forcing.high > self.largest:
            raise ValueError(
                f"forcing of wavenumbers up to {self.forcing.high:g} needs at least "
                f"{3 * math.ceil(self.forcing.high) + 1} points, got size={self.size}"
            )

    @property
    def largest(self) -> int:
        """The largest wavenumber along an axis that is kept, as a multiple of 2π / side."""
        return (self.size - 1) // 3

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return (self.size, self.size)

    @cached_property
    def _waves(self) -> tuple[Tensor, Tensor]:
        """Wavenumbers along y and x in radians per metre, which broadcast over the half spectrum."""
        unit = 2 * math.pi / self.side
        y = torch.fft.fftfreq(self.size, 1 / self.size, dtype=EXACT) * unit
        x = torch.fft.rfftfreq(self.size, 1 / self.size, dtype=EXACT) * unit
        return y[:, None], x[None]

    @cached_property
    def _squared(self) -> Tensor:
        y, x = self._waves
        return y.square() + x.square()

    @cached_property
    def _kept(self) -> Tensor:
        limit = (self.largest + 0.5) * 2 * math.pi / self.side
        y, x = self._waves
        return (y.abs() < limit) & (x.abs() < limit)

    @cached_property
    def _operators(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Factors that give the velocities u and v of a vorticity, and the advection of uv and of v² - u²."""
        y, x = self._waves
        inverse = torch.where(self._squared > 0, 1 / self._squared, 0.0) * self._kept
        return 1j * y * inverse, -1j * x * inverse, (x.square() - y.square()) * self._kept, x * y * self._kept

    @cached_property
    def _forced(self) -> tuple[Tensor, Tensor]:
        """Rows and columns `(modes,)` of the forced wavenumbers in the half spectrum, one of each opposite pair."""
        assert self.forcing is not None
        radius = self._squared.sqrt() * self.side / (2 * math.pi)
        ring = (radius >= self.forcing.low - 1e-9) & (radius <= self.forcing.high + 1e-9) & self._kept
        ring[self.size // 2 + 1 :, 0] = False  # the conjugates of the first half of this column
        rows, columns = ring.nonzero(as_tuple=True)
        return rows, columns

    def initial(self, seeds: Sequence[int], deviation: float, low: float = 2.0, high: float = 4.0) -> Tensor:
        """Return random vorticities `(batch, size, size)` of wavenumbers from `low` to `high`, multiples of 2π / side.

        They are Gaussian, have the expected standard deviation `deviation` in 1/s, and depend on one seed each.

        Raises:
            ValueError: If there are no such wavenumbers on the grid.
        """
        drawn = [torch.Generator().manual_seed(generator_seed(seed)) for seed in checked_seeds(seeds)]
        white = torch.stack([torch.randn(self.size, self.size, generator=each, dtype=EXACT) for each in drawn])
        radius = self._squared.sqrt() * self.side / (2 * math.pi)
        ring = (radius >= low - 1e-9) & (radius <= high + 1e-9) & self._kept
        states = torch.fft.irfft2(torch.fft.rfft2(white) * ring, s=(self.size, self.size))
        counts = torch.full((self.size // 2 + 1,), 2.0, dtype=EXACT)
        counts[0] = 1.0
        share = float((ring * counts).sum()) / self.size**2
        if not share:
            raise ValueError(f"the grid has no wavenumber from {low:g} to {high:g}: set others")
        return states * (deviation / share**0.5)

    def velocity(self, vorticity: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocities along x and y in m/s, `(batch, size, size)` each."""
        return self._velocity(torch.fft.rfft2(vorticity.to(EXACT)))

    def _velocity(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        of_u, of_v, _, _ = self._operators
        shape = (self.size, self.size)
        return torch.fft.irfft2(of_u * spectrum, s=shape), torch.fft.irfft2(of_v * spectrum, s=shape)

    def _advection(self, spectrum: Tensor) -> Tensor:
        """Return the rate of change of a spectrum by advection, the transform of -u · grad w.

        It is computed in a form with two products only: C. Basdevant, Journal of Computational Physics 50, 1983.
        """
        return self._advected(*self._velocity(spectrum))

    def _advected(self, u: Tensor, v: Tensor) -> Tensor:
        _, _, of_product, of_difference = self._operators
        return of_product * torch.fft.rfft2(u * v) + of_difference * torch.fft.rfft2((v - u) * (v + u))

    def resolved(self, vorticity: Tensor) -> Tensor:
        """Return a vorticity `(batch, size, size)` without its mean and the wavenumbers that are not kept."""
        spectrum = torch.fft.rfft2(vorticity.to(EXACT)) * self._kept
        spectrum[..., 0, 0] = 0
        return torch.fft.irfft2(spectrum, s=(self.size, self.size))

    @torch.no_grad()
    def evolve(self, vorticity: Tensor, duration: float, seeds: Sequence[int] | None = None) -> Tensor:
        """Return the vorticity `(batch, size, size)` after `duration` seconds.

        `seeds`, one for each item, determine the random forcing; they are needed with a forcing only. The same state
        with other seeds gives an ensemble. To continue a trajectory, pass other seeds than before.

        Raises:
            ValueError: If the shape or duration is invalid, seeds are missing, or the time step is too long or too
                short for this duration (see `steps`).
        """
        if vorticity.ndim == 0 or tuple(vorticity.shape[1:]) != self.state_shape:
            shape = ", ".join(map(str, self.state_shape))
            raise ValueError(f"expected states (batch, {shape}), got {tuple(vorticity.shape)}")
        self.steps(duration)
        if self.forcing is not None and seeds is None:
            raise ValueError("a random forcing needs seeds, one for each item")
        numbers = None if seeds is None or self.forcing is None else checked_seeds(seeds, len(vorticity))
        parts = [
            self._evolved(part, duration, None if numbers is None else numbers[start : start + CHUNK])
            for start, part in zip(range(0, len(vorticity), CHUNK), vorticity.split(CHUNK), strict=True)
        ]
        return torch.cat(parts)

    def steps(self, duration: float) -> int:
        """Return the number of time steps of a duration in seconds.

        Raises:
            ValueError: If the duration is not positive and finite, or the steps are too many.
        """
        if not 0 < duration < math.inf:
            raise ValueError(f"duration must be positive and finite, got {duration}")
        modes, steps = self.forcing.modes if self.forcing else 1, max(1, math.ceil(duration / self.step - 1e-9))
        if steps * modes > MAX_KICKS:
            raise ValueError(
                f"{duration:g} s take {steps:,} steps of {self.step:g} s, but with {modes:,} forced wavenumbers at "
                f"most {MAX_KICKS // modes:,} are taken at a time: set a longer step, a shorter time or fewer "
                "wavenumbers"
            )
        return steps

    def _evolved(self, vorticity: Tensor, duration: float, seeds: Sequence[int] | None) -> Tensor:
        steps = self.steps(duration)
        step = duration / steps
        kicks = None if seeds is None else torch.stack([self._kicks(seed, steps, step) for seed in seeds], dim=1)
        spectrum = torch.fft.rfft2(vorticity.to(EXACT)) * self._kept
        halvings = [0] * len(spectrum)
        for number in range(steps):
            if number % CHECKED_EVERY == 0:
                halvings = self._halvings(spectrum, step)
            spectrum = self._advanced(spectrum, step, halvings)
            if kicks is not None:
                self._kick(spectrum, kicks[number])
        self._halvings(spectrum, step)
        return torch.fft.irfft2(spectrum, s=(self.size, self.size))

    def _kick(self, spectrum: Tensor, kicks: Tensor) -> None:
        """Add the forcing of one step `(batch, modes)` to a spectrum, in place."""
        rows, columns = self._forced
        spectrum[:, rows, columns] += kicks
        # The first column holds both of opposite wavenumbers.
        spectrum[:, -rows[columns == 0], 0] += kicks[:, columns == 0].conj()

    def _decay(self, step: float) -> Tensor:
        """Return the factors by which the linear terms reduce a spectrum in a step."""
        return torch.exp(-(self.viscosity * self._squared + self.drag) * step)

    def _advanced(self, spectrum: Tensor, step: float, halvings: Sequence[int]) -> Tensor:
        """Return the state after a step, which each item divides into as many halves as it needs."""
        advanced = []
        for number in sorted(set(halvings)):
            part = spectrum[[item for item, own in enumerate(halvings) if own == number]]
            shorter = step / 2**number
            decay = self._decay(shorter)
            for _ in range(2**number):
                part = self._stepped(part, shorter, decay)
            advanced.append(part)
        if len(advanced) == 1:
            return advanced[0]
        order = sorted(range(len(halvings)), key=lambda item: (halvings[item], item))
        return torch.cat(advanced)[torch.tensor(order).argsort()]

    def _stepped(self, spectrum: Tensor, step: float, decay: Tensor) -> Tensor:
        half = decay.sqrt()
        first = self._advection(spectrum)
        second = self._advection(half * (spectrum + step / 2 * first))
        third = self._advection(half * spectrum + step / 2 * second)
        fourth = self._advection(decay * spectrum + step * half * third)
        return decay * (spectrum + step / 6 * first) + step / 3 * half * (second + third) + step / 6 * fourth

    def _halvings(self, spectrum: Tensor, step: float) -> list[int]:
        """Return how often each item must halve the step, so that the method stays stable for a while.

        Raises:
            ValueError: If even many halvings would not suffice.
        """
        u, v = self._velocity(spectrum)
        fastest = (u.abs() + v.abs()).amax((1, 2)) * self.largest * 2 * math.pi / self.side
        needed = (fastest * step * MARGIN / COURANT).clamp(min=1.0).log2().ceil()
        if not bool((needed <= MAX_HALVINGS).all()):
            raise ValueError(
                f"the velocities are too large for step={self.step:g} s, by a factor of "
                f"{2.0 ** float(needed.max()):g}: set a shorter step, a larger viscosity or drag, or a weaker forcing"
            )
        return [int(each) for each in needed.tolist()]

    def _kicks(self, seed: int, steps: int, step: float) -> Tensor:
        """Return the random forcing of every step and mode of one trajectory, complex128 (steps, modes)."""
        assert self.forcing is not None
        modes = len(self._forced[0])
        generator = torch.Generator().manual_seed(generator_seed(seed))
        drawn = torch.randn(steps, modes, 2, generator=generator, dtype=EXACT)
        # Each mode and its conjugate add the expectation of |amplitude|² to the enstrophy.
        return torch.view_as_complex(drawn) * (self.size**2 * (self.forcing.rate * step / (2 * modes)) ** 0.5)

    def enstrophy(self, vorticity: Tensor) -> Tensor:
        """Return half the mean square of the vorticity, `(batch,)` in 1/s²."""
        return vorticity.to(EXACT).square().mean((1, 2)) / 2

    def energy(self, vorticity: Tensor) -> Tensor:
        """Return half the mean square of the velocity, `(batch,)` in m²/s²."""
        u, v = self.velocity(vorticity)
        return (u.square() + v.square()).mean((1, 2)) / 2

    def palinstrophy(self, vorticity: Tensor) -> Tensor:
        """Return half the mean square of the vorticity's gradient, `(batch,)` in 1/(m² s²)."""
        spectrum = torch.fft.rfft2(vorticity.to(EXACT), norm="forward")
        counts = torch.full((self.size // 2 + 1,), 2.0, dtype=EXACT)
        counts[0] = 1.0
        if self.size % 2 == 0:
            counts[-1] = 1.0
        return (spectrum.abs().square() * self._squared * counts).sum((1, 2)) / 2


def resampled(values: Tensor, size: int, largest: int) -> Tensor:
    """Return periodic fields `(…, points, points)` at `size` × `size` points of the same square, float64.

    The first point is the same. What is evaluated is the trigonometric polynomial through the given points, up to the
    wavenumber `largest`, which must be below half of the given points.
    """
    points = values.shape[-1]
    distance = torch.arange(size, dtype=EXACT)[:, None] / size - torch.arange(points, dtype=EXACT) / points
    waves = torch.arange(1, largest + 1, dtype=EXACT)
    matrix = (1 + 2 * torch.cos(2 * math.pi * waves * distance[..., None]).sum(-1)) / points
    return matrix @ values.to(EXACT) @ matrix.T
