"""Runs on files of arrays: settings from the data are kept with the run, and every format trains and continues."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modalities.base import Modality
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.runs.run import CONFIG, Run
from tests.helpers.array_sets import scans, sensors, simulations, weather
from tests.helpers.pages import quick

FORMATS = {
    "hdf5": ("a.h5", simulations, ["modality=field", "data=arrays"]),
    "zarr": ("a.zarr", simulations, ["modality=field", "data=arrays"]),
    "netcdf": ("a.nc", weather, ["modality=field", "data=arrays"]),
    "nifti": ("scans", scans, ["modality=field", "data=folder"]),
    "csv": ("sensors", sensors, ["modality=series", "modality.length=32", "data=folder"]),
}
"""By format: the file or folder, the function that writes it, and the words of a command."""


def config_of(root: Path | str, *words: str) -> configuration.Config:
    return resolved(configuration.load("train", ["run_dir=r", f"data.root={root}", *words]))


def test_settings_from_the_data_are_explicit_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulations(tmp_path / "a.h5")
    words = ("modality=field", "data=arrays")
    config = config_of(tmp_path / "a.h5", *words)
    assert "modality.axes: name y, size 8" in capsys.readouterr().out
    modality = config["modality"]
    assert modality["like"] is None
    assert [axis["size"] for axis in modality["axes"]] == [8, 8]
    assert [variable["name"] for variable in modality["variables"]] == ["density"]
    configuration.write(config, tmp_path / CONFIG)
    run = Run(tmp_path)
    run.check_config(config_of(tmp_path / "a.h5", *words), begun=True)
    simulations(tmp_path / "b.zarr")  # has the same values, and only its format of samples would be another
    run.check_config(config_of(tmp_path / "b.zarr", *words, "modality.format=npz"), begun=True)
    np.save(tmp_path / "b.npy", np.ones((12, 8, 8)))
    with pytest.raises(RecipeError, match=r"different configuration; these keys differ:\n  modality\.variables"):
        run.check_config(config_of(tmp_path / "b.npy", *words), begun=True)
    (tmp_path / "a.h5").unlink()
    stored = Run(tmp_path).config["modality"]
    built = Builder().build(stored, Modality, "modality")  # type: ignore[type-abstract]
    assert built.tensor_shape == (1, 8, 8)


def test_settings_are_resolved_within_latents_and_errors_name_the_key(tmp_path: Path) -> None:
    simulations(tmp_path / "a.h5")
    latent = ("modality=latent", "modality@modality.modality=field", "modality.autoencoder._target_=mine.A")
    config = config_of(tmp_path / "a.h5", *latent, "modality.statistics=null", "data=arrays")
    assert len(config["modality"]["modality"]["axes"]) == 2
    for words, message in (
        (["modality=field", "data=arrays", "modality.like=no.nc"], r"^modality: .*no\.nc"),
        (
            ["modality=field", "data=arrays", "modality.axes=[a,b,c,d]"],
            "^modality: .*does not have the axes a, b, c, d",
        ),
        (["modality=series", "data=arrays", "modality.length=4"], r"^modality: .*set modality\.rate"),
        (
            ["modality=own", "modality._target_=os.path", "data=arrays"],
            r"^modality\._target_: os\.path is not under an allowed package",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            config_of(tmp_path / "a.h5", *words)
    for root, message in (("gone.h5", "gone.h5 is not a file"), ("https://example.org/a.nc", "is an address, .* copy")):
        with pytest.raises(RecipeError, match=f"^modality: .*{message}"):
            config_of(root if "://" in root else tmp_path / root, "modality=field", "data=arrays")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_trains_samples_and_continues(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, write, words = FORMATS[name]
    write(Path(file))
    command = ["train", *words, f"data.root={file}", *quick("train", words), "every.samples=0"]
    assert cli.main([*command, "run_dir=run"]) == 0
    assert cli.main(["sample", "run_dir=run", *quick("sample", []), "count=2", "out=out"]) == 0
    modality = Builder().build(Run(Path("run")).config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    x0 = load_file("out/samples.safetensors")["x0"]
    files = sorted(Path("out/samples").glob(f"[0-9]*{modality.suffixes[0]}"))
    assert len(files) == 2
    for path, each in zip(files, x0, strict=True):
        torch.testing.assert_close(modality.encode(modality.load(path)), each, rtol=1e-4, atol=1e-4)
    if name == "hdf5":  # in chunks, whose order depends on the samples seen
        more = [word for word in command if not word.startswith("training.samples")] + ["training.samples=16"]
        assert cli.main([*more, "run_dir=run"]) == 0
        assert cli.main([*more, "run_dir=whole"]) == 0
        one, other = (Run(Path(folder)).checkpoints.newest() for folder in ("run", "whole"))
        assert one is not None
        assert other is not None
        for part in sorted(one.glob("*.safetensors")):
            stopped, whole = load_file(part), load_file(other / part.name)
            assert all(torch.equal(stopped[key], whole[key]) for key in whole)
        assert list(one.glob("*.safetensors"))
