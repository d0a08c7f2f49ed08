"""Recent is bounded, shared by threads and empty in copies, and everything kept per shape is kept in one."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import multisagd as ms
from multisagd.recent import MAX_VALUES, Recent
from tests.helpers.networks import Affine


def test_recent_drops_the_longest_unused():
    made: list[str] = []
    recent: Recent[str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacaab"] == list("ABACAAB")
    assert made == ["a", "b", "c", "b"]
    assert len(recent) == 2


def test_recent_keeps_none_but_not_failures():
    recent: Recent[int | None] = Recent()
    assert recent.get("none", lambda: None) is None
    assert recent.get("none", lambda: 1) is None
    with pytest.raises(ZeroDivisionError):
        recent.get("bad", lambda: 1 // 0)
    assert recent.get("bad", lambda: 2) == 2


def test_recent_is_empty_in_copies_and_pickles():
    recent: Recent[int] = Recent(3)
    recent.get(0, lambda: 1)
    for other in (copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        assert len(other) == 0
        assert other.maximum == 3
        assert other.get(0, lambda: 2) == 2


def test_recent_is_shared_by_threads():
    recent: Recent[int] = Recent(4)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: recent.get(i % 9, lambda: i % 9), range(20000)))
    assert values == [i % 9 for i in range(20000)]
    assert len(recent) == 4


def everything(spectrum: ms.Spectrum) -> list[object]:
    """One of every kind of object that keeps something per shape, drawn, coloured and trained on many shapes."""
    grid = ms.Grid.of(x=16)
    covariance = ms.SpectralCovariance(spectrum, grid)
    padded = ms.PaddedCovariance(spectrum, grid, {"x": 4})
    corruption = ms.Corruption(ms.Band(0.2, 0.5), grid, 0.2)
    floor = ms.NoiseFloor(ms.CosineSchedule(), covariance, corruption)
    shift, filtered = ms.ColorShift(ms.Flat(), spectrum), ms.Prefilter(spectrum)
    power = torch.ones(1, *grid.half_shape, dtype=torch.float64)
    statistics = ms.DataStatistics(torch.zeros(1, 16, dtype=torch.float64), power, grid, 10)
    process = ms.Process(ms.CosineSchedule(), covariance)
    spectral = ms.Denoiser(Affine(), process, preconditioning="spectral", statistics=statistics)
    restoring = ms.RestoringDenoiser(Affine(), ms.Process(process.schedule, covariance, floor), corruption, statistics)
    for size in range(16, 18 + MAX_VALUES):
        x0 = covariance.sample([size], grid_shape=(size,))
        covariance.solve(covariance.apply(covariance.whiten(covariance.project(x0))))
        padded.sample([size], grid_shape=(size,))
        corruption.corrupt(x0, [size])
        for modulation in (floor, shift, filtered):
            modulation(torch.tensor([0.5]), grid.resize((size,)))
        for denoiser in (spectral, restoring):
            denoiser.loss(x0, 0.5, [1])
            denoiser(x0, 0.5)
    return [covariance, padded, padded.drawn, corruption.covariance, floor, shift, filtered, spectral, restoring]


def test_recent_bounds_what_every_object_keeps_for_many_shapes():
    for thing in everything(ms.PowerLaw(-0.5)):
        kept = [value for value in vars(thing).values() if isinstance(value, Recent)]
        assert kept, thing
        assert any(len(each) == MAX_VALUES for each in kept) or isinstance(thing, ms.PaddedCovariance)
        assert all(len(each) <= MAX_VALUES for each in kept), thing
        # Nothing else grows with the number of shapes.
        assert all(len(value) <= MAX_VALUES for value in vars(thing).values() if isinstance(value, dict | list)), thing


def test_sample_is_the_same_after_its_shape_was_dropped():
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5), ms.Grid.of(x=16))
    first = covariance.sample([3])
    for size in range(17, 17 + 2 * MAX_VALUES):
        covariance.sample([0], grid_shape=(size,))
    assert torch.equal(covariance.sample([3]), first)


def test_recent_values_made_in_inference_serve_training():
    grid = ms.Grid.of(x=16)
    for modulation in (None, ms.ColorShift(ms.PowerLaw(0.5), ms.Flat()), ms.Prefilter(ms.PowerLaw(0.5))):
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid), modulation)
        network, x0 = ms.networks.UNet(channels=1, dimensions=1, width=8, multipliers=(1,)), torch.ones(1, 1, 16)
        denoiser = ms.Denoiser(network, process)
        with torch.inference_mode():
            ms.sample(denoiser, ms.DDIM(), (1, 1, 16), 2, [0])
        x0.requires_grad_()
        denoiser.loss(x0, 0.5, [0], metric="mahalanobis").sum().backward()
        assert x0.grad is not None, modulation
