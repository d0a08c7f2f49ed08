"""Noise for callers of `torch.randn`: the covariance's colour, the generator's bits, and no other draws changed."""

import json
import math
import threading

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from scipy.stats import multivariate_normal

import multisagd as ms
from multisagd.integrations import ShapedNoise
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

SPECTRA = {"power law": ms.PowerLaw(-0.5), "stop band": ms.TwoBand((0, 0.2), (0.3, 1.0), unit="cycles")}
SHAPES = {
    ("time",): [(3, 2, 15), (2, 1, 8)],
    ("height", "width"): [(3, 2, 6, 9), (1, 1, 5, 12)],
    ("frame", "height", "width"): [(3, 1, 4, 5, 6)],
}
SHAPED = ShapedNoise(ms.PowerLaw(-0.5))
SHAPE = (2, 3, 8, 8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(*shape: int, **options) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=seeded(), **options)


def coloured() -> torch.Tensor:
    return SHAPED.color(white())


def covariance(spectrum: ms.Spectrum, axes: tuple[str, ...], shape: tuple[int, ...]) -> ms.SpectralCovariance:
    return ms.SpectralCovariance(spectrum, ms.Grid.of(**dict(zip(axes, shape[2:], strict=True))))


@pytest.mark.parametrize("axes", SHAPES, ids=len)
def test_noise_is_the_generators_white_noise_in_the_covariances_colour(axes):
    for name, spectrum in SPECTRA.items():
        shaped = ShapedNoise(spectrum, axes)
        for shape in SHAPES[axes]:
            noise = shaped.noise(shape, seeded(), dtype=torch.float64)
            expected = covariance(spectrum, axes, shape).color(white(*shape, dtype=torch.float64))
            assert torch.equal(noise, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_flat_noise_is_white_noise_bit_for_bit(dtype):
    shaped = ShapedNoise(ms.Flat(2.0))
    assert torch.equal(shaped.noise_like(torch.zeros(SHAPE, dtype=dtype), seeded()), white(dtype=dtype))
    with shaped.draws():
        assert torch.equal(torch.randn(SHAPE, generator=seeded(), dtype=dtype), white(dtype=dtype))


def test_noise_comes_from_the_global_generator_or_one_per_item():
    torch.manual_seed(5)
    noise = SHAPED.noise_like(torch.zeros(SHAPE))
    torch.manual_seed(5)
    assert torch.equal(noise, SHAPED.color(torch.randn(SHAPE)))
    for i, item in enumerate(SHAPED.noise(SHAPE, [seeded(0), seeded(1)])):
        assert torch.allclose(item[None], SHAPED.noise((1, *SHAPE[1:]), seeded(i)), atol=1e-6)
    with pytest.raises(ValueError, match="expected 1 or 3 generators for a batch of 3, got 2"):
        SHAPED.noise((3, 2, 8, 8), [seeded(0), seeded(1)])


def test_draws_colour_every_call_of_randn_and_of_diffusers():
    with SHAPED.draws() as draws:
        out = torch.empty(SHAPE)
        assert torch.randn(SHAPE, generator=seeded(), out=out) is out
        same = [
            out, torch.randn(SHAPE, generator=seeded()), torch.randn(*SHAPE, generator=seeded()),
            torch.randn(size=SHAPE, generator=seeded()), randn_tensor(SHAPE, generator=seeded()),
        ]  # fmt: skip
        torch.manual_seed(0)
        like = torch.randn_like(out)
        assert (draws.coloured, draws.left) == (6, 0)
        several = randn_tensor(SHAPE, generator=[seeded(0), seeded(1)])
    torch.manual_seed(0)
    assert torch.equal(like, SHAPED.color(torch.randn_like(out)))
    assert all(torch.equal(each, coloured()) for each in same)
    assert torch.allclose(several, SHAPED.noise(SHAPE, [seeded(0), seeded(1)]), atol=1e-6)


def test_draws_leave_other_draws_threads_and_the_time_after_white():
    in_thread = {}
    with SHAPED.draws() as draws:
        rows, uniform = torch.randn(5, 16, 16, generator=seeded()), torch.rand(SHAPE, generator=seeded())
        assert (draws.coloured, draws.left) == (0, 1)
        thread = threading.Thread(target=lambda: in_thread.update(noise=white()))
        thread.start()
        thread.join()
    assert torch.equal(rows, white(5, 16, 16))
    assert torch.equal(uniform, torch.rand(SHAPE, generator=seeded()))
    assert torch.equal(in_thread["noise"], white())
    colour = coloured()
    with pytest.raises(ZeroDivisionError), SHAPED.draws():
        1 / 0  # noqa: B018
    assert not torch.equal(white(), colour)


def test_draws_colour_once_within_other_contexts_and_compiled_models():
    expected = coloured()
    with ShapedNoise(ms.PowerLaw(0.5)).draws() as outer, SHAPED.draws():
        assert torch.equal(white(), expected)
        assert torch.equal(SHAPED.noise(SHAPE, seeded()), expected)
    assert outer.coloured == 0
    with torch.device("meta"), SHAPED.draws():
        assert torch.empty(3).device.type == "meta"
    with SHAPED.draws(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(white(), expected)
    model = torch.compile(torch.nn.Conv2d(3, 3, 3), backend="eager", fullgraph=True)
    with SHAPED.draws(), torch.no_grad():
        x = white()
        assert torch.allclose(model(x), model._orig_mod(x))


def test_draws_like_a_tensor_accept_its_shape_and_that_of_one_item_only():
    with SHAPED.draws(like=torch.zeros(SHAPE)):
        batch, item = white(), white(*SHAPE[1:])
        for shape in ((2, 3, 16, 16), (2, 64, 3), (2,)):
            with pytest.raises(ValueError, match="cannot be coloured"):
                torch.randn(shape)
    assert torch.equal(batch, coloured())
    assert torch.equal(item, SHAPED.color(white(1, *SHAPE[1:]))[0])
    packed = torch.zeros(2, 64, 12)
    with SHAPED.draws(like=packed), pytest.raises(ValueError, match="before they are packed"):
        torch.randn(packed.shape)


@pytest.mark.parametrize("colour", ["power law", "white"])
def test_white_odds_are_the_ratio_of_likelihoods(colour):
    """By SciPy's density with the dense covariance matrix, the scale at its likeliest under each."""
    grid = ms.Grid.of(height=4, width=6)
    power = dense.power_law(grid)
    x = white(3, 2, 4, 6, dtype=torch.float64) * 7
    x = ms.SpectralCovariance(ms.PowerLaw(-0.4), grid).color(x) if colour == "power law" else x

    def likelihood(matrix: np.ndarray) -> float:
        rows = x.reshape(-1, 24).numpy()
        scale = np.mean([row @ np.linalg.solve(matrix, row) for row in rows]) / len(matrix)
        return multivariate_normal(np.zeros(len(matrix)), scale * matrix).logpdf(rows).sum()

    expected = likelihood(np.eye(24)) - likelihood(dense.operator(power / power.mean()))
    assert ShapedNoise(ms.PowerLaw(-0.4)).white_odds(x) == pytest.approx(expected, abs=1e-8)
    assert (expected > 0) == (colour == "white")


def test_white_odds_are_zero_without_colour_and_infinite_where_the_spectrum_has_no_power():
    assert ShapedNoise(ms.Flat()).white_odds(white()) == 0.0
    assert SHAPED.white_odds(torch.zeros(SHAPE)) == 0.0
    shaped = ShapedNoise(SPECTRA["stop band"])
    for dtype in (torch.float32, torch.float16):
        assert shaped.white_odds(white(2, 1, 16, 16, dtype=dtype)) == math.inf
        assert shaped.white_odds(shaped.noise((2, 1, 16, 16), seeded(), dtype=dtype)) == -math.inf


def test_white_odds_rarely_take_the_right_colour_for_white():
    shaped, generator = ShapedNoise(ms.PowerLaw(-0.1)), seeded(1)
    odds = [shaped.white_odds(shaped.noise((1, 1, 8, 8), generator)) for _ in range(500)]
    assert sum(value > math.log(20) for value in odds) <= 25


def test_describe_and_of_are_inverse():
    grid = ms.Grid.of(frame=(16, 1 / 25, "s"), height=64, width=64)
    spectrum = ms.PowerLaw(-0.5, axes=("height", "width")) * ms.Autoregressive(time_constant=0.4, axis="frame")
    shaped = ShapedNoise(spectrum, grid=grid)
    again = ShapedNoise.of(shaped.describe())
    assert again.spectrum == shaped.spectrum
    assert again.describe() == shaped.describe()
    assert torch.equal(again.noise((1, 1, 4, 6, 6), seeded()), shaped.noise((1, 1, 4, 6, 6), seeded()))
    shaped = ShapedNoise(ms.Flat(), grid=ms.Grid.of(frame=(16, np.float32(0.5), "s")))
    assert json.loads(json.dumps(shaped.describe()))["axes"] == [{"name": "frame", "spacing": 0.5, "unit": "s"}]
    for bad in (
        {}, {"spectrum": {}}, {"axes": [], "spectrum": {}}, [], {"axes": [{"x": 1}], "spectrum": {}},
        {"axes": [{"name": "x", "spacing": 10**400}], "spectrum": {"_target_": "multisagd.Flat"}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"described|has the keys|at least one axis"):
            ShapedNoise.of(bad)


def test_shaped_noise_takes_units_from_its_grid_or_covariance():
    grid = ms.Grid.of(time=(400, 1 / 8000, "s"))
    noise = ShapedNoise(ms.HarmonicStop(50.0, width=25.0, axis="time"), grid=grid).noise((1, 1, 400), seeded())
    power = torch.fft.rfft(noise).abs().square()[0, 0] / 400  # bins 20 Hz apart: 40 and 60 Hz lie in the first stop
    assert power[2:4].max() < 1e-9
    assert power[[1, 4, 6]].min() > 1e-3
    cov = covariance(ms.PowerLaw(-0.5), ("y", "x"), (1, 1, 6, 9))
    assert torch.equal(ShapedNoise(cov).noise((2, 1, 6, 9), seeded()), cov.color(white(2, 1, 6, 9)))
    padded = ms.PaddedCovariance(ms.PowerLaw(-1.0), grid, {"time": 2})
    assert_refused(
        ("remove axes and grid", lambda: ShapedNoise(cov, axes=("y", "x"))),
        ("remove the padding", lambda: ShapedNoise(padded)),
        ("a grid already names its axes", lambda: ShapedNoise(ms.Flat(), ("time",), grid)),
        (r"\(batch, channels, height, width\), got shape \(2, 3, 8\)", lambda: SHAPED.noise((2, 3, 8))),
    )
