"""Ensemble forecasts of turbulence, judged beside those of the solver itself: `python -m benchmarks.forecast`.

The forcing of the turbulence is random, so that the same present has many futures. From states of new trajectories, the
truth is one future; the solver's ensemble is others of them, which no forecast can surpass. `experiment=field_forecast`
is trained with several seeds, and each run draws an ensemble that is rolled out over eight steps of half a second.
Persistence forecasts the present, and climatology the states of other trajectories. For each lead time, the continuous
ranked probability score, the error of the mean, and the ratio of spread and error are measured over all points.

Each run appends a row to the results, and is not trained again. `--show` only prints the table, `--write` writes it to
docs/tutorials/field-forecast.md, and `--picture` draws docs/images/field_forecast.png with the run of the first seed
in the folder of work. `--shrink 100` tries everything in short runs, with another file of results.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.rows import RESULTS, between, measure_missing, parsed, rows, tutorial_parser
from benchmarks.runs import configured, spread, train_run
from modalities.base import Modality
from modalities.field_sets import Vorticity
from modalities.forecasts import States
from modalities.navier_stokes import resampled
from multisagd.condition import Condition
from multisagd.metrics.ensemble import crps, spread_and_skill
from multisagd.seeds import derive
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import configured_data
from recipes.runs.model import open_model, trained_denoiser
from recipes.runs.run import versions
from recipes.runs.settings import SampleSettings, TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.sampling.generate import sampling_request
from recipes.sampling.rollout import Rollout

EXPERIMENT = "forecasts"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "tutorials" / "field-forecast.md", DOCS / "images" / "field_forecast.png"
BEGIN, END = "<!-- written by python -m benchmarks.forecast --write -->", "<!-- end of what is written -->"
STARTS, MEMBERS, STEPS = 24, 16, 8
"""Number of present states, of members of each ensemble, and of steps that are rolled out."""
SHOWN = (1, 4, 8)
"""Lead times of the table, in steps."""
PICTURED, PICTURED_MEMBERS = (1, 2, 4, 8), 3
MODEL, SOLVER, PERSISTENCE, CLIMATOLOGY = "model", "solver", "persistence", "climatology"
REFERENCES = (SOLVER, PERSISTENCE, CLIMATOLOGY)
SMALL = (
    "network.width=8", "network.heads=1", "network.multipliers=[1,1]", "training.warmup=1", "training.statistics=16",
    "data.trajectories=20", "data.snapshots=4", "data.spin_up=0.5",
)  # fmt: skip


def words(seed: int, samples: int, options: argparse.Namespace) -> list[str]:
    """Return the arguments of `multisagd train` for one run."""
    found = ["experiment=field_forecast", f"seed={seed}", f"training.samples={samples}", "every.samples=0"]
    found += ["every.validation=0", "report=false", f"engine.threads={options.threads}"]
    return [*found, *SMALL, f"data.cache={options.work}"] if options.shrink > 1 else found


def solved(arguments: list[str]) -> Vorticity:
    """Return the data that arguments of `multisagd train` configure."""
    config = configured([*arguments, "run_dir=none"])
    data = configured_data(Builder().settings(TrainSettings, config, ""), Builder())
    assert isinstance(data, Vorticity)
    return data


def present(data: Vorticity, count: int) -> Tensor:
    """Return states of trajectories that are not among the data, float64 (count, points, points) in 1/s."""
    seeds = [derive(data.seed, "forecast", number) for number in range(count)]
    states = data.solver.initial([derive(seed, "initial") for seed in seeds], data.initial, *data.wavenumbers)
    return data.solver.evolve(states, data.spin_up, [derive(seed, "spin-up") for seed in seeds])


def futures(data: Vorticity, now: Tensor, members: int, steps: int, name: str) -> Tensor:
    """Return `members` futures of each state that the solver draws, (members, starts, steps, y, x) in 1/s."""
    states, parts = now.repeat(members, 1, 1), []
    for step in range(steps):
        seeds = [derive(data.seed, name, number, step) for number in range(len(states))]
        states = data.solver.evolve(states, data.interval, seeds)
        parts.append(resampled(states, data.size, data.solver.largest))
    return torch.stack(parts, dim=1).unflatten(0, (members, len(now)))


def forecasts(folder: Path, now: Tensor, members: int, steps: int, threads: int) -> Tensor:
    """Return the ensembles that a run draws for states (starts, y, x), (members, starts, steps, y, x) in 1/s."""
    builder, runtime = Builder(), Runtime.start(EngineSettings(threads=threads))
    settings = builder.settings(SampleSettings, configuration.load("sample", [f"run_dir={folder}"]), "")
    model = open_model(folder, builder)
    assembly = model.assembly(builder)
    known = builder.build(model.metadata["condition"]["modality"], Modality, "modality")  # type: ignore[type-abstract]
    assert isinstance(known, States)
    denoiser = trained_denoiser(assembly, model.weights("ema", assembly.check_weight_shapes), runtime)
    request = sampling_request(settings, denoiser, model.located, assembly, runtime)
    rollout = Rollout(steps, known.forecast(steps), known.modality.tensor_shape)
    condition = torch.stack([known.encode(each[None, None]) for each in now]).repeat(members, 1, 1, 1)
    x0 = rollout.draw(denoiser, request, 0, Condition(dense=condition), runtime, lambda _: None)
    drawn = torch.stack([rollout.modality.decode(each)[:, 0] for each in x0])
    return drawn.unflatten(0, (members, len(now)))


def judged(members: Tensor, truth: Tensor) -> dict[str, list[float | None]]:
    """Return the scores of an ensemble for each lead time, in 1/s; a single member has no spread."""
    found: dict[str, list[float | None]] = {"crps": [], "error": [], "ratio": []}
    for step in range(truth.shape[1]):
        drawn, observed = members[:, :, step], truth[:, step]
        if len(drawn) == 1:
            error = drawn[0] - observed
            scores: tuple[float | None, ...] = float(error.abs().mean()), float(error.square().mean().sqrt()), None
        else:
            both = spread_and_skill(drawn, observed)
            scores = float(crps(drawn, observed).mean()), both.skill, both.ratio
        for key, value in zip(found, scores, strict=True):
            found[key].append(value)
    return found


def reference(name: str, data: Vorticity, now: Tensor, members: int, steps: int) -> Tensor:
    """Return an ensemble of one of `REFERENCES`, (members, starts, steps, y, x) in 1/s."""
    if name == SOLVER:
        return futures(data, now, members, steps, "solver")
    seen = resampled(now, data.size, data.solver.largest)
    others = [seen] if name == PERSISTENCE else [seen.roll(shift, 0) for shift in range(1, members + 1)]
    return torch.stack(others)[:, :, None].expand(-1, -1, steps, -1, -1)


def measure(arm: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Make and judge one forecast; the folder of a run remains, and is continued if training was interrupted."""
    samples = arm["samples"]
    arguments = words(arm["seed"] or 0, samples, options)
    data = solved(arguments)
    starts, members, steps = (3, 2, 2) if options.shrink > 1 else (STARTS, MEMBERS, STEPS)
    now = present(data, starts)
    truth = futures(data, now, 1, steps, "truth")[0]
    values: dict[str, Any] = {"starts": starts, "members": members, "interval": data.interval}
    if arm["forecast"] != MODEL:
        return values | judged(reference(arm["forecast"], data, now, members, steps), truth)
    folder = run_folder(arm, options)
    train_run(folder, arguments)
    seen = resampled(now, data.size, data.solver.largest)
    drawn = forecasts(folder, seen, members, steps, options.threads)
    values |= judged(drawn, truth) | {"threads": options.threads, "versions": versions()}
    if not options.keep:
        shutil.rmtree(folder)
    return values


