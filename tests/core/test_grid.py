"""Grids have NumPy's frequencies, and their sums and mirror images are those of the full spectrum."""

import numpy as np
import pytest
import torch

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
        ("its axes are y, x", lambda: grid.axis("z")),
        ("no axis 'z'", lambda: grid.select(["z"])),
        ("expected 2 sizes", lambda: grid.resize((4,))),
        ("factors given for", lambda: grid.radius(factors={"z": 1.0})),
        ("factors given for", lambda: grid.radius(("y",), factors={"x": 1.0})),
        ("half spectrum", lambda: grid.mean(torch.zeros(4, 4))),
    )


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
