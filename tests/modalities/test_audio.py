"""Audio loads, levels, masks and saves exactly; representations are inverted and equal librosa; strings are in tune."""

import math
import os
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from omegaconf import OmegaConf
from torch import Tensor

from modalities import constant_q
from modalities.audio import MAX_GAIN, PEAK, RMS, Audio
from modalities.audio_sets import LOWEST, PluckedStrings, pluck
from modalities.base import Modality
from modalities.image import Image
from modalities.representation import LOUDEST, ConstantQ, LogMel, Representation, Stft, Waveform
from modalities.video import Video
from multisagd.grid import Axis
from multisagd.testing import check_modality
from recipes.config.build import Builder
from tests.helpers.refusals import assert_refused

PITCHES = ConstantQ(hop=40, low=110.0, octaves=5)
REPRESENTATIONS: list[Representation] = [
    Stft(window=256, hop=64), LogMel(window=256, hop=64, bands=24), PITCHES, Waveform(),
]  # fmt: skip
each_representation = pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda x: type(x).__name__)


def brief(**options: Any) -> Audio:
    return Audio(**{"rate": 8000, "seconds": 0.25, "representation": Waveform()} | options)


BRIEF, AUDIO = brief(), brief(seconds=0.5)


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
    check_modality(audio, path, None if isinstance(representation, LogMel | ConstantQ) else 1e-3)


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


def test_audio_load_passes_over_excerpts_that_are_quieter_than_their_file(tmp_path: Path) -> None:
    samples = 1e-3 * noise(2, 160_000).numpy().T
    samples[40_000:43_000] += 0.5 * sine(3000)[:, None]
    samples[120_000:121_000] += 0.1 * sine(1000)[:, None]
    path, plain = write(tmp_path / "a.wav", samples), brief()
    levels = [
        [float(each.load(path, seed).square().mean()) for seed in range(30)] for each in (plain, brief(quiet_db=-30))
    ]
    assert min(levels[0]) < 1e-6
    assert sorted(levels[0])[20] < 1e-6
    assert min(levels[1]) > 1e-4
    audio = brief(quiet_db=-30)
    assert len({float(audio.load(path, seed)[0, 0]) for seed in range(30)}) > 3
    for seed in (None, 29, 3):  # in another order
        assert torch.equal(audio.load(path, seed), brief(quiet_db=-30).load(path, seed))
    for seed in range(10):  # steady sounds have no quiet excerpts
        steady = write(tmp_path / "b.wav", 0.1 * sine(20_000))
        assert torch.equal(audio.load(steady, seed), plain.load(steady, seed))
        assert torch.equal(audio.load(write(tmp_path / "c.wav", ramp(900)), seed)[0, :1], torch.tensor([1 / 2**17]))


