"""The experiments on trained runs: what they compare is what they say, and interruption costs no row."""

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
from multisagd import (
    CosineSchedule,
    DataStatistics,
    Denoiser,
    Flat,
    Grid,
    KarrasSchedule,
    PowerLaw,
    Process,
    SpectralCovariance,
)
from multisagd.networks.cost import training_flops
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=3, height=4, width=6)]
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


class Constant(nn.Module):
    """A network that answers the same everywhere."""

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
@pytest.mark.parametrize("exponent", [0.0, -0.6])
@pytest.mark.parametrize("whole", ["karras", "spectral"])
def test_all_parts_together_are_the_preconditioning_of_the_library(grid: Grid, exponent: float, whole: str) -> None:
    process, statistics = made(grid, exponent)
    part = "spectral" if whole == "spectral" else "scalar"
    ours = PartlySpectral(Constant(), process, statistics, into=part, skip=part, out=part)
    theirs = Denoiser(Constant(), process, preconditioning=whole, statistics=statistics)  # type: ignore[arg-type]
    x = random(3, 2, *grid.shape, seed=3)
    torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.loss(x, TIMES, [1, 2, 3]), theirs.loss(x, TIMES, [1, 2, 3]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
def test_unit_sigma_data_is_velocity_prediction(grid: Grid) -> None:
    process, statistics = made(grid, 0.0)
    ours = PartlySpectral(Constant(), process, statistics, sigma_data=1.0)
    theirs = Denoiser(Constant(), process, prediction="v", statistics=statistics)
    x = random(3, 2, *grid.shape, seed=3)
    at = process.coefficients(TIMES, x)
    found, expected = ours.weights(at, x), theirs.weights(at, x)
    # The sign of what the network predicts is a convention.
    for name, sign in {"into": 1, "skip": 1, "out": -1, "signal": -1, "noise": -1}.items():
        one = torch.ones_like(found.out)
        torch.testing.assert_close(getattr(found, name) * one, sign * getattr(expected, name) * one)


@pytest.mark.parametrize("skip", ["scalar", "spectral"])
@pytest.mark.parametrize("exponent", [0.0, -0.6])
def test_the_output_scale_brings_what_the_skip_leaves_to_unit_variance(skip: str, exponent: float) -> None:
    grid = GRIDS[1]
    process, statistics = made(grid, exponent)
    x = random(1, 2, *grid.shape)
    at = process.coefficients(TIMES[1:2], x)
    for out in ("scalar", "spectral"):
        denoiser = PartlySpectral(Constant(), process, statistics, skip=skip, out=out)  # type: ignore[arg-type]
        weights = denoiser.weights(at, x)
        target = weights.signal**2 * statistics.power + weights.noise**2 * process.covariance.power()
        if out == "spectral":
            torch.testing.assert_close(target, torch.ones_like(target))
        else:
            scaled = grid.mean(target * weights.out**2).mean() / weights.out.square().mean()
            torch.testing.assert_close(scaled, torch.ones_like(scaled))


def test_not_centred_takes_the_power_about_zero() -> None:
    grid = GRIDS[1]
    process, statistics = made(grid, 0.0)
    denoiser = PartlySpectral(Constant(), process, statistics, centred=False)
    assert denoiser.sigma_data**2 == pytest.approx(
        statistics.sigma_data**2 + float(statistics.mean.square().mean()), rel=1e-12
    )
    assert not denoiser.mean_like(random(1, 2, *grid.shape)).any()


def test_the_exact_denoiser_is_the_posterior_mean_of_its_examples() -> None:
    grid = Grid.of(height=3, width=2)
    process = Process(KarrasSchedule(), SpectralCovariance(Flat(), grid)).double()
    examples, labels = random(6, 1, 3, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    exact = Exact(process, examples, labels)
    t = process.schedule.time(torch.tensor([0.0, 0.0], dtype=torch.float64))
    x = random(2, 1, 3, 2, seed=4)
    at = process.coefficients(t, x)
    for condition in (None, torch.tensor([1, 0])):
        for i in range(2):
            weights = [
                math.exp(-float((x[i] - at.a[i] * example).square().sum()) / (2 * float(at.b[i]) ** 2))
                * (condition is None or int(condition[i]) == int(label))
                for example, label in zip(examples, labels, strict=True)
            ]
            mean = sum((w * example for w, example in zip(weights, examples, strict=True)), torch.zeros(())) / sum(
                weights
            )
            torch.testing.assert_close(exact(x, t, condition)[i], mean)
    other = Exact(process, examples[:1], None)
    spliced = Spliced(other, exact, (1.0, math.inf))
    torch.testing.assert_close(spliced(x, t), other(x, t))
    torch.testing.assert_close(Spliced(other, exact, (-1.0, 1.0))(x, t), exact(x, t))


def test_rows_survive_an_interruption_and_are_not_measured_again(tmp_path: Path) -> None:
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
def test_every_arm_of_the_ablation_composes(data: str) -> None:
    assert len(matrix()) == 96
    for size, arms in (("cpu", one_at_a_time()), ("gpu", dict(itertools.islice(matrix().items(), 0, None, 7)))):
        found = set()
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
            found.add((name.startswith("cosine"), json.dumps(own, default=str)))
            assert config == common_config
        assert len(found) == len(arms)


@pytest.mark.parametrize("name", DATA)
def test_every_dataset_of_the_recommendation_composes(name: str) -> None:
    Builder(()).settings(
        TrainSettings, configuration.load("train", [*DATA[name], "data.root=r", "run_dir=r"]), ""
    )  # fmt: skip


def test_the_scale_benchmark_measures_both_noises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are consistent, and the large size has the parameters and operations of DiT-B with 256 patches."""
    kept: list[tuple[object, ...]] = []
    monkeypatch.setattr(scale, "append", lambda *row: kept.append(row))
    words = ["--size", "small", "--steps", "1", "--rounds", "2", "--warm-up", "1", "engine.threads=1"]
    found = scale.main([*words, "engine.peak_flops=1e9"])
    for noise in scale.NOISES:
        rate = found[noise]["samples_per_second"]
        assert found[noise]["model_flops_utilisation"] == pytest.approx(rate * found["training_flops_per_sample"] / 1e9)
    assert found["coloured_over_white"]["mean"] > 0
    assert [row[0] for row in kept] == ["scale"]
    config = configuration.load("train", [*scale.SIZES["dit-b"], "engine.device=cpu"])
    network = Builder().build(config["network"], nn.Module, "network", channels=3, dimensions=2, classes=None)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(131e6, rel=0.05)
    # The paper's 23.0 billion multiply-adds forward; a backward pass is two of them.
    assert training_flops(network, (3, 256, 256)) == pytest.approx(3 * 2 * 23.0e9, rel=0.05)
