"""The covariance against dense matrices, against the law it promises, and in the places where users put it."""

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense

CASES = [(grid, spectrum) for grid in dense.GRIDS for spectrum in dense.SPECTRA]


def possible(grid: str, spectrum: str) -> bool:
    """A band has to hold at least one bin of the grid."""
    return bool(dense.SPECTRA[spectrum][1](dense.GRIDS[grid]).any())


class Case:
    """A covariance in float64 with its dense matrix, written from the formula of its power."""

    def __init__(self, grid: str, spectrum: str) -> None:
        self.grid = dense.GRIDS[grid]
        make, formula = dense.SPECTRA[spectrum]
        self.covariance = ms.SpectralCovariance(make(self.grid), self.grid).double()
        power = formula(self.grid)
        self.power = power / power.mean()
        self.matrix = dense.operator(self.power)

    def columns(self, function) -> np.ndarray:
        """Apply a linear function of fields to every unit vector: its dense matrix."""
        unit = torch.eye(self.grid.numel, dtype=torch.float64).reshape(-1, *self.grid.shape)
        return dense.flat(function(unit), self.grid).T

    def root(self, exponent: float) -> np.ndarray:
        """A power of the dense matrix through its eigenvectors, over its range only."""
        values, vectors = np.linalg.eigh(self.matrix)
        inside = values > 1e-10 * values.max()
        return (vectors[:, inside] * values[inside] ** exponent) @ vectors[:, inside].T


@pytest.fixture(
    scope="module",
    params=[case for case in CASES if possible(*case)],
    ids=lambda case: ", ".join(case),
)
def case(request) -> Case:
    return Case(*request.param)


