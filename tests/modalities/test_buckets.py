"""Files are sorted into buckets by their headers: nearest shape, longest duration that they fill; filters omit some."""

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from modalities.audio import Audio
from modalities.autoencoders import Identity
from modalities.base import Modality
from modalities.buckets import bucketed, reference_bucket, scan, with_extents
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.latent import Latent
from modalities.representation import Waveform
from modalities.sizes import Extent
from modalities.tars import TarShards
from modalities.video import Video
from multisagd.testing import check_modality
from tests.helpers.archives import archive
from tests.helpers.numbered_clips import write_numbered

IMAGE = Image(size=16, channels=1, buckets=[[12, 20], 16, [20, 12]])
SHAPES = {"wide.png": (30, 50), "square.jpg": (40, 40), "tall.png": (50, 30), "strip.png": (10, 90)}


def save(path: Path, height: int, width: int, orientation: int = 1) -> Path:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("L", (width, height), 90).save(path, exif=exif)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, shape in SHAPES.items():
        save(tmp_path / name, *shape)
    save(tmp_path / "turned.jpg", 50, 30, orientation=6)
    save(tmp_path / "turned.png", 30, 50, orientation=8)
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    return tmp_path


def in_buckets(dataset: Folder) -> dict[tuple[int, ...], list[str]]:
    known = with_extents(dataset, scan(dataset, lambda done: None))
    return {part.modality.grid().shape: part.inner.files for part in bucketed(known)}  # type: ignore[attr-defined]


def test_bucketed_images_are_in_the_nearest_shape_upright(pictures: Path) -> None:
    assert in_buckets(Folder(IMAGE, pictures)) == {
        (16, 16): ["damaged.png", "square.jpg"],
        (12, 20): ["strip.png", "turned.jpg", "wide.png"],
        (20, 12): ["tall.png", "turned.png"],
    }
    assert next((bucket.size, bucket.buckets) for bucket in IMAGE.in_buckets()) == ((16, 16), None)


def test_bucketed_parts_are_datasets_on_one_grid(pictures: Path) -> None:
    (pictures / "damaged.png").unlink()
    dataset = Folder(IMAGE, pictures)
    for part in bucketed(dataset):  # the headers are read on demand
        assert {tuple(part.example(index).x0.shape) for index in range(len(part))} == {part.modality.tensor_shape}
    reference = reference_bucket(dataset)
    assert reference is not None
    assert (len(reference), reference.modality.size) == (1, (16, 16))  # type: ignore[attr-defined]
    assert dataset.batch(range(len(dataset))).x0.shape[1:] == (1, 16, 16)


def test_with_extents_omits_and_counts_files_outside_the_filters(pictures: Path) -> None:
    dataset = Folder(Image(size=16, channels=1, min_size=20, max_aspect=1.5), pictures)
    known = with_extents(dataset, scan(dataset, lambda done: None))
    assert known.inner.files == ["damaged.png", "square.jpg"]  # type: ignore[attr-defined]
    assert known.omitted == {"min_size=20": 1, "max_aspect=1.5": 4}
    assert known.subset([1]).extent(0) == Extent(40, 40)
    with pytest.raises(ValueError, match=r"modality\.min_size=60 omits 2 of 2 files, so that none is left"):
        with_extents(Folder(Image(min_size=60), pictures, match="strip|tall"), np.full((2, 3), 10.0))


def test_scan_reads_members_of_shards(pictures: Path, tmp_path: Path) -> None:
    members = [(name, (pictures / name).read_bytes()) for name in ("tall.png", "turned.jpg")]
    (tmp_path / "shard.tar").write_bytes(archive(*members))
    shards = TarShards(IMAGE, str(tmp_path / "shard.tar"))
    assert scan(shards, lambda done: None)[:, :2].tolist() == [[50, 30], [30, 50]]


def test_scan_refuses_data_without_files() -> None:
    with pytest.raises(NotImplementedError, match="Digits has no media files"):
        scan(Digits(Image(channels=1)), lambda done: None)


def test_image_makes_sizes_of_equal_area() -> None:
    sizes = Image(size=64, buckets=5).bucket_sizes
    assert sizes[0] == (64, 64)
    assert len(set(sizes)) == 5
    assert all(side % 8 == 0 for size in sizes for side in size)
    areas = [height * width / 64**2 for height, width in sizes]
    assert 0.85 < min(areas) <= max(areas) < 1.15
    ratios = sorted(height / width for height, width in sizes)
    assert ratios == pytest.approx([1 / ratio for ratio in reversed(ratios)])
    assert 1.7 < ratios[-1] < 2.3
    assert Image(size=64, buckets=3, max_aspect=4).bucket_sizes[1:] == ((32, 128), (128, 32))


