"""Every spectrum against its formula on the full grid of frequencies, and the algebra they share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
from tests.helpers import dense

GRIDS = {
    "2-D": ms.Grid.of(y=6, x=9),
    "3-D": ms.Grid.of(t=5, y=4, x=6),
    "1-D": ms.Grid.of(x=24),
    "spaced": ms.Grid.of(y=(6, 0.5, "mm"), x=(9, 0.25, "mm")),
}


def nyquists(grid: ms.Grid) -> list[float]:
    return [0.5 / axis.spacing for axis in grid.axes]


def band_radius(grid: ms.Grid, unit: str) -> np.ndarray:
    if unit == "cycles":
        return dense.radius(grid)
    relative = np.sqrt(sum((f / n) ** 2 for f, n in zip(dense.frequencies(grid), nyquists(grid), strict=True)))
    return relative if unit == "nyquist" else relative / np.sqrt(grid.dimensions)


def in_band(r: np.ndarray, low: float, high: float) -> np.ndarray:
    return ((r >= low - 1e-9) & (r <= high + 1e-9)).astype(float)


def two_band(grid: ms.Grid) -> np.ndarray:
    low = in_band(band_radius(grid, "diagonal"), 0.1, 0.4)
    high = in_band(band_radius(grid, "diagonal"), 0.4, 0.8)
    return 0.3**2 * low + 0.7**2 * high * (1 - low)


FAMILIES = {
    "flat": (ms.Flat(2.5), lambda grid: np.full(grid.shape, 2.5)),
    "power law, corner": (ms.PowerLaw(-0.3, corner=0.1), lambda grid: np.maximum(dense.radius(grid), 0.1) ** -0.6),
    "power law, the papers'": (ms.PowerLaw(0.04, epsilon=1e-10), lambda grid: (dense.radius(grid) + 1e-10) ** 0.08),
    "gaussian": (
        ms.Gaussian(0.7),
        lambda grid: np.exp(-2 * np.pi**2 * 0.7**2 * dense.radius(grid) ** 2) ** 2,
    ),
    "exponential": (ms.Exponential(3.0), lambda grid: np.exp(-3.0 * dense.radius(grid) ** 2) ** 2),
    "band, cycles": (ms.Band(0.15, 0.4), lambda grid: in_band(band_radius(grid, "cycles"), 0.15, 0.4)),
    "band, nyquist": (
        ms.Band(0.2, 0.8, unit="nyquist"),
        lambda grid: in_band(band_radius(grid, "nyquist"), 0.2, 0.8),
    ),
    "band, diagonal": (
        ms.Band(0.2, 1.0, unit="diagonal"),
        lambda grid: in_band(band_radius(grid, "diagonal"), 0.2, 1.0),
    ),
    "two bands": (ms.TwoBand((0.1, 0.4), (0.4, 0.8), (0.3, 0.7)), two_band),
    "anisotropic": (
        ms.Exponential(2.0, factors={"x": 3.0}),
        lambda grid: np.exp(-4.0 * (dense.radius(grid) ** 2 + 8 * dense.frequencies(grid)[-1] ** 2)),
    ),
    "autoregressive": (
        ms.Autoregressive(0.8, axis="x"),
        lambda grid: (
            (1 - 0.64)
            / np.abs(1 - 0.8 * np.exp(-2j * np.pi * dense.frequencies(grid)[-1] * grid.axes[-1].spacing)) ** 2
        ),
    ),
    "autoregressive, time constant": (
        ms.Autoregressive(time_constant=2.0, axis="x"),
        lambda grid: (
            (1 - np.exp(-grid.axes[-1].spacing / 2) ** 2)
            / np.abs(
                1
                - np.exp(-grid.axes[-1].spacing / 2)
                * np.exp(-2j * np.pi * dense.frequencies(grid)[-1] * grid.axes[-1].spacing)
            )
            ** 2
        ),
    ),
    "offset": (ms.Offset(0.5), lambda grid: 0.25 * grid.numel * (dense.radius(grid) == 0)),
    "offset of rows": (ms.Offset(0.5).on("x"), lambda grid: 0.25 * grid.shape[-1] * (dense.frequencies(grid)[-1] == 0)),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize(("spectrum", "formula"), FAMILIES.values(), ids=FAMILIES.keys())
def test_formula(spectrum, formula, grid):
    power = spectrum.power(grid)
    assert power.dtype == torch.float64
    assert power.shape == grid.half_shape
    np.testing.assert_allclose(power.numpy(), dense.half(grid, formula(grid)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("unit", "counts"),
    [("nyquist", [28, 32, 60, 68, 100, 108, 108, 148]), ("diagonal", [48, 76, 108, 152, 176, 216, 142, 64])],
)
def test_bins_of_the_papers_bands_at_32(unit, counts):
    grid = ms.Grid.of(y=32, x=32)
    for i, expected in enumerate(counts):
        band = ms.Band((i + 1) / 10, (i + 2) / 10, unit=unit)
        assert float((band.power(grid) * grid.multiplicity).sum()) == expected


def test_bands_in_cycles_per_pixel_run_out_at_the_corner():
    grid = ms.Grid.of(y=32, x=32)
    assert float((ms.Band(0.7, 0.8).power(grid) * grid.multiplicity).sum()) == 1
    assert float(ms.Band(0.8, 0.9).power(grid).sum()) == 0
    unsupported = 1 - ms.Band(0.0, 1.0, unit="nyquist").power(grid)
    assert float((unsupported * grid.multiplicity).sum()) == 229


@pytest.mark.parametrize("size", [5, 6, 10, 20, 100, 441, 1000])
@pytest.mark.parametrize("spacing", [1.0, 1 / 44100, 0.04])
def test_a_band_holds_the_bins_on_its_edges(size, spacing):
    """3/10 is computed as .30000000000000004; a band that ends at .3 means to hold it."""
    grid = ms.Grid.of(x=(size, spacing, "s"))
    for k in range(size // 2 + 1):
        edge = k / (size * spacing)
        assert ms.Band(edge, edge).power(grid).nonzero().flatten().tolist() == [k]
        relative = min(2 * k / size, 1.0)
        assert ms.Band(relative, relative, unit="nyquist").power(grid).nonzero().flatten().tolist() == [k]


def test_the_papers_epsilon_is_mostly_offset_noise():
    """At α = -0.04: zero frequency ×5.8, the first other bin ×1.2, the normaliser being that of their code."""
    grid = ms.Grid.of(y=32, x=32)
    power = ms.PowerLaw(-0.04, epsilon=1e-10).power(grid)
    without_zero = (float(grid.mean(power)) * 1024 - float(power[0, 0])) / 1023
    assert float(power[0, 0]) / without_zero == pytest.approx(5.8, abs=0.05)
    assert float(power[0, 1]) / without_zero == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("exponent", "ratio"), [(-0.08, 33.5), (-0.06, 13.9), (-0.01, 1.55), (0.01, 0.65), (0.04, 0.17)]
)
def test_published_zero_frequency_ratios(exponent, ratio):
    grid = ms.Grid.of(y=32, x=32)
    power = ms.PowerLaw(exponent, epsilon=1e-10).power(grid)
    without_zero = (float(grid.mean(power)) * 1024 - float(power[0, 0])) / 1023
    assert float(power[0, 0]) / without_zero == pytest.approx(ratio, rel=0.03)


def test_the_default_corner_is_the_one_the_grid_declares():
    axis = ms.Axis("x", 64, spacing=0.01, unit="s", corner=7.0)
    grid = ms.Grid((axis,))
    expected = np.maximum(np.fft.rfftfreq(64, 0.01), 7.0) ** -1.0
    np.testing.assert_allclose(ms.PowerLaw(-0.5).power(grid).numpy(), expected, rtol=1e-12)
    longer = ms.PowerLaw(-0.5).power(grid.resize((256,)))
    np.testing.assert_allclose(longer[::4].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("unit", ["cycles", "nyquist", "diagonal"])
@pytest.mark.parametrize("size", [(32, 32), (9, 14), (7,)])
def test_two_equal_bands_over_everything_are_white(size, unit):
    grid = ms.Grid.of(**dict(zip("yx", size, strict=False)))
    spectrum = ms.TwoBand((0.0, 0.3), (0.3, 2.0), unit=unit)
    assert torch.equal(ms.SpectralCovariance(spectrum, grid).power(), torch.ones(grid.half_shape, dtype=torch.float64))


def test_the_default_two_bands_are_white():
    grid = ms.Grid.of(y=32, x=32)
    power = ms.SpectralCovariance(ms.TwoBand(), grid).power()
    assert torch.equal(power, torch.ones_like(power))


@pytest.mark.parametrize("axes", [None, ("t",)])
def test_offset_noise_has_its_pixel_covariance(axes):
    """Adding one normal number of deviation s to all samples of the axes: `I + s² 1 1ᵀ` along them."""
    grid = ms.Grid.of(t=3, y=4)
    power = grid.full((ms.Flat() + ms.Offset(0.7, axes=axes)).power(grid)).numpy()
    ones = np.ones((3, 3))
    shared = np.kron(ones, np.eye(4)) if axes else np.ones((12, 12))
    np.testing.assert_allclose(dense.operator(power), np.eye(12) + 0.49 * shared, atol=1e-12)


def test_autoregressive_covariance_is_periodic():
    """The example of why circulant noise is not a stationary process cut out: .93 between the ends, not .21."""
    grid = ms.Grid.of(frame=16)
    power = grid.full(ms.SpectralCovariance(ms.Autoregressive(0.9, axis="frame"), grid).power()).numpy()
    covariance = dense.operator(power)[0]
    lags = np.arange(16)
    np.testing.assert_allclose(covariance, (0.9**lags + 0.9 ** (16 - lags)) / (1 + 0.9**16), atol=1e-12)
    assert covariance[15] == pytest.approx(0.93, abs=0.005)


def test_autoregressive_time_constant_is_physical():
    slow = ms.Autoregressive(time_constant=0.5, axis="t")
    for rate in (25, 50):
        grid = ms.Grid.of(t=(20 * rate, 1 / rate, "s"))
        covariance = torch.fft.irfft(ms.SpectralCovariance(slow, grid).power(), n=20 * rate)
        assert float(covariance[rate // 5]) == pytest.approx(np.exp(-0.2 / 0.5), abs=1e-9)


def test_gaussian_is_white_noise_blurred():
    grid = ms.Grid.of(y=24, x=32)
    length = 1.5
    position = [np.minimum(np.arange(n), n - np.arange(n)) for n in grid.shape]
    kernel = np.exp(-(position[0][:, None] ** 2 + position[1] ** 2) / (2 * length**2)) / (2 * np.pi * length**2)
    transfer = np.abs(np.fft.fft2(kernel))
    power = grid.full(ms.Gaussian(length).power(grid)).numpy()
    np.testing.assert_allclose(power, transfer**2, atol=1e-6)


def test_velocity_like_factors_drop_out_with_their_axes():
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
grids = st.builds(lambda y, x: ms.Grid.of(y=y, x=x), st.integers(1, 9), st.integers(1, 9))
several = settings(max_examples=50)


def same(left: ms.Spectrum, right: ms.Spectrum, grid: ms.Grid) -> None:
    torch.testing.assert_close(left.power(grid), right.power(grid), rtol=1e-9, atol=1e-12)


@several
@given(a=spectra, b=spectra, c=spectra, grid=grids)
def test_algebra(a, b, c, grid):
    same(a * b, b * a, grid)
    same(a + b, b + a, grid)
    same((a * b) * c, a * (b * c), grid)
    same((a + b) + c, a + (b + c), grid)
    same(a * (b + c), a * b + a * c, grid)
    same(a * 1, a, grid)
    same(a + 0, a, grid)
    same(2 * a, a + a, grid)
    same(0.5 + a, a + ms.Flat(0.5), grid)
    same(sum([a, b, c]), a + b + c, grid)


@several
@given(a=spectra, b=spectra, grid=grids, p=st.floats(-2, 2), q=st.floats(-2, 2))
def test_powers(a, b, grid, p, q):
    same((a * b) ** p, a**p * b**p, grid)
    same(a**p * a**q, a ** (p + q), grid)
    same((a**p) ** q, a ** (p * q), grid)
    same(a**1, a, grid)
    same(a**0.5 * a**0.5, a, grid)


@several
@given(
    pair=st.tuples(*[st.one_of(st.builds(ms.Exponential, st.floats(0, 5)), st.builds(ms.Flat, st.floats(0.1, 2)))] * 2),
    p=st.floats(0.1, 2),
    grid=grids,
)
def test_restriction_passes_through_the_algebra(pair, p, grid):
    a, b = pair
    same((a * b).on("x"), a.on("x") * b.on("x"), grid)
    same((a + b).on("x"), a.on("x") + b.on("x"), grid)
    same((a**p).on("x"), a.on("x") ** p, grid)
    restricted = (a * b + a).on("x").power(grid)
    torch.testing.assert_close(restricted, restricted[:1].expand_as(restricted), rtol=0, atol=0)
    # In one dimension there is nothing to restrict.
    same(a.on("x"), a, ms.Grid.of(x=grid.shape[1]))


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.0, 0.5])
def test_empty_bins_stay_empty_under_any_power(exponent):
    grid = ms.Grid.of(x=16)
    band = ms.Band(0.2, 0.3)
    torch.testing.assert_close((band**exponent).power(grid), band.power(grid))


def test_spectra_are_values():
    assert ms.PowerLaw(-0.5) * ms.Flat() == ms.PowerLaw(-0.5) * ms.Flat()
    assert hash(ms.PowerLaw(-0.5, axes=("x",))) == hash(ms.PowerLaw(-0.5, axes=["x"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms.Flat(-1.0), "level"),
        (lambda: -1 * ms.Flat(), "level"),
        (lambda: ms.Band(0.4, 0.3), "0 <= low <= high"),
        (lambda: ms.Band(0.1, 0.3, unit="hertz"), "choose cycles, nyquist or diagonal"),
        (lambda: ms.TwoBand((0.0, 0.6), (0.5, 1.0)), "ordered"),
        (lambda: ms.TwoBand(weights=(-0.1, 1.0)), "weights"),
        (lambda: ms.PowerLaw(-1.0, corner=0.1, epsilon=0.1), "not both"),
        (lambda: ms.PowerLaw(-1.0, corner=0.0), "corner must be positive"),
        (lambda: ms.PowerLaw(-1.0, epsilon=-1.0), "epsilon must be positive"),
        (lambda: ms.Autoregressive(axis="x"), "either a coefficient or a time_constant"),
        (lambda: ms.Autoregressive(0.5, 1.0, axis="x"), "either"),
        (lambda: ms.Autoregressive(1.0, axis="x"), "between -1 and 1"),
        (lambda: ms.Autoregressive(time_constant=0.0, axis="x"), "positive"),
        (lambda: ms.PowerLaw(-1.0).on("z").power(ms.Grid.of(x=4)), "no axis 'z'"),
    ],
)
def test_errors_name_the_offender(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_be_restricted_says_so():
    with pytest.raises(TypeError, match="Autoregressive cannot be restricted"):
        (ms.Flat() * ms.Autoregressive(0.5, axis="x")).on("y")
