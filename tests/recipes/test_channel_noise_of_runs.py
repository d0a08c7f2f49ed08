"""Runs with noise that differs between channels train, continue, sample, are judged, exported and reported."""

import json
from pathlib import Path

import pytest
import torch

import multisagd as ms
from modalities.audio import Audio
from modalities.image import Image
from modalities.representation import Stft
from multisagd.channel_covariance import ChannelCovariance
from multisagd.channel_spectra import DataChannels, PerChannel
from multisagd.cross_spectra import measure_cross
from recipes import evaluate, export
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.data.dataset import needs_cross
from recipes.design import design
from recipes.export import load_denoiser
from recipes.report import ReportSettings, write_report
from recipes.runs.assembly import axis_notes
from recipes.runs.run import Run
from recipes.sample import sample
from recipes.train import train
from recipes.training.setup import placeholder_statistics
from tests.helpers.tiny import assert_close, last_state, tiny_config, tiny_words

NOISE = ["modality.channels=3", "spectrum=data_channels", "spectrum.floor=40", "denoiser=karras"]
DATA = [
    "modality=field", "data=vorticity_tracer", "modality.axes={y:{size:16},x:{size:16}}",
    "data.trajectories=6", "data.snapshots=8", "data.interval=0.5", "data.spin_up=0.5",
]  # fmt: skip
FULL = [
    *DATA, "spectrum=data_channels", "spectrum.channels=full", "spectrum.floor=40", "denoiser=spectral",
    "validation.items=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*FULL, f"data.cache={tmp_path_factory.mktemp('fields')}"]


@pytest.fixture(scope="module")
def run_dir(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return trained(folder, *words, "training.samples=64")


def trained(folder: Path, *words: str) -> Path:
    kept = [each for each in tiny_words(folder, *words) if each != "modality.size=8"]
    train(resolved(configuration.load("train", kept)))
    return folder


@pytest.mark.slow
def test_a_run_keeps_its_cross_power_and_continues_exactly(run_dir: Path, words: list[str], tmp_path: Path) -> None:
    statistics = Run(run_dir).statistics
    assert statistics.cross is not None
    noise = ChannelCovariance(DataChannels(statistics, "full", floor=40), statistics.grid)
    assert noise.mixed
    for samples in (32, 64):
        trained(tmp_path / "run", *words, f"training.samples={samples}")
    assert_close(last_state(tmp_path / "run"), last_state(run_dir), rtol=0, atol=0)
    assert torch.equal(Run(tmp_path / "run").statistics.cross, statistics.cross)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_with_noise_of_channels_is_sampled_judged_exported_and_reported(run_dir: Path, tmp_path: Path) -> None:
    plain = ["engine.threads=1", "engine.device=cpu"]
    drawn = sample(configuration.load("sample", [f"run_dir={run_dir}", "count=2", "steps=3", *plain]))
    assert drawn.exists()
    found = evaluate.evaluate(configuration.load("evaluate", [
        f"run_dir={run_dir}", "samples=4", "steps=2", "splits=2", "metrics=[components,likelihood]", *plain,
        "likelihood.items=2", "likelihood.steps=3",
    ]))  # fmt: skip
    assert "bits per dimension" in json.dumps(found)
    assert "NaN" not in json.dumps(found)
    assert export.main([f"run_dir={run_dir}", f"out={tmp_path / 'model'}"]) == 0
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "DataChannels (channels=full, exponent=1.0, floor=40)" in card
    assert "the channels are correlated and have" in card
    covariance = load_denoiser(tmp_path / "model")[0].process.covariance
    assert isinstance(covariance, ChannelCovariance)
    written, _ = write_report(ReportSettings(run_dir, examples=1))
    assert "white noise" in written.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["spectrum.channels=full", "padding={height: 4}"], "padding: noise that differs between channels"),
        (["spectrum.channels=full", "training.statistics=2"], "2 examples do not determine how 3 channels"),
        (["spectrum.channels=full", "spectrum.floor=null"], "the channels depend on each other.*spectrum.floor=60"),
        (["spectrum.channels=full", "process=floored", "corruption=band"], "noise floor needs the same noise"),
        (["spectrum.channels=other"], "spectrum.channels: expected one of each, basis, full"),
        (["spectrum=per_channel", "~spectrum.floor", "spectrum.spectra=[{_target_:multisagd.Flat}]"],
         "the noise has 1 channels, but the data have 3"),
    ],
)  # fmt: skip
def test_train_refuses_noise_of_channels_where_it_has_no_meaning(
    changed: list[str], message: str, tmp_path: Path
) -> None:
    words = [word for word in NOISE if not (word == "spectrum.floor=40" and "~spectrum.floor" in changed)]
    changed = [word for word in changed if word != "~spectrum.floor"]
    with pytest.raises(RecipeError, match=message):
        train(tiny_config(tmp_path / "run", *words, *changed))


def test_design_reads_noise_per_channel_and_refuses_correlated_channels(tmp_path: Path) -> None:
    grid = ms.Grid.of(height=8, width=8)
    power = 0.01 * grid.radius().clamp(min=1 / 16).pow(-3)
    path = tmp_path / "statistics.safetensors"
    ms.DataStatistics(torch.zeros(2, 8, 8).double(), torch.stack([power, 2 * power]), grid, 100).save(path)
    words = [f"statistics={path}", "steps=3", "restarts=1", "spectrum=data_channels"]
    assert (design(configuration.load("design", words)) / "design.json").exists()
    with pytest.raises(RecipeError, match="was not measured"):
        design(configuration.load("design", [*words, "spectrum.channels=basis", f"out={tmp_path / 'out'}"]))


def test_needs_cross_only_for_noise_that_depends_on_it() -> None:
    for name, words, needed in (("white", [], False), ("data_power", [], False), ("data_channels", [], False),
                                ("data_channels", ["spectrum.channels=basis"], True)):  # fmt: skip
        group = configuration.load("train", [f"spectrum={name}", *words, "run_dir=r"])["spectrum"]
        assert needs_cross(group) is needed
        if name == "data_channels":
            assert Builder().target(group, ms.Spectrum, "spectrum") is DataChannels


def test_placeholder_statistics_have_the_tensors_that_ranks_exchange() -> None:
    """Otherwise ranks would wait for each other."""
    image = Image(size=8, channels=3)
    measured = measure_cross([x0 := torch.randn(9, 3, 8, 8)], ms.DataStatistics.measure([x0], image.grid()))
    placeholder = placeholder_statistics(image, cross=True)
    assert placeholder.cross is not None
    assert measured.cross is not None
    for mine, theirs in ((placeholder.cross, measured.cross), (placeholder.power, measured.power)):
        assert (mine.shape, mine.dtype, mine.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        assert mine.is_contiguous()
    assert placeholder_statistics(image).cross is None


def test_axis_notes_mention_a_channel_shaped_where_frequencies_mean_nothing() -> None:
    audio = Audio(4000, 0.2, representation=Stft(64, 16))
    measured = ms.DataStatistics.measure([torch.randn(9, *audio.tensor_shape)], audio.grid())
    shaped = PerChannel((ms.Flat(), ms.PowerLaw(-0.5, axes=("frequency",))))
    assert len(axis_notes(shaped, audio)) == 1
    assert not axis_notes(DataChannels(measured), audio)
