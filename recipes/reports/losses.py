"""Charts of training: losses, losses by noise level and by band, gradients and speed."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from recipes.plotting.curves import Axis, Chart, Series, draw, ordered
from recipes.reports.page import Block, Note
from recipes.reports.run import Overview
from recipes.reports.samples import evenly_spaced
from recipes.runs.metrics import Entry, inner, number

SEEN = Axis("samples seen")
BANDS = (
    "Squared error of the estimated data relative to the data's power in a band: 0 is perfect, 1 is no better than the "
    "mean of the data. Bands are in cycles per sample of every axis; band 0 is the mean of an example. "
)
VALIDATIONS = 4
"""Maximum number of validations plotted against the noise level."""
MAX_LEVELS = 24
"""Maximum number of noise levels or bands plotted."""


def loss_charts(run: Overview) -> list[Block | None]:
    """Return the charts of a run's losses, and notes on missing charts."""
    training = over_samples("training", run.train, loss, "c0")
    validation = over_samples("validation", run.validation, loss, "c1", 1)
    norm = over_samples("gradient norm", run.train, lambda entry: number(entry.get("gradient_norm")), "c0")
    speed = over_samples("samples per second", run.timing, lambda entry: number(entry.get("samples_per_second")), "c0")
    blocks: list[Block | None] = [
        draw(
            "loss", "Loss", "The training loss is averaged since the previous entry. Validation uses averaged weights "
            "and held-out data, with fixed examples, noise levels and noise.",
            SEEN, Axis("loss", "log"), [training, validation],
        ),
        draw(
            "score", "Score", "The score of each validation (validation.score); the lowest selects the best "
            "checkpoint.", SEEN, Axis("score"), [over_samples("score", _scored(run.validation), _score, "c1", 1)],
        ),
        *_validation_charts(run),
        draw(
            "gradient", "Gradient norm", "Norm per step before clipping, averaged since the previous entry.", SEEN,
            Axis("norm", "log"), [norm],
        ),
        draw(
            "speed", "Speed", "Samples per second between two entries of the log, excluding validation and sampling.",
            SEEN, Axis("samples per second"), [speed],
        ),
    ]  # fmt: skip
    if not run.train:
        blocks.insert(0, Note("No training step has been logged yet: the first entry follows after every.log samples."))
    elif not run.validation:
        missing = "so there are no losses by noise level and band"
        reason = (
            f"There was no validation yet, {missing}: validation runs after every.validation samples and at the end."
        )
        if run.metadata.get("held_out") == 0:
            reason = f"No data were held out for validation, {missing}."
        blocks.append(Note(reason))
    if run.subsampled:
        blocks.append(Note("There are too many entries to show, so only evenly spaced entries and the last are drawn."))
    return blocks


def over_samples(
    name: str, entries: Sequence[Entry], value: Callable[[Entry], float], colour: str, dashes: int = 0
) -> Series:
    """Return a series with one value of every entry, as a function of the number of samples seen."""
    return Series(name, [number(e.get("samples")) for e in entries], [value(e) for e in entries], colour, dashes)


def loss(entry: Entry) -> float:
    """Return the loss of an entry."""
    return number(entry.get("loss"))


def _score(entry: Entry) -> float:
    """Return the score of a validation entry."""
    return number(entry.get("score"))


def _scored(entries: Sequence[Entry]) -> list[Entry]:
    """Return the validation entries whose score is not the loss, which has its own chart."""
    return [entry for entry in entries if math.isfinite(_score(entry)) and _score(entry) != loss(entry)]


def band_error(band: str, entry: Entry) -> float:
    """Return the relative error in one band, averaged over the noise levels of a validation entry."""
    errors = [number(bands.get(band)) for bands in inner(entry, "band").values() if isinstance(bands, dict)]
    return sum(errors) / len(errors) if errors else math.nan


def _level(name: str, entry: Entry, key: str = "loss") -> float:
    """Return a number that a validation entry states for one noise level."""
    return number(inner(entry, "level", name).get(key))


def _validation_charts(run: Overview) -> list[Chart | None]:
    """Return charts of the validation loss and error: by noise level, over training, and of the last validation."""
    if not run.validation:
        return []
    last = run.validation[-1]
    of_bands = inner(last, "band")
    bands = list(next((each for each in of_bands.values() if isinstance(each, dict)), {}))[:MAX_LEVELS]
    by_noise = []
    indices = evenly_spaced(range(len(run.validation)), VALIDATIONS)
    for curve, entry in enumerate(run.validation[index] for index in indices):
        points = dict(sorted((_level(name, entry, "log_snr"), _level(name, entry)) for name in inner(entry, "level")))
        name = f"after {number(entry['samples']):,.0f}"
        by_noise.append(Series(name, list(points), list(points.values()), ordered(curve, len(indices)), curve))
    levels = {
        f"{name}, log-SNR {_level(name, last, 'log_snr'):.1f}": partial(_level, name)
        for name in list(inner(last, "level"))[:MAX_LEVELS]
    }
    errors = [
        Series(level, range(len(bands)), [number(inner(last, "band", level).get(name)) for name in bands],
               ordered(curve, min(len(of_bands), MAX_LEVELS)), curve)
        for curve, level in enumerate(list(of_bands)[:MAX_LEVELS])
    ]  # fmt: skip
    return [
        draw(
            "log-snr", "Validation loss against log-SNR", "A high log-SNR means little noise. Each curve is one "
            "validation run.", Axis("log-SNR"), Axis("loss", "log"), by_noise,
        ),
        _over_training(
            run, "levels", "Validation loss by noise level", "Each curve is for one time of the process, labelled with "
            "its log-SNR; a high log-SNR means little noise.", "loss", levels,
        ),
        _over_training(
            run, "bands", "Validation error by frequency band", f"{BANDS}Averaged over noise levels.",
            "error / power", {name: partial(band_error, name) for name in bands},
        ),
        draw(
            "last", "Last validation: error by band at each noise level",
            f"{BANDS}After {number(last['samples']):,.0f} samples.", Axis("band (cycles per sample)", ticks=bands),
            Axis("error / power", "log", level=1.0), errors,
        ),
    ]  # fmt: skip


def _over_training(
    run: Overview, name: str, title: str, description: str, unit: str, curves: Mapping[str, Callable[[Entry], float]]
) -> Chart | None:
    """Return a chart with values of every validation entry, or None if there are fewer than two entries."""
    if len(run.validation) < 2:
        return None
    series = [
        over_samples(label, run.validation, value, ordered(curve, len(curves)), curve)
        for curve, (label, value) in enumerate(curves.items())
    ]
    return draw(name, title, description, SEEN, Axis(unit, "log"), series)
