"""Sound files made on the spot: every format and sample width, exact excerpts, and an error for each kind of damage."""

import dataclasses
import math
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from modalities.sound_files import _checked, open_sound, read_excerpt

EVERYTHING = 10**9


def chirp(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """A rising tone, shape (samples, channels), which differs from moment to moment and from channel to channel."""
    time = np.arange(round(rate * seconds)) / rate
    tone = 0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) * np.sin(np.pi * time / seconds)
    return np.stack([tone / (channel + 1) for channel in range(channels)], axis=-1).astype(np.float32)


def write_av(
    path: Path, codec: str, frames: np.ndarray, rate: int, tags: dict[str, str] | None = None, **options: str
) -> Path:
    """Write frames (samples, channels) by FFmpeg."""
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=rate)
        stream.layout = {1: "mono", 2: "stereo"}[frames.shape[1]]
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(frames.T), format="fltp", layout=stream.layout)
        sound.sample_rate, sound.pts = rate, 0
        convert = av.AudioResampler(format="s16p" if codec == "alac" else "fltp", layout=stream.layout, rate=rate)
        for frame in convert.resample(sound) + convert.resample(None):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write(folder: Path, name: str, frames: np.ndarray, rate: int) -> Path:
    """Write frames as the ending of `name` says; a part before it names the kind of samples."""
    path, kind = folder / name, name.split(".")[-2].upper()
    if path.suffix == ".m4a":
        return write_av(path, kind.lower(), frames, rate)
    if name == "lame.mp3":
        return write_av(path, "libmp3lame", frames, rate)
    formats = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".mp3": "MP3", ".aiff": "AIFF"}
    subtype = kind if kind in soundfile.available_subtypes() else None
    soundfile.write(path, frames, rate, subtype=subtype, format=formats[path.suffix])
    return path


