"""Training and evaluation of runs for experiments on trained networks, with tensors and without media files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import rows
from modalities.base import Dataset, Modality
from multisagd import DataStatistics, Denoiser, Grid
from multisagd.analysis.profiles import Profile, axis_profile, radial_profile
from multisagd.channel_covariance import check_unmixed
from multisagd.metrics import frechet_distance
from multisagd.metrics.feature_network import FeatureNetwork, read_samples
from multisagd.samplers import Sampler
from multisagd.sampling import Spacing
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.config.resolve import resolved
from recipes.data.dataset import build_dataset
from recipes.data.parts import NOTHING_HELD_OUT, hold_out
from recipes.evaluation.classifier import cached_network, read_dataset
from recipes.evaluation.sets import as_files, evaluation_set, fixed_order, real_data
from recipes.runs.model import TrainedModel, open_model, trained_denoiser
from recipes.runs.run import versions
from recipes.runs.settings import Guidance, TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.sampling.generate import SamplingRequest, generate
from recipes.train import train

LEVELS = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Log-SNRs at which denoising errors are measured."""


def train_run(run_dir: Path, arguments: list[str], config_dir: Path | None = None) -> None:
    """Train as `multisagd train --config-dir=CONFIG_DIR ARGUMENTS run_dir=RUN_DIR` does, resuming interrupted runs."""
    train(configured([*arguments, f"run_dir={run_dir}"], config_dir))


def configured(arguments: list[str], config_dir: Path | None = None) -> Config:
    """Return the configuration of `multisagd train --config-dir=CONFIG_DIR ARGUMENTS`, complete as the command's."""
    return resolved(configuration.load("train", arguments, config_dir))


