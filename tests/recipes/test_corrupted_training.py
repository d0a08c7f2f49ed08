"""Training on corrupted and restored data in every way, and what sampling and exporting make of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modalities.image import Image
from multisagd import Band, Corruption
from multisagd.restoration import RestoringDenoiser
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.export import export
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.train import train

SMALL = [
    "experiment=image_digits", "network.width=8", "network.multipliers=[1]", "network.blocks=1", "training.batch=8",
    "training.samples=32", "training.statistics=200", "validation.items=16", "validation.levels=2", "every.log=0",
    "sampling.count=4", "sampling.steps=3", "sampler=ddim", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


def trained(run_dir: Path, *words: str) -> Path:
    train(configuration.load("train", [*SMALL, *words, f"run_dir={run_dir}"]))
    return run_dir


def samples(folder: Path, *words: str) -> torch.Tensor:
    settings = [f"run_dir={folder}", "sampler=ddim", "count=2", "steps=3", *words]
    out = sample(configuration.load("sample", settings))
    assert (out / "grid.png").exists()
    return load_file(out / "samples.safetensors")["x0"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["spectrum=omitting", "denoiser=projected"],
        ["spectrum=omitting", "denoiser=restoring"],
        ["process=floored", "denoiser=restoring"],
        ["corruption.restored=mean"],
        ["corruption.restored=sample", "spectrum=omitting", "corruption.examples=300"],
    ],
    ids=lambda words: ",".join(words) or "corrupted",
)
def test_train_continues_and_samples_with_every_treatment_of_a_corruption(words: list[str], tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "corruption=band", *words)
    trained(run, "corruption=band", *words, "training.samples=48")
    means = samples(run)
    assert (run / "restoration.safetensors").exists() == ("restored" in " ".join(words))
    assembly = open_model(run, Builder()).assembly(Builder())
    denoiser = assembly.denoiser(torch.nn.Identity(), assembly.process())
    assert isinstance(denoiser, RestoringDenoiser) == ("denoiser=restoring" in words)
    if "denoiser=restoring" not in words:
        with pytest.raises(RecipeError, match="band=sample requires a run that restores"):
            samples(run, "band=sample")
        return
    moved = samples(run, "band=sample") - means
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(moved, denoiser.corruption.covariance.project(moved), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("process=floored corruption=none", "requires corrupted data, but no corruption is configured: choose one"),
        ("corruption.level=0", "level of a corruption must be positive"),
        ("corruption.restored=median", "corruption.restored: expected one of mean, sample"),
        ("corruption.examples=3 corruption.restored=mean", "examples must be at least 4"),
        ("corruption.added=maybe", "corruption.added: expected true or false"),
        ("corruption.spectrum.low=3 corruption.spectrum.high=4", r"corruption: .*no power"),
        ("process=floored denoiser=restoring sampler=unipc", "sampler=unipc needs noise that decreases"),
        ("spectrum=omitting denoiser=restoring corruption.restored=mean", "both restore the data"),
        ("spectrum=omitting denoiser=restoring loss=mahalanobis", "denoiser=restoring requires loss=euclidean"),
        ("spectrum=omitting denoiser=projected padding={height:4}", "remove the padding"),
        ("denoiser=restoring", r"must have no power .* or more power there than the corruption"),
    ],
)
def test_train_refuses_parts_that_do_not_fit_the_corruption(words: str, message: str, tmp_path: Path) -> None:
    corruption = [] if "corruption=" in words else ["corruption=band"]
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path / "run", *corruption, *words.split())


def test_train_refuses_a_damaged_restoration(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "corruption=band", "corruption.restored=mean")
    (run / "restoration.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match=r"cannot read .*restoration\.safetensors"):
        trained(run, "corruption=band", "corruption.restored=mean", "training.samples=48")


def test_run_and_export_keep_a_measured_corruption(tmp_path: Path) -> None:
    measured, run = tmp_path / "measured.safetensors", tmp_path / "run"
    Corruption(Band(0.2, 0.4), Image(size=8, channels=1).grid(), 0.5).save(measured)
    words = ["corruption=measured", f"corruption.path={measured}", "spectrum=omitting", "denoiser=restoring"]
    trained(run, *words)
    measured.unlink()
    trained(run, *words, "training.samples=48")
    export(configuration.load("export", [f"run_dir={run}", f"out={tmp_path / 'model'}"]))
    assert torch.equal(samples(run), samples(tmp_path / "model"))
    (run / "corruption.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match=r"cannot read .*corruption\.safetensors"):
        samples(run, "steps=2")
