"""Audio loads excerpts by seed, mixes, levels, masks and saves exactly; plucked strings are in tune and labelled."""

import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from torch import Tensor

from modalities.audio import MAX_GAIN, PEAK, RMS, Audio
from modalities.audio_sets import LOWEST, PluckedStrings, pluck
from modalities.base import Modality
from modalities.image import Image
from modalities.representation import LogMel, Representation, Stft, Waveform
from modalities.video import Video
from multisagd.testing import check_modality
from recipes.config.build import Builder

BRIEF = Audio(rate=8000, seconds=0.25, representation=Waveform())
AUDIO = Audio(rate=8000, seconds=0.5, representation=Waveform())
REPRESENTATIONS: list[Representation] = [Stft(window=256, hop=64), LogMel(window=256, hop=64, bands=24), Waveform()]
each_representation = pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda x: type(x).__name__)


def brief(**options: Any) -> Audio:
    return Audio(**{"rate": 8000, "seconds": 0.25, "representation": Waveform()} | options)


def write(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    """Write float samples (length,) or (length, channels), which are read back exactly."""
    soundfile.write(path, samples.astype(np.float32), rate, subtype="FLOAT")
    return path


def ramp(length: int) -> np.ndarray:
    """Samples that show their own position."""
    return (np.arange(length) + 1) / 2**17


def noise(channels: int, samples: int) -> Tensor:
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sine(length: int, frequency: float = 440) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(length) / 8000 + 0.5)


@pytest.mark.parametrize(("mix", "short", "length"), [("mono", "mask", 1500), ("stereo", "repeat", 4000)])
@each_representation
def test_audio_is_a_conforming_modality(tmp_path: Path, representation, mix, short, length: int) -> None:
    audio = brief(mix=mix, representation=representation, short=short)
    path = write(tmp_path / "a.wav", 0.5 * sine(length))
    check_modality(audio, path, None if isinstance(representation, LogMel) else 1e-3)


def test_audio_has_a_grid_in_hertz_and_seconds() -> None:
    audio, whole = Audio(), brief(rate=8000.0)
    assert (audio.channels, *audio.grid().shape) == (2, 257, 126)
    assert [(axis.name, axis.unit) for axis in audio.grid().axes] == [("frequency", "Hz"), ("time", "s")]
    assert [Audio(mix="stereo", representation=kind()).channels for kind in (Stft, LogMel)] == [4, 2]
    assert (whole, type(whole.rate)) == (BRIEF, int)


def test_audio_refuses_impossible_options() -> None:
    for message, *options in (
        ("rate", {"rate": 100}, {"rate": 8000.5}),
        ("seconds", {"seconds": 0.0}, {"seconds": math.inf}, {"seconds": math.nan}),
        ("mono, stereo", {"mix": "surround"}),
        ("mask, silence, repeat, skip", {"short": "stretch"}),
        ("keep, peak, rms", {"loudness": "lufs"}),
        ("silence_db", {"silence_db": 3.0}),
        ("shorter than the window", {"representation": LogMel(window=20_000)}),
        ("too narrow", {"representation": LogMel(bands=300)}),
    ):
        for each in options:
            with pytest.raises(ValueError, match=message):
                Audio(**each)


def test_audio_save_writes_16_bit_wav_and_a_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio, path = Audio(rate=8000, seconds=0.5, mix="stereo"), tmp_path / "new" / "a.wav"
    for length in (4000, 1234):
        sound = noise(2, length)
        sound[0, :2] = torch.tensor([1.0, -1.0])
        audio.save(sound, path)
        with soundfile.SoundFile(path) as file:
            assert (file.samplerate, file.channels, file.subtype, file.frames) == (8000, 2, "PCM_16", length)
        again = audio.load(path)
        assert (again - sound).abs().max() <= 1 / 32768
        with PIL.Image.open(path.with_suffix(".png")) as picture:
            picture.load()
            assert min(picture.size) > 100
    audio.save(again, path)
    assert torch.equal(audio.load(path), again)
    assert not caplog.records
    # Clipped samples are counted, and bad ones are refused.
    BRIEF.save(torch.tensor([[0.5, 1.5, -2.0]]), path)
    assert "2 of 3 samples" in caplog.text
    assert BRIEF.load(path)[0].tolist() == [0.5, 32767 / 32768, -1.0]
    with pytest.raises(ValueError, match="not finite"):
        BRIEF.save(torch.tensor([[0.5, math.nan]]), path)
    with pytest.raises(ValueError, match=r"\.wav"):
        BRIEF.save(torch.zeros(1, 10), tmp_path / "b.mp3")


