"""Spectral penalties against full transforms and PyWavelets, item by item."""

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from multisagd import CosineSchedule, Denoiser, Flat, Grid, Process, SpectralCovariance
from multisagd.regularisation import PenaltyKind, SpectralPenalty

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=6), Grid.of(frame=4, height=6, width=5)]
ids = {"ids": lambda grid: "x".join(map(str, grid.shape))}


def pair(grid: Grid) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, 3, 2, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn[0], drawn[1]


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_amplitude_and_phase_over_the_full_spectrum(grid: Grid) -> None:
    one, other = pair(grid)
    dims = tuple(range(-grid.dimensions, 0))
    ours, theirs = (np.fft.fftn(each.numpy(), axes=dims, norm="ortho").reshape(3, -1) for each in (one, other))
    amplitude = np.abs(np.abs(ours) - np.abs(theirs)).mean(1)
    phase = np.abs(np.angle(ours * theirs.conj())).mean(1)
    for kind, expected in (("amplitude", amplitude), ("amplitude_phase", amplitude * (1 + phase))):
        found = SpectralPenalty(kind, weight=0.3)(one, other, grid)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.numpy(), 0.3 * expected, rtol=1e-10)


@pytest.mark.parametrize("wavelet", ["haar", "bior1.3"])
@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_wavelets_are_those_of_pywavelets(grid: Grid, wavelet: str) -> None:
    one, other = pair(grid)
    found = SpectralPenalty("wavelet", wavelet=wavelet)(one, other, grid)
    axes = tuple(range(-grid.dimensions, 0))
    parts = pywt.dwtn((one - other).numpy(), wavelet, mode="zero", axes=axes)
    details = [value.reshape(3, -1) for name, value in parts.items() if "d" in name]
    np.testing.assert_allclose(found.numpy(), np.abs(np.concatenate(details, 1)).mean(1), rtol=1e-8)


@pytest.mark.parametrize("kind", ["amplitude", "amplitude_phase", "wavelet"])
@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_a_right_estimate_has_no_penalty_and_gradients_are_finite(grid: Grid, kind: PenaltyKind) -> None:
    one, other = pair(grid)
    penalty = SpectralPenalty(kind)
    assert float(penalty(other, other, grid).abs().max()) < 1e-12
    for estimate in (one.clone(), torch.zeros_like(one), other.clone()):
        estimate.requires_grad_()
        penalty(estimate, other, grid).sum().backward()
        assert estimate.grad is not None
        assert bool(torch.isfinite(estimate.grad).all())


def test_amplitude_does_not_see_shifts_and_phase_does() -> None:
    one, _ = pair(GRIDS[1])
    moved = one.roll(1, -1)
    assert float(SpectralPenalty("amplitude")(moved, one, GRIDS[1]).max()) < 1e-12
    assert float(SpectralPenalty("amplitude_phase")(0.9 * moved, one, GRIDS[1]).min()) > 1.5 * float(
        SpectralPenalty("amplitude")(0.9 * moved, one, GRIDS[1]).min()
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_padding_counts_for_nothing(channels: int) -> None:
    one, other = pair(GRIDS[1])
    mask = torch.ones(3, channels, 4, 6, dtype=torch.bool)
    mask[:, 0, :, 4:] = False
    changed = torch.where(mask, one, 100.0)
    for kind in ("amplitude", "amplitude_phase", "wavelet"):
        penalty = SpectralPenalty(kind)  # type: ignore[arg-type]
        torch.testing.assert_close(penalty(changed, other, GRIDS[1], mask), penalty(one, other, GRIDS[1], mask))


def test_the_loss_adds_it_to_what_it_was() -> None:
    grid = GRIDS[1]
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), grid)).double()

    class Half(torch.nn.Module):
        def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
            return 0.5 * x

    denoiser, x0 = Denoiser(Half(), process), pair(grid)[0]
    t, seeds, penalty = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), [1, 2, 3], SpectralPenalty(weight=0.2)
    estimate = denoiser(process.add_noise(x0, t, process.noise(x0.shape, seeds)), t)
    torch.testing.assert_close(
        denoiser.loss(x0, t, seeds, penalty=penalty), denoiser.loss(x0, t, seeds) + penalty(estimate, x0, grid)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cepstrum"}, "unknown penalty"),
        ({"weight": 0.0}, "weight > 0"),
        ({"kind": "wavelet", "wavelet": "wavy"}, "unknown wavelet"),
        ({"kind": "wavelet", "levels": 0}, "levels >= 1"),
    ],
)
def test_impossible_penalties_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralPenalty(**settings)  # type: ignore[arg-type]
