"""The forward process of a run: its schedule, what is left of the data in every band, and data as it noises them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.reading import UnreadableFilesError
from multisagd import DataStatistics, Flat, Grid, Process, SpectralCovariance, seeds, terminal_snr
from multisagd.logs import quiet
from recipes.base.errors import RecipeError
from recipes.base.untrusted import inside
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import build_data
from recipes.data.order import Order
from recipes.plotting.curves import Axis, Series, draw, ordered, told
from recipes.reports.blocks import Block, Facts, Gallery, Item, Note, Table
from recipes.reports.defaults import shown
from recipes.reports.media import Budget, item
from recipes.reports.run import Run
from recipes.runs.assembly import Assembly, process_notes
from recipes.runs.model import check_config
from recipes.runs.run import CORRUPTION, read_corruption
from recipes.runs.settings import ModelSettings, TrainSettings

BANDS = 6
LOG_SNRS = (6.0, 3.0, 0.0, -3.0, -6.0)
"""Log-SNRs at which data are shown, between the data themselves and t = 1."""


def _not_at_hand(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


@dataclass(frozen=True)
class Measured(Modality):
    """What is known of a medium from the statistics of its data: enough for a process, without reading any media."""

    statistics: DataStatistics
    suffixes = ()
    load = encode = decode = save = _not_at_hand

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.statistics.mean.shape[0]

    def grid(self) -> Grid:
        """Return the grid of the statistics."""
        return self.statistics.grid


def assembly(run: Run, builder: Builder) -> Assembly:
    """Return what builds a run's process; its medium need not be there, nor be allowed.

    Raises:
        RecipeError: if the configuration or the statistics are missing, or not what they should be.
    """
    if run.config is None or run.statistics is None:
        raise RecipeError("config.yaml and statistics.safetensors say what the process is, and are not both there")
    config: Config = check_config(run.config, run.folder / "config.yaml", builder)
    modality, kept = Measured(run.statistics), None
    if (run.folder / CORRUPTION).exists():
        if not inside(run.folder / CORRUPTION, run.folder):
            raise RecipeError(f"{CORRUPTION} is a link to somewhere else")
        kept = read_corruption(run.folder / CORRUPTION, modality.grid(), config.get("corruption"))
    return Assembly(ModelSettings.of(config, builder), builder, modality, run.statistics, None, None, kept)


def process_blocks(parts: Assembly, process: Process) -> list[Block]:
    """Return what there is to say of a process without data: settings, signal and noise over time, doubts."""
    grid, schedule = process.grid, process.schedule
    times = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    by_time = [terminal_snr(process, parts.statistics, BANDS, limit=math.inf, time=float(t)) for t in times]
    last = terminal_snr(process, parts.statistics, BANDS, limit=math.inf)
    names = [f"{band.low:.2f}-{band.high:.2f}" if band.high else "0" for band in last]
    series = []
    for place, name in enumerate(names):
        ratios = [_decibels(bands[place].snr) for bands in by_time]
        series.append(Series(f"band {name}", times.tolist(), ratios, ordered(place, len(names)), place))
    own = 10 / math.log(10) * schedule.log_snr(times)
    series.append(Series("schedule", times.tolist(), own.tolist(), "c1", 1))
    chart = draw(
        "snr", "Signal and noise over time", "Decibels of the data's power, their mean included, over the noise's, in "
        "bands of frequency (cycles per sample of every axis, 0 is the mean of a datum). The schedule's own log-SNR is "
        "that of data of variance one and white noise.",
        Axis("time t, 0 data to 1 noise"), Axis("dB", level=0.0), series,
    )  # fmt: skip
    groups = [group for group in ("spectrum", "schedule", "process", "padding") if getattr(parts.settings, group)]
    described = [(group, shown(in_words(getattr(parts.settings, group)))) for group in groups]
    described.append(("axes", "; ".join(f"{a.name}: {a.size} × {a.spacing:.4g} {a.unit}" for a in grid.axes)))
    rows = [(name, told(band.snr), told(_decibels(band.snr))) for name, band in zip(names, last, strict=True)]
    blocks: list[Block] = [Facts(described)]
    blocks += [chart] if chart is not None else []
    blocks.append(
        Table("Signal left at t = 1, where sampling starts", ("band (cycles per sample)", "power ratio", "dB"), rows)
    )
    denoiser = parts.denoiser(torch.nn.Identity(), process)
    return blocks + [Note(each) for each in process_notes(process, denoiser, parts.statistics)]


def in_words(node: Any) -> str:
    """Return the description of an object as a text: its class, and the settings that are not null."""
    if not isinstance(node, Mapping):
        return shown(node)
    name = str(node.get("_target_", "")).rsplit(".", 1)[-1]
    given = [(key, value) for key, value in node.items() if key != "_target_" and value is not None]
    settings = ", ".join(f"{key} {in_words(value)}" for key, value in given)
    return f"{name} ({settings})" if name and settings else name or settings


def examples(config: Config, modality: Modality, builder: Builder, count: int) -> Tensor:
    """Return examples of the data, chosen by the run's seed, without augmentation, `(count, channels, *grid)`.

    Nothing is fetched: a run may name addresses of anybody.

    Raises:
        RecipeError: if they lie elsewhere than on this machine, or cannot be read.
    """
    settings = builder.settings(TrainSettings, config, "")
    dataset = build_data(settings.data, settings.corruption, settings.seed, modality, builder)
    try:
        return dataset.batch(Order(len(dataset), settings.seed).indices(0, min(count, len(dataset)))).x0
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error


def strips(x0: Tensor, modality: Modality, process: Process, seed: int, budget: Budget, of: str) -> list[Block]:
    """Return data `(count, channels, *grid)` at growing noise, as the run noises them and as white noise does.

    Both start from the same random numbers. Raises what decoding and writing them raises.
    """
    power = process.covariance.power()
    both = {"the run's noise": process}
    if process.modulation is not None or float(power.max() - power.min()) > 1e-9 * float(power.max()):
        both["white noise"] = Process(process.schedule, SpectralCovariance(Flat(), process.grid))
    drawn = seeds.derive_many(seed, "report", 0, range(len(x0)))
    blocks: list[Block] = []
    for number, each in enumerate(x0):
        for name, noising in both.items():
            noise = noising.noise(each[None].shape, drawn[number : number + 1])
            items = _strip(each[None], noise, modality, noising, budget)
            blocks.append(Gallery(f"{of} {number + 1}, {name}", items, strip=True))
    return blocks


def _strip(x0: Tensor, noise: Tensor, modality: Modality, process: Process, budget: Budget) -> list[Item]:
    schedule, found = process.schedule, []
    steps: list[tuple[str, Tensor]] = [("as it is", torch.zeros(1, dtype=torch.float64))]
    levels = schedule.time(torch.tensor(LOG_SNRS, dtype=torch.float64))
    steps += [(f"log-SNR {log_snr:.0f}", t[None]) for log_snr, t in zip(LOG_SNRS, levels, strict=True)]
    steps.append(("t = 1", torch.ones(1, dtype=torch.float64)))
    # That some noise is beyond full scale is no news: it always is.
    with tempfile.TemporaryDirectory() as folder, quiet("multisagd"):
        for place, (name, t) in enumerate(steps):
            noised = process.in_range(x0, t, noise) if place else x0
            path = Path(folder) / f"{place}.png"
            modality.save_grid([modality.decode(noised[0])], path)
            shown_as = item(name, path, Path(folder), budget, f"t = {float(t):.2f}" if place else "")
            found += [] if shown_as is None else [shown_as]
    return found


def _decibels(ratio: float) -> float:
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else math.nan
