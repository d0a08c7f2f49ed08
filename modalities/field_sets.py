"""Fields that need no download: two-phase patterns, drawn on demand, and vorticity of turbulence, simulated once."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import random
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modalities.base import Batch, Dataset, Example, Modality, Split, pair
from modalities.field import Field
from modalities.forecasts import States, checked_reach
from modalities.navier_stokes import EXACT, NavierStokes, RingForcing, resampled
from modalities.user_cache import user_cache
from multisagd.files import check_file
from multisagd.seeds import derive

WAVELENGTH = 16.0
"""Wavelength of the strongest waves of two-phase patterns, in samples."""
THRESHOLDS, WIDTHS = (-0.4, 0.4), (0.45, 0.95)
"""Ranges of the threshold between both phases and of the width of their interfaces, in standard deviations."""
SHARPEST = 50.0
"""Dynamic range of the power of two-phase patterns that are not blurred, in dB."""
HIGHEST_RING = 0.96
"""Mean squared radius of the highest ring of frequencies, as a fraction of that of the highest frequency."""
LEAST_SIZE = 16
MAX_VALUES = 1 << 28
"""Maximum number of simulated values: 1 GiB."""
MAX_COUNT = 10_000_000
"""Maximum number of patterns, whose numbers are kept in lists."""
STEP = 1.92
"""Default time step of the simulation times the number of points along an axis, in seconds."""
FORMAT_VERSION = 1
log = logging.getLogger("multisagd")


def _check_field(modality: Any, what: str, variables: int = 1) -> Field:
    """Return the modality of a generated set.

    Raises:
        ValueError: If it is not a `Field` of so many variables on two periodic axes of at least 16 points.
    """
    if not isinstance(modality, Field):
        raise ValueError(f"{what} are fields: set modality=field, instead of {type(modality).__name__}")
    if len(modality.axes) != 2 or len(modality.variables) != variables:
        number = "one variable" if variables == 1 else f"{variables} variables"
        raise ValueError(
            f"{what} are fields of {number} on two axes, but the modality has {len(modality.variables)} on "
            f"{len(modality.axes)}: remove modality.axes and modality.variables"
        )
    for axis in modality.axes:
        if not axis.periodic or axis.size < LEAST_SIZE:
            raise ValueError(
                f"{what} have periodic axes of at least {LEAST_SIZE} points, but the modality has {axis}: set "
                f"modality.axes={{{axis.name}:{{periodic:true,size:32}}}} for each"
            )
    return modality


class TwoPhase(Dataset):
    """`count` smooth patterns of two phases, -1 and 1, periodic along both axes: each an example of its own.

    A pattern is tanh((z - threshold) / width), where z is a Gaussian random field with waves around 16 samples, and
    threshold and width are random. The Gaussian blur by which the power of the weakest ring of frequencies is
    `dynamic_range` decibels below that of the strongest follows from it; without blur it is 50 dB. A pattern depends on
    `seed`, its index and the size of the grid only.

    Raises:
        ValueError: If the modality is not a `Field` of one variable on two periodic axes of at least 16 points, the
            count is not from 1 to 10 million, or the dynamic range is not from 50 to 150 dB.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, modality: Field, count: int = 20_000, dynamic_range: float = 50.0, seed: int = 0) -> None:
        self.modality: Field = _check_field(modality, "two-phase patterns")
        if not 1 <= count <= MAX_COUNT:
            raise ValueError(f"count must be from 1 to {MAX_COUNT:,}, got {count}")
        if not SHARPEST <= dynamic_range <= 150:
            raise ValueError(f"dynamic_range must be from {SHARPEST:g} to 150 dB, got {dynamic_range}")
        self.dynamic_range, self.seed = dynamic_range, seed
        self.numbers: Sequence[int] = range(count)

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one pattern (see `Dataset.example`); there is no augmentation."""
        return Example(self.batch([index]).x0[0])

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return several patterns (see `Dataset.batch`); there is no augmentation."""
        positions = [index for index, _ in pair(indices, seeds)]
        outside = [index for index in positions if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"index {outside[0]} is out of range for a dataset of {len(self)} patterns")
        patterns = self.patterns([self.numbers[index] for index in positions])
        return Batch(torch.stack([self.modality.encode(each[None]) for each in patterns]))

    def label(self, index: int) -> int | None:
        """Return None: the patterns have no classes."""
        return None

    def patterns(self, numbers: Sequence[int]) -> Tensor:
        """Return the patterns with these numbers, float64 `(patterns, y, x)`, approximately in [-1, 1]."""
        shape = tuple(axis.size for axis in self.modality.axes)
        drawn = [torch.Generator().manual_seed(derive(self.seed, "two-phase", number)) for number in numbers]
        white = torch.stack([torch.randn(shape, generator=each, dtype=EXACT) for each in drawn])
        uniform = torch.stack([torch.rand((2, 1, 1), generator=each, dtype=EXACT) for each in drawn])
        y, x = torch.fft.fftfreq(shape[0], dtype=EXACT)[:, None], torch.fft.rfftfreq(shape[1], dtype=EXACT)
        radius = (y.square() + x.square()).sqrt()
        waves = radius * WAVELENGTH
        band = torch.where(waves < 2, waves * torch.exp(-waves.square() / 2), 0.0)
        z = torch.fft.irfft2(band * torch.fft.rfft2(white), s=shape)
        z = z / z.std((1, 2), keepdim=True)
        threshold, width = (
            low + (high - low) * each for (low, high), each in zip((THRESHOLDS, WIDTHS), uniform.unbind(1), strict=True)
        )
        sharp = torch.tanh((z - threshold) / width)
        # The blur multiplies the power by exp(-(2 pi radius blur)²), of which the highest ring loses a little less than
        # the highest frequency.
        lost = (self.dynamic_range - SHARPEST) * math.log(10) / 10 / HIGHEST_RING
        blurred = torch.exp(-lost / 2 * (radius / radius.max()).square())
        return torch.fft.irfft2(blurred * torch.fft.rfft2(sharp), s=shape)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these patterns only."""
        part = copy.copy(self)
        part.numbers = [self.numbers[index] for index in indices]
        return part

    @property
    def fingerprint(self) -> str:
        """A hash of the seed, the dynamic range and the numbers of the patterns."""
        record = ["two-phase", self.seed, self.dynamic_range, list(self.numbers)]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()


class Vorticity(Dataset):
    """Vorticity of two-dimensional turbulence on a periodic square: `snapshots` of each of several `trajectories`.

    The Navier–Stokes equations (`modalities.navier_stokes`) are solved once, when the first example is read, and the
    result is stored in a cache folder. The forcing is random; without it (`injection=0`) the turbulence decays. Whole
    trajectories are held out: the last ones are for testing, and those before them for validation. With an augmentation
    seed, an example is shifted, rotated by right angles and reflected at random, which are symmetries of the equations.

    With a `lead`, an example is a forecast (see `modalities.forecasts`): its condition are the `history` snapshots up
    to `lead` intervals before it, changed by the same symmetry.

    Args:
        modality: a `Field` of one variable, in 1/s, on two periodic axes of equal size; they determine the square.
        trajectories: number of independent solutions.
        snapshots: number of fields of each.
        interval: time between two snapshots in seconds; after the default, their correlation is about 0.1.
        spin_up: time before the first snapshot in seconds.
        viscosity: in m²/s; smaller values need a finer grid.
        drag: rate of a linear drag in 1/s, which removes the energy of large scales.
        injection: enstrophy that the forcing injects per second, in 1/s³.
        wavenumbers: lowest and highest forced wavenumber, in waves per side. The first state has the same waves.
        initial: standard deviation of the first state in 1/s.
        step: maximum time step in seconds (None: 1.92 / points along an axis).
        validation: fraction of the trajectories that is held out for validation.
        test: fraction of the trajectories that is held out for testing.
        seed: random seed.
        cache: folder in which the simulation is stored (None: the user's cache folder).
        trusted: False if the settings came with another person's run: nothing is then written.
        lead: number of intervals from the present state to the forecast. None: fields have no condition.
        history: number of known states: the present one, and others `lead` intervals before each other.

    Raises:
        ValueError: If the modality does not fit, or a setting is out of range.
    """

    classes: tuple[str, ...] | None = None
    stored_as, lasting = "vorticity", "about a minute"
    variable_count = 1

    def __init__(
        self,
        modality: Field,
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
        lead: int | None = None,
        history: int = 1,
    ) -> None:
        self.modality: Field = _check_field(modality, "vorticities", self.variable_count)
        (size, side), other = ((axis.size, axis.size * axis.spacing) for axis in modality.axes)
        if size != other[0] or not math.isclose(side, other[1], rel_tol=1e-3):
            raise ValueError("vorticities are on a square: set both axes to the same size and spacing")
        values = size**2 * self.variable_count
        if min(trajectories, snapshots) < 1 or trajectories * snapshots * values > MAX_VALUES:
            raise ValueError(
                f"trajectories and snapshots must be at least 1, with at most {MAX_VALUES // values:,} fields of "
                f"this size in total, got {trajectories} and {snapshots}"
            )
        if min(interval, spin_up) <= 0 or not math.isfinite(interval + spin_up + initial) or initial < 0:
            raise ValueError(
                "interval and spin_up must be positive, initial must not be negative, and all finite, got "
                f"interval={interval:g}, spin_up={spin_up:g} and initial={initial:g}"
            )
        held = [
            self._held_out(name, value, trajectories) for name, value in (("validation", validation), ("test", test))
        ]
        if sum(held) >= trajectories:
            raise ValueError(
                f"validation={validation:g} and test={test:g} leave no trajectory to train on, of {trajectories}"
            )
        if not (initial or injection):
            raise ValueError("initial=0 and injection=0: nothing would ever move, so set one of them")
        low, high = wavenumbers
        # Every wavenumber that the grid of the examples resolves needs half as many points more in the solution.
        solver = NavierStokes(
            3 * (size // 2) + 2, viscosity, drag, RingForcing(injection, low, high),
            STEP / size if step is None else step, side,
        )  # fmt: skip
        for duration in (interval, spin_up):
            solver.steps(duration)
        if trajectories * solver.size**2 > MAX_VALUES // 2:
            raise ValueError(
                f"at most {MAX_VALUES // 2 // solver.size**2:,} trajectories of this size can be solved, got "
                f"{trajectories:,}"
            )
        self.solver = solver if injection else replace(solver, forcing=None)
        self.size, self.snapshots, self.trajectories = size, snapshots, trajectories
        self.interval, self.spin_up, self.initial, self.wavenumbers = interval, spin_up, initial, (low, high)
        self.seed, self.cache, self.trusted = seed, cache, trusted
        first = self._number_of_known(lead, history)
        counts = {"train": trajectories - sum(held), "validation": held[0], "test": held[1]}
        names: list[Split] = ["train", "validation", "test"]
        self.splits: Sequence[Split] | None = None
        if sum(held) or lead is not None:
            self.splits = [name for name in names for _ in range(counts[name] * (snapshots - first))]
        self.numbers: Sequence[int] = [n for n in range(trajectories * snapshots) if n % snapshots >= first]
        self._kept = _Kept()

    def _number_of_known(self, lead: int | None, history: int) -> int:
        """Set how far back the known states of a forecast are, and return the number of snapshots before the first one.

        Raises ValueError if the snapshots are too few.
        """
        self.back: tuple[int, ...] = ()
        if lead is None:
            if history != 1:
                raise ValueError(f"history={history} is for forecasts: set lead")
            return 0
        reach = checked_reach(lead, history)
        if reach >= self.snapshots:
            raise ValueError(
                f"lead={lead} and history={history} need at least {reach + 1} snapshots, got snapshots={self.snapshots}"
            )
        self.back = tuple(range(reach, 0, -lead))
        return reach

    @property
    def condition_modality(self) -> Modality | None:
        """The known states of forecasts, or None if fields have no condition."""
        return States.known(self.modality, len(self.back), self.back[-1] * self.interval, "s") if self.back else None

    @staticmethod
    def _held_out(name: str, fraction: float, trajectories: int) -> int:
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be a fraction from 0 to below 1, got {fraction}")
        return max(1, round(fraction * trajectories)) if fraction else 0

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one field; see `Dataset.example`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} fields")
        fields = self.fields().flatten(0, 1)[[self.numbers[index] - back for back in (*self.back, 0)]]
        changed = [each if seed is None else self.moved(each, seed) for each in fields]
        *known, x0 = [self.modality.encode(each.reshape(-1, *each.shape[-2:])) for each in changed]
        return Example(x0, condition=torch.cat(known) if known else None)

    def moved(self, field: Tensor, seed: int) -> Tensor:
        """Return a field in its units, changed by a random symmetry of the equations."""
        return random_symmetry(field, seed)

    def label(self, index: int) -> int | None:
        """Return None: the fields have no classes."""
        return None

    def fields(self) -> Tensor:
        """Return all simulated fields in 1/s, float32 `(trajectories, snapshots, y, x)`.

        Successive snapshots of a trajectory are pairs of a state and a later one, which a `lead` makes of them.
        """
        with self._kept.lock:
            if self._kept.fields is None:
                self._kept.fields = self._stored() if (path := self._path()).exists() else None
            if self._kept.fields is None:
                where = f"the fields are stored as {path}" if self.trusted else "they are not stored"
                log.warning(
                    "simulating %d trajectories of turbulence: %s with the default settings; %s",
                    self.trajectories, self.lasting, where,
                )  # fmt: skip
                self._kept.fields = self.simulated()
                if self.trusted:
                    self._store(self._kept.fields, path)
            return self._kept.fields

    def simulated(self) -> Tensor:
        """Solve the equations, and return the fields as `fields` does."""
        seeds = [derive(self.seed, "trajectory", number) for number in range(self.trajectories)]
        states = self.first([derive(seed, "initial") for seed in seeds])
        states = self.solver.evolve(states, self.spin_up, [derive(seed, "spin-up") for seed in seeds])
        parts = []
        for number in range(self.snapshots):
            states = self.solver.evolve(states, self.interval, [derive(seed, "snapshot", number) for seed in seeds])
            parts.append(resampled(states, self.size, self.solver.largest).float())
        return torch.stack(parts, dim=1)

    def first(self, seeds: Sequence[int]) -> Tensor:
        """Return the first states in their units, `(trajectories, *state)`, of one seed each."""
        return self.solver.initial(seeds, self.initial, *self.wavenumbers)

    def _path(self) -> Path:
        return (self.cache or user_cache("fields")) / f"{self.stored_as}-{self._key()[:32]}.safetensors"

    def _key(self) -> str:
        """Return a hash of everything that determines the fields."""
        record = [
            FORMAT_VERSION, asdict(self.solver), self.size, self.trajectories, self.snapshots, self.interval,
            self.spin_up, self.initial, self.wavenumbers, self.seed,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def _stored(self) -> Tensor | None:
        """Return the fields in the cache, or None if they cannot be used."""
        shape = (self.trajectories, self.snapshots, *self.solver.state_shape[:-2], self.size, self.size)
        try:
            check_file(self._path(), 4 * math.prod(shape) + (1 << 20))
            with safe_open(str(self._path()), framework="pt") as file:
                stored = file.get_slice(self.stored_as)
                if (stored.get_dtype(), tuple(stored.get_shape())) != ("F32", shape):
                    return None
                fields: Tensor = file.get_tensor(self.stored_as).clone()  # the file is mapped into memory
        except (OSError, ValueError, SafetensorError):
            return None
        return fields if bool(fields.isfinite().all()) else None

    def _store(self, fields: Tensor, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                save_file({self.stored_as: fields}, Path(folder) / path.name)
                (Path(folder) / path.name).replace(path)
        except OSError as error:
            log.warning(
                "the fields cannot be stored (%s), so they are simulated again next time: set data.cache", error
            )

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these fields only."""
        part = copy.copy(self)
        part.numbers = [self.numbers[index] for index in indices]
        part.splits = None if self.splits is None else [self.splits[index] for index in indices]
        return part

    @property
    def fingerprint(self) -> str:
        """A hash of the settings of the simulation, the splits and the numbers of the fields."""
        record = [self._key(), self.splits, list(self.numbers), *([self.back] if self.back else [])]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()


class _Kept:
    """The simulated fields, shared by all parts of a dataset, and the lock of the thread that makes them."""

    def __init__(self) -> None:
        self.fields: Tensor | None = None
        self.lock = threading.Lock()


def random_symmetry(field: Tensor, seed: int) -> Tensor:
    """Return a vorticity `(size, size)` in 1/s that is shifted, rotated by right angles and reflected at random."""
    draw = random.Random(derive(seed, "symmetry"))
    size = len(field)
    moved = torch.rot90(field.roll((draw.randrange(size), draw.randrange(size)), (0, 1)), draw.randrange(4))
    # A reflection reverses the sense of rotation.
    return -moved.flip(0) if draw.randrange(2) else moved
