"""Sound files of every format are read exactly at any rate, and each kind of damage is refused with its reason."""

import dataclasses
import io
import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from modalities.audio_files import _checked, open_audio, read_excerpt
from tests.helpers.numbered_clips import write_numbered

EVERYTHING = 10**9


def chirp(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """A rising tone, shape (samples, channels), which differs from moment to moment and from channel to channel."""
    time = np.arange(round(rate * seconds)) / rate
    tone = 0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) * np.sin(np.pi * time / seconds)
    return np.stack([tone / (channel + 1) for channel in range(channels)], axis=-1).astype(np.float32)


CONTAINERS = {
    "m4a": "ipod", "mp3": "mp3", "oga": "ogg", "aac": "adts", "mka": "matroska", "webm": "webm", "avi": "avi",
    "caf": "caf", "wma": "asf",
}  # fmt: skip
SAMPLES = {"alac": "s16p", "flac": "s16", "pcm_s16le": "s16", "libopus": "flt"}


def encode_av(
    codec: str, frames: np.ndarray, rate: int = 48000, title: str = "", ending: str = "m4a", **options: str
) -> bytes:
    """Encode frames (samples, channels) by FFmpeg, as a file with this ending."""
    layout = ("mono", "stereo")[frames.shape[1] - 1]
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=CONTAINERS[ending], options=options) as container:
            container.metadata["title"] = title
            quality = {"flags": "+qscale", "global_quality": "236"} if "write_xing" in options else {}
            stream = container.add_stream(codec, rate=rate, layout=layout, options=quality)
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(frames.T), format="fltp", layout=layout)
            sound.sample_rate, sound.pts = rate, 0
            convert = av.AudioResampler(format=SAMPLES.get(codec, "fltp"), layout=layout, rate=rate)
            for frame in convert.resample(sound) + convert.resample(None):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return Path(file.name).read_bytes()


def encode(name: str, frames: np.ndarray, rate: int = 48000) -> bytes:
    """Encode frames as the ending of `name` says; the part before it names the kind of samples."""
    kind, ending = name.split(".")
    if ending in CONTAINERS and kind != "mpeg_layer_iii":
        return encode_av("libmp3lame" if kind == "lame" else kind, frames, rate, ending=ending)
    file = io.BytesIO()
    soundfile.write(file, frames, rate, kind.upper(), format="OGG" if ending == "opus" else ending.upper())
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# Largest error of the samples: half a step of integers, and what lossy codecs make of a chirp.
FORMATS = {
    "pcm_u8.wav": 1 / 128, "pcm_16.wav": 1 / 32768, "pcm_24.wav": 1 / 2**23, "pcm_32.wav": 1e-7, "float.wav": 0.0,
    "double.wav": 1e-7, "ulaw.wav": 0.02, "ms_adpcm.wav": 0.1, "pcm_16.flac": 1 / 32768, "pcm_24.flac": 1 / 2**23,
    "pcm_16.aiff": 1 / 32768, "vorbis.ogg": 0.05, "opus.opus": 0.1, "mpeg_layer_iii.mp3": 0.05, "lame.mp3": 0.05,
    "aac.m4a": 0.05, "alac.m4a": 1 / 32768, "flac.oga": 1 / 32768, "aac.mka": 0.05, "flac.mka": 1 / 32768,
    "libopus.webm": 0.1, "pcm_s16le.avi": 1 / 32768, "alac.caf": 1 / 32768,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_read_excerpt_reads_every_format(tmp_path: Path, name: str) -> None:
    for channels in (1, 2):
        frames = chirp(48000, 1.0, channels)
        path = write(tmp_path / name, encode(name, frames))
        with open_audio(path) as sound:
            assert (sound.rate, sound.channels) == (48000, channels)
            assert sound.frames == pytest.approx(48000, abs=0 if FORMATS[name] < 0.01 else 2500)
        whole = read_excerpt(path, 48000, EVERYTHING, 0.0)
        assert whole.dtype == torch.float32
        assert whole.shape[0] == channels
        assert whole.is_contiguous()
        assert (whole[:, :48000] - torch.from_numpy(frames.T)[:, : whole.shape[1]]).abs().max() <= FORMATS[name]
    ending = name.split(".")[1]
    whole = read_excerpt(write(path, encode(name, chirp(48000, 2.0))), 48000, EVERYTHING, 0.0)
    # Decoders of lossy formats start afresh at an excerpt and agree with themselves within rounding.
    tolerance = 2e-3 if ending == "webm" else 2e-4 if FORMATS[name] == 0.05 or ending == "opus" else 0.0
    for place in (0.0, 0.3, 0.5, 0.77, 1.0):
        excerpt = read_excerpt(path, 48000, 10_000, place)
        start = round(place * (whole.shape[1] - 10_000))
        assert excerpt.shape == (1, 10_000)
        assert (excerpt - whole[:, start : start + 10_000]).abs().max() <= tolerance, place


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "double.wav"])
def test_read_excerpt_refuses_truncated_files_wherever_the_excerpt_is(tmp_path: Path, name: str) -> None:
    content = encode(name, chirp(48000, 3.0))
    for share in (0.5, 0.95):
        path = write(tmp_path / name, content[: int(share * len(content))])
        for place in (0.0, 1.0):
            with pytest.raises(ValueError, match="truncated"):
                read_excerpt(path, 48000, 4800, place)


