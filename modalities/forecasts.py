"""Forecasts: an example is the state of a system, and its condition are earlier states, each `lead` steps apart.

A step is the distance in time of two states that are stored. The states of one split are those of whole sequences, or
of whole blocks of time, so that no state is seen in training that a held-out forecast starts from or ends in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.array_files import open_arrays
from modalities.base import Modality, Split, UnusableFileError
from modalities.field import Field
from modalities.field_layout import FieldAxis, check_spacing, place
from modalities.field_saving import WRITERS
from modalities.named_arrays import SECONDS
from modalities.time_sequences import TIME, Times, times_of
from modalities.variables import Variable
from multisagd.grid import Grid

MAX_HISTORY = 64
"""Maximum number of known states, each of which is a part of the network's input."""
UNEVEN = 0.05
"""Maximum difference of a lead from a whole number of steps of a file, as a fraction of a step."""
WRITTEN = ("nc", "npz", "npy")
"""Formats that can hold a dimension of time in addition to the axes of a field."""


@dataclass(frozen=True)
class States(Modality):
    """Successive states of a field as one item: `count` of them, `lead` (in `unit`) apart; their channels follow.

    `first` is the number of leads from the present to the first of them. The last of the known states is the present
    (first = 1 - count), and the first of a forecast is one lead later (first = 1). Files have a dimension `time`;
    `load` reads the last states of a file, as many as are known. In memory, states are a float64 tensor (states,
    variables, *grid) in the units of the variables. As text, they are described as the condition of a forecast.

    Raises:
        ValueError: If there is no state or more than 64 before the present, the lead is not positive, or an axis or
            variable of the field is named time.
    """

    modality: Field
    count: int = 1
    lead: float = 1.0
    unit: str = ""
    first: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or -self.first >= MAX_HISTORY or (self.first <= 0 and self.count > MAX_HISTORY):
            raise ValueError(f"expected 1 to {MAX_HISTORY} known states, got count={self.count} and first={self.first}")
        if not 0 < self.lead < float("inf"):
            raise ValueError(f"lead must be positive and finite, got {self.lead}")
        check_timeless(self.modality)

    @classmethod
    def known(cls, modality: Field, history: int, lead: float, unit: str) -> States:
        """Return the states that are known before a forecast: the present one, and history - 1 earlier ones."""
        return cls(modality, history, lead, unit, 1 - history)

    def forecast(self, count: int) -> States:
        """Return the `count` states that follow the known ones."""
        return replace(self, count=count, first=1)

    def described(self, modality: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of these states, given that of their modality."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        own = {name: getattr(self, name) for name in ("count", "lead", "unit", "first")}
        return {"_target_": target, "modality": dict(modality), **own}

    def __str__(self) -> str:
        lead = f"{self.lead:g} {self.unit}" if self.unit else f"{self.lead:g} step{'s' * (self.lead != 1)}"
        return f"the state {lead} before it" if self.count == 1 else f"{self.count} states, {lead} apart and before it"

    @property
    def channels(self) -> int:
        """Number of states times variables."""
        return self.count * self.modality.channels

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables of each state, named with its time relative to the present, unless it is the only one."""
        if self.count == 1 and not self.first:
            return self.modality.variables
        return tuple(
            replace(each, name=f"{each.name} at {(self.first + state) * self.lead:+g} {self.unit}".rstrip())
            for state in range(self.count)
            for each in self.modality.variables
        )

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read, the one of saved files first."""
        first = f".{self.modality.format if self.modality.format in WRITTEN else 'npz'}"
        return (first, *(suffix for suffix in self.modality.suffixes if suffix != first))

    def grid(self) -> Grid:
        """Return the grid of one state."""
        return self.modality.grid()

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        """Return the last states in a file, in order of time; `seed` has no effect.

        If the file states its times, the states are `lead` apart, and else its last ones.

        Raises:
            UnusableFileError: If the file has fewer states, several sequences of them, or not at these times.
        """
        with open_arrays(path) as file:
            check_spacing(file, self.modality.axes, self.modality.spacing_tolerance)
            placement = place(file, self.modality.axes, self.modality.variables)
            times = times_of(file, placement)
            if len(times.sequences) != 1:
                raise UnusableFileError(
                    f"it has {len(times.sequences)} sequences of states, so it is not known which one to continue: "
                    "write each to its own file"
                )
            (sequence,) = times.sequences
            back = self._steps(times) * (self.count - 1)
            if back >= len(sequence):
                raise UnusableFileError(
                    f"it has {len(sequence)} state{'s' * (len(sequence) != 1)}, but {self.count} known ones that are "
                    f"{self.lead:g} {self.unit or 'steps'} apart are needed, which span {back + 1}"
                )
            known = sequence[len(sequence) - 1 - back :: self._steps(times)]
            return torch.stack([self.modality.excerpt(placement, number, None) for number in known])

    def _steps(self, times: Times) -> int:
        """Return the number of a file's steps between two states.

        Raises UnusableFileError if it is not whole, or the unit of its times is not one of those of the lead.
        """
        if times.spacing is None or self.count == 1:
            return 1
        if times.unit != self.unit and not {times.unit, self.unit} <= SECONDS.keys():
            raise UnusableFileError(
                f"its times are in {times.unit or 'steps'}, but known states are {self.lead:g} {self.unit or 'steps'} "
                f"apart: convert its times to {self.unit or 'steps'}, or remove them if all of its states are so far "
                "apart"
            )
        scale = 1.0 if times.unit == self.unit else SECONDS[times.unit] / SECONDS[self.unit]
        steps = self.lead / (times.spacing * scale)
        if steps < 1 - UNEVEN or abs(steps - round(steps)) > UNEVEN:
            raise UnusableFileError(
                f"its states are {times.spacing:g} {times.unit or 'steps'} apart, of which the {self.lead:g} "
                f"{self.unit or 'steps'} between known states are not a whole multiple: resample it in time"
            )
        return round(steps)

    def encode(self, media: Tensor) -> Tensor:
        """Convert states (states, variables, *grid) to float32 (states × variables, *grid)."""
        return torch.cat([self.modality.encode(each) for each in media])

    def mask(self, media: Tensor) -> Tensor | None:
        """Return bool (states × variables, *grid), False where a value is missing, or None if no value is."""
        missing = media.flatten(0, 1).isnan()
        return ~missing if bool(missing.any()) else None

    def decode(self, x0: Tensor) -> Tensor:
        """Convert a tensor (states × variables, *grid) to states (states, variables, *grid) in their units."""
        return torch.stack([self.modality.decode(each) for each in x0.split(self.modality.channels)])

    def save(self, media: Tensor, path: Path) -> None:
        """Write states to one file with the dimension `time`, relative to the present; see `Field.save`.

        Raises:
            ValueError: If the path does not end in .nc, .npz or .npy.
        """
        ending = next((each for each in WRITTEN if path.name.lower().endswith(f".{each}")), None)
        if ending is None:
            raise ValueError(f"states are written as {', '.join(WRITTEN)}: {path} must have one of these endings")
        path.parent.mkdir(parents=True, exist_ok=True)
        axis = FieldAxis(TIME, len(media), self.lead, self.unit, start=self.first * self.lead)
        values = media.detach().cpu().transpose(0, 1).numpy()
        WRITERS[ending](values, (axis, *self.modality.axes), self.modality.variables, path)


def check_timeless(modality: Field) -> None:
    """Raise ValueError if time is an axis or a variable of a field, so that it does not number states."""
    names = [*(axis.name for axis in modality.axes), *(variable.name for variable in modality.variables)]
    if TIME in [name.lower() for name in names]:
        raise ValueError(
            "forecasts are of fields without an axis or variable named time, because time numbers their states: remove "
            "it from modality.axes, or set lead=null to generate whole histories"
        )


def checked_reach(lead: int, history: int) -> int:
    """Return the number of steps from the first known state to the forecast.

    Raises:
        ValueError: If the lead is below 1, or there is no known state or more than 64.
    """
    if lead < 1 or not 1 <= history <= MAX_HISTORY:
        raise ValueError(
            f"lead must be at least 1 step, and history from 1 to {MAX_HISTORY} known states, got lead={lead} and "
            f"history={history}"
        )
    return lead * history


def cut(sequences: Sequence[range], keys: Sequence[Hashable]) -> list[range]:
    """Return the parts of sequences of positions within which the `keys` of all positions are equal."""
    parts = []
    for sequence in sequences:
        start = 0
        for number in range(1, len(sequence) + 1):
            if number == len(sequence) or keys[sequence[number]] != keys[sequence[start]]:
                parts.append(sequence[start:number])
                start = number
    return parts


def divided(
    sequences: Sequence[range], reach: int, validation: float, test: float, whole: bool = True
) -> list[tuple[range, Split]]:
    """Divide sequences of positions, in order of time, into parts for training, validation and testing.

    `validation` and `test` are fractions. If there are enough sequences, and `whole` is True, whole ones are held out:
    the last ones for testing, and those before them for validation. Otherwise the last part of each is for testing, and
    the part before it for validation. `reach` is the number of steps from the first known state of a forecast to the
    forecast itself.

    Raises:
        ValueError: If a fraction is not from 0 to below 1, or a part would be too short for a single forecast.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be a fraction from 0 to below 1, got {fraction}")
    if validation + test >= 1:
        raise ValueError(f"validation={validation:g} and test={test:g} leave nothing to train on")
    fractions: list[tuple[Split, float]] = [("validation", validation), ("test", test)]
    counts = [round(fraction * len(sequences)) for _, fraction in fractions]
    enough = sum(counts) < len(sequences)
    if whole and enough and all(count or not fraction for count, (_, fraction) in zip(counts, fractions, strict=True)):
        names: list[Split] = ["train"] * (len(sequences) - sum(counts))
        names += [name for count, (name, _) in zip(counts, fractions, strict=True) for _ in range(count)]
        return list(zip(sequences, names, strict=True))
    return [part for sequence in sequences for part in _in_time(sequence, reach, fractions)]


def _in_time(sequence: range, reach: int, fractions: Sequence[tuple[Split, float]]) -> Iterator[tuple[range, Split]]:
    """Yield the blocks of time of one sequence: for training, and for each of the `fractions` after it."""
    lengths = [round(fraction * len(sequence)) for _, fraction in fractions]
    start = len(sequence) - sum(lengths)
    parts: list[tuple[range, Split]] = [(sequence[:start], "train")]
    for length, (name, fraction) in zip(lengths, fractions, strict=True):
        if fraction:
            parts.append((sequence[start : start + length], name))
        start += length
    for part, name in parts:
        if len(part) <= reach:
            raise ValueError(
                f"of {len(sequence)} states in a row, {len(part)} are for {name}, but one forecast needs {reach + 1}: "
                "reduce lead or history, change the fractions validation and test (0: nothing is held out), or add data"
            )
        yield part, name
