"""Reading video files: which frame is shown when, whatever the container, codec and rate, and what is refused."""

import random
import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from modalities import video_files
from modalities.video_files import VideoFile, open_video, pixels
from tests.helpers.numbered_clips import number_shown, numbered_frame, write_numbered

OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
CLIPS = {
    "h264.mp4": ("libx264", {}),
    "h264.mkv": ("libx264", {"bf": "3"}),
    "h264.flv": ("libx264", {}),
    "h264.avi": ("libx264", {"bf": "2"}),
    "open.mp4": ("libx264", OPEN_GROUPS),
    "open.mkv": ("libx264", OPEN_GROUPS),
    "open.ts": ("libx264", OPEN_GROUPS),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "hevc.mp4": ("libx265", {"x265-params": "open-gop=1:keyint=12:bframes=4:log-level=none:pools=none"}),
    "mpeg4.avi": ("mpeg4", {}),
    "bframes.avi": ("mpeg4", {"bf": "2"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "gif.gif": ("gif", {}),
    "mjpeg.mov": ("mjpeg", {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "wmv.wmv": ("wmv2", {}),
}


def write_clip(folder: Path, name: str, **options: object) -> Path:
    codec, settings = CLIPS[name]
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    return write_numbered(folder / name, codec, options=settings, **options)  # type: ignore[arg-type]


def whole(frame: av.VideoFrame) -> torch.Tensor:
    return pixels(frame, (64, 64))


def decode_all(path: Path) -> list[torch.Tensor]:
    with av.open(str(path)) as container:
        return [whole(frame) for frame in container.decode(video=0)]


def shown(file: VideoFile, times: list[float]) -> list[int]:
    return [number_shown(picture) for picture in file.pictures(times, whole)]


@pytest.mark.parametrize("name", CLIPS)
def test_a_window_anywhere_equals_a_decode_from_the_start(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path, name)
    every = decode_all(path)
    assert [number_shown(picture) for picture in every] == list(range(60))
    with open_video(path, 10**6) as file:
        assert file.measure() == pytest.approx(2.4)
        for first in range(60):
            pictures = file.pictures([(first + n) / 25 for n in range(4)], whole)
            assert len(pictures) == min(4, 60 - first)
            assert all(torch.equal(a, b) for a, b in zip(pictures, every[first:], strict=False))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.flv", "open.mp4", "hevc.mp4", "vp9.webm", "mpeg2.ts"])
def test_seeking_decodes_less_than_the_whole(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path, name)
    with open_video(path, 10**6) as file:
        # Opened once more, it would decode from the start.
        monkeypatch.setattr(video_files, "_open", None)
        numbers = [number_shown(whole(frame)) for frame in file.frames(55 / 25)]
    assert 30 < numbers[0] <= 55
    assert numbers == list(range(numbers[0], 60))


@pytest.mark.parametrize("rate", [10, 12.5, 25, Fraction(30000, 1001), 29.97, 60])
@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
def test_any_rate_is_brought_to_any_other(tmp_path: Path, rate: float | Fraction, container: str) -> None:
    path = write_numbered(tmp_path / f"a.{container}", "libx264", rate, count=int(1.5 * rate), options={"bf": "0"})
    exact = Fraction(rate).limit_denominator(1001)
    with open_video(path, 10**6) as file:
        assert file.step == pytest.approx(float(1 / exact))
        for fps in (Fraction(8), Fraction(25), Fraction(30), Fraction(60)):
            times = [Fraction(3, 10) + n / fps for n in range(8)]
            # Frame n is shown from n / rate on, to a millisecond; Matroska's timestamps are as coarse as that.
            slack = (0, 1, 2) if container == "mkv" else (1,)
            allowed = [{int((time + Fraction(late, 1000)) * exact) for late in slack} for time in times]
            got = shown(file, [float(time) for time in times])
            assert all(number in numbers for number, numbers in zip(got, allowed, strict=True))


def test_rates_of_their_own_keep_each_frame_once(tmp_path: Path) -> None:
    # Matroska rounds timestamps to milliseconds, which must neither skip nor repeat a frame.
    for rate in (Fraction(30000, 1001), Fraction(24000, 1001), Fraction(30), Fraction(60)):
        path = write_numbered(tmp_path / "a.mkv", rate=rate, count=100)
        with open_video(path, 10**6) as file:
            assert shown(file, [float((7 + n) / rate) for n in range(90)]) == list(range(7, 97))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rates_follow_the_timestamps(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    times = np.cumsum([draw.choice([1, 1, 2, 5, 30]) for _ in range(60)]).tolist()
    path = write_numbered(tmp_path / name, rate=100, count=60, times=times)
    stamps = [(time - times[0]) / 100 for time in times]
    with open_video(path, 10**6) as file:
        for start in (0.0, 0.333, 1.7, stamps[40], stamps[-1] - 1):
            wanted = [start + n / 12.5 for n in range(12)]
            expected = [max(n for n, stamp in enumerate(stamps) if stamp <= time + 1e-3) for time in wanted]
            assert shown(file, wanted)[:10] == expected[:10]


def test_converts_each_frame_shown_once_and_no_other(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4")
    converted: list[int] = []

    def convert(frame: av.VideoFrame) -> torch.Tensor:
        picture = whole(frame)
        converted.append(number_shown(picture))
        return picture

    with open_video(path, 10**6) as file:
        assert len(file.pictures([0.4, 0.41, 0.42, 0.43, 0.8], convert)) == 5
    assert converted == [10, 20]


def test_sound_is_passed_over_and_a_single_frame_is_enough(tmp_path: Path) -> None:
    with open_video(write_numbered(tmp_path / "a.mp4", sound=True), 10**6) as file:
        assert shown(file, [1.0, 1.2]) == [25, 30]
    for name in ("one.mp4", "one.mkv", "one.avi"):
        with open_video(write_numbered(tmp_path / name, count=1, rate=8), 10**6) as file:
            assert file.measure() == pytest.approx(1 / 8, abs=2e-3)
            assert shown(file, [0.0, 0.1, 0.2]) == [0, 0]


def test_a_duration_that_no_header_declares_is_measured(tmp_path: Path) -> None:
    # A stream to a pipe cannot go back to fill in its duration.
    class Pipe:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> int:
            self.data.extend(data)
            return len(data)

    pipe = Pipe()
    write_numbered(pipe, "libx264", format="matroska")  # type: ignore[arg-type]
    (tmp_path / "live.mkv").write_bytes(pipe.data)
    with open_video(tmp_path / "live.mkv", 10**6) as file:
        assert file.promised is None
        assert file.measure() == pytest.approx(2.4, abs=2e-3)
        assert shown(file, [1.0, 2.0, 2.39]) == [25, 50, 59]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_recordings_stand_upright(tmp_path: Path, degrees: int) -> None:
    path = write_numbered(tmp_path / "a.mp4", count=26, rotation=degrees)
    with open_video(path, 10**6) as file:
        picture = file.pictures([1.0], whole)[0]
    # The display matrix turns counterclockwise.
    upright = np.rot90(numbered_frame(25), degrees // 90)
    assert picture.shape[1:] == upright.shape[:2]
    assert (picture.permute(1, 2, 0).float() - torch.from_numpy(upright.copy())).abs().mean() < 12


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        frame = av.VideoFrame.from_ndarray(numbered_frame(3), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open_video(tmp_path / "a.mkv", 10**6) as file:
        assert file.aspect == 1.5
        picture = file.pictures([0.0], lambda frame: pixels(frame, (64, 64), file.aspect))[0]
    assert picture.shape == (3, 32, 96)
    assert number_shown(picture) == 3


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255
    rgba[4, :, 3] = 51
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    assert pixels(frame, (8, 8))[0, :, 0].tolist() == [0, 0, 0, 0, 204, 255, 255, 255]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "mov")])
def test_colours_survive(tmp_path: Path, codec: str, suffix: str) -> None:
    colours = np.array([[200, 30, 60], [255, 255, 255], [20, 180, 90], [0, 0, 0]], np.uint8)
    picture = colours[None].repeat(32, 0).repeat(16, 1)
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with open_video(tmp_path / f"a.{suffix}", 10**6) as file:
        read = file.pictures([0.0], whole)[0]
    assert (read[:, 16, 8::16].T.int() - torch.from_numpy(colours).int()).abs().max() <= 4


def test_large_frames_are_reduced_on_the_way_and_small_ones_are_not() -> None:
    frame = av.VideoFrame.from_ndarray(numbered_frame(181, 1080, 1920), format="rgb24")
    reduced = pixels(frame, (32, 32))
    assert reduced.shape == (3, 68, 120)
    assert number_shown(reduced) == 181
    small = numbered_frame(181, 33, 47)
    exact = pixels(av.VideoFrame.from_ndarray(small, format="rgb24"), (32, 32))
    assert torch.equal(exact, torch.from_numpy(small).permute(2, 0, 1))


def test_a_broken_index_falls_back_to_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_numbered(tmp_path / "a.mp4")
    with open_video(path, 10**6) as file:

        def nowhere(self: VideoFile, place: float, time: float) -> object:
            raise av.error.PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(VideoFile, "_seek", nowhere)
        assert shown(file, [1.0, 1.2]) == [25, 30]


def read_some(path: Path, max_pixels: int, time: float) -> None:
    with open_video(path, max_pixels) as file:
        count = len(file.pictures([time, time + 0.04], whole))
        file.measure()
        assert count == 2


def refused(path: Path, reason: str, max_pixels: int = 10**6, time: float = 0.0) -> None:
    with pytest.raises(ValueError, match=reason):
        read_some(path, max_pixels, time)


def test_what_is_no_video_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    clip = write_numbered(tmp_path / "good.mp4")
    contents = {
        "empty": b"",
        "text": b"hello\n" * 500,
        "noise": random.Random(0).randbytes(5000),
        # Lists that make their reader open other files.
        "playlist": f"#EXTM3U\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n".encode(),
        "concatenation": b"ffconcat version 1.0\nfile good.mp4\n",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        refused(path, "empty" if name == "empty" else "damaged or not a video")
    with pytest.raises(FileNotFoundError):
        refused(tmp_path / "missing.mp4", "missing")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(voice.encode(samples))
        container.mux(voice.encode())
    refused(tmp_path / "sound.mp4", "no video stream")
    assert capfd.readouterr().err == ""


def test_names_are_names_and_not_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.mp4", "concat:a|b.mp4", "ünïcode %d [x].mp4"):
        write_numbered(tmp_path / "plain.mp4", count=3).rename(tmp_path / name)
        with open_video(Path(name), 10**6) as file:
            assert shown(file, [0.04]) == [1]


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm", "mjpeg.mov"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated|damaged", time=2.0)


def test_damage_is_refused_or_survived_but_never_crashes(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name in ("h264.mp4", "h264.mkv", "mpeg4.avi", "gif.gif", "mpeg2.ts"):
        path = write_clip(tmp_path, name)
        good = path.read_bytes()
        for _ in range(12):
            data = bytearray(good)
            for _ in range(draw.choice([1, 10, 100])):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data)
            with suppress(ValueError), open_video(path, 10**6) as file:
                assert len(file.pictures([draw.uniform(0, 2)], whole)) <= 1
                file.measure()


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    refused(write_numbered(tmp_path / "a.mp4"), "64×32 pixels", max_pixels=64 * 32 - 1)
    data = bytearray(write_clip(tmp_path, "gif.gif").read_bytes())
    for width, height in ((9_000, 9_000), (65_535, 65_535)):
        data[6:10] = struct.pack("<HH", width, height)
        (tmp_path / "huge.gif").write_bytes(data)
        refused(tmp_path / "huge.gif", "max_pixels|damaged", max_pixels=64_000_000)


def test_nothing_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    good, bad = write_numbered(tmp_path / "a.mkv", count=20), tmp_path / "bad.mkv"
    bad.write_bytes(good.read_bytes()[:-400])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for turn in range(200):
        try:
            with open_video(bad if turn % 2 else good, 10**6) as file:
                file.pictures([0.7], whole)
                file.measure()
        except ValueError:
            assert turn % 2
    assert len(list(Path("/proc/self/fd").iterdir())) == before
