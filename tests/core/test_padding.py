"""Noise cropped from a longer grid, against the crop of the dense matrix."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense

GRIDS = {
    "1-D": (ms.Grid.of(x=6), {"x": 7}),
    "1-D, short padding": (ms.Grid.of(x=7), {"x": 2}),
    "2-D": (ms.Grid.of(t=4, x=5), {"t": 5}),
    "3-D": (ms.Grid.of(t=3, y=2, x=4), {"t": 4, "x": 1}),
}
SPECTRA = {
    "power law": ms.PowerLaw(-0.7, corner=0.1),
    "band": ms.Band(0.0, 0.3),
    "white": ms.Flat(),
}


class Case:
    def __init__(self, grid: str, spectrum: str) -> None:
        self.grid, padding = GRIDS[grid]
        self.covariance = ms.PaddedCovariance(SPECTRA[spectrum], self.grid, padding).double()
        longer = self.grid.resize([axis.size + padding.get(axis.name, 0) for axis in self.grid.axes])
        power = longer.full(ms.SpectralCovariance(SPECTRA[spectrum], longer).power()).numpy()
        inside = np.zeros(longer.shape, dtype=bool)
        inside[tuple(slice(size) for size in self.grid.shape)] = True
        self.root = dense.operator(np.sqrt(power))[inside.flatten()]
        self.matrix = self.root @ self.root.T
        self.longer = longer


@pytest.fixture(params=[(g, s) for g in GRIDS for s in SPECTRA], ids=lambda case: ", ".join(case))
def case(request) -> Case:
    return Case(*request.param)


def test_a_draw_is_the_crop_of_a_longer_one(case: Case) -> None:
    noise = case.covariance.sample([5, 6], channels=2)
    assert noise.is_contiguous()
    for item, seed in zip(noise, (5, 6), strict=True):
        white = torch.randn((2, *case.longer.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = white.reshape(2, -1).numpy() @ case.root.T
        np.testing.assert_allclose(item.reshape(2, -1).numpy(), expected, atol=1e-10)


def test_power_is_the_expected_periodogram_of_the_crop(case: Case) -> None:
    transform = dense.dft(case.grid.shape)
    expected = np.diag(transform @ case.matrix @ transform.conj().T).real.reshape(case.grid.shape)
    np.testing.assert_allclose(case.grid.full(case.covariance.power()).numpy(), expected, atol=1e-10)


def test_every_sample_has_unit_variance(case: Case) -> None:
    np.testing.assert_allclose(np.diag(case.matrix), 1.0, atol=1e-10)


def test_first_and_last_frame_are_no_neighbours() -> None:
    # The numbers of theory: autoregressive noise of .9 per frame over 16 frames.
    grid = ms.Grid.of(frame=16, x=2)
    spectrum = ms.Autoregressive(0.9, axis="frame")
    around = dense.operator(grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy())
    assert around[0, 15 * 2] == pytest.approx(0.93, abs=0.01)
    covariance = ms.PaddedCovariance(spectrum, grid, {"frame": 64})
    noise = covariance.sample(range(4000), channels=1)[:, 0]
    found = float((noise[:, 0] * noise[:, -1]).mean())
    assert found == pytest.approx(0.9**15, abs=4 / np.sqrt(8000))


def test_without_padding_it_is_the_covariance_itself() -> None:
    grid = ms.Grid.of(frame=6, x=5)
    padded = ms.PaddedCovariance(ms.PowerLaw(-0.5), grid, {})
    plain = ms.SpectralCovariance(ms.PowerLaw(-0.5), grid)
    assert torch.equal(padded.sample([1, 2], 3), plain.sample([1, 2], 3))
    assert torch.allclose(padded.power(), plain.power(), atol=1e-12)


def test_other_grid_sizes_are_served() -> None:
    covariance = ms.PaddedCovariance(ms.PowerLaw(-0.5), ms.Grid.of(frame=6, x=5), {"frame": 3})
    assert covariance.sample([1], 2, grid_shape=(8, 4)).shape == (1, 2, 8, 4)
    assert covariance.power((8, 4)).shape == (8, 3)


@pytest.mark.parametrize("operation", ["color", "whiten", "apply", "solve", "project", "logdet", "mahalanobis"])
def test_what_is_not_exact_is_refused(operation: str) -> None:
    covariance = ms.PaddedCovariance(ms.PowerLaw(-0.5), ms.Grid.of(frame=6, x=5), {"frame": 3})
    arguments = [] if operation == "logdet" else [torch.zeros(1, 1, 6, 5)]
    with pytest.raises(ValueError, match="padded grid"):
        getattr(covariance, operation)(*arguments)


@pytest.mark.parametrize(
    "padding",
    [{"time": 3}, {"frame": -1}, {"frame": 1.5}, {"frame": "many"}],
    ids=["axis", "negative", "half", "text"],
)
def test_refuses_impossible_padding(padding: dict) -> None:
    with pytest.raises(ValueError, match=r"axis|padding"):
        ms.PaddedCovariance(ms.Flat(), ms.Grid.of(frame=6, x=5), padding)


class Oracle(torch.nn.Module):
    """`E[x0 | x_t]` of Gaussian data under noise of any two covariance matrices."""

    def __init__(self, process: ms.Process, data: np.ndarray, noise: np.ndarray) -> None:
        super().__init__()
        self.process, self.data, self.noise = process, torch.from_numpy(data), torch.from_numpy(noise)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        alpha, sigma = (value[0] for value in self.process.schedule.alpha_sigma(t.double()))
        gain = alpha * self.data @ torch.linalg.inv(alpha**2 * self.data + sigma**2 * self.noise)
        return (x_t.reshape(len(x_t), -1) @ gain.T).reshape(x_t.shape)


@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.Heun()], ids=["DDIM", "Heun"])
def test_sampling_from_padded_noise_reaches_the_law_of_the_data(sampler) -> None:
    # A deterministic sampler of a linear denoiser is a matrix: its image of the noise's law is the law of its samples.
    grid = ms.Grid.of(frame=(8, 0.125, "s"))
    covariance = ms.PaddedCovariance(ms.Autoregressive(0.8, axis="frame"), grid, {"frame": 24}).double()
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-12.0, 12.0)), covariance)
    lags = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    data, longer = 0.6**lags, dense.operator(grid.resize((32,)).full(covariance.drawn.power()).numpy())
    noise = longer[:8, :8]
    unit = torch.eye(8, dtype=torch.float64)[:, None]
    matrix = ms.sample(Oracle(process, data, noise), sampler, (8, 1, 8), 400, range(8), initial=unit)[:, 0].numpy().T
    np.testing.assert_allclose(matrix @ noise @ matrix.T, data, atol=0.02)


def test_the_loss_uses_the_padded_noise_and_the_wiener_filter_is_refused() -> None:
    grid = ms.Grid.of(frame=(6, 0.125, "s"), x=8)
    covariance = ms.PaddedCovariance(ms.Autoregressive(time_constant=0.5, axis="frame"), grid, {"frame": 6})
    process = ms.Process(ms.CosineSchedule(), covariance)
    denoiser = ms.Denoiser(lambda x, log_snr, condition: torch.zeros_like(x), process, prediction="noise")  # type: ignore[arg-type]
    found = denoiser.loss(torch.zeros(2, 1, 6, 8), torch.tensor([0.3, 0.7]), seeds=[4, 5])
    assert torch.allclose(found, covariance.sample([4, 5]).square().flatten(1).mean(1))
    mean, power = torch.zeros(1, 6, 8, dtype=torch.float64), torch.ones(1, 6, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="padded grid"):
        ms.GaussianDenoiser(process, ms.DataStatistics(mean, power, grid, 9))
