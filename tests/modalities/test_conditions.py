"""Dense conditions are derived from examples, or are files of the same names in another folder."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import Tensor

from modalities.base import Dataset, Example, Modality, collate
from modalities.derived_conditions import (
    Coarse,
    FirstFrames,
    Masked,
    WithDerivedCondition,
    band_limited,
    block_means,
    first_frames,
    known_part,
)
from modalities.field import Field
from modalities.field_layout import FieldAxis
from modalities.files import Folder
from modalities.image import Image
from modalities.mixture import Mixture
from modalities.reading import UnreadableFilesError
from modalities.variables import Variable
from multisagd import Axis, Grid
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

CIRCLE = Grid((Axis("y", 8, periodic=True), Axis("x", 12, periodic=True)))


def test_block_means_are_those_of_the_known_values():
    x = dense.random(2, 6, 8)
    means = block_means(x, [3, 2])
    torch.testing.assert_close(means[1, 1, 2], x[1, 3:6, 4:6].mean())
    x[0, :3, :2] = torch.nan
    x[1, 0, 0] = torch.nan
    means = block_means(x, [3, 2])
    assert means.isnan().nonzero().tolist() == [[0, 0, 0]]
    torch.testing.assert_close(means[1, 0, 0], x[1, :3, :2].flatten()[1:].mean())


def test_band_limited_version_is_the_wave_at_the_centres_of_blocks_without_aliases():
    y, x = torch.arange(8.0).double()[:, None], torch.arange(12.0).double()

    def wave(y: Tensor, x: Tensor) -> Tensor:
        return 2 + torch.cos(2 * math.pi * y / 8 + 1) * torch.sin(2 * math.pi * x / 12 - 1)

    high = torch.cos(2 * math.pi * 5 * x / 12) + torch.cos(2 * math.pi * 3 * y / 8)
    coarse = band_limited((wave(y, x) + high)[None], [2, 3])
    torch.testing.assert_close(coarse[0], wave(y[::2] + 0.5, x[::3] + 1), rtol=0, atol=1e-12)
    assert float((block_means((wave(y, x) + high)[None], [2, 3]) - coarse).abs().max()) > 0.1
    with pytest.raises(ValueError, match="missing values"):
        band_limited(torch.full((1, 8, 12), torch.nan), [2, 3])


def test_masks_hide_the_same_part_of_all_channels_and_follow_the_seed():
    x = dense.random(3, 8, 12)
    for kind in ("boxes", "half", "frames"):
        masks = set()
        for seed in range(40):
            known = known_part(x, kind, 2, seed)
            hidden = known.isnan()
            assert torch.equal(hidden[0], hidden[2])
            assert torch.equal(known[~hidden], x[~hidden])
            assert 0 < int(hidden.sum()) < hidden.numel()
            assert torch.equal(hidden, known_part(x, kind, 2, seed).isnan())
            masks.add(hidden.numpy().tobytes())
        assert len(masks) > 10, kind
    frames = first_frames(x, 3)
    assert torch.equal(frames[:, :3], x[:, :3])
    assert frames[:, 3:].isnan().all()
    assert not x.isnan().any()


class Fixed(Dataset):
    """Random examples on a grid, the first of which lacks a value."""

    classes = None

    def __init__(self, modality: Image, rows: list[int]) -> None:
        self.modality, self.rows = modality, rows

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, seed: int | None = None) -> Example:
        mask = torch.ones(1, 8, 8, dtype=torch.bool)
        mask[0, 0, 0] = self.rows[index] != 0
        return Example(dense.random(1, 8, 8, seed=self.rows[index]).float(), mask=mask)

    def subset(self, indices):
        return Fixed(self.modality, [self.rows[index] for index in indices])


def test_derived_conditions_depend_on_the_augmentation_seed_or_on_the_place_in_the_whole_set():
    data = WithDerivedCondition(Fixed(Image(8, 1), list(range(6))), Masked(), seed=5)
    assert data.condition_modality is data.modality
    batch, part = data.batch(range(6)), data.subset([4, 0])
    for index in range(6):
        assert same(data.example(index).condition, batch.dense[index])
    assert same(part.batch([0, 1]).dense, batch.dense[[4, 0]])
    assert batch.dense[0, 0, 0, 0].isnan()
    seeded = data.batch([1, 2], [7, 8]).dense
    assert same(seeded[1], data.example(2, 8).condition)
    assert not same(seeded[1], batch.dense[2])
    other = WithDerivedCondition(Fixed(Image(8, 1), list(range(6))), Masked(), seed=6)
    assert not same(other.batch(range(6)).dense, batch.dense)
    assert batch.condition(False).dense is batch.dense
    coarse = WithDerivedCondition(data.inner, Coarse(4), 0).batch(range(3))
    torch.testing.assert_close(coarse.dense[1, 0, 1, 0], coarse.x0[1, 0, 4:, :4].mean())


def same(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(), right.nan_to_num())


def test_derived_conditions_refuse_grids_that_they_do_not_fit():
    plane = Image(8, 1)
    circle = cast(Modality, SimpleNamespace(grid=lambda: CIRCLE))
    assert_refused(
        ("does not divide the 8 samples of the axis height", lambda: Coarse(3).check(plane)),
        ("the axis 'depth', but the data have height, width", lambda: Coarse({"depth": 2}).check(plane)),
        ("needs periodic axes, but height", lambda: Coarse(2, "band_limited").check(plane)),
        ("2 or more", lambda: Coarse(1)),
        ("one of mean, band_limited", lambda: Coarse(2, "mode")),  # type: ignore[arg-type]
        ("leaves nothing to be learned", lambda: FirstFrames(8).check(plane)),
        ("at least 1", lambda: FirstFrames(0)),
        ("some of boxes, half, frames", lambda: Masked(("holes",))),  # type: ignore[arg-type]
        ("boxes must be at least 1", lambda: Masked(boxes=0)),
        ("at most 1000", lambda: Masked(boxes=10**9)),
    )
    Coarse(2, "band_limited").check(circle)
    Coarse({"width": 2}).check(plane)


def test_collate_takes_missing_conditions_for_unknown():
    x0, condition = torch.zeros(1, 4), torch.ones(2, 2)
    batch = collate([Example(x0, condition=condition), Example(x0)])
    assert batch.dense.shape == (2, 2, 2)
    assert batch.dense[1].isnan().all()
    assert collate([Example(x0)]).dense is None
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(2, 4\)"):
        collate([Example(x0, condition=condition), Example(x0, condition=torch.ones(2, 4))])


def test_condition_that_cannot_be_derived_is_refused_with_its_reason():
    data = WithDerivedCondition(Fixed(Image(8, 1), [0, 1]), Coarse(2, "band_limited"), 0)
    with pytest.raises(UnreadableFilesError, match=r"from example 0 .* use method=mean"):
        data.batch([1, 0])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Wide pictures, and their negatives in files of another kind."""
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 16), dtype=np.uint8)
        for folder, values, suffix in (("real", pixels, "png"), ("negative", 255 - pixels, "bmp")):
            path = tmp_path / folder / "ab"[number % 2] / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Picture.fromarray(values).save(path)
    return tmp_path


