"""Noise cropped from a longer grid has the crop of the dense matrix as its covariance."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense
from tests.helpers.networks import DenseDenoiser

GRIDS = {
    "1-D": (ms.Grid.of(x=6), {"x": 7}),
    "1-D, short padding": (ms.Grid.of(x=7), {"x": 2}),
    "2-D": (ms.Grid.of(t=4, x=5), {"t": 5}),
    "3-D": (ms.Grid.of(t=3, y=2, x=4), {"t": 4, "x": 1}),
}
SPECTRA = {"power law": ms.PowerLaw(-0.7, corner=0.1), "band": ms.Band(0.0, 0.3), "white": ms.Flat()}
VIDEO, CLIP = ms.Grid.of(frame=6, x=5), ms.Grid.of(frame=(6, 0.125, "s"), x=8)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(("grid", "padding"), GRIDS.values(), ids=GRIDS)
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


def test_padded_noise_correlates_first_and_last_frame_as_a_stationary_process() -> None:
    """The number of theory: autoregressive noise of .9 per frame over 16 frames has .21 between the ends, not .93."""
    covariance = ms.PaddedCovariance(ms.Autoregressive(0.9, axis="frame"), ms.Grid.of(frame=16, x=2), {"frame": 64})
    noise = covariance.sample(range(4000), channels=1)[:, 0]
    assert float((noise[:, 0] * noise[:, -1]).mean()) == pytest.approx(0.9**15, abs=4 / np.sqrt(8000))


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


@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.Heun()], ids=["DDIM", "Heun"])
def test_sample_from_padded_noise_reaches_the_law_of_the_data(sampler) -> None:
    # A deterministic sampler of a linear denoiser is a matrix: its image of the noise's law is the law of its samples.
    grid = ms.Grid.of(frame=(8, 0.125, "s"))
    covariance = ms.PaddedCovariance(ms.Autoregressive(0.8, axis="frame"), grid, {"frame": 24}).double()
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-12.0, 12.0)), covariance)
    data = 0.6 ** (torch.arange(8)[:, None] - torch.arange(8)).abs().double()
    noise = dense.tensor(dense.operator(grid.resize((32,)).full(covariance.drawn.power()).numpy())[:8, :8])
    denoiser, unit = DenseDenoiser(process, data, noise), torch.eye(8, dtype=torch.float64)[:, None]
    matrix = ms.sample(denoiser, sampler, (8, 1, 8), 400, range(8), initial=unit)[:, 0].T
    torch.testing.assert_close(matrix @ noise @ matrix.T, data, atol=0.02, rtol=0)


def test_loss_uses_padded_noise_and_gaussian_denoiser_refuses_it() -> None:
    covariance = ms.PaddedCovariance(ms.Autoregressive(time_constant=0.5, axis="frame"), CLIP, {"frame": 6})
    process = ms.Process(ms.CosineSchedule(), covariance)
    denoiser = ms.Denoiser(lambda x, log_snr, condition: torch.zeros_like(x), process, prediction="noise")
    loss = denoiser.loss(torch.zeros(2, 1, 6, 8), torch.tensor([0.3, 0.7]), seeds=[4, 5])
    assert torch.allclose(loss, covariance.sample([4, 5]).square().flatten(1).mean(1))
    statistics = dense.stationary(np.ones(CLIP.shape), CLIP)
    with pytest.raises(ValueError, match="padded grid"):
        ms.GaussianDenoiser(process, statistics)
