"""Open files of arrays: NumPy, HDF5, NetCDF, zarr, NIfTI, CSV and Parquet.

A file may come from someone else. No code in it is run, it cannot make another file be read, and the sizes that it
states are checked before memory is allocated: see the file of each format.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

from modalities.base import UnusableFileError
from modalities.byte_ranges import is_hidden
from modalities.endings import ending_of
from modalities.hdf5_files import open_hdf5
from modalities.named_arrays import ArrayFile
from modalities.netcdf_files import open_netcdf
from modalities.nifti_files import open_nifti
from modalities.numpy_files import open_npy, open_npz
from modalities.table_files import open_csv, open_parquet
from modalities.zarr_files import is_store, open_zarr, store_files
from multisagd.addresses import is_address
from multisagd.files import check_file

READERS: dict[str, Callable[[Path], ArrayFile]] = {
    ".npz": open_npz, ".npy": open_npy, ".nc": open_netcdf, ".h5": open_hdf5, ".hdf5": open_hdf5, ".nii": open_nifti,
    ".nii.gz": open_nifti, ".csv": open_csv, ".parquet": open_parquet, ".zarr.zip": open_zarr,
}  # fmt: skip
"""Readers by the ending of the file's name."""
SUFFIXES = tuple(READERS)
LIST = "metadata.csv"
"""Name of a list of files, which is not data."""


def open_arrays(path: str | Path) -> ArrayFile:
    """Open a file of arrays, or a folder that is a zarr store.

    Raises:
        ValueError: If the path is an address or has another ending.
        UnusableFileError: If the file is refused; the message does not name it.
        BrokenLibraryError: If a library that reads it cannot be imported.
        Exception: If it is missing or damaged; each library raises errors of its own.
    """
    if is_address(str(path)):
        raise ValueError(f"{path} is an address, but arrays are read from this machine only: copy the file to it")
    path = Path(path)
    if path.is_dir():
        if not is_store(path):
            raise UnusableFileError("it is a folder, and not a zarr store")
        return open_zarr(path)
    check_file(path)
    ending = ending_of(path.name, SUFFIXES)
    if not ending:
        raise ValueError(f"{path} does not end in {', '.join(SUFFIXES)}, and is not a zarr store")
    return READERS[ending](path)


def array_paths(root: str | Path) -> list[Path]:
    """Return the files and zarr stores that a path, folder or pattern with * stands for, sorted by path.

    In a folder, these are all that end in one of `SUFFIXES`, at any depth, and all zarr stores; hidden and system files
    and lists of files (metadata.csv) are ignored.

    Raises:
        ValueError: If the path is an address.
        FileNotFoundError: If nothing is found.
    """
    if is_address(str(root)):
        raise ValueError(f"{root} is an address, but arrays are read from this machine only: copy the file to it")
    path = Path(root)
    if path.is_file() or is_store(path):
        return [path]
    matching = glob.glob(str(root)) if "*" in str(root) else []  # noqa: PTH207 - the pattern may be absolute
    found = _in_folder(path) if path.is_dir() else sorted(map(Path, matching))
    if not found:
        raise FileNotFoundError(
            f"{path.absolute()} is not a file, a zarr store, or a folder or pattern (*) of files that end in "
            f"{', '.join(SUFFIXES)}"
        )
    return found


def stored_files(path: Path) -> list[Path]:
    """Return the files that have the content of a file or zarr store, sorted by path."""
    return list(store_files(path)) if path.is_dir() else [path]


def _in_folder(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        stores = [name for name in folders if is_store(Path(folder, name))]
        folders[:] = sorted(name for name in folders if name not in stores and not is_hidden(name))
        found += [Path(folder, name) for name in stores if not is_hidden(name)]
        found += [
            Path(folder, name)
            for name in names
            if ending_of(name, SUFFIXES) and not is_hidden(name) and name != LIST and Path(folder, name).is_file()
        ]
    return sorted(found)
