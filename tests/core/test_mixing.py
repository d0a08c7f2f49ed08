"""Mixing two noises in frequency keeps their law; sampling again from such noise follows the seed alone."""

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.mixing import share_of_power
from tests.helpers import dense

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
    with pytest.raises(ValueError, match="not a share of power"):
        ms.mix_noise(torch.zeros(1, 8), torch.zeros(1, 8), ms.Flat(2.0), grid)
    with pytest.raises(ValueError, match="one shape"):
        ms.mix_noise(torch.zeros(1, 8), torch.zeros(1, 7), ms.Flat(), grid)
    with pytest.raises(ValueError, match="not a share of power"):
        share_of_power(ms.Exponential(-1.0), grid)
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

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_each_round_starts_from_the_last_sample_noised_or_from_noise(self, share: float) -> None:
        denoiser, seeds = self.denoiser(), [1, 2, 3]
        process = denoiser.process
        start = process.schedule.time(torch.tensor([-4.0], dtype=torch.float64))
        times = float(start) * torch.linspace(1, 0, 7, dtype=torch.float64)
        x0 = ms.sample(denoiser, ms.Heun(), self.shape, 6, seeds)
        for iteration in range(2):
            fresh = [ms.seeds.derive(seed, "refine", iteration) for seed in seeds]
            low = [ms.seeds.derive(seed, "refine/low", iteration) for seed in seeds]
            initial = process.add_noise(share * x0, start, process.noise(self.shape, low if share else fresh))
            x0 = ms.sample(denoiser, ms.Heun(), self.shape, 6, fresh, times=times, initial=initial)
        refinement = ms.Refinement(ms.Flat(share), 2, log_snr=-4.0)
        found = ms.sample_refined(denoiser, ms.Heun(), self.shape, 6, seeds, refinement)
        assert torch.allclose(found, x0, atol=1e-10)

    def test_what_is_kept_is_low_in_frequency_and_more_at_a_higher_log_snr(self) -> None:
        seeds = list(range(200))
        once = self.refined(seeds, ms.Flat(0.0), 0)
        low = self.grid.radius(factors={"frame": 0.125, "x": 1.0}) < 0.2
        low_pass = ms.Band(0.0, 0.2, factors={"frame": 0.125, "x": 1.0})

        def likeness(log_snr: float) -> tuple[float, float]:
            again = ms.sample_refined(
                self.denoiser(), ms.Heun(), (200, *self.shape[1:]), 6, seeds, ms.Refinement(low_pass, 1, log_snr)
            )
            pair = [torch.fft.rfftn(x - 1, dim=(-2, -1))[:, 0] for x in (once, again)]
            products = (pair[0] * pair[1].conj()).real
            sizes = pair[0].abs().square() * pair[1].abs().square()
            return tuple(float(products[:, part].sum() / sizes[:, part].sqrt().sum()) for part in (low, ~low))

        far, near = likeness(-12.0), likeness(-1.0)
        assert abs(far[0]) < 0.25
        assert near[0] > 0.6
        assert abs(near[1]) < 0.15

    def test_samples_drawn_again_have_the_law_of_the_data(self) -> None:
        # Adding the first noise again instead of new noise would double the power of the lowest frequencies.
        denoiser, seeds = self.denoiser(), list(range(600))
        low_pass = ms.Band(0.0, 0.2, factors={"frame": 0.125, "x": 1.0})
        refinement = ms.Refinement(low_pass, 2, log_snr=-5.0)
        x0 = ms.sample_refined(denoiser, ms.Heun(), (600, *self.shape[1:]), 64, seeds, refinement)
        power = torch.fft.rfftn(x0 - 1, dim=(-2, -1), norm="ortho").abs().square().mean((0, 1))
        ratio = power / denoiser.statistics.power[0]
        low = self.grid.radius(factors={"frame": 0.125, "x": 1.0}) < 0.2
        # 600 draws tell a power to 6 %, or 4 % where it is of a complex number.
        assert float((ratio[low] - 1).abs().max()) < 0.2
        # Of high frequencies nothing is kept, not even the little that a log-SNR of -5 leaves of them.
        assert 0.85 < float(ratio[~low].mean()) < 1.05