def test_folder_pairs_files_of_equal_names_and_crops_and_mirrors_them_alike(pairs):
    data = Folder(Image(8, 1, flip=True), pairs / "real", condition_root=pairs / "negative", threads=1)
    batch, middle = data.batch(range(6), range(6)), data.batch(range(6))
    for each in (batch, middle):
        torch.testing.assert_close(each.dense, -each.x0)
    assert not torch.equal(batch.x0, middle.x0)
    assert data.condition_modality is data.modality
    part = data.subset([4, 1])
    torch.testing.assert_close(part.batch([0, 1]).dense, middle.dense[[4, 1]])
    plain = Folder(Image(8, 1), pairs / "real")
    assert plain.fingerprint != data.fingerprint
    assert len(list(data.stored())) == 2 * len(list(plain.stored()))
    mixed = Mixture(data.modality, {"one": data.subset([0, 1]), "two": part})
    torch.testing.assert_close(mixed.batch([3, 0]).dense, middle.dense[[1, 0]])
    with pytest.raises(ValueError, match="the source one has conditions, but two has none"):
        Mixture(data.modality, {"one": data, "two": plain})


def test_folder_reads_both_files_from_the_middle_with_another_modality_of_conditions(pairs):
    for path in (pairs / "negative").rglob("*.bmp"):
        with Picture.open(path) as picture:
            small = picture.resize((8, 4), Picture.Resampling.BOX)
        small.save(path)
    folders = {"root": pairs / "real", "condition_root": pairs / "negative"}
    data = Folder(Image(8, 1, flip=True), condition_modality=Image(4, 1), **folders)
    seeded, plain = data.batch(range(6), range(6)), data.batch(range(6))
    assert torch.equal(seeded.x0, plain.x0)
    assert torch.equal(seeded.dense, plain.dense)
    torch.testing.assert_close(plain.dense, -block_means(plain.x0.flatten(0, 1), [2, 2])[:, None], rtol=0, atol=0.02)
    # With one modality, a crop of a file of another shape is of another place.
    for path in (pairs / "negative").rglob("*.bmp"):
        Picture.new("L", (11, 4)).save(path)
    with pytest.raises(UnreadableFilesError, match=r"negative/.* was read at another place \(crop_left"):
        Folder(Image(8, 1), max_unreadable=0.0, **folders).batch(range(6), range(6))


