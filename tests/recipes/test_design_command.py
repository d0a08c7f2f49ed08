"""`multisagd analyze` and `multisagd design`, and sampling and training with what they leave."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from multisagd import DataStatistics, Grid, Schedule, TabulatedSchedule
from multisagd.analysis.design import DesignedSteps
from recipes.analyze import analyze
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.design import design
from recipes.sample import sample
from recipes.train import train
from tests.helpers.tiny import TINY, tiny_run


def measured(tmp_path: Path, channels: int = 1) -> Path:
    """Statistics of steep data on a small grid, in a file."""
    grid = Grid.of(height=8, width=8)
    radius = grid.radius().clone()
    radius[0, 0] = 1 / 16
    power = (radius**-3).expand(channels, -1, -1) * 0.01
    DataStatistics(torch.zeros(channels, 8, 8).double(), power, grid, 100).save(tmp_path / "statistics.safetensors")
    return tmp_path / "statistics.safetensors"


def designed(tmp_path: Path, *words: str) -> Path:
    path = measured(tmp_path)
    return design(configuration.load("design", [f"statistics={path}", "steps=4", "restarts=2", *words]))


def test_analyze_leaves_statistics_that_design_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "look"
    words = [f"run_dir={out}", "data=digits", "modality.size=8", "training.statistics=60", "engine.threads=1"]
    assert analyze(configuration.load("analyze", words)) == out
    report = json.loads((out / "analysis.json").read_text())
    assert report["examples"] == 60
    assert set(report["profiles"]) == {"radius", "height", "width"}
    assert report["power_law"]["exponent"] < 0
    assert (out / "spectrum.png").stat().st_size > 10_000
    assert "cycles per sample" in capsys.readouterr().out
    analyze(configuration.load("analyze", words))  # replaces what it left
    statistics = DataStatistics.load(out / "statistics.safetensors")
    assert report["sigma_data"] == pytest.approx(statistics.sigma_data)
    result = design(configuration.load("design", [f"statistics={out}", "steps=3", "restarts=1"]))
    assert result == out / "design_ddim_3_w2_given"


def test_analyze_tells_what_channels_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"run_dir={tmp_path / 'look'}",
        "data=digits",
        "modality.size=8",
        "modality.channels=3",
        "training.statistics=40",
    ]
    out = analyze(configuration.load("analyze", [*words, "engine.threads=1"]))
    coherence = json.loads((out / "analysis.json").read_text())["coherence"]
    # Grey digits as colour: every channel tells all of the others.
    torch.testing.assert_close(torch.tensor(coherence[0]["matrix"]), torch.ones(3, 3))
    assert "channels share 100%" in capsys.readouterr().out


def test_analyze_replaces_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RecipeError, match="not what analyze left"):
        analyze(configuration.load("analyze", [f"run_dir={tmp_path}", "data=digits"]))


def test_a_design_replaces_a_former_one_and_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "steps.json").write_text("mine")
    with pytest.raises(RecipeError, match="not what multisagd design left: choose another out"):
        designed(tmp_path, f"out={tmp_path / 'mine'}")
    assert (tmp_path / "mine" / "steps.json").read_text() == "mine"
    out = designed(tmp_path, f"out={tmp_path / 'out'}", "noise=power_law")
    assert (out / "config" / "spectrum" / "designed.yaml").exists()
    assert not (designed(tmp_path, f"out={out}") / "config" / "spectrum" / "designed.yaml").exists()


def test_a_design_is_steps_a_picture_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = designed(tmp_path)
    steps = DesignedSteps.load(out / "steps.json")
    report = json.loads((out / "design.json").read_text())
    assert steps.steps == 4
    assert report["errors"]["designed"]["w2"] == pytest.approx(steps.value)
    names = {"cosine", "linear", "sigmoid", "karras", "flow", "flow, shift 3", "log-SNR", "trajectory-regular"}
    assert names < set(report["errors"])
    assert (out / "transfer.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "sampler=gaussian" in printed


@pytest.mark.parametrize("noise", ["data_power", "power_law", "bands", "recommend"])
def test_designed_noise_is_a_choice_that_trains_and_samples(tmp_path: Path, noise: str) -> None:
    out = designed(tmp_path, f"noise={noise}")
    given = json.loads((designed(tmp_path) / "design.json").read_text())
    report = json.loads((out / "design.json").read_text())
    assert report["errors"]["designed"]["w2"] <= given["errors"]["designed"]["w2"] + 1e-9
    run = tmp_path / "run"
    words = [*TINY, f"run_dir={run}", "spectrum=designed", "schedule=designed"]
    config = configuration.load("train", words, out / "config")
    schedule = TabulatedSchedule(**{k: v for k, v in config["schedule"].items() if k != "_target_"})
    steps = DesignedSteps.load(out / "steps.json")
    torch.testing.assert_close(
        schedule.log_snr(torch.linspace(1, 0, 5).double()), torch.tensor(steps.log_snrs).double(), rtol=0, atol=1e-6
    )
    train(config)
    words = [f"run_dir={run}", "count=2", "labels=null", f"steps_file={out / 'steps.json'}", "sampler=ddim"]
    drawn = sample(configuration.load("sample", [*words, "engine.threads=1"]))
    assert "4designed" in drawn.name
    assert bool(torch.isfinite(load_file(drawn / "samples.safetensors")["x0"]).all())


@pytest.mark.parametrize(("schedule", "path"), [("cosine", "preserving"), ("karras", "exploding"), ("flow", "flow")])
def test_a_designed_schedule_keeps_the_path(tmp_path: Path, schedule: str, path: str) -> None:
    out = designed(tmp_path, f"schedule={schedule}")
    config = configuration.load("train", ["run_dir=r", "schedule=designed"], out / "config")
    assert Builder().build(config["schedule"], Schedule, "schedule").path == path


def test_a_design_of_more_steps_than_a_baseline_has_between_its_ends(tmp_path: Path) -> None:
    report = json.loads((designed(tmp_path, "steps=12", "ends=[-4,4]") / "design.json").read_text())
    assert {"designed", "cosine"} <= set(report["errors"])


def test_a_recommendation_gives_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = designed(tmp_path, "noise=recommend")
    report = json.loads((out / "design.json").read_text())
    assert len(report["candidates"]) == 5
    assert report["reasons"]
    assert report["reasons"][0] in " ".join(capsys.readouterr().out.split("\n- ")[1].split())


def test_steps_serve_a_run_of_another_schedule_and_are_refused_beyond_its_ends(tmp_path: Path) -> None:
    out, run = designed(tmp_path, "ends=[-8,8]"), tmp_path / "run"
    tiny_run(run, "schedule=flow")
    words = [f"run_dir={run}", "count=2", "labels=null", "engine.threads=1", "sampler=dpm_solver"]
    one, other = (
        sample(configuration.load("sample", [*words, *more])) for more in ((), (f"steps_file={out / 'steps.json'}",))
    )
    assert one != other
    short = DesignedSteps((-25.0, 0.0, 8.0), "w2", "DDIM", 0.0)
    short.save(tmp_path / "short.json")
    with pytest.raises(RecipeError, match="steps_file: the steps go from log-SNR"):
        sample(configuration.load("sample", [*words, f"steps_file={tmp_path / 'short.json'}"]))
    with pytest.raises(RecipeError, match="steps_file"):
        sample(configuration.load("sample", [*words, f"steps_file={tmp_path / 'none.json'}"]))


def test_the_gaussian_sampler_draws_from_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(run)
    words = [f"run_dir={run}", "count=2", "labels=null", "engine.threads=1", "sampler=gaussian", "steps=3"]
    assert (sample(configuration.load("sample", words)) / "grid.png").exists()
    blurred = tmp_path / "blurred"
    tiny_run(blurred, "process=blur", "sampler=ddim")
    words[0] = f"run_dir={blurred}"
    with pytest.raises(RecipeError, match="scalar coefficients"):
        sample(configuration.load("sample", words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=0"], "steps"),
        (["ends=[3,1]"], "ends must increase"),
        (["objective=w3"], "objective"),
        (["noise=pink"], "noise"),
        (["free_ends=true", "noise=bands"], "free_ends"),
        (["sampler=gaussian"], "nothing to analyse or design"),
        (["spectrum=velocity"], "spectrum"),
        (["spectrum=band", "spectrum.low=2", "spectrum.high=3"], "no power"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        designed(tmp_path, *words)


def test_other_files_are_no_statistics(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for path in ("x.safetensors", "none.safetensors"):
        with pytest.raises(RecipeError, match="multisagd analyze"):
            design(configuration.load("design", [f"statistics={tmp_path / path}"]))


def test_the_choices_are_yaml_of_plain_values(tmp_path: Path) -> None:
    out = designed(tmp_path, "noise=bands")
    spectrum = yaml.safe_load((out / "config" / "spectrum" / "designed.yaml").read_text())
    assert spectrum["_target_"] == "multisagd.Rings"
    assert len(spectrum["levels"]) == 9


def test_both_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("analyze", "design"):
        assert cli.main([name, "--help"]) == 0
        assert f"usage: multisagd {name}" in capsys.readouterr().out
