"""Small sets in every format of arrays, as people keep them: weather, simulations, scans, sensors and images."""

from pathlib import Path

import numpy as np

COUNT = 12
"""Number of examples."""
TIMES, RATE = 200, 50.0
"""Length of a series, and its samples per second."""


def weather(path: Path) -> None:
    """NetCDF or zarr: temperature in kelvin, missing at the first latitude, and rain on a descending global grid."""
    import xarray

    rng = np.random.default_rng(0)
    temperature = (280 + 20 * rng.normal(size=(COUNT, 8, 16))).astype(np.float32)
    temperature[:, 0] = np.nan
    fields = {
        "temperature": (("time", "lat", "lon"), temperature, {"units": "K"}),
        "rain": (("time", "lat", "lon"), np.exp(rng.normal(size=(COUNT, 8, 16))), {"units": "mm"}),
    }
    coordinates = {
        "time": ("time", np.arange(COUNT), {"units": "days since 2000-01-01"}),
        "lat": ("lat", np.linspace(70, -70, 8), {"units": "degrees_north"}),
        "lon": ("lon", 22.5 * np.arange(16), {"units": "degrees_east"}),
    }
    dataset = xarray.Dataset(fields, coordinates)
    if path.suffix == ".zarr":
        dataset.to_zarr(path, zarr_format=2, encoding={"rain": {"chunks": (4, 8, 16)}})
    else:
        dataset.to_netcdf(path, engine="h5netcdf", encoding={"rain": {"zlib": True, "chunksizes": (4, 8, 16)}})


def simulations(path: Path) -> None:
    """HDF5 or a zarr store: fields (examples, 8, 8) without names of dimensions, and in HDF5 their classes."""
    values = np.random.default_rng(0).random((COUNT, 8, 8)).astype(np.float32)
    if path.suffix == ".zarr":
        import zarr

        zarr.open_group(path, mode="w").create_array("density", data=values, chunks=(4, 8, 8))
        return
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("density", data=values, chunks=(4, 8, 8), compression="gzip")
        file["label"] = np.arange(COUNT) % 2


def scans(folder: Path) -> None:
    """NIfTI volumes of 6 × 8 × 8 voxels of 2 × 1 × 1.5 mm, stored from right to left."""
    import nibabel

    for number in range(COUNT):
        path = folder / ("healthy", "ill")[number % 2] / f"{number:02}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).random((6, 8, 8)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(100 * values, np.diag([-2.0, 1.0, 1.5, 1.0])), path)


def sensors(folder: Path) -> None:
    """CSV tables with a column of times and two of values."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        np.savetxt(folder / f"{number:02}.csv", sensor(number), delimiter=",", header="time,x,y", comments="")


def sensor(number: int = 0, length: int = TIMES) -> np.ndarray:
    """Return a table (length, 3): the time in seconds and two variables."""
    times = np.arange(length) / RATE
    noise = np.random.default_rng(number).normal(size=length)
    return np.stack([times, np.sin(5 * times + number), noise], 1)


def sensor_table(path: Path) -> None:
    """Parquet: one long table of a sensor."""
    import pyarrow
    from pyarrow import parquet

    table = sensor(length=COUNT * TIMES)
    parquet.write_table(pyarrow.table({name: table[:, n] for n, name in enumerate(("time", "x", "y"))}), path)


def images(path: Path) -> None:
    """An .npz file of colour images and their classes."""
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (COUNT, 10, 12, 3), np.uint8), labels=np.arange(COUNT) % 3)