# Largest error of the samples: half a step of integers, and what lossy codecs make of a chirp.
FORMATS = {
    "pcm_u8.wav": 1 / 128,
    "pcm_16.wav": 1 / 32768,
    "pcm_24.wav": 1 / 2**23,
    "pcm_32.wav": 1e-7,
    "float.wav": 0.0,
    "double.wav": 1e-7,
    "ulaw.wav": 0.02,
    "ms_adpcm.wav": 0.1,
    "pcm_16.flac": 1 / 32768,
    "pcm_24.flac": 1 / 2**23,
    "pcm_16.aiff": 1 / 32768,
    "vorbis.ogg": 0.05,
    "opus.opus": 0.1,
    "mpeg_layer_iii.mp3": 0.05,
    "lame.mp3": 0.05,
    "aac.m4a": 0.05,
    "alac.m4a": 1 / 32768,
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path: Path, name: str, channels: int) -> None:
    frames = chirp(48000, 1.0, channels)
    path = write(tmp_path, name, frames, 48000)
    with open_sound(path) as sound:
        assert (sound.rate, sound.channels) == (48000, channels)
        assert sound.frames == pytest.approx(48000, abs=0 if FORMATS[name] < 0.01 else 2500)
    whole = read_excerpt(path, 48000, EVERYTHING, 0.0)
    assert whole.dtype == torch.float32
    assert whole.shape[0] == channels
    assert whole.is_contiguous()
    error = (whole[:, :48000] - torch.from_numpy(frames.T)[:, : whole.shape[1]]).abs().max()
    assert error <= FORMATS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_an_excerpt_is_that_slice_of_the_whole(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, chirp(48000, 2.0), 48000)
    whole = read_excerpt(path, 48000, EVERYTHING, 0.0)
    spare = whole.shape[1] - 10_000
    # Decoders of lossy formats start anew at an excerpt and come to agree with themselves within rounding.
    tolerance = 2e-4 if name.endswith((".mp3", ".m4a", ".opus", ".ogg")) else 0.0
    for place in (0.0, 0.3, 0.5, 0.77, 1.0):
        excerpt = read_excerpt(path, 48000, 10_000, place)
        start = round(place * spare)
        assert excerpt.shape == (1, 10_000)
        assert (excerpt - whole[:, start : start + 10_000]).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("rate", "seconds", "signal"),
    [(44100, 4.0, "noise"), (8000, 30.0, "noise"), (8000, 61.3, "tone"), (22050, 3.0, "noise")],
)
def test_ogg_is_exact_to_its_end_and_in_any_order(tmp_path: Path, rate: int, seconds: float, signal: str) -> None:
    # Streams of many pages, the last of which holds from a fifth of a second to four seconds.
    draw = np.random.default_rng(0)
    noise = draw.normal(size=round(rate * seconds)).astype(np.float32) / 10
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise if signal == "noise" else chirp(rate, seconds)[:, 0], rate, format="OGG")
    whole, _ = soundfile.read(path, dtype="float32")
    tail = np.linspace(max(0, len(whole) - 5 * rate), len(whole) - 500, 30).astype(int)
    starts = [*tail, *range(0, len(whole) - 500, len(whole) // 15)]
    with open_sound(path) as sound:
        assert sound.frames == len(whole)
        for start in draw.permutation(starts):
            assert np.abs(sound.read(start, 500)[:, 0] - whole[start : start + 500]).max() <= 2e-4
    last_second = read_excerpt(path, rate, rate, 1.0)[0].numpy()
    assert np.abs(last_second - whole[-rate:]).max() <= 2e-4


def test_an_exact_format_that_ends_early_is_never_filled_with_silence(tmp_path: Path) -> None:
    path = write(tmp_path, "vorbis.ogg", chirp(48000, 2.0), 48000)
    with open_sound(path) as sound:
        short = dataclasses.replace(sound, frames=sound.frames + 100)
        with pytest.raises(ValueError, match="truncated: it declares 96100 samples"):
            _checked(short, 90_000, 6_100)


@pytest.mark.parametrize(
    ("source", "rate"), [(44100, 16000), (8000, 16000), (22050, 16000), (48000, 44100), (96000, 8000), (11025, 12007)]
)
def test_a_resampled_excerpt_is_that_slice_of_the_whole_resampled(tmp_path: Path, source: int, rate: int) -> None:
    path = tmp_path / "noise.wav"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * source + 17, 2)).astype(np.float32)
    soundfile.write(path, samples, source, subtype="FLOAT")
    whole = read_excerpt(path, rate, EVERYTHING, 0.0)
    assert whole.shape == (2, round((3 * source + 17) * rate / source))
    for place in (0.0, 0.31, 0.5, 1.0):
        excerpt = read_excerpt(path, rate, rate // 2, place)
        start = round(place * (whole.shape[1] - rate // 2))
        assert excerpt.shape == (2, rate // 2)
        assert (excerpt - whole[:, start : start + rate // 2]).abs().max() < 1e-5


@pytest.mark.parametrize(("source", "rate"), [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 22050)])
def test_resampling_keeps_frequency_and_amplitude_and_removes_aliases(tmp_path: Path, source: int, rate: int) -> None:
    def tone(frequency: float, at: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * frequency * np.arange(at) / at)

    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1000, source), source, subtype="FLOAT")
    found = read_excerpt(path, rate, rate, 0.0)[0].numpy()
    assert found.shape == (rate,)
    inner = slice(rate // 10, -rate // 10)
    assert np.abs(found - tone(1000, rate))[inner].max() < 1e-3
    if source > 2 * 9000 > rate:
        soundfile.write(path, tone(9000, source), source, subtype="FLOAT")
        assert read_excerpt(path, rate, rate, 0.0)[0, inner].abs().max() < 1e-3


def test_short_files_come_whole_and_one_sample_is_a_sound(tmp_path: Path) -> None:
    for frames in (1, 2, 5, 100):
        soundfile.write(tmp_path / "a.wav", np.full(frames, 0.5), 8000)
        assert read_excerpt(tmp_path / "a.wav", 8000, 8000, 0.5).shape == (1, frames)
        assert read_excerpt(tmp_path / "a.wav", 16000, 8000, 0.5).shape == (1, 2 * frames)
        assert read_excerpt(tmp_path / "a.wav", 1000, 8000, 0.5).shape == (1, max(1, round(frames / 8)))


def wav(body: bytes, rate: int = 8000, channels: int = 1, declared: int | None = None, extra: bytes = b"") -> bytes:
    """A WAV of 16 bits with any header."""
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) % 2**32, (channels * 2) % 2**16, 16)
    data = b"data" + struct.pack("<I", len(body) if declared is None else declared) + body
    inner = b"WAVEfmt " + struct.pack("<I", len(form)) + form + extra + data
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def without_audio(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return path


NAN = np.array([0.1, np.nan, 0.2], np.float32)
DAMAGED = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a sound at all, but text", "not WAV"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not WAV"),
    "playlist": (b"#EXTM3U\n/etc/passwd\n", "not WAV"),
    "no-samples": (wav(b""), "no samples"),
    "no-data-chunk": (wav(b"\1\0" * 50)[:36], "truncated"),
    "slow": (wav(b"\1\0" * 50, rate=10), "10 samples per second"),
    "fast": (wav(b"\1\0" * 50, rate=2_000_000_000), "2000000000 samples per second"),
    "many-channels": (wav(b"\1\0" * 6400, channels=64), "64 channels"),
    "huge": (wav(b"\1\0" * 50, declared=4_000_000_000), "truncated"),
    "piped": (wav(b"\1\0" * 50, declared=0xFFFFFFFF), "does not say how long it is.*encode it again"),
    "broken-flac": (b"fLaC" + bytes(1000), "FLAC file is damaged"),
    "broken-mp3": (b"\xff\xfb" + bytes(range(256)) * 40, "MP3 file is damaged"),
    "broken-mp4": (b"\0\0\0\x18ftypM4A " + bytes(1000), "MP4 file is damaged"),
    "broken-ogg": (b"OggS" + bytes(1000), "truncated"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_bad_files_are_named(tmp_path: Path, kind: str) -> None:
    content, message = DAMAGED[kind]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_excerpt(path, 8000, 8000, 0.5)


def test_samples_that_no_sound_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for bad in (math.nan, math.inf, -math.inf):
        soundfile.write(path, np.array([0.1, bad, 0.2], np.float32), 8000, subtype="FLOAT")
        for rate in (8000, 16000):
            with pytest.raises(ValueError, match="not finite"):
                read_excerpt(path, rate, 8000, 0.5)
    soundfile.write(path, np.array([0.1, 32767, 0.2], np.float32), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="full scale is 1"):
        read_excerpt(path, 8000, 8000, 0.5)


def test_a_video_without_sound_has_no_audio_stream(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no audio stream"):
        read_excerpt(without_audio(tmp_path / "a.m4a"), 8000, 8000, 0.5)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "double.wav"])
def test_truncated_files_are_found_out_wherever_the_excerpt_is(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path, name, chirp(48000, 3.0), 48000)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for place in (0.0, 1.0):
        with pytest.raises(ValueError, match="truncated"):
            read_excerpt(path, 48000, 4800, place)


def test_an_mp4_whose_index_comes_first_is_found_truncated_too(tmp_path: Path) -> None:
    path = write_av(tmp_path / "a.m4a", "aac", chirp(48000, 2.0), 48000, movflags="faststart")
    assert read_excerpt(path, 48000, 100, 0.5).shape == (1, 100)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="truncated"):
        read_excerpt(path, 48000, 100, 0.0)


def test_an_mp3_that_does_not_declare_its_length_is_read_by_estimate(tmp_path: Path) -> None:
    path = write_av(tmp_path / "a.mp3", "libmp3lame", chirp(48000, 2.0), 48000, write_xing="0")
    for place in (0.0, 0.5, 1.0):
        assert read_excerpt(path, 48000, 4800, place).shape == (1, 4800)
    assert read_excerpt(path, 48000, EVERYTHING, 0.0).shape[1] == pytest.approx(96_000, abs=4800)


def test_a_flac_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "pcm_16.flac", chirp(48000, 1.0), 48000)
    content = bytearray(path.read_bytes())
    # STREAMINFO begins at byte 8; the 36 bits of the number of samples end at its byte 18.
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated: it declares 4294967295 samples"):
        read_excerpt(path, 48000, 1000, 0.5)


