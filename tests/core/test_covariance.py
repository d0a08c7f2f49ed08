"""A covariance is its dense matrix in every operation, its draws follow its law, and it behaves inside of models."""

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense

OPERATORS = {"color": 0.5, "whiten": -0.5, "apply": 1.0, "solve": -1.0, "project": 0.0}
"""The operations on tensors, each a power of the dense matrix over its range."""


class Case:
    """A covariance in float64 with its dense matrix, written from the formula of its power."""

    def __init__(self, grid: str, spectrum: str) -> None:
        self.name, self.grid = f"{spectrum} on {grid}", dense.GRIDS[grid]
        make, formula = dense.SPECTRA[spectrum]
        self.covariance = ms.SpectralCovariance(make(self.grid), self.grid).double()
        self.power = formula(self.grid) / formula(self.grid).mean()
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


@pytest.fixture(scope="module", params=dense.SPECTRA)
def cases(request) -> list[Case]:
    """One spectrum on every grid that has a frequency at which it is not zero."""
    formula = dense.SPECTRA[request.param][1]
    return [Case(name, request.param) for name, grid in dense.GRIDS.items() if formula(grid).any()]


def test_covariance_operators_are_powers_of_its_dense_matrix(cases):
    for case in cases:
        for name, exponent in OPERATORS.items():
            matrix = case.columns(getattr(case.covariance, name))
            np.testing.assert_allclose(matrix, case.root(exponent), atol=1e-10, err_msg=f"{name} of {case.name}")
        np.testing.assert_allclose(case.columns(case.covariance.apply), case.matrix, atol=1e-10, err_msg=case.name)
        x, c = dense.random(2, *case.grid.shape), case.covariance
        torch.testing.assert_close(c.color(c.color(x)), c.apply(x), atol=1e-12, rtol=1e-12)


def test_covariance_power_norm_and_logdet_are_those_of_its_dense_matrix(cases):
    for case in cases:
        half = dense.half(case.grid, case.power)
        np.testing.assert_allclose(case.covariance.power().numpy(), half, rtol=1e-10, atol=1e-12, err_msg=case.name)
        np.testing.assert_array_equal(case.covariance.support().numpy(), half > 1e-10, err_msg=case.name)
        values = np.linalg.eigvalsh(case.matrix)
        logdet = np.log(values[values > 1e-10 * values.max()]).sum()
        np.testing.assert_allclose(case.covariance.logdet().item(), logdet, atol=1e-9, err_msg=case.name)
        x, inverse = dense.random(3, 2, *case.grid.shape), np.linalg.pinv(case.matrix, rcond=1e-10, hermitian=True)
        norm = np.einsum("bci,ij,bcj->b", dense.flat(x, case.grid), inverse, dense.flat(x, case.grid))
        np.testing.assert_allclose(case.covariance.mahalanobis(x).numpy(), norm, rtol=1e-10, err_msg=case.name)


def test_sample_is_the_root_times_white_noise(cases):
    for case in cases:
        noise = case.covariance.sample([5, 6], channels=2)
        assert (noise.dtype, noise.shape) == (torch.float64, (2, 2, *case.grid.shape)), case.name
        for item, seed in zip(noise, (5, 6), strict=True):
            white = dense.random(2, *case.grid.shape, seed=seed)
            expected = dense.flat(white, case.grid) @ case.root(0.5)
            np.testing.assert_allclose(dense.flat(item, case.grid), expected, atol=1e-10, err_msg=case.name)


LAWS = {
    "white": ms.Flat(),
    "red": ms.PowerLaw(-0.5),
    "blue": ms.PowerLaw(0.5),
    "two bands": ms.TwoBand(weights=(0.8, 0.2)),
    "band": ms.Band(0.1, 0.3),
    "offset": ms.Flat() + ms.Offset(0.2),
}


@pytest.mark.parametrize("spectrum", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("grid", [ms.Grid.of(y=16, x=15), ms.Grid.of(x=64)], ids=["2-D", "1-D"])
def test_sample_follows_the_law_of_the_covariance(spectrum, grid):
    """4,096 draws, within 4 standard errors: power in every band, and mean and variance of the energy of a draw."""
    covariance = ms.SpectralCovariance(spectrum, grid)
    draws = covariance.sample(range(4096))[:, 0].double()
    spectra = np.abs(np.fft.fftn(draws.numpy(), axes=range(1, draws.ndim), norm="ortho")) ** 2
    power = grid.full(covariance.power()).numpy()
    ring = np.digitize(dense.radius(grid), np.linspace(0, 0.75, 9))
    ring[dense.radius(grid) == 0] = 0
    for number in np.unique(ring):
        per_draw, expected = spectra[:, ring == number].mean(axis=1), power[ring == number].mean()
        assert abs(per_draw.mean() - expected) <= 4 * per_draw.std() / 64 + 1e-12, (number, expected)
    # Dividing each sample by its own deviation would make the variance of the energy vanish.
    energy = draws.flatten(1).square().mean(1)
    variance = 2 * float(grid.mean(covariance.power() ** 2)) / grid.numel
    assert abs(energy.mean().item() - 1) < 4 * (variance / 4096) ** 0.5
    kurtosis = ((energy - energy.mean()) ** 4).mean() / energy.var() ** 2
    assert abs(energy.var().item() / variance - 1) < 4 * ((kurtosis.item() - 1) / 4096) ** 0.5


def test_sample_of_white_noise_is_randn_bit_for_bit():
    seeds = [3, 1, 4, 2**32 - 1]
    for spectrum in (ms.Flat(), ms.Flat(0.2), ms.TwoBand(), ms.PowerLaw(0.0)):
        for dtype in (torch.float32, torch.float64):
            covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=9, x=8)).to(dtype)
            expected = [torch.randn((3, 9, 8), generator=torch.Generator().manual_seed(s), dtype=dtype) for s in seeds]
            assert torch.equal(covariance.sample(seeds, channels=3), torch.stack(expected)), (spectrum, dtype)


