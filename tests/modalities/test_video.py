"""The video modality: windows, padding and motion on clips made on the spot, and what is written; real clips if any."""

import dataclasses
import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch

from modalities.base import Modality, collate
from modalities.files import Folder
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
    """Smooth waves of light and colour that run at different speeds."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    light = 128 + 80 * torch.sin((x + 2 * t) / 6 + y / 9)
    tint = 30 * torch.sin((x - t) / 15)
    return torch.stack([light + tint, light, light - tint])[:channels].round().to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def test_is_a_modality_on_a_grid_of_seconds_and_pixels(tmp_path: Path) -> None:
    video = Video(frames=10, fps=12.5, size=(24, 40))
    assert isinstance(video, Modality)
    grid = video.grid()
    assert grid.names == ("frame", "height", "width")
    assert grid.shape == (10, 24, 40)
    frame = grid.axis("frame")
    assert (frame.spacing, frame.unit, frame.nyquist) == (0.08, "s", 6.25)
    # A physical constant: neither the length of the clip nor its rate moves it.
    assert {Video(frames=n, fps=fps).grid().axis("frame").corner_frequency for n in (8, 64) for fps in (8, 30)} == {
        0.25
    }
    assert grid.axis("height").corner_frequency == 1 / 256
    assert Video(size=[24, 40]) == Video(size=(24, 40))
    assert hash(Video(size=8)) == hash(Video(size=(8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames"),
        ({"frames": 1.5}, "frames"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"fps": 1e6}, "fps"),
        ({"motion": 3}, "motion"),
        ({"motion": 0.1, "frames": 1}, "frames"),
        ({"short": "repeat"}, "short"),
        ({"size": 0}, "size"),
        ({"channels": 4}, "channels"),
        ({"resize": "zoom"}, "zoom"),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Video(**options)


@pytest.mark.parametrize(
    "options", [{}, {"size": (15, 17), "channels": 1}, {"frames": 80, "fps": 25}, {"motion": 0.01, "flip": True}]
)
def test_keeps_the_rules_of_modalities(tmp_path: Path, options: dict) -> None:
    check_modality(Video(**{"frames": 8, "fps": 12.5, "size": 16} | options), write_numbered(tmp_path / "a.mp4"))


def test_encode_and_decode_are_exact_inverses_and_decode_clips() -> None:
    video = Video(frames=4, size=8, channels=1)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8)
    x0 = video.encode(levels)
    assert (x0.dtype, x0.min().item(), x0.max().item()) == (torch.float32, -1.0, 1.0)
    assert torch.equal(video.decode(x0), levels)
    assert video.decode(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="diverged"):
        video.decode(torch.full((1, 4, 8, 8), float("inf")))
    for frames in (0, 5):
        with pytest.raises(ValueError, match=f"a clip of 1 to 4 frames, got {frames}"):
            video.encode(torch.zeros(1, frames, 8, 8, dtype=torch.uint8))


def test_whole_frames_may_be_written_as_a_float() -> None:
    video = Video(frames=4.0, size=8)  # type: ignore[arg-type]
    assert type(video.frames) is int
    assert video.encode(torch.zeros(3, 2, 8, 8, dtype=torch.uint8)).shape == (3, *video.grid().shape)


def test_windows_are_functions_of_the_seed_and_reach_everywhere(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", rate=25)
    video = Video(frames=10, fps=25, size=(32, 64))
    starts = set()
    for seed in range(120):
        numbers = numbers_shown(video.load(path, seed))
        assert numbers == list(range(numbers[0], numbers[0] + 10))
        starts.add(numbers[0])
    assert starts <= set(range(51))
    assert min(starts) < 3
    assert max(starts) > 47
    assert len(starts) > 35
    assert torch.equal(video.load(path, 3), video.load(path, 3))
    assert numbers_shown(video.load(path)) == list(range(25, 35))


@pytest.mark.parametrize("rate", [10, 12.5, 25, 29.97, 60])
def test_frames_come_at_the_rate_asked_for(tmp_path: Path, rate: float) -> None:
    exact = Fraction(rate).limit_denominator(1001)
    path = write_numbered(tmp_path / "a.mp4", rate=rate, count=int(2 * rate) + 1)
    for fps in (4, 8, 25):
        video = Video(frames=8 if fps > 4 else 6, fps=fps, size=(32, 64))
        for seed in (None, 0, 1):
            numbers = numbers_shown(video.load(path, seed))
            # The window starts at a frame, and each later time shows the frame that is then due.
            due = [numbers[0] + int((Fraction(n, fps) + Fraction(1, 1000)) * exact) for n in range(video.frames)]
            assert numbers == due


def test_crop_and_flip_are_the_same_for_all_frames(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", count=8)
    still = write_numbered(tmp_path / "still.mp4", count=8, times=[0, 1, 2, 3, 4, 5, 6, 7])
    video = Video(frames=8, fps=25, size=32, flip=True)
    image = Image(size=32, flip=True)
    # At its own size nothing is scaled, so the crop of each frame is that of the image with the same seed.
    whole = Video(frames=8, fps=25, size=(32, 64)).load(path)
    for seed in range(6):
        expected = image.mirror(image.fit(whole.transpose(0, 1), seed), seed).transpose(0, 1)
        assert torch.equal(video.load(path, seed), expected)
    assert torch.equal(video.load(still), image.fit(whole.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize("resize", ["crop", "center", "stretch", "pad"])
@pytest.mark.parametrize("source", [(33, 47), (2, 2), (120, 50)])
def test_any_size_comes_to_the_size_asked_for(tmp_path: Path, resize: str, source: tuple[int, int]) -> None:
    path = write_numbered(tmp_path / "a.mkv", count=8, size=source)
    video = Video(frames=6, fps=25, size=(17, 20), resize=resize)  # type: ignore[arg-type]
    for seed in (None, 0):
        clip = video.load(path, seed)
        assert (clip.shape, clip.dtype) == ((3, 6, 17, 20), torch.uint8)


def test_grey_is_the_luma_of_the_colours(tmp_path: Path) -> None:
    colour = Video(frames=4, size=(32, 48))
    colour.save(waves(4), tmp_path / "a.mp4")
    loaded = colour.load(tmp_path / "a.mp4").float()
    grey = dataclasses.replace(colour, channels=1).load(tmp_path / "a.mp4")[0].float()
    assert (grey - (0.299 * loaded[0] + 0.587 * loaded[1] + 0.114 * loaded[2])).abs().max() <= 0.51


def test_short_files_are_padded_with_a_mask_or_refused(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", rate=10, count=7)
    video = Video(frames=16, fps=20, size=(32, 64))
    for seed in (None, 0, 1):
        clip = video.load(path, seed)
        # 0.7 s at 20 frames per second: each frame twice, and no more.
        assert numbers_shown(clip) == [n // 2 for n in range(14)]
    x0, mask = video.encode(clip), video.mask(clip)
    assert x0.shape == (3, 16, 32, 64)
    assert torch.equal(x0[:, 14:], x0[:, 13:14].expand(-1, 2, -1, -1))
    assert mask is not None
    assert mask.shape == (1, 16, 32, 64)
    assert mask[:, :14].all()
    assert not mask[:, 14:].any()
    assert video.mask(video.decode(x0)) is None
    assert dataclasses.replace(video, frames=14).mask(clip) is None
    with pytest.raises(ValueError, match="14 frames"):
        dataclasses.replace(video, short="skip").load(path)
    skipping = dataclasses.replace(video, short="skip", frames=14)
    assert skipping.load(path).shape[1] == 14


def test_a_header_that_promises_a_little_too_much_is_corrected(tmp_path: Path) -> None:
    # The sound goes on for a second after the last frame, and Matroska declares the longer of both.
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        voice = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for number in range(100):
            picture = np.full((16, 16, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        for start in range(0, 86_000, 1000):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 8000, start
            container.mux(voice.encode(samples))
        container.mux(voice.encode())
    video = Video(frames=90, fps=10, size=16)
    starts = set()
    for seed in range(20):
        clip = video.load(tmp_path / "a.mkv", seed)
        assert clip.shape[1] == 90
        starts.add(round(float(clip[:, 0].float().mean()) / 2))
    assert starts <= set(range(11))
    assert len(starts) > 5


def moving_in_the_middle(path: Path) -> Path:
    """A square that moves from frame 40 to 80 of 120, and rests before and after."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(120):
            picture = np.zeros((64, 64, 3), np.uint8)
            left = min(max(number - 40, 0), 40)
            picture[20:40, left : left + 20] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_the_motion_filter_takes_what_moves_and_nothing_else(tmp_path: Path) -> None:
    path = moving_in_the_middle(tmp_path / "a.mp4")
    video = Video(frames=10, fps=10, size=64)

    def moved(clip: torch.Tensor) -> float:
        values = clip.double() / 255
        return float((values[:, 1:] - values[:, :-1]).abs().mean())

    # One column of 20 pixels appears and one vanishes at each step.
    assert moved(video.load(path)) == pytest.approx(2 * 20 / 64**2, rel=0.1)
    assert min(moved(video.load(path, seed)) for seed in range(20)) < 0.0005
    filtered = dataclasses.replace(video, motion=0.005)
    clips = [filtered.load(path, seed) for seed in range(12)]
    assert min(moved(clip) for clip in clips) >= 0.005
    assert len({clip.numpy().tobytes() for clip in clips}) > 3
    assert torch.equal(filtered.load(path, 5), clips[5])
    assert moved(filtered.load(path)) >= 0.005
    # Whether a file is refused is a matter of the file: no seed finds what is not there.
    for seed in (None, 0, 1, 2):
        with pytest.raises(ValueError, match=r"motion=0\.02 .* largest is 0\.00?9"):
            dataclasses.replace(video, motion=0.02).load(path, seed)


