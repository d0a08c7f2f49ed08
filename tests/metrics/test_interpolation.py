"""Plain estimates agree with other implementations and with their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import griddata

from multisagd.metrics.interpolation import cubic_interpolation, last_known, linear_fill


def test_cubic_interpolation_is_that_of_torch_and_continues_periodic_axes() -> None:
    coarse = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    around = F.pad(coarse, (2, 2, 2, 2), mode="circular")
    for x, periodic, kept in ((coarse, False, slice(None)), (around, True, slice(8, -8))):
        expected = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)[:, :, kept, kept]
        torch.testing.assert_close(cubic_interpolation(coarse, (20, 16), (periodic, periodic)), expected)


def test_cubic_interpolation_follows_one_axis_of_three() -> None:
    line = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    volume = line.reshape(1, 1, 1, 6, 1).expand(1, 2, 3, 6, 2)
    found = cubic_interpolation(volume, (3, 18, 2), (False, True, False))
    # The kernel of Keys with a = -0.75, at thirds of a sample around each of the coarse samples.
    kernel = [(d - 1) / 3 for d in range(3)]

    def weight(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    expected = [sum(float(line[(n + k) % 6]) * weight(k - d) for k in range(-2, 3)) for n in range(6) for d in kernel]
    torch.testing.assert_close(found[0, 1, 2, :, 1], torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(ValueError, match="6 coarse samples cannot be refined to 20"):
        cubic_interpolation(volume, (3, 20, 2), (False, True, False))


def test_linear_fill_of_a_line_is_linear_interpolation() -> None:
    x = torch.randn(2, 1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x[0, 0, 3:7] = x[1, 0, :4] = x[1, 0, 10:] = torch.nan
    places = np.arange(12)
    for line, filled, around in zip(x[:, 0], linear_fill(x, [False])[:, 0], linear_fill(x, [True])[:, 0], strict=True):
        known = ~line.isnan().numpy()
        np.testing.assert_allclose(filled, np.interp(places, places[known], line[known]), atol=1e-6)
        np.testing.assert_allclose(around, np.interp(places, places[known], line[known], period=12), atol=1e-6)


def test_linear_fill_of_a_plane_restores_planes_and_averages_neighbours() -> None:
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(8.0), indexing="ij")
    plane = (0.3 * y - 0.7 * x + 2)[None, None]
    hole = plane.clone()
    hole[:, :, 2:6, 3:6] = torch.nan
    torch.testing.assert_close(linear_fill(hole, (False, False)), plane, atol=1e-5, rtol=0)
    expected = griddata(np.argwhere(~hole[0, 0].isnan().numpy()), hole[~hole.isnan()].numpy(), (4, 4))
    assert linear_fill(hole, (False, False))[0, 0, 4, 4] == pytest.approx(float(expected), abs=1e-4)
    noise = torch.randn(3, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    unknown = torch.rand(noise.shape, generator=torch.Generator().manual_seed(4)) < 0.6
    filled = linear_fill(noise.masked_fill(unknown, torch.nan), (True, True))
    neighbours = sum(filled.roll(shift, axis) for shift in (-1, 1) for axis in (2, 3)) / 4
    torch.testing.assert_close(filled[unknown], neighbours[unknown], atol=1e-6, rtol=0)
    torch.testing.assert_close(filled[~unknown], noise[~unknown])
    assert torch.equal(linear_fill(torch.full((1, 1, 4), torch.nan), [False]), torch.zeros(1, 1, 4))


def test_last_known_repeats_the_last_known_frame() -> None:
    x = torch.randn(2, 1, 5, 3, generator=torch.Generator().manual_seed(5))
    known = x.clone()
    known[:, :, 2:], known[1, 0, 1, 2], known[1, 0, :, 0] = torch.nan, torch.nan, torch.nan
    expected = x.clone()
    expected[:, :, 2:], expected[1, 0, 1:, 2], expected[1, 0, :, 0] = x[:, :, 1:2], x[1, 0, 0, 2], 0.0
    torch.testing.assert_close(last_known(known), expected)