@pytest.mark.parametrize("length", [100, 20_000, 240_000])
def test_audio_load_refuses_silent_files(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.wav", np.full(length, 1.1e-4))
    BRIEF.load(path, 1)
    for samples in (np.full(length, 0.9e-4), np.zeros(length)):
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
    with pytest.raises(ValueError, match=r"lasts 0\.0875 s, but short=skip requires 0\.25 s"):
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


def test_audio_mixes_channels_in_counter_phase_to_the_loudest(tmp_path: Path) -> None:
    left = noise(1, 2000)[0].numpy()
    cases = [((left, -left), left), ((0 * left, 0.97 * left, -left), -left), ((left, -0.5 * left), 0.25 * left)]
    for channels, expected in cases:
        mixed = BRIEF.load(write(tmp_path / "a.wav", np.stack(channels, axis=-1)))
        assert np.abs(mixed[0].numpy() - expected).max() < 1e-6


def test_audio_encode_refuses_other_shapes() -> None:
    for shape in ((2, 100), (100,), (1, 0), (1, 2001), (1, 1, 100)):
        with pytest.raises(ValueError, match="expected a waveform of shape"):
            BRIEF.encode(torch.zeros(shape))


PHASES = ("stationary", "centred")


@pytest.mark.parametrize(("window", "hop"), [(512, 128), (256, 128), (64, 17), (512, 255), (50, 9)])
def test_stft_is_exactly_invertible(window: int, hop: int) -> None:
    for phase, channels, samples, power in product(PHASES, (1, 2), (1, 127, 1001, 16000), (0.3, 0.5, 1.0)):
        stft = Stft(window=window, hop=hop, power=power, scale=2.0, phase=phase)
        waveform = noise(channels, samples)
        x0 = stft.encode(waveform, 16000)
        assert x0.shape == (2 * channels, *stft.grid(samples, 16000).shape)
        assert x0.shape[0] == stft.channels(channels)
        assert (stft.decode(x0, samples, 16000) - waveform).abs().max() < 1e-5, (phase, channels, samples, power)


@pytest.mark.parametrize(("window", "hop", "power", "scale"), [(256, 61, 1.0, 1.0), (512, 128, 0.5, 3.0)])
def test_stft_equals_librosa_turned_by_its_phase(window: int, hop: int, power: float, scale: float) -> None:
    sound = 0.2 * np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    plain = librosa.stft(sound, n_fft=window, hop_length=hop, window="hann", center=True, pad_mode="constant")
    plain *= 4 / window
    # librosa counts phases from the start of each window.
    starts = np.arange(plain.shape[1]) * hop - window // 2
    for phase, offset in (("stationary", starts), ("centred", starts * 0 - window // 2)):
        turned = plain * np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), offset) / window)
        x0 = Stft(window, hop, power, scale, phase).encode(torch.from_numpy(sound[None]), 8000)[..., : len(starts)]
        np.testing.assert_allclose(
            torch.complex(*x0), scale * turned * np.abs(plain) ** (power - 1), atol=1e-4 * scale, err_msg=phase
        )


@pytest.mark.parametrize(("window", "hop"), [(512, 128), (512, 37), (400, 99)])
def test_stationary_phase_places_tones_at_their_distance_from_a_bin(window: int, hop: int) -> None:
    stft, rate = Stft(window, hop), 16_000
    spacing = rate / window
    for bins in (30, 31, 32, 13.37, 49.85):
        tone = torch.sin(2 * math.pi * bins * spacing * torch.arange(2 * rate, dtype=torch.float64) / rate)
        values = torch.complex(*stft.encode(tone.float()[None], rate).double())[:, 8:-8]
        if bins != round(bins):
            values = values[[round(bins)]]  # it is at another distance from the next bin
        modulation = torch.fft.fftfreq(values.shape[1], hop / rate).abs()
        found = float(modulation[torch.fft.fft(values).abs().square().sum(0).argmax()])
        assert found <= abs(bins - round(bins)) * spacing + float(modulation[1]) * (bins != round(bins)), bins


@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
@pytest.mark.parametrize(("window", "hop"), [(512, 128), (256, 63), (1024, 255), (512, 37)])
def test_phase_gathers_the_power_of_real_sounds_at_low_frequencies_of_one_axis(window: int, hop: int) -> None:
    audio = Path(os.environ["MULTISAGD_DATA"]) / "audio"
    paths = [*sorted(audio.glob("librosa_open/*.ogg")), *sorted(audio.glob("fsdd/recordings/*_0.wav"))[::6]]
    for phase, meant in (("stationary", "time"), ("centred", "frequency")):
        modality, shares = Audio(8000, 1.0, representation=Stft(window, hop, phase=phase)), []
        dim = modality.grid().names.index(meant)
        assert set(modality.meaningless_axes) == set(modality.grid().names) - {meant}
        for path in paths:
            values = torch.complex(*modality.encode(modality.load(path)))
            power = torch.fft.fft(values, dim=dim).abs().square().sum(1 - dim)
            low = torch.fft.fftfreq(len(power)).abs() <= 1 / 8
            shares.append(float(power[low].sum() / power.sum()))
        assert np.mean(shares) >= 0.5, phase


@pytest.mark.parametrize("bands", [20, 40])
def test_log_mel_equals_librosa(bands: int) -> None:
    sound = 0.2 * np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    x0 = LogMel(512, 128, bands, low=60.0, floor_db=-80.0).encode(torch.from_numpy(sound[None]), 8000)[0]
    power = np.abs(librosa.stft(sound, n_fft=512, hop_length=128, pad_mode="constant") * 4 / 512) ** 2
    filters = librosa.filters.mel(sr=8000, n_fft=512, n_mels=bands, fmin=60.0, fmax=4000.0, htk=True, norm=None)
    decibels = 10 * np.log10(np.maximum(filters @ power, 1e-12))
    inner = slice(2, -2)  # windows that do not reach beyond the sound
    np.testing.assert_allclose(x0.numpy()[:, inner], (np.maximum(decibels, -80) / 40 + 1)[:, inner], atol=1e-3)


