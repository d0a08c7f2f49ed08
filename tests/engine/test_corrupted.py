"""Corrupted and restored datasets: the same corruption for the same example, whatever is cut or asked for together."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modalities.image import Image
from modalities.image_sets import Digits
from modalities.wrapped import Corrupted, Restored
from multisagd import Band, Corruption
from multisagd.gaussian_restoration import GaussianRestoration
from multisagd.restoration import RestoringDenoiser
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import build_data
from recipes.export import export
from recipes.inspect import inspect
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.train import train

SMALL = [
    "experiment=image_digits", "network.width=8", "network.multipliers=[1]", "network.blocks=1", "training.batch=8",
    "training.samples=32", "training.statistics=200", "validation.items=16", "validation.levels=2", "every.log=0",
    "sampling.count=4", "sampling.steps=3", "sampler=ddim", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


def corrupted(redrawn: bool = False) -> Corrupted:
    modality = Image(size=8, channels=1)
    return Corrupted(Digits(modality), Corruption(Band(0.2, 0.4), modality.grid(), 0.5), seed=3, redrawn=redrawn)


def test_an_example_keeps_its_corruption() -> None:
    dataset = corrupted()
    together = dataset.batch([5, 9, 700], [1, 2, 3]).x0
    assert torch.equal(together[1], dataset.example(9, 8).x0)
    assert torch.equal(together[2], dataset.subset([3, 700, 5]).subset([1, 2]).example(0).x0)
    added = together - dataset.inner.batch([5, 9, 700], [1, 2, 3]).x0
    assert float(added.abs().max()) > 0.1
    torch.testing.assert_close(added, dataset.corruption.covariance.project(added), rtol=0, atol=1e-5)
    assert not torch.allclose(added[0], added[1])


def test_a_redrawn_corruption_follows_from_the_seed_of_the_augmentation() -> None:
    dataset = corrupted(redrawn=True)
    one, again, other = (dataset.example(5, seed).x0 for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(dataset.example(5).x0, dataset.example(5).x0)


def test_restored_examples_are_nearer_to_the_clean_ones_and_keep_their_sample() -> None:
    dataset = corrupted()
    fitted = GaussianRestoration.fit([dataset.batch(range(1500)).x0], dataset.corruption)
    clean, dirty = dataset.inner.batch(range(1500, 1700)).x0, dataset.batch(range(1500, 1700)).x0
    for drawn in (False, True):
        restored = Restored(dataset, fitted, seed=3, drawn=drawn)
        found = restored.batch(range(1500, 1700), range(200)).x0
        assert float((found - clean).square().mean()) < 0.5 * float((dirty - clean).square().mean())
        assert torch.equal(restored.subset([1600]).example(0, 4).x0, found[100])


def test_labels_texts_and_names_are_those_of_the_clean_set() -> None:
    dataset = corrupted()
    assert dataset.classes == dataset.inner.classes
    assert dataset.fingerprint == dataset.inner.fingerprint
    assert torch.equal(dataset.batch([1, 2]).labels, dataset.inner.batch([1, 2]).labels)  # type: ignore[arg-type]
    assert (dataset.groups, dataset.unreadable, dataset.caption(0)) == (None, {}, None)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["spectrum=omitting"],
        ["spectrum=omitting", "denoiser=projected"],
        ["spectrum=omitting", "denoiser=restoring"],
        ["process=floored", "denoiser=restoring"],
        ["corruption.restored=mean"],
        ["corruption.restored=sample", "spectrum=omitting", "corruption.examples=300"],
    ],
    ids=lambda words: ",".join(words) or "corrupted",
)
def test_every_way_trains_continues_and_samples(words: list[str], tmp_path: Path) -> None:
    arguments = [*SMALL, "corruption=band", *words, f"run_dir={tmp_path / 'run'}"]
    train(configuration.load("train", arguments))
    train(configuration.load("train", [*arguments, "training.samples=48"]))
    out = sample(configuration.load("sample", [f"run_dir={tmp_path / 'run'}", "sampler=ddim", "count=2", "steps=3"]))
    assert (out / "grid.png").exists()
    kept = tmp_path / "run" / "restoration.safetensors"
    assert kept.exists() == ("restored" in " ".join(words))
    denoiser = open_model(tmp_path / "run", Builder()).assembly(Builder())
    process = denoiser.process()
    restoring = denoiser.denoiser(torch.nn.Identity(), process)
    assert isinstance(restoring, RestoringDenoiser) == ("denoiser=restoring" in words)
    again = ["band=sample", f"run_dir={tmp_path / 'run'}", "sampler=ddim", "count=2", "steps=3"]
    if "denoiser=restoring" not in words:
        with pytest.raises(RecipeError, match="band=sample requires a run that restores"):
            sample(configuration.load("sample", again))
        return
    means, samples = (
        load_file(folder / "samples.safetensors")["x0"] for folder in (out, sample(configuration.load("sample", again)))
    )
    moved, inside = samples - means, restoring.corruption.covariance.project
    assert float(moved.abs().max()) > 0
    torch.testing.assert_close(moved, inside(moved), rtol=0, atol=1e-4)


def test_data_that_are_corrupted_already_are_left_as_they_are() -> None:
    modality = Image(size=8, channels=1)
    group = configuration.load("train", ["corruption=band", "corruption.added=false", "run_dir=unused"])["corruption"]
    data = {"_target_": "modalities.image_sets.Digits"}
    assert isinstance(build_data(data, group, 0, modality, Builder()), Digits)
    assert isinstance(build_data(data, {**group, "added": True}, 0, modality, Builder()), Corrupted)


@pytest.mark.parametrize("words", [["spectrum=omitting"], ["denoiser=restoring"], ["process=floored"]])
def test_what_needs_a_corruption_says_so(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing is corrupted here: choose one, for example corruption=band"):
        train(configuration.load("train", [*SMALL, *words, f"run_dir={tmp_path / 'run'}"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corruption.level=0"], "level of a corruption must be positive"),
        (["corruption.restored=median"], "corruption.restored: expected one of mean, sample"),
        (["corruption.examples=3", "corruption.restored=mean"], "examples must be at least 4"),
        (["corruption.added=maybe"], "corruption.added: expected true or false"),
        (["corruption.spectrum.low=3", "corruption.spectrum.high=4"], r"corruption: .*no power"),
        (["process=floored", "denoiser=restoring", "sampler=unipc"], "sampler=unipc needs noise that decreases"),
        (["spectrum=omitting", "denoiser=restoring", "corruption.restored=mean"], "both restore the data"),
        (["spectrum=omitting", "denoiser=restoring", "loss=mahalanobis"], "denoiser=restoring requires loss=euclidean"),
        (["spectrum=omitting", "denoiser=projected", "padding={height:4}"], "remove the padding"),
        (["denoiser=restoring"], r"must be empty .* or stay above"),
    ],
)
def test_mistakes_are_told_in_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(configuration.load("train", [*SMALL, "corruption=band", *words, f"run_dir={tmp_path / 'run'}"]))


def test_a_damaged_restoration_is_refused(tmp_path: Path) -> None:
    arguments = [*SMALL, "corruption=band", "corruption.restored=mean", f"run_dir={tmp_path / 'run'}"]
    train(configuration.load("train", arguments))
    (tmp_path / "run" / "restoration.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match=r"cannot read .*restoration\.safetensors"):
        train(configuration.load("train", [*arguments, "training.samples=48"]))


def test_a_run_keeps_what_corrupted_its_data(tmp_path: Path) -> None:
    modality = Image(size=8, channels=1)
    kept = Corruption(Band(0.2, 0.4), modality.grid(), 0.5)
    kept.save(tmp_path / "found.safetensors")
    measured = ["corruption=measured", f"corruption.path={tmp_path / 'found.safetensors'}"]
    way = ["spectrum=omitting", "denoiser=restoring", f"run_dir={tmp_path / 'run'}"]
    train(configuration.load("train", [*SMALL, *measured, *way]))
    (tmp_path / "found.safetensors").unlink()
    train(configuration.load("train", [*SMALL, *measured, *way, "training.samples=48"]))
    export(configuration.load("export", [f"run_dir={tmp_path / 'run'}", f"out={tmp_path / 'model'}"]))
    drawn = []
    for folder in ("run", "model"):
        out = sample(
            configuration.load("sample", [f"run_dir={tmp_path / folder}", "sampler=ddim", "count=2", "steps=2"])
        )
        drawn.append(load_file(out / "samples.safetensors")["x0"])
    assert torch.equal(*drawn)
    (tmp_path / "run" / "corruption.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RecipeError, match=r"cannot read .*corruption\.safetensors"):
        sample(configuration.load("sample", [f"run_dir={tmp_path / 'run'}", "sampler=ddim", "count=1", "steps=2"]))


def test_inspect_shows_what_is_trained_on(tmp_path: Path) -> None:
    words = [*SMALL, "corruption=band", "corruption.examples=500", "count=2"]
    looks = []
    for number, restored in enumerate(("null", "mean")):
        out = inspect(
            configuration.load(
                "inspect", [*words, f"corruption.restored={restored}", f"run_dir={tmp_path / str(number)}"]
            )
        )
        looks.append(json.loads((out / "inspect.json").read_text())["standard_deviation"])
    assert looks[1] < 0.9 * looks[0]
