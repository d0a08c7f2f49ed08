"""Metrics against dense matrices, weightings against the papers, training times against SciPy's quantiles."""

import numpy as np
import pytest
import scipy.stats
import torch

import multisagd as ms
from multisagd.loss import squared_error, x0_weight
from tests.helpers import dense

GRID = ms.Grid.of(y=5, x=6)
LOG_SNR = torch.linspace(-12, 12, 25, dtype=torch.float64)


def covariance(spectrum: ms.Spectrum) -> ms.SpectralCovariance:
    return ms.SpectralCovariance(spectrum, GRID).double()


@pytest.mark.parametrize("spectrum", [ms.PowerLaw(-1.0), ms.Flat(), ms.Band(0.1, 0.4)], ids=str)
def test_metrics_against_dense_matrices(spectrum):
    c = covariance(spectrum)
    error = dense.random(3, 2, *GRID.shape)
    vectors = dense.flat(error, GRID)
    inverse = np.linalg.pinv(dense.operator(GRID.full(c.power()).numpy()), rcond=1e-10, hermitian=True)
    np.testing.assert_allclose(squared_error(error, c).numpy(), (vectors**2).mean((1, 2)), rtol=1e-12)
    expected = np.einsum("bci,ij,bcj->b", vectors, inverse, vectors) / (2 * GRID.numel)
    np.testing.assert_allclose(squared_error(error, c, "mahalanobis").numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(squared_error(error, c, "mahalanobis") * 2 * GRID.numel, c.mahalanobis(error))


def test_mahalanobis_weighs_every_frequency_of_the_noise_alike():
    """Plain mean squares of steeply coloured noise: most of the loss sits in a few bins."""
    grid = ms.Grid.of(y=32, x=32)
    c = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid)
    noise = c.sample(range(64)).double()
    shares = {}
    for name, x in (("euclidean", noise), ("mahalanobis", c.whiten(noise))):
        energy = torch.fft.fft2(x).abs().square().mean((0, 1)).flatten().sort(descending=True).values
        shares[name] = float(energy[:31].sum() / energy.sum())
    assert shares["euclidean"] > 0.5
    assert shares["mahalanobis"] < 0.06


def test_a_mask_leaves_padding_out():
    c = covariance(ms.PowerLaw(-1.0))
    error = dense.random(3, 2, *GRID.shape)
    mask = torch.ones(3, 1, *GRID.shape, dtype=torch.bool)
    mask[0, ..., 4:] = False
    mask[1, ..., :1, :] = False
    padded = torch.where(mask, error, 1e6)
    expected = [error[0, ..., :4].square().mean(), error[1, ..., 1:, :].square().mean(), error[2].square().mean()]
    torch.testing.assert_close(squared_error(padded, c, mask=mask), torch.stack(expected))
    full = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for metric in ("euclidean", "mahalanobis"):
        torch.testing.assert_close(squared_error(error, c, metric, full), squared_error(error, c, metric))
    whole = c.whiten(torch.where(mask, error, 0.0)).square().flatten(1).sum(1) / (2 * mask.flatten(1).sum(1))
    torch.testing.assert_close(squared_error(padded, c, "mahalanobis", mask), whole)


def test_an_item_without_valid_data_costs_nothing():
    c = covariance(ms.Flat())
    error = dense.random(2, 1, *GRID.shape)
    mask = torch.tensor([True, False]).reshape(2, 1, 1, 1)
    assert squared_error(error, c, mask=mask)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
def test_half_precision_errors_are_summed_in_float32(dtype, metric):
    c = covariance(ms.PowerLaw(-0.5))
    error = (300 * dense.random(2, 1, *GRID.shape)).to(dtype)
    result = squared_error(error, c, metric)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), squared_error(error.double(), c, metric), rtol=1e-4, atol=0)


def test_errors_of_bad_names():
    c = covariance(ms.Flat())
    with pytest.raises(ValueError, match="choose euclidean or mahalanobis"):
        squared_error(torch.zeros(1, 1, *GRID.shape), c, "l1")
    with pytest.raises(ValueError, match="choose uniform, min_snr, karras or sigmoid"):
        x0_weight("snr", LOG_SNR, 0.5)


# An error of x0 is an error of noise times σ/α, and of v times σ (variance preserving): so a weight of the squared
# error of x0 is one of the noise's times 1/SNR, and one of v's times σ² = 1/(1 + SNR).
PAPERS = {
    # 2303.09556, Section 3.4: min(SNR, γ) on x0, min(SNR, γ)/SNR on noise, min(SNR, γ)/(SNR + 1) on v.
    ("min_snr", "x0"): lambda snr: np.minimum(snr, 5),
    ("min_snr", "noise"): lambda snr: np.minimum(snr, 5) / snr,
    ("min_snr", "v"): lambda snr: np.minimum(snr, 5) / (snr + 1),
    # 2206.00364, Table 1: λ(σ) = (σ² + σ_data²)/(σ σ_data)² on x0, with σ² = 1/SNR.
    ("karras", "x0"): lambda snr: (1 / snr + 0.25) / (np.sqrt(1 / snr) * 0.5) ** 2,
    # 2303.00848, Section 4: sigmoid(-λ + k) on noise, k = 2.
    ("sigmoid", "noise"): lambda snr: 1 / (1 + np.exp(np.log(snr) - 2)),
    ("sigmoid", "x0"): lambda snr: snr / (1 + np.exp(np.log(snr) - 2)),
}
OUT_SQUARED = {"x0": lambda snr: np.ones_like(snr), "noise": lambda snr: 1 / snr, "v": lambda snr: 1 / (1 + snr)}


