"""Grids have NumPy's frequencies; a covariance, also of a longer grid, is its dense matrix, also inside of models."""

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense
from tests.helpers.refusals import assert_refused


@pytest.fixture(params=dense.GRIDS.values(), ids=dense.GRIDS)
def grid(request) -> ms.Grid:
    return request.param


def test_grid_mean_and_full_count_every_bin_of_the_full_spectrum(grid):
    assert torch.fft.rfftn(torch.zeros(grid.shape)).shape == grid.half_shape
    last, stored = grid.shape[-1], grid.half_shape[-1]
    counts = np.zeros(stored)
    for k in range(last):
        counts[k if k < stored else last - k] += 1
    np.testing.assert_array_equal(grid.multiplicity.numpy(), np.broadcast_to(counts, grid.half_shape))
    assert float(grid.multiplicity.sum()) == grid.numel
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape).numpy())) ** 2
    half = dense.tensor(dense.half(grid, energy))
    np.testing.assert_allclose(grid.full(half).numpy(), energy, rtol=1e-10)
    batch = torch.stack([half, 2 * half])
    np.testing.assert_allclose(grid.full(batch)[1].numpy(), 2 * energy, rtol=1e-10)
    np.testing.assert_allclose(grid.mean(half).item(), energy.mean(), rtol=1e-12)
    np.testing.assert_allclose(grid.mean(batch).numpy(), [energy.mean(), 2 * energy.mean()], rtol=1e-12)


def test_grid_even_averages_each_bin_with_its_mirror_image(grid):
    """A real field filtered by any real gain depends on the even part of the gain only."""
    gain = torch.rand(grid.half_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    even, x, dims = grid.even(gain), dense.random(*grid.shape), tuple(range(grid.dimensions))
    filtered = [torch.fft.irfftn(g * torch.fft.rfftn(x, dim=dims), s=grid.shape, dim=dims) for g in (gain, even)]
    torch.testing.assert_close(*filtered)
    full = grid.full(even).numpy()
    for index in np.ndindex(grid.shape):
        assert full[index] == full[tuple(-i % size for i, size in zip(index, grid.shape, strict=True))]
    assert torch.equal(grid.even(even), even)


def test_grid_radius_and_frequencies_are_those_of_numpy(grid):
    np.testing.assert_allclose(grid.radius().numpy(), dense.half(grid, dense.radius(grid)), atol=1e-15)
    for name, expected in zip(grid.names, dense.frequencies(grid), strict=True):
        ours = grid.frequencies(name).expand(grid.half_shape).numpy()
        # NumPy stores the Nyquist frequency of an even axis as negative, rfft as positive: the same bin.
        np.testing.assert_allclose(np.abs(ours), np.abs(dense.half(grid, expected)), atol=1e-15)


def test_grid_frequencies_are_in_cycles_per_unit_and_compare_by_factors_only():
    seconds = ms.Grid.of(time=(100, 1 / 50, "s"))
    assert float(seconds.radius().max()) == pytest.approx(25.0)
    assert seconds.axis("time").nyquist == seconds.resize((300,)).axis("time").nyquist == 25.0
    assert seconds.axis("time").corner_frequency == pytest.approx(50 / 256)
    grid = ms.Grid.of(time=(6, 0.04, "s"), y=5, x=4)
    t, y, x = dense.frequencies(grid)
    expected = dense.half(grid, np.sqrt((0.1 * t) ** 2 + (2 * y) ** 2 + x**2))
    np.testing.assert_allclose(grid.radius(factors={"time": 0.1, "y": 2.0}).numpy(), expected, atol=1e-15)
    plane = dense.half(grid, np.sqrt(y**2 + x**2) + 0 * t)
    np.testing.assert_allclose(grid.radius(("y", "x")).numpy(), plane, atol=1e-15)
    assert grid.corner(factors={"time": 0.1}) == pytest.approx(max(0.1 / 0.04, 1) / 256)
    grid.radius(factors={"time": 1.0})
    grid.radius(("time",))
    with pytest.raises(ValueError, match=r"time in cycles per s.*specify factors"):
        grid.radius()
    with pytest.raises(ValueError, match=r"time in cycles per s"):
        ms.SpectralCovariance(ms.PowerLaw(-0.5), grid)


def test_grid_errors_name_the_offender():
    grid = ms.Grid.of(y=4, x=4)
    assert_refused(
        ("at least one axis", lambda: ms.Grid(())),
        ("must differ", lambda: ms.Grid((ms.Axis("x", 4), ms.Axis("x", 5)))),
        ("'x': size", lambda: ms.Grid.of(x=0)),
        ("positive integer", lambda: ms.Grid.of(x=2.5)),
        ("'x': spacing", lambda: ms.Grid.of(x=(4, 0.0))),
        ("spacing", lambda: ms.Axis("x", 4, spacing=float("nan"))),
        ("corner", lambda: ms.Axis("x", 4, corner=-1.0)),
        ("periodic must be true or false", lambda: ms.Axis("x", 4, periodic="no")),
        ("its axes are y, x", lambda: grid.axis("z")),
        ("no axis 'z'", lambda: grid.select(["z"])),
        ("expected 2 sizes", lambda: grid.resize((4,))),
        ("factors given for", lambda: grid.radius(factors={"z": 1.0})),
        ("factors given for", lambda: grid.radius(("y",), factors={"x": 1.0})),
        ("half spectrum", lambda: grid.mean(torch.zeros(4, 4))),
    )


def test_resized_periodic_axis_is_no_longer_a_circle():
    grid = ms.Grid((ms.Axis("latitude", 3), ms.Axis("longitude", 8, 45.0, "degree", periodic=True)))
    assert grid.periodic == grid.resize((5, 8)).periodic == (False, True)
    assert grid.resize((3, 7)).periodic == grid.resize((3, 16)).periodic == (False, False)
    assert str(grid.axes[1]) == "longitude 8 × 45 degree (periodic)"
    assert "longitude 8 (periodic)" in repr(ms.SpectralCovariance(ms.Flat(), grid))


@pytest.mark.parametrize("shape", [(7,), (8,), (8, 8), (6, 5), (4, 3, 5)])
def test_grid_bands_hold_every_frequency_once(shape):
    grid = ms.Grid.of(**{f"axis{place}": (size, 0.5, "s") for place, size in enumerate(shape)})
    bands = grid.bands(4)
    torch.testing.assert_close(sum(weight for _, _, weight in bands), grid.multiplicity, rtol=0, atol=0)
    assert bands[0][:2] == (0.0, 0.0)
    assert float(bands[0][2].sum()) == 1
    radius = grid.radius() * 0.5  # cycles per sample
    for low, high, weight in bands[1:]:
        inside = radius[weight > 0]
        assert low - 1e-6 <= float(inside.min()) <= float(inside.max()) <= high + 1e-6


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


def test_sample_of_white_noise_is_randn_bit_for_bit():
    seeds, state = [3, 1, 4, 2**32 - 1], torch.get_rng_state()
    for spectrum in (ms.Flat(), ms.Flat(0.2), ms.TwoBand(), ms.PowerLaw(0.0)):
        for dtype in (torch.float32, torch.float64):
            covariance = ms.SpectralCovariance(spectrum, ms.Grid.of(y=9, x=8)).to(dtype)
            expected = [torch.randn((3, 9, 8), generator=torch.Generator().manual_seed(s), dtype=dtype) for s in seeds]
            assert torch.equal(covariance.sample(seeds, channels=3), torch.stack(expected)), (spectrum, dtype)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [50_000, 270_000])
