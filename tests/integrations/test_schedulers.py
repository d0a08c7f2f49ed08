"""Schedulers of diffusers in colour: what they generate, in law, and that they stay what they were otherwise.

The law is that of `benchmarks/diffusers_schedulers.py`: the exact denoiser of Gaussian data under coloured noise, and
the power at every frequency computed exactly, by an impulse for every draw of noise.
"""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import sys
import warnings
from itertools import pairwise

import diffusers
import pytest
import torch

import multisagd as ms
from benchmarks import diffusers_schedulers as law
from multisagd.integrations import ShapedNoise, schedulers, shape_scheduler

SHAPED = ShapedNoise(ms.PowerLaw(-0.5))
SHAPE = (2, 3, 8, 8)
BIASED = "flow matching, stochastic"
"""Goes from each estimate of the datum to the next level by fresh noise alone, which loses power in white, too."""
EXACT = [name for name, case in law.CASES.items() if not case.items and name != BIASED]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestLaw:
    @pytest.mark.parametrize("name", EXACT)
    def test_the_power_in_every_band_is_the_datas_and_without_the_colour_it_is_not(self, name):
        case = law.CASES[name]
        assert abs(law.worst(case, law.NOISE, wrapped=True)) < 0.5
        few = dataclasses.replace(case, steps=case.steps // 4)
        assert law.worst(few, law.NOISE, wrapped=False) < -10

    @pytest.mark.slow
    def test_with_torchsde_too(self):
        """2,000 items: a standard error of 0.14 dB in the band of one real coefficient, zero frequency."""
        case = law.CASES["DPM-Solver SDE"]
        assert abs(law.worst(case, law.NOISE, wrapped=True)) < 0.5
        assert law.worst(dataclasses.replace(case, items=300), law.NOISE, wrapped=False) < -10

    def test_steps_that_renew_all_noise_follow_their_own_recursion(self):
        case = dataclasses.replace(law.CASES[BIASED], steps=20)
        denoiser = law.oracle(law.NOISE, law.DATA, law.GRID)
        C, W = denoiser.statistics.power[0], denoiser.process.covariance.power()
        scheduler = case.make()
        scheduler.set_timesteps(case.steps)
        power, sigmas = W, scheduler.sigmas.double()
        for now, then in pairwise(sigmas):
            gain = (1 - now) * C / ((1 - now) ** 2 * C + now**2 * W)
            power = (1 - then) ** 2 * gain**2 * power + then**2 * W
        generated = law.generate(case, denoiser, wrapped=True)
        assert torch.allclose(generated, power, rtol=2e-4)
        white = law.generate(case, denoiser, wrapped=False)
        assert (10 * torch.log10(white / power)).abs().max() > 10

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_ddim_follows_its_own_recursion_at_every_frequency(self, eta):
        case = law.Case(lambda: diffusers.DDIMScheduler(clip_sample=False), 10, {"eta": eta})
        denoiser = law.oracle(law.NOISE, law.DATA, law.GRID)
        C, W = denoiser.statistics.power[0], denoiser.process.covariance.power()
        scheduler = case.make()
        scheduler.set_timesteps(case.steps)
        shares = [*(float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps), 1.0]
        power = W
        for now, then in pairwise(shares):
            spread = eta**2 * (1 - then) / (1 - now) * (1 - now / then)  # arXiv 2010.02502, Eq. 16
            gain = math.sqrt(now) * C / (now * C + (1 - now) * W)
            ratio = math.sqrt((1 - then - spread) / (1 - now))
            transfer = math.sqrt(then) * gain + ratio * (1 - math.sqrt(now) * gain)
            power = transfer**2 * power + spread * W
        assert torch.allclose(law.generate(case, denoiser, wrapped=True), power, rtol=1e-4)

    @pytest.mark.parametrize(
        "grid", [ms.Grid.of(time=32), ms.Grid.of(frame=5, height=6, width=8)], ids=lambda grid: f"{grid.dimensions}-D"
    )
    @pytest.mark.parametrize("name", ["Euler ancestral", "UniPC"])
    def test_on_other_grids(self, name, grid):
        assert abs(law.worst(dataclasses.replace(law.CASES[name], grid=grid), law.NOISE, wrapped=True)) < 0.5

    @pytest.mark.parametrize("name", ["DDPM", "Euler ancestral", "DPM-Solver++ multistep, SDE", BIASED])
    def test_a_stop_band_stays_empty(self, name):
        stop = ms.TwoBand((0.0, 0.2), (0.3, 1.0), unit="cycles")
        case = dataclasses.replace(law.CASES[name], steps=25)
        # Data with power in the band, which the model cannot see: what is never noised is never generated.
        denoiser = law.oracle(stop, law.DATA, law.GRID)
        empty = denoiser.process.covariance.power() == 0
        coloured, white = (law.generate(case, denoiser, wrapped=wrapped) for wrapped in (True, False))
        assert empty.sum() > 10
        assert coloured[empty].max() < 1e-10 * coloured.max()
        assert white[empty].max() > 1e-3 * white.max()


class TestStaysWhatItWas:
    def test_it_is_of_its_class_and_steps_have_its_signature(self):
        scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        shaped = shape_scheduler(scheduler, SHAPED)
        assert isinstance(shaped, diffusers.DDIMScheduler)
        assert type(shaped).__name__ == "ShapedDDIMScheduler"
        assert inspect.signature(shaped.step) == inspect.signature(scheduler.step)
        settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        assert {key: shaped.config[key] for key in settings} == settings
        assert torch.equal(shaped.alphas_cumprod, scheduler.alphas_cumprod)

    def test_a_flat_spectrum_changes_no_bit(self):
        plain = diffusers.DDPMScheduler()
        shaped = shape_scheduler(plain, ShapedNoise(ms.Flat()))
        x, e = torch.randn(2, *SHAPE, generator=seeded()).unbind()
        step = [s.step(e, 500, x, generator=seeded(1)).prev_sample for s in (plain, shaped)]
        assert torch.equal(*step)

    def test_only_the_noise_of_a_step_changes(self):
        plain = diffusers.DDPMScheduler()
        shaped = shape_scheduler(plain, SHAPED)
        x, e = torch.randn(2, *SHAPE, generator=seeded()).unbind()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # at this timestep the sample's noise cannot be told, so nothing is said
            found = shaped.step(e, 300, x, generator=seeded(1), return_dict=False)[0]
        white = plain.step(e, 300, x, generator=seeded(1)).prev_sample
        noise, scale = torch.randn(SHAPE, generator=seeded(1)), plain._get_variance(300) ** 0.5
        assert torch.allclose(found - scale * SHAPED.color(noise), white - scale * noise, atol=1e-5)
        assert not torch.allclose(found, white, atol=0.1 * float(scale))

    def test_generators_one_per_item(self):
        shaped = shape_scheduler(diffusers.DDPMScheduler(), SHAPED)
        x, e = torch.randn(2, *SHAPE, generator=seeded()).unbind()
        together = shaped.step(e, 500, x, generator=[seeded(1), seeded(2)]).prev_sample
        for i in range(2):
            alone = shaped.step(e[i : i + 1], 500, x[i : i + 1], generator=[seeded(i + 1)]).prev_sample
            assert torch.allclose(together[i : i + 1], alone, atol=1e-6)

    def test_noise_of_the_callers_is_left_alone(self):
        plain = diffusers.DDIMScheduler(clip_sample=False)
        shaped = shape_scheduler(plain, SHAPED)
        for scheduler in (plain, shaped):
            scheduler.set_timesteps(10)
        x, e, noise = torch.randn(3, *SHAPE, generator=seeded()).unbind()
        steps = [s.step(e, 501, x, eta=1.0, variance_noise=noise).prev_sample for s in (plain, shaped)]
        assert torch.equal(*steps)
        t = torch.tensor([3, 700])
        assert torch.equal(plain.add_noise(x, noise, t), shaped.add_noise(x, noise, t))

    def test_noise_that_is_drawn_beside_the_steps_is_coloured_too(self):
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

    def test_shaping_again_replaces_the_noise(self):
        again = shape_scheduler(shape_scheduler(diffusers.DDPMScheduler(), SHAPED), ShapedNoise(ms.PowerLaw(0.3)))
        assert type(again).__name__ == "ShapedDDPMScheduler"
        assert again.shaped_noise.spectrum == ms.PowerLaw(0.3)
        assert again.config["shaped_noise"]["spectrum"]["exponent"] == 0.3

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_it_can_be_copied(self, copied):
        scheduler = copied(shape_scheduler(diffusers.DDPMScheduler(), SHAPED))
        assert type(scheduler) is schedulers.ShapedDDPMScheduler
        assert scheduler.shaped_noise.spectrum == SHAPED.spectrum


class TestSaving:
    def test_it_is_saved_with_its_colour(self, tmp_path):
        shaped = shape_scheduler(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), SHAPED)
        shaped.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert saved["_class_name"] == "ShapedEulerDiscreteScheduler"
        assert saved["shaped_noise"]["spectrum"] == {"_target_": "multisagd.PowerLaw", "exponent": -0.5}
        loaded = schedulers.ShapedEulerDiscreteScheduler.from_pretrained(tmp_path)
        assert type(loaded) is type(shaped)
        assert loaded.config.use_karras_sigmas
        assert loaded.shaped_noise.describe() == SHAPED.describe()

    def test_another_class_takes_the_configuration_with_the_colour(self):
        shaped = shape_scheduler(diffusers.DDPMScheduler(), SHAPED)
        other = schedulers.ShapedDPMSolverMultistepScheduler.from_config(shaped.config)
        assert isinstance(other, diffusers.DPMSolverMultistepScheduler)
        assert other.shaped_noise.spectrum == SHAPED.spectrum

    def test_a_hostile_configuration_is_refused(self):
        config = dict(shape_scheduler(diffusers.DDPMScheduler(), SHAPED).config)
        config["shaped_noise"] = {"spectrum": {"_target_": "os.system", "command": "true"}, "axes": [{"name": "x"}]}
        with pytest.raises(ValueError, match=r"'os\.system' is not a spectrum"):
            schedulers.ShapedDDPMScheduler.from_config(config)

    def test_without_a_colour_there_is_no_shaped_scheduler(self):
        with pytest.raises(ValueError, match="ShapedDDPMScheduler needs its noise"):
            schedulers.ShapedDDPMScheduler.from_config(diffusers.DDPMScheduler().config)

    def test_what_nothing_could_read_again_is_not_saved(self, tmp_path):
        class Mine(ms.PowerLaw):
            pass

        shaped = shape_scheduler(diffusers.DDPMScheduler(), ShapedNoise(Mine(-1.0)))
        assert "Mine" in repr(shaped)
        with pytest.raises(ValueError, match=r"cannot be saved: .*Mine is not a spectrum of multisagd"):
            shaped.save_pretrained(tmp_path)