@pytest.mark.parametrize(("weighting", "prediction"), PAPERS.keys())
def test_weightings_are_those_of_the_papers(weighting, prediction):
    snr = np.exp(LOG_SNR.numpy())
    weight = x0_weight(weighting, LOG_SNR, 0.5).numpy() * OUT_SQUARED[prediction](snr)
    np.testing.assert_allclose(weight, PAPERS[weighting, prediction](snr), rtol=1e-10)


def test_uniform_leaves_the_error_alone():
    assert x0_weight("uniform", LOG_SNR, 0.5) is None


def test_strata_hold_one_number_each():
    for step in range(50):
        u = ms.stratified_uniform(3, step, 32)
        assert u.dtype == torch.float64
        assert torch.equal((u * 32).floor().sort().values, torch.arange(32, dtype=torch.float64))
        assert ((u > 0) & (u < 1)).all()


def test_no_slot_keeps_to_its_stratum():
    strata = torch.stack([(ms.stratified_uniform(3, step, 8) * 8).floor() for step in range(200)])
    assert all(len(column.unique()) == 8 for column in strata.T)


def test_strata_do_not_depend_on_how_ranks_split_them():
    whole = ms.stratified_uniform(3, 7, 24)
    for size in (1, 6, 8, 12):
        parts = [ms.stratified_uniform(3, 7, 24, start, size) for start in range(0, 24, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(ms.stratified_uniform(3, 7, 24, 20), whole[20:])
    assert not torch.equal(ms.stratified_uniform(3, 8, 24), whole)
    assert not torch.equal(ms.stratified_uniform(4, 7, 24), whole)


def test_strata_are_uniform_within():
    within = torch.cat([(ms.stratified_uniform(0, step, 16) * 16) % 1 for step in range(250)])
    assert scipy.stats.kstest(within.numpy(), "uniform").pvalue > 0.001


def test_seeds_are_stable_distinct_and_32_bits():
    assert ms.seeds.derive(0, "noise", 1, 2) == ms.seeds.derive(0, "noise", 1, 2)
    many = ms.seeds.derive_many(5, "noise", 3, range(1000))
    assert len(set(many)) == 1000
    assert all(0 <= seed < 2**32 for seed in many)
    assert many[7] == ms.seeds.derive(5, "noise", 3, 7)
    assert ms.seeds.derive_many(5, "noise", 3, range(500, 510)) == many[500:510]
    assert ms.seeds.derive(5, "time", 3, 7) != many[7]


def test_seeds_never_change():
    """Golden: a resumed or repeated run of any later version must draw the same numbers."""
    assert ms.seeds.derive(0, "noise", 0, 0) == 0x7597EDFA
    assert ms.seeds.derive(7, "time", 12, 3) == 0x9B4C9F5D


U = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


@pytest.mark.parametrize("schedule", [ms.CosineSchedule(), ms.FlowSchedule(), ms.KarrasSchedule()], ids=str)
class TestTimes:
    def test_uniform(self, schedule):
        assert torch.equal(ms.UniformTimes()(U, schedule), U)

    def test_logit_normal(self, schedule):
        t = ms.LogitNormalTimes(0.3, 0.8)(U, schedule)
        expected = 1 / (1 + np.exp(-scipy.stats.norm.ppf(U.numpy(), 0.3, 0.8)))
        np.testing.assert_allclose(t.numpy(), expected, rtol=1e-9)

    def test_log_normal_noise_level(self, schedule):
        t = ms.LogNormalTimes()(U, schedule)
        expected = scipy.stats.norm.ppf(U.numpy(), -1.2, 1.2)
        np.testing.assert_allclose(-schedule.log_snr(t).numpy() / 2, expected, rtol=1e-6, atol=1e-6)

    def test_laplace_log_snr(self, schedule):
        t = ms.LaplaceLogSnrTimes(0.5, 0.6)(U, schedule)
        expected = np.sort(scipy.stats.laplace.ppf(U.numpy(), 0.5, 0.6))
        np.testing.assert_allclose(np.sort(schedule.log_snr(t).numpy()), expected, rtol=1e-6, atol=1e-6)

    def test_all_are_times(self, schedule):
        extreme = torch.tensor([1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
        for distribution in (ms.LogitNormalTimes(), ms.LogNormalTimes(), ms.LaplaceLogSnrTimes()):
            t = distribution(extreme, schedule)
            assert ((t >= 0) & (t <= 1)).all()
            assert schedule.log_snr(t).isfinite().all()


def test_a_mask_may_differ_among_channels():
    """The mean over valid values, each counted once, and of the Mahalanobis norm by a dense matrix."""
    c = covariance(ms.PowerLaw(-1.0))
    error = dense.random(3, 2, *GRID.shape)
    mask = dense.random(3, 2, *GRID.shape, seed=1) > 0
    mask[0, 1] = False
    padded = torch.where(mask, error, 1e6)
    expected = torch.stack([error[n][mask[n]].square().mean() for n in range(3)])
    torch.testing.assert_close(squared_error(padded, c, mask=mask), expected)
    vectors = dense.flat(torch.where(mask, error, 0.0), GRID)
    inverse = np.linalg.inv(dense.operator(GRID.full(c.power()).numpy()))
    whole = np.einsum("bci,ij,bcj->b", vectors, inverse, vectors) / mask.flatten(1).sum(1).numpy()
    np.testing.assert_allclose(squared_error(padded, c, "mahalanobis", mask).numpy(), whole, rtol=1e-8)
