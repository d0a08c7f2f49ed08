"""Spectra with a direction, against the patterns they are named after."""

import itertools
import math

import numpy as np
import pytest
import torch

from multisagd import Grid, SpectralCovariance, Spots, Streaks
from tests.helpers.dense import frequencies, half

GRID = Grid.of(height=31, width=32)


def test_upright_streaks_are_nearly_constant_along_height() -> None:
    noise = SpectralCovariance(Streaks(90.0, 20.0), GRID).sample(range(200))
    along, across = ((noise.roll(1, dim) * noise).mean() / noise.square().mean() for dim in (2, 3))
    assert float(along) > 0.9
    assert float(across) < 0.3
    lying = SpectralCovariance(Streaks(0.0, 20.0), GRID).sample(range(200))
    assert float((lying.roll(1, 3) * lying).mean() / lying.square().mean()) > 0.9


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, -45.0])
@pytest.mark.parametrize("grid", [GRID, Grid.of(height=8, width=9), Grid.of(frame=3, height=6, width=5)], ids=str)
def test_the_wedge_is_that_of_the_angle_between_wave_vector_and_streaks(grid: Grid, angle: float) -> None:
    width = 40.0
    *_, across, along = frequencies(grid)
    # Streaks at an angle to the width axis (height grows downwards) run along (sin, cos): their waves are orthogonal.
    inside = np.zeros(grid.shape, dtype=bool)
    for one, other in itertools.product((1, -1), repeat=2):  # at Nyquist a frequency is its own opposite
        first, second = (np.where(np.isclose(f, -0.5), s * f, f) for f, s in ((across, one), (along, other)))
        off = np.abs((np.degrees(np.arctan2(first, second)) + angle) % 180 - 90)
        inside |= (off <= width / 2 + 1e-9) & (np.hypot(first, second) > 0)
    expected = torch.from_numpy(half(grid, inside.astype(float)))
    assert torch.equal(Streaks(angle, width).power(grid), expected)


def test_spots_are_a_wave_and_its_harmonics() -> None:
    grid = Grid.of(frame=(16, 1 / 8, "s"), height=6, width=4)
    inside = Spots({"frame": 1.0}, 0.2, harmonics=3).power(grid) > 0
    frame = grid.frequencies("frame").expand(grid.half_shape).abs()
    flat = ((grid.frequencies("height") == 0) & (grid.frequencies("width") == 0)).expand(grid.half_shape)
    assert torch.equal(inside, flat & torch.isin(frame, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))


def test_spots_off_the_axes_come_in_pairs() -> None:
    grid = Grid.of(height=16, width=16)
    power = grid.full(SpectralCovariance(Spots({"height": 0.25, "width": 0.125}, 0.01), grid).power())
    assert [tuple(place) for place in power.nonzero().tolist()] == [(4, 2), (12, 14)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Streaks(math.nan), "finite angle"),
        (lambda: Streaks(0.0, 0.0), "width"),
        (lambda: Streaks(0.0, 20.0, ("height",)), "two axes"),  # type: ignore[arg-type]
        (lambda: Spots({}, 0.1), "other than zero"),
        (lambda: Spots({"height": 0.0}, 0.1), "other than zero"),
        (lambda: Spots({"height": 0.1}, -1.0), "radius"),
        (lambda: Spots({"height": 0.1}, 0.1, harmonics=0), "harmonics"),
        (lambda: Spots({"height": 0.11}, 0.001).power(Grid.of(height=8)), "make the radius larger"),
        (lambda: Spots({"depth": 0.11}, 0.1).power(Grid.of(height=8)), "no axis 'depth'"),
    ],
)
def test_what_makes_no_pattern_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_spots_at_nyquist_are_found_from_either_side() -> None:
    grid = Grid.of(height=20, width=20)
    at = Spots({"height": 0.5, "width": 0.1}, 0.01).power(grid)
    assert [tuple(place) for place in (at > 0).nonzero().tolist()] == [(10, 2)]
    near = Spots({"height": 0.48, "width": 0.1}, 0.04).power(grid)
    assert float(near[10, 2]) == 1.0
    for spectrum in (Spots({"height": 0.3, "width": 0.5}, 0.01), Streaks(30.0, 40.0)):
        power = spectrum.power(grid)
        assert torch.equal(grid.even(power), power)


def test_streaks_to_the_left_are_those_to_the_right_mirrored() -> None:
    grid = Grid.of(height=8, width=8)
    counts = [int((grid.multiplicity * Streaks(angle, 30.0).power(grid)).sum()) for angle in (45.0, -45.0)]
    assert counts[0] == counts[1]


def test_unlike_units_need_factors() -> None:
    grid = Grid.of(frame=(8, 1 / 8, "s"), height=8)
    with pytest.raises(ValueError, match="mix units"):
        Spots({"frame": 2.0, "height": 0.25}, 0.5).power(grid)
    assert float(Spots({"frame": 2.0, "height": 0.25}, 0.05, factors={"frame": 0.1}).power(grid).sum()) == 1
