"""Fields and series: their settings from files, windows, missing values, transforms and saved files."""

from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch
import xarray

from modalities.base import UnusableFileError
from modalities.field import Field, Series
from modalities.field_layout import FieldAxis
from modalities.variables import Transform, Variable
from multisagd import Axis
from multisagd.testing import check_modality
from tests.helpers.array_sets import RATE, scans, sensor, sensors, simulations, weather

AXES = (FieldAxis("y", 4), FieldAxis("x", 6))
ONE = (Variable("a"),)
DATA = {"example_axis": "auto"}
"""The settings of data=arrays that matter here."""


def save_field(path: Path, size: tuple[int, int] = (4, 6), **fields: np.ndarray) -> Path:
    np.savez(path, **(fields or {"a": np.arange(float(np.prod(size))).reshape(size)}))
    return path


@pytest.mark.parametrize("kind", ["nii.gz", "csv", "npz"])
def test_field_conforms_to_the_rules_of_modalities(kind: str, tmp_path: Path) -> None:
    if kind == "nii.gz":
        scans(tmp_path)
        path = tmp_path / "ill" / "01.nii.gz"
        modality = Field.of_file(path, axes={"x": 5, "y": None, "z": {"size": 8}})
    elif kind == "csv":
        sensors(tmp_path)
        path = tmp_path / "00.csv"
        modality = Series.of_file(path, length=32, rate=None)
    else:
        path = save_field(tmp_path / "a.npz", a=np.exp(np.arange(24.0).reshape(4, 6)), b=np.ones((4, 6)))
        modality = Field.of_file(path, variables={"a": {"transform": "log"}, "b": None}, axes=["lat", "lon"])
    assert modality.format == kind
    check_modality(modality, path)


def test_field_takes_settings_from_weather(tmp_path: Path) -> None:
    weather(tmp_path / "a.nc")
    found = Field.resolved({"like": str(tmp_path / "a.nc")}, DATA)
    latitude, longitude = (FieldAxis(**each) for each in found["axes"])
    assert latitude == FieldAxis("lat", 8, 20, "degree", start=-70)
    assert longitude == FieldAxis("lon", 16, 22.5, "degree", periodic=True)
    assert (found["like"], found["format"]) == (None, "nc")
    temperature = next(each for each in found["variables"] if each["name"] == "temperature")
    assert temperature["unit"] == "K"
    assert temperature["offset"] == pytest.approx(280, abs=2)
    assert temperature["scale"] == pytest.approx(60, rel=0.05)  # three standard deviations
    assert Field.resolved(found, {"root": "/nothing"}) == found  # complete settings need no file
    modality = Field.of_file(tmp_path / "a.nc", axes=["lat", "lon"])
    assert modality.grid().axes[1] == Axis("lon", 16, 22.5, "degree", periodic=True)


def test_field_settings_prefer_what_is_given(tmp_path: Path) -> None:
    weather(tmp_path / "a.nc")
    axes = {"lon": {"size": 8, "corner": 0.01}, "lat": 4}
    variables = {"rain": {"transform": "asinh", "scale": 2.0}}
    found = Field.resolved({"axes": axes, "variables": variables}, {"root": str(tmp_path), **DATA})
    assert [FieldAxis(**each) for each in found["axes"]] == [
        FieldAxis("lon", 8, 22.5, "degree", 0.01), FieldAxis("lat", 4, 20, "degree"),
    ]  # fmt: skip
    (rain,) = (Variable(**each) for each in found["variables"])
    assert (rain.transform, rain.scale, rain.unit) == ("asinh", 2.0, "mm")
    assert rain.threshold == pytest.approx(1, rel=0.1)  # the median of the log-normal rain


def test_field_names_what_files_do_not(tmp_path: Path) -> None:
    geographic: dict[str, Any] = {"axes": ["lat", "lon"]}
    for shape, settings, data, axes, variables in (
        ((9, 4, 6), {}, DATA, ["y", "x"], ["value"]),
        ((9, 4, 6), {}, {}, ["z", "y", "x"], ["value"]),
        ((2, 4, 6), geographic, {}, ["lat", "lon"], ["value_1", "value_2"]),
        ((4, 6, 2), geographic, {}, ["lat", "lon"], ["value_1", "value_2"]),
        ((9, 2, 4, 6), geographic, DATA, ["lat", "lon"], ["value_1", "value_2"]),
    ):
        np.save(tmp_path / "a.npy", np.random.default_rng(0).random(shape))
        found = Field.resolved({**settings, "like": tmp_path / "a.npy"}, data)
        assert [each["name"] for each in found["axes"]] == axes, shape
        assert [each["name"] for each in found["variables"]] == variables, shape
        assert shape == (9, 4, 6) or [each["size"] for each in found["axes"]] == [4, 6]


