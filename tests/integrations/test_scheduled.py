"""Denoisers serve schedulers of diffusers, which make the denoiser's estimate of its output, and samplers in σ."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

import multisagd as ms
from benchmarks.diffusers_schedulers import DATA, GRID, NOISE, oracle
from multisagd.integrations import KarrasDenoiser, ScheduledDenoiser, scheduled
from multisagd.integrations.scheduled import Level, noise_level
from tests.helpers.refusals import assert_refused

TRAINED = oracle(NOISE, DATA, GRID)
# With a schedule so wide that no scheduler's first noise level lies beyond it.
SCHEDULE = ms.CosineSchedule(log_snr_range=(-60.0, 30.0))
C, W = TRAINED.statistics.power[0], TRAINED.process.covariance.power()
KINDS = ["epsilon", "v_prediction", "sample"]


def trained_with(schedule: ms.Schedule) -> ms.GaussianDenoiser:
    return ms.GaussianDenoiser(ms.Process(schedule, TRAINED.process.covariance), TRAINED.statistics)


DENOISER = trained_with(SCHEDULE)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def estimate(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The Wiener filter of `alpha x0 + sigma noise`, written out."""
    return torch.fft.irfft2(alpha * C / (alpha**2 * C + sigma**2 * W) * torch.fft.rfft2(x), s=GRID.shape)


def made(name: str, steps: int, **options):
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("kind", KINDS)
def test_scheduled_denoiser_reads_noise_levels_from_the_table(kind):
    """Whichever schedule the denoiser was trained with."""
    for name, schedule in (
        ("DDPMScheduler", SCHEDULE),
        ("DDIMScheduler", ms.FlowSchedule()),
        ("DDPMScheduler", ms.KarrasSchedule()),
    ):
        scheduler = made(name, 10, clip_sample=False, prediction_type=kind)
        model, x = ScheduledDenoiser(trained_with(schedule), scheduler), random()
        for t in scheduler.timesteps[[0, 4, -1]]:
            share = float(scheduler.alphas_cumprod[t])
            x0 = scheduler.step(model(x, t).sample, t, x).pred_original_sample
            assert torch.allclose(x0, estimate(x, math.sqrt(share), math.sqrt(1 - share)), atol=1e-5), name
            assert torch.equal(model(x, t, return_dict=False)[0], model(x, t).sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_scheduled_denoiser_takes_the_sigma_of_the_step(kind):
    for name, options in (
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerAncestralDiscreteScheduler", {}),
    ):
        scheduler = made(name, 7, prediction_type=kind, **options)
        model, x = ScheduledDenoiser(DENOISER, scheduler), random() * scheduler.init_noise_sigma
        for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
            done = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x)
            assert torch.allclose(done.pred_original_sample, estimate(x, 1.0, float(sigma)), atol=1e-4), name
            x = done.prev_sample


@pytest.mark.parametrize(
    "name",
    ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"],
)
def test_noise_level_knows_the_midpoints_of_second_order_solvers(name):
    """Scaled inputs have unit variance in every level: a wrong σ would show as another scale of the output."""
    scheduler = made(name, 6)
    sigmas, x = set(), random(1, 1, 8, 8) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled, level = scheduler.scale_model_input(x, t), noise_level(scheduler, t)
        sigmas.add(float(level.sigma / level.alpha))
        assert torch.allclose(scaled, x * level.alpha, rtol=1e-6)
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert len(sigmas) > 6 or name == "HeunDiscreteScheduler"


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_scheduled_denoiser_serves_multistep_solvers_and_their_flow(name):
    for kind, flow in [*((kind, False) for kind in KINDS[:2]), *((kind, True) for kind in ("flow_prediction", *KINDS))]:
        scheduler = made(name, 8, prediction_type=kind, use_flow_sigmas=flow, use_karras_sigmas=not flow)
        model, x = ScheduledDenoiser(DENOISER, scheduler), random()
        for step, (sigma, t) in enumerate(zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False)):
            alpha, noise = (1 - sigma, sigma) if flow else ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)
            output = model(x, t).sample
            if step == 0:
                scheduler._init_step_index(t)
            expected = estimate(x, float(alpha), float(noise))
            if name == "DEISMultistepScheduler":  # which converts to the noise
                expected = (x - alpha * expected) / noise
            assert torch.allclose(scheduler.convert_model_output(output, sample=x), expected, atol=1e-4), (kind, flow)
            x = scheduler.step(output, t, x).prev_sample


