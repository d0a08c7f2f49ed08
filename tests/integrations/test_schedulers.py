"""Shaped noise has the covariance's colour and the generator's bits, and shaped schedulers change nothing else.

The law of schedulers is that of `benchmarks/diffusers_schedulers.py`: the exact denoiser of Gaussian data under
coloured noise, and the power at every frequency computed exactly, by an impulse for every draw of noise.
"""

import copy
import inspect
import json
import math
import pickle
import re
import threading
import warnings
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from scipy.stats import multivariate_normal

import multisagd as ms
from benchmarks import diffusers_schedulers as law
from multisagd.integrations import ShapedNoise, schedulers, shape_scheduler
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

SHAPED = ShapedNoise(ms.PowerLaw(-0.5))
SHAPE = (2, 3, 8, 8)
BIASED = "flow matching, stochastic"
"""Goes from each estimate of the datum to the next level by fresh noise alone, which loses power in white, too."""
EXACT = [name for name, case in law.CASES.items() if not case.items and name != BIASED]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known_power(case: law.Case) -> tuple[ms.GaussianDenoiser, torch.Tensor, torch.Tensor, object]:
    """The exact denoiser, the power of data and noise, and the scheduler of a case."""
    denoiser, scheduler = law.oracle(law.NOISE, law.DATA, law.GRID), case.make()
    scheduler.set_timesteps(case.steps)
    return denoiser, denoiser.statistics.power[0], denoiser.process.covariance.power(), scheduler


