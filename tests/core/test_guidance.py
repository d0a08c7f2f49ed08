"""Guidance: its formulas, its interval of noise levels, and that it is a denoiser again."""

import math

import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense

GRID = ms.Grid.of(y=4, x=5)
PROCESS = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID).double())


class Conditional(nn.Module):
    """Estimates that tell conditions apart, and counts its calls."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.process = PROCESS
        self.gain = gain
        self.calls = 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        shift = 0.0 if condition is None else condition.reshape(-1, 1, 1, 1).double()
        return self.gain * x_t + shift


X = dense.random(4, 1, *GRID.shape)
T = torch.tensor([0.05, 0.4, 0.6, 0.95], dtype=torch.float64)
LABELS = torch.tensor([1, 2, 3, 4])


def test_classifier_free():
    """2207.12598 in the form D_w = D(∅) + w (D(c) - D(∅))."""
    guided = ms.ClassifierFree(Conditional(), 3.0)
    torch.testing.assert_close(guided(X, T, LABELS), X + 3 * LABELS.reshape(4, 1, 1, 1).double())


def test_autoguidance():
    """2406.02507, Eq. 3: D_w = w D_1 + (1 - w) D_0, both under the condition."""
    strong, weak = Conditional(1.0), Conditional(0.5)
    guided = ms.Autoguidance(strong, weak, 2.5)
    label = LABELS.reshape(4, 1, 1, 1).double()
    expected = 2.5 * (X + label) + (1 - 2.5) * (0.5 * X + label)
    torch.testing.assert_close(guided(X, T, LABELS), expected)
    assert guided(X, T).shape == X.shape


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_small_scales_interpolate(scale):
    guided = ms.ClassifierFree(Conditional(), scale)
    torch.testing.assert_close(guided(X, T, LABELS), X + scale * LABELS.reshape(4, 1, 1, 1).double())


def test_scale_one_costs_one_call():
    denoiser = Conditional()
    ms.ClassifierFree(denoiser, 1.0)(X, T, LABELS)
    assert denoiser.calls == 1


def test_the_interval_is_of_log_snr_and_per_item():
    log_snr = PROCESS.schedule.log_snr(T)
    interval = (float(log_snr[2]) - 0.1, float(log_snr[1]) + 0.1)
    denoiser = Conditional()
    guided = ms.ClassifierFree(denoiser, 3.0, interval)
    scale = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    torch.testing.assert_close(guided(X, T, LABELS), X + scale * LABELS.reshape(4, 1, 1, 1).double())
    assert denoiser.calls == 2
    outside = guided(X[:1], T[:1], LABELS[:1])
    assert denoiser.calls == 3
    assert torch.equal(outside, denoiser(X[:1], T[:1], LABELS[:1]))


def test_the_interval_holds_its_ends():
    guided = ms.ClassifierFree(Conditional(), 3.0, (0.0, math.inf))
    middle = PROCESS.schedule.time(torch.tensor([0.0], dtype=torch.float64))
    assert PROCESS.schedule.log_snr(middle).item() == pytest.approx(0, abs=1e-12)
    inside = guided(X[:1], middle - 1e-6, LABELS[:1])
    outside = guided(X[:1], middle + 1e-6, LABELS[:1])
    torch.testing.assert_close(inside, X[:1] + 3.0)
    torch.testing.assert_close(outside, X[:1] + 1.0)


def test_guidance_nests_and_samples():
    guided = ms.Autoguidance(ms.ClassifierFree(Conditional(0.9), 2.0), Conditional(0.5), 1.5)
    assert guided.process is PROCESS
    samples = ms.sample(guided, ms.DDIM(), shape=X.shape, steps=3, seeds=range(4), condition=LABELS)
    assert samples.isfinite().all()


def test_errors():
    with pytest.raises(ValueError, match="must rise"):
        ms.ClassifierFree(Conditional(), 2.0, (3.0, -3.0))
    with pytest.raises(ValueError, match="must rise"):
        ms.Autoguidance(Conditional(), Conditional(), 2.0, (3.0, 3.0))
    with pytest.raises(ValueError, match="needs a condition"):
        ms.ClassifierFree(Conditional(), 2.0)(X, T)