def test_scheduled_denoiser_serves_flow_matching():
    scheduler = made("FlowMatchEulerDiscreteScheduler", 5, shift=3.0)
    model, x = ScheduledDenoiser(DENOISER, scheduler), random()
    for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
        x0 = estimate(x, float(1 - sigma), float(sigma))
        assert torch.allclose(model(x, t).sample, (x - x0) / sigma, atol=1e-5)
    timesteps = torch.tensor([250.0, 900.0])  # of a training, one per item
    x0 = torch.cat([estimate(item[None], 1 - s, s) for item, s in zip(x, (0.25, 0.9), strict=True)])
    assert torch.allclose(model(x, timesteps).sample, (x - x0) / (timesteps / 1000)[:, None, None, None], atol=1e-5)
    # Beyond the denoiser's own schedule, its last level is taken.
    narrow = ms.Process(ms.CosineSchedule(log_snr_range=(-2.0, 20.0)), DENOISER.process.covariance)
    output = ScheduledDenoiser(ms.GaussianDenoiser(narrow, DENOISER.statistics), scheduler)(x, 1000.0).sample
    alpha, sigma = (float(value) for value in narrow.schedule.alpha_sigma(torch.ones(1, dtype=torch.float64)))
    assert torch.allclose(output, x - estimate(sigma * x, alpha, sigma))


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"]
)
def test_scheduled_denoiser_is_preconditioned_as_edm(name):
    for kind in ("epsilon", "v_prediction"):
        scheduler = made(name, 6, prediction_type=kind)
        model, x = ScheduledDenoiser(DENOISER, scheduler), random() * scheduler.init_noise_sigma
        for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
            euler = name == "EDMEulerScheduler"
            scaled = scheduler.scale_model_input(x, t) if euler else scheduler.precondition_inputs(x, sigma)
            output = model(scaled, t).sample
            x0 = scheduler.precondition_outputs(x, output, sigma)
            assert torch.allclose(x0, estimate(x, 1.0, float(sigma)), atol=1e-4), kind
            x = scheduler.step(output, t, x).prev_sample


def test_noise_level_of_timesteps_of_a_training_is_read_from_the_table():
    scheduler = diffusers.EulerDiscreteScheduler()
    level = noise_level(scheduler, torch.tensor([3, 700]))
    assert torch.allclose(level.alpha**2, scheduler.alphas_cumprod[[3, 700]].double())
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(2, dtype=torch.float64))
    level = noise_level(diffusers.EDMEulerScheduler(), torch.tensor([3.0, 0.02]).log() / 4)
    assert torch.allclose(level.sigma / level.alpha, torch.tensor([3.0, 0.02]).double())


SMALL = ms.Grid.of(height=4, width=4)
OF_SMALL = ms.DataStatistics(torch.zeros(1, 4, 4).double(), torch.full((1, 4, 3), 0.5).double(), SMALL, 10)
WITHOUT_NOISE = {
    "KDPM2AncestralDiscreteScheduler": KINDS[:2], "KDPM2DiscreteScheduler": KINDS[:2],
    "EulerDiscreteScheduler": KINDS, "HeunDiscreteScheduler": KINDS[:2], "DPMSolverSDEScheduler": KINDS[:2],
    "DPMSolverSinglestepScheduler": KINDS, "UniPCMultistepScheduler": KINDS,
    "FlowMatchEulerDiscreteScheduler": [None], "FlowMatchHeunDiscreteScheduler": [None],
    "EDMEulerScheduler": KINDS[:2], "EDMDPMSolverMultistepScheduler": KINDS[:2],
}  # fmt: skip
"""Schedulers that may ask once more without any noise left, and what their models may predict."""