@pytest.mark.parametrize("name", EXACT)
def test_shaped_scheduler_generates_the_power_of_the_data_and_a_white_one_does_not(name):
    case = law.CASES[name]
    assert abs(law.worst(case, law.NOISE, wrapped=True)) < 0.5
    assert law.worst(replace(case, steps=case.steps // 4), law.NOISE, wrapped=False) < -10
    if name in ("Euler ancestral", "UniPC"):
        for grid in (ms.Grid.of(time=32), ms.Grid.of(frame=5, height=6, width=8)):
            assert abs(law.worst(replace(case, grid=grid), law.NOISE, wrapped=True)) < 0.5, grid


@pytest.mark.slow
def test_shaped_scheduler_generates_the_power_of_the_data_with_torchsde():
    """2,000 items: a standard error of 0.14 dB in the band of one real coefficient, zero frequency."""
    case = law.CASES["DPM-Solver SDE"]
    assert abs(law.worst(case, law.NOISE, wrapped=True)) < 0.5
    assert law.worst(replace(case, items=300), law.NOISE, wrapped=False) < -10


def test_shaped_flow_matching_with_fresh_noise_follows_its_recursion():
    case = replace(law.CASES[BIASED], steps=20)
    denoiser, C, W, scheduler = known_power(case)
    power = W
    for now, then in pairwise(scheduler.sigmas.double()):
        gain = (1 - now) * C / ((1 - now) ** 2 * C + now**2 * W)
        power = (1 - then) ** 2 * gain**2 * power + then**2 * W
    assert torch.allclose(law.generate(case, denoiser, wrapped=True), power, rtol=2e-4)
    white = law.generate(case, denoiser, wrapped=False)
    assert (10 * torch.log10(white / power)).abs().max() > 10


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_shaped_ddim_follows_its_recursion_at_every_frequency(eta):
    case = law.Case(lambda: diffusers.DDIMScheduler(clip_sample=False), 10, {"eta": eta})
    denoiser, C, W, scheduler = known_power(case)
    shares = [*(float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps), 1.0]
    power = W
    for now, then in pairwise(shares):
        spread = eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # arXiv 2010.02502, Eq. 16
        gain = math.sqrt(now) * C / (now * C + (1 - now) * W)
        ratio = math.sqrt((1 - then - spread) / (1 - now))
        transfer = math.sqrt(then) * gain + ratio * (1 - math.sqrt(now) * gain)
        power = transfer**2 * power + spread * W
    assert torch.allclose(law.generate(case, denoiser, wrapped=True), power, rtol=1e-4)


@pytest.mark.parametrize("name", ["DDPM", "Euler ancestral", "DPM-Solver++ multistep, SDE", BIASED])
def test_shaped_scheduler_keeps_a_stop_band_empty(name):
    stop = ms.TwoBand((0.0, 0.2), (0.3, 1.0), unit="cycles")
    case = replace(law.CASES[name], steps=25)
    # Data with power in the band, which the model cannot see: what is never noised is never generated.
    denoiser = law.oracle(stop, law.DATA, law.GRID)
    empty = denoiser.process.covariance.power() == 0
    coloured, white = (law.generate(case, denoiser, wrapped=wrapped) for wrapped in (True, False))
    assert empty.sum() > 10
    assert coloured[empty].max() < 1e-10 * coloured.max()
    assert white[empty].max() > 1e-3 * white.max()


def test_shape_scheduler_keeps_class_signature_and_configuration():
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    shaped = shape_scheduler(scheduler, SHAPED)
    assert isinstance(shaped, diffusers.DDIMScheduler)
    assert type(shaped).__name__ == "ShapedDDIMScheduler"
    assert inspect.signature(shaped.step) == inspect.signature(scheduler.step)
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    assert {key: shaped.config[key] for key in settings} == settings
    assert torch.equal(shaped.alphas_cumprod, scheduler.alphas_cumprod)
    again = shape_scheduler(shaped, ShapedNoise(ms.PowerLaw(0.3)))
    assert type(again) is type(shaped)
    assert again.shaped_noise.spectrum == ms.PowerLaw(0.3)
    assert again.config["shaped_noise"]["spectrum"]["exponent"] == 0.3


def test_step_changes_only_the_noise_and_nothing_with_a_flat_spectrum():
    plain = diffusers.DDPMScheduler()
    shaped, flat = (shape_scheduler(plain, noise) for noise in (SHAPED, ShapedNoise(ms.Flat())))
    x, e = torch.randn(2, *SHAPE, generator=seeded()).unbind()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the colour of the sample's noise is unknown at this timestep: no warning
        coloured = shaped.step(e, 300, x, generator=seeded(1), return_dict=False)[0]
    white = plain.step(e, 300, x, generator=seeded(1)).prev_sample
    assert torch.equal(flat.step(e, 300, x, generator=seeded(1)).prev_sample, white)
    noise, scale = torch.randn(SHAPE, generator=seeded(1)), plain._get_variance(300) ** 0.5
    assert torch.allclose(coloured - scale * SHAPED.color(noise), white - scale * noise, atol=1e-5)
    assert not torch.allclose(coloured, white, atol=0.1 * float(scale))
    together = shaped.step(e, 500, x, generator=[seeded(1), seeded(2)]).prev_sample
    for i in range(2):
        alone = shaped.step(e[i : i + 1], 500, x[i : i + 1], generator=[seeded(i + 1)]).prev_sample
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)
    packed = torch.zeros(2, 64, 12)
    with pytest.raises(ValueError, match="before they are packed"):
        shaped.step(packed, 500, packed)


def test_shaped_scheduler_leaves_noise_of_the_caller_alone():
    plain = diffusers.DDIMScheduler(clip_sample=False)
    both = (plain, shape_scheduler(plain, SHAPED))
    for scheduler in both:
        scheduler.set_timesteps(10)
    x, e, noise = torch.randn(3, *SHAPE, generator=seeded()).unbind()
    assert torch.equal(*(s.step(e, 501, x, eta=1.0, variance_noise=noise).prev_sample for s in both))
    assert torch.equal(*(s.add_noise(x, noise, torch.tensor([3, 700])) for s in both))


def test_shaped_scheduler_colours_noise_drawn_outside_of_steps():
    churning = shape_scheduler(diffusers.KarrasVeScheduler(s_noise=1.0, s_min=0.0), SHAPED)
    churning.set_timesteps(10)
    x = torch.zeros(SHAPE)
    drawn, sigma = churning.add_noise_to_input(x, 2.0, generator=seeded())
    assert torch.allclose(drawn, math.sqrt(sigma**2 - 4) * SHAPED.noise(SHAPE, seeded()), atol=1e-5)
    exploding = shape_scheduler(diffusers.ScoreSdeVeScheduler(), SHAPED)
    exploding.set_sigmas(10)
    torch.manual_seed(0)
    drawn = exploding.add_noise(x, None, torch.tensor([3, 3]))
    torch.manual_seed(0)
    assert torch.allclose(drawn, exploding.discrete_sigmas[3] * SHAPED.noise(SHAPE), atol=1e-5)


def test_shaped_scheduler_is_copied_saved_and_loaded_with_its_colour(tmp_path):
    shaped = shape_scheduler(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), SHAPED)
    shaped.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "ShapedEulerDiscreteScheduler"
    assert saved["shaped_noise"]["spectrum"] == {"_target_": "multisagd.PowerLaw", "exponent": -0.5}
    loaded = schedulers.ShapedEulerDiscreteScheduler.from_pretrained(tmp_path)
    for same in (loaded, copy.deepcopy(shaped), pickle.loads(pickle.dumps(shaped))):
        assert type(same) is type(shaped) is schedulers.ShapedEulerDiscreteScheduler
        assert same.config.use_karras_sigmas
        assert same.shaped_noise.describe() == SHAPED.describe()
    other = schedulers.ShapedDPMSolverMultistepScheduler.from_config(shaped.config)
    assert isinstance(other, diffusers.DPMSolverMultistepScheduler)
    assert other.shaped_noise.spectrum == SHAPED.spectrum


