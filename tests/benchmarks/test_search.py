"""A search keeps the best arms of each rung, continues where it stopped, and counts a failed run as the worst."""

from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import pool
from benchmarks import search as searching
from benchmarks.peers.compare_recipes import SAMPLES, best, calls, measured, ratios
from benchmarks.peers.setting import Setting
from benchmarks.peers.unet2d import UNet2D
from benchmarks.rows import append, rows
from benchmarks.search import Rung, Search, measure, run_search, survivors
from multisagd.metrics.feature_network import FeatureNetwork
from tests.helpers.in_this_process import InThisProcess
from tests.helpers.tiny import TINY

SEARCHES = Path(searching.__file__).parent / "searches"
SAMPLERS = {"sde": {"sampler": "ddim sampler.eta=1", "steps": 2},
            "log": {"sampler": "dpm_solver", "steps": 2, "spacing": "log_snr", "ends": 0.01}}  # fmt: skip


def search_of(*rungs: Rung, arms: tuple[str, ...] = ("plain", "x0")) -> Search:
    described = {"plain": (), "x0": ("denoiser=x0",), "worse": (), "broken": ()}
    return Search("s", tuple(TINY), {arm: described[arm] for arm in arms}, rungs, SAMPLERS, count=20, reference=40)


def test_search_measures_a_run_with_every_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with patch("benchmarks.runs.cached_network", side_effect=RuntimeError) as network:
        network.side_effect = None
        monkeypatch.setattr("benchmarks.runs.Run.judge", lambda run, x0: {"frechet_distance": float(len(x0))})
        monkeypatch.setattr("benchmarks.runs.read_dataset", lambda *_, **__: type("Read", (), {"features": None}))
        network.return_value = (None, {})
        values = measure(search_of(), "x0", Rung(32, (0,)), 0, tmp_path / "run", None)
    assert values["sde"]["frechet_distance"] == values["log"]["frechet_distance"] == 20.0
    assert values["samples_seen"] == 32
    assert values["training_seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_search_trains_and_judges_the_unet_of_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.runs.cached_network", lambda *_: (FeatureNetwork(1, 2, 10, (4, 8)).eval(), {}))
    monkeypatch.setattr(pool, "ProcessPoolExecutor", InThisProcess)
    multistep = {"sampler": "DPMSolverMultistepScheduler", "steps": 3}
    samplers = {"plain": multistep, "guided": {**multistep, "guidance": 2.0},
                "sde": {**multistep, "options": {"algorithm_type": "sde-dpmsolver++"}},
                "ddpm": {"sampler": "DDPMScheduler", "steps": 3}}  # fmt: skip
    words = ("channels=[8,16]", "batch=8", "prediction=v_prediction", "gamma=5", "learning_rate=1e-2", "warmup=0")
    rungs = (Rung(32, (0,)),)
    search = Search("s", tuple(TINY), {"v": words}, rungs, samplers, count=20, reference=40, trainer="diffusers")
    results = tmp_path / "results.jsonl"
    run_search(search.part(["v"], 1, [0]), tmp_path / "work", results, workers=1, threads=1, limit=60)
    (row,) = rows("s", results)
    assert row["samples_seen"] == 32
    assert len({row[name]["frechet_distance"] for name in samplers}) == 4
    assert all(row[name]["frechet_distance"] > 0 for name in samplers)


def test_unets_of_diffusers_have_about_as_many_parameters_as_ours() -> None:
    words = ["experiment=image_mnist", "data=digits", "modality.size=16", "validation.holdout=40"]
    setting = Setting.of(words, 1)
    ours = sum(each.numel() for each in setting.network().parameters())
    for name in ("mnist16", "fashion16"):
        search = Search.load(SEARCHES / f"unet2d_{name}_tuning.yaml")
        recipes = {(each.channels, each.layers): each for each in map(UNet2D.of, [*search.arms.values(), ()])}
        for recipe in recipes.values():
            theirs = sum(each.numel() for each in recipe.network(setting).parameters())
            assert theirs == pytest.approx(ours, rel=0.1), recipe


def test_table_compares_the_best_of_diffusers_with_our_default(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    found = {"default_mnist16": {"default": (1.0, 2.0)},
             "unet2d_mnist16": {"example": (9.0, 9.0)},
             "unet2d_mnist16_tuning": {"one": (3.0, 4.0), "other": (4.0, 4.0), "once": (0.1,)}}  # fmt: skip
    for search, arms in found.items():
        for arm, distances in arms.items():
            for seed, distance in enumerate(distances):
                values = {"default": {"frechet_distance": distance}, "worse": {"frechet_distance": 2 * distance}}
                append(search, {"name": arm, "samples": SAMPLES, "seed": seed}, values, results)
    ours, theirs = best(measured(["default_mnist16"], [results])), best(measured(["unet2d_mnist16_tuning"], [results]))
    assert ours is not None
    assert theirs is not None
    assert (theirs.arm, theirs.sampler) == ("one", "default")
    assert ratios(theirs, ours) == (3.0, 2.0)
    limited = best(measured(["unet2d_mnist16_tuning"], [results]), {"worse"})
    assert limited is not None
    assert (limited.arm, limited.sampler) == ("one", "worse")
    assert calls("mnist16").items() >= {("default", 20), ("guided_1.3", 40), ("ddpm", 250)}


def test_search_keeps_the_best_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    distances = {"plain": 1.0, "x0": 2.0, "worse": 3.0}
    measured = []

    def fake(search: Search, arm: str, rung: Rung, seed: int, folder: Path, threads: int | None) -> dict[str, object]:
        measured.append((arm, rung.samples, seed))
        if arm == "broken":
            raise RuntimeError("diverged")
        return {"sde": {"frechet_distance": distances[arm] + seed}, "training_seconds": 1.0}

    search = search_of(Rung(32, (0, 1), keep=0.5), Rung(64, (0,)), arms=("broken", "worse", "x0", "plain"))
    results = tmp_path / "results.jsonl"
    with patch.object(searching, "measure", fake), patch.object(pool, "ProcessPoolExecutor", InThisProcess):
        run_search(search, tmp_path, results, workers=1, threads=None, limit=60)
        assert [arm for arm, samples, _ in measured if samples == 64] == ["plain", "x0"]
        assert len(measured) == 4 * 2 + 2
        run_search(search, tmp_path, results, workers=1, threads=None, limit=60)
    assert len(measured) == 4 * 2 + 2
    assert sum("error" in row for row in rows("s", results)) == 2
    assert "1.50 ± 0.71" in capsys.readouterr().out


def test_survivors_rank_by_the_mean_over_seeds(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    for arm, seed, distance in (("plain", 0, 1.0), ("plain", 1, 9.0), ("x0", 0, 4.0), ("x0", 1, 5.0)):
        append("s", {"name": arm, "samples": 32, "seed": seed}, {"sde": {"frechet_distance": distance}}, results)
    assert survivors(search_of(), ("plain", "x0"), Rung(32, (0, 1), keep=0.5), results) == ["x0"]


def test_searches_of_the_project_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.config import compose as configuration

    for path in sorted(SEARCHES.glob("*.yaml")):
        search = Search.load(path)
        for arguments in {tuple(search.arguments(arm, search.rungs[0], 0)) for arm in search.arms}:
            configuration.load("train", [*arguments, "run_dir=x"])
        for words in search.arms.values() if search.trainer == "diffusers" else ():
            recipe = UNet2D.of(words)
            for described in search.samplers.values():
                recipe.sampler(described["sampler"], described.get("options")).set_timesteps(described["steps"])
