"""The noise of a run: its schedule, the remaining signal, noisy data, and power spectra."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.buckets import reference_bucket
from modalities.reading import UnreadableFilesError
from multisagd import DataStatistics, Flat, Grid, Process, SpectralCovariance, seeds, terminal_snr
from multisagd.analysis.profiles import RADIUS, Profile, profile_of, unit_of
from multisagd.channel_covariance import ChannelCovariance
from multisagd.logs import quiet
from multisagd.metrics.spectral import MIN_RELATIVE_POWER
from recipes.base.commands import setting
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.untrusted import inside
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import build_data, training_split
from recipes.data.extents import FILES, Record
from recipes.data.order import order_of
from recipes.plotting.curves import Axis, Series, draw, number_text, ordered
from recipes.plotting.figures import on_logarithmic_axis
from recipes.reports.page import Block, Budget, Facts, Gallery, Item, Note, Table, failure_note, item
from recipes.reports.run import MALFORMED, Overview, SampleSet, shortened, shown
from recipes.runs.assembly import Assembly, follows_condition, process_notes
from recipes.runs.model import check_config, located
from recipes.runs.run import CORRUPTION, Run
from recipes.runs.settings import Group, ModelSettings, TrainSettings

BANDS = 6
LOG_SNRS = (6.0, 3.0, 0.0, -3.0, -6.0)
"""Log-SNRs of the noisy data shown between the clean data and t = 1."""
FALLBACK_SAMPLES = 2
"""Number of samples shown at increasing noise levels if there are no data."""
BATCH = 32
FOLLOWS = "The noise follows the condition of each example (covariance=…)"
ABOUT = (
    "Zero frequency, the mean of an example, is shown at half the lowest frequency. The noise is scaled to the data's "
    "variance."
)


def _unsupported(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


@dataclass(frozen=True)
class _Measured(Modality):
    """A modality that has only the shape of its data, which suffices to build a process."""

    statistics: DataStatistics
    suffixes = ()
    load = encode = decode = save = _unsupported

    @property
    def channels(self) -> int:
        return self.statistics.mean.shape[0]

    def grid(self) -> Grid:
        return self.statistics.grid


def _assembly(run: Overview, builder: Builder) -> Assembly:
    """Return an assembly that builds a run's process; the run's modality need not be importable or allowed."""
    if run.config is None or run.statistics is None:
        raise RecipeError("the process requires config.yaml and statistics.safetensors, but one of them is missing")
    config: Config = check_config(run.config, run.folder / "config.yaml", builder)
    modality, corruption = _Measured(run.statistics), None
    if (run.folder / CORRUPTION).exists():
        if not inside(run.folder / CORRUPTION, run.folder):
            raise RecipeError(f"{CORRUPTION} is a symbolic link that points outside the run")
        corruption = Run(run.folder).corruption(modality.grid(), config.get("corruption"))
    return Assembly(ModelSettings.of(config, builder), builder, modality, run.statistics, None, None, corruption)


def forward_blocks(
    run: Overview, sets: Sequence[SampleSet], count: int, data: Group, builder: Builder, budget: Budget
) -> list[Block | None]:
    """Return blocks with the schedule, the remaining signal, and examples or samples at increasing noise levels.

    `count` examples are shown, or a few samples if there are no data. `data` are keys of the run's data from the
    command line, such as their current location.
    """
    parts = _assembly(run, builder)
    if follows_condition(parts.settings.covariance):
        note = Note(f"{FOLLOWS}, so no noisy data are shown here; `multisagd inspect` shows some.")
        return [Facts(_described(parts, parts.modality.grid())), note]
    process = parts.process()
    blocks = _process_blocks(parts, process)
    try:
        config = located(run.config or {}, run.metadata, run.folder, data, builder)
        modality = builder.build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
        x0, noun = None, "Example"
        if count:
            try:
                x0 = _examples(run, config, modality, builder, count)
            except MALFORMED as error:
                blocks.append(Note(f"The run's data are not available. {shortened(error)}"))
        if x0 is None and sets:
            x0, noun = sets[0].read(parts.statistics, FALLBACK_SAMPLES), "Sample"
        if x0 is not None:
            return [*blocks, *_strips(x0, modality, process, parts.settings.seed, budget, noun)]
        command = f"multisagd sample {setting('run_dir', run.folder)}"
        return [*blocks, Note("There are no data and no samples to show at increasing noise levels.", command)]
    except MALFORMED as error:
        text = "No noisy data can be shown. A report downloads nothing, not even autoencoders from the Hub."
        return [*blocks, Note(f"{text} {shortened(error)}")]


def _process_blocks(parts: Assembly, process: Process) -> list[Block | None]:
    """Return the blocks that describe a process without data: settings, signal and noise over time, and warnings."""
    grid, schedule = process.grid, process.schedule
    times = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    by_time = [terminal_snr(process, parts.statistics, BANDS, limit=math.inf, time=float(t)) for t in times]
    last = terminal_snr(process, parts.statistics, BANDS, limit=math.inf)
    names = [f"{band.low:.2f}-{band.high:.2f}" if band.high else "0" for band in last]
    series = []
    for number, name in enumerate(names):
        ratios = [_decibels(bands[number].snr) for bands in by_time]
        series.append(Series(f"band {name}", times.tolist(), ratios, ordered(number, len(names)), number))
    own = 10 / math.log(10) * schedule.log_snr(times)
    series.append(Series("schedule", times.tolist(), own.tolist(), "c1", 1))
    chart = draw(
        "snr", "Signal and noise over time", "Ratio of the data power (including the mean) to the noise power, in dB, "
        "in frequency bands (in cycles per sample of every axis; band 0 is the mean of an example). The schedule's "
        "log-SNR refers to data of variance one and white noise.",
        Axis("time t, 0 data to 1 noise"), Axis("dB", level=0.0), series,
    )  # fmt: skip
    rows = [
        (name, number_text(band.snr), number_text(_decibels(band.snr))) for name, band in zip(names, last, strict=True)
    ]
    header = ("band (cycles per sample)", "power ratio", "dB")
    table = Table("Signal left at t = 1, where sampling starts", header, rows)
    denoiser = parts.denoiser(torch.nn.Identity(), process)
    notes = process_notes(process, denoiser, parts.statistics, parts.modality)
    return [Facts(_described(parts, grid)), chart, table, *map(Note, notes)]


def _described(parts: Assembly, grid: Grid) -> list[tuple[str, str]]:
    """Return the configured parts of the process and its axes, as text."""
    given = {
        name: getattr(parts.settings, name) for name in ("spectrum", "covariance", "schedule", "process", "padding")
    }
    groups = {name: node for name, node in given.items() if node and (name != "covariance" or follows_condition(node))}
    described = [(name, shown(_in_words(node))) for name, node in groups.items()]
    return [*described, ("axes", "; ".join(map(str, grid.axes)))]


def _in_words(node: Any) -> str:
    """Return the description of a configured object: its class, and its settings other than null."""
    if not isinstance(node, Mapping):
        return shown(node)
    name = str(node.get("_target_", "")).rsplit(".", 1)[-1]
    given = [(key, value) for key, value in node.items() if key != "_target_" and value is not None]
    settings = ", ".join(f"{key} {_in_words(value)}" for key, value in given)
    return f"{name} ({settings})" if name and settings else name or settings


def _examples(run: Overview, config: Config, modality: Modality, builder: Builder, count: int) -> Tensor:
    """Return examples of the data, chosen by the run's seed, without augmentation, `(count, channels, *grid)`.

    Nothing is fetched, because a run may name any address. Raises RecipeError if the examples cannot be read.
    """
    settings = builder.settings(TrainSettings, config, "")
    known = Record(run.folder / FILES[0])
    whole = training_split(build_data(settings.data, settings.corruption, settings.seed, modality, builder, known))
    dataset = reference_bucket(whole) or whole
    with as_recipe_error(UnreadableFilesError):
        return dataset.batch(order_of(dataset, settings.seed).indices(0, min(count, len(dataset)))).x0


def _strips(x0: Tensor, modality: Modality, process: Process, seed: int, budget: Budget, noun: str) -> list[Block]:
    """Return data `(count, channels, *grid)` at increasing noise levels, with the run's noise and with white noise.

    Both noises use the same random numbers. Errors of decoding and writing are raised.
    """
    power = process.covariance.power()
    processes = {"the run's noise": process}
    mixed = isinstance(process.covariance, ChannelCovariance) and process.covariance.mixed
    if process.modulation is not None or mixed or float(power.max() - power.min()) > 1e-9 * float(power.max()):
        processes["white noise"] = Process(process.schedule, SpectralCovariance(Flat(), process.grid))
    noise_seeds = seeds.derive_many(seed, "report", 0, range(len(x0)))
    blocks: list[Block] = []
    for number, each in enumerate(x0):
        for name, forward in processes.items():
            noise = forward.noise(each[None].shape, noise_seeds[number : number + 1])
            items = _strip(each[None], noise, modality, forward, budget)
            blocks.append(Gallery(f"{noun} {number + 1}, {name}", items, strip=True))
    return blocks


def _strip(x0: Tensor, noise: Tensor, modality: Modality, process: Process, budget: Budget) -> list[Item]:
    """Return one example `(1, channels, *grid)` without noise, and at increasing noise levels."""
    names = ["clean", *(f"log-SNR {log_snr:.0f}" for log_snr in LOG_SNRS), "t = 1"]
    levels = process.schedule.time(torch.tensor(LOG_SNRS, dtype=torch.float64))
    times = torch.cat([levels.new_zeros(1), levels, levels.new_ones(1)])
    items = []
    # No warning about values beyond full scale, because noise always exceeds it.
    with tempfile.TemporaryDirectory() as folder, quiet("multisagd"):
        for number, (name, t) in enumerate(zip(names, times, strict=True)):
            noisy = process.in_range(x0, t[None], noise) if number else x0
            path = Path(folder) / f"{number}.png"
            modality.save_grid([modality.decode(noisy[0])], path)
            if made := item(name, path, Path(folder), budget, f"t = {float(t):.2f}" if number else ""):
                items.append(made)
    return items


def _decibels(ratio: float) -> float:
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else math.nan


def spectrum_blocks(run: Overview, sets: Sequence[SampleSet], builder: Builder) -> list[Block | None]:
    """Return the charts of the power of data, noise and samples, where available."""
    if run.statistics is None:
        return [Note("The spectrum of the data is missing; it is measured at the beginning of training.")]
    powers: dict[str, Tensor] = {"data": run.statistics.power}
    notes: list[Block] = []
    try:
        parts = _assembly(run, builder)
        if follows_condition(parts.settings.covariance):
            notes.append(Note(f"{FOLLOWS}, so its power is not shown."))
        else:
            powers["noise"] = run.statistics.sigma_data**2 * parts.process().covariance.power()
    except MALFORMED as error:
        notes.append(failure_note(error))
    of_samples, problems = sample_powers(run.statistics, sets[:2])
    if not sets:
        command = f"multisagd sample {setting('run_dir', run.folder)} count=256"
        problems.append(Note("There are no samples yet whose spectrum could be shown.", command))
    return [*spectrum_charts(powers | of_samples, run.statistics.grid), *notes, *problems]


def sample_powers(data: DataStatistics, sets: Sequence[SampleSet]) -> tuple[dict[str, Tensor], list[Block]]:
    """Return the power of each set of samples about its mean, by name, and notes on sets that could not be measured."""
    powers: dict[str, Tensor] = {}
    problems: list[Block] = []
    for each in sets:
        try:
            x0 = each.read(data)
            if len(x0) < 2:
                raise ValueError("the power about the mean cannot be measured with one sample: draw more samples")
            name = f"samples {len(powers) + 1}: {len(x0)}, {each.sampler}"
            powers[name] = DataStatistics.measure(x0.split(BATCH), data.grid).power
        except MALFORMED as error:
            problems.append(failure_note(error))
    return powers, problems


def spectrum_charts(powers: Mapping[str, Tensor], grid: Grid, name: str = "spectrum") -> list[Block | None]:
    """Return a radially averaged chart and one along every axis, with a curve for each power `(..., *half_shape)`.

    The first power is the data's; powers with names that begin with "samples" are also shown relative to it in dB.
    """
    blocks: list[Block | None] = []
    explanation = "Ratio of the samples' power to the data's power, in dB: 0 means equal."
    for index, along in enumerate((RADIUS, *grid.names) if grid.dimensions > 1 else grid.names):
        where = ", radially averaged" if along == RADIUS else f" along {along}"
        x = Axis(unit_of(along, grid), "log")
        curves, ratios, data = [], [], None
        for number, (key, power) in enumerate(powers.items()):
            profile = profile_of(power, grid, along)
            data = profile.power if data is None else data
            curves.append(_series(key, number, profile, profile.power, profile.power))
            if key.startswith("samples"):
                decibels = 10 * (profile.power / data).log10()
                ratios.append(_series(key, number, profile, decibels, data))
        blocks.append(draw(f"{name}-{index}", f"Power{where}", ABOUT, x, Axis("power", "log"), curves))
        title = f"Samples relative to data{where}"
        blocks.append(draw(f"{name}-{index}-ratio", title, explanation, x, Axis("dB", level=0.0), ratios))
    return blocks


def _series(key: str, number: int, profile: Profile, values: Tensor, power: Tensor) -> Series:
    """Return values as a function of frequency, omitting values that are indistinguishable from rounding errors."""
    reliable = values.where(power > MIN_RELATIVE_POWER * power.max(), math.nan)
    return Series(key, on_logarithmic_axis(profile.frequency).tolist(), reliable.tolist(), f"c{number % 8}", number)
