"""Spectra equal their formulas on the full grid of frequencies, and obey the rules of algebra."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
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


def test_power_law_with_epsilon_is_mostly_offset_noise():
    """The published ratios of zero frequency and of the next to all others."""
    power = ms.PowerLaw(-0.04, epsilon=1e-10).power(SQUARE)
    without_zero = (float(SQUARE.mean(power)) * 1024 - float(power[0, 0])) / 1023
    assert (power[0, :2] / without_zero).tolist() == pytest.approx([5.8, 1.2], abs=0.05)


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
exponents = st.floats(-2, 2)


def assert_same(grid: ms.Grid, *pairs: tuple[ms.Spectrum, ms.Spectrum]) -> None:
    for left, right in pairs:
        torch.testing.assert_close(left.power(grid), right.power(grid), rtol=1e-9, atol=1e-12)


@settings(max_examples=50)
@given(a=spectra, b=spectra, c=spectra, grid=grids)
def test_sums_and_products_of_spectra_obey_algebra(a, b, c, grid):
    assert_same(grid, (a * b, b * a), (a + b, b + a), ((a * b) * c, a * (b * c)), ((a + b) + c, a + (b + c)))
    assert_same(grid, (a * (b + c), a * b + a * c), (a * 1, a), (a + 0, a), (2 * a, a + a))
    assert_same(grid, (0.5 + a, a + ms.Flat(0.5)), (sum([a, b, c]), a + b + c))


@settings(max_examples=50)
@given(a=spectra, b=spectra, grid=grids, p=exponents, q=exponents)
def test_powers_of_spectra_obey_algebra(a, b, grid, p, q):
    assert_same(grid, ((a * b) ** p, a**p * b**p), (a**p * a**q, a ** (p + q)), ((a**p) ** q, a ** (p * q)))
    assert_same(grid, (a**1, a), (a**0.5 * a**0.5, a))


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


def test_empty_bins_stay_empty_under_any_power():
    grid, band = ms.Grid.of(x=16), ms.Band(0.2, 0.3)
    assert_same(grid, *((band**exponent, band) for exponent in (-1.0, -0.5, 0.0, 0.5)))


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
        ("needs a table of shape", lambda: ms.Table(torch.ones(6, 5), grid)),
        ("non-negative", lambda: ms.Table(-ones, grid)),
        ("finite", lambda: ms.Table(ones * float("nan"), grid)),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, z=5))),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, x=(5, 1.0, "s")))),
    )