def of_small(schedule: ms.Schedule) -> ms.GaussianDenoiser:
    return ms.GaussianDenoiser(ms.Process(schedule, ms.SpectralCovariance(ms.PowerLaw(-0.5), SMALL)), OF_SMALL)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_scheduled_denoiser_draws_finite_samples(name):
    for kind, steps in ((kind, steps) for kind in WITHOUT_NOISE[name] for steps in (1, 5)):
        scheduler = made(name, steps, **({} if kind is None else {"prediction_type": kind}))
        model = ScheduledDenoiser(of_small(ms.LinearSchedule()), scheduler)
        x = random(2, 1, 4, 4).float() * getattr(scheduler, "init_noise_sigma", 1.0)
        draws = {"generator": torch.Generator().manual_seed(1)} if "Ancestral" in name else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(scaled, t).sample, t, x, **draws).prev_sample
            assert x.isfinite().all(), (kind, steps)
        # That of the data is .7, and some of these solvers overshoot in so few steps.
        assert float(x.std()) < 5, (kind, steps)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_scheduled_denoiser_takes_almost_no_noise_as_its_least_level(name, monkeypatch):
    """Noise estimated there has the size it has at that level, and is not divided by the scheduler's smaller one."""
    x, denoiser = random(2, 1, 4, 4), of_small(ms.KarrasSchedule())
    x0 = denoiser(x, 0.0)
    noise = (x - x0) / 0.002
    for kind in WITHOUT_NOISE[name]:
        scheduler = getattr(diffusers, name)(**({} if kind is None else {"prediction_type": kind}))
        data = scheduler.config.get("sigma_data", 1.0)
        expected = {None: noise - x0, "epsilon": noise, "sample": x0, "v_prediction": noise}[kind]
        if name.startswith("EDM"):
            expected = noise if kind == "v_prediction" else -noise
        for sigma, dtype in ((0.0, torch.float32), (0.0, torch.float16), (1e-6, torch.float32)):
            alpha = (sigma**2 + data**2) ** -0.5 if name.startswith("EDM") else 1 - sigma if kind is None else 1.0
            scale = torch.tensor([alpha]).double()
            level = Level(scale, scale * sigma)
            monkeypatch.setattr(scheduled, "noise_level", lambda *_, level=level: level)
            output = ScheduledDenoiser(denoiser, scheduler)(alpha * x.to(dtype), 0.0).sample
            assert output.dtype == dtype
            tolerance = 1e-2 if dtype == torch.float32 else 10.0
            assert torch.allclose(output.double(), expected, atol=tolerance), (kind, sigma, dtype)


class Labelled(ms.GaussianDenoiser):
    def forward(self, x_t, t, condition=None):
        return super().forward(x_t, t) + condition[:, None, None, None]


def test_scheduled_denoiser_passes_one_condition_on():
    denoiser = Labelled(DENOISER.process, DENOISER.statistics)
    model = ScheduledDenoiser(denoiser, diffusers.DDPMScheduler(prediction_type="sample"))
    x, labels = random(), torch.tensor([1.0, 5.0])
    difference = model(x, 10, class_labels=labels).sample - model(x, 10, encoder_hidden_states=0 * labels).sample
    assert torch.allclose(difference, labels[:, None, None, None].expand_as(x).double())
    with pytest.raises(ValueError, match="takes one condition"):
        model(x, 10, class_labels=labels, encoder_hidden_states=labels)


def test_scheduled_denoiser_refuses_schedulers_and_predictions_it_does_not_know():
    def refused(scheduler, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ScheduledDenoiser(DENOISER, scheduler)(random(), scheduler.timesteps[0])

    for name in ("IPNDMScheduler", "CMStochasticIterativeScheduler", "LTXEulerAncestralRFScheduler"):
        refused(made(name, 4), f"{name} is not supported: it has neither")
    for name in ("DDPMScheduler", "DPMSolverMultistepScheduler"):
        refused(made(name, 4, variance_type="learned_range"), f"{name} expects its model to predict a variance too")
    scheduler = made("DDPMScheduler", 4)
    scheduler.register_to_config(prediction_type="score")
    refused(scheduler, "prediction_type='score'")
    scheduler = made("DDIMScheduler", 3, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    refused(scheduler, "DDIMScheduler expects a prediction of the noise at a level where the factor of x0 is zero")
    scheduler.register_to_config(prediction_type="v_prediction")
    assert ScheduledDenoiser(DENOISER, scheduler)(random(), scheduler.timesteps[0]).sample.isfinite().all()
    with pytest.raises(
        ValueError, match="CosineDPMSolverMultistepScheduler defines noise levels only for its own steps"
    ):
        noise_level(diffusers.CosineDPMSolverMultistepScheduler(), 0.3)


SCHEDULES = {"preserving": ms.CosineSchedule(), "flow": ms.FlowSchedule(), "exploding": ms.KarrasSchedule()}


def karras(schedule: ms.Schedule = SCHEDULES["preserving"]) -> KarrasDenoiser:
    return KarrasDenoiser(trained_with(schedule))


def karras_sigmas(steps: int, low: float = 0.01, high: float = 80.0) -> torch.Tensor:
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7, torch.zeros(1)])


