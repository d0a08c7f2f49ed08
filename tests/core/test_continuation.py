"""Windows that overlap join without a seam: exactly for any numbers, and in law for Gaussian data."""

import itertools

import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.continuation import continued, window_count
from multisagd.inpainting import InpaintingDenoiser, put_back

CASES = [(0, 30), (3, 30), (9, 30), (20, 30), (0, 8), (3, 8), (30, 30)]
"""Numbers of samples that are given and that there are in the end, for windows of 8 samples that overlap by 5."""


def test_continued_counts_on_from_what_is_known():
    for (given, length), dtype in itertools.product(CASES, (torch.float32, torch.uint8)):
        numbers: list[int] = []

        def draw(known: Tensor | None, number: int, dtype=dtype, numbers=numbers) -> Tensor:
            numbers.append(number)
            first = 0 if known is None else int(known[0, 0, 0])
            assert known is None or known.shape[1] <= 5
            return torch.arange(first, first + 8, dtype=dtype)[None, :, None].expand(2, -1, 3)

        first = torch.arange(given, dtype=dtype)[None, :, None].expand(2, -1, 3) if given else None
        data = continued(draw, first, length, 8, 5, axis=1)
        assert torch.equal(data, torch.arange(length, dtype=dtype)[None, :, None].expand(2, -1, 3))
        assert numbers == list(range(window_count(given, length, 8, 5)))


def test_continued_fades_to_the_new_window_where_it_differs():
    windows = [torch.zeros(1, 6), torch.ones(1, 6)]
    data = continued(lambda known, number: windows[number], None, 8, 6, 4, axis=-1)
    assert data.tolist() == [[0, 0, 0.25, 0.5, 0.75, 1, 1, 1]]


def test_continued_refuses_overlaps_and_windows_that_do_not_fit():
    for overlap in (0, 6):
        with pytest.raises(ValueError, match="overlap must be from 1 to 5"):
            continued(lambda known, number: torch.zeros(6), None, 8, 6, overlap, axis=0)
    with pytest.raises(ValueError, match="a window must have 6 samples"):
        continued(lambda known, number: torch.zeros(5), None, 8, 6, 3, axis=0)


def circles(**sizes: int) -> ms.Grid:
    """A grid of periodic axes, on which guidance by known values is exact."""
    return ms.Grid(tuple(ms.Axis(name, size, periodic=True) for name, size in sizes.items()))


@pytest.mark.parametrize(
    ("grid", "length"),
    [(circles(time=40), 90), (circles(frame=14, height=4, width=4), 32)],
    ids=["series", "clip"],
)
def test_seams_of_gaussian_data_have_the_steps_of_the_data(grid, length):
    count, window = 300 if grid.dimensions == 1 else 60, grid.shape[0]
    overlap = window // 2
    data = ms.SpectralCovariance(ms.LowPass(0.15, order=1), grid)
    statistics = ms.DataStatistics(torch.zeros(1, *grid.shape).double(), data.power()[None], grid, count)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.3), grid))
    denoiser = ms.GaussianDenoiser(process, statistics)
    times = ms.time_steps(process.schedule, 15, "log_snr", ends=(-8.0, 9.0))

    def draw(tail: Tensor | None, number: int) -> Tensor:
        seeds, shape = range(count * number, count * (number + 1)), (count, 1, *grid.shape)
        if tail is None:
            return ms.sample(denoiser, ms.DPMSolver(), shape, 15, seeds, times=times)
        x0, known = torch.full(shape, torch.nan), torch.zeros(count, 1, *grid.shape, dtype=torch.bool)
        x0[:, :, : tail.shape[2]], known[:, :, : tail.shape[2]] = tail, True
        guided = InpaintingDenoiser(denoiser, x0, known, statistics)
        return put_back(ms.sample(guided, ms.DPMSolver(), shape, 15, seeds, times=times), x0, known)

    drawn = continued(draw, None, length, window, overlap, axis=2)
    covariance = torch.fft.irfftn(statistics.power[0], s=grid.shape)
    variance, lag = float(covariance.flatten()[0]), float(covariance[1].flatten()[0])
    steps = drawn.diff(dim=2).square().transpose(1, 2).flatten(2).mean((0, 2))
    seams = [window - 1 + number * (window - overlap) for number in range((length - window) // (window - overlap) + 1)]
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * (variance - lag)), rtol=0.3, atol=0)
    torch.testing.assert_close(steps[seams].mean(), steps.mean(), rtol=0.12, atol=0)
    torch.testing.assert_close(float(drawn.square().mean()), variance, rtol=0.1, atol=0)
