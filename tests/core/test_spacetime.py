"""Spectra along time and of directions agree with sums written out by hand, in physical units."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.spectrum import even_power
from tests.helpers import dense
from tests.helpers.refusals import assert_refused


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
    power = grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy()
    correlation = dense.operator(power)[0].reshape(grid.shape)
    np.testing.assert_allclose(correlation, expected / expected[0, 0], atol=1e-9)


@pytest.mark.parametrize("size", [8000, 7999])
def test_harmonic_stop_leaves_out_the_hum_and_nothing_else(size: int) -> None:
    grid = ms.Grid.of(time=(size, 1 / 8000, "s"))
    frequency = np.fft.rfftfreq(size, 1 / 8000)
    for harmonics, most in ((None, 80), (2, 2)):
        number = np.clip(np.round(frequency / 50), 1, most)
        passed = np.abs(frequency - 50 * number) > 1.0 + 1e-6
        power = ms.HarmonicStop(50.0, width=2.0, axis="time", harmonics=harmonics).power(grid)
        np.testing.assert_array_equal(power.numpy(), passed)


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


def test_spectra_of_directions_refuse_impossible_parameters() -> None:
    mixed = ms.Grid.of(frame=(8, 1 / 8, "s"), height=8)
    assert_refused(
        ("mix units", lambda: ms.Spots({"frame": 2.0, "height": 0.25}, 0.5).power(mixed)),
        ("finite angle", lambda: ms.Streaks(math.nan)),
        ("width", lambda: ms.Streaks(0.0, 0.0)),
        ("two axes", lambda: ms.Streaks(0.0, 20.0, ("height",))),
        ("other than zero", lambda: ms.Spots({}, 0.1)),
        ("other than zero", lambda: ms.Spots({"height": 0.0}, 0.1)),
        ("radius", lambda: ms.Spots({"height": 0.1}, -1.0)),
        ("harmonics", lambda: ms.Spots({"height": 0.1}, 0.1, harmonics=0)),
        ("make the radius larger", lambda: ms.Spots({"height": 0.11}, 0.001).power(ms.Grid.of(height=8))),
        ("no axis 'depth'", lambda: ms.Spots({"depth": 0.11}, 0.1).power(ms.Grid.of(height=8))),
        ("time_constant must be positive", lambda: ms.VelocityTuned({"width": 1.0}, 0.0)),
        ("must map axes other than", lambda: ms.VelocityTuned({"frame": 1.0}, 1.0)),
        ("finite", lambda: ms.VelocityTuned({"width": float("inf")}, 1.0)),
        ("finite", lambda: ms.VelocityTuned({"width": None}, 1.0)),
        ("0 < width < fundamental", lambda: ms.HarmonicStop(50.0, width=60.0, axis="time")),
        ("harmonics", lambda: ms.HarmonicStop(50.0, width=1.0, axis="time", harmonics=0)),
        ("cutoff", lambda: ms.LowPass(0.0)),
        ("order", lambda: ms.LowPass(1.0, order=2.5)),
        ("finite", lambda: ms.Autoregressive(time_constant=float("inf"), axis="time")),
        ("fundamental", lambda: ms.HarmonicStop(float("inf"), width=1.0, axis="time")),
    )


@pytest.mark.parametrize(
    "spectrum",
    [
        ms.PowerLaw(-0.5, axes=("height", "width"), corner=1 / 64) * ms.Gaussian(0.2, axes=("frame",)),
        ms.PowerLaw(-0.5, factors={"frame": 0.05, "height": 1.0, "width": 1.0}, corner=1 / 64),
    ],
    ids=["separable", "joint"],
)
def test_covariance_power_ratios_are_equal_at_all_frame_rates(spectrum) -> None:
    """Clips of one duration, so that all frequencies of the slowest one below Nyquist are those of the others too."""
    grids = [ms.Grid.of(frame=(2 * fps, 1 / fps, "s"), height=12, width=12) for fps in (8, 16, 32)]
    powers = [ms.SpectralCovariance(spectrum, grid).power()[:8] for grid in grids]
    for power in powers:
        torch.testing.assert_close(power / power[1, 1, 1], powers[0] / powers[0][1, 1, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(4,), (5,), (4, 6), (4, 5), (5, 4), (2, 4, 6), (4, 3, 4), (4, 4, 5)])
def test_even_power_at_nyquist_is_the_mean_over_both_signs(sizes):
    """Against the formula at every frequency of the full spectrum, with every choice of sign."""
    grid = ms.Grid(tuple(ms.Axis(f"a{i}", size) for i, size in enumerate(sizes)))
    spectrum = ms.VelocityTuned({axis.name: 0.8 - i for i, axis in enumerate(grid.axes[1:])}, 1.5, axis="a0")
    rho = math.exp(-1 / 1.5)
    expected, composed = torch.zeros(2, *grid.shape, dtype=torch.float64)
    for index in product(*(range(size) for size in sizes)):
        places = [k / n if k < n / 2 else k / n - 1 for k, n in zip(index, sizes, strict=True)]
        powers = []
        for signs in product(*((1, -1) if abs(place) == 0.5 else (1,) for place in places)):
            f = [sign * place for sign, place in zip(signs, places, strict=True)]
            phase = 2 * math.pi * (f[0] + sum((0.8 - i) * each for i, each in enumerate(f[1:])))
            powers.append((1 - rho**2) / (1 - 2 * rho * math.cos(phase) + rho**2))
        expected[index] = sum(powers) / len(powers)
        composed[index] = sum(power**0.5 + 0.2 for power in powers) / len(powers)
    torch.testing.assert_close(grid.full(even_power(spectrum**0.5 + 0.2, grid)), composed, rtol=1e-12, atol=0)
    torch.testing.assert_close(grid.full(even_power(spectrum, grid)), expected, rtol=1e-12, atol=0)


WIDE = ms.Grid.of(height=31, width=32)


def bins(power: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(place) for place in power.nonzero().tolist()]


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, -45.0])
def test_streaks_have_the_wedge_of_the_angle_between_wave_vector_and_streaks(angle: float) -> None:
    width = 40.0
    for grid in (WIDE, ms.Grid.of(height=8, width=9), ms.Grid.of(frame=3, height=6, width=5)):
        *_, across, along = dense.frequencies(grid)
        # Streaks at an angle to the width axis (height grows downwards) run along (sin, cos): their waves are
        # orthogonal.
        inside = np.zeros(grid.shape, dtype=bool)
        for one, other in product((1, -1), repeat=2):  # at Nyquist a frequency is its own opposite
            first, second = (np.where(np.isclose(f, -0.5), s * f, f) for f, s in ((across, one), (along, other)))
            off = np.abs((np.degrees(np.arctan2(first, second)) + angle) % 180 - 90)
            inside |= (off <= width / 2 + 1e-9) & (np.hypot(first, second) > 0)
        expected = torch.from_numpy(dense.half(grid, inside.astype(float)))
        assert torch.equal(ms.Streaks(angle, width).power(grid), expected), grid.shape


def test_spots_are_a_wave_and_its_harmonics() -> None:
    grid = ms.Grid.of(frame=(16, 1 / 8, "s"), height=6, width=4)
    inside = ms.Spots({"frame": 1.0}, 0.2, harmonics=3).power(grid) > 0
    frame = grid.frequencies("frame").expand(grid.half_shape).abs()
    flat = ((grid.frequencies("height") == 0) & (grid.frequencies("width") == 0)).expand(grid.half_shape)
    mixed, spot = ms.Grid.of(frame=(8, 1 / 8, "s"), height=8), {"frame": 2.0, "height": 0.25}
    assert float(ms.Spots(spot, 0.05, factors={"frame": 0.1}).power(mixed).sum()) == 1
    assert torch.equal(inside, flat & torch.isin(frame, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))


def test_spots_off_the_axes_come_in_pairs_and_at_nyquist_from_either_side() -> None:
    grid = ms.Grid.of(height=16, width=16)
    spots = ms.Spots({"height": 0.25, "width": 0.125}, 0.01)
    assert bins(grid.full(ms.SpectralCovariance(spots, grid).power())) == [(4, 2), (12, 14)]
    grid = ms.Grid.of(height=20, width=20)
    assert bins(ms.Spots({"height": 0.5, "width": 0.1}, 0.01).power(grid)) == [(10, 2)]
    assert float(ms.Spots({"height": 0.48, "width": 0.1}, 0.04).power(grid)[10, 2]) == 1.0
    for spectrum in (ms.Spots({"height": 0.3, "width": 0.5}, 0.01), ms.Streaks(30.0, 40.0)):
        power = spectrum.power(grid)
        assert torch.equal(grid.even(power), power)
