"""A denoiser as a scheduler's model: what the scheduler makes of its answers is the denoiser's estimate again."""

import math

import diffusers
import pytest
import torch

import multisagd as ms
from benchmarks.diffusers_schedulers import DATA, GRID, NOISE, oracle
from multisagd.integrations import ScheduledDenoiser, scheduled
from multisagd.integrations.scheduled import Level, noise_level

TRAINED = oracle(NOISE, DATA, GRID)
# With a schedule so wide that no scheduler's first noise level lies beyond it.
SCHEDULE = ms.CosineSchedule(log_snr_range=(-60.0, 30.0))
DENOISER = ms.GaussianDenoiser(ms.Process(SCHEDULE, TRAINED.process.covariance), TRAINED.statistics)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def estimate(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The Wiener filter of `alpha x0 + sigma noise`, written out."""
    C, W = DENOISER.statistics.power[0], DENOISER.process.covariance.power()
    return torch.fft.irfft2(alpha * C / (alpha**2 * C + sigma**2 * W) * torch.fft.rfft2(x), s=GRID.shape)


KINDS = ["epsilon", "v_prediction", "sample"]
TABLED = ["DDPMScheduler", "DDIMScheduler"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TABLED)
def test_by_the_table_of_noise_levels(name, kind):
    scheduler = getattr(diffusers, name)(clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(10)
    model = ScheduledDenoiser(DENOISER, scheduler)
    for t in scheduler.timesteps[[0, 4, -1]]:
        share, x = float(scheduler.alphas_cumprod[t]), random(2, 1, 16, 16)
        expected = estimate(x, math.sqrt(share), math.sqrt(1 - share))
        found = scheduler.step(model(x, t).sample, t, x).pred_original_sample
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.equal(model(x, t, return_dict=False)[0], model(x, t).sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("EulerDiscreteScheduler", {}), ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
     ("EulerAncestralDiscreteScheduler", {})],
)  # fmt: skip
def test_by_the_sigma_of_the_step(name, options, kind):
    scheduler = getattr(diffusers, name)(prediction_type=kind, **options)
    scheduler.set_timesteps(7)
    model, x = ScheduledDenoiser(DENOISER, scheduler), random(2, 1, 16, 16) * scheduler.init_noise_sigma
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        output = model(scheduler.scale_model_input(x, t), t).sample
        done = scheduler.step(output, t, x)
        expected = estimate(x, 1.0, float(sigma))
        assert torch.allclose(done.pred_original_sample, expected, atol=1e-4)
        x = done.prev_sample


SECOND_ORDER = [
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"
]  # fmt: skip


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_solvers_of_second_order_are_told_of_their_midpoints(name):
    """Scaled inputs have unit variance in every level: a wrong σ would show as another scale of the answer."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(6)
    seen = []
    x = random(1, 1, 8, 8) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        level = noise_level(scheduler, t)
        seen.append(float(level.sigma / level.alpha))
        assert torch.allclose(given, x * level.alpha, rtol=1e-6)
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
    assert len(set(seen)) > 6 or name == "HeunDiscreteScheduler"


@pytest.mark.parametrize(
    ("flow", "kind"),
    [(False, "epsilon"), (False, "v_prediction"), *((True, kind) for kind in ("flow_prediction", *KINDS))],
)
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_multistep_solvers_and_their_flow(name, flow, kind):
    options = {"use_flow_sigmas": True} if flow else {"use_karras_sigmas": True}
    scheduler = getattr(diffusers, name)(prediction_type=kind, **options)
    scheduler.set_timesteps(8)
    model, x, convert = ScheduledDenoiser(DENOISER, scheduler), random(2, 1, 16, 16), scheduler.convert_model_output
    for step, (sigma, t) in enumerate(zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False)):
        alpha, noise = (1 - sigma, sigma) if flow else ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)
        output = model(x, t).sample
        if step == 0:
            scheduler._init_step_index(t)
        found = convert(output, sample=x)
        expected = estimate(x, float(alpha), float(noise))
        if name == "DEISMultistepScheduler":  # which converts to the noise
            expected = (x - alpha * expected) / noise
        assert torch.allclose(found, expected, atol=1e-4)
        x = scheduler.step(output, t, x).prev_sample


