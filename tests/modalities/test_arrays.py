"""Many examples in files of arrays: their order, annotations, parts and chunks, and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from modalities.arrays import Arrays
from modalities.audio import Audio
from modalities.base import split
from modalities.field import Field, Series
from modalities.field_layout import FieldAxis
from modalities.image import Image
from modalities.reading import read_batch
from modalities.variables import Variable
from recipes.base.errors import RecipeError
from recipes.config.build import Builder
from recipes.data.order import Order
from recipes.data.parts import group_names
from tests.helpers.array_sets import COUNT, images, scans, sensor, sensors, simulations, weather

GRID = (FieldAxis("y", 8), FieldAxis("x", 8))
DENSITY = Field(GRID, (Variable("density"),))
VALUES = np.random.default_rng(0).random((COUNT, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr", "a.npz", "a.npy"])
def test_arrays_read_examples_in_order_and_any_subset(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.npz":
        np.savez(path, density=VALUES)
    elif name == "a.npy":
        np.save(path, VALUES)
    else:
        simulations(path)
    dataset = Arrays(DENSITY, path)
    assert len(dataset) == COUNT
    np.testing.assert_array_equal(torch.cat([each.x0 for each in dataset]), VALUES)
    part = dataset.subset([7, 2])
    np.testing.assert_array_equal(part.batch([0, 1], [5, 6]).x0[:, 0], VALUES[[7, 2]])
    assert (part.name(1), part.path(1)) == (f"{name}[2]", name)
    assert dataset.fingerprint == Arrays(DENSITY, path).fingerprint != part.fingerprint
    stored = [Path(source.path) for source in dataset.stored()]
    assert stored
    assert all(each.is_file() and each.is_relative_to(tmp_path) for each in stored)
    if name in ("a.h5", "a.zarr"):
        assert dataset.groups is not None
        assert (list(dataset.groups.lengths), list(part.groups.lengths)) == ([4, 4, 4], [1, 1])  # type: ignore[union-attr]
        order = Order(COUNT, 0, dataset.groups)
        assert sorted(order.indices(0, COUNT)) == list(range(COUNT))
    else:
        assert dataset.groups is None


def test_arrays_read_weather_with_masks_and_classes_of_several_files(tmp_path: Path) -> None:
    weather(tmp_path / "a.nc")
    weather(tmp_path / "b.zarr")
    modality = Field.of_file(tmp_path / "a.nc", axes=["lat", "lon"])
    dataset = Arrays(modality, tmp_path)
    assert [dataset.name(index) for index in (0, COUNT)] == ["a.nc[0]", "b.zarr[0]"]
    batch = read_batch(dataset, range(2 * COUNT))
    assert batch.mask is not None
    temperature = [each.name for each in modality.variables].index("temperature")
    assert not bool(batch.mask[:, temperature, -1].any())  # the file begins in the north, the grid in the south
    assert float(batch.mask.double().mean()) == 15 / 16
    assert float(batch.x0[:, temperature].abs().max()) < 2
    torch.testing.assert_close(batch.x0[:COUNT], batch.x0[COUNT:])
    with pytest.raises(ValueError, match=r"example_axis=member, but its dimensions .* are time"):
        Arrays(modality, tmp_path, example_axis="member")
    with pytest.raises(ValueError, match="example_axis is null, but it has 12 examples"):
        Arrays(modality, tmp_path, example_axis=None)


def test_arrays_take_annotations_from_arrays(tmp_path: Path) -> None:
    names = np.array(["b", "a"] * (COUNT // 2))
    splits = np.array(["train", "train", "val", "test"] * (COUNT // 4))
    np.savez(tmp_path / "a.npz", density=VALUES, label=names, captions=names, split=splits, group=np.arange(COUNT) // 2)
    dataset = Arrays(DENSITY, tmp_path / "a.npz")
    assert dataset.classes == ("a", "b")
    assert [dataset.label(index) for index in range(3)] == [1, 0, 1]
    assert dataset.caption(1) == "a"
    assert dataset.splits is not None
    assert list(dataset.splits[:4]) == ["train", "train", "validation", "test"]
    assert group_names(dataset.subset([3, 4]), "manifest") == ["1", "2"]
    assert dataset.subset([3]).splits == ["test"]
    assert dataset.batch([0, 1]).texts == ("b", "a")
    bare = Arrays(DENSITY, tmp_path / "a.npz", labels=None, captions=None, split=None, group=None)
    assert (bare.classes, bare.caption(0), bare.splits) == (None, None, None)
    with pytest.raises(ValueError, match=r"a\.npz: it has no array 'kind'; it has density"):
        Arrays(DENSITY, tmp_path / "a.npz", labels="kind")
    np.savez(tmp_path / "a.npz", density=VALUES, label=np.arange(5))
    with pytest.raises(ValueError, match=r"label \(5\) for labels has 5 values, but there are 12 examples"):
        Arrays(DENSITY, tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", density=VALUES, label=np.array(["a", ""] * (COUNT // 2)))
    with pytest.raises(ValueError, match=r"array label for labels has an empty text at 1: set data\.labels=null"):
        Arrays(DENSITY, tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["density"] = VALUES
        file["label"] = np.array([b"\xff"] * COUNT, h5py.string_dtype())
    with pytest.raises(ValueError, match=r"a\.h5: a text in its array label is not UTF-8"):
        Arrays(DENSITY, tmp_path / "a.h5")
    (tmp_path / "a.h5").unlink()
    np.savez(tmp_path / "a.npz", density=VALUES, split=names)
    with pytest.raises(ValueError, match=r"got 'a': set data\.split=null"):
        Arrays(DENSITY, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", density=VALUES)
    with pytest.raises(ValueError, match="only 1 of 2 files have an array for split"):
        Arrays(DENSITY, tmp_path)


def test_arrays_divide_long_series_into_parts_that_share_no_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(1000.0))
    modality = Series(variables=(Variable("value"),), length=64)
    dataset = Arrays(modality, tmp_path / "a.npy")
    assert len(dataset) == 7
    seen: dict[int, set[int]] = {index: set() for index in range(7)}
    for seed in range(60):
        for index in range(7):
            x0 = dataset.example(index, seed).x0[0]
            assert bool((x0.diff() == 1).all())
            seen[index] |= set(map(int, x0))
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) > 900
    training, held_out = split(dataset, 0.2)
    assert (len(training), len(held_out or ())) == (6, 1)
    sensors(tmp_path / "csv")
    files = Arrays(Series.of_file(tmp_path / "csv" / "00.csv", length=50, rate=50.0), tmp_path / "csv")
    assert (len(files), files.name(3)) == (2 * COUNT, "01.csv[1]")
    np.testing.assert_allclose(files.modality.decode(files.example(3).x0)[1], sensor(1)[125:175, 2], rtol=1e-5)


def test_arrays_of_scans_have_one_example_per_file(tmp_path: Path) -> None:
    scans(tmp_path)
    dataset = Arrays(Field.of_file(tmp_path / "ill" / "01.nii.gz"), f"{tmp_path}/*/*.nii.gz")
    assert (len(dataset), dataset.example(0).x0.shape) == (COUNT, (1, 6, 8, 8))


def test_arrays_of_images_are_cropped_and_mirrored_like_files(tmp_path: Path) -> None:
    images(tmp_path / "a.npz")
    pixels = np.load(tmp_path / "a.npz")["images"]
    whole = Image(size=(10, 12), flip=True)
    dataset = Arrays(whole, tmp_path / "a.npz")
    assert (len(dataset), dataset.classes) == (COUNT, ("0", "1", "2"))
    np.testing.assert_array_equal(whole.decode(dataset.example(4).x0), pixels[4].transpose(2, 0, 1))
    seeds = range(20)
    flipped = [bool((dataset.example(4, seed).x0.flip(-1) == dataset.example(4).x0).all()) for seed in seeds]
    assert set(flipped) == {True, False}
    assert Arrays(Image(size=8, channels=1), tmp_path / "a.npz").example(0, 3).x0.shape == (1, 8, 8)
    np.savez(tmp_path / "b.npz", x=np.linspace(0, 1, 2 * 9).reshape(2, 3, 3))
    grey = Arrays(Image(size=3, channels=1, black=0.0, white=1.0), tmp_path / "b.npz")
    assert grey.example(0).x0.min() == -1
    assert Arrays(Image(size=3, black=0.0, white=1.0), tmp_path / "b.npz").example(1).x0.max() == 1
    with pytest.raises(ValueError, match=r"b\.npz: .*black and white are not known: set modality\.black"):
        Arrays(Image(size=3), tmp_path / "b.npz")
    np.savez(tmp_path / "b.npz", x=pixels, y=pixels)
    with pytest.raises(ValueError, match=r"set data\.array to its name; the file has x .*y "):
        Arrays(whole, tmp_path / "b.npz")
    assert len(Arrays(whole, tmp_path / "b.npz", array="y")) == COUNT


def test_arrays_replace_unreadable_examples(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[3, 0, 0] = np.inf
    values[5] = np.nan
    np.save(tmp_path / "a.npy", values)
    dataset = Arrays(DENSITY, tmp_path / "a.npy", max_unreadable=0.5)
    assert bool(torch.stack([dataset.example(index).x0 for index in range(COUNT)]).isfinite().all())
    assert list(dataset.unreadable) == ["a.npy[3]", "a.npy[5]"]
    assert "all values of the field are missing" in dataset.unreadable["a.npy[5]"]


def test_arrays_refuse_other_media_damaged_files_and_addresses(tmp_path: Path) -> None:
    simulations(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="data=arrays does not support Audio: use modality=field"):
        Arrays(Audio(), tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"a\.h5: it has 8 values along the axis x, fewer than the 9"):
        Arrays(Field((GRID[0], FieldAxis("x", 9)), DENSITY.variables), tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["density"] = h5py.ExternalLink("a.h5", "density")
    with pytest.raises(ValueError, match=r"b\.h5: its member density is a link to another file"):
        Arrays(DENSITY, tmp_path)
    (tmp_path / "b.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.h5: "):
        Arrays(DENSITY, tmp_path)
    with h5py.File(tmp_path / "b.h5", "w") as file:  # a few kilobytes
        file.create_dataset("density", (10**12, 8, 8), np.float32, chunks=(16, 8, 8))
        file.create_dataset("long", (10**12,), np.float32, chunks=(16,))
        file.create_dataset("label", data=np.zeros(1))
    with pytest.raises(ValueError, match=r"b\.h5: it states 1,000,000,000,000 examples, more than the limit"):
        Arrays(DENSITY, tmp_path / "b.h5")
    with pytest.raises(ValueError, match=r"b\.h5: it states 62,500,000,000 examples, more than the limit"):
        Arrays(Field((FieldAxis("time", 8),), (Variable("long"),)), tmp_path / "b.h5")
    for root in ("https://example.org/a.zarr", "s3://bucket/a.nc", "reference::a.json"):
        with pytest.raises(ValueError, match="is an address"):
            Arrays(DENSITY, root)
        node = {"_target_": "modalities.arrays.Arrays", "root": root}
        with pytest.raises(RecipeError, match="must not contact any other address"):
            Builder().of_a_run().build(node, Arrays, "data", modality=DENSITY)
