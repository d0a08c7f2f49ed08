"""The audio modality: excerpts by seed, short recordings, loudness, mixing, masks, and the files that it writes."""

import logging
import math
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from torch import Tensor

from modalities.audio import MAX_GAIN, PEAK, RMS, Audio
from modalities.base import Modality
from modalities.files import Folder
from modalities.representation import LogMel, Representation, Stft, Waveform
from multisagd.testing import check_modality
from recipes.config.build import Builder

BRIEF = Audio(rate=8000, seconds=0.25, representation=Waveform())
REPRESENTATIONS: list[Representation] = [Stft(window=256, hop=64), LogMel(window=256, hop=64, bands=24), Waveform()]


def ids(value: object) -> str:
    return type(value).__name__ if isinstance(value, Representation) else str(value)


def write(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    """Write float samples (length,) or (length, channels), which come back exactly."""
    soundfile.write(path, samples.astype(np.float32), rate, subtype="FLOAT")
    return path


def ramp(length: int) -> np.ndarray:
    """Samples that tell their own place."""
    return (np.arange(length) + 1) / 2**17


@pytest.mark.parametrize(("mix", "short", "length"), [("mono", "mask", 1500), ("stereo", "repeat", 4000)])
@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=ids)
def test_keeps_what_every_modality_promises(tmp_path: Path, representation, mix, short, length: int) -> None:
    audio = Audio(rate=8000, seconds=0.25, mix=mix, representation=representation, short=short)
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(length) / 8000))
    check_modality(audio, path, None if isinstance(representation, LogMel) else 1e-3)


def test_is_a_modality_with_a_grid_in_hertz_and_seconds() -> None:
    audio = Audio()
    assert isinstance(audio, Modality)
    assert (audio.channels, *audio.grid().shape) == (2, 257, 126)
    assert [(axis.name, axis.unit) for axis in audio.grid().axes] == [("frequency", "Hz"), ("time", "s")]
    assert Audio(mix="stereo").channels == 4
    assert Audio(mix="stereo", representation=LogMel()).channels == 2
    assert Audio(rate=44100, seconds=0.1, representation=Waveform()).grid().shape == (4410,)
    assert audio.suffixes[0] == ".wav"
    assert hash(Audio()) == hash(Audio())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 100}, "rate"),
        ({"rate": 8000.5}, "rate"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": math.inf}, "seconds"),
        ({"seconds": math.nan}, "seconds"),
        ({"mix": "surround"}, "mono, stereo"),
        ({"short": "stretch"}, "mask, silence, repeat, skip"),
        ({"loudness": "lufs"}, "keep, peak, rms"),
        ({"silence_db": 3.0}, "silence_db"),
        ({"representation": LogMel(), "seconds": 0.01}, "shorter than the window"),
        ({"representation": LogMel(bands=300)}, "too narrow"),
    ],
)
def test_impossible_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Audio(**options)


def test_a_whole_rate_may_be_written_as_a_float(tmp_path: Path) -> None:
    audio = Audio(rate=8000.0, seconds=0.25)  # type: ignore[arg-type]
    assert audio == Audio(rate=8000, seconds=0.25)
    assert type(audio.rate) is int
    assert audio.encode(audio.load(write(tmp_path / "a.wav", ramp(3000)))).shape == (2, *audio.grid().shape)


@pytest.mark.parametrize("loudness", ["peak", "rms"])
def test_the_softest_sounds_can_be_levelled(loudness) -> None:
    audio = Audio(rate=8000, loudness=loudness, silence_db=None)
    for size in (1e-25, 1e-40):  # of which squares are 0, and which float32 holds with few digits
        sound = torch.full((1, 100), size)
        torch.testing.assert_close(audio.level(sound), sound * MAX_GAIN)


@pytest.mark.parametrize("mix", ["mono", "stereo"])
@pytest.mark.parametrize(("rate", "seconds"), [(8000, 1.0), (16000, 0.1), (22050, 0.3001), (44100, 0.2), (8000, 0.001)])
def test_the_default_decodes_exactly(rate: int, seconds: float, mix) -> None:
    audio = Audio(rate=rate, seconds=seconds, mix=mix)
    generator = torch.Generator().manual_seed(0)
    sound = torch.rand(audio.sound_channels, audio.samples, generator=generator) * 2 - 1
    x0 = audio.encode(sound)
    assert x0.dtype == torch.float32
    assert x0.shape == (audio.channels, *audio.grid().shape)
    assert (audio.decode(x0) - sound).abs().max() < 1e-5
    assert (audio.decode(x0.double().requires_grad_()) - sound).abs().max() < 1e-5


