"""Noise for those who call `torch.randn`: the covariance's colour, the generator's bits, and nobody else's draws."""

import json
import math
import threading

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import multisagd as ms
from multisagd.integrations import ShapedNoise

SPECTRA = {"power law": ms.PowerLaw(-0.5), "stop band": ms.TwoBand((0, 0.2), (0.3, 1.0), unit="cycles")}
SHAPES = {("time",): (3, 2, 15), ("height", "width"): (3, 2, 6, 9), ("frame", "height", "width"): (3, 1, 4, 5, 6)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(spectrum: ms.Spectrum, axes: tuple[str, ...], shape: tuple[int, ...]) -> ms.SpectralCovariance:
    return ms.SpectralCovariance(spectrum, ms.Grid.of(**dict(zip(axes, shape[2:], strict=True))))


@pytest.mark.parametrize("axes", SHAPES, ids=len)
@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_the_generators_white_noise_in_the_covariances_colour(name, axes):
    shape, spectrum = SHAPES[axes], SPECTRA[name]
    noise = ShapedNoise(spectrum, axes).noise(shape, seeded(), dtype=torch.float64)
    white = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    assert torch.equal(noise, covariance(spectrum, axes, shape).color(white))


def test_one_object_serves_every_size():
    shaped = ShapedNoise(ms.PowerLaw(-0.5))
    for shape in ((2, 3, 8, 8), (1, 1, 5, 12)):
        expected = covariance(ms.PowerLaw(-0.5), ("height", "width"), shape).color(
            torch.randn(shape, generator=seeded())
        )
        assert torch.allclose(shaped.noise(shape, seeded()), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_flat_spectrum_leaves_every_bit(dtype):
    x, shaped = torch.zeros(4, 3, 8, 8, dtype=dtype), ShapedNoise(ms.Flat(2.0))
    white = torch.randn(x.shape, generator=seeded(), dtype=dtype)
    assert torch.equal(shaped.noise_like(x, seeded()), white)
    with shaped.draws():
        assert torch.equal(torch.randn(x.shape, generator=seeded(), dtype=dtype), white)


def test_the_global_generator_is_used_when_there_is_none():
    x, shaped = torch.zeros(2, 1, 8, 8), ShapedNoise(ms.PowerLaw(-0.5))
    torch.manual_seed(5)
    noise = shaped.noise_like(x)
    torch.manual_seed(5)
    assert torch.equal(noise, shaped.color(torch.randn(x.shape)))


def test_of_several_generators_each_draws_one_item():
    shaped, shape = ShapedNoise(ms.PowerLaw(-0.5)), (3, 2, 8, 8)
    noise = shaped.noise(shape, [seeded(i) for i in range(3)])
    for i, item in enumerate(noise):
        assert torch.allclose(item[None], shaped.noise((1, 2, 8, 8), seeded(i)), atol=1e-6)
    with pytest.raises(ValueError, match="a batch of 3 needs one generator or 3, got 2"):
        shaped.noise(shape, [seeded(0), seeded(1)])


class TestDraws:
    shaped = ShapedNoise(ms.PowerLaw(-0.5))
    shape = (2, 3, 8, 8)

    def colour(self, seed=0, **options):
        return self.shaped.color(torch.randn(self.shape, generator=seeded(seed), **options))

    def test_every_way_to_call_randn_is_reached(self):
        expected = self.colour()
        with self.shaped.draws() as draws:
            assert torch.equal(torch.randn(self.shape, generator=seeded()), expected)
            assert torch.equal(torch.randn(*self.shape, generator=seeded()), expected)
            assert torch.equal(torch.randn(size=self.shape, generator=seeded()), expected)
            into = torch.empty(self.shape)
            assert torch.randn(self.shape, generator=seeded(), out=into) is into
            assert torch.equal(into, expected)
            torch.manual_seed(0)
            like = torch.randn_like(into)
        torch.manual_seed(0)
        assert torch.equal(like, self.shaped.color(torch.randn_like(into)))
        assert (draws.coloured, draws.left) == (5, 0)

    def test_all_of_the_library_is_reached(self):
        from diffusers.utils.torch_utils import randn_tensor

        with self.shaped.draws():
            one = randn_tensor(self.shape, generator=seeded())
            several = randn_tensor(self.shape, generator=[seeded(0), seeded(1)])
        assert torch.equal(one, self.colour())
        assert torch.allclose(several, self.shaped.noise(self.shape, [seeded(0), seeded(1)]), atol=1e-6)

    def test_other_draws_stay_as_they_are(self):
        with self.shaped.draws() as draws:
            rows, uniform = torch.randn(5, 16, 16, generator=seeded()), torch.rand(self.shape, generator=seeded())
        assert torch.equal(rows, torch.randn(5, 16, 16, generator=seeded()))
        assert torch.equal(uniform, torch.rand(self.shape, generator=seeded()))
        assert (draws.coloured, draws.left) == (0, 1)

    def test_contexts_within_one_another_colour_once_and_the_inner_one_decides(self):
        blue = ShapedNoise(ms.PowerLaw(0.5))
        with blue.draws() as outer, self.shaped.draws():
            noise = torch.randn(self.shape, generator=seeded())
        assert torch.equal(noise, self.colour())
        assert outer.coloured == 0

    def test_noise_drawn_by_itself_within_is_coloured_once(self):
        with self.shaped.draws():
            noise = self.shaped.noise(self.shape, seeded())
        assert torch.equal(noise, self.colour())

    def test_other_threads_and_the_time_after_are_white(self):
        found = {}
        with self.shaped.draws():
            thread = threading.Thread(target=lambda: found.update(noise=torch.randn(self.shape, generator=seeded())))
            thread.start()
            thread.join()
        white = torch.randn(self.shape, generator=seeded())
        assert torch.equal(found["noise"], white)
        assert not torch.equal(white, self.colour())

    def test_it_ends_with_an_error_too(self):
        with pytest.raises(ZeroDivisionError), self.shaped.draws():
            1 / 0  # noqa: B018
        assert not torch.equal(torch.randn(self.shape, generator=seeded()), self.colour())

    def test_other_contexts_of_torch_keep_working(self):
        with torch.device("meta"), self.shaped.draws():
            assert torch.empty(3).device.type == "meta"
        with self.shaped.draws(), torch.autocast("cpu", torch.bfloat16):
            noise = torch.randn(self.shape, generator=seeded())
        assert torch.equal(noise, self.colour())

    def test_compiled_models_run_within(self):
        model = torch.compile(torch.nn.Conv2d(3, 3, 3), backend="eager", fullgraph=True)
        with self.shaped.draws(), torch.no_grad():
            x = torch.randn(self.shape, generator=seeded())
            assert torch.allclose(model(x), model._orig_mod(x))

    def test_with_like_only_its_own_shape_and_one_items_can_be_drawn(self):
        x = torch.zeros(self.shape)
        with self.shaped.draws(like=x):
            batch, item = torch.randn(self.shape, generator=seeded()), torch.randn(self.shape[1:], generator=seeded())
            for shape in ((2, 3, 16, 16), (2, 64, 3), (2,)):
                with pytest.raises(ValueError, match="cannot be coloured"):
                    torch.randn(shape)
        assert torch.equal(batch, self.colour())
        assert torch.equal(item, self.shaped.color(torch.randn((1, *self.shape[1:]), generator=seeded()))[0])
        packed = torch.zeros(2, 64, 12)
        with self.shaped.draws(like=packed), pytest.raises(ValueError, match="before they are packed"):
            torch.randn(packed.shape)


class TestWhiteOdds:
    """Against SciPy's density with the dense covariance matrix, the scale at its likeliest under each."""

    shape = (3, 2, 4, 6)

    def likelihood(self, x: np.ndarray, matrix: np.ndarray) -> float:
        scale = np.mean([v @ np.linalg.solve(matrix, v) for v in x]) / len(matrix)
        return multivariate_normal(np.zeros(len(matrix)), scale * matrix).logpdf(x).sum()

    @pytest.mark.parametrize("colour", ["power law", "white"])
    def test_it_is_the_ratio_of_likelihoods(self, colour):
        spectrum, axes = ms.PowerLaw(-0.4), ("height", "width")
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(4), np.fft.fftfreq(6), indexing="ij"))
        power = np.maximum(radius, 1 / 256) ** -0.8
        impulses = np.eye(24).reshape(24, 4, 6)
        matrix = np.fft.ifft2(power / power.mean() * np.fft.fft2(impulses)).real.reshape(24, 24)
        x = torch.randn(self.shape, generator=seeded(3), dtype=torch.float64) * 7
        x = covariance(spectrum, axes, self.shape).color(x) if colour == "power law" else x
        flat = x.reshape(-1, 24).numpy()
        expected = self.likelihood(flat, np.eye(24)) - self.likelihood(flat, matrix)
        assert ShapedNoise(spectrum).white_odds(x) == pytest.approx(expected, abs=1e-8)
        assert (expected > 0) == (colour == "white")

    def test_without_a_colour_there_is_nothing_to_tell(self):
        assert ShapedNoise(ms.Flat()).white_odds(torch.randn(self.shape, generator=seeded())) == 0.0
        assert ShapedNoise(ms.PowerLaw(-1.0)).white_odds(torch.zeros(self.shape)) == 0.0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_power_where_the_spectrum_has_none_decides(self, dtype):
        shaped = ShapedNoise(SPECTRA["stop band"])
        assert shaped.white_odds(torch.randn(2, 1, 16, 16, generator=seeded(), dtype=dtype)) == math.inf
        assert shaped.white_odds(shaped.noise((2, 1, 16, 16), seeded(), dtype=dtype)) == -math.inf

    def test_the_right_colour_is_hardly_ever_taken_for_white(self):
        shaped, generator = ShapedNoise(ms.PowerLaw(-0.1)), seeded(1)
        odds = [shaped.white_odds(shaped.noise((1, 1, 8, 8), generator)) for _ in range(500)]
        assert sum(value > math.log(20) for value in odds) <= 25


