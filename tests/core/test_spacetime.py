"""Spectra along time agree with sums written out by hand, in physical units."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.spectrum import even_power
from tests.helpers import dense
from tests.helpers.refusals import assert_refused


def correlation(spectrum: ms.Spectrum, grid: ms.Grid) -> np.ndarray:
    """Correlation of the noise at every lag of the periodic grid, from the dense matrix's first row."""
    power = grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy()
    return dense.operator(power)[0].reshape(grid.shape)


@pytest.mark.parametrize("fps", [8, 16, 32])
@pytest.mark.parametrize(("frames", "width", "pixels"), [(6, 12, 2), (6, 12, -2), (5, 10, 2), (4, 8, 0), (7, 7, 3)])
def test_velocity_tuned_noise_is_the_recursion_in_the_moving_frame(frames, width, pixels, fps) -> None:
    # x_n(r) = rho x_{n-1}(r - pixels) + new: only points on the path correlate, by rho to the number of frames between
    # them, summed over all ways around the periodic grid.
    seconds = 0.3
    grid = ms.Grid.of(frame=(frames, 1 / fps, "s"), width=width)
    rho = np.exp(-1 / fps / seconds)
    expected = np.zeros(grid.shape)
    for frame in range(-200 * frames, 201 * frames):
        expected[frame % frames, (pixels * frame) % width] += rho ** abs(frame)
    spectrum = ms.VelocityTuned({"width": pixels * fps}, seconds)
    np.testing.assert_allclose(correlation(spectrum, grid), expected / expected[0, 0], atol=1e-9)


@pytest.mark.parametrize("size", [8000, 7999])
def test_harmonic_stop_leaves_out_the_hum_and_nothing_else(size: int) -> None:
    rate = 8000
    grid = ms.Grid.of(time=(size, 1 / rate, "s"))
    noise = ms.SpectralCovariance(ms.HarmonicStop(50.0, width=2.0, axis="time"), grid).double().sample([3])[0, 0]
    frequency = np.fft.rfftfreq(size, 1 / rate)
    power = np.abs(np.fft.rfft(noise.numpy())) ** 2 / size
    distance = np.abs(frequency - 50 * np.maximum(1, np.round(frequency / 50)))
    stopped = distance <= 1.0 + 1e-6
    assert power[stopped].max() < 1e-12
    assert power[~stopped].min() > 0
    assert noise.square().mean() == pytest.approx(1.0, abs=0.05)
    assert stopped.sum() >= 80


@pytest.mark.parametrize("seconds", [0.31, 0.27])
def test_harmonic_stop_refuses_a_grid_too_short_to_resolve_the_hum(seconds: float) -> None:
    grid = ms.Grid.of(time=(round(8000 * seconds), 1 / 8000, "s"))
    with pytest.raises(ValueError, match="miss harmonics of 50: make width at least that"):
        ms.HarmonicStop(50.0, width=2.0, axis="time").power(grid)
    wide = ms.HarmonicStop(50.0, width=1 / seconds + 0.01, axis="time").power(grid)
    for harmonic in range(1, 80):
        inside = (grid.frequencies("time") - 50 * harmonic).abs() <= (1 / seconds + 0.009) / 2
        assert inside.any(), harmonic
        assert (wide[inside] == 0).all(), harmonic


def test_harmonic_stop_limits_the_number_of_harmonics() -> None:
    grid = ms.Grid.of(time=(1000, 1e-3, "s"))
    power = ms.HarmonicStop(60.0, width=1.0, axis="time", harmonics=2).power(grid)
    assert (power == 0).nonzero().flatten().tolist() == [60, 120]


def test_spectra_along_time_refuse_impossible_parameters() -> None:
    assert_refused(
        ("time_constant must be positive", lambda: ms.VelocityTuned({"width": 1.0}, 0.0)),
        ("other axes", lambda: ms.VelocityTuned({"frame": 1.0}, 1.0)),
        ("finite", lambda: ms.VelocityTuned({"width": float("inf")}, 1.0)),
        ("finite", lambda: ms.VelocityTuned({"width": None}, 1.0)),
        ("0 < width < fundamental", lambda: ms.HarmonicStop(50.0, width=60.0, axis="time")),
        ("harmonics", lambda: ms.HarmonicStop(50.0, width=1.0, axis="time", harmonics=0)),
        ("cutoff", lambda: ms.LowPass(0.0)),
        ("order", lambda: ms.LowPass(1.0, order=2.5)),
        ("finite", lambda: ms.Autoregressive(time_constant=float("inf"), axis="time")),
        ("fundamental", lambda: ms.HarmonicStop(float("inf"), width=1.0, axis="time")),
    )


def test_low_pass_halves_the_power_at_its_cutoff() -> None:
    grid = ms.Grid.of(frame=(16, 1 / 8, "s"), width=16)
    power = ms.LowPass(1.0, order=3, factors={"frame": 0.5, "width": 4.0}).power(grid)
    assert power[0, 0] == 1
    assert power[4, 0] == pytest.approx(0.5)  # 2 Hz
    assert power[0, 4] == pytest.approx(0.5)  # 1/4 cycle per pixel
    assert power[8, 0] == pytest.approx(1 / (1 + 2**6))


