"""Spectra along time against sums written out by hand, in physical units."""

import itertools
import math

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.spectrum import even_power
from tests.helpers import dense


def correlation(spectrum: ms.Spectrum, grid: ms.Grid) -> np.ndarray:
    """Correlation of the noise at every lag of the periodic grid, from the dense matrix's first row."""
    power = grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy()
    return dense.operator(power)[0].reshape(grid.shape)


@pytest.mark.parametrize(("frames", "width", "pixels"), [(6, 12, 2), (6, 12, -2), (5, 10, 2), (4, 8, 0), (7, 7, 3)])
def test_drifting_noise_is_the_recursion_in_the_moving_frame(frames: int, width: int, pixels: int) -> None:
    # x_n(r) = rho x_{n-1}(r - pixels) + new: only points on the path correlate, by rho to the number of frames between
    # them, summed over all ways around the periodic grid.
    fps, seconds = 8.0, 0.3
    grid = ms.Grid.of(frame=(frames, 1 / fps, "s"), width=width)
    rho = np.exp(-1 / fps / seconds)
    expected = np.zeros(grid.shape)
    for turn in range(-60, 61):
        for lag in range(frames):
            frame = lag + turn * frames
            expected[lag, (pixels * frame) % width] += rho ** abs(frame)
    expected /= expected[0, 0]
    spectrum = ms.VelocityTuned({"width": pixels * fps}, seconds)
    np.testing.assert_allclose(correlation(spectrum, grid), expected, atol=1e-9)


def test_drifting_noise_in_three_dimensions_follows_both_axes() -> None:
    grid = ms.Grid.of(frame=(8, 0.5, "s"), height=8, width=8)
    found = correlation(ms.VelocityTuned({"height": 2.0, "width": -4.0}, 5.0), grid)
    # One frame is half a second: one pixel down and two to the left.
    assert np.unravel_index(found[1].argmax(), (8, 8)) == (1, 6)
    assert np.unravel_index(found[3].argmax(), (8, 8)) == (3, 2)
    rho = np.exp(-0.1)
    assert found[1].max() == pytest.approx((rho + rho**7) / (1 + rho**8), abs=1e-9)


def test_without_velocity_drifting_noise_is_autoregressive() -> None:
    grid = ms.Grid.of(frame=(9, 0.1, "s"), height=4, width=5)
    still = ms.VelocityTuned({"height": 0.0}, 0.4).power(grid)
    assert torch.allclose(still, ms.Autoregressive(time_constant=0.4, axis="frame").power(grid), rtol=0, atol=1e-14)


def test_shared_and_independent_noise_has_the_papers_variances() -> None:
    # PYoCo's mixed noise: shared and own part with variances alpha²/(1 + alpha²) and 1/(1 + alpha²).
    alpha = 2.0
    grid = ms.Grid.of(frame=5, height=3, width=4)
    found = correlation(ms.Flat() + ms.Offset(alpha, axes=("frame",)), grid)
    expected = np.zeros(grid.shape)
    expected[:, 0, 0] = alpha**2 / (1 + alpha**2)
    expected[0, 0, 0] = 1
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("size", [8000, 7999])
def test_the_stop_leaves_out_the_hum_and_nothing_else(size: int) -> None:
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
def test_a_grid_too_short_to_tell_the_hum_apart_is_refused(seconds: float) -> None:
    grid = ms.Grid.of(time=(round(8000 * seconds), 1 / 8000, "s"))
    with pytest.raises(ValueError, match="miss harmonics of 50: make width at least that"):
        ms.HarmonicStop(50.0, width=2.0, axis="time").power(grid)
    wide = ms.HarmonicStop(50.0, width=1 / seconds + 0.01, axis="time").power(grid)
    frequency = grid.frequencies("time")
    for harmonic in range(1, 80):
        inside = (frequency - 50 * harmonic).abs() <= (1 / seconds + 0.009) / 2
        assert inside.any()
        assert (wide[inside] == 0).all()