def test_sample_of_large_batches_equals_single_draws(size):
    grid, seeds = ms.Grid.of(x=size), range(12)
    white = ms.SpectralCovariance(ms.Flat(), grid).sample(seeds)
    for item, seed in zip(white, seeds, strict=True):
        assert torch.equal(item, torch.randn((1, size), generator=torch.Generator().manual_seed(seed)))
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.3), grid)
    torch.testing.assert_close(covariance.sample(seeds), covariance.color(white), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("sizes", [(8,), (6, 8), (4, 6, 8)], ids=["1-D", "2-D", "3-D"])
def test_covariance_of_other_sizes_keeps_ratios_of_power_at_shared_frequencies(sizes: tuple[int, ...]) -> None:
    grid = ms.Grid.of(**{f"axis{number}": (size, 0.5, "s") for number, size in enumerate(sizes)})
    factors = (3, 2, 1)[: len(sizes)]
    for spectrum in (ms.PowerLaw(-0.7), ms.Gaussian(0.1), ms.Exponential(1.0), ms.Band(0.1, 0.4)):
        covariance = ms.SpectralCovariance(spectrum, grid)
        longer = covariance.power([size * factor for size, factor in zip(sizes, factors, strict=True)])
        own, shared = covariance.power(), longer[tuple(slice(None, None, factor) for factor in factors)]
        assert shared.shape == own.shape
        assert torch.equal(shared > 0, own > 0)
        ratios = shared[own > 0] / own[own > 0]
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


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
    """Its `apply` multiplies tensors, and visits modules as that of every module does."""
    visited, covariance = [], ms.SpectralCovariance(ms.PowerLaw(-0.7), ms.Grid.of(x=6))
    nn.Sequential(covariance, nn.Linear(2, 2)).apply(lambda module: visited.append(type(module).__name__))
    assert visited == ["SpectralCovariance", "Linear", "Sequential"]
    assert covariance.state_dict() == {}


def test_covariance_refuses_impossible_spectra_and_calls():
    grid = ms.Grid.of(y=8, x=8)
    assert_refused(
        ("no power at any frequency", lambda: ms.SpectralCovariance(ms.Band(0.8, 0.9), grid)),
        ("non-finite", lambda: ms.SpectralCovariance(ms.PowerLaw(-500.0), grid)),
        ("at least one seed", lambda: ms.SpectralCovariance(ms.Flat(), grid).sample([])),
        ("expected", lambda: ms.SpectralCovariance(ms.Flat(), grid).color(torch.zeros(8))),
    )


PADDED = {
    "1-D": (ms.Grid.of(x=6), {"x": 7}),
    "1-D, short padding": (ms.Grid.of(x=7), {"x": 2}),
    "2-D": (ms.Grid.of(t=4, x=5), {"t": 5}),
    "3-D": (ms.Grid.of(t=3, y=2, x=4), {"t": 4, "x": 1}),
}
VIDEO = ms.Grid.of(frame=6, x=5)


@pytest.mark.parametrize("spectrum", [ms.PowerLaw(-0.7, corner=0.1), ms.Band(0.0, 0.3)], ids=["power law", "band"])
@pytest.mark.parametrize(("grid", "padding"), PADDED.values(), ids=PADDED)
def test_padded_covariance_draws_the_crop_of_a_longer_grid(grid, padding, spectrum) -> None:
    """Samples, the expected periodogram and unit variance, against the crop of the dense root."""
    covariance = ms.PaddedCovariance(spectrum, grid, padding).double()
    longer = grid.resize([axis.size + padding.get(axis.name, 0) for axis in grid.axes])
    power = longer.full(ms.SpectralCovariance(spectrum, longer).power()).numpy()
    inside = np.zeros(longer.shape, dtype=bool)
    inside[tuple(slice(size) for size in grid.shape)] = True
    root = dense.operator(np.sqrt(power))[inside.flatten()]
    matrix, transform = root @ root.T, dense.dft(grid.shape)
    np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-10)
    periodogram = np.diag(transform @ matrix @ transform.conj().T).real.reshape(grid.shape)
    np.testing.assert_allclose(grid.full(covariance.power()).numpy(), periodogram, atol=1e-10)
    noise = covariance.sample([5, 6], channels=2)
    assert noise.is_contiguous()
    for item, seed in zip(noise, (5, 6), strict=True):
        white = dense.random(2, *longer.shape, seed=seed)
        np.testing.assert_allclose(item.reshape(2, -1).numpy(), dense.flat(white, longer) @ root.T, atol=1e-10)


