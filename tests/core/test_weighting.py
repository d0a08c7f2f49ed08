"""Weightings equal their papers for every prediction, act at every frequency, and learn the loss's variance."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

LOG_SNR = torch.linspace(-12, 12, 25, dtype=torch.float64)
WEIGHTINGS = {
    "min_snr": ms.MinSNR(),
    "v": ms.MinSNR(offset=1),
    "soft": ms.SoftMinSNR(4),
    "karras": ms.KarrasWeighting(),
    "sigmoid": ms.SigmoidWeighting(),
}
# An error of x0 is an error of noise times σ/α, and of v times σ (variance preserving): so a weight of the squared
# error of x0 is one of the noise's times 1/SNR, and one of v's times σ² = 1/(1 + SNR).
PAPERS = {
    # 2303.09556, Section 3.4: min(SNR, γ) on x0, min(SNR, γ)/SNR on noise, min(SNR, γ)/(SNR + 1) on v.
    ("min_snr", "x0"): lambda snr: np.minimum(snr, 5),
    ("min_snr", "noise"): lambda snr: np.minimum(snr, 5) / snr,
    ("min_snr", "v"): lambda snr: np.minimum(snr, 5) / (snr + 1),
    # The unweighted error of v, limited: 1 up to SNR = γ - 1.
    ("v", "v"): lambda snr: np.minimum(1, 5 / (snr + 1)),
    # 2401.11605: 1/(σ² + 1/γ) on x0, with σ² = 1/SNR.
    ("soft", "x0"): lambda snr: 1 / (1 / snr + 0.25),
    # 2206.00364, Table 1: λ(σ) = (σ² + σ_data²)/(σ σ_data)² on x0, with σ² = 1/SNR.
    ("karras", "x0"): lambda snr: (1 / snr + 0.25) / (np.sqrt(1 / snr) * 0.5) ** 2,
    # 2303.00848, Section 4: sigmoid(-λ + k) on noise, k = 2.
    ("sigmoid", "noise"): lambda snr: 1 / (1 + np.exp(np.log(snr) - 2)),
    ("sigmoid", "x0"): lambda snr: snr / (1 + np.exp(np.log(snr) - 2)),
}
OUT_SQUARED = {"x0": lambda snr: np.ones_like(snr), "noise": lambda snr: 1 / snr, "v": lambda snr: 1 / (1 + snr)}


@pytest.mark.parametrize(("weighting", "prediction"), PAPERS)
def test_weighting_is_the_published_weight(weighting, prediction):
    snr = np.exp(LOG_SNR.numpy())
    weight = WEIGHTINGS[weighting](LOG_SNR, 0.5)
    np.testing.assert_allclose(
        weight.numpy() * OUT_SQUARED[prediction](snr), PAPERS[weighting, prediction](snr), rtol=1e-10
    )


@pytest.mark.parametrize("grid", [ms.Grid.of(x=7), ms.Grid.of(y=4, x=5), ms.Grid.of(t=2, y=3, x=4)], ids=str)
def test_per_frequency_weighs_each_frequency_by_its_own_snr(grid: ms.Grid) -> None:
    """Against the full transform: the error of x0 at each frequency, weighted by min(SNR/W, γ)."""
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid).double())
    denoiser = ms.Denoiser(lambda x, log_snr, condition: 0.3 * x, process, prediction="v")  # type: ignore[arg-type]
    x0, t = dense.random(3, 2, *grid.shape, seed=1), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    noise = process.noise(x0.shape, [1, 2, 3])
    dims = tuple(range(2, x0.ndim))
    error = torch.fft.fftn(denoiser(process.add_noise(x0, t, noise), t) - x0, dim=dims, norm="ortho").abs().square()
    impulse = torch.zeros(1, 1, *grid.shape, dtype=torch.float64)
    impulse.flatten()[0] = 1
    power = torch.fft.fftn(process.covariance.apply(impulse), dim=dims).real
    snr = process.schedule.log_snr(t).exp().reshape(-1, *(1,) * (x0.ndim - 1))
    expected = ((snr / power).clamp(max=5) * error).flatten(1).mean(1)
    loss = denoiser.loss(x0, t, [1, 2, 3], weighting=ms.PerFrequency(ms.MinSNR()))
    torch.testing.assert_close(loss, expected)


def test_per_frequency_changes_nothing_for_white_noise() -> None:
    grid = ms.Grid.of(y=4, x=5)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid).double())
    denoiser = ms.Denoiser(lambda x, log_snr, condition: 0.3 * x, process)  # type: ignore[arg-type]
    x0, t = dense.random(2, 1, *grid.shape, seed=2), torch.tensor([0.2, 0.7], dtype=torch.float64)
    plain, shaped = (
        denoiser.loss(x0, t, [1, 2], weighting=w) for w in (ms.SoftMinSNR(), ms.PerFrequency(ms.SoftMinSNR()))
    )
    torch.testing.assert_close(plain, shaped)


def test_uncertainty_weighting_learns_the_logarithm_of_the_loss() -> None:
    """The minimum of `loss/e^u + u` is at u = log loss; there every level contributes equally."""
    torch.manual_seed(0)
    weighting = ms.UncertaintyWeighting().double()
    levels = torch.linspace(-6, 6, 50, dtype=torch.float64)
    losses = (0.3 * levels).exp()
    assert torch.equal(weighting(losses, levels), losses)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weighting(losses, levels).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(weighting(losses, levels), 1 + losses.log(), atol=0.02, rtol=0)


def test_weightings_refuse_impossible_settings() -> None:
    grid = ms.Grid.of(x=8)
    plain = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    padded = ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), grid, {"x": 3}))
    blurred = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid), ms.Blur(1.0))

    def loss(process: ms.Process, weighting: ms.Weighting) -> torch.Tensor:
        denoiser = ms.Denoiser(lambda x, log_snr, condition: 0.0 * x, process)  # type: ignore[arg-type]
        return denoiser.loss(torch.ones(1, 1, 8), 0.5, [1], weighting=ms.PerFrequency(weighting))

    assert_refused(
        ("gamma must be positive", lambda: ms.MinSNR(0)),
        ("offset must be at least 0", lambda: ms.MinSNR(offset=-1)),
        ("gamma must be positive", lambda: ms.SoftMinSNR(-1)),
        ("remove the padding", lambda: loss(padded, ms.MinSNR())),
        ("the modulation", lambda: loss(blurred, ms.MinSNR())),
        ("not a uniform weighting", lambda: loss(plain, ms.UniformWeighting())),
    )
