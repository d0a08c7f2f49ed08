"""Metrics, penalties and weightings equal dense matrices, PyWavelets and the papers; seeds and times never change."""

import numpy as np
import pytest
import pywt
import scipy.stats
import torch
from torch import Tensor

import multisagd as ms
from multisagd.denoiser import UNIFORM
from multisagd.loss import squared_error
from multisagd.regularisation import SpectralPenalty
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

GRID = ms.Grid.of(y=5, x=6)
COLORED = ms.SpectralCovariance(ms.PowerLaw(-1.0), GRID).double()


@pytest.mark.parametrize("spectrum", [ms.PowerLaw(-1.0), ms.Flat(), ms.Band(0.1, 0.4)], ids=str)
def test_squared_error_equals_dense_matrices(spectrum):
    c = ms.SpectralCovariance(spectrum, GRID).double()
    error = dense.random(3, 2, *GRID.shape)
    vectors = dense.flat(error, GRID)
    inverse = np.linalg.pinv(dense.operator(GRID.full(c.power()).numpy()), rcond=1e-10, hermitian=True)
    np.testing.assert_allclose(squared_error(error, c).numpy(), (vectors**2).mean((1, 2)), rtol=1e-12)
    expected = np.einsum("bci,ij,bcj->b", vectors, inverse, vectors) / (2 * GRID.numel)
    np.testing.assert_allclose(squared_error(error, c, "mahalanobis").numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("channels", [1, 2])
def test_squared_error_with_a_mask_leaves_padding_out(channels):
    """The mean over valid values, each counted once, and the Mahalanobis norm by a dense matrix."""
    error = dense.random(4, 2, *GRID.shape)
    mask = dense.random(4, channels, *GRID.shape, seed=1) > 0
    mask[0, -1], mask[3] = channels == 1, False
    every = mask.expand(4, 2, *GRID.shape)
    padded = torch.where(mask, error, 1e6)
    expected = torch.stack([*(error[n][every[n]].square().mean() for n in range(3)), torch.zeros(()).double()])
    torch.testing.assert_close(squared_error(padded, COLORED, mask=mask), expected)
    vectors = dense.flat(torch.where(mask, error, 0.0), GRID)
    inverse = np.linalg.inv(dense.operator(GRID.full(COLORED.power()).numpy()))
    whole = np.einsum("bci,ij,bcj->b", vectors, inverse, vectors)[:3] / every.flatten(1).sum(1).numpy()[:3]
    np.testing.assert_allclose(squared_error(padded, COLORED, "mahalanobis", mask)[:3].numpy(), whole, rtol=1e-8)
    full = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for metric in ("euclidean", "mahalanobis"):
        torch.testing.assert_close(squared_error(error, COLORED, metric, full), squared_error(error, COLORED, metric))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squared_error_sums_half_precision_in_float32(dtype):
    c = ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID).double()
    error = (300 * dense.random(2, 1, *GRID.shape)).to(dtype)
    for metric in ("euclidean", "mahalanobis"):
        result = squared_error(error, c, metric)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), squared_error(error.double(), c, metric), rtol=1e-4, atol=0)