def test_audio_save_grid_writes_a_picture_and_one_sound(tmp_path: Path) -> None:
    audio, path = brief(mix="stereo", representation=Stft()), tmp_path / "new" / "grid.png"
    sounds = [torch.full((2, length), level) for length, level in ((2000, 0.25), (500, 0.5), (2000, -0.25))]
    audio.save_grid(sounds, path)
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
    samples, rate = soundfile.read(path.with_suffix(".wav"), dtype="float32")
    assert (rate, samples.shape) == (8000, (4500 + 3 * 2000, 2))
    for start, stop, level in ((0, 2000, 0.25), (2000, 4000, 0), (4000, 4500, 0.5)):
        assert np.all(samples[start:stop] == level), start
    with pytest.raises(ValueError, match="at least one"):
        audio.save_grid([], tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"\.png"):
        audio.save_grid(sounds, tmp_path / "a.jpg")


def test_audio_load_takes_exact_excerpts_by_seed(tmp_path: Path) -> None:
    samples = ramp(20_000)
    path, audio = write(tmp_path / "a.wav", samples), brief(silence_db=None)
    starts = []
    for seed in range(40):
        sound = audio.load(path, seed)
        assert torch.equal(sound, audio.load(path, seed))
        start = round(float(sound[0, 0]) * 2**17) - 1
        assert np.array_equal(sound[0].numpy(), samples[start : start + 2000].astype(np.float32))
        starts.append(start)
    assert len(set(starts)) > 35
    assert min(starts) < 3000 < 15_000 < max(starts)
    assert audio.load(path)[0].tolist() == samples[9000:11_000].astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("place", "rate"),
    [(0, 8000), (3, 16_000), (25_000, 8000), (200_000, 16_000), (239_000, 8000), (239_999, 16_000)],
)
def test_audio_load_finds_a_sound_with_every_seed(tmp_path: Path, place: int, rate: int) -> None:
    # Half a minute of silence except for a moment, which few excerpts of a quarter of a second contain.
    samples = np.zeros(240_000)
    samples[place : place + 4] = 0.5
    path, audio = write(tmp_path / "a.wav", samples), brief(rate=rate)
    for seed in (None, *range(12)):
        sound = audio.load(path, seed)
        assert sound.shape == (1, audio.samples)
        assert 0.2 < sound.abs().max() < 0.8
        assert torch.equal(audio.load(path, seed), sound)
    assert brief(silence_db=None).load(path).abs().max() == 0