@pytest.mark.parametrize(
    ("rate", "seconds", "signal"),
    [(44100, 4.0, "noise"), (8000, 30.0, "noise"), (8000, 61.3, "tone"), (22050, 3.0, "noise")],
)
def test_open_sound_reads_ogg_exactly_in_any_order(tmp_path: Path, rate: int, seconds: float, signal: str) -> None:
    # Streams of many pages, the last of which holds from a fifth of a second to four seconds.
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(round(rate * seconds), 1)).astype(np.float32) / 10
    content = encode("vorbis.ogg", noise if signal == "noise" else chirp(rate, seconds), rate)
    path = write(tmp_path / "a.ogg", content)
    whole, _ = soundfile.read(path, dtype="float32")
    tail = np.linspace(max(0, len(whole) - 5 * rate), len(whole) - 500, 30).astype(int)
    starts = [*tail, *range(0, len(whole) - 500, len(whole) // 15)]
    with open_audio(path) as sound:
        assert sound.frames == len(whole)
        for start in draw.permutation(starts):
            assert np.abs(sound.read(start, 500)[:, 0] - whole[start : start + 500]).max() <= 2e-4
        # An early end is never filled with silence.
        longer = dataclasses.replace(sound, frames=sound.frames + 100)
        with pytest.raises(ValueError, match=f"truncated: it declares {len(whole) + 100} samples"):
            _checked(longer, len(whole) - 6_000, 6_100)
    last_second = read_excerpt(path, rate, rate, 1.0)[0].numpy()
    assert np.abs(last_second - whole[-rate:]).max() <= 2e-4


@pytest.mark.parametrize(
    ("source", "rate"),
    [(44100, 16000), (8000, 16000), (22050, 16000), (48000, 44100), (96000, 8000), (11025, 12007), (16000, 22050)],
)
def test_read_excerpt_resamples_excerpts_like_the_whole(tmp_path: Path, source: int, rate: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * source + 17, 2)).astype(np.float32)
    path = write(tmp_path / "a.wav", encode("float.wav", samples, source))
    whole = read_excerpt(path, rate, EVERYTHING, 0.0)
    assert whole.shape == (2, round((3 * source + 17) * rate / source))
    for place in (0.0, 0.31, 0.5, 1.0):
        excerpt = read_excerpt(path, rate, rate // 2, place)
        start = round(place * (whole.shape[1] - rate // 2))
        assert excerpt.shape == (2, rate // 2)
        assert (excerpt - whole[:, start : start + rate // 2]).abs().max() < 1e-5
    # Frequency and amplitude are kept, and aliases removed.
    for frequency in (1000, 9000) if source > 2 * 9000 > rate else (1000,):
        tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(source) / source)
        expected = 0.5 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate) * (frequency == 1000)
        resampled = read_excerpt(write(path, encode("float.wav", tone, source)), rate, rate, 0.0)[0].numpy()
        assert resampled.shape == (rate,)
        assert np.abs(resampled - expected)[rate // 10 : -rate // 10].max() < 1e-3


def test_read_excerpt_returns_short_files_whole(tmp_path: Path) -> None:
    for frames in (1, 2, 5, 100):
        path = write(tmp_path / "a.wav", encode("pcm_16.wav", np.full(frames, 0.5), 8000))
        for rate, samples in ((8000, frames), (16000, 2 * frames), (1000, max(1, round(frames / 8)))):
            assert read_excerpt(path, rate, 8000, 0.5).shape == (1, samples)


def wav(body: bytes = bytes(100), rate: int = 8000, channels: int = 1, declared: int = -1, extra: bytes = b"") -> bytes:
    """A WAV of 16 bits with any header."""
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * channels * 2) % 2**32, (channels * 2) % 2**16, 16)
    data = b"data" + struct.pack("<I", len(body) if declared < 0 else declared) + body
    inner = b"WAVEfmt " + struct.pack("<I", len(form)) + form + extra + data
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def flac(length: int, seconds: float = 1.0) -> bytes:
    """A FLAC file that declares `length` samples: the last 36 bits of bytes 21 to 25."""
    content = bytearray(encode("pcm_16.flac", chirp(48000, seconds)))
    content[21] = content[21] & 0xF0
    content[22:26] = length.to_bytes(4, "big")
    return bytes(content)


FASTSTART = {"movflags": "faststart"}  # the index comes first
DAMAGED: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a sound at all, but text", "none of the formats WAV"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "none of the formats WAV"),
    "playlist": (b"#EXTM3U\n/etc/passwd\n", "none of the formats WAV"),
    "no-samples": (wav(b""), "no samples"),
    "no-data-chunk": (wav()[:36], "truncated"),
    "slow": (wav(rate=10), "10 samples per second"),
    "fast": (wav(rate=2_000_000_000), "2000000000 samples per second"),
    "many-channels": (wav(bytes(12_800), channels=64), "64 channels"),
    "huge": (wav(declared=4_000_000_000), "truncated"),
    "broken-flac": (b"fLaC" + bytes(1000), "FLAC file is damaged"),
    "broken-mp3": (b"\xff\xfb" + bytes(range(256)) * 40, "MP3 file is damaged"),
    "broken-mp4": (b"\0\0\0\x18ftypM4A " + bytes(1000), r"no index \(moov\)"),
    "broken-ogg": (b"OggS" + bytes(1000), "truncated"),
    "nan": (lambda: encode("float.wav", np.float32([0.1, math.nan]), 8000), "not finite"),
    "infinite": (lambda: encode("float.wav", np.float32([0.1, -math.inf]), 8000), "not finite"),
    "integers-as-floats": (lambda: encode("float.wav", np.float32([0.1, 32767]), 8000), "full scale is 1"),
    "long-flac": (lambda: flac(0xFFFFFFFF), "truncated: it declares 4294967295 samples"),
    "truncated-faststart-mp4": (lambda: encode_av("aac", chirp(48000, 2.0), **FASTSTART)[:-3000], "truncated"),
    "silent-video": (lambda: write_numbered(io.BytesIO(), count=3, format="mp4").getvalue(), "no audio stream"),
    "truncated-rf64": (lambda: encode("pcm_16.rf64", chirp(8000, 0.5), 8000)[:-100], "truncated"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_read_excerpt_refuses_damaged_files(tmp_path: Path, kind: str) -> None:
    content, message = DAMAGED[kind]
    path = write(tmp_path / "bad.wav", content if isinstance(content, bytes) else content())
    for rate in (8000, 16000):
        with pytest.raises(ValueError, match=message):
            read_excerpt(path, rate, 8000, 0.5)


def unset(kind: str, mark: bytes, value: int, wide: int = 0) -> bytes:
    """A sound of 3 s whose header has `value` as the number of bytes behind `mark`, as if its recorder had died."""
    content = bytearray(encode(kind, chirp(48000, 3.0)))
    at = content.index(mark) + 4 + wide
    content[4:8], content[at : at + 4 + wide // 3] = bytes(4), struct.pack("<I", value) + bytes(wide // 3)
    return bytes(content)


UNSTATED: dict[str, Callable[[], bytes]] = {
    "pcm_16.wav": lambda: unset("pcm_16.wav", b"data", 0),
    "ms_adpcm.wav": lambda: unset("ms_adpcm.wav", b"data", 0),
    "float.wav": lambda: unset("float.wav", b"data", 0xFFFFFFFF),
    "pcm_24.wav": lambda: unset("pcm_24.wav", b"data", 0x7FFFF000),
    "pcm_16.rf64": lambda: unset("pcm_16.rf64", b"ds64", 0, wide=12),
    "pcm_16.aiff": lambda: unset("pcm_16.aiff", b"SSND", 0),
    "pcm_16.flac": lambda: flac(0, seconds=3.0),
}


@pytest.mark.parametrize("kind", UNSTATED)
def test_read_excerpt_reads_files_without_a_length_to_their_end(tmp_path: Path, kind: str) -> None:
    whole = read_excerpt(write(tmp_path / "whole", encode(kind, chirp(48000, 3.0))), 48000, EVERYTHING, 0.0)
    path = write(tmp_path / "a", UNSTATED[kind]())
    read = read_excerpt(path, 48000, EVERYTHING, 0.0)
    assert torch.equal(read[:, : whole.shape[1]], whole)
    assert read.shape[1] - whole.shape[1] < 1024  # of blocks
    assert torch.equal(read_excerpt(path, 48000, 500, 1.0), read[:, -500:])


@pytest.mark.parametrize("name", ["vorbis.ogg", "opus.opus", "flac.oga"])
def test_read_excerpt_reads_ogg_streams_that_were_joined(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2 * 96000, 1)).astype(np.float32)
    parts = [encode(name, half) for half in np.split(noise, 2)]
    halves = [read_excerpt(write(tmp_path / name, part), 48000, EVERYTHING, 0.0) for part in parts]
    write(tmp_path / name, b"".join(parts))
    assert (read_excerpt(tmp_path / name, 48000, EVERYTHING, 0.0) - torch.cat(halves, dim=1)).abs().max() < 2e-4
    seam = read_excerpt(tmp_path / name, 48000, 10_000, 0.5)
    assert (seam - torch.cat([half[:, cut] for half, cut in zip(halves, SEAM, strict=True)], 1)).abs().max() < 2e-4
    write(tmp_path / name, parts[0] + encode(name, noise[:9600], 24000))
    with pytest.raises(ValueError, match="different rates"):
        read_excerpt(tmp_path / name, 48000, 100, 0.0)


SEAM = slice(-5000, None), slice(5000)
STATED_A_LITTLE_WRONG = {"counts its header": 44, "padding": 1, "written to a pipe": 0x7FFFFFFF - 36}


@pytest.mark.parametrize("mistake", STATED_A_LITTLE_WRONG)
def test_read_excerpt_reads_wav_whose_length_is_a_little_wrong(tmp_path: Path, mistake: str) -> None:
    samples, number = np.arange(1000, dtype="<i2"), STATED_A_LITTLE_WRONG[mistake]
    path = write(tmp_path / "a.wav", wav(samples.tobytes(), declared=number if number > 2000 else 2000 + number))
    assert (read_excerpt(path, 8000, 2000, 0.0)[0] * 32768).tolist() == samples.tolist()


def test_read_excerpt_reads_or_names_other_encodings_in_wav(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", encode("gsm610.wav", chirp(8000, 1.0), 8000))
    assert np.corrcoef(read_excerpt(path, 8000, 8000, 0.0)[0], chirp(8000, 1.0)[:, 0])[0, 1] > 0.9
    content = bytearray(wav())
    content[20:22] = struct.pack("<H", 0x2001)
    with pytest.raises(ValueError, match="DTS"):
        read_excerpt(write(path, content), 8000, 100, 0.0)


def test_read_excerpt_counts_frames_of_mp3_that_misstate_their_length(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).normal(0, 0.2, (48000, 1)).clip(-1, 1).astype(np.float32)
    sparse = np.concatenate([dense, 1e-3 * chirp(48000, 3.0)])
    stream = encode_av("libmp3lame", sparse, ending="mp3", write_xing="0")
    joined = encode("lame.mp3", dense) + encode("lame.mp3", 1e-3 * chirp(48000, 3.0))
    for content in (stream, joined):
        read = read_excerpt(write(tmp_path / "a.mp3", content), 48000, EVERYTHING, 0.0)
        assert read.shape[1] == pytest.approx(4 * 48000, abs=5000)
        assert read[:, : 48000 - 3000].std() > 0.1 > 0.01 > read[:, 48000 + 3000 :].std()


def test_read_excerpt_reads_mp3_up_to_its_tags_without_a_message(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    plain = encode("lame.mp3", chirp(48000, 3.0))
    whole = read_excerpt(write(tmp_path / "a.mp3", plain), 48000, EVERYTHING, 0.0)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 40_032, 1, 1 << 31) + bytes(8)
    tags = ape + b"\xff\xfb\x90" * 13_333 + b"\0" + ape, b"LYRICSBEGIN" + b"000011LYRICS200", b"TAG" + bytes(125)
    for tail in (tags[0], tags[0] + tags[1] + tags[2], tags[2]):
        write(tmp_path / "a.mp3", plain + tail)
        assert torch.equal(read_excerpt(tmp_path / "a.mp3", 48000, EVERYTHING, 0.0), whole)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["aac.m4a", "lame.mp3", "vorbis.ogg", "opus.opus", "aac.aac", "aac.mka"])
def test_read_excerpt_reads_the_first_samples_of_every_codec(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (24000, 1))
    frames = np.apply_along_axis(np.convolve, 0, noise, np.hanning(32) / 8, mode="same").astype(np.float32)
    start = read_excerpt(write(tmp_path / name, encode(name, frames)), 48000, 24000, 0.0)[0, :1024]
    assert np.corrcoef(start, frames[:1024, 0])[0, 1] > 0.9
    assert float(start[:432].std()) == pytest.approx(frames[:432].std(), rel=0.3)


def test_read_excerpt_reads_unusual_headers_and_names(tmp_path: Path) -> None:
    # FLAC after a tag of ID3.
    content = b"ID3\4\0\0\0\0\0\2ab" + encode("pcm_16.flac", chirp(48000, 1.0))
    assert read_excerpt(write(tmp_path / "a.flac", content), 48000, EVERYTHING, 0.0).shape == (1, 48000)
    path = write(tmp_path / "a.m4a", encode_av("aac", chirp(48000, 2.0), **FASTSTART))
    assert read_excerpt(path, 48000, 100, 0.5).shape == (1, 100)
    # A title that is not UTF-8.
    content = encode_av("aac", chirp(48000, 1.0), title="XXXXcafeXXXX")
    assert content.count(b"XXXXcafe") == 1
    path = write(tmp_path / "a.m4a", content.replace(b"XXXXcafe", b"XXXXcaf\xe9"))
    assert read_excerpt(path, 48000, 1000, 0.5).shape == (1, 1000)
    # Chunks before and after the samples.
    odd, note = b"LIST" + struct.pack("<I", 3) + b"abc\0", b"note" + struct.pack("<I", 4) + bytes(4)
    path = write(tmp_path / "a.wav", wav(struct.pack("<4h", 1000, 2000, 3000, 4000), extra=odd) + note)
    assert (read_excerpt(path, 8000, 8, 0.0)[0] * 32768).tolist() == [1000, 2000, 3000, 4000]
    # Content decides, not the name.
    for kind in ("pcm_16.rf64", "pcm_16.flac"):
        for name in ("a.wav", "a.mp3", "a.m4a", "a"):
            path = write(tmp_path / name, encode(kind, chirp(8000, 0.5), 8000))
            assert read_excerpt(path, 8000, EVERYTHING, 0.0).shape == (1, 4000), (kind, name)