def test_wav_round_trip_and_the_picture_beside_it(tmp_path: Path) -> None:
    audio = Audio(rate=8000, seconds=0.5, mix="stereo")
    generator = torch.Generator().manual_seed(0)
    for length in (4000, 1234):
        sound = torch.rand(2, length, generator=generator) * 2 - 1
        sound[0, :2] = torch.tensor([1.0, -1.0])
        audio.save(sound, tmp_path / "new" / "a.wav")
        with soundfile.SoundFile(tmp_path / "new" / "a.wav") as file:
            assert (file.samplerate, file.channels, file.subtype, file.frames) == (8000, 2, "PCM_16", length)
        assert (audio.load(tmp_path / "new" / "a.wav") - sound).abs().max() <= 1 / 32768
        with PIL.Image.open(tmp_path / "new" / "a.png") as picture:
            picture.load()
            assert min(picture.size) > 100
    again = audio.load(tmp_path / "new" / "a.wav")
    audio.save(again, tmp_path / "b.wav")
    assert torch.equal(audio.load(tmp_path / "b.wav"), again)


def test_clipping_is_counted_and_bad_sounds_are_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="multisagd"):
        BRIEF.save(torch.tensor([[0.5, 1.0, -1.0]]), tmp_path / "a.wav")
        assert not caplog.records
        BRIEF.save(torch.tensor([[0.5, 1.5, -2.0]]), tmp_path / "a.wav")
    assert "2 of 3 samples" in caplog.text
    assert BRIEF.load(tmp_path / "a.wav")[0].tolist() == [0.5, 32767 / 32768, -1.0]
    with pytest.raises(ValueError, match="not finite"):
        BRIEF.save(torch.tensor([[0.5, math.nan]]), tmp_path / "b.wav")
    with pytest.raises(ValueError, match=r"\.wav"):
        BRIEF.save(torch.zeros(1, 10), tmp_path / "b.mp3")


def test_a_grid_is_a_picture_and_one_sound(tmp_path: Path) -> None:
    audio = Audio(rate=8000, seconds=0.25, mix="stereo")
    sounds = [torch.full((2, length), level) for length, level in ((2000, 0.25), (500, 0.5), (2000, -0.25))]
    audio.save_grid(sounds, tmp_path / "new" / "grid.png")
    with PIL.Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.format == "PNG"
    samples, rate = soundfile.read(tmp_path / "new" / "grid.wav", dtype="float32")
    assert rate == 8000
    assert samples.shape == (4500 + 3 * 2000, 2)
    assert np.all(samples[:2000] == 0.25)
    assert np.all(samples[2000:4000] == 0)
    assert np.all(samples[4000:4500] == 0.5)
    with pytest.raises(ValueError, match="at least one"):
        audio.save_grid([], tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"\.png"):
        audio.save_grid(sounds, tmp_path / "a.jpg")


def test_excerpts_follow_the_seed_and_are_exact(tmp_path: Path) -> None:
    samples = ramp(20_000)
    path = write(tmp_path / "a.wav", samples)
    audio = Audio(rate=8000, seconds=0.25, representation=Waveform(), silence_db=None)
    starts = []
    for seed in range(40):
        sound = audio.load(path, seed)
        assert torch.equal(sound, audio.load(path, seed))
        start = round(float(sound[0, 0]) * 2**17) - 1
        assert np.array_equal(sound[0].numpy(), samples[start : start + 2000].astype(np.float32))
        starts.append(start)
    assert len(set(starts)) > 35
    assert min(starts) < 3000
    assert max(starts) > 15_000
    assert audio.load(path)[0].tolist() == samples[9000:11_000].astype(np.float32).tolist()


def test_another_excerpt_is_taken_where_one_is_silent(tmp_path: Path) -> None:
    samples = np.zeros(20_000)
    samples[:6000] = 0.5
    path = write(tmp_path / "a.wav", samples)
    for seed in (None, *range(10)):
        assert BRIEF.load(path, seed).abs().max() == 0.5
        assert torch.equal(BRIEF.load(path, seed), BRIEF.load(path, seed))
    keeping = Audio(rate=8000, seconds=0.25, representation=Waveform(), silence_db=None)
    assert keeping.load(path).abs().max() == 0


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("place", [0, 3, 25_000, 200_000, 239_000, 239_999])
def test_whether_a_file_is_refused_does_not_depend_on_the_seed(tmp_path: Path, place: int, rate: int) -> None:
    # Half a minute of silence but for a moment, which hardly an excerpt of a quarter second holds.
    samples = np.zeros(240_000)
    samples[place : place + 4] = 0.5
    path = write(tmp_path / "a.wav", samples)
    audio = Audio(rate=rate, seconds=0.25, representation=Waveform())
    for seed in (None, *range(12)):
        sound = audio.load(path, seed)
        assert sound.shape == (1, audio.samples)
        assert 0.2 < sound.abs().max() < 0.8
        assert torch.equal(audio.load(path, seed), sound)
    write(path, np.zeros(240_000))
    for seed in (None, *range(3)):
        with pytest.raises(ValueError, match="silent"):
            audio.load(path, seed)