def test_constant_q_equals_librosa() -> None:
    sound, settings = 0.2 * np.random.default_rng(0).standard_normal(8000).astype(np.float32), PITCHES.settings(8000)
    response = constant_q.response(torch.from_numpy(sound), 40, settings).numpy()
    theirs = librosa.cqt(sound, sr=8000, hop_length=40, fmin=110.0, n_bins=60, tuning=0.0)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=librosa.cqt_frequencies(60, fmin=110.0), sr=8000)
    theirs *= 2 / np.sqrt(lengths)[:, None]
    # librosa halves the rate from octave to octave, by filters that are not ideal.
    assert np.linalg.norm(np.abs(response) - np.abs(theirs)) < 0.05 * np.linalg.norm(theirs)


def test_constant_q_shifts_transposed_sounds() -> None:
    time = torch.arange(16_000) / 16_000
    low, high = (
        sum(torch.sin(2 * math.pi * number * pitch * time) / number for number in (1, 2, 3))
        for pitch in (130.0, 130.0 * 2 ** (7 / 12))
    )
    planes = [ConstantQ().encode(0.3 * tone[None], 16_000)[0, :, 60:-60] for tone in (low, high)]
    loud = planes[0][:-7] > 0  # above -40 dB
    assert (planes[0][:-7] - planes[1][7:])[loud].abs().max() < 1 / 40
    assert (planes[0] - planes[1]).abs().max() > 20 / 40


def test_constant_q_inverts_complex_responses_between_its_lowest_and_highest_filter() -> None:
    spectrum = torch.fft.rfft(0.1 * noise(2, 8000))
    frequency = torch.fft.rfftfreq(8000, 1 / 8000)
    sound = torch.fft.irfft(torch.where((frequency > 130) & (frequency < 2800), spectrum, 0), 8000)
    response = constant_q.response(sound, 16, PITCHES.settings(8000))
    again = constant_q.invert(response, 16, PITCHES.settings(8000))
    assert (again - sound).norm() < 0.05 * sound.norm()


