"""Experiments on trained runs compare what they name and measure each arm once, whatever interrupts them."""

import itertools
import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import inverse_problems, scale
from benchmarks.few_steps import Exact, Spliced
from benchmarks.partly_spectral import PartlySpectral
from benchmarks.preconditioning import SIZES, common, matrix, one_at_a_time
from benchmarks.rows import append, missing, rows
from multisagd import CosineSchedule, DataStatistics, Denoiser, Flat, Grid, KarrasSchedule, PowerLaw, Process
from multisagd.covariance import SpectralCovariance
from multisagd.networks.cost import training_flops
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings
from tests.helpers.tiny import TINY

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=3, height=4, width=6)]
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def constant(x: Tensor, *_: object) -> Tensor:
    """Do what a network with a constant output does."""
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
        ours = PartlySpectral(constant, process, statistics, into=part, skip=part, out=part)
        theirs = Denoiser(constant, process, preconditioning=whole, statistics=statistics)
        torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.loss(x, TIMES, [1, 2, 3]), theirs.loss(x, TIMES, [1, 2, 3]), rtol=1e-12, atol=0)
    # Without centring, it uses the power about zero.
    denoiser = PartlySpectral(constant, process, statistics, centred=False)
    expected = statistics.sigma_data**2 + float(statistics.mean.square().mean())
    assert denoiser.sigma_data**2 == pytest.approx(expected, rel=1e-12)
    assert not denoiser.mean_like(x).any()


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
    monkeypatch.setattr("benchmarks.runs.read_dataset", lambda *_: Mock(features=torch.zeros(3, 2)))
    words = f"x --run {run} --results {path} --count 2 --steps 2 --seeds 0 --picture {tmp_path / 'picture.png'}"
    monkeypatch.setattr("sys.argv", words.split())
    methods, turns = len(inverse_problems.METHODS), len(inverse_problems.TURNS)
    for _ in range(2):
        inverse_problems.main()
        assert len(path.read_text().splitlines()) == len(inverse_problems.PROBLEMS) * methods + turns
    assert [table.row_count for table in inverse_problems.tables(path)] == [methods, turns]