class TestDense:
    """Everything a covariance does, to 1e-10 in float64."""

    def test_apply(self, case):
        np.testing.assert_allclose(case.columns(case.covariance.apply), case.matrix, atol=1e-10)

    def test_color_is_the_symmetric_square_root(self, case):
        color = case.columns(case.covariance.color)
        np.testing.assert_allclose(color, case.root(0.5), atol=1e-10)
        np.testing.assert_allclose(color @ color, case.matrix, atol=1e-10)

    def test_whiten(self, case):
        np.testing.assert_allclose(case.columns(case.covariance.whiten), case.root(-0.5), atol=1e-10)

    def test_solve_is_the_pseudo_inverse(self, case):
        inverse = np.linalg.pinv(case.matrix, rcond=1e-10, hermitian=True)
        np.testing.assert_allclose(case.columns(case.covariance.solve), inverse, atol=1e-10)

    def test_project_is_the_orthogonal_projection_on_the_range(self, case):
        project = case.columns(case.covariance.project)
        np.testing.assert_allclose(project, case.root(0.0), atol=1e-10)
        np.testing.assert_allclose(project @ project, project, atol=1e-10)

    def test_logdet(self, case):
        values = np.linalg.eigvalsh(case.matrix)
        expected = np.log(values[values > 1e-10 * values.max()]).sum()
        np.testing.assert_allclose(case.covariance.logdet().item(), expected, atol=1e-9)

    def test_mahalanobis(self, case):
        x = dense.random(3, 2, *case.grid.shape)
        vectors = dense.flat(x, case.grid)
        inverse = np.linalg.pinv(case.matrix, rcond=1e-10, hermitian=True)
        expected = np.einsum("bci,ij,bcj->b", vectors, inverse, vectors)
        np.testing.assert_allclose(case.covariance.mahalanobis(x).numpy(), expected, rtol=1e-10)

    def test_unit_mean_power(self, case):
        np.testing.assert_allclose(np.trace(case.matrix) / case.grid.numel, 1, rtol=1e-12)
        np.testing.assert_allclose(
            case.covariance.power().numpy(), dense.half(case.grid, case.power), rtol=1e-10, atol=1e-12
        )

    def test_sample_is_the_root_times_white_noise(self, case):
        noise = case.covariance.sample([5, 6], channels=2)
        assert noise.dtype == torch.float64
        assert noise.shape == (2, 2, *case.grid.shape)
        for item, seed in zip(noise, (5, 6), strict=True):
            white = torch.randn(
                (2, *case.grid.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            expected = dense.flat(white, case.grid) @ case.root(0.5)
            np.testing.assert_allclose(dense.flat(item, case.grid), expected, atol=1e-10)

    def test_composition(self, case):
        x = dense.random(2, *case.grid.shape)
        c = case.covariance
        torch.testing.assert_close(c.color(c.color(x)), c.apply(x), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(c.whiten(c.color(x)), c.project(x), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(c.solve(c.apply(x)), c.project(x), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(c.whiten(c.whiten(x)), c.solve(x), atol=1e-10, rtol=1e-10)


LAWS = {
    "white": ms.Flat(),
    "red": ms.PowerLaw(-0.5),
    "blue": ms.PowerLaw(0.5),
    "two bands": ms.TwoBand(weights=(0.8, 0.2)),
    "band": ms.Band(0.1, 0.3),
    "offset": ms.Flat() + ms.Offset(0.2),
}


@pytest.mark.parametrize("spectrum", LAWS.values(), ids=LAWS.keys())
@pytest.mark.parametrize("grid", [ms.Grid.of(y=16, x=15), ms.Grid.of(x=64)], ids=["2-D", "1-D"])
class TestLaw:
    """4,096 draws: power in every band, energy, and that nothing was normalised per sample."""

    def test_power_per_band_within_four_standard_errors(self, spectrum, grid):
        covariance = ms.SpectralCovariance(spectrum, grid)
        draws = covariance.sample(range(4096))[:, 0].double().numpy()
        energy = np.abs(np.fft.fftn(draws, axes=range(1, draws.ndim), norm="ortho")) ** 2
        power = grid.full(covariance.power()).numpy()
        edges = np.linspace(0, 0.75, 9)
        place = np.digitize(dense.radius(grid), edges)
        place[dense.radius(grid) == 0] = 0
        for number in np.unique(place):
            inside = place == number
            per_draw = energy[:, inside].mean(axis=1)
            expected = power[inside].mean()
            standard_error = per_draw.std() / 64
            assert abs(per_draw.mean() - expected) <= 4 * standard_error + 1e-12, (number, expected)

    def test_energy_has_the_mean_and_the_spread_of_a_gaussian(self, spectrum, grid):
        """Dividing each sample by its own deviation would make the spread vanish."""
        covariance = ms.SpectralCovariance(spectrum, grid)
        energy = covariance.sample(range(4096))[:, 0].double().flatten(1).square().mean(1)
        variance = 2 * float(grid.mean(covariance.power() ** 2)) / grid.numel
        assert abs(energy.mean().item() - 1) < 4 * (variance / 4096) ** 0.5
        kurtosis = ((energy - energy.mean()) ** 4).mean() / energy.var() ** 2
        assert abs(energy.var().item() / variance - 1) < 4 * ((kurtosis.item() - 1) / 4096) ** 0.5


@pytest.mark.parametrize("spectrum", [ms.Flat(), ms.Flat(0.2), ms.TwoBand(), ms.PowerLaw(0.0)], ids=str)
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_white_noise_is_randn_bit_for_bit(spectrum, double):
    covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=9, x=8))
    covariance = covariance.double() if double else covariance
    seeds = [3, 1, 4, 2**32 - 1]
    dtype = torch.float64 if double else torch.float32
    expected = [torch.randn((3, 9, 8), generator=torch.Generator().manual_seed(s), dtype=dtype) for s in seeds]
    assert torch.equal(covariance.sample(seeds, channels=3), torch.stack(expected))


@pytest.mark.parametrize("spectrum", LAWS.values(), ids=LAWS.keys())
def test_a_sample_depends_on_its_seed_only(spectrum):
    covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=8, x=10)).double()
    torch.manual_seed(0)
    batch = covariance.sample(range(16), channels=3)
    torch.manual_seed(1)
    for seed in (0, 7, 15):
        torch.testing.assert_close(covariance.sample([seed], channels=3)[0], batch[seed], atol=1e-10, rtol=0)
    shuffled = covariance.sample([9, 3], channels=3)
    torch.testing.assert_close(shuffled, batch[[9, 3]], atol=1e-10, rtol=0)
    assert not torch.allclose(batch[0], batch[1])


@pytest.mark.parametrize("size", [50_000, 270_000])
def test_large_batches_are_drawn_in_parts_that_do_not_show(size):
    grid, seeds = ms.Grid.of(x=size), range(12)
    white = ms.SpectralCovariance(ms.Flat(), grid).sample(seeds)
    for item, seed in zip(white, seeds, strict=True):
        assert torch.equal(item, torch.randn((1, size), generator=torch.Generator().manual_seed(seed)))
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.3), grid)
    torch.testing.assert_close(covariance.sample(seeds), covariance.color(white), rtol=1e-5, atol=1e-5)


def test_drawing_leaves_the_global_generator_alone():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5), ms.Grid.of(x=16))
    state = torch.get_rng_state()
    covariance.sample([1, 2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "spectrum",
    [ms.PowerLaw(-0.5), ms.Autoregressive(0.7, axis="x"), ms.Gaussian(0.8), ms.Exponential(3.0).on("y")],
    ids=str,
)
def test_power_ratios_at_shared_frequencies_do_not_depend_on_the_grid(spectrum):
    """A floor tied to the size of the grid would change the correlation of the noise with the length of a clip."""
    grid = ms.Grid.of(y=8, x=12)
    covariance = ms.SpectralCovariance(spectrum, grid)
    small, large = covariance.power(), covariance.power((24, 48))
    ratio = large[::3, ::4] / small
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-12, atol=0)