def test_flow_matching():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    model, x = ScheduledDenoiser(DENOISER, scheduler), random(2, 1, 16, 16)
    for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
        x0 = estimate(x, float(1 - sigma), float(sigma))
        assert torch.allclose(model(x, t).sample, (x - x0) / sigma, atol=1e-5)
    timesteps = torch.tensor([250.0, 900.0])  # of a training, one per item
    x0 = torch.cat([estimate(item[None], 1 - s, s) for item, s in zip(x, (0.25, 0.9), strict=True)])
    assert torch.allclose(model(x, timesteps).sample, (x - x0) / (timesteps / 1000)[:, None, None, None], atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"]
)
def test_preconditioned_as_edm(name, kind):
    scheduler = getattr(diffusers, name)(prediction_type=kind)
    scheduler.set_timesteps(6)
    model, x = ScheduledDenoiser(DENOISER, scheduler), random(2, 1, 16, 16) * scheduler.init_noise_sigma
    for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
        given = (
            scheduler.scale_model_input(x, t)
            if name == "EDMEulerScheduler"
            else scheduler.precondition_inputs(x, sigma)
        )
        output = model(given, t).sample
        x0 = scheduler.precondition_outputs(x, output, sigma)
        assert torch.allclose(x0, estimate(x, 1.0, float(sigma)), atol=1e-4)
        x = scheduler.step(output, t, x).prev_sample


def test_timesteps_of_a_training_are_read_from_the_table():
    scheduler = diffusers.EulerDiscreteScheduler()
    level = noise_level(scheduler, torch.tensor([3, 700]))
    assert torch.allclose(level.alpha**2, scheduler.alphas_cumprod[[3, 700]].double())
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(2, dtype=torch.float64))
    level = noise_level(diffusers.EDMEulerScheduler(), torch.tensor([3.0, 0.02]).log() / 4)
    assert torch.allclose(level.sigma / level.alpha, torch.tensor([3.0, 0.02]).double())


def test_any_schedule_serves_any_scheduler():
    """The answer depends on signal and noise, not on the schedule or the path the denoiser was trained with."""
    scheduler = diffusers.DDPMScheduler()
    x, answers = random(2, 1, 16, 16), []
    for schedule in (ms.CosineSchedule(), ms.FlowSchedule(), ms.KarrasSchedule(), ms.LinearSchedule(path="flow")):
        process = ms.Process(schedule, DENOISER.process.covariance)
        model = ScheduledDenoiser(ms.GaussianDenoiser(process, DENOISER.statistics), scheduler)
        answers.append(model(x, 300).sample)
    for answer in answers[1:]:
        assert torch.allclose(answer, answers[0], atol=1e-9)


def test_levels_beyond_the_schedule_are_taken_as_its_last():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    x = random(2, 1, 16, 16)
    narrow = ms.Process(ms.CosineSchedule(log_snr_range=(-2.0, 20.0)), DENOISER.process.covariance)
    found = ScheduledDenoiser(ms.GaussianDenoiser(narrow, DENOISER.statistics), scheduler)(x, 1000.0).sample
    alpha, sigma = (float(value) for value in narrow.schedule.alpha_sigma(torch.ones(1, dtype=torch.float64)))
    assert torch.allclose(found, x - estimate(sigma * x, alpha, sigma))


SMALL = ms.Grid.of(height=4, width=4)
OF_SMALL = ms.DataStatistics(torch.zeros(1, 4, 4).double(), torch.full((1, 4, 3), 0.5).double(), SMALL, 10)


def of_small(schedule: ms.Schedule) -> ms.GaussianDenoiser:
    return ms.GaussianDenoiser(ms.Process(schedule, ms.SpectralCovariance(ms.PowerLaw(-0.5), SMALL)), OF_SMALL)


WITHOUT_NOISE = [
    (name, kind)
    for name, kinds in {
        "KDPM2AncestralDiscreteScheduler": KINDS[:2], "KDPM2DiscreteScheduler": KINDS[:2],
        "EulerDiscreteScheduler": KINDS, "HeunDiscreteScheduler": KINDS[:2], "DPMSolverSDEScheduler": KINDS[:2],
        "DPMSolverSinglestepScheduler": KINDS, "UniPCMultistepScheduler": KINDS,
        "FlowMatchEulerDiscreteScheduler": [None], "FlowMatchHeunDiscreteScheduler": [None],
        "EDMEulerScheduler": KINDS[:2], "EDMDPMSolverMultistepScheduler": KINDS[:2],
    }.items()
    for kind in kinds
]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("name", "kind"), WITHOUT_NOISE)
def test_samples_are_finite(name, kind, steps):
    """Also where the scheduler asks once more without any noise left."""
    scheduler = getattr(diffusers, name)(**({} if kind is None else {"prediction_type": kind}))
    scheduler.set_timesteps(steps)
    model = ScheduledDenoiser(of_small(ms.LinearSchedule()), scheduler)
    x = random(2, 1, 4, 4).float() * getattr(scheduler, "init_noise_sigma", 1.0)
    draws = {"generator": torch.Generator().manual_seed(1)} if "Ancestral" in name else {}
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(given, t).sample, t, x, **draws).prev_sample
        assert x.isfinite().all()
    assert float(x.std()) < 5  # of the data it is .7, and some of these solvers overshoot in so few steps


