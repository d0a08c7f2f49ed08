"""Kinds of metrics that look at frequencies: errors of power in decibels, and tests of one band at a time."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from multisagd.metrics.discriminate import band_powers, discriminability
from multisagd.metrics.spectral import BANDS, RADIUS, Curves, decibel_errors, decibels, error
from recipes.evaluation import plots
from recipes.evaluation.distances import spread
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import Task


def spectrum(task: Task) -> Result:
    """Compare power spectra in decibels: over the radius, along every axis, in bands."""
    grid = task.modality.grid()
    made, real = task.curves
    halves = task.halves
    one, other = halves[0]
    rows = [_rms(name, made[name].values, real[name].values, task) for name in made if name != BANDS]
    ours, theirs = made[BANDS].values, real[BANDS].values
    signed = decibels(ours, theirs[one])
    signed_error = decibel_errors(ours, theirs[one])
    floors_by_band = torch.stack([decibels(theirs[b], theirs[a]) for a, b in halves])
    for number, edges in enumerate(made[BANDS].edges):
        floor = spread(floors_by_band[:, number].tolist())
        name = f"band {plots.band_name(*edges)}"
        rows.append(Row(name, float(signed[number]), float(signed_error[number]), *floor, unit="dB"))

    def half_of(number: Tensor) -> dict[str, Curves]:
        return {name: Curves(each.frequency, each.values[number], each.edges) for name, each in real.items()}

    plots.draw_spectra(made, half_of(one), half_of(other), grid, task.picture("evaluate_spectra.png"))
    curves = {
        name: {
            "frequency": made[name].frequency.tolist(),
            "decibels": decibels(made[name].values, real[name].values[one]).tolist(),
            "samples": made[name].values.mean(0).tolist(),
            "data": real[name].values.mean(0).tolist(),
        }
        for name in made
    }
    return Result(tuple(rows), {"curves": curves})


def _rms(name: str, ours: Tensor, theirs: Tensor, task: Task) -> Row:
    """Return the row of one curve's error, from the curves of the samples and of all real examples."""
    floors = [error(theirs[other], theirs[one]) for one, other in task.halves]
    reference = theirs[: task.sets.reference_count]
    bootstrap = task.bootstrap(lambda a, b: error(ours[a], reference[b]))
    where = f"over the {name}" if name == RADIUS else f"along {name}"
    return Row(f"rms {where}", error(ours, reference), bootstrap, *spread(floors), unit="dB")


def band_tests(task: Task) -> Result:
    """Tell samples from data by the magnitudes in one band of frequency at a time."""
    sets, settings, grid = task.sets, task.settings, task.modality.grid()
    made = band_powers(sets.batches(real=False), grid, settings.bands)
    real = band_powers(sets.batches(real=True), grid, settings.bands)
    edges = [(low, high) for low, high, _ in made]
    # Every class alike in both sets that the test is fitted to and judged on: rows are drawn at random there.
    _, own, theirs = sets.alike()
    found = [discriminability(b[2][theirs], a[2][own]) for a, b in zip(made, real, strict=True)]
    halves = [(one[theirs], other[own]) for one, other in task.halves]
    floors = [[discriminability(band[one], band[other]).accuracy for one, other in halves] for *_, band in real]
    rows = tuple(
        Row(f"band {plots.band_name(*edge)}", 100 * each.accuracy, 100 * each.error,
            *spread([100 * value for value in floor]), ideal=50, unit="%")
        for edge, each, floor in zip(edges, found, floors, strict=True)
    )  # fmt: skip
    plots.draw_bands(edges, found, [spread(floor) for floor in floors], task.picture("evaluate_bands.png"))
    bands = [{"low": low, "high": high, **asdict(each)} for (low, high), each in zip(edges, found, strict=True)]
    return Result(rows, {"bands": bands})
