"""Fields of one or several variables on a grid of one to three named axes in physical units: weather, scans, sensors.

In memory, a field is a float64 tensor (variables, *grid) in the units of the variables. Missing values are NaN; they
are masked, channel by channel, and encoded as 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from modalities.array_files import SUFFIXES, open_arrays
from modalities.base import Modality, UnusableFileError
from modalities.field_layout import FieldAxis, Placement, check_spacing, listed_arrays, place
from modalities.field_saving import WRITERS, Format, check_format
from modalities.field_settings import complete, complete_series
from modalities.named_arrays import unit_of
from modalities.remarks import remark
from modalities.scalars import WINDOW, record
from modalities.variables import Variable
from multisagd.addresses import is_address
from multisagd.grid import Axis, Grid
from multisagd.seeds import derive

WINDOWS = 8
"""Number of windows that are tried if values are missing in all of a window."""


@dataclass(frozen=True)
class Field(Modality):
    """Fields of the `variables` on the grid of the `axes`.

    A file holds one field; along an axis on which it is longer than the grid, a window is taken: at random if there is
    a seed, and else the middle. Dimensions are matched by name, or, in files without names of dimensions, by position.
    Axes that the file states in descending order are reversed. The values of masked points are encoded as 0.

    `format` is that of saved files: npz (arrays named after the variables and the axes), npy (one array without names),
    nc (NetCDF, with units and coordinates), nii.gz (a volume of one variable on the axes x, y and z) or csv (one axis).
    Files whose stated spacing differs by more than the fraction `spacing_tolerance` are refused; None accepts all.

    `like` is a file from which a configuration takes the axes and variables that it does not set: see `resolved`. In
    Python, use `Field.of_file`.

    Raises:
        ValueError: If there are no variables or not one to three axes, names are repeated, or the format cannot hold
            such fields.
    """

    axes: tuple[FieldAxis, ...] = ()
    variables: tuple[Variable, ...] = ()
    format: Format = "npz"
    spacing_tolerance: float | None = 0.05
    like: Path | None = None

    def __post_init__(self) -> None:
        if self.like is not None:
            raise ValueError("like is for configurations of commands: in Python, use Field.of_file(path)")
        if not 1 <= len(self.axes) <= 3 or not self.variables:
            raise ValueError(
                f"a field needs one to three axes and at least one variable, got {len(self.axes)} and "
                f"{len(self.variables)}: set modality.like to one of the files, from which they are taken, or set "
                "modality.axes and modality.variables"
            )
        names = [axis.name for axis in self.axes] + [variable.name for variable in self.variables]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the names of axes and variables must differ, got {', '.join(names)}: if the files do not name their "
                "dimensions, set modality.axes to other names"
            )
        units = [axis.unit for axis in self.axes] + [variable.unit for variable in self.variables]
        if addresses := [each for each in (*names, *units) if is_address(each)]:
            raise ValueError(f"{addresses[0]!r:.80} is like an address, so it cannot be a name or a unit: set another")
        check_format(self.format, self.axes, self.variables)

    @classmethod
    def resolved(cls, settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with axes and variables taken from a file, where they are not given.

        The file is that of the setting `like`, or else the first one of the data. See `modalities.field_settings`.
        """
        return complete(settings, data)

    @classmethod
    def of_file(cls, path: str | Path, **settings: Any) -> Self:
        """Return the field of a file, with other `settings` as in a configuration; for example axes=["lat", "lon"]."""
        found = cls.resolved({**settings, "like": str(path)}, {})
        for key, kind in (("axes", FieldAxis), ("variables", Variable)):
            if key in found:
                found[key] = tuple(kind(**each) for each in found[key])
        return cls(**found)

    @property
    def channels(self) -> int:
        """Number of variables."""
        return len(self.variables)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read, the one of saved files first."""
        first = f".{self.format}"
        return (first, *(suffix for suffix in SUFFIXES if suffix != first))

    def grid(self) -> Grid:
        """Return the grid of the axes."""
        return Grid(tuple(Axis(**{k: v for k, v in asdict(axis).items() if k != "start"}) for axis in self.axes))

    @property
    def origins(self) -> Mapping[str, float]:
        """The position of the first sample along each axis, in its unit."""
        return {axis.name: axis.start for axis in self.axes}

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        """Read one file with one field.

        Raises:
            UnusableFileError: If the file contains several fields, is too small, has another spacing, or is refused.
            ValueError: If all values of the window are missing.
        """
        with open_arrays(path) as file:
            check_spacing(file, self.axes, self.spacing_tolerance)
            placement = place(file, self.axes, self.variables)
            if placement.count != 1:
                raise UnusableFileError(
                    f"it contains {placement.count} examples of the field ({listed_arrays(file)}): train on it "
                    "with data=arrays, write one of them to a file of its own, or add their dimension to modality.axes"
                )
            return self.excerpt(placement, 0, seed)

    def excerpt(
        self, placement: Placement, example: int, seed: int | None, bounds: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """Return a window of one example of a file, float64 (variables, *grid); `bounds` limit it along each axis.

        Raises:
            ValueError: If all values of the window are missing; with a seed, of several windows.
        """
        self._remark_units(placement)
        sizes = self.grid().shape
        for attempt in range(WINDOWS if seed is not None else 1):
            starts = []
            for (low, high), axis in zip(bounds or [(0, size) for size in placement.sizes], self.axes, strict=True):
                spare = high - low - axis.size
                drawn = None if seed is None else random.Random(derive(seed, axis.name, attempt)).randint(0, spare)
                starts.append(low + (spare // 2 if drawn is None else drawn))
            values = torch.from_numpy(placement.read(example, starts, sizes))
            if not bool(values.isnan().all()):
                record(**{f"{WINDOW}{axis.name}": start for axis, start in zip(self.axes, starts, strict=True)})
                return values
        raise ValueError("all values of the field are missing, at least in this window")

    def _remark_units(self, placement: Placement) -> None:
        """Remark on variables that a file states in another unit: units have many spellings, so none is refused."""
        for source, variable in zip(placement.sources, self.variables, strict=True):
            stated = source.array.unit if source.channel is None else ""
            if stated and variable.unit and unit_of(stated) != unit_of(variable.unit):
                remark(
                    f"{variable.name} is in {stated} in the file, but in {variable.unit} in modality.variables; values "
                    "are not converted"
                )

    def encode(self, media: Tensor) -> Tensor:
        """Convert values (variables, *grid) in their units to float32; missing values become 0.

        Raises:
            ValueError: If a variable with the transform log has values that are not positive.
        """
        for values, variable in zip(media, self.variables, strict=True):
            if variable.transform == "log" and bool((values <= 0).any()):
                raise ValueError(
                    f"the variable {variable.name} has values that are not positive, such as "
                    f"{float(values[values <= 0].min()):g}, but transform=log: use transform=asinh"
                )
        x0 = torch.stack([v.encode(values.double()) for values, v in zip(media, self.variables, strict=True)])
        return x0.masked_fill(x0.isnan(), 0.0).float()

    def mask(self, media: Tensor) -> Tensor | None:
        """Return bool (variables, *grid), False where a value is missing, or None if no value is."""
        missing = media.isnan()
        return ~missing if bool(missing.any()) else None

    def decode(self, x0: Tensor) -> Tensor:
        """Convert a tensor (variables, *grid) to float64 values in the units of the variables.

        Raises:
            ValueError: If its shape is another, or a value is not finite.
        """
        if tuple(x0.shape) != self.tensor_shape:
            raise ValueError(f"expected a tensor of shape {self.tensor_shape}, got {tuple(x0.shape)}")
        if not bool(x0.isfinite().all()):
            raise ValueError("the field to decode has values that are not finite: sampling or training diverged")
        values = x0.detach().to("cpu", torch.float64)
        return torch.stack([v.decode(each) for each, v in zip(values, self.variables, strict=True)])

    def save(self, media: Tensor, path: Path) -> None:
        """Write a field in the format of the path's ending, with float32 values.

        Raises:
            ValueError: If the ending is that of no format that is written, or the format cannot hold such fields.
        """
        ending = next((each for each in WRITERS if path.name.lower().endswith(f".{each}")), None)
        if ending is None:
            raise ValueError(f"fields are written as {', '.join(WRITERS)}: {path} must have one of these endings")
        check_format(ending, self.axes, self.variables)
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[ending](media.detach().cpu().numpy(), self.axes, self.variables, path)


@dataclass(frozen=True)
class Series(Field):
    """Series of `length` samples at a `rate` in hertz: fields whose only axis is `time`, in seconds.

    Raises:
        ValueError: If the length or rate is not positive, or as `Field`.
    """

    axes: tuple[FieldAxis, ...] = field(init=False, default=())
    length: int = 256
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.length < 1 or not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"length and rate must be positive, got length={self.length} and rate={self.rate}")
        object.__setattr__(self, "axes", (FieldAxis("time", self.length, 1 / self.rate, "s"),))
        super().__post_init__()

    @classmethod
    def resolved(cls, settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with variables, and a rate if it is null, taken from a file, as `Field.resolved`."""
        return complete_series(settings, data)
