"""Files of arrays are read with names, units and coordinates; hostile ones are refused before anything happens."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pyarrow
import pytest
import xarray
import zarr
from pyarrow import parquet

from modalities.array_files import array_paths, open_arrays
from modalities.base import UnusableFileError
from multisagd.libraries import BrokenLibraryError
from tests.helpers.array_sets import images, scans, sensor_table, sensors, simulations, weather
from tests.helpers.hostile_files import Bomb


def part_of(path: Path, name: str, *index: slice) -> np.ndarray:
    with open_arrays(path) as file:
        return file.array(name).read(index)


@pytest.mark.parametrize("name", ["weather.nc", "weather.zarr"])
def test_open_arrays_reads_named_dimensions_units_and_coordinates(name: str, tmp_path: Path) -> None:
    weather(tmp_path / name)
    with open_arrays(tmp_path / name) as file:
        array = file.array("temperature")
        assert (array.dimensions, array.shape, array.unit) == (("time", "lat", "lon"), (12, 8, 16), "K")
        assert file.array("rain").chunk == 4
        latitude, time = file.coordinate("lat"), file.coordinate("time")
        assert latitude is not None
        assert time is not None
        assert (latitude.start, latitude.spacing, latitude.unit, latitude.descending) == (-70, 20, "degree", True)
        assert (time.spacing, time.unit) == (1, "day")
        values = array.read((slice(2, 3), slice(0, 2), slice(3, 5)))
        assert np.isnan(values[0, 0]).all()
        expected = (280 + 20 * np.random.default_rng(0).normal(size=(12, 8, 16))).astype(np.float32)
        np.testing.assert_array_equal(values[0, 1], expected[2, 1, 3:5])
        assert [each.name for each in file.data()] == ["rain", "temperature"] or name.endswith(".nc")


def test_open_arrays_reads_netcdf_3_and_packed_values(tmp_path: Path) -> None:
    values = np.array([[1.5, np.nan], [2.5, -4.0]])
    packed = {"scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -99, "dtype": "i2"}
    dataset = xarray.Dataset({"rain": (("y", "x"), values)})
    dataset.to_netcdf(tmp_path / "classic.nc", engine="scipy", format="NETCDF3_CLASSIC", encoding={"rain": packed})
    dataset.to_netcdf(tmp_path / "packed.h5", engine="h5netcdf", encoding={"rain": packed})
    for name in ("classic.nc", "packed.h5"):
        np.testing.assert_array_equal(part_of(tmp_path / name, "rain", slice(0, 2), slice(0, 2)), values)


def test_open_arrays_masks_all_missing_values_that_hdf5_states(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", data=np.array([[1e20, 1, -9, -8]], np.float32)).attrs["_FillValue"] = 1e20  # float64
        file["u"].attrs["missing_value"] = [-9.0, -8.0]
    np.testing.assert_array_equal(
        part_of(tmp_path / "a.h5", "u", slice(0, 1), slice(0, 4)), [[np.nan, 1] + 2 * [np.nan]]
    )


def test_open_arrays_has_printable_names_and_units(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_dataset("u\x1b[2J", data=np.zeros((2, 3))).attrs["units"] = b"\xff\x07"
        file["t"] = np.zeros((2, 3))
        file["t"].attrs["bounds"] = ["a", "b"]
        file["t\n"] = np.zeros((2, 3), complex)
    (tmp_path / "a.h5").hardlink_to(tmp_path / "a.nc")
    for name in ("a.nc", "a.h5"):
        with open_arrays(tmp_path / name) as opened:
            texts = [*opened.arrays, *opened.others, *(each.unit for each in opened.arrays.values())]
            assert all(text.isprintable() for text in texts), texts


def test_open_arrays_reads_groups_and_scales_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("run/u", data=np.arange(6.0).reshape(2, 3))
        dataset.attrs["units"] = "m/s"
        file["run/depth"] = [0.0, 10.0, 20.0]
        file["run/depth"].attrs["units"] = b"metres"
        file["run/depth"].make_scale("depth")
        dataset.dims[1].attach_scale(file["run/depth"])
        dataset.dims[0].label = "member"
        file["run"]["again"] = file["run"]  # a group within itself
        file["soft"] = h5py.SoftLink("/run/u")
        file["names"] = ["a", "bb"]
        file["table"] = np.zeros(2, [("a", "i4")])
    with open_arrays(tmp_path / "a.h5") as opened:
        array = opened.array("run/u")
        assert (array.dimensions, array.unit) == (("member", "depth"), "m/s")
        coordinate = opened.coordinate("depth")
        assert coordinate is not None
        assert (coordinate.spacing, coordinate.unit) == (10, "m")
        np.testing.assert_array_equal(array.read((slice(1, 2), slice(0, 3, 2))), [[3, 5]])
        assert opened.array("names").texts() == ["a", "bb"]
        with pytest.raises(UnusableFileError, match=r"table cannot be read: .*not real numbers"):
            opened.array("table")
        with pytest.raises(UnusableFileError, match=r"no array 'v'; it has names, run/depth, run/u"):
            opened.array("v")


@pytest.mark.parametrize("zipped", [False, True])
def test_open_arrays_reads_zarr_without_names(zipped: bool, tmp_path: Path) -> None:
    simulations(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr"
    if zipped:
        path = tmp_path / "a.zarr.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for each in (tmp_path / "a.zarr").rglob("*"):
                archive.write(each, each.relative_to(tmp_path / "a.zarr"))
    expected = np.random.default_rng(0).random((12, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        part_of(path, "density", slice(3, 6), slice(0, 8), slice(1, 2)), expected[3:6, :, 1:2]
    )
    with open_arrays(path) as file:
        assert (file.array("density").dimensions, file.array("density").chunk) == ((None,) * 3, 4)


def test_open_arrays_masks_fill_values_of_zarr_in_any_group(tmp_path: Path) -> None:
    values = np.array([[1.5, np.nan], [2.5, -4.0]])
    packed = {"scale_factor": 0.5, "_FillValue": -99, "dtype": "i2"}
    dataset = xarray.Dataset({"rain": (("y", "x"), values), "deep": (("y", "x"), values)})
    options: dict[str, Any] = {"encoding": {"rain": packed, "deep": {"_FillValue": -99.0}}, "consolidated": False}
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        dataset.to_zarr(path, zarr_format=version, **options)
        dataset.to_zarr(path, group="a/b", mode="a", zarr_format=version, **options)
        for name in ("rain", "deep", "a/b/rain", "a/b/deep"):
            np.testing.assert_array_equal(part_of(path, name, slice(0, 2), slice(0, 2)), values, str((version, name)))
    # Images of several sizes, as microscopes write them: xarray requires one size for a dimension.
    group = zarr.open_group(tmp_path / "pyramid.zarr", mode="w")
    for size in (4, 2):
        group.create_array(f"{size}", data=np.ones((size, size)), dimension_names=["y", "x"])
    with open_arrays(tmp_path / "pyramid.zarr") as file:
        assert [(each.name, each.dimensions) for each in file.data()] == [("2", ("y", "x")), ("4", ("y", "x"))]


def test_open_arrays_turns_nifti_to_ras_in_millimetres(tmp_path: Path) -> None:
    scans(tmp_path)
    with open_arrays(tmp_path / "healthy" / "00.nii.gz") as file:
        array, x = file.array(""), file.coordinate("x")
        assert (array.dimensions, array.shape) == (("x", "y", "z"), (6, 8, 8))
        assert x is not None
        assert (x.start, x.spacing, x.unit, x.descending) == (-10, 2, "mm", False)
        stored = 100 * np.random.default_rng(0).random((6, 8, 8)).astype(np.float32)
        np.testing.assert_array_equal(array.read(), stored[::-1])
    series = nibabel.Nifti2Image(np.zeros((2, 3, 4, 5), np.int16), np.eye(4))
    series.header.set_zooms((1, 1, 1, 500))
    series.header.set_xyzt_units("mm", "msec")
    nibabel.save(series, tmp_path / "series.nii")
    with open_arrays(tmp_path / "series.nii") as file:
        assert file.array("").dimensions == ("x", "y", "z", "time")
        time = file.coordinate("time")
        assert time is not None
        assert (time.spacing, time.unit) == (0.5, "s")


def test_open_arrays_reads_tables(tmp_path: Path) -> None:
    sensors(tmp_path / "csv")
    sensor_table(tmp_path / "a.parquet")
    for path in (tmp_path / "csv" / "00.csv", tmp_path / "a.parquet"):
        with open_arrays(path) as file:
            assert [each.name for each in file.data()] == ["x", "y"]
            time = file.coordinate("time")
            assert time is not None
            assert time.spacing == pytest.approx(0.02)
            assert file.array("x").read((slice(0, 2),)) == pytest.approx([0, np.sin(0.1)])
    (tmp_path / "b.csv").write_text("1;2.5\n-3;\n\n4;nan\n")
    np.testing.assert_array_equal(part_of(tmp_path / "b.csv", "column_2", slice(0, 3)), [2.5, np.nan, np.nan])


def test_open_arrays_has_no_row_numbers_of_pandas_and_no_column_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",time,x,\n7,0.0,1.5,\n8,0.1,2.5,\n")
    rows = {"x": [1.5, 2.5], "price": [Decimal("1.25"), None], "__index_level_0__": [7, 8]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    for name, names, others in (
        ("a.csv", ["x"], ["column_1", "column_4"]), ("a.parquet", ["x", "price"], ["__index_level_0__"]),
    ):  # fmt: skip
        with open_arrays(tmp_path / name) as file:
            assert [each.name for each in file.data()] == names
            assert list(file.others) == others
    np.testing.assert_array_equal(part_of(tmp_path / "a.parquet", "price", slice(0, 2)), [1.25, np.nan])
    table = pyarrow.table([[1.0], [2.0]], names=["x", "x"])
    parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(UnusableFileError, match="two of its columns have one name; they are named x, x"):
        open_arrays(tmp_path / "b.parquet")


def test_open_arrays_names_the_line_of_a_bad_table(tmp_path: Path) -> None:
    for text, message in (
        ("a,b\n1,2\n3,x\n", "array b cannot be read: its line 3 has 'x', which is not a number"),
        ("a;b\n1;0,5\n", "its line 2 has '0,5', which is not a number: write it with a decimal point"),
        ("a,b\n1,2\n3\n", "line 3 has 1 fields, but the first has 2"),
        ("b,b\n1,2\n", "two of its columns have one name"),
        ("", "first line is empty"),
        (f"a,b\n1,{'2' * 200_000}\n", "not a table .*field larger than field limit"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UnusableFileError, match=message):
            part_of(tmp_path / "a.csv", "b", slice(0, 1))


def test_open_arrays_refuses_other_endings_and_addresses(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(ValueError, match=r"a\.txt does not end in \.npz"):
        open_arrays(tmp_path / "a.txt")
    for address in ("https://example.org/a.nc", "s3://bucket/a.zarr", "file:///a.npy"):
        with pytest.raises(ValueError, match=r"is an address, .* copy the file"):
            open_arrays(address)
        with pytest.raises(ValueError, match="is an address"):
            array_paths(address)


def test_array_paths_finds_files_and_stores_in_folders_and_patterns(tmp_path: Path) -> None:
    simulations(tmp_path / "b" / "s.zarr")
    simulations(tmp_path / "a.h5")
    images(tmp_path / ".hidden.npz")
    (tmp_path / "metadata.csv").write_text("file_name\n")
    assert array_paths(tmp_path) == [tmp_path / "a.h5", tmp_path / "b" / "s.zarr"]
    assert array_paths(f"{tmp_path}/*.h5") == [tmp_path / "a.h5"]
    assert array_paths(tmp_path / "b" / "s.zarr") == [tmp_path / "b" / "s.zarr"]
    with pytest.raises(FileNotFoundError, match="is not a file"):
        array_paths(tmp_path / "nothing")


def npy(header: dict[str, Any], data: bytes = b"") -> bytes:
    """A .npy file with this header, which need not make sense."""
    text = repr({"fortran_order": False, **header}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def hostile_npz(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)


def pickled(path: Path) -> bytes:
    return npy({"descr": "|O", "shape": (1,)}, pickle.dumps([Bomb(path.parent / "canary")]))


def hdf5(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["honest"] = np.zeros(3)
            change(file)

    return write


def outside(path: Path) -> Path:
    """A file that nothing may read."""
    with h5py.File(path.parent / "outside", "w") as file:
        file["secret"] = np.ones(3)
    return path.parent / "outside"


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(outside(Path(file.filename)), "secret", (3,))
    file.create_virtual_dataset("a", layout)


def external_storage(file: h5py.File) -> None:
    file.create_dataset("a", (3,), "f8", external=[(str(outside(Path(file.filename))), 0, 24)])


def external_link(file: h5py.File) -> None:
    file["a"] = h5py.ExternalLink(str(outside(Path(file.filename))), "secret")


def plugin(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((3,))
    properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((3,)), properties)


def references(file: h5py.File) -> None:
    file.create_dataset("a", data=[file["honest"].ref], dtype=h5py.ref_dtype)


def large_chunk(file: h5py.File) -> None:
    file.create_dataset("a", (1 << 28,), "f8", chunks=(1 << 28,), compression="gzip")


def growing_chunk(file: h5py.File) -> None:
    dataset = file.create_dataset("a", (4,), "f8", chunks=(4,), compression="gzip")
    dataset.id.write_direct_chunk((0,), bytes(1 << 20))


def zarr_store(version: int, edit: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        zarr.open_group(path, mode="w", zarr_format=version).create_array("a", data=np.ones((4, 4)), chunks=(2, 4))
        edit(path / "a")

    return write


def metadata(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (file,) = [path for path in (folder / "zarr.json", folder / ".zarray") if path.exists()]
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def linked_chunk(folder: Path) -> None:
    chunk = min(path for path in (folder / "c").rglob("*") if path.is_file())
    chunk.unlink()
    chunk.symlink_to(outside(folder.parent))


def piped_chunk(folder: Path) -> None:
    os.mkfifo(folder / "c" / "9")


def growing(folder: Path) -> None:
    (folder / "c" / "9").write_bytes(bytes(1 << 20))


def nifti(size: int = 4, **changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((size,) * 3, np.float32), np.eye(4))
        content = bytearray(image.to_bytes())
        header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        for key, value in changes.items():
            header[key] = value
        content[:348] = header.binaryblock
        path.write_bytes(gzip.compress(bytes(content)))

    return write


def extension(path: Path) -> None:
    values = pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), pyarrow.array([bytes(16)], pyarrow.binary(16)))
    parquet.write_table(pyarrow.table({"a": values}), path)


CODEC = {"id": "pickle", "protocol": 5}
HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "npy pickle": ("a.npy", lambda path: path.write_bytes(pickled(path)), "Python objects"),
    "npz pickle": ("a.npz", lambda path: hostile_npz(path, pickled(path)), "Python objects"),
    "npy size": ("a.npy", lambda path: path.write_bytes(npy({"descr": "<f8", "shape": (1 << 50,)})), "shorter than"),
    "npy negative": ("a.npy", lambda path: path.write_bytes(npy({"descr": "<f8", "shape": (-1, -4)})), "invalid shape"),
    "npz size": ("a.npz", lambda path: hostile_npz(path, npy({"descr": "<f8", "shape": (1 << 40,)})), "limit of"),
    "npz shape": (
        "a.npz",
        lambda path: hostile_npz(path, npy({"descr": "<f8", "shape": (9,)})),
        "does not have the size",
    ),
    "external link": ("a.h5", hdf5(external_link), "link to another file"),
    "external storage": ("a.h5", hdf5(external_storage), "in other files"),
    "virtual": ("a.h5", hdf5(virtual), "in other files"),
    "plugin": ("a.h5", hdf5(plugin), "filter 32001, which is not accepted"),
    "references": ("a.h5", hdf5(references), "references"),
    "hdf5 chunk": ("a.h5", hdf5(large_chunk), "limit of"),
    "hdf5 growing chunk": ("a.h5", hdf5(growing_chunk), "larger than its values"),
    "netcdf external link": ("a.nc", hdf5(external_link), "link to another file"),
    "netcdf virtual": ("a.nc", hdf5(virtual), "in other files"),
    "netcdf content": ("a.nc", lambda path: path.write_bytes(b"http://example.org/a.nc"), "neither NetCDF-4"),
    "zarr 2 pickle": ("a.zarr", zarr_store(2, metadata(filters=[CODEC])), "codec 'pickle'"),
    "zarr 2 objects": ("a.zarr", zarr_store(2, metadata(dtype="|O", filters=[{"id": "json2"}])), "Python objects"),
    "zarr 2 chunk": ("a.zarr", zarr_store(2, metadata(chunks=[1 << 20, 1 << 20])), "limit of"),
    "zarr 3 codec": ("a.zarr", zarr_store(3, metadata(codecs=[{"name": "numcodecs.pickle"}])), "'numcodecs.pickle'"),
    "zarr 3 nested codec": (
        "a.zarr",
        zarr_store(3, metadata(codecs=[{"name": "sharding_indexed", "configuration": {"codecs": ["evil"]}}])),
        "'evil'",
    ),
    "zarr 3 type": ("a.zarr", zarr_store(3, metadata(data_type={"name": "variable_object"})), "not accepted"),
    "zarr 3 link": ("a.zarr", zarr_store(3, linked_chunk), "is a link or a special file"),
    "zarr 3 pipe": ("a.zarr", zarr_store(3, piped_chunk), "is a link or a special file"),
    "zarr 3 growing chunk": ("a.zarr", zarr_store(3, growing), "has 1,048,576 bytes"),
    "nifti size": ("a.nii.gz", nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "limit of"),
    "nifti offset": ("a.nii.gz", nifti(vox_offset=1e12), "begin at byte"),
    "nifti pair": ("a.nii.gz", nifti(magic=b"ni1"), "values are in another file"),
    "nifti text": ("a.nii", lambda path: path.write_text("hello " * 100), "neither NIfTI-1"),
    "parquet extension": ("a.parquet", extension, "extension type"),
}


@pytest.mark.parametrize("file", sorted({file for file, _, _ in HOSTILE.values()}))
def test_open_arrays_refuses_hostile_files(file: str, tmp_path: Path) -> None:
    for kind, (name, write, message) in HOSTILE.items():
        if name == file:
            path = tmp_path / kind / name
            path.parent.mkdir()
            write(path)
            with pytest.raises(UnusableFileError, match=re.escape(message)):
                open_arrays(path)
            assert not (path.parent / "canary").exists(), kind


def test_open_arrays_refuses_members_that_exceed_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger chunks of zip files, and parts of memory-mapped files, are not tried at their real size."""
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        node = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<f8", "compressor": None, "filters": None}
        archive.writestr(".zarray", json.dumps(node))
        archive.writestr("0", bytes(1 << 20))
    with pytest.raises(UnusableFileError, match="its chunk 0 has 1,048,576 bytes"):
        open_arrays(tmp_path / "a.zarr.zip")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(100))
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    monkeypatch.setattr("modalities.named_arrays.check_size.__defaults__", (400,))
    with open_arrays(tmp_path / "a.npy") as file, pytest.raises(UnusableFileError, match="limit of 400"):
        file.array("").read()


def test_open_arrays_names_the_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulations(tmp_path / "a.h5")
    simulations(tmp_path / "b.zarr")
    scans(tmp_path)
    sensor_table(tmp_path / "c.parquet")
    for name, library in (
        ("a.h5", "h5py"), ("b.zarr", "zarr"), ("ill/01.nii.gz", "nibabel"), ("c.parquet", "pyarrow"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            patch.delitem(sys.modules, f"{library}.parquet", raising=False)
            with pytest.raises(BrokenLibraryError, match=rf"(files|stores).*: {library} is not installed\. To "):
                open_arrays(tmp_path / name)