@pytest.mark.parametrize(
    ("representation", "samples", "length"),
    [
        (LogMel(512, 128, bands=32), 4096, 4096),
        (LogMel(512, 256, bands=32), 4097, 4097),
        (LogMel(512, 99, bands=32), 5000, 2321),
        (PITCHES, 4003, 4003),
        (PITCHES, 4000, 2321),
    ],
)
def test_steady_noise_has_one_level_from_the_first_frame_to_the_last(
    representation: LogMel | ConstantQ, samples: int, length: int
) -> None:
    """Also if a recording is shorter than the clip, and after decoding."""
    audio = Audio(8000, samples / 8000, representation=representation, short="mask")
    generator = torch.Generator().manual_seed(0)
    clips = 0.1 * torch.randn(400, 1, length, generator=generator)
    x0 = torch.stack([audio.encode(clip) for clip in clips])
    mask = audio.mask(clips[0])
    data = x0[:, 0] if mask is None else x0[:, 0, :, mask[0, 0]]
    levels, powers = 40 * data.mean((0, 1)), 10 * (10 ** (4 * data)).mean((0, 1)).log10()
    for each in (levels, powers):
        inside = each[len(each) // 4 : -len(each) // 4].mean()
        assert abs(each[0] - inside) < 0.3
        assert abs(each[-1] - inside) < 0.3
    decoded = torch.stack([audio.decode(each) for each in x0[:20]])[:, 0, :length].square().mean(0)
    for end in (decoded[:64], decoded[-256:]) if representation.hop <= 128 else ():
        assert abs(10 * (end.mean() / decoded[1000:-1000].mean()).log10()) < 1.5


@pytest.mark.parametrize("representation", [LogMel(256, 64, bands=32), PITCHES])
def test_decode_keeps_the_place_of_a_click(representation: Representation) -> None:
    audio = Audio(8000, 0.5, representation=representation)
    for place in (40, 700, 3960):
        click = torch.zeros(1, 4000)
        click[0, place] = 0.9
        assert abs(int(audio.decode(audio.encode(click))[0].abs().argmax()) - place) <= 64, place


def test_representations_keep_silence() -> None:
    silence = torch.zeros(1, 4000)
    for each in (Stft(), LogMel(bands=20), PITCHES):
        assert each.decode(each.encode(silence, 8000), 4000, 8000).abs().max() < 1e-6
    assert LogMel(bands=20).encode(silence, 8000).unique().tolist() == [-1.0]


def test_waveform_is_the_scaled_and_limited_sound() -> None:
    waveform, scaled = noise(2, 100), Waveform(scale=5)
    assert torch.equal(scaled.encode(waveform, 8000), 5 * waveform)
    torch.testing.assert_close(scaled.decode(5 * waveform, 100, 8000), waveform)
    assert scaled.decode(1e18 * waveform, 100, 8000).abs().max() == LOUDEST


@pytest.mark.parametrize(
    ("rate", "representation", "error", "decibels"),
    [(8000, LogMel(), 0.15, 4.0), (16000, LogMel(), 0.15, 4.0), (16000, ConstantQ(), 0.15, 4.0)],
)
def test_lossy_decode_comes_near_and_is_deterministic(
    rate: int, representation: Representation, error: float, decibels: float
) -> None:
    time = torch.arange(rate) / rate
    glide = sum(torch.sin(2 * math.pi * h * (150 * time + 60 * time**2)) / h for h in range(1, 12))
    waveform = 0.2 * (glide * torch.sin(math.pi * 3 * time) ** 2).unsqueeze(0) + 0.001 * noise(1, rate)
    x0 = representation.encode(waveform, rate)
    state = torch.get_rng_state()
    decoded = representation.decode(x0, rate, rate)
    assert torch.equal(decoded, representation.decode(x0, rate, rate))
    assert torch.equal(state, torch.get_rng_state())
    again = representation.encode(decoded, rate)
    magnitudes = [10 ** (-80 * (1 - x) / 40) for x in (x0, again)]
    assert (magnitudes[0] - magnitudes[1]).norm() / magnitudes[0].norm() < error
    assert (40 * (x0 - again)).abs().mean() < decibels


def test_representation_grids_have_physical_units_spacings_and_constant_corners() -> None:
    assert type(Audio(rate=8000.0).rate) is int  # type: ignore[arg-type]
    units = {Stft: {"frequency": "Hz", "time": "s"}, LogMel: {"mel": "mel", "time": "s"}, Waveform: {"time": "s"}}
    for kind, expected in units.items():
        grids = [kind().grid(samples, rate) for rate in (8000, 16000, 44100) for samples in (4000, 16001)]
        if kind is not Waveform:
            grids += [kind(window=window, hop=hop).grid(16000, 16000) for window, hop in ((512, 64), (1024, 512))]
        (axes,) = {tuple((axis.name, axis.unit, axis.corner) for axis in grid.axes) for grid in grids}
        assert {name: unit for name, unit, _ in axes} == expected
    frequency, time = Stft(window=512, hop=128).grid(16000, 16000).axes
    assert (frequency.size, frequency.spacing, time.size, time.spacing) == (257, 31.25, 126, 0.008)
    assert Waveform().grid(8000, 8000).axis("time").spacing == 1 / 8000
    octave, time = ConstantQ().grid(16000, 16000).axes
    assert octave == Axis("octave", 72, 1 / 12, "octave", 1 / 3.5)
    assert (time.size, time.spacing, time.corner) == (251, 0.004, 0.5)
    band = LogMel(bands=64).grid(16000, 16000).axis("mel")
    assert band.size == 64
    assert band.spacing == pytest.approx(2595 * math.log10((1 + 8000 / 700) / (1 + 60 / 700)) / 65)


def test_audio_and_representations_refuse_impossible_options() -> None:
    for message, kind, *options in (
        ("rate", Audio, {"rate": 100}, {"rate": 8000.5}),
        ("seconds", Audio, {"seconds": 0.0}, {"seconds": math.inf}, {"seconds": math.nan}),
        ("mono, stereo", Audio, {"mix": "surround"}),
        ("mask, silence, repeat, skip", Audio, {"short": "stretch"}),
        ("keep, peak, rms", Audio, {"loudness": "lufs"}),
        ("silence_db", Audio, {"silence_db": 3.0}),
        ("quiet_db .* loudest part", Audio, {"quiet_db": 0.0}),
        ("shorter than the window", Audio, {"representation": LogMel(window=20_000)}),
        ("too narrow", Audio, {"representation": LogMel(bands=300)}),
        ("half the sample rate", brief, {"representation": LogMel(high=5000)}, {"representation": LogMel(low=5000)}),
        ("above half the sample rate", Audio, {"representation": ConstantQ(octaves=7)}),
        ("increase low to 17 or", Audio, {"representation": ConstantQ(low=15)}),
        ("misses sounds between frames", Audio, {"representation": ConstantQ(hop=71)}),
        ("bins_per_octave", ConstantQ, {"bins_per_octave": 1}),
        ("octaves", ConstantQ, {"octaves": 0}),
        ("low", ConstantQ, {"low": math.inf}),
        ("floor_db", ConstantQ, {"floor_db": 3.0}),
        ("window must be an even", Stft, {"window": 511}, {"window": 2}),
        ("hop must be from 1 to", Stft, {"hop": 257}, {"hop": 0}),
        ("power", Stft, {"power": 0.0}, {"power": 1.5}),
        ("scale", Stft, {"scale": -1.0}),
        ("stationary or centred", Stft, {"phase": "torch"}),
        ("scale", Waveform, {"scale": math.inf}),
        ("bands", LogMel, {"bands": 0}),
        ("low", LogMel, {"low": 500, "high": 400}, {"low": -1}),
        ("floor_db", LogMel, {"floor_db": 0.0}),
    ):
        for each in options:
            with pytest.raises(ValueError, match=message):
                kind(**each)


def test_configurations_hold_the_defaults_of_their_modality() -> None:
    for name, expected in (
        ("audio", Audio(representation=Stft())),
        ("audio_mel", Audio(representation=LogMel())),
        ("audio_cqt", Audio(representation=ConstantQ())),
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
def test_plucked_strings_are_in_tune_with_their_label(rate: int) -> None:
    batch = PluckedStrings(brief(rate=rate, seconds=1.0), count=40).batch(range(40))
    assert len(batch.labels.unique()) > 8
    for label, sound in zip(batch.labels.tolist(), batch.x0[:, 0].double().numpy(), strict=True):
        octaves = LOWEST * 2.0 ** (label / 12 + np.arange(3))
        ratios = [fundamental(sound, rate, frequency) / frequency for frequency in octaves]
        assert any(abs(ratio - 1) < 2 ** (10 / 1200) - 1 for ratio in ratios), f"{label} is off by over 10 cents"


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


def test_plucked_strings_have_the_loudness_representation_and_length_of_the_modality() -> None:
    peaks, levelled = (
        PluckedStrings(brief(loudness=loudness), count=30).batch(range(30)).x0.abs().amax((1, 2))
        for loudness in ("keep", "peak")
    )
    assert 0.9 > peaks.max() > 3 * peaks.min()
    torch.testing.assert_close(levelled, torch.full((30,), PEAK))
    stereo = PluckedStrings(Audio(rate=8000, seconds=0.5, mix="stereo"), count=10)
    assert stereo.batch([0, 1]).x0.shape == (2, 4, 257, 33)
    for samples in (1, 2, 3, 30):
        x0 = PluckedStrings(brief(seconds=samples / 8000), count=8).batch(range(8)).x0
        assert (x0.shape, bool(x0.isfinite().all())) == ((8, 1, samples), True)


def test_plucked_strings_refuse_impossible_options() -> None:
    assert_refused(
        ("must be an Audio", lambda: PluckedStrings(Image())),  # type: ignore[arg-type]
        ("4000 samples per second", lambda: PluckedStrings(brief(rate=2000))),
        ("count", lambda: PluckedStrings(AUDIO, count=0)),
    )