def test_the_number_of_harmonics_can_be_limited() -> None:
    grid = ms.Grid.of(time=(1000, 1e-3, "s"))
    power = ms.HarmonicStop(60.0, width=1.0, axis="time", harmonics=2).power(grid)
    assert (power == 0).nonzero().flatten().tolist() == [60, 120]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms.VelocityTuned({"width": 1.0}, 0.0), "time_constant must be positive"),
        (lambda: ms.VelocityTuned({"frame": 1.0}, 1.0), "other axes"),
        (lambda: ms.VelocityTuned({"width": float("inf")}, 1.0), "finite"),
        (lambda: ms.HarmonicStop(50.0, width=60.0, axis="time"), "0 < width < fundamental"),
        (lambda: ms.HarmonicStop(50.0, width=1.0, axis="time", harmonics=0), "harmonics"),
        (lambda: ms.LowPass(0.0), "cutoff"),
        (lambda: ms.LowPass(1.0, order=2.5), "order"),  # type: ignore[arg-type]
        (lambda: ms.HarmonicStop(float("inf"), width=1.0, axis="time"), "fundamental"),
        (lambda: ms.VelocityTuned({"width": None}, 1.0), "finite"),  # type: ignore[dict-item]
        (lambda: ms.Autoregressive(time_constant=float("inf"), axis="time"), "finite"),
    ],
    ids=[
        "time constant",
        "velocity along time",
        "infinite velocity",
        "width",
        "harmonics",
        "cutoff",
        "order",
        "infinite",
        "null",
        "endless",
    ],
)
def test_refuses_what_makes_no_sense(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_low_pass_halves_the_power_at_its_cutoff() -> None:
    grid = ms.Grid.of(frame=(16, 1 / 8, "s"), width=16)
    power = ms.LowPass(1.0, order=3, factors={"frame": 0.5, "width": 4.0}).power(grid)
    assert power[0, 0] == 1
    assert power[4, 0] == pytest.approx(0.5)  # 2 Hz
    assert power[0, 4] == pytest.approx(0.5)  # 1/4 cycle per pixel
    assert power[8, 0] == pytest.approx(1 / (1 + 2**6))


class TestPhysicalUnits:
    """The same configured spectrum means the same noise at every frame rate and hop."""

    SPECTRA = {  # noqa: RUF012
        "separable": (
            ms.PowerLaw(-0.5, axes=("height", "width"), corner=1 / 64) * ms.PowerLaw(-0.4, axes=("frame",), corner=0.25)
        ),
        "joint": ms.PowerLaw(-0.5, factors={"frame": 0.05, "height": 1.0, "width": 1.0}, corner=1 / 64),
        "smooth in time": ms.Gaussian(0.2, axes=("frame",)) + 0.1,
    }  # fmt: skip

    @pytest.mark.parametrize("name", SPECTRA)
    def test_power_ratios_at_shared_frequencies_are_equal_at_8_16_and_32_fps(self, name: str) -> None:
        spectrum, seconds = self.SPECTRA[name], 2
        ratios = []
        for fps in (8, 16, 32):
            grid = ms.Grid.of(frame=(seconds * fps, 1 / fps, "s"), height=12, width=12)
            power = ms.SpectralCovariance(spectrum, grid).power()
            # Bins 0 to 7 of two seconds are 0 to 3.5 Hz at every rate.
            ratios.append(power[:8] / power[1, 0, 0])
        for other in ratios[1:]:
            assert torch.allclose(other, ratios[0], rtol=1e-12)

    @pytest.mark.parametrize("hops", [(64, 128), (100, 300)])
    def test_power_ratios_are_equal_at_two_hops_of_a_spectrogram(self, hops: tuple[int, int]) -> None:
        rate, frames = 12000, 300  # as long at either hop, so that the frequencies of the coarser are shared
        spectrum = ms.PowerLaw(-0.5, axes=("time",), corner=0.5) * ms.PowerLaw(-0.2, axes=("mel",), corner=1e-3)
        found = []
        for hop in hops:
            size = frames * hops[1] // hop
            grid = ms.Grid.of(mel=(16, 40.0, "mel"), time=(size, hop / rate, "s"))
            power = ms.SpectralCovariance(spectrum, grid).power()
            shared = int(frames / 2)
            found.append(power[:, :shared] / power[3, 5])
        assert torch.allclose(*found, rtol=1e-12)

    @pytest.mark.parametrize("seconds", [0.125, 0.25])
    @pytest.mark.parametrize("velocity", [0.0, 8.0])
    def test_correlation_at_an_eighth_of_a_second_agrees_on_clips_of_eight_lengths(
        self, seconds: float, velocity: float
    ) -> None:
        found = []
        for fps in (8, 16, 32):
            grid = ms.Grid.of(frame=(round(8 * seconds * fps), 1 / fps, "s"), width=16)
            spectrum = ms.VelocityTuned({"width": velocity}, seconds)
            lags = correlation(spectrum, grid)
            found.append(lags[fps // 8, round(velocity / 8)])  # where the noise has drifted to
        assert max(found) - min(found) < 0.02
        assert found[0] == pytest.approx(np.exp(-0.125 / seconds), abs=0.02)

    def test_the_shared_part_of_mixed_noise_is_the_same_at_every_rate(self) -> None:
        for fps in (8, 16, 32):
            grid = ms.Grid.of(frame=(2 * fps, 1 / fps, "s"), width=4)
            found = correlation(ms.Flat() + ms.Offset(1.5, axes=("frame",)), grid)
            np.testing.assert_allclose(found[1:, 0], 1.5**2 / (1 + 1.5**2), atol=1e-12)


SIZES = [(4, 4, 5), (5, 4, 6), (4, 6, 4), (3, 2, 3), (2, 5, 2), (6, 2, 1)]


def mirrored(power: torch.Tensor, place: int) -> torch.Tensor:
    """What stands at the frequency of the other sign along an axis of the full spectrum."""
    size = power.shape[place]
    return power.index_select(place, -torch.arange(size) % size)


def drift(velocity: dict[str, float], axis: str) -> dict[str, ms.Spectrum]:
    """Drifting noise, and what is made of it."""
    plain = ms.VelocityTuned(velocity, 2.0, axis=axis)
    return {"plain": plain, "product": plain**0.5 * ms.PowerLaw(-0.3), "sum": plain + 0.2}


@pytest.mark.parametrize("kind", ["plain", "product", "sum"])
@pytest.mark.parametrize("axis", ["frame", "height", "width"])
@pytest.mark.parametrize("sizes", SIZES)
def test_opposite_velocities_are_mirror_images_on_every_axis(sizes, axis, kind):
    """At Nyquist of an axis of even size the frequency is +1/2 and -1/2 at once."""
    grid = ms.Grid.of(**dict(zip(("frame", "height", "width"), sizes, strict=True)))
    velocity = {name: speed for name, speed in zip(grid.names, (0.4, 1.3, -0.7), strict=True) if name != axis}
    here = grid.full(ms.SpectralCovariance(drift(velocity, axis)[kind], grid).power())
    for name in velocity:
        other = drift({**velocity, name: -velocity[name]}, axis)[kind]
        there = grid.full(ms.SpectralCovariance(other, grid).power())
        torch.testing.assert_close(mirrored(here, grid.names.index(name)), there, rtol=1e-12, atol=0)
    both = here
    for place in range(3):
        both = mirrored(both, place)
    torch.testing.assert_close(both, here, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(4,), (5,), (4, 6), (4, 5), (5, 4), (2, 4, 6), (4, 3, 4), (4, 4, 5)])
def test_power_at_nyquist_is_the_mean_over_both_signs(sizes):
    """Against the formula at every frequency of the full spectrum, with every choice of sign."""
    grid = ms.Grid(tuple(ms.Axis(f"a{i}", size) for i, size in enumerate(sizes)))
    spectrum = ms.VelocityTuned({axis.name: 0.8 - i for i, axis in enumerate(grid.axes[1:])}, 1.5, axis="a0")
    expected = torch.zeros(grid.shape, dtype=torch.float64)
    for index in itertools.product(*(range(size) for size in sizes)):
        places = [k / n if k < n / 2 else k / n - 1 for k, n in zip(index, sizes, strict=True)]
        signs = itertools.product(*((1, -1) if abs(place) == 0.5 else (1,) for place in places))
        powers = []
        for chosen in signs:
            f = [sign * place for sign, place in zip(chosen, places, strict=True)]
            phase = 2 * math.pi * (f[0] + sum((0.8 - i) * each for i, each in enumerate(f[1:])))
            rho = math.exp(-1 / 1.5)
            powers.append((1 - rho**2) / (1 - 2 * rho * math.cos(phase) + rho**2))
        expected[index] = sum(powers) / len(powers)
    found = grid.full(even_power(spectrum, grid))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