def test_a_folder_reads_the_same_whatever_was_read_before(tmp_path: Path) -> None:
    for number in range(4):
        samples = np.zeros(160_000)
        samples[40_000 * number : 40_000 * number + 1000] = 0.5
        write(tmp_path / f"{number}.wav", samples)
    fresh, used = (Folder(BRIEF, tmp_path, max_unreadable=0.9) for _ in range(2))
    for seed in range(10):
        used.batch(range(4), [seed] * 4)
    assert torch.equal(used.batch(range(4), [77] * 4).x0, fresh.batch(range(4), [77] * 4).x0)
    assert not used.unreadable


@pytest.mark.parametrize("length", [100, 20_000])
def test_silent_files_are_refused_unless_wanted(tmp_path: Path, length: int) -> None:
    for level, silent in ((0.0, True), (0.9e-4, True), (1.1e-4, False)):
        path = write(tmp_path / "a.wav", np.full(length, level))
        if silent:
            with pytest.raises(ValueError, match="silent"):
                BRIEF.load(path, 1)
        else:
            BRIEF.load(path, 1)
        Audio(rate=8000, silence_db=None, loudness="rms").load(path)
    # What cancels out in the mix is silent in it.
    opposite = write(tmp_path / "b.wav", np.stack([np.full(length, 0.5), np.full(length, -0.5)], axis=-1))
    with pytest.raises(ValueError, match="silent"):
        BRIEF.load(opposite)


@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=ids)
def test_masks_cover_what_is_sound(representation: Representation) -> None:
    audio = Audio(rate=8000, seconds=0.25, representation=representation)
    spacing = audio.grid().axis("time").spacing * 8000
    for length in (1, 63, 64, 65, 1000, 1999):
        mask = audio.mask(torch.ones(1, length))
        assert mask is not None
        assert mask.shape == (1, *audio.grid().shape)
        assert mask.dtype == torch.bool
        expected = torch.arange(mask.shape[-1]) * spacing < length
        assert bool((mask == expected).all())
    assert audio.mask(torch.ones(1, 2000)) is None


def test_what_is_masked_is_silence_and_what_is_not_is_the_sound() -> None:
    audio = Audio(rate=8000, seconds=0.25, representation=Stft(window=64, hop=16))
    sound = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0))
    x0, mask = audio.encode(sound), audio.mask(sound)
    assert mask is not None
    # Frames further than half a window from the sound hold nothing.
    assert x0[..., 66:].abs().max() == 0
    assert bool((x0[:, :, mask[0, 0]].abs().sum(dim=(0, 1)) > 0).all())


def test_short_recordings_are_masked_padded_repeated_or_refused(tmp_path: Path) -> None:
    samples = ramp(700)
    path = write(tmp_path / "a.wav", samples + 0.1)

    def made(short) -> tuple[Tensor, Tensor | None]:
        audio = Audio(rate=8000, seconds=0.25, representation=Waveform(), short=short)
        media = audio.load(path)
        assert media.shape == (1, 700)
        assert audio.decode(audio.encode(media)).shape == (1, 2000)
        return audio.encode(media)[0], audio.mask(media)

    exact = torch.from_numpy((samples + 0.1).astype(np.float32))
    padded = torch.cat([exact, torch.zeros(1300)])
    x0, mask = made("mask")
    assert torch.equal(x0, padded)
    assert mask is not None
    assert int(mask.sum()) == 700
    x0, mask = made("silence")
    assert torch.equal(x0, padded)
    assert mask is None
    x0, mask = made("repeat")
    assert torch.equal(x0, exact.repeat(3)[:2000])
    assert mask is None
    with pytest.raises(ValueError, match=r"lasts 0\.0875 s and short=skip needs 0\.25 s"):
        made("skip")
    full = write(tmp_path / "b.wav", ramp(2000))
    assert Audio(rate=8000, seconds=0.25, representation=Waveform(), short="skip").load(full).shape == (1, 2000)


