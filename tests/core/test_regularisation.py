"""Spectral penalties equal full transforms and PyWavelets, item by item."""

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

import multisagd as ms
from multisagd.regularisation import SpectralPenalty
from tests.helpers import dense

GRIDS = [ms.Grid.of(time=9), ms.Grid.of(height=4, width=6), ms.Grid.of(frame=4, height=6, width=5)]
KINDS = ("amplitude", "amplitude_phase", "wavelet")
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))


def pair(grid: ms.Grid) -> tuple[Tensor, Tensor]:
    one, other = dense.random(2, 3, 2, *grid.shape)
    return one, other


@grids
def test_amplitude_penalties_average_over_the_full_spectrum(grid) -> None:
    one, other = pair(grid)
    dims = tuple(range(-grid.dimensions, 0))
    ours, theirs = (np.fft.fftn(each.numpy(), axes=dims, norm="ortho").reshape(3, -1) for each in (one, other))
    amplitude = np.abs(np.abs(ours) - np.abs(theirs)).mean(1)
    phase = np.abs(np.angle(ours * theirs.conj())).mean(1)
    for kind, expected in (("amplitude", amplitude), ("amplitude_phase", amplitude * (1 + phase))):
        penalty = SpectralPenalty(kind, weight=0.3)(one, other, grid)
        np.testing.assert_allclose(penalty.numpy(), 0.3 * expected, rtol=1e-10, err_msg=kind)


@grids
def test_wavelet_penalty_equals_pywavelets(grid) -> None:
    one, other = pair(grid)
    for wavelet in ("haar", "bior1.3"):
        axes = tuple(range(-grid.dimensions, 0))
        parts = pywt.dwtn((one - other).numpy(), wavelet, mode="zero", axes=axes)
        details = np.concatenate([value.reshape(3, -1) for name, value in parts.items() if "d" in name], 1)
        penalty = SpectralPenalty("wavelet", wavelet=wavelet)(one, other, grid)
        np.testing.assert_allclose(penalty.numpy(), np.abs(details).mean(1), rtol=1e-8, err_msg=wavelet)


@grids
def test_penalty_is_zero_for_a_right_estimate_and_has_finite_gradients(grid) -> None:
    one, other = pair(grid)
    for kind in KINDS:
        penalty = SpectralPenalty(kind)
        assert float(penalty(other, other, grid).abs().max()) < 1e-12, kind
        for estimate in (one.clone(), torch.zeros_like(one), other.clone()):
            estimate.requires_grad_()
            penalty(estimate, other, grid).sum().backward()
            assert bool(torch.isfinite(estimate.grad).all()), kind


@pytest.mark.parametrize("channels", [1, 2])
def test_penalty_ignores_padding(channels: int) -> None:
    one, other = pair(GRIDS[1])
    mask = torch.ones(3, channels, 4, 6, dtype=torch.bool)
    mask[:, 0, :, 4:] = False
    changed = torch.where(mask, one, 100.0)
    for kind in KINDS:
        penalty = SpectralPenalty(kind)
        torch.testing.assert_close(penalty(changed, other, GRIDS[1], mask), penalty(one, other, GRIDS[1], mask))


def test_loss_adds_the_penalty() -> None:
    grid, t, seeds = GRIDS[1], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), [1, 2, 3]
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid)).double()
    denoiser = ms.Denoiser(lambda x, log_snr, condition: 0.5 * x, process)  # type: ignore[arg-type]
    penalty, x0 = SpectralPenalty(weight=0.2), pair(grid)[0]
    estimate = denoiser(process.add_noise(x0, t, process.noise(x0.shape, seeds)), t)
    with_penalty = denoiser.loss(x0, t, seeds, penalty=penalty)
    torch.testing.assert_close(with_penalty, denoiser.loss(x0, t, seeds) + penalty(estimate, x0, grid))


def test_penalty_refuses_impossible_settings() -> None:
    for message, settings in (
        ("unknown penalty", {"kind": "cepstrum"}),
        ("weight > 0", {"weight": 0.0}),
        ("unknown wavelet", {"kind": "wavelet", "wavelet": "wavy"}),
        ("levels >= 1", {"kind": "wavelet", "levels": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralPenalty(**settings)