def test_buckets_refuse_impossible_settings() -> None:
    refused: list[tuple[type[Modality], dict[str, object], str]] = [
        (Image, {"buckets": [[12, 20], [20, 12]]}, r"size=\[32, 32\] is not one of the buckets"),
        (Image, {"buckets": [32]}, "buckets must be 2 to 32 different sizes, got 1"),
        (Image, {"buckets": 7, "size": 16}, "use fewer buckets"),
        (Image, {"buckets": [32, [8]]}, "each of buckets must be"),
        (Image, {"max_aspect": 0.5}, "max_aspect"),
        (Image, {"min_size": 0}, "min_size"),
        (Audio, {"buckets": [2, 4]}, r"seconds=1\.0 is not one of the buckets"),
        (Audio, {"buckets": [1, 1e-9]}, "seconds must cover at least one sample"),
        (Audio, {"min_seconds": math.inf}, "min_seconds"),
        (Video, {"buckets": [8, 12]}, r"frames and size=\[16, 32, 32\] is not one of the buckets"),
        (Video, {"buckets": [16, [8, 8]]}, r"frames or \[frames,height,width\]"),
    ]
    for kind, options, message in refused:
        with pytest.raises(ValueError, match=message):
            kind(**options)


def test_at_changes_the_size_only() -> None:
    image = IMAGE.at(size=(8, 24))
    assert (image.grid().shape, image.buckets, image.channels) == ((8, 24), None, 1)
    assert Audio(seconds=1, rate=8000, buckets=[1, 2]).at(seconds=3).samples == 24_000
    assert Video(frames=4).at(frames=6, size=8).grid().shape == (6, 8, 8)
    with pytest.raises(ValueError, match="seconds: Image has no such size; it has size"):
        IMAGE.at(seconds=3)
    with pytest.raises(ValueError, match="size: Latent has no such size; its size is fixed"):
        Latent(Image(size=16, channels=1), Identity()).at(size=8)
    with pytest.raises(ValueError, match="latents have one size"):
        Latent(IMAGE, Identity())


def test_bucketed_sounds_fill_the_longest_duration(tmp_path: Path) -> None:
    for name, seconds in {"a": 0.7, "b": 0.2, "c": 0.4, "d": 9.0, "e": 0.05}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.sin(np.arange(round(seconds * 4000))), 4000)
    audio = Audio(rate=8000, seconds=0.4, representation=Waveform(), buckets=[0.2, 0.4, 0.8], min_seconds=0.1)
    assert in_buckets(Folder(audio, tmp_path)) == {
        (3200,): ["a.wav", "c.wav"], (1600,): ["b.wav"], (6400,): ["d.wav"],
    }  # fmt: skip
    assert audio.load(tmp_path / "d.wav").shape == (1, 3200)
    spacings = {bucket.grid().axes[0].spacing for bucket in audio.in_buckets()}
    assert spacings == {1 / 8000}


def test_bucketed_clips_have_the_nearest_shape_and_the_most_frames(tmp_path: Path) -> None:
    write_numbered(tmp_path / "wide.mp4", rate=25)  # 32 × 64
    video = Video(frames=8, fps=12.5, size=16, buckets=[8, 4, [8, 12, 24], [20, 12, 24], [9999, 12, 24]])
    extent = video.extent(tmp_path / "wide.mp4")
    assert (extent.height, extent.width) == (32, 64)
    assert video.extent(write_numbered(tmp_path / "turned.mp4", rotation=90)).height == 64
    assert video.bucket_sizes[video.bucket_of(extent)] == (20, 12, 24)
    assert video.bucket_sizes[video.bucket_of(Extent(40, 40, 0.3))] == (4, 16, 16)
    assert video.bucket_of(Extent()) == 0
    assert Video(min_seconds=2).omitted(Extent(9, 9, 1.0)) == "min_seconds=2"
    assert Video(max_aspect=1.5).omitted(extent) == "max_aspect=1.5"


def test_a_modality_with_buckets_conforms(tmp_path: Path) -> None:
    check_modality(IMAGE, save(tmp_path / "a.png", 30, 50), saved_tolerance=None)
    assert torch.equal(IMAGE.encode(IMAGE.load(tmp_path / "a.png")), IMAGE.at().encode(IMAGE.load(tmp_path / "a.png")))


def test_check_modality_names_buckets_with_another_spacing(tmp_path: Path) -> None:
    class Coarser(Audio):
        def in_buckets(self) -> tuple[Audio, ...]:
            return (self, Audio(rate=4000, seconds=0.5, representation=Waveform()))

    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000)), 8000)
    with pytest.raises(AssertionError, match=r"in_buckets\(\) must differ in size only"):
        check_modality(Coarser(rate=8000, seconds=0.5, representation=Waveform()), tmp_path / "a.wav")
