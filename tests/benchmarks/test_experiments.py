"""Experiments on trained runs compare what they name, and an interruption loses no row."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import scale
from benchmarks.few_steps import Exact, Spliced
from benchmarks.partly_spectral import PartlySpectral
from benchmarks.preconditioning import SIZES, common, matrix, one_at_a_time
from benchmarks.recommended import DATA
from benchmarks.rows import append, missing, rows
from multisagd import CosineSchedule, DataStatistics, Denoiser, Flat, Grid, KarrasSchedule, PowerLaw, Process
from multisagd.covariance import SpectralCovariance
from multisagd.networks.cost import training_flops
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=3, height=4, width=6)]
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


class Constant(nn.Module):
    """A network with a constant output."""

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        return torch.full_like(x, 0.3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(grid: Grid, exponent: float) -> tuple[Process, DataStatistics]:
    power = torch.stack([grid.even(each) for each in torch.exp(random(2, *grid.half_shape, seed=1))])
    covariance = SpectralCovariance(PowerLaw(exponent=exponent, corner=0.1), grid)
    return Process(CosineSchedule(), covariance).double(), DataStatistics(
        random(2, *grid.shape, seed=2), power, grid, 9
    )


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
def test_partly_spectral_contains_the_preconditioning_of_the_library(grid: Grid) -> None:
    x = random(3, 2, *grid.shape, seed=3)
    for exponent, (whole, part) in itertools.product((0.0, -0.6), (("karras", "scalar"), ("spectral", "spectral"))):
        process, statistics = made(grid, exponent)
        ours = PartlySpectral(Constant(), process, statistics, into=part, skip=part, out=part)  # type: ignore[arg-type]
        theirs = Denoiser(Constant(), process, preconditioning=whole, statistics=statistics)  # type: ignore[arg-type]
        torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.loss(x, TIMES, [1, 2, 3]), theirs.loss(x, TIMES, [1, 2, 3]), rtol=1e-12, atol=0)
    # With unit sigma_data it is velocity prediction; the sign of what the network predicts is a convention.
    process, statistics = made(grid, 0.0)
    at = process.coefficients(TIMES, x)
    ours = PartlySpectral(Constant(), process, statistics, sigma_data=1.0).preconditioning_at(at, x)
    theirs = Denoiser(Constant(), process, prediction="v", statistics=statistics).preconditioning_at(at, x)
    one = torch.ones_like(ours.c_out)
    for name, sign in {"c_in": 1, "c_skip": 1, "c_out": -1, "target_signal": -1, "target_noise": -1}.items():
        torch.testing.assert_close(getattr(ours, name) * one, sign * getattr(theirs, name) * one)


@pytest.mark.parametrize("skip", ["scalar", "spectral"])
@pytest.mark.parametrize("exponent", [0.0, -0.6])
def test_partly_spectral_targets_have_unit_variance(skip: str, exponent: float) -> None:
    grid = GRIDS[1]
    process, statistics = made(grid, exponent)
    x = random(1, 2, *grid.shape)
    at = process.coefficients(TIMES[1:2], x)
    for out in ("scalar", "spectral"):
        denoiser = PartlySpectral(Constant(), process, statistics, skip=skip, out=out)  # type: ignore[arg-type]
        each = denoiser.preconditioning_at(at, x)
        target = each.target_signal**2 * statistics.power + each.target_noise**2 * process.covariance.power()
        if out == "scalar":
            target = grid.mean(target * each.c_out**2).mean() / each.c_out.square().mean()
        torch.testing.assert_close(target, torch.ones_like(target))


def test_partly_spectral_without_centring_uses_the_power_about_zero() -> None:
    process, statistics = made(GRIDS[1], 0.0)
    denoiser = PartlySpectral(Constant(), process, statistics, centred=False)
    expected = statistics.sigma_data**2 + float(statistics.mean.square().mean())
    assert denoiser.sigma_data**2 == pytest.approx(expected, rel=1e-12)
    assert not denoiser.mean_like(random(1, 2, *GRIDS[1].shape)).any()


def test_exact_denoiser_is_the_posterior_mean_of_its_examples() -> None:
    grid = Grid.of(height=3, width=2)
    process = Process(KarrasSchedule(), SpectralCovariance(Flat(), grid)).double()
    examples, labels = random(6, 1, 3, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    exact = Exact(process, examples, labels)
    t = process.schedule.time(torch.tensor([0.0, 0.0], dtype=torch.float64))
    x = random(2, 1, 3, 2, seed=4)
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
    assert len(matrix()) == 96
    for size, arms in (("cpu", one_at_a_time()), ("gpu", dict(itertools.islice(matrix().items(), 0, None, 7)))):
        configurations = set()
        common_config = configuration.load("train", [*common(data, size, 0), "run_dir=r", "allow_targets=[benchmarks]"])
        del common_config["denoiser"], common_config["spectrum"], common_config["loss"]["metric"]
        for name, arguments in arms.items():
            config = configuration.load("train", [*common(data, size, 0), *arguments, "run_dir=r"])
            Builder(("benchmarks",)).settings(TrainSettings, config, "")
            assert config["denoiser"]["_target_"] == "benchmarks.partly_spectral.PartlySpectral"
            if name.startswith("cosine"):
                assert "CosineSchedule" in config["schedule"]["_target_"]
                config["schedule"], config["loss"]["times"] = common_config["schedule"], common_config["loss"]["times"]
            own = {key: config.pop(key) for key in ("denoiser", "spectrum")} | {"metric": config["loss"].pop("metric")}
            configurations.add((name.startswith("cosine"), json.dumps(own, default=str)))
            assert config == common_config
        assert len(configurations) == len(arms)


def test_recommendation_datasets_compose() -> None:
    for words in DATA.values():
        Builder(()).settings(TrainSettings, configuration.load("train", [*words, "data.root=r", "run_dir=r"]), "")


def test_scale_measures_both_noises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are consistent, and the large size has the parameters and operations of DiT-B with 256 patches."""
    kept: list[tuple[object, ...]] = []
    monkeypatch.setattr(scale, "append", lambda *row: kept.append(row))
    words = ["--size", "small", "--steps", "1", "--rounds", "2", "--warm-up", "1", "engine.threads=1"]
    speed = scale.main([*words, "engine.peak_flops=1e9"])
    for noise in scale.NOISES:
        rate = speed[noise]["samples_per_second"]
        assert speed[noise]["model_flops_utilisation"] == pytest.approx(rate * speed["training_flops_per_sample"] / 1e9)
    assert speed["coloured_over_white"]["mean"] > 0
    assert [row[0] for row in kept] == ["scale"]
    config = configuration.load("train", [*scale.SIZES["dit-b"], "engine.device=cpu"])
    network = Builder().build(config["network"], nn.Module, "network", channels=3, dimensions=2, classes=None)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(131e6, rel=0.05)
    # The paper's 23.0 billion multiply-adds forward; a backward pass is two of them.
    assert training_flops(network, (3, 256, 256)) == pytest.approx(3 * 2 * 23.0e9, rel=0.05)