def test_shaped_scheduler_refuses_hostile_colourless_and_unsavable_configurations(tmp_path):
    class Mine(ms.PowerLaw):
        pass

    hostile = dict(shape_scheduler(diffusers.DDPMScheduler(), SHAPED).config)
    hostile["shaped_noise"] = {"spectrum": {"_target_": "os.system", "command": "true"}, "axes": [{"name": "x"}]}
    mine = shape_scheduler(diffusers.DDPMScheduler(), ShapedNoise(Mine(-1.0)))
    assert "Mine" in repr(mine)
    load, white = schedulers.ShapedDDPMScheduler.from_config, diffusers.DDPMScheduler().config
    assert_refused(
        (r"'os\.system' is not a spectrum", lambda: load(hostile)),
        ("ShapedDDPMScheduler requires a ShapedNoise", lambda: load(white)),
        (r"cannot be saved: .*Mine is not a multisagd spectrum", lambda: mine.save_pretrained(tmp_path)),
        ("Linear is not a diffusers scheduler", lambda: shape_scheduler(torch.nn.Linear(1, 1), SHAPED)),
    )
    with pytest.raises(AttributeError, match="ShapedUNet2DModel"):
        _ = schedulers.ShapedUNet2DModel


REQUIRED: dict[str, dict[str, object]] = {
    "AmusedScheduler": {"mask_token_id": 0},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
}


def test_shape_scheduler_shapes_every_scheduler_of_diffusers():
    classes = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    # The others are for JAX, or their requirements are missing.
    mixin = diffusers.SchedulerMixin
    classes = {name: base for name, base in classes.items() if isinstance(base, type) and issubclass(base, mixin)}
    assert len(classes) > 40
    for name, base in classes.items():
        needed = REQUIRED.get(name, {})
        shaped = getattr(schedulers, f"Shaped{name}").from_config(needed, shaped_noise=SHAPED)
        assert isinstance(shaped, base)
        methods = dict(inspect.getmembers(base, inspect.isfunction))
        steps = {method for method in methods if method == "step" or method.startswith("step_")}
        assert steps, name
        # Steps draw by samplers of their own too; whatever else draws must be known by name.
        for step in steps | {each for each, method in methods.items() if "randn" in inspect.getsource(method)}:
            assert getattr(type(shaped), step) is not getattr(base, step), (name, step)
            expected = inspect.signature(getattr(base.from_config(needed), step))
            assert inspect.signature(getattr(shaped, step)) == expected, (name, step)


@pytest.mark.parametrize("name", EXACT)
def test_step_warns_of_a_white_start_only(name):
    for white in (True, False):
        scheduler = shape_scheduler(law.CASES[name].make(), SHAPED)
        scheduler.set_timesteps(4)
        noise = torch.randn(2, 1, 16, 16, generator=seeded()) if white else SHAPED.noise((2, 1, 16, 16), seeded())
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in scheduler.timesteps:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(x, t)
                scheduler.step(torch.zeros_like(x), t, x)  # the output of the model is ignored: x stays what it was
        message = str(caught[0].message) if caught else ""
        assert bool(message) == white
        assert not white or re.match(
            r".*started from white noise, but the noise of the scheduler has the spectrum PowerLaw.*shaped\.noise",
            message,
        )


@pytest.mark.parametrize("exponent", [-0.5, 0.5])
def test_step_does_not_take_a_noised_datum_for_a_white_start(exponent):
    """Its low frequencies would be taken for those that white noise has and blue noise has not."""
    shaped = ShapedNoise(ms.PowerLaw(exponent))
    scheduler = shape_scheduler(diffusers.DDIMScheduler(clip_sample=False), shaped)
    scheduler.set_timesteps(50)
    shares, shape = scheduler.alphas_cumprod[scheduler.timesteps], (2, 1, 16, 16)
    t = scheduler.timesteps[shares < schedulers.LARGEST_SIGNAL][-1]
    datum = ShapedNoise(ms.PowerLaw(-1.2)).noise(shape, seeded(1))
    x = scheduler.add_noise(datum, shaped.noise(shape, seeded()), t[None])
    assert (shaped.white_odds(x) > schedulers.MIN_ODDS) == (exponent > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step(torch.zeros(shape), t, x)


SPECTRA = {"power law": ms.PowerLaw(-0.5), "stop band": ms.TwoBand((0, 0.2), (0.3, 1.0), unit="cycles")}
SHAPES = {
    ("time",): [(3, 2, 15), (2, 1, 8)],
    ("height", "width"): [(3, 2, 6, 9), (1, 1, 5, 12)],
    ("frame", "height", "width"): [(3, 1, 4, 5, 6)],
}


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
        with pytest.raises(ValueError, match=r"described|must have the keys|at least one axis"):
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
        (r"\(batch, channels, height, width\), got \(2, 3, 8\)", lambda: SHAPED.noise((2, 3, 8))),
    )