def test_padded_covariance_without_padding_is_the_plain_covariance_and_serves_other_sizes() -> None:
    spectrum = ms.PowerLaw(-0.5)
    unpadded, plain = ms.PaddedCovariance(spectrum, VIDEO, {}), ms.SpectralCovariance(spectrum, VIDEO)
    assert torch.equal(unpadded.sample([1, 2], 3), plain.sample([1, 2], 3))
    assert torch.allclose(unpadded.power(), plain.power(), atol=1e-12)
    padded = ms.PaddedCovariance(spectrum, VIDEO, {"frame": 3})
    assert padded.sample([1], 2, grid_shape=(8, 4)).shape == (1, 2, 8, 4)
    assert padded.power((8, 4)).shape == (8, 3)


def test_padded_covariance_refuses_operations_that_are_not_exact_and_impossible_padding() -> None:
    covariance = ms.PaddedCovariance(ms.PowerLaw(-0.5), VIDEO, {"frame": 3})
    for operation in ("color", "whiten", "apply", "solve", "project", "logdet", "mahalanobis"):
        with pytest.raises(ValueError, match="padded grid"):
            getattr(covariance, operation)(*([] if operation == "logdet" else [torch.zeros(1, 1, 6, 5)]))
    for padding in ({"time": 3}, {"frame": -1}, {"frame": 1.5}, {"frame": "many"}):
        with pytest.raises(ValueError, match=r"axis|padding"):
            ms.PaddedCovariance(ms.Flat(), VIDEO, padding)
    circle = ms.Grid((ms.Axis("frame", 8), ms.Axis("angle", 4, periodic=True)))
    with pytest.raises(ValueError, match="this axis is periodic"):
        ms.PaddedCovariance(ms.Flat(), circle, {"angle": 1})
    assert ms.PaddedCovariance(ms.Flat(), circle, {"frame": 1, "angle": 0}).sample([0], 1).shape == (1, 1, 8, 4)
    with pytest.raises(ValueError, match="remove the padding"):
        ms.GaussianDenoiser(ms.Process(ms.CosineSchedule(), covariance), dense.stationary(np.ones(VIDEO.shape), VIDEO))


def test_covariance_names_spectrum_and_grid() -> None:
    assert "grid=y 4×x 5" in repr(ms.SpectralCovariance(ms.Flat(), ms.Grid.of(y=4, x=5)))