def every_scheduler() -> list[str]:
    found = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith(("Flax", "Onnx"))]
    return [name for name in found if isinstance(getattr(diffusers, name), type)]


REQUIRED: dict[str, dict[str, object]] = {
    "AmusedScheduler": {"mask_token_id": 0},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
}


@pytest.mark.parametrize("name", every_scheduler())
def test_every_scheduler_of_diffusers_can_be_shaped(name):
    base = getattr(diffusers, name)
    if not hasattr(base, "from_config") or not issubclass(base, diffusers.SchedulerMixin):
        pytest.skip(f"{name} is no scheduler, or its requirements are missing")
    needed = REQUIRED.get(name, {})
    shaped = getattr(schedulers, f"Shaped{name}").from_config(needed, shaped_noise=SHAPED)
    assert isinstance(shaped, base)
    methods = dict(inspect.getmembers(base, inspect.isfunction))
    steps = [name for name in methods if name == "step" or name.startswith("step_")]
    assert steps
    # Steps draw by samplers of their own too; whatever else draws must be known by name.
    for step in {*steps, *(name for name, method in methods.items() if "randn" in inspect.getsource(method))}:
        assert getattr(type(shaped), step) is not getattr(base, step)
        assert inspect.signature(getattr(shaped, step)) == inspect.signature(getattr(base.from_config(needed), step))


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install .*diffusers"):
        shape_scheduler(object(), SHAPED)


