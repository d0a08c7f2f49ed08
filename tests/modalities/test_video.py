"""Video loads windows by seed at its own rate and size, pads short clips, filters motion, and writes what it reads."""

import dataclasses
import math
import os
import random
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from modalities.image import Image
from modalities.video import Video
from modalities.video_files import open_video, pixels
from multisagd.testing import check_modality
from tests.helpers.numbered_clips import numbers_shown, write_numbered


def real_clips() -> list[Path]:
    """Return the sample clips, or skip."""
    root = os.environ.get("MULTISAGD_DATA")
    if not root:
        pytest.skip("MULTISAGD_DATA is not set: it names the folder that holds video/intel_sample_videos and others")
    clips = sorted(path for path in Path(root, "video").rglob("*") if path.suffix in (".mp4", ".mkv"))
    if not clips:
        pytest.skip(f"{root}/video holds no clips")
    return clips


def waves(frames: int = 16, height: int = 32, width: int = 48, channels: int = 3) -> torch.Tensor:
    """Smooth waves of light and colour that move at different speeds."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    light = 128 + 80 * torch.sin((x + 2 * t) / 6 + y / 9)
    tint = 30 * torch.sin((x - t) / 15)
    return torch.stack([light + tint, light, light - tint])[:channels].round().to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def test_video_has_a_grid_of_seconds_and_pixels() -> None:
    grid = Video(frames=10, fps=12.5, size=(24, 40)).grid()
    frame = grid.axis("frame")
    assert (grid.names, grid.shape) == (("frame", "height", "width"), (10, 24, 40))
    assert (frame.spacing, frame.unit, frame.nyquist) == (0.08, "s", 6.25)
    # Corners are physical constants: they depend neither on the length of a clip nor on its rate.
    grids = [Video(frames=frames, fps=fps).grid() for frames in (8, 64) for fps in (8, 30)]
    assert {tuple(axis.corner_frequency for axis in grid.axes) for grid in grids} == {(0.25, 1 / 256, 1 / 256)}
    assert Video(size=[24, 40]) == Video(size=(24, 40))
    assert hash(Video(size=8)) == hash(Video(size=(8, 8)))
    whole = Video(frames=4.0, size=8)  # type: ignore[arg-type]
    assert type(whole.frames) is int
    assert whole.encode(torch.zeros(3, 2, 8, 8, dtype=torch.uint8)).shape == (3, *whole.grid().shape)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("frames", [0, 1.5]),
        ("fps", [0, math.nan, 1e6]),
        ("motion", [3]),
        ("short", ["repeat"]),
        ("size", [0]),
        ("channels", [4]),
        ("resize", ["zoom"]),
    ],
)
def test_video_refuses_impossible_options(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(ValueError, match=name):
            Video(**{name: value})
    with pytest.raises(ValueError, match="frames of at least 2"):
        Video(motion=0.1, frames=1)


@pytest.mark.parametrize(
    "options", [{}, {"size": (15, 17), "channels": 1}, {"frames": 80, "fps": 25}, {"motion": 0.01, "flip": True}]
)
def test_video_is_a_conforming_modality(tmp_path: Path, options: dict) -> None:
    check_modality(Video(**{"frames": 8, "fps": 12.5, "size": 16} | options), write_numbered(tmp_path / "a.mp4"))


def test_video_load_takes_windows_by_seed_from_everywhere(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", rate=25)
    video = Video(frames=10, fps=25, size=(32, 64))
    starts = set()
    for seed in range(120):
        numbers = numbers_shown(video.load(path, seed))
        assert numbers == list(range(numbers[0], numbers[0] + 10))
        starts.add(numbers[0])
    assert starts <= set(range(51))
    assert min(starts) < 3 < 47 < max(starts)
    assert len(starts) > 35
    assert numbers_shown(video.load(path)) == list(range(25, 35))
    for fps in (4, 8):
        # A window starts at a frame, and each later time takes the frame shown at that time.
        numbers = numbers_shown(dataclasses.replace(video, frames=6, fps=fps).load(path, 1))
        assert numbers == [numbers[0] + 25 * n // fps for n in range(6)], fps


def test_video_load_crops_and_flips_all_frames_alike(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", count=8)
    video, image = Video(frames=8, fps=25, size=32, flip=True), Image(size=32, flip=True)
    # At its own size nothing is scaled, so each frame is cropped like the image with the same seed.
    frames = Video(frames=8, fps=25, size=(32, 64)).load(path).transpose(0, 1)
    assert torch.equal(video.load(path), image.fit(frames).transpose(0, 1))
    for seed in range(6):
        assert torch.equal(video.load(path, seed), image.mirror(image.fit(frames, seed), seed).transpose(0, 1))


def test_video_load_converts_colours_to_luma(tmp_path: Path) -> None:
    colour = Video(frames=4, size=(32, 48))
    colour.save(waves(4), tmp_path / "a.mp4")
    loaded = colour.load(tmp_path / "a.mp4").float()
    grey = dataclasses.replace(colour, channels=1).load(tmp_path / "a.mp4")[0].float()
    assert (grey - (0.299 * loaded[0] + 0.587 * loaded[1] + 0.114 * loaded[2])).abs().max() <= 0.51


def test_video_short_files_are_padded_with_a_mask_or_refused(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", rate=10, count=7)
    video = Video(frames=16, fps=20, size=(32, 64))
    for seed in (None, 0, 1):
        clip = video.load(path, seed)
        assert numbers_shown(clip) == [n // 2 for n in range(14)]  # 0.7 s at twice the rate
    x0, mask = video.encode(clip), video.mask(clip)
    assert torch.equal(x0[:, :14], Image(size=(32, 64)).encode(clip))
    assert torch.equal(x0[:, 14:], x0[:, 13:14].expand(-1, 2, -1, -1))
    assert mask is not None
    assert mask.shape == (1, 16, 32, 64)
    assert bool((mask == (torch.arange(16) < 14).reshape(1, 16, 1, 1)).all())
    assert video.mask(video.decode(x0)) is None
    assert dataclasses.replace(video, frames=14).mask(clip) is None
    for frames in (0, 17):
        with pytest.raises(ValueError, match=f"a clip of 1 to 16 frames, got {frames}"):
            video.encode(clip[:, :1].expand(-1, frames, -1, -1))
    with pytest.raises(ValueError, match="14 frames"):
        dataclasses.replace(video, short="skip").load(path)
    assert dataclasses.replace(video, short="skip", frames=14).load(path).shape[1] == 14


def test_video_load_corrects_a_header_that_declares_too_much(tmp_path: Path) -> None:
    # Sound continues for a second after the last frame, and Matroska declares the longer of both.
    path = write_numbered(tmp_path / "a.mkv", rate=10, count=100, sound=10.75)
    video = Video(frames=90, fps=10, size=(32, 64))
    starts = set()
    for seed in range(20):
        numbers = numbers_shown(video.load(path, seed))
        assert len(numbers) == 90
        starts.add(numbers[0])
    assert starts <= set(range(11))
    assert len(starts) > 5


def test_video_motion_accepts_only_windows_that_move(tmp_path: Path) -> None:
    # A square that moves from frame 40 to 80 of 120, and rests before and after.
    film, path = torch.zeros(1, 120, 64, 64, dtype=torch.uint8), tmp_path / "a.mp4"
    for number in range(120):
        left = min(max(number - 40, 0), 40)
        film[:, number, 20:40, left : left + 20] = 255
    Video(frames=120, fps=10, size=64, channels=1).save(film, path)
    video = Video(frames=10, fps=10, size=64)

    def motion(clip: torch.Tensor) -> float:
        return float((clip.double() / 255).diff(dim=1).abs().mean())

    # One column of 20 pixels appears and one vanishes at each step.
    assert motion(video.load(path)) == pytest.approx(2 * 20 / 64**2, rel=0.1)
    assert min(motion(video.load(path, seed)) for seed in range(20)) < 0.0005
    filtered = dataclasses.replace(video, motion=0.005)
    clips = [filtered.load(path, seed) for seed in range(12)]
    assert min(motion(clip) for clip in (*clips, filtered.load(path))) >= 0.005
    assert len({clip.numpy().tobytes() for clip in clips}) > 3
    assert torch.equal(filtered.load(path, 5), clips[5])
    # Whether a file is refused does not depend on the seed.
    for seed in (None, 0, 1, 2):
        with pytest.raises(ValueError, match=r"motion=0\.02 .* largest is 0\.00?9"):
            dataclasses.replace(video, motion=0.02).load(path, seed)


@pytest.mark.parametrize(
    ("fps", "size"),
    [(8, (32, 48)), (12.5, (33, 47)), (29.97, (2, 2)), (30000 / 1001, (1, 1)), (0.5, (32, 47)), (12.5, (32, 48))],
)
def test_video_save_writes_clips_that_load_at_their_rate(tmp_path: Path, fps: float, size: tuple[int, int]) -> None:
    video, clip = Video(frames=16, fps=fps, size=size), waves(16, *size)
    path = tmp_path / "new" / "a.mp4"
    video.save(clip, path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-9)
        assert (stream.codec_context.name, stream.height, stream.width) == ("h264", *size)
        assert stream.codec_context.pix_fmt == ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    again = video.load(path)
    assert again.shape == clip.shape
    assert psnr(again, clip) > 30
    # Two rows of eight frames, enlarged by a whole factor below 64 pixels, with a border of 2 pixels.
    factor = max(1, 64 // max(size))
    with PIL.Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.size == (8 * (size[1] * factor + 2) + 2, 2 * (size[0] * factor + 2) + 2)
        first = np.asarray(sheet)[2 : 2 + size[0] * factor : factor, 2 : 2 + size[1] * factor : factor]
    assert np.array_equal(first, clip[:, 0].permute(1, 2, 0).numpy())


def test_video_save_writes_grey_clips_and_single_frames(tmp_path: Path) -> None:
    grey, clip = Video(frames=16, size=32, channels=1), waves(16, 32, 32, channels=1)
    grey.save(clip, tmp_path / "grey.mp4")
    assert psnr(grey.load(tmp_path / "grey.mp4"), clip) > 40
    one = Video(frames=1, size=32)
    one.save(waves(1, 32, 32), tmp_path / "one.mp4")
    assert one.load(tmp_path / "one.mp4").shape == (3, 1, 32, 32)
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        grey.save(clip, tmp_path / "a.avi")


def test_video_save_grid_writes_a_sheet_of_rows_and_tiles_that_move(tmp_path: Path) -> None:
    video, path = Video(frames=20, fps=12.5, size=(24, 32)), tmp_path / "new" / "grid.png"
    clips = [waves(20, 24, 32), waves(5, 24, 32).flip(-1), 255 - waves(20, 24, 32)]
    video.save_grid(clips, path)
    with PIL.Image.open(path) as sheet:
        assert sheet.size == (16 * 66 + 2, 3 * 50 + 2)  # 16 of 20 frames, enlarged twice
        shown = np.asarray(sheet)
    for row in (0, 2):
        last = shown[50 * row + 2 : 50 * row + 50 : 2, 15 * 66 + 2 : 16 * 66 : 2]
        assert np.array_equal(last, clips[row][:, -1].permute(1, 2, 0).numpy())
    tiled = Video(frames=20, fps=12.5, size=(2 * 50 + 2, 2 * 66 + 2)).load(path.with_suffix(".mp4"))
    assert tiled.shape == (3, 20, 102, 134)
    for clip, (top, left) in zip(clips, [(2, 2), (2, 68), (52, 2)], strict=True):
        for time in (0, 3, 19):
            tile = tiled[:, time, top : top + 48 : 2, left : left + 64 : 2]
            assert psnr(tile, clip[:, min(time, clip.shape[1] - 1)]) > 25
    with pytest.raises(ValueError, match="at least one"):
        video.save_grid([], tmp_path / "none.png")
    video.save_grid([waves(1, 24, 32, 1)], tmp_path / "single.png")
    assert (tmp_path / "single.mp4").stat().st_size > 0


def test_video_save_preserves_real_clips(tmp_path: Path) -> None:
    for number, path in enumerate(real_clips()[::4]):
        for size in (32, 64):
            video = Video(frames=12, fps=12.5, size=size)
            clip = video.load(path, number)
            video.save(clip, tmp_path / "a.mp4")
            assert psnr(video.load(tmp_path / "a.mp4"), clip) > 30, path


@pytest.mark.parametrize("name", ["solidWhiteRight.mp4", "again.mkv"])
def test_video_file_windows_of_real_clips_equal_a_decode_from_the_start(name: str) -> None:
    path = next(path for path in real_clips() if path.name == name)

    def small(frame: av.VideoFrame) -> torch.Tensor:
        return pixels(frame, (16, 16))

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        unit = float(stream.time_base)
        stamps, every = zip(*((frame.pts * unit, small(frame)) for frame in container.decode(stream)), strict=True)
    stamps = [stamp - stamps[0] for stamp in stamps]
    draw = random.Random(0)
    with open_video(path, 10**7) as file:
        assert file.measure() == pytest.approx(stamps[-1] + file.step)
        for fps in (8, 12.5, 30, 60):
            start = draw.uniform(0, stamps[-1] - 5 / fps)
            times = [start + n / fps for n in range(6)]
            expected = [max(n for n, stamp in enumerate(stamps) if stamp <= time + 1e-3) for time in times]
            shown = file.frames_at(times, small)
            assert all(torch.equal(picture, every[n]) for picture, n in zip(shown, expected, strict=True)), fps
