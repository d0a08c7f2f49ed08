"""Measure the rows of the peers: their samples are evaluated like the arms of `benchmarks.experiments`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.experiments.design import Experiment, experiments, run_folder
from benchmarks.experiments.runner import METRICS, PERMISSION, judge, measure
from benchmarks.peers.arms import EXPERIMENT, PEERS, SOLVERS, WHITE, peers, step_noises
from benchmarks.peers.diffusers_loop import Peer, draw
from benchmarks.peers.setting import Setting, trained_peer
from benchmarks.peers.speed import compare_speed
from benchmarks.peers.step_noise import Progress, measure_progress
from benchmarks.rows import append, missing
from benchmarks.runs import Run, train_run
from multisagd import time_steps
from multisagd.seeds import derive_many

SPEED = "peers_speed"
TRAJECTORIES = 512
"""Number of trajectories on which the progress of a model is measured."""


@dataclass(frozen=True)
class White:
    """The white run of one seed, whose initial weights, data and classifier the others share."""

    experiment: Experiment
    run: Run
    seed: int

    @classmethod
    def load(cls, experiment: Experiment, options: argparse.Namespace, seed: int) -> White:
        """Train it if it does not exist, and read it."""
        arguments = experiment.arguments(WHITE, seed, options.size)
        run_dir = options.work / run_folder(arguments)
        train_run(run_dir, [*arguments, f"engine.threads={options.threads}", *PERMISSION])
        run = Run.load(run_dir, experiment.reference, options.threads)
        return cls(experiment, run, seed)

    def seeds(self, count: int) -> list[int]:
        """Return the seeds of samples, as in `Run.draw`."""
        return derive_many(self.seed, "sample", 0, range(count))

    def judged(self, x0: Tensor, steps: int) -> dict[str, Any]:
        """Compare samples with clean examples, like the runner."""
        return judge(self.experiment, self.run, x0, None) | {"count": len(x0), "steps": steps}


def measure_all(options: argparse.Namespace, path: Path) -> None:
    """Measure the missing rows of the requested parts."""
    filed = experiments()[EXPERIMENT]
    if "config" in options.parts:
        measure(filed, options, list(filed.arms), path)
    if "diffusers" in options.parts:
        measure_diffusers(filed, options, path)
    if "step_noise" in options.parts:
        measure_step_noise(filed, options, path)
    if "speed" in options.parts:
        measure_speed(filed, options, path)


def measure_diffusers(filed: Experiment, options: argparse.Namespace, path: Path) -> None:
    """Train the diffusers loops, and evaluate samples of its samplers, which start from the same noise as ours."""
    for seed in options.seeds:
        wanted = [_arm(f"{name}, {solver}", options, seed) for name in PEERS for solver in SOLVERS]
        left = {row["arm"] for row in missing(EXPERIMENT, wanted, path)}
        if not left:
            continue
        white = White.load(filed, options, seed)
        arguments = filed.arguments(WHITE, seed, options.size)
        setting = Setting.of(arguments, options.threads)
        for name, peer in peers(setting.settings.training).items():
            solvers = {each: made for each, made in peer.samplers().items() if f"{name}, {each}" in left}
            if not solvers:
                continue
            network = trained_peer(setting, peer, options.work / peer_folder(arguments, peer) / "ema.safetensors")
            shape = (filed.count, *setting.data.batch([0]).x0.shape[1:])
            initial = white.run.denoiser.process.noise(shape, white.seeds(filed.count))
            for each, scheduler in solvers.items():
                x0 = draw(network, scheduler, initial, white.run.labels(filed.count), filed.steps)
                _append(_arm(f"{name}, {each}", options, seed), white.judged(x0, filed.steps), path)


def measure_step_noise(filed: Experiment, options: argparse.Namespace, path: Path) -> None:
    """Evaluate samples of a white run with white and with coloured noise in the steps."""
    for seed in options.seeds:
        left = missing(EXPERIMENT, [_arm(name, options, seed) for name in step_noises()], path)
        if not left:
            continue
        white = White.load(filed, options, seed)
        progress = white_progress(white.run, seed)
        for arm in left:
            way = step_noises()[arm["arm"]]
            times = time_steps(white.run.denoiser.process.schedule, way.steps)
            x0 = white.run.draw(way.sampler(progress), way.steps, seed, filed.count, times)
            _append(arm, white.judged(x0, way.steps), path)


def white_progress(run: Run, seed: int) -> Progress:
    """Return the progress of a run over its noise levels, measured on trajectories that are not in the table."""
    seeds = derive_many(seed, "progress", 0, range(TRAJECTORIES))
    labels = run.labels(TRAJECTORIES)
    condition = None if labels is None else run.runtime.put(labels)
    return measure_progress(run.denoiser, run.statistics.mean.shape[0], seeds, condition)


def measure_speed(filed: Experiment, options: argparse.Namespace, path: Path) -> None:
    """Time our steps and the diffusers steps, once for each number of threads."""
    for arm in missing(SPEED, [{"size": options.size, "threads": options.threads}], path):
        arguments = filed.arguments(WHITE, 0, options.size)
        coloured = Setting.of([*arguments, "spectrum=power_law"], options.threads)
        values = compare_speed(Setting.of(arguments, options.threads), coloured, options.repeats)
        append(SPEED, arm, values, path)


def peer_folder(arguments: list[str], peer: Peer) -> str:
    """Return the folder of a peer's weights, named after everything on which they depend."""
    return f"diffusers_{run_folder([*arguments, repr(peer)])}"


def _arm(name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {"arm": name, "size": options.size, "seed": seed}


def _append(arm: dict[str, Any], values: dict[str, Any], path: Path) -> None:
    append(EXPERIMENT, arm, values, path)
    shown = {key: round(values[key], 3) for key in METRICS if key in values}
    print(f"{EXPERIMENT}: {arm['arm']}, seed {arm['seed']}: {shown}", flush=True)
