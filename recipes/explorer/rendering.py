"""HTML for the page: tables of media, charts, and lists; media and charts have text descriptions."""

import html
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from multisagd import Denoiser, terminal_snr
from multisagd.analysis.profiles import Profile, profile_of, unit_of
from recipes.explorer.media import Example
from recipes.explorer.process import Designed, Pair
from recipes.plotting.curves import Axis, Chart, Series, draw
from recipes.plotting.figures import on_logarithmic_axis
from recipes.runs.assembly import process_notes

POINTS = 150
"""Maximum number of points of a curve; more points would look the same."""
COLOURS = {"data": "c0", "white": "c1", "shaped": "c2"}
SHOWN = 1e-9
"""Lowest power shown in a chart, relative to the largest."""


def media_table(rows: Iterable[tuple[str, Mapping[str, Any]]], example: Example) -> str:
    """Return HTML with one group for each row: its title and its named media."""
    groups = []
    for title, media in rows:
        cells = [
            f"<figure>{example.medium.tile(each, example.modality, html.escape(f'{name}, {title}'))}"
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, each in media.items()
        ]
        groups.append(f'<div class="group"><h4>{html.escape(title)}</h4><div class="pair">{"".join(cells)}</div></div>')
    return f'<div class="groups {example.medium.name}">{"".join(groups)}</div>'


def thinned(profile: Profile) -> Profile:
    """Return a profile for a logarithmic axis, averaged over equal fractions of an octave to `POINTS` points."""
    return Profile(on_logarithmic_axis(profile.frequency), profile.power).thinned(POINTS)


def spectra_charts(pair: Pair, time: float) -> list[Chart | None]:
    """Return a chart along every axis with the power of the data, and of white and shaped noise at `time`.

    Noise is divided by the signal coefficient, `(σ/α)² W`, so it dominates where its curve is above the data's curve.
    """
    example = pair.example
    schedule, charts = pair.processes["shaped"].schedule, []
    level = float(torch.exp(-schedule.log_snr(torch.tensor([time], dtype=torch.float64))))
    powers = {"data": example.statistics.power}
    powers |= {name: level * process.covariance.power() for name, process in pair.processes.items()}
    for axis in example.grid.names:
        curves = {name: thinned(profile_of(power, example.grid, axis)) for name, power in powers.items()}
        minimum = SHOWN * max(float(curve.power.max()) for curve in curves.values())
        series = [
            Series("data" if name == "data" else f"{name} noise", curve.frequency.tolist(),
                   curve.power.clamp(min=minimum).tolist(), COLOURS[name], number)
            for number, (name, curve) in enumerate(curves.items())
        ]  # fmt: skip
        name = f"{example.medium.name}-spectra-{axis}"
        description = f"Power of data, white noise and shaped noise along {axis}"
        charts.append(
            draw(name, axis, description, Axis(unit_of(axis, example.grid), "log"), Axis("power", "log"), series)
        )
    return charts


def steps_chart(designed: Designed, name: str) -> Chart | None:
    """Return a chart of the log-SNR at every step, for the designed steps and for equal steps of other schedules."""
    series = []
    for number, (each, log_snrs) in enumerate(designed.log_snrs.items()):
        fraction = torch.linspace(0, 1, len(log_snrs)).tolist()
        label = f"{each} ({designed.errors[each]:.1%})"
        series.append(Series(label, fraction, log_snrs, ("c2", "c0", "c1")[number], number))
    x, title = Axis("fraction of the steps, from noise to data"), "steps (error of the Gaussian model)"
    return draw(name, title, "Log-SNR at every designed step", x, Axis("log-SNR"), series)


def charts_html(charts: Sequence[Chart | None]) -> str:
    """Return HTML with charts side by side, each with its title and legend."""
    figures = []
    for chart in filter(None, charts):
        legend = "".join(f'<li class="{each.colour}">{html.escape(each.name)}</li>' for each in chart.curves)
        figures.append(
            f'<figure><h4>{html.escape(chart.title)}</h4><div role="img" aria-label="{html.escape(chart.description)}">'
            f'{chart.svg}</div><ul class="legend">{legend}</ul></figure>'
        )
    return f'<div class="curves">{"".join(figures)}</div>'


def ending(pair: Pair) -> str:
    """Return HTML with the remaining signal at t = 1 by band, and the library's warnings about the process."""
    statistics, process = pair.example.statistics, pair.processes["shaped"]
    denoiser = Denoiser(torch.nn.Identity(), process, prediction="v")
    notes = process_notes(process, denoiser, statistics, pair.example.modality)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes contain the warnings
        bands = terminal_snr(process, statistics)
    rows = "".join(
        f"<tr><td>{f'{band.low:.2f} to {band.high:.2f}' if band.high else 'zero'}</td><td>{band.snr:.2g}</td></tr>"
        for band in bands
    )
    head = "<tr><th>cycles per sample</th><th>signal over noise</th></tr>"
    return f"<h3>Signal left at t = 1</h3><table>{head}{rows}</table>{listed(notes or ['no warnings'])}"


def listed(texts: Sequence[str]) -> str:
    """Return strings as an HTML list."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def mistake(error: Exception) -> str:
    """Return an error message as HTML."""
    return f'<div class="wrong" role="alert">{html.escape(str(error))}</div>'
