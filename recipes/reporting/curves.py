"""What training wrote about itself, as charts: losses, the same by noise level and by band, gradients and speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from recipes.reporting.blocks import Block, Chart, Note
from recipes.reporting.charts import Axis, Series, draw, ordered
from recipes.reporting.run import Run
from recipes.reporting.samples import spread
from recipes.runs.metrics import Entry, inner, number

SEEN = Axis("samples seen")
BANDS = (
    "Squared error of the estimated data over the data's own power in a band: 0 is perfect, 1 is no better than the "
    "mean of the data. Bands are in cycles per sample of every axis; 0 is the mean of a datum. "
)
VALIDATIONS = 4
"""Validations of which the loss is drawn over noise levels."""

MOST_LEVELS = 24
"""Noise levels or bands that are drawn, at most."""


def loss_charts(run: Run) -> list[Block]:
    """Return the charts of a run's losses, and what is missing of them."""
    training = over_samples("training", run.train, loss, "c0")
    validation = over_samples("validation", run.validation, loss, "c1", 1)
    norm = over_samples("gradient norm", run.train, lambda entry: number(entry.get("gradient_norm")), "c0")
    blocks: list[Block | None] = [
        draw(
            "loss", "Loss", "Training loss is the average since the entry before; validation is of held-out data, at "
            "noise levels, noise and examples that are always the same, by averaged weights.",
            SEEN, Axis("loss", "log"), [training, validation],
        ),
        _over_log_snr(run), _levels(run), _bands(run), _last(run),
        draw(
            "gradient", "Gradient norm", "Of a step, before clipping, averaged since the entry before.", SEEN,
            Axis("norm", "log"), [norm],
        ),
        _speed(run),
    ]  # fmt: skip
    found: list[Block] = [block for block in blocks if block is not None]
    if not run.train:
        found.insert(0, Note("No training step has been logged yet: the first comes after every.log samples."))
    elif not run.validation:
        missing = "so there are no losses by noise level and band"
        why = f"No validation yet, {missing}: it comes every every.validation samples, and once at the end."
        if run.facts.get("held_out") == 0:
            why = f"Nothing was held out of training to validate on, {missing}."
        found.append(Note(why))
    if run.metrics.thinned or run.timing.thinned:
        found.append(Note("There are more entries than curves can show: evenly spaced ones are drawn, and the last."))
    return found


def over_samples(
    name: str, entries: Sequence[Entry], value: Callable[[Entry], float], colour: str, dashes: int = 0
) -> Series:
    """Return one number of every entry over samples seen."""
    return Series(name, [number(e.get("samples")) for e in entries], [value(e) for e in entries], colour, dashes)


def loss(entry: Entry) -> float:
    """Return the loss of an entry."""
    return number(entry.get("loss"))


def band_error(entry: Entry, band: str) -> float:
    """Return the relative error in one band, averaged over the noise levels of a validation."""
    found = [number(bands.get(band)) for bands in inner(entry, "band").values() if isinstance(bands, dict)]
    return sum(found) / len(found) if found else math.nan


def _over_log_snr(run: Run) -> Chart | None:
    """Return the loss over noise levels of a few validations, the first and the last among them."""
    chosen = [run.validation[place] for place in spread(range(len(run.validation)), VALIDATIONS)]
    series = []
    for place, entry in enumerate(chosen):
        levels = [inner(entry, "level", name) for name in inner(entry, "level")]
        points = sorted((number(each.get("log_snr")), number(each.get("loss"))) for each in levels)
        name = f"after {number(entry['samples']):,.0f}"
        colour = ordered(place, len(chosen))
        series.append(Series(name, [x for x, _ in points], [y for _, y in points], colour, place))
    return draw(
        "log-snr", "Validation loss over noise", "The same loss by the log-SNR of the noise level: high is little "
        "noise. Each curve is one validation.", Axis("log-SNR"), Axis("loss", "log"), series,
    )  # fmt: skip


def _levels(run: Run) -> Chart | None:
    if len(run.validation) < 2:
        return None
    names = list(inner(run.validation[-1], "level"))[:MOST_LEVELS] if run.validation else []
    last = run.validation[-1] if run.validation else {}

    def at(name: str) -> Callable[[Entry], float]:
        return lambda entry: number(inner(entry, "level", name).get("loss"))

    return draw(
        "levels", "Validation loss by noise level", "Each curve is one time of the process, and its log-SNR: high is "
        "little noise.", SEEN, Axis("loss", "log"),
        [
            over_samples(
                f"{name}, log-SNR {number(inner(last, 'level', name).get('log_snr')):.1f}", run.validation, at(name),
                ordered(place, len(names)), place,
            )
            for place, name in enumerate(names)
        ],
    )  # fmt: skip


def _bands(run: Run) -> Chart | None:
    if len(run.validation) < 2:
        return None
    names = _band_names(run)

    def at(name: str) -> Callable[[Entry], float]:
        return lambda entry: band_error(entry, name)

    series = [
        over_samples(name, run.validation, at(name), ordered(place, len(names)), place)
        for place, name in enumerate(names)
    ]
    about = f"{BANDS}The average over noise levels."
    return draw("bands", "Validation error by band of frequency", about, SEEN, Axis("error / power", "log"), series)


def _last(run: Run) -> Chart | None:
    if not run.validation:
        return None
    entry, names = run.validation[-1], _band_names(run)
    levels = list(inner(entry, "band"))[:MOST_LEVELS]
    series = []
    for place, level in enumerate(levels):
        errors = [number(inner(entry, "band", level).get(name)) for name in names]
        series.append(Series(level, range(len(names)), errors, ordered(place, len(levels)), place))
    about = f"{BANDS}After {number(entry['samples']):,.0f} samples."
    x, y = Axis("band (cycles per sample)", ticks=names), Axis("error / power", "log", level=1.0)
    return draw("last", "Last validation: error by band at each noise level", about, x, y, series)


def _band_names(run: Run) -> list[str]:
    levels = inner(run.validation[-1], "band") if run.validation else {}
    first = next((bands for bands in levels.values() if isinstance(bands, dict)), {})
    return list(first)[:MOST_LEVELS]


def _speed(run: Run) -> Chart | None:
    entries = run.timing.of("timing")
    return draw(
        "speed", "Speed", "Samples per second between two entries of the log, without validation and pictures.", SEEN,
        Axis("samples per second", level=None),
        [over_samples("samples per second", entries, lambda e: number(e.get("samples_per_second")), "c0")],
    )  # fmt: skip
