"""Representations of sounds: exact inverses, known values of tones, and axes that keep their physical meaning."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from modalities import mel
from modalities.representation import LOUDEST, LogMel, Representation, Stft, Waveform
from multisagd.radial import PowerLaw
from multisagd.table import Table


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, samples, generator=generator) * 2 - 1


def tone(frequency: float, rate: int, samples: int, amplitude: float = 1.0) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * frequency * time)).float().unsqueeze(0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 127, 1000, 1001, 1024, 16000])
@pytest.mark.parametrize(("window", "hop"), [(512, 128), (256, 128), (64, 17), (512, 256)])
def test_the_stft_is_exactly_invertible(channels: int, samples: int, window: int, hop: int) -> None:
    for power in (0.3, 0.5, 1.0):
        stft = Stft(window=window, hop=hop, power=power, scale=2.0)
        waveform = noise(channels, samples)
        x0 = stft.encode(waveform, 16000)
        assert x0.shape == (2 * channels, *stft.grid(samples, 16000).shape)
        assert x0.shape[0] == stft.channels(channels)
        assert (stft.decode(x0, samples, 16000) - waveform).abs().max() < 1e-5


def test_silence_stays_silence() -> None:
    silence = torch.zeros(1, 4000)
    assert torch.equal(Stft().decode(Stft().encode(silence, 8000), 4000, 8000), silence)
    assert LogMel(bands=20).encode(silence, 8000).unique().tolist() == [-1.0]
    assert LogMel(bands=20).decode(LogMel(bands=20).encode(silence, 8000), 4000, 8000).abs().max() < 1e-6


@pytest.mark.parametrize("window", [256, 512])
def test_a_tone_at_full_scale_has_the_stated_magnitude(window: int) -> None:
    stft = Stft(window=window, power=0.5, scale=3.0)
    for amplitude in (1.0, 0.25):
        # 1 kHz is a frequency of both transforms, bin 1000 / (8000 / window).
        real, imaginary = stft.encode(tone(1000, 8000, 8000, amplitude), 8000)
        magnitude = torch.hypot(real, imaginary)[:, 10:-10]
        assert torch.allclose(magnitude[window // 8], torch.tensor(3 * amplitude**0.5), atol=1e-3)
        assert bool((magnitude.argmax(dim=0) == window // 8).all())


def test_the_transform_is_the_defining_sum() -> None:
    stft = Stft(window=64, hop=16)
    waveform = noise(1, 200).double()
    place, frequency = 5, 7
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(64) / 64)
    segment = waveform[0, place * 16 - 32 : place * 16 + 32]
    phases = -2 * math.pi * frequency * torch.arange(64) / 64
    expected = torch.complex((segment * hann * phases.cos()).sum(), (segment * hann * phases.sin()).sum()) / 16
    assert abs(stft.transform(waveform.float())[0, frequency, place] - expected) < 1e-5


def test_a_wild_tensor_decodes_to_something_finite_and_bounded() -> None:
    wild = 1e18 * noise(2, 257 * 33).reshape(2, 257, 33)
    for power in (0.1, 0.5):
        decoded = Stft(power=power).decode(wild, 4000, 8000)
        assert bool(torch.isfinite(decoded).all())
    assert Waveform().decode(wild[0], 33, 8000).abs().max() == LOUDEST
    assert bool(torch.isfinite(LogMel(bands=20).decode(1e18 * noise(20, 33)[None], 4000, 8000)).all())


def test_the_waveform_is_itself() -> None:
    waveform = noise(2, 100)
    assert torch.equal(Waveform().encode(waveform, 8000), waveform)
    assert torch.allclose(Waveform(scale=5).encode(waveform, 8000), 5 * waveform)
    assert torch.allclose(Waveform(scale=5).decode(5 * waveform, 100, 8000), waveform, atol=1e-6)


def test_mel_bands_are_spaced_as_the_formula_says() -> None:
    found = mel.centres(40, 100.0, 4000.0, 512, 8000)
    hertz = [700 * (10 ** (each / 2595) - 1) for each in found]
    assert len(found) == 42
    assert hertz[0] == pytest.approx(100)
    assert hertz[-1] == pytest.approx(4000)
    assert [b - a for a, b in pairwise(found)] == pytest.approx([found[1] - found[0]] * 41)
    assert 2595 * math.log10(1 + 1000 / 700) == pytest.approx(1000, abs=0.1)
    # Each triangle peaks in the bin nearest its centre, or the one beside it.
    peaks = mel.filters(40, 100.0, 4000.0, 512, 8000).argmax(dim=1) * 8000 / 512
    assert all(abs(float(peak) - centre) < 8000 / 512 for peak, centre in zip(peaks, hertz[1:-1], strict=True))


def test_log_mel_values_are_decibels_of_full_scale() -> None:
    log_mel = LogMel(bands=40, floor_db=-80.0, low=100.0)
    band = 20
    centre = 700 * (10 ** (mel.centres(40, 100.0, 8000.0, 512, 16000)[band + 1] / 2595) - 1)
    for decibels in (0, -20, -40):
        x0 = log_mel.encode(tone(centre, 16000, 16000, 10 ** (decibels / 20)), 16000)
        assert x0.shape == (1, 40, 126)
        inner = x0[0, :, 10:-10]
        assert bool((inner.argmax(dim=0) == band).all())
        # The window spreads a tone over some bins, of which the triangle's slopes hold part.
        assert (40 * (inner[band].mean() - 1)).item() == pytest.approx(decibels, abs=3)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_griffin_lim_comes_near_in_magnitude_and_is_deterministic(rate: int) -> None:
    time = torch.arange(rate) / rate
    glide = sum(torch.sin(2 * math.pi * h * (150 * time + 60 * time**2)) / h for h in range(1, 12))
    waveform = 0.2 * (glide * torch.sin(math.pi * 3 * time) ** 2).unsqueeze(0) + 0.001 * noise(1, rate)
    log_mel = LogMel()
    x0 = log_mel.encode(waveform, rate)
    state = torch.get_rng_state()
    decoded = log_mel.decode(x0, rate, rate)
    assert torch.equal(decoded, log_mel.decode(x0, rate, rate))
    assert torch.equal(state, torch.get_rng_state())
    assert decoded.shape == waveform.shape
    # Spectral convergence of the magnitudes in mel bands, |A - B| / |A|.
    magnitudes = [10 ** (-80 * (1 - x) / 40) for x in (x0, log_mel.encode(decoded, rate))]
    assert (magnitudes[0] - magnitudes[1]).norm() / magnitudes[0].norm() < 0.15
    assert (40 * (x0 - log_mel.encode(decoded, rate))).abs().mean() < 4.0


def test_power_spread_over_frequencies_fills_the_bands() -> None:
    triangles = mel.filters(32, 100.0, 4000.0, 512, 8000)
    power = noise(257, 5).abs()
    found = mel.spread(triangles @ power, triangles, steps=500)
    assert bool((found >= 0).all())
    assert (triangles @ found - triangles @ power).norm() / (triangles @ power).norm() < 0.01


REPRESENTATIONS: list[Representation] = [Stft(), LogMel(), Waveform()]


@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda each: type(each).__name__)
def test_units_and_corners_do_not_depend_on_settings(representation: Representation) -> None:
    described = set()
    for rate in (8000, 16000, 44100):
        for samples in (4000, 16001):
            axes = representation.grid(samples, rate).axes
            described.add(tuple((axis.name, axis.unit, axis.corner) for axis in axes))
    if not isinstance(representation, Waveform):
        for window, hop in ((512, 64), (1024, 512)):
            axes = replace(representation, window=window, hop=hop).grid(16000, 16000).axes  # type: ignore[type-var]
            described.add(tuple((axis.name, axis.unit, axis.corner) for axis in axes))
    assert len(described) == 1
    names = {Stft: ["frequency", "time"], LogMel: ["mel", "time"], Waveform: ["time"]}[type(representation)]
    units = {"frequency": "Hz", "mel": "mel", "time": "s"}
    assert [(name, unit) for name, unit, _ in described.pop()] == [(name, units[name]) for name in names]


def test_spacings_are_physical() -> None:
    frequency, time = Stft(window=512, hop=128).grid(16000, 16000).axes
    assert (frequency.size, frequency.spacing) == (257, 31.25)
    assert (time.size, time.spacing) == (126, 0.008)
    assert Waveform().grid(8000, 8000).axis("time").spacing == 1 / 8000
    band = LogMel(bands=64).grid(16000, 16000).axis("mel")
    assert band.size == 64
    assert band.spacing == pytest.approx(2595 * math.log10((1 + 8000 / 700) / (1 + 60 / 700)) / 65)


def test_a_power_law_means_the_same_at_all_hops_and_rates() -> None:
    law = PowerLaw(-0.5, axes=("time",))
    # One second of frames: multiples of 1 Hz are shared.
    grids = {
        125: Stft(hop=128).grid(16000, 16000).resize((257, 125)),
        250: Stft(hop=64).grid(16000, 16000).resize((257, 250)),
        500: Stft(hop=16, window=64).grid(8000, 8000).resize((33, 500)),
    }
    ratios = []
    for frames, grid in grids.items():
        assert grid.frequencies("time").flatten()[:63].tolist() == pytest.approx(list(range(63))), frames
        power = law.power(grid)[0, :63]
        ratios.append(power / power[10])
    assert torch.allclose(ratios[0], ratios[1])
    assert torch.allclose(ratios[0], ratios[2])
    # Above the corner of 0.5 Hz it is 1/f, below it is flat.
    assert ratios[0][20].item() == pytest.approx(0.5)
    assert ratios[0][0].item() == pytest.approx(10 / 0.5)


def test_a_table_measured_at_one_hop_serves_at_another() -> None:
    coarse = Stft(hop=128).grid(16000, 16000).resize((257, 125))
    fine = Stft(hop=64).grid(16000, 16000).resize((257, 250))
    table = Table(PowerLaw(-0.5, axes=("time",)).power(coarse).clone(), coarse)
    assert torch.allclose(table.power(fine)[:, :62], table.values[:, :62])
    with pytest.raises(ValueError, match="axes"):
        table.power(LogMel().grid(16000, 16000))


def test_covered_counts_the_centres_within_the_sound() -> None:
    stft = Stft(window=64, hop=16)
    for samples in (1, 15, 16, 17, 100, 160):
        centres = [place * 16 for place in range(stft.grid(160, 8000).axis("time").size)]
        assert stft.covered(samples) == sum(centre < samples for centre in centres)
    assert Waveform().covered(77) == 77


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stft(window=511), "window is an even"),
        (lambda: Stft(window=2), "window is an even"),
        (lambda: Stft(hop=257), "hop is from 1 to"),
        (lambda: Stft(hop=0), "hop is from 1 to"),
        (lambda: Stft(power=0.0), "power"),
        (lambda: Stft(power=1.5), "power"),
        (lambda: Stft(scale=-1.0), "scale"),
        (lambda: Waveform(scale=math.inf), "scale"),
        (lambda: LogMel(bands=0), "bands"),
        (lambda: LogMel(low=500, high=400), "low < high"),
        (lambda: LogMel(low=-1), "low"),
        (lambda: LogMel(floor_db=0.0), "floor_db"),
        (lambda: LogMel(high=5000).grid(8000, 8000), "half the rate"),
        (lambda: LogMel(low=5000).grid(8000, 8000), "half the rate"),
        (lambda: LogMel(bands=200).grid(8000, 8000), "too narrow"),
        (lambda: LogMel().grid(511, 8000), "shorter than the window"),
    ],
)
def test_impossible_settings_are_named(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