def test_field_takes_no_bounds_positions_and_scalars_for_variables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = 0.02 * np.arange(50)
    bounds = (("time", "side"), np.stack([times, times + 0.02], 1))
    time = ("time", times, {"units": "s", "bounds": "time_bounds"})
    xarray.Dataset({"q": ("time", rng.random(50)), "time_bounds": bounds}, {"time": time}).to_netcdf(tmp_path / "q.nc")
    found = Series.resolved({"length": 8, "rate": None, "like": tmp_path / "q.nc"}, DATA)
    assert [each["name"] for each in found["variables"]] == ["q"]
    curved = {name: (("y", "x"), rng.random((4, 6))) for name in ("lat", "lon")}
    xarray.Dataset({"t": (("y", "x"), rng.random((4, 6)))}, curved).to_netcdf(tmp_path / "t.nc")
    assert [each.name for each in Field.of_file(tmp_path / "t.nc").variables] == ["t"]
    # A scalar and a vector of an .npz file do not make examples of channels.
    save_field(tmp_path / "a.npz", u=rng.random((9, 2, 4, 6)), step=np.array(0.1), t=rng.random(9))
    found = Field.resolved({"axes": ["y", "x"], "like": tmp_path / "a.npz"}, DATA)
    assert [each["name"] for each in found["variables"]] == ["u_1", "u_2"]


def test_field_settings_say_what_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("time,x,y\n0,1,2\n1,2,ERR\n2,4,5\n")
    assert [each.name for each in Series.of_file(tmp_path / "a.csv", length=2, rate=None).variables] == ["x"]
    assert (
        "not used as variables: y (its line 3 has 'ERR', which is not a number). Set modality.variables" in caplog.text
    )
    save_field(tmp_path / "a.npz", u=np.zeros((9, 4, 6)), v=np.zeros((9, 3, 3)), w=np.zeros((9, 4, 6), complex))
    assert [each["name"] for each in Field.resolved({"like": tmp_path / "a.npz"}, DATA)["variables"]] == ["u"]
    assert "v (9, 3, 3), w (its values have the type complex128, and not real numbers)" in caplog.text


def test_field_of_arrays_named_like_axes_or_without_units(tmp_path: Path) -> None:
    save_field(tmp_path / "a.npz", x=np.random.default_rng(0).random((9, 4, 6)))
    found = Field.resolved({"like": tmp_path / "a.npz"}, DATA)
    assert [each["name"] for each in (*found["axes"], *found["variables"])] == ["axis_1", "axis_2", "x"]
    # Longitudes are in degrees, and positions that are not evenly spaced can descend, too.
    places = {"lat": [60.0, 10, 0, -50], "lon": 60.0 * np.arange(6)}
    values = np.arange(24.0).reshape(4, 6)
    xarray.Dataset({"t": (("lat", "lon"), values)}, places).to_netcdf(tmp_path / "a.nc")
    modality = Field.of_file(tmp_path / "a.nc", variables={"t": {"scale": 1.0, "offset": 0.0}})
    assert modality.grid().axes[1] == Axis("lon", 6, 60.0, "degree", periodic=True)
    np.testing.assert_array_equal(modality.load(tmp_path / "a.nc")[0], values[::-1])


def test_field_settings_name_the_file_that_fails_and_the_reason(tmp_path: Path) -> None:
    for name in ("0.csv", "1.csv"):
        (tmp_path / name).write_text("time,x\n0,1\n1,2\n3,3\n")
    (tmp_path / "1.csv").write_text("time\n0\n")
    data = {"root": str(tmp_path)}
    with pytest.raises(ValueError, match=r"1\.csv: it has no array 'x'"):
        Series.resolved({"length": 2, "rate": 1}, data)
    with pytest.raises(ValueError, match=r"0\.csv: its times are not evenly spaced: set modality\.rate"):
        Series.resolved({"length": 2, "rate": None}, data)
    with pytest.raises(ValueError, match=r"data\.match='\[' is not a regular expression"):
        Series.resolved({"length": 2, "rate": 1}, {**data, "match": "["})
    # nibabel raises an error of its own for a volume without voxels.
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[40:42] = bytes(2)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be taken from .*a\.nii"):
        Field.of_file(tmp_path / "a.nii")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", (0, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"a\.h5: it has no values: u \(0, 4, 4\)"):
        Field.resolved({"like": tmp_path / "a.h5"}, DATA)