@pytest.mark.parametrize("length", [100, 20_000, 240_000])
def test_audio_load_refuses_silent_files(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.wav", np.full(length, 1.1e-4))
    BRIEF.load(path, 1)
    # Channels that cancel in the mix are silent in it.
    opposite = 0.5 * np.stack([np.ones(length), -np.ones(length)], axis=-1)
    for samples in (opposite, np.full(length, 0.9e-4), np.zeros(length)):
        write(path, samples)
        for seed in (None, 0, 1, 2):
            with pytest.raises(ValueError, match="silent"):
                BRIEF.load(path, seed)
        brief(silence_db=None, loudness="rms", representation=Stft()).load(path)
    with pytest.raises(ValueError, match="silent"):
        brief(rate=16_000).load(path, 0)


@each_representation
def test_audio_mask_covers_the_sound(representation: Representation) -> None:
    audio = brief(representation=representation)
    spacing = audio.grid().axis("time").spacing * 8000
    for length in (1, 63, 64, 65, 1000, 1999):
        mask = audio.mask(torch.ones(1, length))
        assert mask is not None
        assert (mask.shape, mask.dtype) == ((1, *audio.grid().shape), torch.bool)
        assert bool((mask == (torch.arange(mask.shape[-1]) * spacing < length)).all()), length
    assert audio.mask(torch.ones(1, 2000)) is None


def test_audio_short_recordings_are_masked_padded_repeated_or_refused(tmp_path: Path) -> None:
    samples = (ramp(700) + 0.1).astype(np.float32)
    path, full = write(tmp_path / "a.wav", samples), write(tmp_path / "b.wav", ramp(2000))
    exact = torch.from_numpy(samples)
    padded = torch.cat([exact, torch.zeros(1300)])
    cases = [("mask", padded, 700), ("silence", padded, None), ("repeat", exact.repeat(3)[:2000], None)]
    for short, expected, valid in cases:
        audio = brief(short=short)
        media = audio.load(path)
        assert torch.equal(media, exact[None]), short
        assert torch.equal(audio.encode(media), expected[None]), short
        again = audio.decode(audio.encode(media).double().requires_grad_())
        torch.testing.assert_close(again, expected[None], msg=short)
        mask = audio.mask(media)
        assert (None if mask is None else int(mask.sum())) == valid, short
    with pytest.raises(ValueError, match=r"lasts 0\.0875 s, but short=skip needs 0\.25 s"):
        brief(short="skip").load(path)
    assert brief(short="skip").load(full).shape == (1, 2000)


def test_audio_loudness_sets_the_gain_and_never_clips(tmp_path: Path) -> None:
    def load(samples: np.ndarray, loudness: str) -> Tensor:
        return brief(loudness=loudness, representation=Stft()).load(write(tmp_path / "a.wav", samples))

    def rms(sound: Tensor) -> float:
        return sound.square().mean().sqrt().item()

    tone, spike = 0.01 * sine(2000, 1000), np.full(2000, 0.001)
    spike[7] = 0.5
    assert load(tone, "keep").abs().max().item() == pytest.approx(0.01, rel=0.1)
    assert load(tone, "peak").abs().max().item() == pytest.approx(PEAK)
    assert rms(load(tone, "rms")) == pytest.approx(RMS, rel=1e-4)
    # The peak limits the gain: the root mean square alone would clip.
    assert load(spike, "rms").abs().max().item() == pytest.approx(PEAK)
    assert load(np.full(2000, 2e-4), "peak").abs().max().item() == pytest.approx(2e-4 * MAX_GAIN)
    assert load(np.full(2000, 3.0), "peak").abs().max().item() == pytest.approx(PEAK)
    assert rms(load(tone[:400], "rms")) == pytest.approx(RMS, rel=1e-4)  # without the padding
    for loudness in ("peak", "rms"):
        for size in (1e-25, 1e-40):  # their squares are 0, and float32 holds them with few digits
            sound = torch.full((1, 100), size)
            torch.testing.assert_close(brief(loudness=loudness, silence_db=None).level(sound), sound * MAX_GAIN)


def test_audio_mixes_channels_to_mono_and_stereo(tmp_path: Path) -> None:
    left, right = ramp(2000), 0.3 - ramp(2000)
    one = write(tmp_path / "one.wav", left)
    two = write(tmp_path / "two.wav", np.stack([left, right], axis=-1))
    six = write(tmp_path / "six.wav", np.stack([left * n for n in range(6)], axis=-1))
    stereo = brief(mix="stereo")
    assert torch.allclose(BRIEF.load(two), torch.full((1, 2000), 0.15), atol=1e-6)
    assert np.allclose(stereo.load(two).numpy(), [left, right])
    assert np.allclose(stereo.load(one).numpy(), [left, left])
    assert np.allclose(BRIEF.load(six)[0].numpy(), 2.5 * left, atol=1e-6)
    with pytest.raises(ValueError, match="6 channels"):
        stereo.load(six)


def test_audio_refuses_other_shapes_and_diverged_samples() -> None:
    for shape in ((2, 100), (100,), (1, 0), (1, 2001), (1, 1, 100)):
        with pytest.raises(ValueError, match="expected a waveform of shape"):
            BRIEF.encode(torch.zeros(shape))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="diverged"):
            BRIEF.decode(torch.full((1, 2000), bad))