@pytest.mark.parametrize(("sigma", "dtype"), [(0.0, torch.float32), (0.0, torch.float16), (1e-6, torch.float32)])
@pytest.mark.parametrize(("name", "kind"), WITHOUT_NOISE)
def test_next_to_no_noise_is_taken_as_the_least_that_the_denoiser_knows(name, kind, sigma, dtype, monkeypatch):
    """Noise estimated there has the size it has at that level, and is not divided by the scheduler's smaller one."""
    scheduler = getattr(diffusers, name)(**({} if kind is None else {"prediction_type": kind}))
    denoiser = of_small(ms.KarrasSchedule())
    data = scheduler.config.get("sigma_data", 1.0)
    alpha = (sigma**2 + data**2) ** -0.5 if name.startswith("EDM") else 1 - sigma if kind is None else 1.0
    scale = torch.tensor([alpha]).double()
    monkeypatch.setattr(scheduled, "noise_level", lambda *_: Level(scale, scale * sigma))
    x = random(2, 1, 4, 4)
    answer = ScheduledDenoiser(denoiser, scheduler)(alpha * x.to(dtype), 0.0).sample
    assert answer.dtype == dtype
    x0 = denoiser(x, 0.0)
    noise = (x - x0) / 0.002
    expected = {None: noise - x0, "epsilon": noise, "sample": x0, "v_prediction": noise}[kind]
    if name.startswith("EDM"):
        expected = noise if kind == "v_prediction" else -noise
    tolerance = 1e-2 if dtype == torch.float32 else 10.0
    assert answer.isfinite().all()
    assert torch.allclose(answer.double(), expected, atol=tolerance)


def test_noise_is_not_asked_for_where_the_scheduler_would_divide_by_nothing():
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="DDIMScheduler expects the noise where the factor of the sample is zero"):
        ScheduledDenoiser(DENOISER, scheduler)(random(1, 1, 16, 16), scheduler.timesteps[0])
    scheduler.register_to_config(prediction_type="v_prediction")
    assert ScheduledDenoiser(DENOISER, scheduler)(random(1, 1, 16, 16), scheduler.timesteps[0]).sample.isfinite().all()


def test_conditions_reach_the_denoiser():
    class Labelled(ms.GaussianDenoiser):
        def forward(self, x_t, t, condition=None):
            return super().forward(x_t, t) + condition[:, None, None, None]

    denoiser = Labelled(DENOISER.process, DENOISER.statistics)
    model = ScheduledDenoiser(denoiser, diffusers.DDPMScheduler(prediction_type="sample"))
    x, labels = random(2, 1, 16, 16), torch.tensor([1.0, 5.0])
    difference = model(x, 10, class_labels=labels).sample - model(x, 10, encoder_hidden_states=0 * labels).sample
    assert torch.allclose(difference, labels[:, None, None, None].expand_as(x).double())
    with pytest.raises(ValueError, match="takes one condition"):
        model(x, 10, class_labels=labels, encoder_hidden_states=labels)


def test_what_is_not_known_is_refused():
    for name in ("IPNDMScheduler", "CMStochasticIterativeScheduler", "LTXEulerAncestralRFScheduler"):
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(4)
        with pytest.raises(ValueError, match=f"{name} has no supported noise levels"):
            ScheduledDenoiser(DENOISER, scheduler)(random(1, 1, 16, 16), scheduler.timesteps[0])
    with pytest.raises(ValueError, match="CosineDPMSolverMultistepScheduler has noise levels for its own steps only"):
        noise_level(diffusers.CosineDPMSolverMultistepScheduler(), 0.3)
    scheduler = diffusers.DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="prediction_type='score'"):
        ScheduledDenoiser(DENOISER, scheduler)(random(1, 1, 16, 16), 3)
    for name in ("DDPMScheduler", "DPMSolverMultistepScheduler"):
        scheduler = getattr(diffusers, name)(variance_type="learned_range")
        scheduler.set_timesteps(4)
        with pytest.raises(ValueError, match=f"{name} expects its model to predict a variance too"):
            ScheduledDenoiser(DENOISER, scheduler)(random(1, 1, 16, 16), scheduler.timesteps[0])