def test_folder_names_missing_repeated_and_damaged_conditions(pairs):
    real, negative = pairs / "real", pairs / "negative"
    (negative / "b" / "3.bmp").write_bytes(b"damaged")
    with pytest.raises(UnreadableFilesError, match=r"the condition .*negative/b/3\.bmp"):
        Folder(Image(8, 1), real, condition_root=negative, max_unreadable=0.0).batch(range(6))
    Picture.new("L", (8, 8)).save(negative / "a" / "0.png")
    assert_refused(
        (r"two conditions of one name, a/0\.bmp and a/0\.png", lambda: Folder(Image(8), real, condition_root=negative)),
        ("one contains the other", lambda: Folder(Image(8), real, condition_root=real / "a")),
        ("set condition_root", lambda: Folder(Image(8), real, condition_modality=Image(4))),
    )
    (negative / "a" / "0.png").unlink()
    (negative / "a" / "2.bmp").unlink()
    with pytest.raises(FileNotFoundError, match=r"no condition for 1 of 6 files: it must contain a/2\."):
        Folder(Image(8), real, condition_root=negative)
    assert len(Folder(Image(8), real, condition_root=negative, match="^b/")) == 3


def test_folder_counts_conditions_that_are_not_used(pairs, caplog):
    folders = {"root": pairs / "real", "condition_root": pairs / "negative"}
    Folder(Image(8), **folders)
    assert not caplog.text
    (pairs / "negative" / "notes.txt").touch()
    Folder(Image(8), match="^b/", **folders)
    assert "3 of 6 conditions belong to no example that is used, and 1 files are passed over" in caplog.text
    assert "1 × .txt" in caplog.text


def test_folder_refuses_conditions_of_another_size_before_one_is_read(pairs):
    folders = {"root": pairs / "real", "condition_root": pairs / "negative"}
    buckets = Image(8, 1, buckets=[8, [8, 16]])
    assert_refused(
        (r"grid \(100000, 100000\)", lambda: Folder(Image(8, 1), condition_modality=Image(100_000), **folders)),
        ("exclude each other", lambda: Folder(buckets, condition_modality=Image(4), **folders)),
    )


def test_repaired_condition_no_longer_counts_as_unreadable(pairs):
    condition = pairs / "negative" / "b" / "3.bmp"
    folders = {"root": pairs / "real", "condition_root": pairs / "negative"}
    for missing in (False, True):
        data = Folder(Image(8, 1), **folders)
        if missing:
            condition.unlink()
        data.recall_unreadable({"b/3.png": "damaged"}, since=math.inf)
        assert list(data.unreadable) == ([] if missing else ["b/3.png"])
    Picture.new("L", (16, 8)).save(condition)
    repaired = Folder(Image(8, 1), **folders)
    repaired.recall_unreadable({"b/3.png": "damaged"}, since=condition.stat().st_ctime - 1e-3)
    assert not repaired.unreadable


def test_fields_are_paired_at_one_place_only(tmp_path):
    values = np.arange(64.0).reshape(8, 8)
    hidden = np.where(values >= 4 * 8, values, np.nan)  # a window may lie where all is missing
    for folder, each in (("real", hidden), ("given", values), ("wide", np.tile(values, 2))):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "a.npz", a=each)
    modality = Field((FieldAxis("y", 2), FieldAxis("x", 2)), (Variable("a"),))
    refused = set()
    for seed in range(20):
        data = Folder(modality, tmp_path / "real", condition_root=tmp_path / "given")
        read = data.read(0, seed)
        refused |= {reason.partition(" (")[2][:7] for reason in data.unreadable.values()}
        if read is not None:
            known = ~read.condition.isnan() if read.mask is None else read.mask
            assert torch.equal(read.condition[known], read.x0[known])
            assert read.scalars is None
    assert refused == {"window:"}
    with pytest.raises(UnreadableFilesError, match="at another place"):
        Folder(modality, tmp_path / "given", condition_root=tmp_path / "wide", max_unreadable=0.0).example(0)
