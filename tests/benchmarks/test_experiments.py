"""Experiments compare what they name, once an arm; peers are what their papers define, and agree with the library."""

import argparse
import itertools
import json
import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import multisagd as ms
from benchmarks import audio_phases, audio_representations, held_out_speakers, inverse_problems, scale, vocoder
from benchmarks.few_steps import Exact, Spliced
from benchmarks.partly_spectral import PartlySpectral
from benchmarks.peers.diffusers_loop import DiffusersLoop, Peer, draw, log_snrs
from benchmarks.peers.setting import Setting
from benchmarks.preconditioning import SIZES, common, matrix, one_at_a_time
from benchmarks.rows import append, missing, rows
from modalities.base import Modality
from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.data_spectra import DataPower
from multisagd.networks.cost import training_flops
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.stationary import random_statistics
from tests.helpers.tiny import TINY

GRID = ms.Grid.of(height=6, width=5)
GRIDS = [ms.Grid.of(time=9), GRID, ms.Grid.of(frame=3, height=4, width=6)]
CONSTANT = Affine(offset=0.3)
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def process_of(spectrum: ms.Spectrum, grid: ms.Grid = GRID, schedule: ms.Schedule | None = None) -> ms.Process:
    return ms.Process(schedule or ms.CosineSchedule(), ms.SpectralCovariance(spectrum, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
def test_partly_spectral_contains_the_preconditioning_of_the_library(grid: ms.Grid) -> None:
    x = dense.random(3, 2, *grid.shape, seed=3)
    for exponent, (whole, part) in itertools.product((0.0, -0.6), (("karras", "scalar"), ("spectral", "spectral"))):
        process, statistics = process_of(ms.PowerLaw(exponent, corner=0.1), grid).double(), random_statistics(grid)
        ours = PartlySpectral(CONSTANT, process, statistics, into=part, skip=part, out=part)
        theirs = ms.Denoiser(CONSTANT, process, preconditioning=whole, statistics=statistics)
        torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.loss(x, TIMES, [1, 2, 3]), theirs.loss(x, TIMES, [1, 2, 3]), rtol=1e-12, atol=0)
    # Without centring, it uses the power about zero.
    denoiser = PartlySpectral(CONSTANT, process, statistics, centred=False)
    expected = statistics.sigma_data**2 + float(statistics.mean.square().mean())
    assert denoiser.sigma_data**2 == pytest.approx(expected, rel=1e-12)
    assert not denoiser.mean_like(x).any()


def test_exact_denoiser_is_the_posterior_mean_of_its_examples() -> None:
    grid = ms.Grid.of(height=3, width=2)
    process = process_of(ms.Flat(), grid, ms.KarrasSchedule()).double()
    examples, labels = dense.random(6, 1, 3, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    exact = Exact(process, examples, labels)
    t = process.schedule.time(torch.tensor([0.0, 0.0], dtype=torch.float64))
    x = dense.random(2, 1, 3, 2, seed=4)
    at = process.coefficients(t, x)
    for condition in (None, torch.tensor([1, 0])):
        for i in range(2):
            weights = torch.exp(-(x[i] - at.a[i] * examples).square().sum((1, 2, 3)) / (2 * float(at.b[i]) ** 2))
            if condition is not None:
                weights = weights * (labels == condition[i])
            mean = torch.einsum("n,nchw->chw", weights, examples) / weights.sum()
            torch.testing.assert_close(exact(x, t, condition)[i], mean)
    other = Exact(process, examples[:1], None)
    torch.testing.assert_close(Spliced(other, exact, (1.0, math.inf))(x, t), other(x, t))
    torch.testing.assert_close(Spliced(other, exact, (-1.0, 1.0))(x, t), exact(x, t))


def test_rows_survive_an_interruption_and_are_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    arms = [{"seed": seed} for seed in range(3)]
    assert missing("a", arms, path) == arms
    append("a", arms[0], {"value": 1.0}, path)
    append("b", arms[1], {"value": 2.0}, path)
    with path.open("a") as file:
        file.write('{"experiment": "a", "arm": {"seed": 2')
    assert missing("a", arms, path) == arms[1:]
    append("a", arms[2], {"value": 3.0}, path)
    assert missing("a", arms, path) == arms[1:2]
    assert [row["value"] for row in rows("a", path)] == [1.0, 3.0]


@pytest.mark.parametrize("data", SIZES["cpu"])
def test_ablation_arms_compose_and_differ_in_their_own_keys(data: str) -> None:
    for size, arms in (("cpu", one_at_a_time()), ("gpu", dict(itertools.islice(matrix().items(), 0, None, 7)))):
        rests, configurations = set(), set()
        for arguments in arms.values():
            config = configuration.load("train", [*common(data, size, 0), *arguments, "run_dir=r"])
            Builder(("benchmarks",)).settings(TrainSettings, config, "")
            configurations.add(json.dumps(config, default=str))
            own = config.pop("denoiser"), config.pop("spectrum"), config["loss"].pop("metric")
            assert own[0]["_target_"] == "benchmarks.partly_spectral.PartlySpectral"
            rests.add((config["schedule"]["_target_"], json.dumps(config, default=str)))
        assert len(configurations) == len(arms)
        assert len(rests) == len(dict(rests))


def test_scale_trains_dit_b_on_256_patches() -> None:
    config = configuration.load("train", [*scale.SIZES["dit-b"], "engine.device=cpu"])
    network = Builder().build(config["network"], nn.Module, "network", channels=3, dimensions=2, classes=None)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(131e6, rel=0.05)
    # The paper's 23.0 billion multiply-adds forward; a backward pass is two of them.
    assert training_flops(network, (3, 256, 256)) == pytest.approx(3 * 2 * 23.0e9, rel=0.05)


def test_inverse_problems_measures_each_arm_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = tmp_path / "digits", tmp_path / "rows.jsonl"
    assert cli.main(["train", *TINY, "data=digits", "spectrum=power_law", f"run_dir={run}"]) == 0
    monkeypatch.setattr(inverse_problems, "read_samples", lambda *_: Mock(accuracy=lambda: 0.5))
    monkeypatch.setattr("benchmarks.runs.cached_network", lambda *_: (torch.nn.Identity(), None))
    monkeypatch.setattr("benchmarks.runs.read_dataset", lambda *_, **__: Mock(features=torch.zeros(3, 2)))
    words = f"x --run {run} --results {path} --count 2 --steps 2 --seeds 0 --picture {tmp_path / 'picture.png'}"
    monkeypatch.setattr("sys.argv", words.split())
    methods, turns = len(inverse_problems.METHODS), len(inverse_problems.TURNS)
    for _ in range(2):
        inverse_problems.main()
        assert len(path.read_text().splitlines()) == len(inverse_problems.PROBLEMS) * methods + turns
    assert [table.row_count for table in inverse_problems.tables(path)] == [methods, turns]


def write_tones(folder: Path) -> None:
    for digit, number in itertools.product(range(3), range(8)):
        tone = np.sin(2 * np.pi * (200 + 100 * digit + number) * np.arange(3000) / 8000)
        soundfile.write(folder / f"{digit}_a_{number}.wav", 0.5 * tone, 8000)


def test_audio_representations_measure_each_arm_once_and_fill_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tones(tmp_path)
    # The others are trained alike, for longer.
    chosen = {name: audio_representations.REPRESENTATIONS[name] for name in ("log-mel", "constant-Q")}
    monkeypatch.setattr(audio_representations, "REPRESENTATIONS", chosen)
    path, text = tmp_path / "rows.jsonl", audio_representations.PAGE.read_text()
    words = f"x --shrink 9999 --seeds 0 --root {tmp_path} --results {path} --work {tmp_path / 'work'}"
    monkeypatch.setattr("sys.argv", words.split())
    for _ in range(2):
        audio_representations.main()
        arms = [json.loads(line)["arm"] for line in path.read_text().splitlines()]
        assert [(arm["representation"], arm["seed"]) for arm in arms] == [
            *((name, "recordings") for name in chosen),
            *((name, 0) for name in chosen),
        ]
    table = audio_representations.table(path)
    assert table in capsys.readouterr().out
    assert "| constant-Q | 1 × 60 × 203 |" in table
    assert table in audio_representations.page(text, path)


def test_audio_representations_of_the_tutorial_compose_and_its_table_is_up_to_date() -> None:
    setting, shapes = audio_representations.Setting(60_000, 300, 1, Path("recordings"), 1), []
    for name in audio_representations.REPRESENTATIONS:
        config = configuration.load("train", [*setting.words(name), "run_dir=r"])
        shapes.append(Builder().build(config["modality"], Modality, "modality").tensor_shape)  # type: ignore[type-abstract]
    assert shapes == [(1, 32, 64), (2, 257, 64), (1, 60, 203)]
    text = audio_representations.PAGE.read_text()
    assert audio_phases.page(audio_representations.page(text)) == text


@pytest.mark.slow
def test_audio_phases_compare_networks_on_the_same_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tones(tmp_path)
    path = tmp_path / "rows.jsonl"
    words = f"x --shrink 9999 --seeds 0 1 --root {tmp_path} --results {path} --work {tmp_path / 'work'}"
    monkeypatch.setattr("sys.argv", words.split())
    for _ in range(2):
        audio_phases.main()
        arms = [(row["arm"]["seed"], row["arm"]["phase"]) for row in rows("audio phases", path)]
        assert arms == [(seed, phase) for seed in (0, 1) for phase in audio_phases.PHASES]
    for row in rows("audio phases", path):
        errors = [row["errors"][f"{level:g}"] for level in audio_phases.LEVELS]
        assert 0 < errors[-1] < errors[0] < 3
        assert row["error"] == pytest.approx(sum(errors) / len(errors))
    assert "times that of `stationary` (95 % interval [" in audio_phases.page(audio_phases.PAGE.read_text(), path)


def test_held_out_speakers_hold_out_a_speaker_and_fill_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for speaker, digit, number in itertools.product("ab", range(2), range(10)):
        tone = np.sin(2 * np.pi * (200 + 100 * digit + number) * np.arange(3000) / 8000)
        soundfile.write(tmp_path / f"{digit}_{speaker}_{number}.wav", 0.5 * tone, 8000)
    path, text = tmp_path / "rows.jsonl", held_out_speakers.PAGE.read_text()
    words = f"x --shrink 9999 --seeds 0 --root {tmp_path} --results {path} --work {tmp_path / 'work'}"
    monkeypatch.setattr("sys.argv", words.split())
    for _ in range(2):
        held_out_speakers.main()
        assert [json.loads(line)["arm"]["split"] for line in path.read_text().splitlines()] == [
            *held_out_speakers.SPLITS
        ]
    assert "held out in 1 whole group" in (shown := capsys.readouterr().out)
    table = held_out_speakers.table(path)
    assert table in shown
    assert table in held_out_speakers.page(text, path)
    assert held_out_speakers.page(text) == text


def test_vocoders_of_several_kinds_of_noise_are_compared_in_pairs_of_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, path = vocoder.PAGE.read_text(), tmp_path / "rows.jsonl"
    assert vocoder.page(text) == text
    monkeypatch.setattr(vocoder, "ARMS", {vocoder.CONTROL: (), "pink": ("spectrum=pink",)})
    for noise, seed, distance in (("white", 0, 8.0), ("white", 1, 9.0), ("pink", 0, 7.0), ("pink", 1, 7.5)):
        values = dict(zip(vocoder.COLUMNS, (distance, 7.5, 1.0), strict=True))
        append(vocoder.EXPERIMENT, {"noise": noise, "seed": seed, "samples": 100}, values, path)
    append(vocoder.EXPERIMENT, {"noise": "white", "seed": 2, "samples": 50}, values, path)
    table = vocoder.table(path)
    assert "| white | 2 | 8.50 ± 0.71 | 7.50 ± 0.00 | 1.00 ± 0.00 |" in table
    assert "pink minus white, 2 paired seeds: log-spectral distance of samples, dB: -1.25 (95 % interval [" in table
    options = argparse.Namespace(root=None, threads=1, shrink=1)
    words = [vocoder.words({"noise": noise, "seed": 3, "samples": 9}, options) for noise in vocoder.ARMS]
    assert [word for word in words[1] if word not in words[0]] == ["spectrum=pink"]


SMALL = ["modality=image", "modality.size=8", "modality.channels=1", "network.width=8", "network.blocks=1"]
BETA_SCHEDULES = ("linear", "squaredcos_cap_v2")


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


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_adds_noise_as_our_process_does(beta_schedule: str) -> None:
    scheduler = Peer(beta_schedule).scheduler()
    levels = log_snrs(scheduler)
    knots = tuple((levels.double() - 1e-7 * torch.arange(1000)).tolist())  # neighbours in float32 may be equal
    schedule = ms.TabulatedSchedule(knots, log_snr_range=(-25.0, 25.0))
    process = process_of(ms.Flat(), schedule=schedule)
    timesteps = torch.tensor([0, 17, 500, 998, 999])
    x0, noise = dense.random(5, 1, *GRID.shape).float(), process.noise((5, 1, *GRID.shape), range(5))
    theirs = scheduler.add_noise(x0, noise, timesteps)
    torch.testing.assert_close(process.add_noise(x0, timesteps.double() / 999, noise), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_peer_samplers_reach_the_variance_of_gaussian_data(beta_schedule: str) -> None:
    initial = dense.random(70, 1, 8, 8).float()

    def wiener(x: Tensor, log_snr: Tensor, condition: None) -> Tensor:
        """Return the optimal estimate of the noise in Gaussian data of one variance in every pixel."""
        share = torch.sigmoid(log_snr).reshape(-1, 1, 1, 1)
        return x * (1 - share).sqrt() / (share * 0.09 + 1 - share)

    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler"):
        x0 = draw(Mock(side_effect=wiener), Peer(beta_schedule).sampler(name), initial, None, 50)
        assert float(x0.std()) == pytest.approx(0.3, rel=0.1), name
        # Every sample is its own noise scaled down, whichever batch it was drawn in.
        assert float((x0 * initial).sum() / (x0.norm() * initial.norm())) == pytest.approx(1, abs=1e-3)


def setting(samples: int, *words: str) -> Setting:
    return Setting.of([*SMALL, "data=digits", f"training.samples={samples}", "training.batch=8", *words], 1)


def equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_peer_starts_from_our_network_and_data() -> None:
    made = setting(16)
    loop, learner = DiffusersLoop.of(made, Peer(learning_rate=1e-2, warmup=0)), made.learner()
    assert equal_parameters(learner.network, loop.network)
    forty = made.data.batch(range(40))
    dropped = loop._condition(forty)
    assert torch.equal(dropped, learner._condition(forty, 0, range(40)))
    assert 0 < int((dropped == made.null_label).sum()) < 12
    losses = [loop.step(batch) for batch in made.batches()]
    assert losses[0] == pytest.approx(1, abs=0.1)  # an untrained network answers 0, and the noise has unit power
    assert not equal_parameters(learner.network, loop.network)


def test_peer_refuses_a_network_with_further_outputs() -> None:
    made = setting(8, "denoiser=dual")
    with pytest.raises(ValueError, match=r"returns \(8, [23], 8, 8\) for data"):
        DiffusersLoop.of(made, Peer()).step(next(made.batches()))


def test_min_snr_loss_of_peers_is_the_same_for_noise_and_v() -> None:
    made, losses = setting(8), []
    x0, noise, guess = (dense.random(16, 1, 8, 8, seed=seed).float() for seed in range(3))
    timesteps = torch.arange(9, 1000, 62)
    for prediction in ("epsilon", "v_prediction"):
        peer = Peer("squaredcos_cap_v2", prediction=prediction, gamma=5.0)
        loop = DiffusersLoop(made.network(), peer, made.settings.training, made.null_label, 0)
        signal = loop.scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        noisy = loop.scheduler.add_noise(x0, noise, timesteps)
        v = (guess - (1 - signal).sqrt() * noisy) / signal.sqrt()  # the v of this estimate of the noise
        losses.append(loop._loss(guess if prediction == "epsilon" else v, x0, noise, timesteps).item())
    snr = log_snrs(loop.scheduler)[timesteps].exp()
    weights = snr.clamp(max=5) / snr
    assert losses == pytest.approx([float(((guess - noise).square().mean((1, 2, 3)) * weights).mean())] * 2, rel=1e-3)
