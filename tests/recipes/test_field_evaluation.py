"""`multisagd evaluate` judges fields variable by variable, in the units of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import multisagd as ms
from modalities.base import Modality
from recipes import evaluate as recipe
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.runs.run import Run

COUNT = 120
METRICS = "metrics=[rings,distribution,increments,coherence]"
QUICK = ["bootstrap=4", "splits=2", "bands=3", "engine.threads=1", "engine.device=cpu"]


def fields(count: int, seed: int) -> np.ndarray:
    """Return Gaussian fields of two variables with the correlation .8, (count, 2, y, x), around 280 K and in m/s."""
    grid = ms.Grid.of(y=8, x=9)
    x = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid).sample(range(seed, seed + count), channels=2).double()
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    return np.asarray(x.numpy() * np.array([20.0, 3.0])[:, None, None] + np.array([280.0, 0.0])[:, None, None])


def configured(folder: Path, values: np.ndarray) -> Path:
    """Make a run's folder with a configuration but no checkpoint, next to its data."""
    np.savez(folder / "data.npz", temperature=values[:, 0], wind=values[:, 1])
    (folder / "run").mkdir()
    words = [
        "modality=field", "modality.variables={temperature:{unit:K},wind:{unit:m/s}}", "modality.axes=[y,x]",
        "data=arrays", f"data.root={folder / 'data.npz'}", "validation.holdout=0", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    configuration.write(resolved(configuration.load("train", words)), folder / "run" / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configured(tmp_path_factory.mktemp("fields"), fields(4 * COUNT, 0))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    for module in ("fields", "spectra"):
        monkeypatch.setattr(f"recipes.evaluation.{module}.save", lambda figure, path: None)


def evaluated(folder: Path, media: np.ndarray, *more: str) -> dict[str, Any]:
    """Return the report of samples that are the given fields."""
    stored = Run(folder / "run").config["modality"]
    modality = Builder().build(stored, Modality, "modality")  # type: ignore[type-abstract]
    x0 = torch.stack([modality.encode(torch.from_numpy(each)) for each in media])
    save_file({"x0": x0}, folder / "samples.safetensors")
    words = [f"run_dir={folder / 'run'}", f"samples_from={folder}", METRICS, *QUICK, *more]
    return recipe.evaluate(configuration.load("evaluate", words))


def values_of(report: dict[str, Any]) -> dict[str, float]:
    return {f"{kind}/{row['name']}": row["value"] for kind, each in report["results"].items() for row in each["rows"]}


def test_evaluate_gives_real_fields_their_noise_floor_and_writes_figures(folder: Path) -> None:
    report = evaluated(folder, fields(COUNT, 10_000))
    for kind, result in report["results"].items():
        for row in result["rows"]:
            near = 0.6 * abs(row["floor"]) + 6 * (row["floor_error"] + row["error"])
            assert abs(row["value"] - row["floor"]) < near, (kind, row)
            assert row["unit"] in (
                ("K", "m/s") if "Wasserstein" in row["name"] or "mean" in row["name"] else ("", "dB")
            )
    names = {f"evaluate_{name}.png" for name in ("rings", "distribution", "increments", "coherence")}
    assert set(report["figures"]) == names
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    moments = report["results"]["distribution"]["variables"]["temperature"]["values"]["data"]
    assert moments["mean"] == pytest.approx(280, abs=3)
    assert moments["deviation"] == pytest.approx(20, rel=0.1)
    assert moments["kurtosis"] == pytest.approx(3, abs=0.3)


@pytest.mark.usefixtures("no_figures")
def test_evaluate_finds_what_is_wrong_with_one_variable_in_its_unit(folder: Path) -> None:
    media = fields(COUNT, 10_000)
    media[:, 1] = -1.5 * media[:, 1] + 2.0
    found = values_of(evaluated(folder, media))
    for name in ("rms over rings", "quietest third of rings", "worst ring"):
        assert found[f"rings/wind: {name}"] == pytest.approx(20 * np.log10(1.5), abs=1.0)
        assert found[f"rings/temperature: {name}"] < 1.5
    for order in (2, 3, 4):
        assert found[f"increments/wind: S{order} along x, rms"] == pytest.approx(3.52, abs=0.4)
    assert found["distribution/wind: mean difference"] == pytest.approx(2.0, abs=0.6)
    assert found["distribution/wind: deviation ratio"] == pytest.approx(1.5, rel=0.1)
    assert found["distribution/wind: kurtosis ratio"] == pytest.approx(1.0, abs=0.2)
    assert found["distribution/wind: Wasserstein-1 distance"] > 1.5
    assert found["coherence/temperature and wind: correlation, rms"] == pytest.approx(1.6, abs=0.2)


@pytest.mark.usefixtures("no_figures")
def test_evaluate_shows_fields_with_two_values_by_their_kurtosis(folder: Path) -> None:
    media = fields(COUNT, 10_000)
    media[:, 0] = 280 + 20 * np.sign(media[:, 0] - 280)
    found = values_of(evaluated(folder, media, "metrics=[distribution]"))
    assert found["distribution/temperature: kurtosis ratio"] == pytest.approx(1 / 3, abs=0.06)
    assert found["distribution/temperature: kurtosis ratio of ∂y∂x"] > 3


@pytest.mark.usefixtures("no_figures")
def test_evaluate_ignores_missing_values_and_refuses_constants(tmp_path: Path) -> None:
    values = fields(4 * COUNT, 0)
    values[:, 1, :, :4] = np.nan
    configured(tmp_path, values)
    media = fields(COUNT, 10_000)
    media[:, 1, :, :4] = 1e6
    found = values_of(evaluated(tmp_path, media))
    assert found["distribution/wind: deviation ratio"] == pytest.approx(1.0, abs=0.15)
    assert found["distribution/wind: Wasserstein-1 distance"] < 0.5
    assert found["increments/wind: S4 along x, rms"] < 1.0
    assert found["rings/wind: rms over rings"] < 1.0
    media[:, 0] = 280.0
    with pytest.raises(RecipeError, match="distribution: temperature: all values are equal"):
        evaluated(tmp_path, media, "metrics=[distribution]")