def run_folder(arm: Mapping[str, Any], options: argparse.Namespace) -> Path:
    """Return the folder of a run."""
    folder: Path = options.work / f"forecast_{arm['seed']}_{arm['samples']}"
    return folder


def table(path: Path) -> str:
    """Return the table of the results in Markdown, of runs of one length: the longest."""
    found = list(rows(EXPERIMENT, path))
    models = [row for row in found if row["arm"]["forecast"] == MODEL]
    if not models:
        return "Not measured yet: `python -m benchmarks.forecast` trains for a quarter of an hour on two cores."
    samples = max(row["arm"]["samples"] for row in models)
    models = [row for row in models if row["arm"]["samples"] == samples]
    step, count = models[0]["interval"], len(models[0]["crps"])
    leads = [lead for lead in SHOWN if lead <= count]
    heads = [f"{name}, {lead * step:g} s" for lead in leads for name in ("CRPS", "error", "spread/error")]
    lines = [f"| forecast | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    kinds: dict[str, list[dict[str, Any]]] = {f"trained model ({len(models)} seed{'s' * (len(models) > 1)})": models}
    for name in REFERENCES:
        kinds[name] = [row for row in found if row["arm"]["forecast"] == name][-1:]
    for name, own in kinds.items():
        cells = [cell([row[key][lead - 1] for row in own]) for lead in leads for key in ("crps", "error", "ratio")]
        lines += [f"| {name} | {' | '.join(cells)} |"] if own else []
    first = models[0]
    text = (
        f"{samples:,} training samples, {first['starts']} present states, {first['members']} members; in 1/s except "
        "the ratio; mean ± standard deviation over seeds (`python -m benchmarks.forecast`)."
    )
    return "\n".join([*lines, "", text])


def cell(values: Sequence[float | None]) -> str:
    """Return values of several seeds as a cell of the table."""
    known = tuple(value for value in values if value is not None)
    return "–" if not known else spread(known, 3) if len(known) > 1 else f"{mean(known):.3f}"


def picture(options: argparse.Namespace, samples: int, path: Path) -> None:
    """Draw one present, its future, and members of the ensembles of a run and of the solver, over lead times."""
    arm = {"forecast": MODEL, "seed": options.seeds[0], "samples": samples}
    folder = run_folder(arm, options)
    arguments = words(arm["seed"], samples, options)
    data = solved(arguments)
    now, steps = present(data, 1), 2 if options.shrink > 1 else STEPS
    seen = resampled(now, data.size, data.solver.largest)
    truth = futures(data, now, 1, steps, "truth")[0, 0]
    drawn = forecasts(folder, seen, MEMBERS, steps, options.threads)[:, 0]
    solver = futures(data, now, MEMBERS, steps, "solver")[:, 0]
    named = {"truth": truth}
    named |= {f"member {number + 1}": drawn[number] for number in range(PICTURED_MEMBERS)}
    chosen = [lead - 1 for lead in PICTURED if lead <= steps]
    fields = {name: [seen[0], *each[chosen]] for name, each in named.items()}
    spreads = {"spread, model": drawn.std(0)[chosen], "spread, solver": solver.std(0)[chosen]}
    draw(fields, spreads, data, path)


def draw(fields: Mapping[str, Sequence[Tensor]], spreads: Mapping[str, Tensor], data: Vorticity, path: Path) -> None:
    """Draw rows of fields, the present first, and of spreads of ensembles, which begin after the present."""
    columns = len(next(iter(fields.values())))
    figure = Figure(figsize=(1.6 * columns + 1, 1.6 * (len(fields) + len(spreads))), layout="constrained")
    plots = figure.subplots(len(fields) + len(spreads), columns, squeeze=False)
    times = [0.0, *(lead * data.interval for lead in PICTURED)]
    largest = float(torch.stack([each for row in fields.values() for each in row]).abs().max())
    widest = max(float(row.max()) for row in spreads.values())
    for row, (name, values) in zip(plots[: len(fields)], fields.items(), strict=True):
        for plot, value in zip(row, values, strict=True):
            shown = plot.imshow(value.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        row[0].set_ylabel(name)
    figure.colorbar(shown, ax=list(plots[: len(fields), -1]), label="vorticity (1/s)")
    for row, (name, found) in zip(plots[len(fields) :], spreads.items(), strict=True):
        for plot, value in zip(row[1:], found, strict=True):
            shown = plot.imshow(value.numpy(), cmap="viridis", vmin=0, vmax=widest)
        row[0].set_ylabel(name)
        row[0].set_facecolor("0.95")
    figure.colorbar(shown, ax=list(plots[len(fields) :, -1]), label="1/s")
    for plot in plots.flat:
        plot.set(xticks=[], yticks=[])
    for plot, time in zip(plots[0], times, strict=False):
        plot.set_title("present" if not time else f"{time:g} s later")
    figure.savefig(path, dpi=100)


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the table of these results."""
    return between(text, BEGIN, END, table(path))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 24_000, [0, 1, 2], Path("runs/forecasts"), recordings=False)
    parser.add_argument("--picture", action="store_true", help="only draw the picture of the run of the first seed")
    parser.add_argument("--keep", action="store_true", help="keep the folders of runs, which the picture needs")
    options = parsed(parser)
    samples = max(64, options.samples // options.shrink)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    if options.picture:
        picture(options, samples, PICTURE if options.shrink == 1 else options.work / PICTURE.name)
        return
    arms: list[dict[str, Any]] = [{"forecast": name, "seed": None, "samples": None} for name in REFERENCES]
    arms += [{"forecast": MODEL, "seed": seed, "samples": samples} for seed in options.seeds]
    measure_missing(EXPERIMENT, arms, options, lambda arm: measure(arm | {"samples": samples}, options))
    print(table(options.results))


if __name__ == "__main__":
    main()
