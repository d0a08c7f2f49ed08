"""Profiles along axes against sums written out over the full spectrum."""

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.analysis.profiles import axis_profile
from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from multisagd.metrics.spectral import item_curves
from recipes.plotting.figures import draw_profiles

GRIDS = [
    ms.Grid.of(time=(9, 0.5, "s")),
    ms.Grid.of(mel=(6, 40.0, "mel"), time=(8, 0.01, "s")),
    ms.Grid.of(frame=(5, 0.125, "s"), height=4, width=7),
]


@pytest.mark.parametrize("grid", GRIDS, ids=["1-D", "2-D", "3-D"])
def test_a_profile_is_the_mean_over_the_other_frequencies(grid: ms.Grid) -> None:
    x = np.random.default_rng(0).normal(size=(2, *grid.shape))
    dims = tuple(range(1, x.ndim))
    full = np.abs(np.fft.fftn(x, axes=dims, norm="ortho")) ** 2
    half = torch.fft.rfftn(torch.from_numpy(x), dim=dims, norm="ortho").abs().square()
    for place, axis in enumerate(grid.axes, start=1):
        frequency = np.fft.fftfreq(axis.size, axis.spacing)
        profile = axis_profile(half, grid, axis.name)
        for found, value in zip(profile.power.tolist(), profile.frequency.tolist(), strict=True):
            same = np.isclose(np.abs(frequency), value)
            # At every other bin there are two of opposite sign, and both count.
            expected = np.compress(same, full, axis=place).mean()
            assert found == pytest.approx(expected, rel=1e-10)


def neighbour_difference(batches: list[tuple[torch.Tensor, torch.Tensor | None]], grid: ms.Grid, name: str) -> float:
    return float(mean_difference(neighbour_differences(batches, grid, name)))


def test_bands_cover_every_frequency_once() -> None:
    grid = GRIDS[2]
    frequency = axis_profile(torch.ones(grid.half_shape), grid, "width").frequency
    bands = bands_along(grid.axis("width"), frequency, 3)
    assert [name for name, _ in bands] == ["0", "0-0.143 / sample", "0.143-0.286 / sample", "0.286-0.429 / sample"]
    assert [members.tolist() for _, members in bands] == [[0], [1], [2], [3]]
    every = torch.cat([members for _, members in bands_along(grid.axis("width"), frequency, 2)])
    assert every.tolist() == [0, 1, 2, 3]


def test_neighbours_differ_by_what_they_differ_by_and_padding_does_not_count() -> None:
    grid = ms.Grid.of(frame=4, x=3)
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(2, 1, 4, 3).clone()
    assert neighbour_difference([(ramp, None)], grid, "frame") == 1.0
    assert neighbour_difference([(ramp, None)], grid, "x") == 0.0
    padded = ramp.clone()
    padded[:, :, 3] = 100.0
    mask = torch.ones(2, 1, 4, 3, dtype=torch.bool)
    mask[:, :, 3] = False
    assert neighbour_difference([(padded, mask)], grid, "frame") == 1.0
    assert neighbour_difference([(torch.ones(2, 1, 1, 3), None)], grid.resize((1, 3)), "frame") == 0.0
    # Every pair counts alike: two of a padded batch and three of a full one.
    assert neighbour_difference([(3 * padded, mask), (ramp, None)], grid, "frame") == (3 * 2 + 3) / 5


def test_noise_of_known_power() -> None:
    grid = ms.Grid.of(frame=(16, 0.125, "s"), width=8)
    noise = ms.SpectralCovariance(ms.Autoregressive(0.8, axis="frame"), grid).sample(range(600))
    batches: list[tuple[torch.Tensor, torch.Tensor | None]] = [(noise[:300], None), (noise[300:], None)]
    power = ms.SpectralCovariance(ms.Autoregressive(0.8, axis="frame"), grid).power()
    profile = axis_profile(power, grid, "frame")
    curves = item_curves(batches, grid, 4)["frame"].values
    for _, members in bands_along(grid.axis("frame"), profile.frequency, 4):
        assert float(curves[:, members].mean()) == pytest.approx(float(profile.power[members].mean()), rel=0.06)
    # The difference of two normal numbers of correlation r has a mean size of sqrt(2 (1 - r)) sqrt(2 / pi).
    lag = float(torch.fft.irfft(profile.power, n=16)[1] / torch.fft.irfft(profile.power, n=16)[0])
    expected = np.sqrt(2 * (1 - lag)) * np.sqrt(2 / np.pi)
    assert neighbour_difference(batches, grid, "frame") == pytest.approx(expected, rel=0.02)
    assert neighbour_difference(batches, grid, "width") == pytest.approx(np.sqrt(2) * np.sqrt(2 / np.pi), rel=0.02)


def test_profiles_are_drawn(tmp_path) -> None:
    path = tmp_path / "new" / "spectrum.png"
    draw_profiles({"data": torch.ones(GRIDS[2].half_shape), "noise": torch.zeros(GRIDS[2].half_shape)}, GRIDS[2], path)
    assert path.read_bytes().startswith(b"\x89PNG")