def test_loudness_sets_the_gain_and_never_clips(tmp_path: Path) -> None:
    time = np.arange(2000) / 8000
    tone = write(tmp_path / "tone.wav", 0.01 * np.sin(2 * np.pi * 1000 * time + 0.5))
    spike = np.full(2000, 0.001)
    spike[7] = 0.5
    clicks = write(tmp_path / "clicks.wav", spike)
    faint = write(tmp_path / "faint.wav", np.full(2000, 2e-4))

    def loaded(path: Path, loudness) -> Tensor:
        return Audio(rate=8000, seconds=0.25, loudness=loudness).load(path)

    assert loaded(tone, "keep").abs().max().item() == pytest.approx(0.01, rel=0.1)
    assert loaded(tone, "peak").abs().max().item() == pytest.approx(PEAK)
    assert loaded(tone, "rms").square().mean().sqrt().item() == pytest.approx(RMS, rel=1e-4)
    # The peak limits the gain: the root mean square asked for would have clipped.
    assert loaded(clicks, "rms").abs().max().item() == pytest.approx(PEAK)
    assert loaded(faint, "peak").abs().max().item() == pytest.approx(2e-4 * MAX_GAIN)
    loud = write(tmp_path / "loud.wav", np.full(2000, 3.0))
    assert loaded(loud, "peak").abs().max().item() == pytest.approx(PEAK)
    # Padding does not count: the level is that of the sound alone.
    brief = write(tmp_path / "brief.wav", 0.01 * np.sin(2 * np.pi * 1000 * time[:400]))
    assert loaded(brief, "rms").square().mean().sqrt().item() == pytest.approx(RMS, rel=1e-4)


def test_channels_are_mixed_as_documented(tmp_path: Path) -> None:
    left, right = ramp(2000), 0.3 - ramp(2000)
    two = write(tmp_path / "two.wav", np.stack([left, right], axis=-1))
    one = write(tmp_path / "one.wav", left)
    six = write(tmp_path / "six.wav", np.stack([left * n for n in range(6)], axis=-1))
    mono, stereo = (Audio(rate=8000, seconds=0.25, mix=mix, representation=Waveform()) for mix in ("mono", "stereo"))  # type: ignore[arg-type]
    assert torch.allclose(mono.load(two), torch.full((1, 2000), 0.15), atol=1e-6)
    assert np.allclose(stereo.load(two).numpy(), [left, right])
    assert np.allclose(stereo.load(one).numpy(), [left, left])
    assert np.allclose(mono.load(six)[0].numpy(), 2.5 * left, atol=1e-6)
    with pytest.raises(ValueError, match="6 channels"):
        stereo.load(six)


def test_files_of_other_rates_are_as_long_as_they_last(tmp_path: Path) -> None:
    for rate in (8000, 11025, 44100, 48000):
        path = write(tmp_path / "a.wav", 0.5 * np.ones(rate), rate)
        audio = Audio(rate=16000, seconds=2.0)
        assert audio.load(path).shape == (1, 16000)
        assert Audio(rate=16000, seconds=0.5).load(path, 3).shape == (1, 8000)


@pytest.mark.parametrize("shape", [(2, 100), (100,), (1, 0), (1, 2001), (1, 1, 100)])
def test_encode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a sound of shape"):
        BRIEF.encode(torch.zeros(shape))


def test_a_diverged_sample_is_refused() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="diverged"):
            BRIEF.decode(torch.full((1, 2000), bad))


def test_a_folder_of_sounds_gives_batches_with_masks_and_reports(tmp_path: Path) -> None:
    for name, length in (("bark/a.wav", 2000), ("bark/b.wav", 500), ("meow/c.flac", 3000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 + ramp(length), 8000)
    (tmp_path / "meow" / "d.mp3").write_bytes(b"")
    folder = Folder(BRIEF, tmp_path, max_unreadable=0.3)
    batch = folder.batch(range(4), seeds=range(4))
    assert folder.classes == ("bark", "meow")
    assert batch.x0.shape == (4, 1, 2000)
    assert batch.mask is not None
    assert int(batch.mask[1].sum()) == 500
    assert bool(batch.mask[0].all())
    assert folder.unreadable == {"meow/d.mp3": "ValueError: the file is empty"}


def test_real_recordings_are_read_exactly_inverted_and_in_range() -> None:
    root = os.environ.get("MULTISAGD_DATA")
    if not root:
        pytest.skip("MULTISAGD_DATA is not set: it names the folder that holds audio/fsdd and audio/librosa_open")
    folder = Path(root, "audio")
    files = [*sorted(folder.glob("fsdd/recordings/*.wav"))[::150], *sorted(folder.glob("librosa_open/*.ogg"))]
    if not files:
        pytest.skip(f"{folder} holds no recordings")
    audio = Audio()
    values = []
    for path in files:
        sound = audio.load(path, 1)
        x0 = audio.encode(sound)
        assert (audio.decode(x0)[:, : sound.shape[1]] - sound).abs().max() < 1e-5
        values.append(x0.abs().flatten())
    share = float((torch.cat(values) <= 1).float().mean())
    assert share > 0.998


@pytest.mark.parametrize(("name", "kind"), [("audio", Stft), ("audio_mel", LogMel), ("audio_waveform", Waveform)])
def test_presets_build_the_defaults(name: str, kind: type[Representation]) -> None:
    from omegaconf import OmegaConf

    path = Path(__file__).parents[2] / "configs" / "modality" / f"{name}.yaml"
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert Builder().build(node, Modality, "modality") == Audio(representation=kind())  # type: ignore[arg-type, type-abstract]
