"""Write fields: as NumPy files, NetCDF with units and coordinates, NIfTI volumes, or CSV tables."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modalities.field_layout import FieldAxis
from modalities.nifti_files import AXES, write_nifti
from modalities.variables import Variable
from multisagd.libraries import check

Format = Literal["npz", "npy", "nc", "nii.gz", "csv"]
Writer = Callable[[NDArray[Any], Sequence[FieldAxis], Sequence[Variable], Path], None]
"""Writes values (variables, *grid) to a path."""
SPATIAL = AXES[:3]


def check_format(chosen: str, axes: Sequence[FieldAxis], variables: Sequence[Variable]) -> None:
    """Raise ValueError if a format cannot hold fields of these axes and variables."""
    names = [axis.name for axis in axes]
    if chosen not in WRITERS:
        raise ValueError(f"format must be one of {', '.join(WRITERS)}, got {chosen!r:.80}")
    if chosen == "nii.gz" and (len(variables) != 1 or tuple(names) != SPATIAL):
        raise ValueError(
            f"format=nii.gz is for one variable on the axes {', '.join(SPATIAL)}, but there are {len(variables)} on "
            f"{', '.join(names)}: set modality.format=nc or npz"
        )
    if chosen == "csv" and len(axes) != 1:
        raise ValueError(f"format=csv is for one axis, but there are {', '.join(names)}: set modality.format=nc or npz")
    if chosen == "nc" and any("/" in each.name for each in variables):
        raise ValueError("format=nc is for variables without a slash in their names: set modality.format=npz")


def positions(axis: FieldAxis) -> NDArray[np.float64]:
    """Return the positions (size,) along an axis, in its unit."""
    return np.asarray(axis.start + axis.spacing * np.arange(axis.size), np.float64)


def single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values as float32; those beyond its range become its largest numbers."""
    limit = np.finfo(np.float32).max
    return np.clip(values, -limit, limit).astype(np.float32)


def _write_npz(values: NDArray[Any], axes: Sequence[FieldAxis], variables: Sequence[Variable], path: Path) -> None:
    named: dict[str, Any] = {variable.name: single(each) for variable, each in zip(variables, values, strict=True)}
    named |= {axis.name: positions(axis) for axis in axes}
    with zipfile.ZipFile(path, "w") as archive:  # np.savez does not accept all names
        for name, array in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _write_npy(values: NDArray[Any], axes: Sequence[FieldAxis], variables: Sequence[Variable], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, single(values if len(variables) > 1 else values[0]), allow_pickle=False)


def _write_netcdf(values: NDArray[Any], axes: Sequence[FieldAxis], variables: Sequence[Variable], path: Path) -> None:
    check("h5netcdf", "NetCDF files")
    check("xarray", "NetCDF files")
    import xarray

    names = [axis.name for axis in axes]
    fields = {
        variable.name: (names, single(each), {"units": variable.unit})
        for variable, each in zip(variables, values, strict=True)
    }
    coordinates = {axis.name: (axis.name, positions(axis), {"units": axis.unit}) for axis in axes}
    xarray.Dataset(fields, coordinates).to_netcdf(path, engine="h5netcdf")


def _write_nifti(values: NDArray[Any], axes: Sequence[FieldAxis], variables: Sequence[Variable], path: Path) -> None:
    spacing, start = [axis.spacing for axis in axes], [axis.start for axis in axes]
    write_nifti(single(values[0]), spacing, start, axes[0].unit, path)


def _write_csv(values: NDArray[Any], axes: Sequence[FieldAxis], variables: Sequence[Variable], path: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([axes[0].name, *(variable.name for variable in variables)])
    for position, row in zip(positions(axes[0]).tolist(), single(values).T.tolist(), strict=True):
        writer.writerow([f"{position:.9g}", *("" if np.isnan(number) else f"{number:.9g}" for number in row)])
    path.write_text(table.getvalue(), encoding="utf-8")


WRITERS: dict[str, Writer] = {
    "npz": _write_npz, "npy": _write_npy, "nc": _write_netcdf, "nii.gz": _write_nifti, "csv": _write_csv,
}  # fmt: skip
"""By format."""