def test_a_flac_without_its_length_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "pcm_16.flac", chirp(48000, 1.0), 48000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"does not say how long it is.*encode it again"):
        read_excerpt(path, 48000, 1000, 0.5)


def test_an_mp4_with_tags_that_are_not_utf_8_is_read(tmp_path: Path) -> None:
    path = write_av(tmp_path / "a.m4a", "aac", chirp(48000, 1.0), 48000, tags={"title": "XXXXcafeXXXX"})
    content = path.read_bytes()
    assert content.count(b"XXXXcafe") == 1
    path.write_bytes(content.replace(b"XXXXcafe", b"XXXXcaf\xe9"))
    assert read_excerpt(path, 48000, 1000, 0.5).shape == (1, 1000)


def test_chunks_before_and_after_the_samples_are_passed_over(tmp_path: Path) -> None:
    body = struct.pack("<4h", 1000, 2000, 3000, 4000)
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    path = tmp_path / "a.wav"
    path.write_bytes(wav(body, extra=odd) + b"note" + struct.pack("<I", 4) + bytes(4))
    assert (read_excerpt(path, 8000, 8, 0.0)[0] * 32768).tolist() == [1000, 2000, 3000, 4000]


def test_wide_wav_is_read_and_found_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, chirp(8000, 0.5), 8000, format="RF64")
    assert read_excerpt(path, 8000, EVERYTHING, 0.0).shape == (1, 4000)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_excerpt(path, 8000, 100, 0.0)


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", chirp(8000, 0.5), 8000)
    for name in ("a.wav", "a.mp3", "a.m4a", "a"):
        (tmp_path / name).write_bytes((tmp_path / "a.flac").read_bytes())
        assert read_excerpt(tmp_path / name, 8000, EVERYTHING, 0.0).shape == (1, 4000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts the entries of /proc/self/fd")
def test_three_hundred_reads_leave_no_file_open(tmp_path: Path) -> None:
    good = [write(tmp_path, name, chirp(48000, 0.3), 48000) for name in ("pcm_16.wav", "lame.mp3", "aac.m4a")]
    bad = []
    for path in good:
        bad.append(path.with_name(f"cut-{path.name}"))
        bad[-1].write_bytes(path.read_bytes()[:-1000])
    count = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        for path in good:
            read_excerpt(path, 16000, 800, 0.5)
        for path in bad:
            with pytest.raises(ValueError, match="truncated"):
                read_excerpt(path, 16000, 800, 0.5)
    assert len(list(Path("/proc/self/fd").iterdir())) == count