RATES = [ms.Grid.of(frame=(2 * fps, 1 / fps, "s"), height=12, width=12) for fps in (8, 16, 32)]
HOPS = [ms.Grid.of(mel=(16, 40.0, "mel"), time=(frames, 5 / frames, "s")) for frames in (300, 600, 900)]
SPACE = ms.PowerLaw(-0.5, axes=("height", "width"), corner=1 / 64)
MEL = ms.PowerLaw(-0.2, axes=("mel",), corner=1e-3)
SAME_POWER = {
    "separable": (SPACE * ms.PowerLaw(-0.4, axes=("frame",), corner=0.25), RATES),
    "joint": (ms.PowerLaw(-0.5, factors={"frame": 0.05, "height": 1.0, "width": 1.0}, corner=1 / 64), RATES),
    "smooth in time": (ms.Gaussian(0.2, axes=("frame",)) + 0.1, RATES),
    "spectrogram": (MEL * ms.PowerLaw(-0.5, axes=("time",), corner=0.5), HOPS),
}


@pytest.mark.parametrize(("spectrum", "grids"), SAME_POWER.values(), ids=SAME_POWER)
def test_covariance_power_ratios_are_equal_at_all_frame_rates_and_hops(spectrum, grids) -> None:
    """Media of one duration, so that all frequencies of the coarsest grid below Nyquist are those of the others too."""
    ratios = []
    for grid in grids:
        power = ms.SpectralCovariance(spectrum, grid).power()
        power = power[:8] if grids is RATES else power[:, :150].T
        ratios.append(power / power[(1,) * grid.dimensions])
    assert all(torch.allclose(other, ratios[0], rtol=1e-12) for other in ratios)


def mirrored(power: torch.Tensor, place: int) -> torch.Tensor:
    """What stands at the frequency of the other sign along an axis of the full spectrum."""
    size = power.shape[place]
    return power.index_select(place, -torch.arange(size) % size)


@pytest.mark.parametrize("sizes", [(4, 4, 5), (5, 4, 6), (4, 6, 4), (3, 2, 3), (2, 5, 2), (6, 2, 1)])
def test_velocity_tuned_noise_of_opposite_velocities_is_mirrored_on_every_axis(sizes):
    """At Nyquist of an axis of even size the frequency is +1/2 and -1/2 at once."""
    grid = ms.Grid.of(**dict(zip(("frame", "height", "width"), sizes, strict=True)))
    compositions = (lambda noise: noise, lambda noise: noise**0.5 * ms.PowerLaw(-0.3), lambda noise: noise + 0.2)
    for axis, compose in product(grid.names, compositions):
        velocity = {name: speed for name, speed in zip(grid.names, (0.4, 1.3, -0.7), strict=True) if name != axis}

        def power(velocity: dict[str, float], axis=axis, compose=compose) -> torch.Tensor:
            spectrum = compose(ms.VelocityTuned(velocity, 2.0, axis=axis))
            return grid.full(ms.SpectralCovariance(spectrum, grid).power())

        here = power(velocity)
        for name in velocity:
            there = power({**velocity, name: -velocity[name]})
            torch.testing.assert_close(mirrored(here, grid.names.index(name)), there, rtol=1e-12, atol=0)
        everywhere = mirrored(mirrored(mirrored(here, 0), 1), 2)
        torch.testing.assert_close(everywhere, here, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(4,), (5,), (4, 6), (4, 5), (5, 4), (2, 4, 6), (4, 3, 4), (4, 4, 5)])
def test_even_power_at_nyquist_is_the_mean_over_both_signs(sizes):
    """Against the formula at every frequency of the full spectrum, with every choice of sign."""
    grid = ms.Grid(tuple(ms.Axis(f"a{i}", size) for i, size in enumerate(sizes)))
    spectrum = ms.VelocityTuned({axis.name: 0.8 - i for i, axis in enumerate(grid.axes[1:])}, 1.5, axis="a0")
    rho = math.exp(-1 / 1.5)
    expected = torch.zeros(grid.shape, dtype=torch.float64)
    for index in product(*(range(size) for size in sizes)):
        places = [k / n if k < n / 2 else k / n - 1 for k, n in zip(index, sizes, strict=True)]
        powers = []
        for signs in product(*((1, -1) if abs(place) == 0.5 else (1,) for place in places)):
            f = [sign * place for sign, place in zip(signs, places, strict=True)]
            phase = 2 * math.pi * (f[0] + sum((0.8 - i) * each for i, each in enumerate(f[1:])))
            powers.append((1 - rho**2) / (1 - 2 * rho * math.cos(phase) + rho**2))
        expected[index] = sum(powers) / len(powers)
    torch.testing.assert_close(grid.full(even_power(spectrum, grid)), expected, rtol=1e-12, atol=0)
