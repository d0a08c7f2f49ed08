"""Spectra with a direction make the patterns that they are named after."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from multisagd import Grid, SpectralCovariance, Spots, Streaks
from tests.helpers.dense import frequencies, half
from tests.helpers.refusals import assert_refused

GRID = Grid.of(height=31, width=32)


def bins(power: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(place) for place in power.nonzero().tolist()]


def test_streaks_are_nearly_constant_along_their_angle() -> None:
    upright, lying = (SpectralCovariance(Streaks(angle, 20.0), GRID).sample(range(200)) for angle in (90.0, 0.0))

    def correlation(noise: torch.Tensor, dim: int) -> float:
        return float((noise.roll(1, dim) * noise).mean() / noise.square().mean())

    assert correlation(upright, 2) > 0.9
    assert correlation(upright, 3) < 0.3
    assert correlation(lying, 3) > 0.9


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, -45.0])
def test_streaks_have_the_wedge_of_the_angle_between_wave_vector_and_streaks(angle: float) -> None:
    width = 40.0
    for grid in (GRID, Grid.of(height=8, width=9), Grid.of(frame=3, height=6, width=5)):
        *_, across, along = frequencies(grid)
        # Streaks at an angle to the width axis (height grows downwards) run along (sin, cos): their waves are
        # orthogonal.
        inside = np.zeros(grid.shape, dtype=bool)
        for one, other in product((1, -1), repeat=2):  # at Nyquist a frequency is its own opposite
            first, second = (np.where(np.isclose(f, -0.5), s * f, f) for f, s in ((across, one), (along, other)))
            off = np.abs((np.degrees(np.arctan2(first, second)) + angle) % 180 - 90)
            inside |= (off <= width / 2 + 1e-9) & (np.hypot(first, second) > 0)
        expected = torch.from_numpy(half(grid, inside.astype(float)))
        assert torch.equal(Streaks(angle, width).power(grid), expected), grid.shape


def test_spots_are_a_wave_and_its_harmonics() -> None:
    grid = Grid.of(frame=(16, 1 / 8, "s"), height=6, width=4)
    inside = Spots({"frame": 1.0}, 0.2, harmonics=3).power(grid) > 0
    frame = grid.frequencies("frame").expand(grid.half_shape).abs()
    flat = ((grid.frequencies("height") == 0) & (grid.frequencies("width") == 0)).expand(grid.half_shape)
    assert torch.equal(inside, flat & torch.isin(frame, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))


def test_spots_off_the_axes_come_in_pairs_and_at_nyquist_from_either_side() -> None:
    grid = Grid.of(height=16, width=16)
    spots = Spots({"height": 0.25, "width": 0.125}, 0.01)
    assert bins(grid.full(SpectralCovariance(spots, grid).power())) == [(4, 2), (12, 14)]
    grid = Grid.of(height=20, width=20)
    assert bins(Spots({"height": 0.5, "width": 0.1}, 0.01).power(grid)) == [(10, 2)]
    assert float(Spots({"height": 0.48, "width": 0.1}, 0.04).power(grid)[10, 2]) == 1.0
    for spectrum in (Spots({"height": 0.3, "width": 0.5}, 0.01), Streaks(30.0, 40.0)):
        power = spectrum.power(grid)
        assert torch.equal(grid.even(power), power)


def test_spots_with_unlike_units_need_factors() -> None:
    grid = Grid.of(frame=(8, 1 / 8, "s"), height=8)
    with pytest.raises(ValueError, match="mix units"):
        Spots({"frame": 2.0, "height": 0.25}, 0.5).power(grid)
    assert float(Spots({"frame": 2.0, "height": 0.25}, 0.05, factors={"frame": 0.1}).power(grid).sum()) == 1


def test_streaks_and_spots_refuse_impossible_parameters() -> None:
    assert_refused(
        ("finite angle", lambda: Streaks(math.nan)),
        ("width", lambda: Streaks(0.0, 0.0)),
        ("two axes", lambda: Streaks(0.0, 20.0, ("height",))),
        ("other than zero", lambda: Spots({}, 0.1)),
        ("other than zero", lambda: Spots({"height": 0.0}, 0.1)),
        ("radius", lambda: Spots({"height": 0.1}, -1.0)),
        ("harmonics", lambda: Spots({"height": 0.1}, 0.1, harmonics=0)),
        ("make the radius larger", lambda: Spots({"height": 0.11}, 0.001).power(Grid.of(height=8))),
        ("no axis 'depth'", lambda: Spots({"depth": 0.11}, 0.1).power(Grid.of(height=8))),
    )