def test_karras_denoiser_is_the_estimate_under_noise_of_deviation_sigma():
    x, sigma = random(3, 1, 16, 16), torch.tensor([0.05, 1.0, 30.0])
    expected = torch.cat([estimate(item[None], 1.0, float(each)) for item, each in zip(x, sigma, strict=True)])
    for path, schedule in SCHEDULES.items():
        assert torch.allclose(karras(schedule)(x, sigma), expected, atol=1e-6), path
        assert torch.allclose(karras(schedule)(x[:1], 0.05), expected[:1], atol=1e-6), path
    model = KarrasDenoiser(Labelled(TRAINED.process, TRAINED.statistics))
    difference = model(x, 1.0, condition=torch.ones(3)) - model(x, 1.0, condition=torch.zeros(3))
    assert torch.allclose(difference, torch.ones_like(x))


def test_karras_denoiser_has_the_range_of_its_schedule():
    model, x = karras(ms.KarrasSchedule(sigma_min=0.01, sigma_max=50.0)), random(3, 1, 16, 16)
    assert (model.sigma_min, model.sigma_max) == (pytest.approx(0.01), pytest.approx(50.0))
    model(x, 50.0 * (1 + 1e-6))
    modulated = ms.Process(ms.CosineSchedule(), TRAINED.process.covariance, ms.Blur(2.0))
    assert_refused(
        ("sigma 60 is above the process's maximum 50", lambda: model(x, 60.0)),
        ("at least 0, got -1", lambda: model(x[:2], torch.tensor([1.0, -1.0]))),
        ("at least 0, got nan", lambda: model(x[:2], torch.tensor([1.0, math.nan]))),
        ("expected 1 or 3 sigmas for a batch of 3, got 2", lambda: model(x, torch.ones(2))),
        ("needs a single noise level", lambda: KarrasDenoiser(ms.GaussianDenoiser(modulated, TRAINED.statistics))),
    )


def test_ancestral_steps_have_the_power_of_their_recursion():
    """500 items: the standard error in a band of n ≥ 8 coefficients is at most 6.3 % / √8 = 0.1 dB."""
    model, sigmas, seeds, law = karras(), karras_sigmas(15), range(500), W * 80.0**2
    x = model.start((500, 1, 16, 16), seeds, sigma=float(sigmas[0])).double()
    sampler = model.noise_sampler(x, seeds)
    for now, then in pairwise(sigmas):
        up = min(float(then), math.sqrt(float(then**2 * (now**2 - then**2) / now**2)))
        down = math.sqrt(float(then) ** 2 - up**2)
        x = x + (x - model(x, now)) / now * (down - now) + up * sampler(now, then)
        law = law * (1 + (1 - C / (C + now**2 * W)) * (down - now) / now) ** 2 + up**2 * W
    power = torch.fft.rfft2(x, norm="ortho").abs().square().mean((0, 1))
    rings = [weight for _, _, weight in GRID.bands(8)][1:]
    errors = [10 * float(torch.log10((power * ring).sum() / (law * ring).sum())) for ring in rings]
    assert max(map(abs, errors)) < 0.3


def test_noise_sampler_follows_from_the_seed_and_the_number_of_the_call():
    model, x = karras(), torch.zeros(3, 1, 16, 16)
    sampler, again = (model.noise_sampler(x, seeds) for seeds in ([1, 2, 3], [3, 9, 1]))
    first, second = sampler(1.0, 0.5), sampler(0.5, 0.2)
    other = again(7.0, 6.0)
    assert torch.equal(first[0], other[2])
    assert torch.equal(first[2], other[0])
    assert not torch.allclose(first, second, atol=0.1)
    assert model.noise_sampler(x.double(), [1, 2, 3])(1.0, 0.5).dtype == torch.float64
    assert torch.allclose(model.start(x.shape, [1, 2, 3]) / model.sigma_max, model.process.noise(x.shape, [1, 2, 3]))
