"""The peers implement what their papers define, and agree with this library where the two coincide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from benchmarks.experiments.design import experiments, run_folder
from benchmarks.experiments.tables import show
from benchmarks.peers import __main__ as command
from benchmarks.peers.arms import EXPERIMENT, PEERS, SOLVERS, WHITE, experiment, peers, step_noises
from benchmarks.peers.diffusers_loop import Peer, draw, log_snrs
from benchmarks.peers.measuring import peer_folder
from benchmarks.peers.pixel import PixelCovariance, PixelProcess
from benchmarks.peers.setting import Setting, trained_peer
from benchmarks.peers.speed import compare_speed
from benchmarks.peers.step_noise import LEAST, ColouredSteps, Progress, measure_progress
from benchmarks.rows import append
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


# The diagonal covariance of PriorGrad.


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


def test_pixel_covariance_refuses_wrong_deviations_and_grids() -> None:
    with pytest.raises(ValueError, match="expected a standard deviation for each"):
        PixelCovariance(torch.ones(4, 4), GRID)
    with pytest.raises(ValueError, match="positive and finite"):
        PixelCovariance(torch.zeros(GRID.shape), GRID)
    covariance = PixelCovariance(torch.ones(GRID.shape), GRID)
    with pytest.raises(ValueError, match="has a grid of shape"):
        covariance.sample([0], grid_shape=(4, 4))
    with pytest.raises(ValueError, match="has a grid of shape"):
        covariance.logdet((4, 4))


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
    with pytest.raises(ValueError, match="floor"):
        PixelProcess(ms.CosineSchedule(), white, data, floor=0.0)


# EqualSNR.


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


# Coloured-noise sampling.


def progress(grid: ms.Grid) -> Progress:
    """The lower a frequency, the earlier it is finished."""
    weights = torch.stack([weight for *_, weight in grid.bands(3)])
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    shares = torch.stack([torch.ones(4), torch.tensor([0.9, 0.6, 0.3, 0.1]), torch.zeros(4)]).double()
    return Progress(times, shares, weights.argmax(0))


@pytest.mark.parametrize("exponent", [0.0, -0.5])
@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.4, -1.0)])
def test_coloured_steps_have_the_declared_spectrum_and_unit_power(exponent: float, tilt: tuple[float, float]) -> None:
    process = process_of(ms.PowerLaw(exponent, corner=0.1))
    sampler = ColouredSteps(ms.DDIM(eta=1.0), progress(GRID), strength=0.7, divider=1.5, tilt=tilt)
    radius = GRID.radius() / GRID.radius().max()
    for t, alpha in ((0.0, tilt[1]), (0.25, 0.75 * tilt[1] + 0.25 * tilt[0]), (0.5, sum(tilt) / 2), (1.0, tilt[0])):
        amplitude = sampler.amplitude(t, process)
        assert float(GRID.mean(amplitude.square() * process.covariance.power())) == pytest.approx(1, abs=1e-12)
        shape = ((1 - sampler.progress.at(t) / 1.5).clamp(min=LEAST) * (alpha * radius).exp()) ** 0.7
        torch.testing.assert_close(amplitude / amplitude[0, 0], shape / shape[0, 0])
    assert float(sampler.progress.at(0.25)[0, 0]) == pytest.approx(0.95)
    if tilt == (0.0, 0.0):  # more of it where less is finished
        assert bool(sampler.amplitude(0.5, process)[0, 0] < sampler.amplitude(0.5, process)[2, 2])


class Recorder(nn.Module):
    """A sampler that keeps the noise of its steps."""

    stochastic = True

    def __init__(self) -> None:
        super().__init__()
        self.noise: list[Tensor] = []

    def step(self, state: object, then: object, model: object, noise: Tensor | None) -> object:
        assert noise is not None
        self.noise.append(noise)
        return state.moved(state.x, then, (state.point, state.x))  # type: ignore[attr-defined]


def test_coloured_steps_scale_the_plain_noise_by_the_amplitude() -> None:
    process = process_of(ms.Flat())
    denoiser, shape, seeds = ms.GaussianDenoiser(process, gaussian(GRID)), (3, 1, *GRID.shape), [1, 2, 3]
    plain, coloured = Recorder(), Recorder()
    sampler = ColouredSteps(coloured, progress(GRID), strength=1.0)  # type: ignore[arg-type]
    ms.sample(denoiser, plain, shape, 4, seeds)  # type: ignore[arg-type]
    ms.sample(denoiser, sampler, shape, 4, seeds)
    assert len(plain.noise) == 4
    for step in range(4):
        amplitude = sampler.amplitude(1 - step / 4, process).float()
        before, after = (torch.fft.rfft2(each.noise[step]) for each in (plain, coloured))
        torch.testing.assert_close(after, before * amplitude, rtol=1e-4, atol=1e-5)
    for base in (ms.DDIM(eta=1.0), ms.Ancestral(), ms.DPMSolver(sde=True)):
        expected = ms.sample(denoiser, base, shape, 5, seeds)
        zero = ColouredSteps(base, progress(GRID), strength=0.0)
        assert torch.equal(ms.sample(denoiser, zero, shape, 5, seeds), expected), base
        one = ColouredSteps(base, progress(GRID))
        assert not torch.allclose(ms.sample(denoiser, one, shape, 5, seeds), expected), base
    with pytest.raises(ValueError, match="no step noise"):
        ColouredSteps(ms.DDIM(), progress(GRID))
    with pytest.raises(ValueError, match="strength"):
        ColouredSteps(ms.Ancestral(), progress(GRID), strength=-1.0)
    with pytest.raises(ValueError, match="divider"):
        ColouredSteps(ms.Ancestral(), progress(GRID), divider=0.5)


def test_measure_progress_of_gaussian_data_follows_the_closed_form() -> None:
    """On a trajectory without error `E|x0(t)|² / C = a²C / (a²C + b²)`, averaged over a ring in proportion to C."""
    grid = ms.Grid.of(height=8, width=8)
    process, statistics = process_of(ms.Flat(), grid), gaussian(grid)
    measured = measure_progress(ms.GaussianDenoiser(process, statistics), 1, range(400), steps=40, rings=4)
    power = statistics.power[0]
    assert measured.times[0] == 0
    assert torch.equal(measured.shares[0], torch.ones(5, dtype=torch.float64))
    for place in (8, 20, 32):
        alpha, sigma = process.schedule.alpha_sigma(measured.times[place])
        share = alpha**2 * power / (alpha**2 * power + sigma**2)
        for ring, (*_, weight) in enumerate(grid.bands(4)):
            expected = float((share * power * weight).sum() / (power * weight).sum())
            assert float(measured.shares[place, ring]) == pytest.approx(expected, rel=0.15, abs=0.01)
    assert [int(measured.ring[0, 0]), int(measured.ring[4, 4])] == [0, 4]


# The loop of diffusers.


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_adds_noise_as_our_process_does(beta_schedule: str) -> None:
    scheduler = Peer(beta_schedule).scheduler()  # type: ignore[arg-type]
    levels = log_snrs(scheduler)
    knots = tuple((levels.double() - 1e-7 * torch.arange(1000)).tolist())  # neighbours in float32 may be equal
    schedule = ms.TabulatedSchedule(knots, log_snr_range=(-25.0, 25.0))
    process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), GRID))
    timesteps = torch.tensor([0, 17, 500, 998, 999])
    x0, noise = random(5, 1, *GRID.shape).float(), process.noise((5, 1, *GRID.shape), range(5))
    theirs = scheduler.add_noise(x0, noise, timesteps)
    torch.testing.assert_close(process.add_noise(x0, timesteps.double() / 999, noise), theirs, rtol=1e-3, atol=1e-4)


class Wiener(nn.Module):
    """The optimal estimate of the noise in Gaussian data of one variance in every pixel."""

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        share = torch.sigmoid(log_snr).reshape(-1, 1, 1, 1)
        return x * (1 - share).sqrt() / (share * 0.09 + 1 - share)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_samplers_reach_the_variance_of_gaussian_data(beta_schedule: str) -> None:
    initial = random(70, 1, 8, 8).float()
    for name, scheduler in Peer(beta_schedule).samplers().items():  # type: ignore[arg-type]
        x0 = draw(Wiener(), scheduler, initial, None, 50)
        assert float(x0.std()) == pytest.approx(0.3, rel=0.1), name
        # Every sample is its own noise scaled down, whichever batch it was drawn in.
        assert float((x0 * initial).sum() / (x0.norm() * initial.norm())) == pytest.approx(1, abs=1e-3)


def setting(samples: int) -> Setting:
    return Setting.of([*SMALL, "data=digits", f"training.samples={samples}", "training.batch=8"], 1)


def equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_peer_starts_from_our_network_and_data(tmp_path: Path) -> None:
    made = setting(16)
    peer = Peer.as_ours("linear", made.settings.training)
    loop, learner = made.peer(peer), made.learner()
    assert equal_parameters(learner.network, loop.network)
    batches = list(made.batches())
    assert [len(batch.x0) for batch in batches] == [8, 8]
    assert made.null_label == 10
    forty = made.data.batch(range(40))
    dropped = loop._condition(forty)
    assert dropped is not None
    assert torch.equal(dropped, learner._condition(forty, 0, range(40)))  # type: ignore[arg-type]
    assert 0 < int((dropped == 10).sum()) < 12
    losses = [loop.step(batch) for batch in batches]
    assert losses[0] == pytest.approx(1, abs=0.1)  # an untrained network answers 0, and the noise has unit power
    assert not equal_parameters(learner.network, loop.network)
    # The whole training is those two steps, and it is read rather than trained a second time.
    path = tmp_path / "peer" / "ema.safetensors"
    assert equal_parameters(trained_peer(made, peer, path), loop.average.module)
    assert equal_parameters(trained_peer(setting(8), peer, path), loop.average.module)
    assert tuple(peers(made.settings.training)) == PEERS
    arguments = experiments()[EXPERIMENT].arguments(WHITE, 0, "cpu")
    assert len({peer_folder(arguments, each) for each in peers(made.settings.training).values()}) == len(PEERS)


def test_compare_speed_measures_whole_steps() -> None:
    coloured = Setting.of([*SMALL, "data=digits", "spectrum=power_law", "training.batch=8"], 1)
    result = compare_speed(setting(16), coloured, 2)
    assert set(result["milliseconds"]) == {"ours, white", "ours, coloured", "diffusers"}
    assert all(value > 0 for value in result["milliseconds"].values())
    assert result["diffusers_over_ours"]["low"] <= result["diffusers_over_ours"]["high"]


# The experiment.


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
            if "PriorGrad" in arm:
                assert config["process"]["data"] == {**config["process"]["data"], "modality": config["modality"]}
                assert config["process"]["data"]["root"] == "/nowhere"
        assert all(whole.count(each) == 1 for each in whole)


def test_pixel_process_is_built_from_a_configuration() -> None:
    words = [
        *SMALL, "data=digits", "process._target_=benchmarks.peers.pixel.PixelProcess", "loss=mahalanobis",
        "+process.data._target_=modalities.image_sets.Digits", "+process.data.modality=${modality}",
    ]  # fmt: skip
    config = configuration.load("train", [*words, "run_dir=r", "allow_targets=[benchmarks]"])
    made = setting(8)
    white = made.assembly.process()
    process = Builder(("benchmarks",)).build(
        config["process"], ms.Process, "process", schedule=white.schedule, covariance=white.covariance
    )
    assert isinstance(process.covariance, PixelCovariance)
    denoiser, batch, t = made.assembly.denoiser(made.network(), process), next(made.batches()), torch.full((8,), 0.5)
    loss = denoiser.loss(batch.x0, t, range(8), batch.labels, metric="mahalanobis")
    error = denoiser.error(batch.x0, t, process.noise(batch.x0.shape, range(8)), batch.labels)
    torch.testing.assert_close(loss, process.covariance.mahalanobis(error) / 64)


def test_peers_experiment_shows_arms_and_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, path = experiment(), tmp_path / "rows.jsonl"
    assert len(step_noises()) == 16
    assert len(whole.arms) == 7 + len(PEERS) * len(SOLVERS) + 16
    assert whole.other("DDIM, eta 1, 20 steps, coloured ^1") == "DDIM, eta 1, 20 steps"
    assert whole.other("DDIM, eta 1, 20 steps") == whole.other("PriorGrad") == WHITE
    for place, arm in enumerate(whole.arms):
        append(EXPERIMENT, {"arm": arm, "size": "cpu", "seed": 0}, {"frechet_distance": 100.0 + place}, path)
    monkeypatch.setattr("benchmarks.experiments.tables.rows", lambda name, _: command.rows(name, path))
    show(whole, "cpu")
    assert f"{100 + len(whole.arms) - 1:.3f}" in capsys.readouterr().out
    quartiles = {"median": 1.0, "low": 0.9, "high": 1.1}
    ratios = dict.fromkeys(("diffusers_over_ours", "diffusers_over_ours_coloured", "coloured_over_white"), quartiles)
    row = {"milliseconds": {"ours": 1.0}, "repeats": 3, "machine": "m", **ratios}
    append("peers_speed", {"size": "cpu", "threads": 1}, row, path)
    command.show_speed(path)
    assert "diffusers over ours: 1.000 (0.900 to 1.100)" in capsys.readouterr().out
