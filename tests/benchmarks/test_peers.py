"""The peers implement what their papers define, and agree with this library where the two coincide."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from benchmarks.experiments.design import experiments, run_folder
from benchmarks.peers.arms import EXPERIMENT, PEERS, SOLVERS, WHITE, experiment, peers, step_noises
from benchmarks.peers.diffusers_loop import Peer, draw, log_snrs
from benchmarks.peers.measuring import peer_folder
from benchmarks.peers.pixel import PixelCovariance, PixelProcess
from benchmarks.peers.setting import Setting, trained_peer
from benchmarks.peers.step_noise import LEAST, ColouredSteps, Progress, measure_progress
from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.data_spectra import DataPower
from multisagd.loss import squared_error
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings

GRID = ms.Grid.of(height=6, width=5)
SMALL = ["modality=image", "modality.size=8", "modality.channels=1", "network.width=8", "network.blocks=1"]
BETA_SCHEDULES = ("linear", "squaredcos_cap_v2")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def process_of(spectrum: ms.Spectrum, grid: ms.Grid = GRID) -> ms.Process:
    return ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, grid))


def gaussian(grid: ms.Grid) -> ms.DataStatistics:
    """Zero mean and a steep spectrum."""
    power = ms.PowerLaw(-1.0, corner=0.1).power(grid)
    return ms.DataStatistics(torch.zeros(1, *grid.shape), power[None], grid, 9)


def test_pixel_covariance_is_its_dense_matrix() -> None:
    deviation = random(*GRID.shape).exp()
    covariance = PixelCovariance(deviation, GRID).double()
    variance = (deviation.square() / deviation.square().mean()).flatten()
    dense, x = torch.diag(variance), random(3, 2, *GRID.shape, seed=1)
    assert float(variance.mean()) == pytest.approx(1, abs=1e-12)
    flat = x.flatten(2)
    for name, matrix in {
        "apply": dense,
        "solve": dense.inverse(),
        "color": torch.linalg.cholesky(dense),
        "whiten": torch.linalg.cholesky(dense).inverse(),
        "project": torch.eye(GRID.numel, dtype=torch.float64),
    }.items():
        torch.testing.assert_close(getattr(covariance, name)(x).flatten(2), flat @ matrix.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance.mahalanobis(x), torch.einsum("bci,ij,bcj->b", flat, dense.inverse(), flat))
    torch.testing.assert_close(covariance.logdet(), torch.logdet(dense))
    noise, white = covariance.sample([3, 4], 2), ms.SpectralCovariance(ms.Flat(), GRID).double().sample([3, 4], 2)
    torch.testing.assert_close(noise, (white.flatten(2) @ torch.linalg.cholesky(dense)).reshape(noise.shape))
    # What PriorGrad minimises: whitened errors, whose noise is white.
    torch.testing.assert_close(squared_error(noise, covariance, "mahalanobis"), white.square().flatten(1).mean(1))
    # The power is the expected periodogram.
    rows = torch.from_numpy(np.fft.fft2(np.eye(GRID.numel).reshape(-1, *GRID.shape), norm="ortho"))[..., :3]
    torch.testing.assert_close(covariance.power(), (variance[:, None, None] * rows.abs().square()).sum(0))
    for wrong, message in ((deviation[1:], "a standard deviation for each"), (0 * deviation, "positive and finite")):
        with pytest.raises(ValueError, match=message):
            PixelCovariance(wrong, GRID)
    with pytest.raises(ValueError, match="has a grid of shape"):
        covariance.sample([0], grid_shape=(4, 4))


def test_pixel_process_measures_the_deviation_of_its_data() -> None:
    data = Digits(Image(size=8, channels=1))
    white = ms.SpectralCovariance(ms.Flat(), data.modality.grid())
    covariance = PixelProcess(ms.CosineSchedule(), white, data, floor=0.2).double().covariance
    deviation = data.batch(range(len(data))).x0.double().var(0)[0].sqrt()
    expected = deviation.clamp(min=0.2 * float(deviation.max())).square()
    assert bool((deviation < 0.2 * deviation.max()).any())
    torch.testing.assert_close(covariance.apply(torch.ones_like(expected)), expected / expected.mean())
    with pytest.raises(ValueError, match="use spectrum=white"):
        PixelProcess(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-1.0), white.grid), data)


def test_data_power_has_the_mean_ratio_of_white_noise_at_every_frequency() -> None:
    """Its calibrated schedule, written for noise of power C, is the unchanged one for noise of unit mean power."""
    data = Digits(Image(size=8, channels=1))
    grid = data.modality.grid()
    statistics = ms.DataStatistics.measure([data.batch(range(len(data))).x0], grid)
    power = statistics.power.mean(0)
    mean = grid.mean(power)
    process = process_of(DataPower(statistics, 1.0, floor=40.0), grid)
    alpha, sigma = process.schedule.alpha_sigma(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    share = alpha.square()
    matched = share * mean / (1 - share + share * mean)  # the paper's ᾱ of the same time
    above_floor = power > 1e-4 * power.max()
    assert int(above_floor.sum()) > 0.8 * power.numel()
    for i in range(3):
        ratio = (share[i] * power / (sigma[i] ** 2 * process.covariance.power()))[above_floor]
        of_white = grid.mean(share[i] * power / sigma[i] ** 2)
        torch.testing.assert_close(ratio, of_white.expand_as(ratio), rtol=1e-3, atol=0)
        torch.testing.assert_close(matched[i] / (1 - matched[i]), of_white)


def progress(grid: ms.Grid) -> Progress:
    """The lower a frequency, the earlier it is finished."""
    weights = torch.stack([weight for *_, weight in grid.bands(3)])
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    shares = torch.stack([torch.ones(4), torch.tensor([0.9, 0.6, 0.3, 0.1]), torch.zeros(4)]).double()
    return Progress(times, shares, weights.argmax(0))


@pytest.mark.parametrize(("exponent", "tilt"), [(0.0, (0.0, 0.0)), (-0.5, (0.4, -1.0))])
def test_coloured_steps_have_the_declared_spectrum_and_unit_power(exponent: float, tilt: tuple[float, float]) -> None:
    process = process_of(ms.PowerLaw(exponent, corner=0.1))
    sampler = ColouredSteps(ms.DDIM(eta=1.0), progress(GRID), strength=0.7, divider=1.5, tilt=tilt)
    assert float(sampler.progress.at(0.25)[0, 0]) == pytest.approx(0.95)
    radius = GRID.radius() / GRID.radius().max()
    for t, alpha in ((0.0, tilt[1]), (0.25, 0.75 * tilt[1] + 0.25 * tilt[0]), (0.5, sum(tilt) / 2), (1.0, tilt[0])):
        amplitude = sampler.amplitude(t, process)
        assert float(GRID.mean(amplitude.square() * process.covariance.power())) == pytest.approx(1, abs=1e-12)
        shape = ((1 - sampler.progress.at(t) / 1.5).clamp(min=LEAST) * (alpha * radius).exp()) ** 0.7
        torch.testing.assert_close(amplitude / amplitude[0, 0], shape / shape[0, 0])


def test_coloured_steps_scale_the_plain_noise_by_the_amplitude() -> None:
    process = process_of(ms.Flat())
    denoiser, shape, seeds = ms.GaussianDenoiser(process, gaussian(GRID)), (3, 1, *GRID.shape), [1, 2, 3]
    plain, coloured = Mock(stochastic=True), Mock(stochastic=True)
    for recorder in (plain, coloured):  # steps that stay where they are
        recorder.step.side_effect = lambda state, then, *_: state.moved(state.x, then, (state.point, state.x))
    sampler = ColouredSteps(coloured, progress(GRID), strength=1.0)
    ms.sample(denoiser, plain, shape, 4, seeds)
    ms.sample(denoiser, sampler, shape, 4, seeds)
    assert plain.step.call_count == 4
    for step in range(4):
        amplitude = sampler.amplitude(1 - step / 4, process).float()
        before, after = (torch.fft.rfft2(each.step.call_args_list[step].args[3]) for each in (plain, coloured))
        torch.testing.assert_close(after, before * amplitude, rtol=1e-4, atol=1e-5)
    for base in (ms.DDIM(eta=1.0), ms.Ancestral(), ms.DPMSolver(sde=True)):
        expected = ms.sample(denoiser, base, shape, 5, seeds)
        zero = ColouredSteps(base, progress(GRID), strength=0.0)
        assert torch.equal(ms.sample(denoiser, zero, shape, 5, seeds), expected), base
    for base, words in ((ms.DDIM(), {}), (ms.Ancestral(), {"strength": -1.0}), (ms.Ancestral(), {"divider": 0.5})):
        with pytest.raises(ValueError, match=next(iter(words), "no step noise")):
            ColouredSteps(base, progress(GRID), **words)


def test_measure_progress_of_gaussian_data_follows_the_closed_form() -> None:
    """On a trajectory without error `E|x0(t)|² / C = a²C / (a²C + b²)`, averaged over a ring in proportion to C."""
    grid = ms.Grid.of(height=8, width=8)
    process, statistics = process_of(ms.Flat(), grid), gaussian(grid)
    measured = measure_progress(ms.GaussianDenoiser(process, statistics), 1, range(400), steps=40, rings=4)
    power = statistics.power[0]
    assert torch.equal(measured.shares[0], torch.ones(5, dtype=torch.float64))
    for place in (8, 20, 32):
        alpha, sigma = process.schedule.alpha_sigma(measured.times[place])
        share = alpha**2 * power / (alpha**2 * power + sigma**2)
        for ring, (*_, weight) in enumerate(grid.bands(4)):
            expected = float((share * power * weight).sum() / (power * weight).sum())
            assert float(measured.shares[place, ring]) == pytest.approx(expected, rel=0.15, abs=0.01)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_adds_noise_as_our_process_does(beta_schedule: str) -> None:
    scheduler = Peer(beta_schedule).scheduler()
    levels = log_snrs(scheduler)
    knots = tuple((levels.double() - 1e-7 * torch.arange(1000)).tolist())  # neighbours in float32 may be equal
    schedule = ms.TabulatedSchedule(knots, log_snr_range=(-25.0, 25.0))
    process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), GRID))
    timesteps = torch.tensor([0, 17, 500, 998, 999])
    x0, noise = random(5, 1, *GRID.shape).float(), process.noise((5, 1, *GRID.shape), range(5))
    theirs = scheduler.add_noise(x0, noise, timesteps)
    torch.testing.assert_close(process.add_noise(x0, timesteps.double() / 999, noise), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_samplers_reach_the_variance_of_gaussian_data(beta_schedule: str) -> None:
    initial = random(70, 1, 8, 8).float()

    def wiener(x: Tensor, log_snr: Tensor, condition: None) -> Tensor:
        """Return the optimal estimate of the noise in Gaussian data of one variance in every pixel."""
        share = torch.sigmoid(log_snr).reshape(-1, 1, 1, 1)
        return x * (1 - share).sqrt() / (share * 0.09 + 1 - share)

    for name, scheduler in Peer(beta_schedule).samplers().items():
        x0 = draw(Mock(side_effect=wiener), scheduler, initial, None, 50)
        assert float(x0.std()) == pytest.approx(0.3, rel=0.1), name
        # Every sample is its own noise scaled down, whichever batch it was drawn in.
        assert float((x0 * initial).sum() / (x0.norm() * initial.norm())) == pytest.approx(1, abs=1e-3)


def setting(samples: int, *words: str) -> Setting:
    return Setting.of([*SMALL, "data=digits", f"training.samples={samples}", "training.batch=8", *words], 1)


def equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_peer_starts_from_our_network_and_data(tmp_path: Path) -> None:
    made = setting(16)
    peer = Peer.as_ours("linear", made.settings.training)
    loop, learner = made.peer(peer), made.learner()
    assert equal_parameters(learner.network, loop.network)
    forty = made.data.batch(range(40))
    dropped = loop._condition(forty)
    assert torch.equal(dropped, learner._condition(forty, 0, range(40)))
    assert 0 < int((dropped == made.null_label).sum()) < 12
    losses = [loop.step(batch) for batch in made.batches()]
    assert losses[0] == pytest.approx(1, abs=0.1)  # an untrained network answers 0, and the noise has unit power
    assert not equal_parameters(learner.network, loop.network)
    # The whole training is those two steps, and it is read rather than trained a second time.
    path = tmp_path / "peer" / "ema.safetensors"
    assert equal_parameters(trained_peer(made, peer, path), loop.average.module)
    assert equal_parameters(trained_peer(setting(8), peer, path), loop.average.module)
    arguments = experiments()[EXPERIMENT].arguments(WHITE, 0, "cpu")
    assert len({peer_folder(arguments, each) for each in peers(made.settings.training).values()}) == len(PEERS)


def test_peers_experiment_composes_and_shares_the_white_runs_of_power_law_mnist() -> None:
    filed = experiments()[EXPERIMENT]
    for size in ("cpu", "gpu"):
        shared = experiments()["power_law_mnist"].arguments("white", 1, size)
        assert run_folder(filed.arguments(WHITE, 1, size)) == run_folder(shared)
        whole = []
        for arm in filed.arms:
            words = [*filed.arguments(arm, 0, size), "run_dir=r", "allow_targets=[benchmarks]", "data.root=/nowhere"]
            config = configuration.load("train", words)
            Builder(("benchmarks",)).settings(TrainSettings, config, "")
            whole.append({key: config[key] for key in ("spectrum", "process", "denoiser", "loss")})
        assert all(whole.count(each) == 1 for each in whole)


def test_peers_experiment_names_what_each_arm_is_compared_with() -> None:
    whole = experiment()
    assert len(whole.arms) == 7 + len(PEERS) * len(SOLVERS) + len(step_noises())
    assert whole.other("DDIM, eta 1, 20 steps, coloured ^1") == "DDIM, eta 1, 20 steps"
    assert whole.other("DDIM, eta 1, 20 steps") == whole.other("PriorGrad") == WHITE