@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
def test_audio_inverts_real_recordings_exactly_and_in_range() -> None:
    root = Path(os.environ["MULTISAGD_DATA"], "audio")
    files = [*sorted((root / "fsdd/recordings").glob("*.wav"))[::150], *(root / "librosa_open").glob("*.ogg")]
    audio, values = Audio(), []
    for path in files:
        sound = audio.load(path, 1)
        x0 = audio.encode(sound)
        assert (audio.decode(x0)[:, : sound.shape[1]] - sound).abs().max() < 1e-5
        values.append(x0.abs().flatten())
    assert float((torch.cat(values) <= 1).float().mean()) > 0.998


def test_configurations_hold_the_defaults_of_their_modality() -> None:
    for name, expected in (
        ("audio", Audio(representation=Stft())),
        ("audio_mel", Audio(representation=LogMel())),
        ("audio_waveform", Audio(representation=Waveform())),
        ("video", Video()),
    ):
        node = OmegaConf.to_container(OmegaConf.load(files("configs") / f"modality/{name}.yaml"))
        assert Builder().build(node, Modality, "modality") == expected, name


def fundamental(sound: np.ndarray, rate: int, near: float) -> float:
    """The peak of the spectrum within a semitone of `near`, between bins by a parabola."""
    spectrum = np.log(np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound))) + 1e-12)
    bins = np.arange(len(spectrum)) * rate / (8 * len(sound))
    inside = np.flatnonzero((bins > near * 0.94) & (bins < near * 1.06))
    top = inside[spectrum[inside].argmax()]
    a, b, c = spectrum[top - 1 : top + 2]
    return float((top + 0.5 * (a - c) / (a - 2 * b + c)) * rate / (8 * len(sound)))


@pytest.mark.parametrize("rate", [4000, 8000, 16000, 44100])
def test_pluck_is_in_tune(rate: int) -> None:
    for note in (0, 7, 18, 29, 35):
        frequency = LOWEST * 2 ** (note / 12)
        sound = pluck(frequency, 4.0, 0.3, 1.0, rate, rate, np.random.default_rng(0))
        cents = 1200 * math.log2(fundamental(sound, rate, frequency) / frequency)
        assert abs(cents) < 10, note


def test_pluck_is_its_recursion_sample_by_sample() -> None:
    rate, frequency, decay, samples = 8000, 440.0, 1.0, 400
    sound = pluck(frequency, decay, 0.25, 1.0, rate, samples, np.random.default_rng(3))
    # One sample at a time: the average, the all-pass and the loss, fed by the same burst through the same comb.
    delay = math.floor(rate / frequency - 0.6)
    rest, angle = rate / frequency - 0.5 - delay, math.pi * frequency / rate
    tune = math.sin(angle * (1 - rest)) / math.sin(angle * (1 + rest))
    burst = np.zeros(samples)
    burst[:delay] = np.random.default_rng(3).uniform(-1, 1, delay)
    burst[:delay] -= burst[:delay].mean()
    comb = [burst[n] - (burst[n - 5] if n >= 5 else 0.0) for n in range(samples)]  # a quarter of 18.18 samples
    string = np.zeros(samples)
    last_average = last_tuned = 0.0
    for n in range(samples):
        now, before = (string[n - delay - k] if n >= delay + k else 0.0 for k in (0, 1))
        average = (now + before) / 2
        tuned = tune * average + last_average - tune * last_tuned
        last_average, last_tuned = average, tuned
        string[n] = comb[n] + 10 ** (-3 / (frequency * decay)) * tuned
    assert np.allclose(sound, string, atol=1e-9)


