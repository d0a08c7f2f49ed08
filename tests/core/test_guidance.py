"""Guidance follows the formulas of its papers, acts in its interval of noise levels only, and is a denoiser again."""

import math

import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense

GRID = ms.Grid.of(y=4, x=5)
PROCESS = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID).double())
X = dense.random(4, 1, *GRID.shape)
T = torch.tensor([0.05, 0.4, 0.6, 0.95], dtype=torch.float64)
LABELS = torch.tensor([1, 2, 3, 4])
SHIFT = LABELS.reshape(4, 1, 1, 1).double()


class Conditional(nn.Module):
    """A multiple of its input plus the label; it counts its calls."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.process, self.gain, self.calls = PROCESS, gain, 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        return self.gain * x_t + (0.0 if condition is None else condition.reshape(-1, 1, 1, 1).double())


def test_classifier_free_guidance_is_the_published_formula():
    """2207.12598 in the form D_w = D(∅) + w (D(c) - D(∅)); a scale of one costs one call."""
    for scale in (0.0, 0.5, 1.0, 3.0):
        denoiser = Conditional()
        torch.testing.assert_close(ms.ClassifierFree(denoiser, scale)(X, T, LABELS), X + scale * SHIFT)
        assert denoiser.calls == (1 if scale == 1 else 2)


def test_autoguidance_is_the_published_formula():
    """2406.02507, Eq. 3: D_w = w D_1 + (1 - w) D_0, both under the condition."""
    guided = ms.Autoguidance(Conditional(1.0), Conditional(0.5), 2.5)
    torch.testing.assert_close(guided(X, T, LABELS), 2.5 * (X + SHIFT) + (1 - 2.5) * (0.5 * X + SHIFT))
    assert guided(X, T).shape == X.shape


def test_guidance_interval_is_of_log_snr_and_per_item():
    log_snr = PROCESS.schedule.log_snr(T)
    denoiser = Conditional()
    guided = ms.ClassifierFree(denoiser, 3.0, (float(log_snr[2]) - 0.1, float(log_snr[1]) + 0.1))
    scale = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    torch.testing.assert_close(guided(X, T, LABELS), X + scale * SHIFT)
    assert denoiser.calls == 2
    outside = guided(X[:1], T[:1], LABELS[:1])
    assert denoiser.calls == 3
    assert torch.equal(outside, denoiser(X[:1], T[:1], LABELS[:1]))
    # An interval may be open at one end.
    open_ended = ms.ClassifierFree(denoiser, 3.0, (0.0, math.inf))
    middle = PROCESS.schedule.time(torch.tensor([0.0], dtype=torch.float64))
    assert PROCESS.schedule.log_snr(middle).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(open_ended(X[:1], middle - 1e-6, LABELS[:1]), X[:1] + 3.0)
    torch.testing.assert_close(open_ended(X[:1], middle + 1e-6, LABELS[:1]), X[:1] + 1.0)


def test_guidance_nests_and_samples():
    guided = ms.Autoguidance(ms.ClassifierFree(Conditional(0.9), 2.0), Conditional(0.5), 1.5)
    assert guided.process is PROCESS
    samples = ms.sample(guided, ms.DDIM(), shape=X.shape, steps=3, seeds=range(4), condition=LABELS)
    assert samples.isfinite().all()


def test_guidance_refuses_intervals_that_do_not_rise_and_missing_conditions():
    with pytest.raises(ValueError, match="must increase"):
        ms.ClassifierFree(Conditional(), 2.0, (3.0, -3.0))
    with pytest.raises(ValueError, match="must increase"):
        ms.Autoguidance(Conditional(), Conditional(), 2.0, (3.0, 3.0))
    with pytest.raises(ValueError, match="needs a condition"):
        ms.ClassifierFree(Conditional(), 2.0)(X, T)
