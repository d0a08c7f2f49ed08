"""The log-spectral distance agrees with its definition, computed by SciPy, and with its expectation for noise."""

import numpy as np
import pytest
import torch
from scipy import signal

from multisagd.metrics.log_spectral import log_spectral_distance
from tests.helpers import dense


def test_log_spectral_distance_equals_its_definition_with_scipy() -> None:
    fading = torch.logspace(0, -6, 3000, dtype=torch.float64)
    x, reference = (dense.random(2, 2, 3000, seed=seed) * fading for seed in (1, 2))
    x[0, :, 400:800] = 0  # silence in a frame that the reference has
    found = log_spectral_distance(x, reference, window=256, hop=100)
    for item in range(2):
        options = {"window": "hann", "nperseg": 256, "noverlap": 156, "boundary": None, "padded": False}
        made, true = (np.abs(signal.stft(each[item].numpy(), **options)[2]) ** 2 for each in (x, reference))
        energy = true.sum(1)
        kept = energy >= 1e-6 * energy.max()
        assert 0.2 < kept.mean() < 0.8
        floor = 1e-10 * true.max()
        difference = 10 * np.log10(np.maximum(made, floor) / np.maximum(true, floor))
        expected = np.sqrt((difference**2).mean(1))[kept].mean()
        assert float(found[item]) == pytest.approx(expected, rel=1e-9)


def test_log_spectral_distance_of_a_louder_copy_is_its_gain_and_of_independent_noise_that_of_two_exponentials() -> None:
    x, other = (dense.random(4, 1, 20_000, seed=seed) for seed in (1, 2))
    torch.testing.assert_close(log_spectral_distance(0.5 * x, x), torch.full((4,), 6.0206, dtype=torch.float64))
    # The logarithm of an exponential variable has the variance π²/6.
    expected = 10 / np.log(10) * np.sqrt(2 * np.pi**2 / 6)
    assert float(log_spectral_distance(x, other).mean()) == pytest.approx(expected, rel=0.01)


def test_log_spectral_distance_of_silence_is_unknown_and_other_shapes_are_refused() -> None:
    x = dense.random(2, 1, 600)
    silent = x.clone()
    silent[1] = 0
    assert log_spectral_distance(x, silent).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"at least 512 samples, got \(2, 1, 500\)"):
        log_spectral_distance(x[..., :500], x[..., :500])
