"""A search keeps the best arms of each rung, continues where it stopped, and counts a failed run as the worst."""

from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import search as searching
from benchmarks.rows import append, rows
from benchmarks.search import Rung, Search, measure, run_search, survivors
from tests.helpers.tiny import TINY

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
        monkeypatch.setattr("benchmarks.runs.read_dataset", lambda *_: type("Read", (), {"features": None}))
        network.return_value = (None, {})
        values = measure(search_of(), "x0", Rung(32, (0,)), 0, tmp_path / "run", None)
    assert values["sde"] == values["log"] == {"frechet_distance": 20.0}
    assert values["samples_seen"] == 32
    assert values["training_seconds"] > 0
    assert not (tmp_path / "run").exists()


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
    with patch.object(searching, "measure", fake), patch.object(searching, "ProcessPoolExecutor", InThisProcess):
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

    for path in sorted((Path(searching.__file__).parent / "searches").glob("*.yaml")):
        search = Search.load(path)
        for arm in search.arms:
            configuration.load("train", [*search.arguments(arm, search.rungs[0], 0), "run_dir=x"])


class InThisProcess:
    """An executor that runs each task at once."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments):  # type: ignore[no-untyped-def]
        from concurrent.futures import Future

        future: Future[object] = Future()
        try:
            future.set_result(searching.measure(*arguments))
        except RuntimeError as error:
            future.set_exception(error)
        return future