def test_plucked_strings_depend_on_seed_and_index_alone() -> None:
    strings, other_seed = PluckedStrings(AUDIO, count=30), PluckedStrings(AUDIO, count=30, seed=1)
    assert (len(strings), len(strings.classes)) == (30, 12)
    assert torch.equal(strings.example(7).x0, PluckedStrings(AUDIO, count=8).example(7).x0)
    assert not torch.equal(strings.example(7).x0, other_seed.example(7).x0)
    part = strings.subset([4, 7]).subset([1])
    assert torch.equal(part.example(0).x0, strings.example(7).x0)
    assert part.example(0).label == strings.example(7).label
    assert len({each.fingerprint for each in (strings, part, other_seed)}) == 3
    assert strings.fingerprint == PluckedStrings(AUDIO, count=30).fingerprint
    for index in (-1, 30):
        with pytest.raises(IndexError, match=str(index)):
            strings.example(index)


def test_plucked_strings_have_the_pitch_of_their_label() -> None:
    batch = PluckedStrings(brief(seconds=1.0), count=40).batch(range(40))
    assert len(batch.labels.unique()) > 8
    for label, sound in zip(batch.labels.tolist(), batch.x0[:, 0].double().numpy(), strict=True):
        spectrum = np.abs(np.fft.rfft(sound, 4 * len(sound)))
        # The partials of the right pitch class outweigh those of the class half an octave off.
        right, wrong = (
            max(sum(spectrum[round(4 * LOWEST * 2 ** (label / 12 + octave) * h)] for h in (1, 2, 3)) for octave in each)
            for each in (np.arange(3), np.arange(3) + 0.5)
        )
        assert right > wrong


def test_plucked_strings_augmentation_only_delays_the_pluck() -> None:
    strings = PluckedStrings(AUDIO, count=4)
    plain = strings.example(2).x0[0]
    onsets = set()
    for seed in range(12):
        delayed = strings.example(2, seed).x0[0]
        assert torch.equal(delayed, strings.example(2, seed).x0[0])
        onset = int(delayed.ne(0).nonzero()[0] - plain.ne(0).nonzero()[0])
        assert 0 <= onset <= 400
        assert torch.equal(delayed[onset:], plain[: 4000 - onset])
        onsets.add(onset)
    assert len(onsets) > 8


def test_plucked_strings_vary_in_loudness_unless_the_modality_levels_it() -> None:
    plain, level = (
        PluckedStrings(brief(seconds=0.5, loudness=loudness), count=30).batch(range(30)).x0.abs().amax(dim=(1, 2))
        for loudness in ("keep", "peak")
    )
    assert plain.max() <= 0.9
    assert plain.max() / plain.min() > 3
    assert torch.allclose(level, level[:1])


def test_plucked_strings_have_any_representation_and_length() -> None:
    stereo = PluckedStrings(Audio(rate=8000, seconds=0.5, mix="stereo"), count=10)
    assert stereo.batch([0, 1]).x0.shape == (2, 4, 257, 33)
    for samples in (1, 2, 3, 30):
        x0 = PluckedStrings(brief(seconds=samples / 8000), count=8).batch(range(8)).x0
        assert (x0.shape, bool(x0.isfinite().all())) == ((8, 1, samples), True)


def test_plucked_strings_refuse_impossible_options() -> None:
    for modality, count, message in (
        (Image(), 10, "must be an Audio"),
        (Audio(rate=2000, representation=Waveform()), 10, "4000 samples per second"),
        (AUDIO, 0, "count"),
    ):
        with pytest.raises(ValueError, match=message):
            PluckedStrings(modality, count=count)  # type: ignore[arg-type]