def test_lag_one_correlation_settles_as_the_grid_grows():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0), ms.Grid.of(x=1024))
    lags = []
    for size in (1024, 4096, 16384):
        power = covariance.grid.resize((size,)).full(covariance.power((size,)))
        lags.append(float(torch.fft.ifft(power).real[1]))
    assert abs(lags[0] - lags[1]) < 0.01
    assert abs(lags[1] - lags[2]) < 0.001


def test_other_grid_sizes_are_served_like_their_own_covariance():
    spectrum, grid = ms.PowerLaw(-0.7), ms.Grid.of(y=8, x=8)
    covariance = ms.SpectralCovariance(spectrum, grid).double()
    other = ms.SpectralCovariance(spectrum, grid.resize((5, 12))).double()
    x = dense.random(2, 3, 5, 12)
    for name in ("color", "whiten", "apply", "solve", "project", "mahalanobis"):
        torch.testing.assert_close(getattr(covariance, name)(x), getattr(other, name)(x))
    assert torch.equal(covariance.sample([1], 2, grid_shape=(5, 12)), other.sample([1], 2))
    torch.testing.assert_close(covariance.logdet((5, 12)), other.logdet())
    assert torch.equal(covariance.support((5, 12)), other.support())


def test_support_of_a_band():
    grid = ms.Grid.of(y=9, x=8)
    support = ms.SpectralCovariance(ms.Band(0.1, 0.45), grid).support()
    np.testing.assert_array_equal(support.numpy(), dense.half(grid, dense.band(grid)) > 0)


@pytest.mark.parametrize("name", ["color", "whiten", "apply", "solve", "project"])
def test_gradients(name):
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=4, x=5)).double()
    x = dense.random(2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(getattr(covariance, name), x)
    assert torch.autograd.gradcheck(lambda x: covariance.mahalanobis(x[:, None]), x)


def test_the_input_is_left_as_it_was():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=4, x=5))
    x = torch.ones(2, 4, 5)
    covariance.color(x)
    assert torch.equal(x, torch.ones(2, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_comes_out(dtype):
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=7, x=6))
    x = dense.random(2, 3, 7, 6).to(dtype)
    for name in ("color", "whiten", "apply", "solve", "project"):
        result = getattr(covariance, name)(x)
        assert result.dtype == dtype
        expected = getattr(covariance, name)(x.float())
        torch.testing.assert_close(result, expected.to(dtype))


def test_mahalanobis_of_half_precision_does_not_overflow():
    """65,504 is the largest float16: the sum over an ordinary image exceeds it."""
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.2), ms.Grid.of(y=32, x=32))
    x = (10 * dense.random(1, 3, 32, 32)).to(torch.float16)
    result = covariance.mahalanobis(x)
    torch.testing.assert_close(result.double(), covariance.mahalanobis(x.double()), rtol=2e-3, atol=0)


def test_a_half_precision_module_draws_float32():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.2), ms.Grid.of(x=32))
    expected = covariance.sample([1])
    assert torch.equal(covariance.bfloat16().sample([1]), expected)


def test_autocast_changes_nothing():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=7, x=6))
    x, expected = torch.ones(2, 7, 6), covariance.sample([1, 2])
    plain = covariance.color(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(covariance.sample([1, 2]), expected)
        assert torch.equal(covariance.color(x), plain)
        assert covariance.color(x.bfloat16()).dtype == torch.bfloat16


def test_inside_a_compiled_function():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=7, x=6))

    def function(x):
        return covariance.color(x * 2) + covariance.sample([3], channels=1)

    x = torch.ones(1, 1, 7, 6, requires_grad=True)
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    (gradient,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (expected,) = torch.autograd.grad(function(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_it_stays_a_module():
    visited = []
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(x=6))
    parent = nn.Sequential(covariance, nn.Linear(2, 2))
    assert parent.apply(lambda module: visited.append(type(module).__name__)) is parent
    assert visited == ["SpectralCovariance", "Linear", "Sequential"]
    assert covariance.apply(lambda module: None) is covariance
    assert covariance.state_dict() == {}
    assert "PowerLaw" in repr(covariance)
    assert "x 6" in repr(covariance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda grid: ms.SpectralCovariance(ms.Band(0.8, 0.9), grid), "no power at any frequency"),
        (lambda grid: ms.SpectralCovariance(ms.Flat(0.0), grid), "no power"),
        (lambda grid: ms.SpectralCovariance(ms.Flat(), grid).sample([]), "at least one seed"),
        (lambda grid: ms.SpectralCovariance(ms.Flat(), grid).color(torch.zeros(8)), "expected"),
        (lambda grid: ms.SpectralCovariance(ms.PowerLaw(-500.0), grid), "non-finite"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make(ms.Grid.of(y=8, x=8))
