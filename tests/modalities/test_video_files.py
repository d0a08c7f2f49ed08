"""Video files show the right frame at every time, for any container, codec and rate; bad files are refused."""

import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import av
import numpy as np
import pytest
import soundfile
import torch

from modalities import video_files
from modalities.remarks import collecting
from modalities.video_files import VideoFile, open_video, pixels
from tests.helpers.numbered_clips import number_shown, numbered_frame, write_numbered

OPEN_GROUPS = {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
CLIPS: dict[str, tuple[str, dict[str, str]]] = {
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
SEEKING = ("h264.mp4", "h264.mkv", "h264.flv", "open.mp4", "hevc.mp4", "vp9.webm", "mpeg2.ts")


def write_clip(folder: Path, name: str) -> Path:
    codec, settings = CLIPS[name]
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this build of PyAV cannot write {codec}")
    return write_numbered(folder / name, codec, options=settings)


def picture(frame: av.VideoFrame) -> torch.Tensor:
    return pixels(frame, (64, 64))


def numbers(file: VideoFile, times: Sequence[float]) -> list[int]:
    return [number_shown(shown) for shown in file.frames_at(times, picture)]


@pytest.mark.parametrize("name", CLIPS)
def test_video_file_windows_equal_a_decode_from_the_start(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path, name)
    with av.open(str(path)) as container:
        every = [picture(frame) for frame in container.decode(video=0)]
    assert [number_shown(frame) for frame in every] == list(range(60))
    with open_video(path, 10**6) as file:
        assert file.measure() == pytest.approx(2.4)
        for first in range(60):
            pictures = file.frames_at([(first + n) / 25 for n in range(4)], picture)
            assert len(pictures) == min(4, 60 - first)
            assert all(torch.equal(a, b) for a, b in zip(pictures, every[first:], strict=False))
    if name in SEEKING:
        with open_video(path, 10**6) as file:
            monkeypatch.setattr(video_files, "_open", None)  # which would decode from the start
            decoded = [number_shown(picture(frame)) for frame in file.frames(55 / 25)]
        assert 30 < decoded[0] <= 55
        assert decoded == list(range(decoded[0], 60))


@pytest.mark.parametrize("container", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("rate", [10, 12.5, 29.97, Fraction(30000, 1001), 60])
def test_video_file_converts_any_rate_to_any_other(tmp_path: Path, rate: float | Fraction, container: str) -> None:
    path = write_numbered(tmp_path / f"a.{container}", "libx264", rate, count=int(1.5 * rate), options={"bf": "0"})
    exact = Fraction(rate).limit_denominator(1001)
    # Frame n is shown from n / rate on, to a millisecond; Matroska's timestamps are rounded to milliseconds.
    slack = (0, 1, 2) if container == "mkv" else (1,)
    with open_video(path, 10**6) as file:
        assert file.step == pytest.approx(float(1 / exact))
        for fps in (8, 25, 30, 60, exact):
            times = [Fraction(3, 10) + n / Fraction(fps) for n in range(8)]
            for time, number in zip(times, numbers(file, [float(time) for time in times]), strict=True):
                assert number in {int((time + Fraction(late, 1000)) * exact) for late in slack}, (fps, time)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_video_file_follows_variable_timestamps(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    times = np.cumsum([draw.choice([1, 1, 2, 5, 30]) for _ in range(60)]).tolist()
    path = write_numbered(tmp_path / name, rate=100, count=60, times=times)
    stamps = [(time - times[0]) / 100 for time in times]
    with open_video(path, 10**6) as file:
        for start in (0.0, 0.333, 1.7, stamps[40], stamps[-1] - 1):
            requested = [start + n / 12.5 for n in range(10)]
            expected = [max(n for n, stamp in enumerate(stamps) if stamp <= time + 1e-3) for time in requested]
            assert numbers(file, requested) == expected, start


def test_frames_at_converts_each_shown_frame_once(tmp_path: Path) -> None:
    convert = Mock(side_effect=picture)
    with open_video(write_numbered(tmp_path / "a.mp4", sound=2.4), 10**6) as file:
        shown = file.frames_at([0.4, 0.41, 0.42, 0.43, 0.8], convert)
    assert [number_shown(frame) for frame in shown] == [10, 10, 10, 10, 20]
    assert convert.call_count == 2


def test_measure_finds_the_duration_of_streams_and_single_frames(tmp_path: Path) -> None:
    live = bytearray()

    def append(data: bytes) -> int:
        live.extend(data)
        return len(data)

    write_numbered(SimpleNamespace(write=append), format="matroska")  # which cannot go back to write its duration
    (tmp_path / "live.mkv").write_bytes(live)
    with open_video(tmp_path / "live.mkv", 10**6) as file:
        assert file.declared is None
        assert file.measure() == pytest.approx(2.4, abs=2e-3)
        assert numbers(file, [1.0, 2.0, 2.39]) == [25, 50, 59]
    for name in ("one.mp4", "one.mkv", "one.avi"):
        with open_video(write_numbered(tmp_path / name, count=1, rate=8), 10**6) as file:
            assert file.measure() == pytest.approx(1 / 8, abs=2e-3)
            assert numbers(file, [0.0, 0.1, 0.2]) == [0, 0]


def test_pixels_turns_rotated_recordings_upright_and_makes_pixels_square(tmp_path: Path) -> None:
    for degrees in (0, 90, 180, 270):
        with open_video(write_numbered(tmp_path / "a.mp4", count=26, rotation=degrees), 10**6) as file:
            shown = file.frames_at([1.0], picture)[0]
        upright = np.rot90(numbered_frame(25), degrees // 90)  # the display matrix turns counterclockwise
        assert shown.shape[1:] == upright.shape[:2]
        assert (shown.permute(1, 2, 0).float() - torch.from_numpy(upright.copy())).abs().mean() < 12, degrees
    with open_video(write_numbered(tmp_path / "a.mkv", count=4, aspect=Fraction(3, 2)), 10**6) as file:
        assert file.aspect == 1.5
        shown = file.frames_at([0.12], lambda frame: pixels(frame, (64, 64), file.aspect))[0]
    assert (shown.shape, number_shown(shown)) == ((3, 32, 96), 3)


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, 1, 1, 0), (0, -1, 1, 0)])
def test_pixels_mirrors_and_turns_as_the_display_matrix_says(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path, (a, b, c, d) = write_numbered(tmp_path / "a.mp4", count=26), matrix
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    with open_video(path, 10**6) as file:
        shown = file.frames_at([1.0], picture)[0]
    frame = numbered_frame(25)
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    x, y = a * columns + c * rows, b * columns + d * rows
    upright = np.empty((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    upright[y - y.min(), x - x.min()] = frame
    assert shown.shape[1:] == upright.shape[:2]
    assert (shown.permute(1, 2, 0).float() - torch.from_numpy(upright)).abs().mean() < 12


@pytest.mark.parametrize("ending", ["mkv", "mp4", "flv", "avi", "mov"])
def test_video_file_reads_video_that_ends_before_its_sound(tmp_path: Path, ending: str) -> None:
    with open_video(write_numbered(tmp_path / f"a.{ending}", sound=9.0), 10**6) as file:
        assert file.measure() == pytest.approx(2.4, abs=0.1)
        assert numbers(file, [2.3, 2.36, 2.5]) == [57, 59]


def test_pixels_lays_transparency_on_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3], rgba[4, :, 3] = 255, 51
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
    assert pixels(frame, (8, 8))[0, :, 0].tolist() == [0, 0, 0, 0, 204, 255, 255, 255]


@pytest.mark.parametrize(("codec", "ending"), [("mpeg2video", "ts"), ("libx264", "ts"), ("mpeg2video", "mpg")])
def test_video_file_reads_joined_streams_whose_times_jump(tmp_path: Path, codec: str, ending: str) -> None:
    parts = [
        write_numbered(
            tmp_path / f"{start}.{ending}", codec, count=count, times=range(start, start + count)
        ).read_bytes()
        for start, count in ((0, 20), (0, 30), (5000, 20))
    ]
    (tmp_path / f"a.{ending}").write_bytes(b"".join(parts))
    with open_video(tmp_path / f"a.{ending}", 10**6) as file:
        assert file.declared is None
        assert file.measure() == pytest.approx(2.8, abs=0.05)
        assert numbers(file, [0.0, 0.76, 0.8, 1.2, 1.96, 2.0, 2.76]) == [0, 19, 0, 10, 29, 0, 19]


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_video_file_shows_a_frame_for_as_long_as_empty_packets_of_avi_follow(tmp_path: Path, codec: str) -> None:
    path = write_numbered(tmp_path / "a.avi", codec, count=30, times=[*range(10), *range(20, 40)])
    with open_video(path, 10**6) as file:
        assert numbers(file, [0.36, 0.6, 0.76, 0.8, 1.56]) == [9, 9, 9, 10, 29]


@pytest.mark.parametrize(("size", "space"), [((576, 720), "ITU601"), ((720, 64), "ITU709"), ((64, 1280), "ITU709")])
def test_pixels_takes_untagged_high_definition_for_bt709(size: tuple[int, int], space: str) -> None:
    red = np.broadcast_to(np.array([200, 40, 30], np.uint8), (*size, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(red), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=space)
    frame.colorspace = video_files.UNSPECIFIED
    assert (pixels(frame, size).float().mean((1, 2)) - torch.tensor([200, 40, 30])).abs().max() < 2


def test_pixels_remarks_on_hdr_and_interlaced_frames(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(numbered_frame(1), format="rgb24").reformat(format="yuv420p10le")
    with collecting() as remarks:
        for frame.color_trc in (1, 16, 18):
            pixels(frame, (32, 64))
    assert sorted(text[:9] for text in remarks) == ["HDR (HLG)", "HDR (PQ),"]
    path = write_numbered(tmp_path / "a.mp4", options={"x264-params": "tff=1"}, count=3)
    with open_video(path, 10**6) as file, collecting() as remarks:
        file.frames_at([0.0], picture)
    assert [text.split(",")[0] for text in remarks] == ["interlaced"]


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "mov")])
def test_pixels_keeps_colours(tmp_path: Path, codec: str, suffix: str) -> None:
    colours = np.array([[200, 30, 60], [255, 255, 255], [20, 180, 90], [0, 0, 0]], np.uint8)
    with av.open(str(tmp_path / f"a.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        bars = colours[None].repeat(32, 0).repeat(16, 1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(bars, format="rgb24")))
        container.mux(stream.encode())
    with open_video(tmp_path / f"a.{suffix}", 10**6) as file:
        shown = file.frames_at([0.0], picture)[0]
    assert (shown[:, 16, 8::16].T.int() - torch.from_numpy(colours).int()).abs().max() <= 4


def test_pixels_reduces_large_frames_and_keeps_small_ones() -> None:
    reduced = pixels(av.VideoFrame.from_ndarray(numbered_frame(181, 1080, 1920), format="rgb24"), (32, 32))
    assert reduced.shape == (3, 68, 120)
    assert number_shown(reduced) == 181
    small = numbered_frame(181, 33, 47)
    exact = pixels(av.VideoFrame.from_ndarray(small, format="rgb24"), (32, 32))
    assert torch.equal(exact, torch.from_numpy(small).permute(2, 0, 1))


def test_video_file_decodes_from_the_start_if_its_index_is_broken(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(VideoFile, "_seek", Mock(side_effect=av.error.PermissionError(1, "Operation not permitted")))
    with open_video(write_numbered(tmp_path / "a.mp4"), 10**6) as file:
        assert numbers(file, [1.0, 1.2]) == [25, 30]


def check_refused(path: Path, message: str, max_pixels: int = 10**6, time: float = 0.0) -> None:
    def read() -> None:
        with open_video(path, max_pixels) as file:
            file.frames_at([time, time + 0.04], picture)
            file.measure()

    with pytest.raises(ValueError, match=message):
        read()


def test_open_video_refuses_other_files(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    clip = write_numbered(tmp_path / "good.mp4")
    playlist = f"#EXTM3U\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n".encode()
    concatenation = b"ffconcat version 1.0\nfile good.mp4\n"  # like a playlist, it makes its reader open other files
    text, noise, image = b"hello\n" * 500, random.Random(0).randbytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(500)
    path = tmp_path / "bad.mp4"
    for content in (playlist, concatenation, text, noise, image):
        path.write_bytes(content)
        check_refused(path, "damaged or not a video")
    path.write_bytes(b"")
    check_refused(path, "empty")
    path.write_bytes(write_clip(tmp_path, "mpeg4.avi").read_bytes().replace(b"FMP4", b"ZZZZ"))
    check_refused(path, "no decoder")
    with pytest.raises(FileNotFoundError):
        check_refused(tmp_path / "missing.mp4", "missing")
    soundfile.write(path, np.zeros(1000), 8000, format="OGG")
    check_refused(path, "no video stream")
    assert capfd.readouterr().err == ""


def test_open_video_takes_names_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:a.mp4", "concat:a|b.mp4", "ünïcode %d [x].mp4"):
        write_numbered(tmp_path / "plain.mp4", count=3).rename(tmp_path / name)
        with open_video(Path(name), 10**6) as file:
            assert numbers(file, [0.04]) == [1]


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "vp9.webm", "mjpeg.mov"])
def test_video_file_refuses_truncated_files(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    check_refused(path, "truncated|damaged", time=2.0)


def test_open_video_refuses_huge_frames_before_decoding(tmp_path: Path) -> None:
    check_refused(write_numbered(tmp_path / "a.mp4"), "64×32 pixels", max_pixels=64 * 32 - 1)
    data = bytearray(write_clip(tmp_path, "gif.gif").read_bytes())
    for side in (9_000, 65_535):
        data[6:10] = struct.pack("<HH", side, side)
        (tmp_path / "huge.gif").write_bytes(data)
        check_refused(tmp_path / "huge.gif", "max_pixels|damaged", max_pixels=64_000_000)