@dataclass(frozen=True)
class Run:
    """A trained run, the `classes` of its condition, and features of real examples if they have classes.

    `folder` and `allow` are the arguments of `load`.
    """

    folder: Path
    allow: tuple[str, ...]
    denoiser: Denoiser
    statistics: DataStatistics
    classes: tuple[str, ...] | None
    samples_seen: int
    network: FeatureNetwork | None
    reference: Tensor | None
    examples: Dataset
    held_out: Dataset
    runtime: Runtime

    @classmethod
    def load(
        cls, run_dir: Path, reference: int, threads: int | None, allow: tuple[str, ...] = (),
        data: list[str] | None = None,
    ) -> Run:  # fmt: skip
        """Read the averaged weights of a run, and features of some of its training examples.

        `data` contains arguments of `multisagd train` whose data judge the run, if these are not the run's own.
        """
        builder, runtime = Builder(allow), Runtime.start(EngineSettings(threads=threads))
        model = open_model(run_dir, builder)
        read = partial(real_data, run_dir, builder) if data is None else partial(configured_data, data, builder)
        examples, held_out = read()
        if held_out is None:
            raise RecipeError(NOTHING_HELD_OUT)
        network, real = None, None
        if examples.classes is not None:
            # One classifier and one reference for the runs of all seeds, which hold out different examples.
            common = read(seed=0)
            network, _ = cached_network(*common)
            real = read_dataset(network, common[0], fixed_order(common[0], reference), saved=True).features
        denoiser, classes, samples = _read(model, builder, runtime)
        return cls(
            run_dir, allow, denoiser, model.statistics, classes, samples, network, real, examples, held_out, runtime
        )  # fmt: skip

    def at(self, samples: int) -> Run:
        """Return the run after `samples` training samples, of which a checkpoint must exist; all else is the same."""
        builder = Builder(self.allow)
        denoiser, _, seen = _read(open_model(self.folder, builder, checkpoint=samples), builder, self.runtime)
        return replace(self, denoiser=denoiser, samples_seen=seen)

    def labels(self, count: int) -> Tensor | None:
        """Return the classes with which `count` samples are drawn, each equally often."""
        return None if self.classes is None else torch.arange(count) % len(self.classes)

    def draw(
        self, sampler: Sampler, steps: int, seed: int, count: int, times: Tensor | None,
        guidance: Guidance | None = None, spacing: Spacing | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw samples at these times, cycling through the classes.

        Without times, they have this spacing; without both, they are those of `multisagd sample`.
        """
        shape = (self.statistics.mean.shape[0], *self.statistics.grid.shape)
        seeds = derive_many(seed, "sample", 0, range(count))
        request = SamplingRequest(sampler, steps, spacing, times=times, guidance=guidance or Guidance(), batch=500)
        return generate(self.denoiser, request, shape, seeds, self.labels(count), self.runtime)

    def judge(self, x0: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Return the spectrum error (dB), and with classes the Fréchet distance and the fraction recognised.

        The spectrum error is the root mean square over rings of frequency (`radial_profile`) of 10 log10 of generated
        over real power about the mean. As in `multisagd evaluate`, x0 is first clipped and rounded as in files, which
        gives faint noise on a black background a positive mean. The distance depends on the counts. `labels` are the
        classes of x0, by default all classes in turn.
        """
        x0 = as_files(self.examples.modality, x0)
        values = {"spectrum_error_db": self._decibels(x0, radial_profile)}
        if self.network is None or self.reference is None:
            return values
        outputs = read_samples(self.network, x0, self.labels(len(x0)) if labels is None else labels)
        values["frechet_distance"] = frechet_distance(outputs.features, self.reference)
        return values if outputs.labels is None else values | {"recognised": outputs.accuracy()}

    def axis_errors(self, x0: Tensor) -> dict[str, dict[str, float]]:
        """Return the spectrum error along every axis (dB), computed like the radial error of `judge`."""
        names = [axis.name for axis in self.statistics.grid.axes]
        return {"axis_errors_db": {name: self._decibels(x0, partial(axis_profile, name=name)) for name in names}}

    def _decibels(self, x0: Tensor, profile: Callable[[Tensor, Grid], Profile]) -> float:
        grid = self.statistics.grid
        made = DataStatistics.measure([x0], grid)
        ours, theirs = (profile(each.power.mean(0), grid).power for each in (made, self.statistics))
        return float((10 * (ours / theirs).log10()).square().mean().sqrt())

    def denoising_error(self, levels: tuple[float, ...] = LEVELS, count: int = 500) -> dict[str, float]:
        """Return, for each log-SNR, the squared error of x0 on held-out examples relative to the Wiener filter.

        The Wiener filter is the best denoiser of Gaussian data with this mean and power, so above 1 the network has
        learned less than the spectrum. The noise is that of the run: runs with different noise are not comparable.
        """
        process, power = self.denoiser.process, self.statistics.power
        check_unmixed(process.covariance, "the Wiener filter of each channel")
        errors = {}
        for level, error in self.squared_errors(levels, count).items():
            t = process.schedule.time(torch.tensor([float(level)], dtype=torch.float64))
            at = process.coefficients(t, power[None])
            noise_power = at.b.reshape(()) ** 2 * process.covariance.power().cpu().double()
            signal_power = at.a.reshape(()) ** 2 * power
            wiener = self.statistics.grid.mean(power * noise_power / (signal_power + noise_power)).mean()
            errors[level] = error / float(wiener)
        return errors

    def squared_errors(self, levels: tuple[float, ...], count: int = 500, batch: int = 100) -> dict[str, float]:
        """Return, for each log-SNR, the mean squared error of x0 on held-out examples."""
        process, chosen = self.denoiser.process, fixed_order(self.held_out, count)
        seeds = derive_many(0, "denoising error", 0, range(len(chosen)))
        errors = dict.fromkeys((f"{level:g}" for level in levels), 0.0)
        for start in range(0, len(chosen), batch):
            part = slice(start, start + batch)
            x0, labels = self.held_out.batch(chosen[part])[:2]
            x0 = self.runtime.put(x0)
            labels = None if self.classes is None or labels is None else self.runtime.put(labels)
            noise = process.noise(x0.shape, seeds[part])
            for level in levels:
                t = process.schedule.time(torch.tensor([level], dtype=torch.float64)).expand(len(x0)).to(x0.device)
                with torch.no_grad():
                    estimate = self.denoiser(process.add_noise(x0, t, noise), t, labels)
                errors[f"{level:g}"] += float((estimate - x0).square().mean()) * len(x0) / len(chosen)
        return errors

    def conditions(self) -> dict[str, Any]:
        """Return the conditions under which a row was measured."""
        return {
            "samples_seen": self.samples_seen,
            "reference": None if self.reference is None else len(self.reference),
            "versions": versions(),
            "device": self.runtime.describe(),
            "threads": torch.get_num_threads(),
        }


def configured_data(arguments: list[str], builder: Builder, seed: int | None = None) -> tuple[Dataset, Dataset | None]:
    """Return what `real_data` returns for a run of `multisagd train ARGUMENTS`, which need not exist."""
    config = configured([*arguments, "run_dir=none"])
    settings = builder.settings(TrainSettings, config if seed is None else {**config, "seed": seed}, "")
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    parts = hold_out(build_dataset(settings.data, modality, builder), settings, builder)
    return parts.training, evaluation_set(parts, settings.data, modality, builder)


def _read(model: TrainedModel, builder: Builder, runtime: Runtime) -> tuple[Denoiser, tuple[str, ...] | None, int]:
    """Return the denoiser with averaged weights, the classes of its condition, and the number of samples seen."""
    assembly = model.assembly(builder)
    weights = model.weights("ema", assembly.check_weight_shapes)
    return trained_denoiser(assembly, weights, runtime), assembly.classes, weights.samples


def spread(values: tuple[float, ...], digits: int = 2) -> str:
    """Format the mean of some values, and their standard deviation if there is more than one."""
    shown = f"{mean(values):.{digits}f}"
    return f"{shown} ± {stdev(values):.{digits}f}" if len(values) > 1 else shown


def by_steps(experiment: str, run: str, what: str, names: Iterable[str], metrics: tuple[str, str]) -> None:
    """Print two metrics of a run's rows: a line for each name of `what`, a column for each number of steps."""
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for row in rows(experiment):
        if row["arm"]["run"] == run:
            key = (row["arm"][what], row["arm"]["steps"])
            found.setdefault(key, []).append(tuple(row[metric] for metric in metrics))
    steps = sorted({key[1] for key in found})
    table = Table(what, *(f"{count} steps" for count in steps), box=box.SIMPLE, title=f"{run}: {' / '.join(metrics)}")
    for name in names:
        cells = [found.get((name, count), []) for count in steps]
        table.add_row(name, *(" / ".join(spread(values) for values in zip(*cell, strict=True)) for cell in cells))
    Console(width=160).print(table)