def test_stratified_uniform_puts_one_number_into_each_stratum_for_any_number_of_ranks():
    strata, within = [], []
    for step in range(200):
        u = ms.stratified_uniform(3, step, 16)
        assert u.dtype == torch.float64
        assert ((u > 0) & (u < 1)).all()
        strata.append((u * 16).floor())
        within.append((u * 16) % 1)
        assert torch.equal(strata[-1].sort().values, torch.arange(16, dtype=torch.float64))
    assert all(len(column.unique()) == 16 for column in torch.stack(strata).T)
    assert scipy.stats.kstest(torch.cat(within).numpy(), "uniform").pvalue > 0.001
    # However ranks split the batch.
    whole = ms.stratified_uniform(3, 7, 24)
    for size in (1, 6, 8, 12):
        parts = [ms.stratified_uniform(3, 7, 24, start, size) for start in range(0, 24, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(ms.stratified_uniform(3, 7, 24, 20), whole[20:])
    assert not torch.equal(ms.stratified_uniform(3, 8, 24), whole)
    assert not torch.equal(ms.stratified_uniform(4, 7, 24), whole)


def test_seeds_are_distinct_and_never_change():
    """Golden: a resumed or repeated run of any later version must draw the same numbers."""
    assert ms.seeds.derive(0, "noise", 0, 0) == 0x7597EDFA
    assert ms.seeds.derive(7, "time", 12, 3) == 0x9B4C9F5D
    many = ms.seeds.derive_many(5, "noise", 3, range(1000))
    assert len(set(many)) == 1000
    assert all(0 <= seed < 2**32 for seed in many)
    assert many[7] == ms.seeds.derive(5, "noise", 3, 7)
    assert ms.seeds.derive_many(5, "noise", 3, range(500, 510)) == many[500:510]
    assert ms.seeds.derive(5, "time", 3, 7) != many[7]


@pytest.mark.parametrize("schedule", [ms.CosineSchedule(), ms.FlowSchedule(), ms.KarrasSchedule()], ids=str)
def test_training_times_have_their_distributions(schedule):
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert torch.equal(ms.UniformTimes()(uniform, schedule), uniform)
    logit_normal = 1 / (1 + np.exp(-scipy.stats.norm.ppf(uniform.numpy(), 0.3, 0.8)))
    np.testing.assert_allclose(ms.LogitNormalTimes(0.3, 0.8)(uniform, schedule).numpy(), logit_normal, rtol=1e-9)
    log_sigma = -schedule.log_snr(ms.LogNormalTimes()(uniform, schedule)).numpy() / 2
    np.testing.assert_allclose(log_sigma, scipy.stats.norm.ppf(uniform.numpy(), -1.2, 1.2), rtol=1e-6, atol=1e-6)
    log_snr = np.sort(schedule.log_snr(ms.LaplaceLogSnrTimes(0.5, 0.6)(uniform, schedule)).numpy())
    laplace = np.sort(scipy.stats.laplace.ppf(uniform.numpy(), 0.5, 0.6))
    np.testing.assert_allclose(log_snr, laplace, rtol=1e-6, atol=1e-6)
    octaves = ms.OctaveTimes(scale=0.5).of((1.0, 3.0, 8.0))
    log_snr = np.sort(schedule.log_snr(octaves(uniform, schedule)).numpy())
    mixture = np.mean([scipy.stats.logistic.cdf(log_snr, centre, 0.5) for centre in (1, 3, 8)], 0)
    np.testing.assert_allclose(mixture, uniform.numpy(), atol=1e-3)
    assert octaves.of((0.0, 1.0)) == octaves, "their own log-SNRs are kept"
    extreme = torch.tensor([1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
    for distribution in (ms.LogitNormalTimes(), ms.LogNormalTimes(), ms.LaplaceLogSnrTimes(), octaves):
        t = distribution(extreme, schedule)
        assert ((t >= 0) & (t <= 1)).all(), distribution
        assert schedule.log_snr(t).isfinite().all(), distribution


def test_octave_times_need_log_snrs():
    schedule, uniform = ms.CosineSchedule(), torch.rand(3)
    assert_refused(
        ("pass log_snrs, or call of", lambda: ms.OctaveTimes()(uniform, schedule)),
        ("at least one number", lambda: ms.OctaveTimes(())),
        ("scale must be positive", lambda: ms.OctaveTimes(scale=0)),
    )


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


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
@pytest.mark.parametrize("weighting", [UNIFORM, ms.PerFrequency(ms.MinSNR())], ids=["uniform", "frequency"])
def test_masked_values_of_one_channel_influence_neither_loss_nor_gradient(metric, weighting) -> None:
    """For a network that looks at one point at a time; others see masked values as context."""
    grid, t = GRIDS[1], torch.tensor([0.2, 0.8])
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid))
    network = torch.nn.Conv2d(2, 2, 1, groups=2)
    denoiser = ms.Denoiser(Pointwise(network), process)
    mask = torch.ones(2, 2, *grid.shape, dtype=torch.bool)
    mask[:, 1, :, 2:] = False
    results = []
    for fill in (0.0, 7.0):
        x0 = torch.where(mask, dense.random(2, 2, *grid.shape).float(), torch.tensor(fill)).requires_grad_()
        loss = denoiser.loss(x0, t, [1, 2], mask=mask, metric=metric, weighting=weighting)
        results.append((loss, *torch.autograd.grad(loss.sum(), [x0, *network.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(results[0][1] != 0, mask)


class Pointwise(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: None = None) -> torch.Tensor:
        return self.layer(x)


def test_loss_adds_the_penalty() -> None:
    grid, t, seeds = GRIDS[1], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), [1, 2, 3]
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid)).double()
    denoiser = ms.Denoiser(lambda x, log_snr, condition: 0.5 * x, process)  # type: ignore[arg-type]
    penalty, x0 = SpectralPenalty(weight=0.2), pair(grid)[0]
    estimate = denoiser(process.add_noise(x0, t, process.noise(x0.shape, seeds)), t)
    with_penalty = denoiser.loss(x0, t, seeds, penalty=penalty)
    torch.testing.assert_close(with_penalty, denoiser.loss(x0, t, seeds) + penalty(estimate, x0, grid))


def test_loss_and_penalty_refuse_impossible_settings() -> None:
    assert_refused(
        ("choose euclidean or mahalanobis", lambda: squared_error(torch.zeros(1, 1, *GRID.shape), COLORED, "l1")),
        ("unknown penalty", lambda: SpectralPenalty("cepstrum")),
        ("weight > 0", lambda: SpectralPenalty(weight=0.0)),
        ("unknown wavelet", lambda: SpectralPenalty("wavelet", wavelet="wavy")),
        ("levels >= 1", lambda: SpectralPenalty("wavelet", levels=0)),
    )