class TestWarnings:
    @pytest.mark.parametrize("name", EXACT)
    def test_a_white_start_is_told(self, name):
        scheduler = shape_scheduler(law.CASES[name].make(), SHAPED)
        scheduler.set_timesteps(10)
        t, shape = scheduler.timesteps[0], (2, 1, 16, 16)
        x = torch.randn(shape, generator=seeded()) * getattr(scheduler, "init_noise_sigma", 1.0)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        with pytest.warns(UserWarning, match=r"started from white noise, but its noise is PowerLaw.*shaped\.noise"):
            scheduler.step(torch.zeros(shape), t, x)

    @pytest.mark.parametrize("name", EXACT)
    def test_a_coloured_start_is_not_and_neither_are_later_steps(self, name):
        scheduler = shape_scheduler(law.CASES[name].make(), SHAPED)
        scheduler.set_timesteps(4)
        x = SHAPED.noise((2, 1, 16, 16), seeded()) * getattr(scheduler, "init_noise_sigma", 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for t in scheduler.timesteps:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(x, t)
                scheduler.step(torch.zeros_like(x), t, x)  # the model's answer is ignored: x stays what it was

    @pytest.mark.parametrize("exponent", [-0.5, 0.5])
    def test_nor_is_a_noised_datum(self, exponent):
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

    def test_packed_latents_are_refused_rather_than_noised_in_white(self):
        scheduler = shape_scheduler(diffusers.DDPMScheduler(), SHAPED)
        packed = torch.zeros(2, 64, 12)
        with pytest.raises(ValueError, match="before they are packed"):
            scheduler.step(packed, 500, packed)

    def test_what_is_no_scheduler_is_refused(self):
        with pytest.raises(ValueError, match="Linear is not a diffusers scheduler"):
            shape_scheduler(torch.nn.Linear(1, 1), SHAPED)
        with pytest.raises(AttributeError, match="ShapedUNet2DModel"):
            _ = schedulers.ShapedUNet2DModel
