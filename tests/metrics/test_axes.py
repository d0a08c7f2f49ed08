"""Statistics along one axis are those of ramps and of noise in closed form."""

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.analysis.profiles import axis_profile
from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from multisagd.metrics.spectral import item_curves

Batches = list[tuple[torch.Tensor, torch.Tensor | None]]


def test_bands_along_cover_every_frequency_once() -> None:
    grid = ms.Grid.of(frame=(5, 0.125, "s"), height=4, width=7)
    frequency = axis_profile(torch.ones(grid.half_shape), grid, "width").frequency
    names, members = zip(*bands_along(grid.axis("width"), frequency, 3), strict=True)
    assert names == ("0", "0-0.143 / sample", "0.143-0.286 / sample", "0.286-0.429 / sample")
    assert [each.tolist() for each in members] == [[0], [1], [2], [3]]
    assert torch.cat([each for _, each in bands_along(grid.axis("width"), frequency, 2)]).tolist() == [0, 1, 2, 3]


def average_difference(batches: Batches, grid: ms.Grid, name: str) -> float:
    return float(mean_difference(neighbour_differences(batches, grid, name)))


def test_mean_difference_of_a_ramp_is_its_slope_without_padding() -> None:
    grid = ms.Grid.of(frame=4, x=3)
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(2, 1, 4, 3).clone()
    assert average_difference([(ramp, None)], grid, "frame") == 1.0
    assert average_difference([(ramp, None)], grid, "x") == 0.0
    padded, mask = ramp.clone(), torch.ones(2, 1, 4, 3, dtype=torch.bool)
    padded[:, :, 3], mask[:, :, 3] = 100.0, False
    assert average_difference([(padded, mask)], grid, "frame") == 1.0
    assert average_difference([(torch.ones(2, 1, 1, 3), None)], grid.resize((1, 3)), "frame") == 0.0
    # Every pair has the same weight: two of a padded batch and three of a full one.
    assert average_difference([(3 * padded, mask), (ramp, None)], grid, "frame") == (3 * 2 + 3) / 5


def test_axis_statistics_of_noise_have_their_closed_forms() -> None:
    grid = ms.Grid.of(frame=(16, 0.125, "s"), width=8)
    covariance = ms.SpectralCovariance(ms.Autoregressive(0.8, axis="frame"), grid)
    noise = covariance.sample(range(600))
    batches: Batches = [(noise[:300], None), (noise[300:], None)]
    profile = axis_profile(covariance.power(), grid, "frame")
    curves = item_curves(batches, grid, 4)["frame"].values
    for _, members in bands_along(grid.axis("frame"), profile.frequency, 4):
        assert float(curves[:, members].mean()) == pytest.approx(float(profile.power[members].mean()), rel=0.06)
    # Two normal numbers of correlation r differ by sqrt(2 (1 - r)) sqrt(2 / pi) on average.
    correlation = torch.fft.irfft(profile.power, n=16)
    expected = np.sqrt(2 * (1 - float(correlation[1] / correlation[0]))) * np.sqrt(2 / np.pi)
    assert average_difference(batches, grid, "frame") == pytest.approx(expected, rel=0.02)
    assert average_difference(batches, grid, "width") == pytest.approx(np.sqrt(2) * np.sqrt(2 / np.pi), rel=0.02)