def test_field_settings_name_what_is_wrong(tmp_path: Path) -> None:
    weather(tmp_path / "a.nc")
    for settings, message in (
        ({"axes": ["lat", "depth"]}, r"does not have the axes lat, depth: set modality\.axes"),
        ({"axes": "lat"}, "axes: expected a list of names"),
        ({"variables": ["wind"]}, "no array 'wind'; it has .*temperature"),
        ({"variables": {"lat": {"transform": "log"}}, "axes": ["lat"]}, "lat has values that are not positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Field.resolved({**settings, "like": tmp_path / "a.nc"}, DATA)


def test_field_needs_axes_and_variables_whose_names_differ() -> None:
    with pytest.raises(ValueError, match=r"set modality\.like to one of the files"):
        Field()
    with pytest.raises(ValueError, match="axes and variables are not known"):
        Field.resolved({}, {"urls": "shards"})
    with pytest.raises(ValueError, match="names of axes and variables must differ"):
        Field(AXES, (Variable("x"),))
    with pytest.raises(ValueError, match=r"format=nii\.gz is for one variable on the axes x, y, z"):
        Field(AXES, ONE, "nii.gz")
    with pytest.raises(ValueError, match=r"Field\.of_file"):
        Field(AXES, ONE, like=Path("a.nc"))


def test_field_load_takes_windows_by_seed_and_the_middle_without(tmp_path: Path) -> None:
    path = save_field(tmp_path / "a.npz", (10, 6))
    modality = Field(AXES, ONE)
    assert modality.load(path)[0, :, 0].tolist() == [18, 24, 30, 36]
    starts = {int(modality.load(path, seed)[0, 0, 0]) // 6 for seed in range(40)}
    assert starts == set(range(7))
    with pytest.raises(UnusableFileError, match="it has 3 values along the axis y, fewer than the 4"):
        modality.load(save_field(tmp_path / "b.npz", (3, 6)))
    circle = (AXES[0], FieldAxis("x", 5, periodic=True))
    with pytest.raises(UnusableFileError, match="whole circle of the modality has 5"):
        Field(circle, ONE).load(path)
    with pytest.raises(UnusableFileError, match=r"contains 10 examples.*data=arrays"):
        Field(AXES[1:], ONE).load(path)


def test_field_masks_missing_values_and_looks_for_others(tmp_path: Path) -> None:
    values = np.full((40, 6), np.nan)
    values[30:] = 2.0
    path = save_field(tmp_path / "a.npz", a=values)
    modality = Field(AXES, (Variable("a", scale=2.0, offset=1.0),))
    with pytest.raises(ValueError, match="all values of the field are missing"):
        modality.load(path)
    loaded = [modality.load(path, seed) for seed in range(8)]
    assert all(bool(modality.mask(each).any()) for each in loaded if modality.mask(each) is not None)  # type: ignore[union-attr]
    media = torch.tensor([[[5.0, torch.nan, 1.0, 1.0, 1.0, 1.0]] * 4], dtype=torch.float64)
    assert modality.encode(media)[0, 0, :3].tolist() == [2, 0, 0]
    mask = modality.mask(media)
    assert mask is not None
    assert mask[0, 0].tolist() == [True, False, True, True, True, True]
    assert modality.mask(torch.ones(1, 4, 6)) is None


def test_field_reverses_descending_axes_and_checks_the_spacing(tmp_path: Path) -> None:
    fields = {"a": (("y", "x"), np.arange(24.0).reshape(4, 6))}
    xarray.Dataset(fields, {"y": ("y", [3.0, 2.0, 1.0, 0.0], {"units": "m"})}).to_netcdf(tmp_path / "a.nc")
    metres = FieldAxis("y", 3, 1.0, "m")
    assert Field((metres, AXES[1]), ONE).load(tmp_path / "a.nc", 0)[0, :, 0].tolist() in ([18, 12, 6], [12, 6, 0])
    wide = FieldAxis("y", 3, 1.2, "m")
    with pytest.raises(UnusableFileError, match=r"y are 1 m apart, but those of the modality 1\.2: resample"):
        Field((wide, AXES[1]), ONE).load(tmp_path / "a.nc")
    assert Field((wide, AXES[1]), ONE, spacing_tolerance=None).load(tmp_path / "a.nc").shape == (1, 3, 6)


@pytest.mark.parametrize("transform", ["linear", "log", "asinh"])
def test_variable_decode_inverts_encode_and_stays_finite(transform: Transform) -> None:
    variable = Variable("a", "mm", 1.5, 0.5, transform, 0.1)
    values = torch.logspace(-6, 4, 40, dtype=torch.float64)
    values = values if transform == "log" else torch.cat([-values, values])
    torch.testing.assert_close(variable.decode(variable.encode(values)), values)
    assert bool(variable.decode(torch.tensor([-1e9, 1e9], dtype=torch.float64)).isfinite().all())
    changed = {"linear": 1e-3, "log": np.log(1e-3), "asinh": np.arcsinh(0.01)}[transform]
    assert float(variable.encode(torch.tensor(1e-3))) == pytest.approx((changed - 0.5) / 1.5)


def test_field_saves_units_and_coordinates(tmp_path: Path) -> None:
    axes = (FieldAxis("lat", 3, 10.0, "degree", start=-10.0), FieldAxis("lon", 2, 5.0, "degree"))
    modality = Field(axes, (Variable("t", "K"), Variable("u", "m/s")), "nc")
    media = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2)
    media[0, 0, 0] = torch.nan
    for name in ("a.nc", "a.npz", "a.npy"):
        modality.save(media, tmp_path / "new" / name)
        torch.testing.assert_close(modality.load(tmp_path / "new" / name), media, equal_nan=True)
    with xarray.open_dataset(tmp_path / "new" / "a.nc") as saved:
        assert (saved.t.dims, saved.t.units, saved.lat.units) == (("lat", "lon"), "K", "degree")
        assert saved.lat.values.tolist() == [-10, 0, 10]
    with pytest.raises(ValueError, match="fields are written as npz"):
        modality.save(media, tmp_path / "a.txt")


def test_series_take_their_rate_from_times_or_need_it(tmp_path: Path) -> None:
    sensors(tmp_path)
    found = Series.resolved({"length": 32, "rate": None}, {"root": str(tmp_path)})
    assert found["rate"] == RATE
    assert {"axes", "root"}.isdisjoint(found)
    assert [each["name"] for each in found["variables"]] == ["x", "y"]
    modality = Series.of_file(tmp_path / "00.csv", length=4, rate=RATE, variables=["y"])
    assert modality.grid().axes == (Axis("time", 4, 0.02, "s"),)
    np.testing.assert_array_equal(modality.load(tmp_path / "00.csv")[0], sensor()[98:102, 2])
    with pytest.raises(UnusableFileError, match=r"time are 0\.02 s apart, but those of the modality 0\.01"):
        Series.of_file(tmp_path / "00.csv", length=4, rate=100.0).load(tmp_path / "00.csv")
    np.save(tmp_path / "a.npy", np.zeros((50, 3)))
    with pytest.raises(ValueError, match=r"set modality\.rate, in hertz"):
        Series.resolved({"length": 32, "rate": None, "like": tmp_path / "a.npy"}, {})
    assert Series.of_file(tmp_path / "a.npy", length=32, rate=1.0).load(tmp_path / "a.npy").shape == (3, 32)


def test_field_measures_long_axes_in_evenly_spaced_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalities.field_settings.VALUES", 1 << 10)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.linspace(0, 1, 1 << 16)
    (variable,) = Series.of_file(tmp_path / "a.h5", length=4, rate=1.0).variables
    assert variable.offset == pytest.approx(0.5, abs=0.01)
    assert variable.scale == pytest.approx(3 / np.sqrt(12), rel=0.02)


def test_field_of_hdf5_without_names_has_classes_apart(tmp_path: Path) -> None:
    simulations(tmp_path / "a.h5")
    found = Field.resolved({"axes": ["y", "x"]}, {"root": str(tmp_path / "a.h5"), **DATA})
    assert [each["name"] for each in found["variables"]] == ["density"]