@pytest.mark.parametrize("spectrum", LAWS.values(), ids=LAWS)
def test_sample_depends_on_its_seed_only(spectrum):
    covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=8, x=10)).double()
    state = torch.get_rng_state()
    batch = covariance.sample(range(16), channels=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    for seeds in ([0], [7], [15], [9, 3]):
        torch.testing.assert_close(covariance.sample(seeds, channels=3), batch[seeds], atol=1e-10, rtol=0)
    assert not torch.allclose(batch[0], batch[1])


@pytest.mark.parametrize("size", [50_000, 270_000])
def test_sample_of_large_batches_equals_single_draws(size):
    grid, seeds = ms.Grid.of(x=size), range(12)
    white = ms.SpectralCovariance(ms.Flat(), grid).sample(seeds)
    for item, seed in zip(white, seeds, strict=True):
        assert torch.equal(item, torch.randn((1, size), generator=torch.Generator().manual_seed(seed)))
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.3), grid)
    torch.testing.assert_close(covariance.sample(seeds), covariance.color(white), rtol=1e-5, atol=1e-5)


def test_power_ratios_at_shared_frequencies_do_not_depend_on_the_grid():
    """A floor tied to the size of the grid would change the correlation of the noise with the length of a clip."""
    spectra = (ms.PowerLaw(-0.5), ms.Autoregressive(0.7, axis="x"), ms.Gaussian(0.8), ms.Exponential(3.0).on("y"))
    for spectrum in spectra:
        covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=8, x=12))
        ratio = covariance.power((24, 48))[::3, ::4] / covariance.power()
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-12, atol=0)


def test_covariance_serves_other_grid_sizes():
    spectrum, grid = ms.PowerLaw(-0.7), ms.Grid.of(y=8, x=8)
    covariance = ms.SpectralCovariance(spectrum, grid).double()
    other = ms.SpectralCovariance(spectrum, grid.resize((5, 12))).double()
    x = dense.random(2, 3, 5, 12)
    for name in (*OPERATORS, "mahalanobis"):
        torch.testing.assert_close(getattr(covariance, name)(x), getattr(other, name)(x))
    assert torch.equal(covariance.sample([1], 2, grid_shape=(5, 12)), other.sample([1], 2))
    torch.testing.assert_close(covariance.logdet((5, 12)), other.logdet())
    assert torch.equal(covariance.support((5, 12)), other.support())


def test_covariance_operators_have_exact_gradients():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=4, x=5)).double()
    x = dense.random(2, 4, 5).requires_grad_()
    for name in OPERATORS:
        assert torch.autograd.gradcheck(getattr(covariance, name), x), name
    assert torch.autograd.gradcheck(lambda x: covariance.mahalanobis(x[:, None]), x)


def test_covariance_keeps_half_precision_and_computes_in_single():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=7, x=6))
    noise = covariance.sample([1, 2])
    for dtype in (torch.float16, torch.bfloat16):
        x = dense.random(2, 3, 7, 6).to(dtype)
        for name in OPERATORS:
            result = getattr(covariance, name)(x)
            assert result.dtype == dtype, name
            torch.testing.assert_close(result, getattr(covariance, name)(x.float()).to(dtype))
    x = torch.ones(2, 7, 6)
    plain = covariance.color(x)
    assert torch.equal(x, torch.ones(2, 7, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(covariance.sample([1, 2]), noise)
        assert torch.equal(covariance.color(x), plain)
        assert covariance.color(x.bfloat16()).dtype == torch.bfloat16
    # 65,504 is the largest float16: the squared norm of an ordinary image exceeds it.
    x = (10 * dense.random(1, 48, 32, 32)).to(torch.float16)
    torch.testing.assert_close(
        covariance.mahalanobis(x).double(), covariance.mahalanobis(x.double()), rtol=2e-3, atol=0
    )
    assert torch.equal(covariance.bfloat16().sample([1, 2]), noise)


def test_covariance_works_inside_a_compiled_function():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(y=7, x=6))

    def function(x):
        return covariance.color(x * 2) + covariance.sample([3], channels=1)

    x = torch.ones(1, 1, 7, 6, requires_grad=True)
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    gradients = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (compiled, function)]
    torch.testing.assert_close(*gradients)


def test_covariance_is_a_module():
    visited = []
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(x=6))
    parent = nn.Sequential(covariance, nn.Linear(2, 2))
    assert parent.apply(lambda module: visited.append(type(module).__name__)) is parent
    assert visited == ["SpectralCovariance", "Linear", "Sequential"]
    assert covariance.apply(lambda module: None) is covariance
    assert covariance.state_dict() == {}
    assert "PowerLaw" in repr(covariance)
    assert "x 6" in repr(covariance)


def test_covariance_refuses_impossible_spectra_and_calls():
    grid = ms.Grid.of(y=8, x=8)
    for make, message in (
        (lambda: ms.SpectralCovariance(ms.Band(0.8, 0.9), grid), "no power at any frequency"),
        (lambda: ms.SpectralCovariance(ms.Flat(0.0), grid), "no power"),
        (lambda: ms.SpectralCovariance(ms.PowerLaw(-500.0), grid), "non-finite"),
        (lambda: ms.SpectralCovariance(ms.Flat(), grid).sample([]), "at least one seed"),
        (lambda: ms.SpectralCovariance(ms.Flat(), grid).color(torch.zeros(8)), "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
