"""Search for the best training recipe by successive halving: `python -m benchmarks.search SEARCH.yaml`.

A search is a YAML file: arguments of `multisagd train` that all runs have (`base`), those of every arm (`arms`), and
`rungs`, each with a number of training samples, seeds, and the fraction of arms that go on to the next rung. Every
arm is trained from the beginning in each rung, because the decay of the learning rate depends on the length. An arm's
score is its mean `frechet_distance` (without classes, `denoising_error`) over the seeds, by the first of `samplers`.
With `trainer: diffusers`, arms are settings of `benchmarks.peers.unet2d.UNet2D`, and samplers are diffusers schedulers
with `options`. With `like: FILE`, keys that a search does not contain are taken from that file.

Each training run appends one row to the results, so a search that was interrupted continues where it stopped, and a
search with more arms or rungs measures only what is new. Runs are trained in parallel by `--workers` processes, and
their folders are removed once measured.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, Protocol

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.pool import completed, processes
from benchmarks.rows import append, missing, rows
from benchmarks.runs import Run, spread, train_run
from multisagd.analysis.design import spectral_ends
from multisagd.samplers import Sampler
from multisagd.sampling import time_steps
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.settings import Guidance

RESULTS = Path(__file__).parent / "results" / "searches.jsonl"
DEFAULT_SAMPLERS = {"ode": {"sampler": "heun", "steps": 20}, "sde": {"sampler": "ddim sampler.eta=1", "steps": 20}}


@dataclass(frozen=True)
class Rung:
    """One rung: every remaining arm is trained on `samples` with each seed, and the best fraction `keep` goes on."""

    samples: int
    seeds: tuple[int, ...]
    keep: float = 1.0


@dataclass(frozen=True)
class Search:
    """A search: see the top of this file. `count` samples are compared with `reference` real examples."""

    name: str
    base: tuple[str, ...]
    arms: dict[str, tuple[str, ...]]
    rungs: tuple[Rung, ...]
    samplers: dict[str, dict[str, Any]]
    count: int = 1000
    reference: int = 5000
    trainer: Literal["multisagd", "diffusers"] = "multisagd"

    def __post_init__(self) -> None:
        if self.trainer not in ("multisagd", "diffusers"):
            raise ValueError(f"trainer must be multisagd or diffusers, got {self.trainer}")

    @classmethod
    def load(cls, path: Path) -> Search:
        """Read a search from a YAML file."""
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "like" in content:
            content = yaml.safe_load((path.parent / content["like"]).read_text(encoding="utf-8")) | content
        rungs = tuple(Rung(each["samples"], tuple(each["seeds"]), each.get("keep", 1.0)) for each in content["rungs"])
        arms = {name: tuple(str(arguments or "").split()) for name, arguments in content["arms"].items()}
        samplers = content.get("samplers", DEFAULT_SAMPLERS)
        others = {key: content[key] for key in ("count", "reference", "trainer") if key in content}
        return cls(path.stem, tuple(content["base"]), arms, rungs, samplers, **others)

    def arguments(self, arm: str, rung: Rung, seed: int) -> list[str]:
        """Return the arguments of `multisagd train` for one run; those of other trainers do not include the arm."""
        own = [f"training.samples={rung.samples}", f"seed={seed}"]
        arms = self.arms[arm] if self.trainer == "multisagd" else ()
        return [*self.base, *arms, *own, "every.samples=0", "every.validation=0", "report=false"]

    def part(self, arms: Iterable[str] | None, rungs: int | None, seeds: Iterable[int] | None) -> Search:
        """Return the search with only these arms, its first rungs, and these seeds; None means all.

        Raises:
            ValueError: If an arm does not exist.
        """
        names = tuple(self.arms if arms is None else arms)
        if unknown := set(names) - set(self.arms):
            raise ValueError(f"there are no arms {sorted(unknown)}; choose among {', '.join(self.arms)}")
        wanted = None if seeds is None else set(seeds)
        chosen = (
            replace(rung, seeds=tuple(seed for seed in rung.seeds if wanted is None or seed in wanted))
            for rung in self.rungs[:rungs]
        )
        return replace(self, arms={name: self.arms[name] for name in names}, rungs=tuple(chosen))


class Trained(Protocol):
    """A trained network that can be sampled as a search describes, and judged by a run."""

    @property
    def run(self) -> Run:
        """The run whose data, classifier and conditions judge the samples."""

    def draw(self, described: Mapping[str, Any], seed: int, count: int) -> Tensor:
        """Return samples `(count, channels, *grid)`, drawn by one of the samplers of the search."""

    def values(self) -> dict[str, Any]:
        """Return what a row states about training."""


@dataclass(frozen=True)
class TrainedRun:
    """A run of `multisagd train` in a folder, which took `seconds`."""

    folder: Path
    run: Run
    seconds: float

    @classmethod
    def train(cls, folder: Path, arguments: list[str], reference: int, threads: int | None) -> TrainedRun:
        """Train a run, and read it."""
        started = time.monotonic()
        train_run(folder, arguments)
        seconds = time.monotonic() - started
        return cls(folder, Run.load(folder, reference, threads), seconds)

    def draw(self, described: Mapping[str, Any], seed: int, count: int) -> Tensor:
        """Return samples drawn as `multisagd sample` does; `spacing: null` means at the times that it chooses."""
        arguments = [f"run_dir={self.folder}", *f"sampler={described['sampler']}".split()]
        node = configuration.load("sample", arguments)["sampler"]
        sampler = Builder().build(node, Sampler, "sampler", statistics=self.run.statistics)  # type: ignore[type-abstract]
        process, steps = self.run.denoiser.process, described["steps"]
        spacing, fraction, times = described.get("spacing", "time"), described.get("ends"), None
        if spacing is not None:
            ends = None if fraction is None else spectral_ends(self.run.statistics, process, fraction)
            times = time_steps(process.schedule, steps, spacing, ends=ends)
        return self.run.draw(sampler, steps, seed, count, times, Guidance(described.get("guidance", 1.0)))

    def values(self) -> dict[str, Any]:
        """Return what a row states about training."""
        parameters = sum(each.numel() for each in self.run.denoiser.network.parameters())
        errors = self.run.denoising_error()
        return {"training_seconds": self.seconds, "parameters": parameters, "denoising_error": errors}


def measure(search: Search, arm: str, rung: Rung, seed: int, folder: Path, threads: int | None) -> dict[str, Any]:
    """Train one run, judge it by every sampler, remove its folder, and return the values of its row."""
    shutil.rmtree(folder, ignore_errors=True)  # left by an interruption
    arguments = search.arguments(arm, rung, seed)
    trained: Trained
    if search.trainer == "diffusers":
        from benchmarks.peers.unet2d import TrainedUNet2D  # diffusers is optional

        trained = TrainedUNet2D.train(folder, arguments, search.arms[arm], search.reference, threads)
    else:
        trained = TrainedRun.train(folder, arguments, search.reference, threads)
    values = trained.values()
    for name, described in search.samplers.items():
        started = time.monotonic()
        x0 = trained.draw(described, seed, search.count)
        seconds = time.monotonic() - started
        values[name] = trained.run.judge(x0) | {"seconds": seconds}
    shutil.rmtree(folder)
    return trained.run.conditions() | values


def score(values: dict[str, Any], search: Search) -> float:
    """Return the score of a row: lower is better, and infinite if the run diverged."""
    first = values.get(next(iter(search.samplers)), {})
    if "frechet_distance" in first:
        return float(first["frechet_distance"])
    errors = values.get("denoising_error")
    return mean(errors.values()) if errors else math.inf


def survivors(search: Search, arms: Iterable[str], rung: Rung, results: Path) -> list[str]:
    """Return the arms that go on from a rung, best first."""
    scores: dict[str, list[float]] = {arm: [] for arm in arms}
    for row in rows(search.name, results):
        if row["arm"]["samples"] == rung.samples and row["arm"]["name"] in scores:
            scores[row["arm"]["name"]].append(score(row, search))
    ranked = sorted((arm for arm in scores if scores[arm]), key=lambda arm: mean(scores[arm]))
    return ranked[: max(1, math.ceil(rung.keep * len(ranked)))]


def run_search(search: Search, work: Path, results: Path, workers: int, threads: int | None, limit: float) -> None:
    """Run what is missing of a search; no run starts after `limit` seconds."""
    console, started, remaining = Console(width=200), time.monotonic(), list(search.arms)
    measured = any(True for _ in rows(search.name, results))

    def parallel() -> int:
        # The first run is alone: it trains and caches the classifier that all runs use.
        return 0 if time.monotonic() - started >= limit else workers if measured else 1

    with processes(workers) as pool:
        for rung in search.rungs:
            arms: list[dict[str, Any]] = [
                {"name": arm, "samples": rung.samples, "seed": seed, "arguments": " ".join(search.arms[arm])}
                for seed in rung.seeds for arm in remaining
            ]  # fmt: skip
            todo = missing(search.name, arms, results)
            folders = [work / f"{arm['name']}_{arm['samples']}_{arm['seed']}" for arm in todo]
            calls = [
                (search, arm["name"], rung, arm["seed"], folder, threads)
                for arm, folder in zip(todo, folders, strict=True)
            ]
            for place, values in completed(pool, measure, calls, parallel):
                arm, measured = todo[place], True
                if isinstance(values, Exception):  # a run that diverges is a result; the others go on
                    values = {"error": f"{type(values).__name__}: {values}"}
                append(search.name, arm, values, results)
                console.print(f"{arm['name']} {arm['samples']} seed {arm['seed']}: {score(values, search):.3f}")
            show(search, rung, remaining, results, console)
            remaining = survivors(search, remaining, rung, results)


def show(search: Search, rung: Rung, arms: Iterable[str], results: Path, console: Console) -> None:
    """Print the results of a rung, best first."""
    columns = [f"{sampler} {what}" for sampler in search.samplers for what in ("FD", "recognised", "dB")]
    table = Table("arm", "seeds", *columns, "seconds", box=box.SIMPLE, title=f"{search.name}, {rung.samples:,} samples")
    made = [row for row in rows(search.name, results) if "error" not in row and row["arm"]["samples"] == rung.samples]
    for arm in survivors(search, arms, Rung(rung.samples, rung.seeds), results):
        found = [row for row in made if row["arm"]["name"] == arm]
        cells = []
        for sampler in search.samplers:
            for metric in ("frechet_distance", "recognised", "spectrum_error_db"):
                values = tuple(row[sampler][metric] for row in found if metric in row.get(sampler, {}))
                cells.append(spread(values) if values else "")
        seconds = spread(tuple(row["training_seconds"] for row in found), 0) if found else ""
        table.add_row(arm, str(len(found)), *cells, seconds)
    console.print(table)


def main() -> None:
    """Run the search named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="YAML file of the search")
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="folder for training runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--workers", type=int, default=1, help="number of runs trained at a time")
    parser.add_argument("--threads", type=int, default=None, help="number of threads per run")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no run starts")
    parser.add_argument("--arms", nargs="+", help="only these arms (default: all)")
    parser.add_argument("--rungs", type=int, help="only the first rungs, this number of them (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds (default: all)")
    chosen = parser.parse_args()
    search = Search.load(chosen.search).part(chosen.arms, chosen.rungs, chosen.seeds)
    run_search(search, chosen.work, chosen.results, chosen.workers, chosen.threads, chosen.limit)


if __name__ == "__main__":
    main()
