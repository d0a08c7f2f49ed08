"""Mixing two noises in frequency keeps their law; sampling again from such noise follows the seed alone."""

import dense
import numpy as np
import pytest
import torch

import multisagd as ms

GRIDS = {
    "1-D": ms.Grid.of(x=9),
    "2-D": ms.Grid.of(t=4, x=6),
    "3-D": ms.Grid.of(t=4, y=3, x=2),
}


def columns(function, grid: ms.Grid) -> np.ndarray:
    unit = torch.eye(grid.numel, dtype=torch.float64).reshape(-1, *grid.shape)
    return function(unit).reshape(grid.numel, -1).numpy().T


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spectrum", [ms.Flat(), ms.PowerLaw(-0.6, corner=0.1)], ids=["white", "power law"])
def test_the_mixture_of_two_noises_has_their_covariance(name: str, spectrum: ms.Spectrum) -> None:
    grid = GRIDS[name]
    low_pass, zero = ms.LowPass(0.25), torch.zeros(grid.numel, *grid.shape, dtype=torch.float64)
    low = columns(lambda unit: ms.mix_noise(unit, zero, low_pass, grid), grid)
    high = columns(lambda unit: ms.mix_noise(zero, unit, low_pass, grid), grid)
    matrix = dense.operator(grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy())
    np.testing.assert_allclose(low @ matrix @ low.T + high @ matrix @ high.T, matrix, atol=1e-12)
    # Weighing amplitudes by L and 1 - L instead loses variance.
    share = dense.operator(grid.full(low_pass.power(grid)).numpy())
    rest = np.eye(grid.numel) - share
    lost = share @ matrix @ share.T + rest @ matrix @ rest.T
    assert np.trace(lost) < 0.97 * np.trace(matrix)


def test_low_frequencies_come_from_the_first_and_high_from_the_second() -> None:
    grid = ms.Grid.of(t=16, x=16)
    first, second = (ms.SpectralCovariance(ms.Flat(), grid).double().sample([seed]) for seed in (1, 2))
    mixed = torch.fft.rfftn(ms.mix_noise(first, second, ms.Band(0.0, 0.2), grid), dim=(-2, -1))
    low = grid.radius() <= 0.2
    for part, source in ((low, first), (~low, second)):
        assert torch.allclose(mixed[0, 0][part], torch.fft.rfftn(source, dim=(-2, -1))[0, 0][part], atol=1e-9)


def test_refuses_what_is_no_share_and_shapes_that_differ() -> None:
    grid = ms.Grid.of(x=8)
    with pytest.raises(ValueError, match="no share of power"):
        ms.mix_noise(torch.zeros(1, 8), torch.zeros(1, 8), ms.Flat(2.0), grid)
    with pytest.raises(ValueError, match="one shape"):
        ms.mix_noise(torch.zeros(1, 8), torch.zeros(1, 7), ms.Flat(), grid)
    with pytest.raises(ValueError, match="iterations"):
        ms.Refinement(ms.LowPass(0.1), iterations=-1)


class TestRefined:
    grid = ms.Grid.of(frame=(6, 0.125, "s"), x=8)
    shape = (3, 1, 6, 8)

    def denoiser(self) -> ms.GaussianDenoiser:
        power = (ms.PowerLaw(-1.0, corner=0.1).on("x") * ms.Autoregressive(0.6, axis="frame")).power(self.grid)
        statistics = ms.DataStatistics(torch.ones(1, 6, 8, dtype=torch.float64), power[None], self.grid, 9)
        process = ms.Process(
            ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.2, corner=0.1, axes=("x",)), self.grid)
        )
        return ms.GaussianDenoiser(process.double(), statistics)

    def refined(self, seeds: list[int], low_pass: ms.Spectrum, iterations: int = 2) -> torch.Tensor:
        shape = (len(seeds), *self.shape[1:])
        refinement = ms.Refinement(low_pass, iterations)
        return ms.sample_refined(self.denoiser(), ms.Heun(), shape, 6, seeds, refinement)

    def test_no_iteration_is_plain_sampling(self) -> None:
        plain = ms.sample(self.denoiser(), ms.Heun(), self.shape, 6, [1, 2, 3])
        assert torch.equal(self.refined([1, 2, 3], ms.LowPass(0.2), 0), plain)

    def test_a_sample_follows_from_its_seed_alone(self) -> None:
        low_pass = ms.LowPass(1.0, factors={"frame": 0.5, "x": 4.0})
        alone, together = self.refined([2], low_pass), self.refined([1, 2, 3], low_pass)
        assert torch.allclose(alone[0], together[1], atol=1e-10)

    def test_keeping_nothing_is_a_fresh_sample_and_keeping_all_the_same_noise_again(self) -> None:
        fresh = [ms.seeds.derive(seed, "refine", 1) for seed in (1, 2, 3)]
        expected = ms.sample(self.denoiser(), ms.Heun(), self.shape, 6, fresh)
        assert torch.allclose(self.refined([1, 2, 3], ms.Flat(0.0)), expected, atol=1e-10)
        once = ms.sample(self.denoiser(), ms.Heun(), self.shape, 6, [1, 2, 3])
        # What the process leaves of the datum at t = 1 is e^-10 of it, so the noise is the same and so is the sample.
        assert torch.allclose(self.refined([1, 2, 3], ms.Flat(1.0), 1), once, atol=1e-2)

    def test_low_frequencies_stay_while_the_rest_is_drawn_anew(self) -> None:
        once = ms.sample(self.denoiser(), ms.Heun(), self.shape, 6, [1, 2, 3])
        low = self.grid.radius(factors={"frame": 0.125, "x": 1.0}) < 0.2
        again = self.refined([1, 2, 3], ms.Band(0.0, 0.2, factors={"frame": 0.125, "x": 1.0}), 1)
        difference = torch.fft.rfftn(again - once, dim=(-2, -1)).abs().amax((0, 1))
        assert difference[low].max() < 0.05
        assert difference[~low].min() > 0.1