class TestDescription:
    def test_there_and_back(self):
        grid = ms.Grid.of(frame=(16, 1 / 25, "s"), height=64, width=64)
        spectrum = ms.PowerLaw(-0.5, axes=("height", "width")) * ms.Autoregressive(time_constant=0.4, axis="frame")
        shaped = ShapedNoise(spectrum, grid=grid)
        again = ShapedNoise.of(shaped.describe())
        assert again.spectrum == shaped.spectrum
        assert again.describe() == shaped.describe()
        shape = (1, 1, 4, 6, 6)
        assert torch.equal(again.noise(shape, seeded()), shaped.noise(shape, seeded()))

    def test_axes_of_numbers_of_numpy_are_plain_data_too(self):
        shaped = ShapedNoise(ms.Flat(), grid=ms.Grid.of(frame=(16, np.float32(0.5), "s")))
        assert json.loads(json.dumps(shaped.describe()))["axes"] == [{"name": "frame", "spacing": 0.5, "unit": "s"}]

    def test_units_are_those_of_the_grid(self):
        grid = ms.Grid.of(time=(400, 1 / 8000, "s"))
        noise = ShapedNoise(ms.HarmonicStop(50.0, width=25.0, axis="time"), grid=grid).noise((1, 1, 400), seeded())
        power = torch.fft.rfft(noise).abs().square()[0, 0] / 400  # bins 20 Hz apart: 40 and 60 Hz lie in the first stop
        assert power[2:4].max() < 1e-9
        assert power[[1, 4, 6]].min() > 1e-3

    @pytest.mark.parametrize(
        "bad",
        [
            {},
            {"spectrum": {}},
            {"axes": [], "spectrum": {}},
            [],
            {"axes": [{"x": 1}], "spectrum": {}},
            {"axes": [{"name": "x", "spacing": 10**400}], "spectrum": {"_target_": "multisagd.Flat"}},
        ],
    )
    def test_what_describes_no_noise_is_refused(self, bad):
        with pytest.raises(ValueError, match=r"described|at least one axis"):
            ShapedNoise.of(bad)


def test_a_covariance_brings_its_grid():
    cov = covariance(ms.PowerLaw(-0.5), ("y", "x"), (1, 1, 6, 9))
    assert torch.equal(
        ShapedNoise(cov).noise((2, 1, 6, 9), seeded()), cov.color(torch.randn(2, 1, 6, 9, generator=seeded()))
    )
    with pytest.raises(ValueError, match="remove axes and grid"):
        ShapedNoise(cov, axes=("y", "x"))


def test_what_does_not_fit_is_refused():
    grid = ms.Grid.of(time=8)
    with pytest.raises(ValueError, match="remove the padding"):
        ShapedNoise(ms.PaddedCovariance(ms.PowerLaw(-1.0), grid, {"time": 2}))
    with pytest.raises(ValueError, match="a grid already names its axes"):
        ShapedNoise(ms.Flat(), ("time",), grid)
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\), got shape \(2, 3, 8\)"):
        ShapedNoise(ms.PowerLaw(-1.0)).noise((2, 3, 8))
