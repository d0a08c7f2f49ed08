"""Video loads windows by seed, pads, filters motion and saves what it reads; moving digits follow their physics."""

import dataclasses
import math
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from modalities.autoencoders import Identity
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.latent import Latent
from modalities.video import Video
from modalities.video_sets import MovingDigits
from multisagd.testing import check_modality
from tests.helpers.numbered_clips import numbers_shown, write_numbered

GREY = Video(frames=16, fps=8, size=32, channels=1)


def waves(frames: int = 16, height: int = 32, width: int = 48, channels: int = 3) -> torch.Tensor:
    """Smooth waves of light and colour that move at different speeds."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    light = 128 + 80 * torch.sin((x + 2 * t) / 6 + y / 9)
    tint = 30 * torch.sin((x - t) / 15)
    return torch.stack([light + tint, light, light - tint])[:channels].round().to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def test_video_has_a_grid_of_seconds_and_pixels() -> None:
    grid = Video(frames=10.0, fps=12.5, size=[24, 40]).grid()  # type: ignore[arg-type]
    frame = grid.axis("frame")
    assert (grid.names, grid.shape) == (("frame", "height", "width"), (10, 24, 40))
    assert (frame.spacing, frame.unit, frame.nyquist) == (0.08, "s", 6.25)
    # Corners are physical constants: they depend neither on the length of a clip nor on its rate.
    grids = [Video(frames=frames, fps=fps).grid() for frames in (8, 64) for fps in (8, 30)]
    assert {tuple(axis.corner_frequency for axis in grid.axes) for grid in grids} == {(0.25, 1 / 256, 1 / 256)}


def test_video_refuses_impossible_options() -> None:
    for option in (
        {"frames": 0}, {"frames": 1.5}, {"fps": 0}, {"fps": math.nan}, {"fps": 1e6}, {"motion": 3}, {"short": "repeat"},
        {"size": 0}, {"channels": 4}, {"resize": "zoom"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(option))):
            Video(**option)
    with pytest.raises(ValueError, match="frames to at least 2"):
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
        with pytest.raises(ValueError, match=r"motion=0\.02; the largest value is 0\.00?9"):
            dataclasses.replace(video, motion=0.02).load(path, seed)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (32, 48)},
        {"fps": 12.5, "size": (33, 47)},
        {"fps": 30000 / 1001, "size": (1, 1)},
        {"fps": 0.5, "size": (32, 47), "channels": 1},
        {"fps": 29.97, "size": (2, 2), "frames": 1},
    ],
)
def test_video_save_writes_clips_that_load_at_their_rate(tmp_path: Path, options: dict) -> None:
    video = Video(**{"frames": 16, "fps": 8, "size": 32} | options)
    size, path = video.image.sides, tmp_path / "new" / "a.mp4"
    clip = waves(video.frames, *size, video.channels)
    video.save(clip, path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(video.fps, rel=1e-9)
        assert (stream.codec_context.name, stream.height, stream.width) == ("h264", *size)
        assert stream.codec_context.pix_fmt == ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    again = video.load(path)
    assert again.shape == clip.shape
    assert psnr(again, clip) > 30
    with PIL.Image.open(path.with_suffix(".png")) as sheet:
        # Two rows of eight frames, enlarged by a whole factor below 64 pixels, with a border of 2 pixels.
        height, width = (max(1, 64 // max(size)) * side for side in size)
        assert sheet.size == ((8 * (width + 2) + 2, 2 * (height + 2) + 2) if video.frames > 1 else (width, height))
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        video.save(clip, tmp_path / "a.avi")


def test_video_save_grid_writes_a_sheet_of_rows_and_tiles_that_move(tmp_path: Path) -> None:
    video, path = Video(frames=20, fps=12.5, size=(24, 32)), tmp_path / "new" / "grid.png"
    clips = [waves(20, 24, 32), waves(5, 24, 32).flip(-1), 255 - waves(20, 24, 32)]
    video.save_grid(clips, path)
    with PIL.Image.open(path) as sheet:
        assert sheet.size == (16 * 66 + 2, 3 * 50 + 2)  # 16 of 20 frames, enlarged twice
        last = np.asarray(sheet)[102:150:2, 15 * 66 + 2 : 16 * 66 : 2]
    assert np.array_equal(last, clips[2][:, -1].permute(1, 2, 0).numpy())
    tiled = Video(frames=20, fps=12.5, size=(2 * 50 + 2, 2 * 66 + 2)).load(path.with_suffix(".mp4"))
    for clip, (top, left) in zip(clips, [(2, 2), (2, 68), (52, 2)], strict=True):
        for time in (0, 3, 19):
            tile = tiled[:, time, top : top + 48 : 2, left : left + 64 : 2]
            assert psnr(tile, clip[:, min(time, clip.shape[1] - 1)]) > 25
    with pytest.raises(ValueError, match="at least one"):
        video.save_grid([], tmp_path / "none.png")
    video.save_grid([waves(1, 24, 32, 1)], tmp_path / "single.png")
    assert (tmp_path / "single.mp4").stat().st_size > 0


def centres(clips: torch.Tensor) -> torch.Tensor:
    """Centre of light of each frame in pixels, (batch, frames, height, width) -> (batch, frames, 2)."""
    light = (clips.double() + 1) / 2
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in clips.shape[-2:])
    total = light.sum((-2, -1))
    return torch.stack([(light.sum(-1) @ rows) / total, (light.sum(-2) @ columns) / total], -1)


def test_moving_digits_are_clips_of_ten_classes() -> None:
    digits = MovingDigits(GREY, count=200)
    assert (len(digits), digits.classes) == (200, tuple("0123456789"))
    batch = digits.batch(range(200))
    assert (batch.x0.shape, batch.x0.dtype) == ((200, 1, 16, 32, 32), torch.float32)
    assert (batch.x0.min().item(), batch.x0.max().item()) == (-1.0, 1.0)
    assert set(batch.labels.tolist()) == set(range(10))  # type: ignore[union-attr]
    two = MovingDigits(GREY, count=5, digits=2)
    assert (two.classes, two.batch([0, 1]).labels) == (None, None)
    colour = MovingDigits(dataclasses.replace(GREY, channels=3), count=5).batch([3])
    assert torch.equal(colour.x0, batch.x0[3:4].expand(-1, 3, -1, -1, -1))


def test_moving_digits_depend_on_seed_and_index_alone() -> None:
    digits, other_seed = (MovingDigits(GREY, count=100, seed=seed) for seed in (0, 1))
    batch = digits.batch([4, 90, 4], seeds=[1, 2, 3])
    assert torch.equal(batch.x0[0], batch.x0[2])
    assert torch.equal(digits.example(90, seed=5).x0, batch.x0[1])
    assert digits.example(90).label == int(batch.labels[1])  # type: ignore[index]
    assert torch.equal(MovingDigits(GREY, count=5).batch([4]).x0[0], batch.x0[0])
    assert not torch.equal(other_seed.batch([4]).x0[0], batch.x0[0])
    part = digits.subset([90, 4])
    assert torch.equal(part.batch([1, 0]).x0, batch.x0[:2])
    assert len({each.fingerprint for each in (digits, part, other_seed, digits.subset([4]))}) == 4
    assert digits.fingerprint == MovingDigits(GREY, count=100).fingerprint
    for index in (100, -1):
        with pytest.raises(IndexError, match="100 clips"):
            digits.batch([index])


def test_moving_digits_show_the_digit_of_the_label_at_its_place() -> None:
    digits = MovingDigits(Video(frames=1, size=32, channels=1), count=40, speed=(0, 0))
    stills = Digits(Image(size=16, channels=1))
    batch = digits.batch(range(40))
    for index in range(40):
        track = digits.tracks(index)
        glyph = stills.batch([int(track.glyphs[0])])
        assert int(batch.labels[index]) == int(glyph.labels[0])  # type: ignore[index]
        # Between pixels the light is the same, and its centre is the digit's.
        assert (batch.x0[index] + 1).sum() == pytest.approx(float((glyph.x0 + 1).sum()), rel=0.02)
        moved = centres(batch.x0[index])[0, 0] - centres(glyph.x0[0])[0]
        assert torch.allclose(moved, track.start[0], atol=0.1)


def test_moving_digits_show_the_same_motion_at_another_rate() -> None:
    slow = MovingDigits(dataclasses.replace(GREY, frames=16, fps=8), count=10, digits=2).batch(range(10)).x0
    fast = MovingDigits(dataclasses.replace(GREY, frames=46, fps=24), count=10, digits=2).batch(range(10)).x0
    assert torch.equal(slow, fast[:, :, ::3])


def test_moving_digits_bounce_off_the_walls_and_stay_inside() -> None:
    video = Video(frames=200, fps=10, size=(24, 32), channels=1)
    digits = MovingDigits(video, count=20, digits=3, speed=(30, 60))
    room = torch.tensor([12.0, 20.0], dtype=torch.float64)
    for index in range(20):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        assert corners.shape == (3, 200, 2)
        # Step by step, reflected at each wall.
        place, velocity = track.start.clone(), track.velocity.clone()
        for frame in range(200):
            assert bool(((corners[:, frame] >= 0) & (corners[:, frame] <= room)).all())
            torch.testing.assert_close(corners[:, frame], place, rtol=0, atol=1e-6)
            place += velocity / 10
            while bool((outside := (place < 0) | (place > room)).any()):
                place = torch.where(place < 0, -place, torch.where(place > room, 2 * room - place, place))
                velocity[outside] *= -1
    # No light is lost over an edge: one digit keeps its brightness everywhere.
    one = (MovingDigits(video, count=8, speed=(30, 60)).batch(range(8)).x0 + 1).sum((1, 3, 4))
    assert ((one.amax(1) - one.amin(1)) / one.mean(1)).max() < 0.02


def test_moving_digits_draw_the_brighter_pixel() -> None:
    digits = MovingDigits(GREY, count=4, digits=2)
    for index in range(4):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        alone = [digits.draw(track.glyphs[None, n : n + 1], corners[None, n : n + 1]) for n in range(2)]
        shown = (torch.maximum(*alone) * 255).round().to(torch.uint8)
        assert torch.equal(digits.batch([index]).x0[0], GREY.image.encode(shown))


def test_moving_digits_refuse_impossible_options() -> None:
    for message, *options in (
        ("count", {"count": 0}),
        ("digits", {"digits": 0}),
        ("speed", {"speed": (3,)}, {"speed": (5, 3)}, {"speed": (-1, 3)}, {"speed": (0, math.inf)}),
        ("8 pixels", {"modality": Video(size=7)}),
        ("must be a Video, got Image", {"modality": Image(size=32)}),
        ("must be a Video, got Latent", {"modality": Latent(GREY, Identity())}),
    ):
        for each in options:
            with pytest.raises(ValueError, match=message):
                MovingDigits(**{"modality": GREY} | each)