def test_a_folder_of_clips_reports_what_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mkv", "c.gif"):
        write_numbered(tmp_path / name, "gif" if name.endswith("gif") else "libx264", rate=10, count=12)
    write_numbered(tmp_path / "short.mp4", rate=10, count=4)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    folder = Folder(Video(frames=8, fps=10, size=16), tmp_path, max_unreadable=0.5)
    batch = folder.batch(range(5), range(5))
    assert batch.x0.shape == (5, 3, 8, 16, 16)
    assert list(folder.unreadable) == ["bad.mp4"]
    # Sorted by path, the short clip is the last; only its padding is masked.
    assert batch.mask is not None
    assert batch.mask[:, 0, :, 0, 0].sum(1).tolist().count(4) >= 1
    assert bool(batch.mask[-1, :, :4].all())
    assert not bool(batch.mask[-1, :, 4:].any())
    assert torch.equal(collate([folder.example(n, n) for n in range(5)]).x0, batch.x0)


@pytest.mark.parametrize("fps", [8, 12.5, 29.97, 30000 / 1001, 0.5])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (2, 2), (1, 1)])
def test_what_is_written_is_read_again_at_its_rate(tmp_path: Path, fps: float, size: tuple[int, int]) -> None:
    video = Video(frames=16, fps=fps, size=size)
    clip = waves(16, *size)
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
    # Halves of 64 pixels, enlarged by a whole factor, with the frame of 2 pixels of a grid, in two rows of eight.
    factor = max(1, 64 // max(size))
    with PIL.Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.size == (8 * (size[1] * factor + 2) + 2, 2 * (size[0] * factor + 2) + 2)
        enlarged = np.asarray(sheet)[2 : 2 + size[0] * factor : factor, 2 : 2 + size[1] * factor : factor]
    assert np.array_equal(enlarged, clip[:, 0].permute(1, 2, 0).numpy())


def test_grey_clips_and_single_frames_are_written(tmp_path: Path) -> None:
    grey = Video(frames=16, size=32, channels=1)
    clip = waves(16, 32, 32, channels=1)
    grey.save(clip, tmp_path / "grey.mp4")
    assert psnr(grey.load(tmp_path / "grey.mp4"), clip) > 40
    one = Video(frames=1, size=32)
    one.save(waves(1, 32, 32), tmp_path / "one.mp4")
    assert one.load(tmp_path / "one.mp4").shape == (3, 1, 32, 32)
    with pytest.raises(ValueError, match=r"should end in \.mp4"):
        grey.save(clip, tmp_path / "a.avi")


def test_a_grid_is_a_sheet_of_rows_and_a_video_of_tiles(tmp_path: Path) -> None:
    video = Video(frames=20, fps=12.5, size=(24, 32))
    clips = [waves(20, 24, 32), waves(5, 24, 32).flip(-1), 255 - waves(20, 24, 32)]
    video.save_grid(clips, tmp_path / "new" / "grid.png")
    with PIL.Image.open(tmp_path / "new" / "grid.png") as sheet:
        # 16 of 20 frames, enlarged twice.
        assert sheet.size == (16 * 66 + 2, 3 * 50 + 2)
        pixels = np.asarray(sheet)
    for row, clip in enumerate([clips[0], None, clips[2]]):
        if clip is not None:
            last = pixels[50 * row + 2 : 50 * row + 50 : 2, 15 * 66 + 2 : 16 * 66 : 2]
            assert np.array_equal(last, clip[:, -1].permute(1, 2, 0).numpy())
    tiled = Video(frames=20, fps=12.5, size=(2 * 50 + 2, 2 * 66 + 2)).load(tmp_path / "new" / "grid.mp4")
    assert tiled.shape == (3, 20, 102, 134)
    for place, (top, left) in enumerate([(2, 2), (2, 68), (52, 2)]):
        for time in (0, 3, 19):
            shown = tiled[:, time, top : top + 48 : 2, left : left + 64 : 2]
            assert psnr(shown, clips[place][:, min(time, clips[place].shape[1] - 1)]) > 25
    with pytest.raises(ValueError, match="at least one"):
        video.save_grid([], tmp_path / "none.png")
    video.save_grid([waves(1, 24, 32, 1)], tmp_path / "single.png")
    assert (tmp_path / "single.mp4").stat().st_size > 0


def test_real_clips_survive_being_saved(tmp_path: Path) -> None:
    for number, path in enumerate(real_clips()[::4]):
        for size in (32, 64):
            video = Video(frames=12, fps=12.5, size=size)
            clip = video.load(path, number)
            video.save(clip, tmp_path / "a.mp4")
            assert psnr(video.load(tmp_path / "a.mp4"), clip) > 30


@pytest.mark.parametrize("name", ["solidWhiteRight.mp4", "again.mkv"])
def test_real_clips_give_the_frames_of_a_decode_from_the_start(name: str) -> None:
    path = next(path for path in real_clips() if path.name == name)

    def small(frame: av.VideoFrame) -> torch.Tensor:
        return pixels(frame, (16, 16))

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        every = [(frame.pts, small(frame)) for frame in container.decode(stream)]
        unit = float(stream.time_base)
    stamps = [(pts - every[0][0]) * unit for pts, _ in every]
    draw = random.Random(0)
    with open_video(path, 10**7) as file:
        assert file.measure() == pytest.approx(stamps[-1] + file.step)
        for fps in (8, 12.5, 30, 60):
            start = draw.uniform(0, stamps[-1] - 5 / fps)
            times = [start + n / fps for n in range(6)]
            due = [max(n for n, stamp in enumerate(stamps) if stamp <= time + 1e-3) for time in times]
            got = file.pictures(times, small)
            assert all(torch.equal(picture, every[n][1]) for picture, n in zip(got, due, strict=True))
