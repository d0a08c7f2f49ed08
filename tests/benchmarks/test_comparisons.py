"""Paired comparisons agree with independent computations, and controls and runs are what they claim to be."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import multisagd as ms
from benchmarks import pool
from benchmarks.experiments import design, measures, plain_loop, planted, runner
from benchmarks.experiments.design import CPU, REAL, Experiment, experiments, run_folder
from benchmarks.experiments.statistics import (
    ENOUGH,
    LEVEL,
    POWER,
    Needed,
    Paired,
    closed,
    holm,
    noncentrality,
    samples_needed,
)
from benchmarks.peers.setting import Setting
from benchmarks.rows import rows
from benchmarks.runs import Run
from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.loss import LaplaceLogSnrTimes
from multisagd.metrics.feature_network import FeatureNetwork
from multisagd.networks import UNet
from multisagd.weighting import MinSNR
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import TrainSettings
from recipes.training.learner import DivergedError
from tests.helpers import dense
from tests.helpers.in_this_process import InThisProcess
from tests.helpers.tiny import TINY

VALUES = (0.31, -0.12, 0.44, 0.08, 0.27, 0.19)


def test_student_agrees_with_scipy() -> None:
    first = np.linspace(1, 2, len(VALUES))
    expected = stats.ttest_rel(first + VALUES, first)
    paired = Paired(VALUES)
    assert paired.p == pytest.approx(expected.pvalue)
    assert paired.interval == pytest.approx(expected.confidence_interval(0.95))
    assert math.isnan(Paired((0.3,)).p)
    assert (Paired((0.0, 0.0)).p, Paired((0.1, 0.1)).p) == (1.0, 0.0)


def test_sign_flips_agree_with_all_permutations() -> None:
    def statistic(left: np.ndarray, right: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(left - right, axis=axis)

    every = stats.permutation_test(
        (np.array(VALUES), np.zeros(len(VALUES))), statistic, permutation_type="samples", n_resamples=np.inf
    )
    assert Paired(VALUES).sign_flip_p == pytest.approx(every.pvalue)
    assert Paired(tuple(map(abs, VALUES))).sign_flip_p == 2 / 2**ENOUGH < LEVEL


@pytest.mark.parametrize(
    ("count", "level"), [(2, LEVEL), (3, LEVEL), (ENOUGH, LEVEL), (ENOUGH, LEVEL / 8), (20, LEVEL)]
)
def test_least_detectable_effect_is_found_with_the_stated_power(count: int, level: float) -> None:
    """5,000 simulated experiments: the standard error of the fraction is .006."""
    drawn = np.random.default_rng(0).standard_normal((5_000, count)) + noncentrality(count, level) / math.sqrt(count)
    found = stats.ttest_1samp(drawn, 0, axis=1).pvalue < level
    assert float(found.mean()) == pytest.approx(POWER, abs=0.02)
    paired = Paired(VALUES)
    assert paired.detectable() == pytest.approx(noncentrality(6) * np.std(VALUES, ddof=1) / math.sqrt(6))


def test_holm_keeps_the_family_wise_level() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    # A planned comparison without a result counts.
    assert holm([0.01, math.nan, 0.03])[::2] == pytest.approx([0.03, 0.06])
    uniform = np.random.default_rng(1).random((4_000, 5))
    assert np.mean([min(holm(list(each))) < LEVEL for each in uniform]) == pytest.approx(LEVEL, abs=0.012)


def test_closed_fraction_has_the_error_of_the_delta_method() -> None:
    start, goal, reached = [11.0, 12.0, 10.0], [1.0, 1.2, 0.8], [6.0, 6.9, 5.1]
    fraction, half = closed(start, reached, goal)
    parts, wholes = (torch.tensor(start) - torch.tensor(each) for each in (reached, goal))
    assert fraction == pytest.approx(float(parts.mean() / wholes.mean()))
    slope = torch.stack([1 / wholes.mean(), -parts.mean() / wholes.mean() ** 2])
    error = float(slope @ (torch.cov(torch.stack([parts, wholes])) / 3) @ slope) ** 0.5
    assert half == pytest.approx(float(stats.t.ppf(0.975, 2)) * error, rel=1e-4)
    assert all(map(math.isnan, closed([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])))


def test_samples_needed_are_interpolated_in_logarithms() -> None:
    law = {samples: 100 * samples**-0.5 for samples in (100, 400, 1600)}
    for target in (9.0, 4.0, 2.5):
        assert samples_needed(law, target) == Needed(pytest.approx((100 / target) ** 2))
    assert samples_needed(law, 10.5) == Needed(100, "<")
    assert samples_needed(law, 2.4) == Needed(1600, ">")


@pytest.mark.parametrize("name", experiments())
def test_experiment_arms_compose_and_differ(name: str) -> None:
    experiment, configurations = experiments()[name], set()
    for arm, size in itertools.product(experiment.arms, (CPU, *experiment.sizes)):
        config = configuration.load("train", [*experiment.arguments(arm, 0, size), "run_dir=r"])
        Builder(("benchmarks",)).settings(TrainSettings, config, "")
        configurations.add((size, arm in experiment.plain, json.dumps(config, default=str, sort_keys=True)))
    assert len(configurations) == len(experiment.arms) * (1 + len(experiment.sizes)), "two arms are the same training"


def test_experiments_share_equal_runs_and_refuse_invalid_files(tmp_path: Path) -> None:
    known = experiments()
    assert next(iter(known)) == "controls_mnist"
    for name, arm, other, same in (
        ("controls_mnist", "white", "equal_snr_mnist", "white"),
        ("omission_mnist", "clean", "equal_snr_mnist", "white, v"),
    ):
        assert run_folder(known[name].arguments(arm, 1, CPU)) == run_folder(known[other].arguments(same, 1, CPU))
    half = known["controls_mnist"].arguments("half of the samples", 0, CPU)
    assert half[-4:] == ["training.samples=12000", "every.checkpoint=3000", "keep_every=3000", "seed=0"]
    assert known["equal_snr_mnist"].comparisons[:2] == [("EqualSNR", "white, x0"), ("EqualSNR", "white, v")]
    small = known["controls_mnist"].shrunk(10)
    assert (small.samples("half of the samples", CPU), small.count) == (1200, 100)
    text = "title: t\nquestion: q\nbase: [training.samples=8]\narms: {a: [], b: []}\nagainst: a\n"
    for added, message in (
        ("expected: {c: found}", "no arms"), ("primary: sde.beauty", "unknown metric"),
        ("points: [0.25, 0.6]", "multiples of the first"), ("expected: {a: found}", "one arm to be compared with"),
        ("expected: {b: seen}", "found or silent"), ("base: []", "must contain training.samples"),
        ("few: [c]", "no arms"), ("few: [a]\nheadline: [[b, a]]", "3 seeds, so no verdict"),
    ):  # fmt: skip
        path = tmp_path / "e.yaml"
        path.write_text(f"{text}{added}\n")
        with pytest.raises(ValueError, match=message):
            Experiment.load(path)


def test_plain_loop_is_our_default_recipe() -> None:
    """Its loss is that of the library for the same noise and levels, and so is what it assumes of the defaults."""
    arguments = experiments()["controls_mnist"].arguments("white", 0, CPU)
    settings = Builder().settings(TrainSettings, configuration.load("train", [*arguments, "run_dir=r"]), "")
    assert settings.loss.times == LaplaceLogSnrTimes(plain_loop.MEAN, plain_loop.SCALE)
    assert settings.loss.weighting == MinSNR(plain_loop.GAMMA, 1.0)
    assert settings.denoiser == {"_target_": "multisagd.DualDenoiser", "prediction": "v"}
    torch.manual_seed(0)
    network = UNet(1, 2, width=8, blocks=1, heads=2, classes=10, out_channels=3)
    nn.init.normal_(network.head.weight, std=0.3)
    grid = ms.Grid.of(height=8, width=8)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid))
    denoiser = ms.DualDenoiser(network, process)
    x0, noise = (dense.random(5, 1, 8, 8, seed=seed).float() for seed in range(2))
    levels, labels = torch.tensor([-19.0, -4.0, 0.0, 3.0, 12.0]), torch.tensor([1, 2, 3, 10, 0])
    t = process.schedule.time(levels.double())
    theirs = denoiser.weigh(denoiser.error(x0, t, noise, labels), t, weighting=settings.loss.weighting).mean()
    ours = plain_loop.loss(network, x0, noise, levels, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    # The distribution of levels, the average and what decays.
    drawn = plain_loop.log_snrs(4_000, torch.Generator().manual_seed(0)).double()
    assert stats.kstest(drawn.numpy(), stats.laplace(scale=plain_loop.SCALE).cdf).statistic < 1e-3
    assert plain_loop.exponent(0.1) == pytest.approx(ms.PowerEMA(network, 0.1).exponent)
    groups = plain_loop.optimizer_of(network, 1e-3, (0.9, 0.99), 0.1).param_groups
    unequal = {name for name, each in network.named_parameters() if any(each is one for one in groups[1]["params"])}
    assert "conditioning.labels.weight" in unequal
    assert "stem.weight" not in unequal


def test_planted_effects_are_as_described(tmp_path: Path) -> None:
    torch.manual_seed(0)
    usual = UNet(1, 2, width=8, heads=2, classes=3)
    torch.manual_seed(0)
    small = planted.SmallClassEmbeddings(channels=1, dimensions=2, width=8, heads=2, classes=3)
    torch.testing.assert_close(small.conditioning.labels.weight, planted.SMALL * usual.conditioning.labels.weight)
    digits = Digits(Image(size=8, channels=1))
    gained = planted.RandomGain(digits, planted.LEAST_GAIN)
    gains = gained.batch([5, 7]).x0 / digits.batch([5, 7]).x0
    assert float(gains[0].std()) < 1e-6
    assert planted.LEAST_GAIN <= float(gains.min()) < float(gains[0, 0, 0, 0] + gains[1, 0, 0, 0]) / 2
    assert torch.equal(gained.subset([7, 5]).batch([1, 0]).x0, gained.batch([5, 7], seeds=[1, 2]).x0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment of seconds on digits, in this process, with an untrained classifier."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.runs.cached_network", lambda *_: (FeatureNetwork(1, 2, 10, (4, 8)).eval(), {}))
    monkeypatch.setattr(pool, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(measures, "LIKELIHOOD_STEPS", 2)
    base = [word for word in TINY if not word.startswith("every.")] + ["every.validation=0", "every.samples=0"]
    arms = {"white": (), "plain": (), "omitting": ("spectrum=band", "spectrum.low=0.5", "spectrum.high=1")}
    return Experiment(
        "tiny", "T", "q", (*base, "training.samples=64", "data=digits", "denoiser=dual", "loss=laplace"), arms,
        {"plain": ("white",)}, steps=2, more_steps=(1,), count=20, reference=40, likelihood=3, plain=("plain",),
    )  # fmt: skip


def test_runner_measures_each_arm_once(tiny: Experiment, tmp_path: Path) -> None:
    results, options = tmp_path / "r.jsonl", runner.Options(work=tmp_path, workers=2)
    other = replace(tiny, name="other", arms={"white": ()}, against={}, plain=())
    assert len(runner.jobs([tiny, other], options, results)) == len(tiny.arms), "equal runs are trained once"
    with patch.object(measures, "judge", wraps=measures.judge) as judge:
        assert runner.run_all([tiny, other], options, results) == []
    assert judge.call_count == len(tiny.arms), "and judged once"
    same = {row["arm"]["arm"]: row["sde"] for row in rows("other", results)}
    measured = {row["arm"]["arm"]: row for row in rows("tiny", results)}
    assert set(measured) == {*tiny.arms, REAL}
    assert same == {arm: measured[arm]["sde"] for arm in ("white", REAL)}
    for arm in tiny.arms:
        row = measured[arm]
        assert list(row["points"]) == ["16", "32"]
        assert row["at_steps"]["1"]["sde"]["spectrum_error_db"] != row["sde"]["spectrum_error_db"]
        distances = [row[name]["frechet_distance"] for name in ("ode", "sde")]
        assert len({*distances, *(each["sde"]["frechet_distance"] for each in row["points"].values())}) == 4
        assert len(row["sde"]["rings_db"]) == len(list(ms.Grid.of(height=8, width=8).bands(measures.RINGS)))
    assert measured["omitting"]["bits_per_dimension"] is None
    assert measured["white"]["bits_per_dimension"] != measured["plain"]["bits_per_dimension"] > 0
    assert measured[REAL]["ode"]["spectrum_error_db"] == measured[REAL]["sde"]["spectrum_error_db"]
    assert runner.jobs([tiny, other], options, results) == []


@pytest.mark.slow
def test_runner_takes_the_axes_of_fields_from_their_data(tmp_path: Path) -> None:
    tiny = replace(
        experiments()["fields_two_phase"].shrunk(750), arms={"white": ()}, against={}, headline=(), few=(), steps=2,
        more_steps=(1,), points=(), count=20, reference=40, likelihood=2, without={},
    )  # fmt: skip
    tiny = replace(tiny, base=(*tiny.base, "modality.axes={y:16,x:16}", "validation.holdout=200"))
    results = tmp_path / "r.jsonl"
    assert runner.run_all([tiny], runner.Options(work=tmp_path), results) == []
    measured = {row["arm"]["arm"]: row for row in rows(tiny.name, results)}
    assert set(measured) == {"white", REAL}
    values = {way: measured["white"][way]["ode"]["rings_rms_db"] for way in ("even_in_time", "calibrated")}
    assert len({*values.values(), measured["white"]["ode"]["rings_rms_db"]}) == 3
    assert measured["white"]["bits_per_dimension"] is not None
    for each in (measured["white"]["sde"], measured["white"]["at_steps"]["1"]["ode"]):
        assert each["rings_rms_db"] > measured[REAL]["sde"]["rings_rms_db"] > 0


def test_arms_of_few_seeds_are_trained_with_few(tiny: Experiment, tmp_path: Path) -> None:
    options = runner.Options(seeds=tuple(range(6)))
    planned = runner.jobs([replace(tiny, few=("omitting",))], options, tmp_path / "r.jsonl")
    seeds = [row["seed"] for job in planned for _, row in job.rows if row["arm"] == "omitting"]
    assert seeds == [0, 1, 2]
    assert sum(row["arm"] == "white" for job in planned for _, row in job.rows) == 6
    ablation = replace(tiny, few=("omitting",), even_in_time=True)
    for arm, seed, whole in (("white", 0, True), ("white", 3, False), ("omitting", 0, False)):
        each = ablation.judged(arm, seed)
        assert bool(each.points) == bool(each.more_steps) == each.even_in_time == whole, (arm, seed)
    assert tiny.judged("white", 3) == tiny


def test_runner_records_divergence_and_goes_on_after_errors(
    tiny: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, arguments: list[str]) -> None:
        raise DivergedError("diverged") if "spectrum=band" in arguments else OSError("disk full")

    monkeypatch.setattr(runner, "train_run", train)
    monkeypatch.setattr(runner, "train_plain", lambda *_: train(tmp_path, []))
    results = tmp_path / "r.jsonl"
    failed = runner.run_all([tiny], runner.Options(work=tmp_path), results)
    assert [row["error"] for row in rows("tiny", results)] == ["diverged"]
    assert len(failed) == 2
    assert "disk full" in failed[0]


def test_plain_loop_learns_and_its_run_is_judged_like_any_other(tiny: Experiment, tmp_path: Path) -> None:
    arguments = [*tiny.arguments("plain", 0, CPU)]
    plain_loop.train_plain(tmp_path / "run", arguments, 1)
    before = (tmp_path / "run" / "checkpoints").stat().st_mtime_ns
    plain_loop.train_plain(tmp_path / "run", arguments, 1)
    assert (tmp_path / "run" / "checkpoints").stat().st_mtime_ns == before, "it is not trained again"
    run = Run.load(tmp_path / "run", 40, 1)
    assert (run.samples_seen, run.at(16).samples_seen) == (64, 16)
    initial = Setting.of(arguments, 1).network()
    pairs = zip(run.denoiser.network.parameters(), initial.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_judging_uses_the_data_of_the_given_arguments(tiny: Experiment, tmp_path: Path) -> None:
    plain_loop.train_plain(tmp_path / "run", list(tiny.arguments("plain", 0, CPU)), 1)
    given = [*tiny.arguments("white", 0, CPU), "modality.resize=crop", "validation.holdout=30"]
    assert len(Run.load(tmp_path / "run", 40, 1, data=given).examples) == len(Digits(Image(8, 1))) - 30


def test_run_without_a_checkpoint_at_a_point_is_refused(tmp_path: Path) -> None:
    for samples in (6016, 24000):
        (tmp_path / "checkpoints" / f"{samples:012d}").mkdir(parents=True)
    assert measures.points(tmp_path, 24000, (0.25,)) == [6016]
    with pytest.raises(SystemExit, match="no checkpoint at 50%"):
        measures.points(tmp_path, 24000, (0.25, 0.5))
    assert design.experiments()["controls_mnist"].points == (0.25, 0.5)
