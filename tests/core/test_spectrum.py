"""Spectra equal their formulas on the full grid of frequencies, in physical units, and obey the rules of algebra."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd.spectrum import even_power
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

GRIDS = [
    ms.Grid.of(y=6, x=9),
    ms.Grid.of(t=5, y=4, x=6),
    ms.Grid.of(x=24),
    ms.Grid.of(y=(6, 0.5, "mm"), x=(9, 0.25, "mm")),
]
SQUARE = ms.Grid.of(y=32, x=32)


def band(grid: ms.Grid, unit: str, low: float, high: float) -> np.ndarray:
    relative = [f * 2 * axis.spacing for f, axis in zip(dense.frequencies(grid), grid.axes, strict=True)]
    r = dense.radius(grid) if unit == "cycles" else np.sqrt(sum(f**2 for f in relative))
    r = r / np.sqrt(grid.dimensions) if unit == "diagonal" else r
    return ((r >= low - 1e-9) & (r <= high + 1e-9)).astype(float)


def two_band(grid: ms.Grid) -> np.ndarray:
    low, high = band(grid, "diagonal", 0.1, 0.4), band(grid, "diagonal", 0.4, 0.8)
    return 0.3**2 * low + 0.7**2 * high * (1 - low)


def last(grid: ms.Grid) -> np.ndarray:
    return dense.frequencies(grid)[-1]


def autoregressive(grid: ms.Grid, rho: float) -> np.ndarray:
    return (1 - rho**2) / np.abs(1 - rho * np.exp(-2j * np.pi * last(grid) * grid.axes[-1].spacing)) ** 2


FAMILIES = {
    "flat": (ms.Flat(2.5), lambda grid: np.full(grid.shape, 2.5)),
    "power law, corner": (ms.PowerLaw(-0.3, corner=0.1), lambda grid: np.maximum(dense.radius(grid), 0.1) ** -0.6),
    "power law, the papers'": (ms.PowerLaw(0.04, epsilon=1e-10), lambda grid: (dense.radius(grid) + 1e-10) ** 0.08),
    "gaussian": (ms.Gaussian(0.7), lambda grid: np.exp(-2 * np.pi**2 * 0.7**2 * dense.radius(grid) ** 2) ** 2),
    "exponential": (ms.Exponential(3.0), lambda grid: np.exp(-3.0 * dense.radius(grid) ** 2) ** 2),
    "low pass": (ms.LowPass(0.2, order=3), lambda grid: 1 / (1 + (dense.radius(grid) / 0.2) ** 6)),
    "band, cycles": (ms.Band(0.15, 0.4), lambda grid: band(grid, "cycles", 0.15, 0.4)),
    "band, nyquist": (ms.Band(0.2, 0.8, unit="nyquist"), lambda grid: band(grid, "nyquist", 0.2, 0.8)),
    "band, diagonal": (ms.Band(0.2, 1.0, unit="diagonal"), lambda grid: band(grid, "diagonal", 0.2, 1.0)),
    "two bands": (ms.TwoBand((0.1, 0.4), (0.4, 0.8), (0.3, 0.7)), two_band),
    "anisotropic": (
        ms.Exponential(2.0, factors={"x": 3.0}),
        lambda grid: np.exp(-4.0 * (dense.radius(grid) ** 2 + 8 * last(grid) ** 2)),
    ),
    "autoregressive": (ms.Autoregressive(0.8, axis="x"), lambda grid: autoregressive(grid, 0.8)),
    "autoregressive, time constant": (
        ms.Autoregressive(time_constant=2.0, axis="x"),
        lambda grid: autoregressive(grid, np.exp(-grid.axes[-1].spacing / 2)),
    ),
    "offset": (ms.Offset(0.5), lambda grid: 0.25 * grid.numel * (dense.radius(grid) == 0)),
    "offset of rows": (ms.Offset(0.5).on("x"), lambda grid: 0.25 * grid.shape[-1] * (last(grid) == 0)),
}


@pytest.mark.parametrize(("spectrum", "formula"), FAMILIES.values(), ids=FAMILIES)
def test_spectrum_is_its_formula(spectrum, formula):
    for grid in GRIDS:
        power = spectrum.power(grid)
        assert power.dtype == torch.float64
        assert power.shape == grid.half_shape
        np.testing.assert_allclose(power.numpy(), dense.half(grid, formula(grid)), rtol=1e-12, atol=1e-15)


def test_band_holds_the_bins_of_the_papers_at_32():
    def count(*band: float, unit: str = "cycles") -> float:
        return float((ms.Band(*band, unit=unit).power(SQUARE) * SQUARE.multiplicity).sum())

    edges = [((i + 1) / 10, (i + 2) / 10) for i in range(8)]
    assert [count(*band, unit="nyquist") for band in edges] == [28, 32, 60, 68, 100, 108, 108, 148]
    assert [count(*band, unit="diagonal") for band in edges] == [48, 76, 108, 152, 176, 216, 142, 64]
    # In cycles per pixel they end at the corner.
    assert count(0.7, 0.8) == 1
    assert count(0.8, 0.9) == 0
    assert 32 * 32 - count(0.0, 1.0, unit="nyquist") == 229


@pytest.mark.parametrize("size", [5, 6, 10, 20, 100, 441, 1000])
def test_band_holds_the_bins_on_its_edges(size):
    """3/10 is computed as .30000000000000004; a band that ends at .3 is meant to hold it."""
    for spacing, k in product([1.0, 1 / 44100, 0.04], range(size // 2 + 1)):
        grid = ms.Grid.of(x=(size, spacing, "s"))
        edge, relative = k / (size * spacing), min(2 * k / size, 1.0)
        assert ms.Band(edge, edge).power(grid).nonzero().flatten().tolist() == [k]
        assert ms.Band(relative, relative, unit="nyquist").power(grid).nonzero().flatten().tolist() == [k]


def test_power_law_takes_its_corner_from_the_grid():
    grid = ms.Grid((ms.Axis("x", 64, spacing=0.01, unit="s", corner=7.0),))
    expected = np.maximum(np.fft.rfftfreq(64, 0.01), 7.0) ** -1.0
    for power in (ms.PowerLaw(-0.5).power(grid), ms.PowerLaw(-0.5).power(grid.resize((256,)))[::4]):
        np.testing.assert_allclose(power.numpy(), expected, rtol=1e-12)


def test_offset_noise_has_its_pixel_covariance():
    """One normal number of deviation s added to all samples of the axes, as in PYoCo: `I + s² 1 1ᵀ` along them."""
    grid = ms.Grid.of(t=3, y=4)
    for axes, shared in ((None, np.ones((12, 12))), (("t",), np.kron(np.ones((3, 3)), np.eye(4)))):
        power = grid.full((ms.Flat() + ms.Offset(0.7, axes=axes)).power(grid)).numpy()
        np.testing.assert_allclose(dense.operator(power), np.eye(12) + 0.49 * shared, atol=1e-12)


def test_restricted_spectrum_drops_the_factors_of_other_axes():
    grid = ms.Grid.of(t=5, y=4, x=6)
    spectrum = ms.PowerLaw(-0.5, factors={"t": 2.0, "x": 3.0}).on("y", "x")
    _, y, x = dense.frequencies(grid)
    expected = np.maximum(np.sqrt(y**2 + 9 * x**2), 3 / 256) ** -1.0
    np.testing.assert_allclose(spectrum.power(grid).numpy(), dense.half(grid, expected), rtol=1e-12)


spectra = st.one_of(
    st.builds(ms.Flat, st.floats(0.1, 3)),
    st.builds(ms.PowerLaw, st.floats(-1, 1)),
    st.builds(ms.Gaussian, st.floats(0.01, 1)),
    st.builds(ms.Exponential, st.floats(0, 5)),
    st.builds(ms.Band, st.floats(0, 0.3), st.floats(0.3, 0.7)),
    st.builds(ms.Autoregressive, st.floats(-0.9, 0.9), axis=st.sampled_from(["y", "x"])),
    st.builds(ms.Offset, st.one_of(st.just(0.0), st.floats(0.01, 2))),
)
restrictable = st.one_of(st.builds(ms.Exponential, st.floats(0, 5)), st.builds(ms.Flat, st.floats(0.1, 2)))
grids = st.builds(lambda y, x: ms.Grid.of(y=y, x=x), st.integers(1, 9), st.integers(1, 9))


def assert_same(grid: ms.Grid, *pairs: tuple[ms.Spectrum, ms.Spectrum]) -> None:
    for left, right in pairs:
        torch.testing.assert_close(left.power(grid), right.power(grid), rtol=1e-9, atol=1e-12)


@settings(max_examples=100)
@given(a=spectra, b=spectra, grid=grids, p=st.one_of(st.just(0.0), st.floats(-2, 2)))
def test_sums_products_and_powers_of_spectra_are_those_of_their_numbers(a, b, grid, p):
    left, right = a.power(grid), b.power(grid)
    empty = left == 0  # stays empty under any power
    raised = left.masked_fill(empty, 1.0).pow(p).masked_fill(empty, 0.0)
    sums = ((a + b, left + right), (sum([a, b]), left + right), (0.5 + a, 0.5 + left), (a + 0, left))
    for spectrum, expected in (*sums, (a * b, left * right), (2 * a, 2 * left), (a * 1, left), (a**p, raised)):
        torch.testing.assert_close(spectrum.power(grid), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=50)
@given(a=restrictable, b=restrictable, p=st.floats(0.1, 2), grid=grids)
def test_restriction_to_an_axis_commutes_with_algebra(a, b, p, grid):
    products = ((a * b).on("x"), a.on("x") * b.on("x"))
    assert_same(grid, products, ((a + b).on("x"), a.on("x") + b.on("x")), ((a**p).on("x"), a.on("x") ** p))
    restricted = (a * b + a).on("x").power(grid)
    torch.testing.assert_close(restricted, restricted[:1].expand_as(restricted), rtol=0, atol=0)
    # In one dimension there is nothing to restrict.
    assert_same(ms.Grid.of(x=grid.shape[1]), (a.on("x"), a))


def test_restriction_refuses_spectra_of_one_axis():
    with pytest.raises(TypeError, match="Autoregressive cannot be restricted"):
        (ms.Flat() * ms.Autoregressive(0.5, axis="x")).on("y")


def test_spectra_are_compared_and_hashed_by_value():
    assert ms.PowerLaw(-0.5) * ms.Flat() == ms.PowerLaw(-0.5) * ms.Flat()
    assert hash(ms.PowerLaw(-0.5, axes=("x",))) == hash(ms.PowerLaw(-0.5, axes=["x"]))


def test_spectrum_refuses_impossible_parameters():
    assert_refused(
        ("level", lambda: ms.Flat(-1.0)),
        ("level", lambda: -1 * ms.Flat()),
        ("0 <= low <= high", lambda: ms.Band(0.4, 0.3)),
        ("choose cycles, nyquist or diagonal", lambda: ms.Band(0.1, 0.3, unit="hertz")),
        ("ordered", lambda: ms.TwoBand((0.0, 0.6), (0.5, 1.0))),
        ("weights", lambda: ms.TwoBand(weights=(-0.1, 1.0))),
        ("not both", lambda: ms.PowerLaw(-1.0, corner=0.1, epsilon=0.1)),
        ("corner must be positive", lambda: ms.PowerLaw(-1.0, corner=0.0)),
        ("epsilon must be positive", lambda: ms.PowerLaw(-1.0, epsilon=-1.0)),
        ("either a coefficient or a time_constant", lambda: ms.Autoregressive(axis="x")),
        ("either", lambda: ms.Autoregressive(0.5, 1.0, axis="x")),
        ("between -1 and 1", lambda: ms.Autoregressive(1.0, axis="x")),
        ("positive", lambda: ms.Autoregressive(time_constant=0.0, axis="x")),
        ("no axis 'z'", lambda: ms.PowerLaw(-1.0).on("z").power(ms.Grid.of(x=4))),
    )


TABLE = ms.Grid.of(y=8, x=7)


def measured(grid: ms.Grid) -> torch.Tensor:
    """Power like that of real data: even, and different in every bin."""
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape).numpy())) ** 2
    return dense.tensor(dense.half(grid, energy))


@pytest.mark.parametrize("grid", dense.GRIDS.values(), ids=dense.GRIDS)
def test_table_is_exact_at_every_shared_frequency(grid):
    values = measured(grid)
    table, finer = ms.Table(values, grid), grid.resize([3 * size for size in grid.shape])
    assert torch.equal(table.power(grid), values)
    assert ms.Table(values.float(), grid).power(grid).dtype == torch.float64
    power = table.power(finer)
    assert power.shape == finer.half_shape
    shared = power[(slice(None, None, 3),) * grid.dimensions]
    np.testing.assert_allclose(shared.numpy(), values.numpy(), rtol=1e-10)


@pytest.mark.parametrize("other", [(9, 10), (4, 17), (12, 3), (1, 1), (16, 16), (5, 5)])
def test_table_is_linear_between_knots_and_even(other):
    """Against NumPy's one-dimensional interpolation, one axis after the other."""
    full = np.fft.fftshift(TABLE.full(measured(TABLE)).numpy())
    full = np.concatenate([full, full[:1]])  # Nyquist of the even axis is both ends
    knots = [np.arange(-4, 5) / 8, np.arange(-3, 4) / 7]
    target = TABLE.resize(other)
    y, x = (np.asarray(target.frequencies(n)).ravel() for n in TABLE.names)
    along = np.stack([np.interp(x, knots[1], row) for row in full])
    expected = np.stack([np.interp(y, knots[0], column) for column in along.T], axis=1)
    power = ms.Table(measured(TABLE), TABLE).power(target)
    np.testing.assert_allclose(power.numpy(), expected, rtol=1e-10)
    # Else coloured noise would not have this power.
    torch.testing.assert_close(power[1:, 0], power[1:, 0].flip(0), rtol=1e-9, atol=1e-12)


