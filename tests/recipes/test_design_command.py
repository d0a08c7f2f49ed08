"""`multisagd analyze`, `design` and `inspect` write what later commands use, and overwrite nothing of others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from modalities.image import Image
from multisagd import Corruption, DataStatistics, Grid, Schedule, TabulatedSchedule
from multisagd.analysis.design import DesignedSteps
from recipes.analyze import analyze
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.design import design
from recipes.inspect import inspect
from recipes.sample import sample
from recipes.train import train
from tests.helpers.tiny import TINY, tiny_run


def designed(tmp_path: Path, *words: str) -> Path:
    """Design steps for steep data on a small grid."""
    grid, path = Grid.of(height=8, width=8), tmp_path / "statistics.safetensors"
    power = 0.01 * grid.radius().clamp(min=1 / 16).pow(-3)
    DataStatistics(torch.zeros(1, 8, 8).double(), power[None], grid, 100).save(path)
    return design(configuration.load("design", [f"statistics={path}", "steps=4", "restarts=2", *words]))


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "design.json").read_text())
    return report


def sampled(run_dir: Path, *words: str) -> Path:
    words = (f"run_dir={run_dir}", "count=2", "labels=null", "engine.threads=1", *words)
    return sample(configuration.load("sample", list(words)))


def test_analyze_writes_statistics_that_design_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "analysis"
    words = [f"run_dir={out}", "data=digits", "modality.size=8", "training.statistics=60", "engine.threads=1"]
    assert analyze(configuration.load("analyze", words)) == out
    report = json.loads((out / "analysis.json").read_text())
    assert report["examples"] == 60
    assert set(report["profiles"]) == {"radius", "height", "width"}
    assert report["power_law"]["exponent"] < 0
    assert (out / "spectrum.png").stat().st_size > 10_000
    statistics = DataStatistics.load(out / "statistics.safetensors")
    assert report["sigma_data"] == pytest.approx(statistics.sigma_data)
    result = design(configuration.load("design", [f"statistics={out}", "steps=3", "restarts=1"]))
    assert result == out / "design_dpmsolver_3_w2_given"
    # It replaces its own files. Grey digits as colour: every channel determines the others.
    analyze(configuration.load("analyze", [*words, "modality.channels=3"]))
    report, printed = json.loads((out / "analysis.json").read_text()), capsys.readouterr().out
    torch.testing.assert_close(torch.tensor(report["coherence"][0]["matrix"]), torch.ones(3, 3))
    assert "channels share 100%" in printed
    channels = report["channels"]
    assert channels["components"] == pytest.approx([1, 0, 0], abs=1e-9)
    assert channels["explained"] == pytest.approx(1)
    torch.testing.assert_close(torch.tensor(channels["basis"])[:, 0], torch.full((3,), 3**-0.5))
    assert channels["spread"] == pytest.approx(0, abs=1e-6)
    assert channels["coherence"] == pytest.approx(1)
    assert "spectrum=data_channels spectrum.channels=basis spectrum.floor=60; whether" in printed
    assert (out / "channels.png").stat().st_size > 10_000


def test_analyze_and_design_replace_no_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "steps.json").write_text("mine")
    with pytest.raises(RecipeError, match=r"was not written by .*analyze"):
        analyze(configuration.load("analyze", [f"run_dir={tmp_path / 'mine'}", "data=digits"]))
    with pytest.raises(RecipeError, match=r"was not written by .*design: choose another out"):
        designed(tmp_path, f"out={tmp_path / 'mine'}")
    assert (tmp_path / "mine" / "steps.json").read_text() == "mine"
    out = designed(tmp_path, f"out={tmp_path / 'out'}", "noise=power_law")
    assert (out / "config" / "spectrum" / "designed.yaml").exists()
    assert not (designed(tmp_path, f"out={out}") / "config" / "spectrum" / "designed.yaml").exists()


def test_design_writes_steps_a_picture_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = designed(tmp_path)
    steps = DesignedSteps.load(out / "steps.json")
    errors = report_of(out)["errors"]
    assert steps.steps == 4
    assert errors["designed"]["w2"] == pytest.approx(steps.value)
    names = {"cosine", "linear", "sigmoid", "karras", "flow", "flow, shift 3", "log-SNR", "trajectory-regular"}
    assert names < set(errors)
    assert (out / "transfer.png").stat().st_size > 10_000
    assert "sampler=gaussian" in capsys.readouterr().out
    # More steps than a baseline has between its ends.
    assert {"designed", "cosine"} <= set(report_of(designed(tmp_path, "steps=12", "ends=[-4,4]"))["errors"])


@pytest.mark.parametrize("noise", ["data_power", "power_law", "bands", "recommend"])
def test_designed_noise_trains_and_samples(tmp_path: Path, noise: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = report_of(designed(tmp_path))
    out = designed(tmp_path, f"noise={noise}")
    report = report_of(out)
    assert report["errors"]["designed"]["w2"] <= given["errors"]["designed"]["w2"] + 1e-9
    if noise == "recommend":
        assert len(report["candidates"]) == 5
        assert report["reasons"][0] in " ".join(capsys.readouterr().out.split("\n- ")[1].split())
    if noise == "bands":  # plain values
        spectrum = yaml.safe_load((out / "config" / "spectrum" / "designed.yaml").read_text())
        assert spectrum["_target_"] == "multisagd.Rings"
        assert len(spectrum["levels"]) == 9
    run = tmp_path / "run"
    words = [*TINY, f"run_dir={run}", "spectrum=designed", "schedule=designed"]
    config = configuration.load("train", words, out / "config")
    schedule = TabulatedSchedule(
        **{k: v for k, v in config["schedule"].items() if k not in ("_target_", "log_snr_range")}
    )
    steps = DesignedSteps.load(out / "steps.json")
    torch.testing.assert_close(
        schedule.log_snr(torch.linspace(1, 0, 5).double()), torch.tensor(steps.log_snrs).double(), rtol=0, atol=1e-6
    )
    train(config)
    drawn = sampled(run, f"steps_file={out / 'steps.json'}", "sampler=ddim")
    assert "4designed" in drawn.name
    assert bool(torch.isfinite(load_file(drawn / "samples.safetensors")["x0"]).all())


def test_designed_schedule_keeps_the_path(tmp_path: Path) -> None:
    for schedule, path in (("cosine", "preserving"), ("karras", "exploding"), ("flow", "flow")):
        out = designed(tmp_path, f"schedule={schedule}")
        config = configuration.load("train", ["run_dir=r", "schedule=designed"], out / "config")
        built = Builder().build(config["schedule"], Schedule, "schedule", log_snr_range=(-20, 20))
        assert built.path == path


def test_sample_takes_designed_steps_and_the_gaussian_sampler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, run = designed(tmp_path, "ends=[-8,8]"), tmp_path / "run"
    tiny_run(run, "schedule=flow")
    words = ["sampler=dpm_solver", f"steps_file={out / 'steps.json'}"]
    assert sampled(run, words[0]) != sampled(run, *words)
    assert "steps_file" not in caplog.text
    sampled(run, "sampler=heun", words[1])
    assert "these steps were designed for 'DPMSolver" in caplog.text
    assert "not for Heun" in caplog.text
    assert (sampled(run, "sampler=gaussian", "steps=3") / "grid.png").exists()
    DesignedSteps((-25.0, 0.0, 8.0), "w2", "DDIM", 0.0).save(tmp_path / "short.json")
    with pytest.raises(RecipeError, match="steps_file: the steps go from log-SNR"):
        sampled(run, words[0], f"steps_file={tmp_path / 'short.json'}")
    tiny_run(tmp_path / "blurred", "process=blur", "sampler=ddim")
    with pytest.raises(RecipeError, match="scalar coefficients"):
        sampled(tmp_path / "blurred", "sampler=gaussian", "steps=3")


def test_design_names_mistakes(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for words, message in [
        (["steps=0"], "steps"),
        (["ends=[3,1]"], "ends must increase"),
        (["objective=w3"], "objective"),
        (["free_ends=true", "noise=bands"], "free_ends"),
        (["sampler=gaussian"], "nothing to analyse or design"),
        (["spectrum=velocity"], "spectrum"),
        (["spectrum=band", "spectrum.low=2", "spectrum.high=3"], "no power"),
        ([f"statistics={tmp_path / 'x.safetensors'}"], "multisagd analyze"),
    ]:
        with pytest.raises(RecipeError, match=message):
            designed(tmp_path, *words)


DIGITS = ["experiment=image_digits", "training.statistics=1500", "engine.threads=1", "engine.device=cpu"]
BAND = ["corruption=band", "corruption.level=0.5"]


def analyzed(folder: Path, *words: str) -> dict:
    out = analyze(configuration.load("analyze", [*DIGITS, *words, f"run_dir={folder}"]))
    return json.loads((out / "analysis.json").read_text())


def test_analyze_measures_band_and_level_and_train_uses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "clean"
    assert analyzed(clean)["corruption"] is None
    for words, message in [
        (["clean=nowhere"], r"clean: cannot read .*nowhere"),
        (["clean=3"], "clean: expected a folder, fit or null"),
        (["modality.size=12", f"clean={clean}"], "clean: the clean data are on a grid of shape"),
    ]:
        with pytest.raises(RecipeError, match=message):
            analyzed(tmp_path / "analysis", *words)
    measured = analyzed(tmp_path / "damaged", *BAND, f"clean={clean}")["corruption"]
    spectrum = configuration.load("train", [*DIGITS, *BAND, "run_dir=unused"])["corruption"]["spectrum"]
    assert measured["std"] == pytest.approx(0.5, rel=0.05)
    assert spectrum["low"] - 1e-9 <= measured["radius"][0] <= measured["radius"][1] <= spectrum["high"] + 1e-9
    path = tmp_path / "damaged" / "corruption.safetensors"
    grid = DataStatistics.load(clean / "statistics.safetensors").grid
    assert Corruption.load(path, grid).std > 0.4
    assert f"corruption=measured corruption.path={path}" in capsys.readouterr().out
    # Data of one's own are corrupted already; these digits are not, and a corruption that is not there is refused.
    words = ["modality.size=16", "training.samples=16", "corruption=measured", f"corruption.path={path}"]
    words += ["corruption.restored=mean"]
    with pytest.raises(RecipeError, match="less power in the band than this corruption"):
        tiny_run(tmp_path / "run", *words)
    tiny_run(tmp_path / "run", *words, "corruption.added=true")
    assert (tmp_path / "run" / "restoration.safetensors").exists()
    # An analysis that finds nothing removes what an earlier one left.
    assert analyzed(tmp_path / "damaged", "seed=1", f"clean={clean / 'statistics.safetensors'}")["corruption"] is None
    assert "the spectrum shows no corruption" in capsys.readouterr().out
    assert not path.exists()


def run(run_dir: Path, *words: str) -> Path:
    return inspect(configuration.load("inspect", [f"run_dir={run_dir}", "count=2", "engine.threads=1", *words]))


def test_inspect_shows_sounds_and_reports_a_broken_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "sounds"
    root.mkdir()
    time = np.arange(4000) / 8000
    for number in range(6):
        soundfile.write(root / f"{number}.wav", 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time), 8000)
    (root / "broken.wav").write_bytes(b"RIFF")
    out = run(
        tmp_path / "look", "modality=audio_mel", "modality.rate=8000", "modality.seconds=0.6", "data=folder",
        f"data.root={root}", "data.max_unreadable=0.2", "modality.representation.bands=20", "spectrum=pink",
    )  # fmt: skip
    for folder in ("originals", "decoded", "noise"):
        assert sorted(path.suffix for path in (out / folder).iterdir()) == [".png", ".png", ".wav", ".wav"]
    for name in ("originals", "decoded", "noise", "forward", "spectrum"):
        assert (out / f"{name}.png").is_file()
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert [axis["unit"] for axis in report["axes"]] == ["mel", "s"]
    assert (report["examples"], report["unreadable"]) == (7, 1)
    assert 0.1 < report["padding"] < 0.25
    assert 0 < report["round_trip_error"] < 0.5
    assert "broken.wav" in (out / "unreadable.json").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "1 files could not be read" in printed
    assert "clipped" not in caplog.text
    assert "are padding, excluded" in printed
    original, _ = soundfile.read(out / "originals" / "0.wav")
    assert len(original) == 4000  # its real length, not the length of the grid


def test_inspect_writes_noise_alone_and_shows_all_examples(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    for number in range(10):  # with a tone and hum in common
        common = 0.3 * np.sin(np.arange(2000) * np.pi / 7) + 0.1 * np.sin(np.arange(2000) * np.pi / 20)
        sound = np.random.default_rng(number).normal(0, 0.1, 2000) + common
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", sound, 2000)
    words = ("modality=audio_waveform", "modality.rate=2000", "modality.seconds=1", "data=folder", "spectrum=hum_free")
    out = run(tmp_path / "look", *words, f"data.root={tmp_path / 'sounds'}", "data.labels=none", "count=9")
    power = np.abs(np.fft.rfft(soundfile.read(out / "noise" / "0.wav")[0])) ** 2
    assert power[50:1000:50].max() < 1e-4 * np.median(power)
    assert power[140:147].max() < 20 * np.median(power)
    assert len(list((out / "originals").glob("*.wav"))) == 8
    assert soundfile.info(out / "originals.wav").frames == 9 * 2500


def test_inspect_measures_exact_data_and_replaces_only_its_own_files(tmp_path: Path) -> None:
    out = run(tmp_path / "look", "modality.size=16", "spectrum=power_law", "spectrum.exponent=-1")
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert report["round_trip_error"] < 1e-6
    assert report["padding"] == 0
    assert any("zero frequency" in note for note in report["notes"])
    assert len(report["classes"]) == 10
    assert sum(report["classes"].values()) == report["examples"]
    run(out, "count=1", "modality.size=8")
    assert [path.name for path in (out / "noise").iterdir()] == ["0.png"]
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "0.png").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not empty and was not written by inspect"):
        run(tmp_path)
    assert (tmp_path / "originals" / "0.png").read_text(encoding="utf-8") == "mine"


def test_inspect_refuses_constant_data_and_an_impossible_count(tmp_path: Path) -> None:
    Image(size=8).save(torch.full((3, 8, 8), 70, dtype=torch.uint8), tmp_path / "photos" / "only.png")
    with pytest.raises(RecipeError, match="the example is constant"):
        run(tmp_path / "look", "experiment=image_folder", f"data.root={tmp_path / 'photos'}")
    with pytest.raises(RecipeError, match="count must be a positive integer"):
        run(tmp_path / "look", "count=0")
    assert not (tmp_path / "look").exists()