def test_table_interpolates_in_physical_frequency():
    grid, longer = ms.Grid.of(t=(50, 0.02, "s")), ms.Grid.of(t=(200, 0.01, "s"))
    power = ms.Table(1 + grid.radius(), grid).power(longer)
    torch.testing.assert_close(power, 1 + longer.radius().clamp(max=25.0))


def test_table_refuses_bad_values_and_foreign_grids():
    grid, ones = ms.Grid.of(y=6, x=5), torch.ones(6, 3)
    assert_refused(
        ("expected a table of shape", lambda: ms.Table(torch.ones(6, 5), grid)),
        ("non-negative", lambda: ms.Table(-ones, grid)),
        ("finite", lambda: ms.Table(ones * float("nan"), grid)),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, z=5))),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, x=(5, 1.0, "s")))),
    )


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


def test_harmonic_stop_refuses_the_grid_of_a_spectrogram() -> None:
    for unit in ("Hz", "mel", "octave"):
        grid = ms.Grid.of(frequency=(8, 100.0, unit), time=(800, 1 / 800, "s"))
        with pytest.raises(ValueError, match=r"temporal modulation and not of what one hears.*audio_waveform"):
            ms.HarmonicStop(50.0, width=2.0, axis="time").power(grid)


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
        ("increase the radius", lambda: ms.Spots({"height": 0.11}, 0.001).power(ms.Grid.of(height=8))),
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
