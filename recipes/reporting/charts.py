"""Charts as SVG that takes its colours from the page, so that one drawing serves light and dark.

matplotlib draws with placeholders for colours. What it writes into `style` is turned into attributes, for the page
forbids styles that are not its own, and placeholders into CSS variables. The places of points on the drawing go along,
so that the page can say what is under the pointer.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from recipes.reporting.blocks import Chart, Curve, Table

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
SIZE = (5.6, 3.3)
MARGINS = (0.16, 0.16, 0.8, 0.81)
"""Left, bottom, width and height of the plot: with room for its labels, which a layout engine would draw all twice."""

TEXT, LINES = "#010101", "#010102"
COLOURS = {**{f"c{n}": f"#0202{n:02x}" for n in range(8)}, **{f"s{n}": f"#0303{n:02x}" for n in range(8)}}
"""Placeholders: c0 to c7 tell things apart, s0 to s7 put them in an order."""

VARIABLES = {TEXT: "var(--text)", LINES: "var(--line)", **{hex_: f"var(--{name})" for name, hex_ in COLOURS.items()}}
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
"""Colours alone tell nothing to some, and little in print."""

ROWS = 30
"""Rows of the table under a chart; the file beside it has all."""

MARKED = 40
"""Points of a curve below which each has a mark."""

LABEL = 40
"""Characters of a name that a chart takes from a run, from both of its ends: names of runs often begin alike."""

FORMULA = re.compile(r"[=+@\t\r]|-(?!\d[\d.e+-]*$)")
"""What formulas of a spreadsheet begin with, negative numbers aside."""

ROOM = 56
"""Characters that have room below a chart."""


@dataclass(frozen=True)
class Series:
    """One curve. `x` are numbers, or places of a chart's `ticks`; `low` and `high` bound a band about it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashes: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis is called and how it is scaled; `ticks` name its places 0, 1, …; `level` is marked on it."""

    name: str
    scale: Literal["linear", "log"] = "linear"
    ticks: Sequence[str] | None = None
    level: float | None = None


def draw(name: str, title: str, about: str, x: Axis, y: Axis, series: Sequence[Series]) -> Chart | None:
    """Return a chart; None if there is nothing that its scales can show. `name` is its own on the page."""
    drawn = [kept for each in series if (kept := _finite(each, x, y)).x]
    if not drawn:
        return None
    figure = Figure(figsize=SIZE, dpi=72, facecolor="none")
    FigureCanvasSVG(figure)
    plot = figure.add_axes(MARGINS)
    for number, each in enumerate(drawn):
        if each.low is not None and each.high is not None:
            band = plot.fill_between(each.x, each.low, each.high, color=COLOURS[each.colour], alpha=0.2, linewidth=0)
            band.set_gid(f"{name}-{number}-band")
        (line,) = plot.plot(
            each.x, each.y, color=COLOURS[each.colour], linewidth=1.6, marker="o" if len(each.x) < MARKED else None,
            markersize=3, dashes=DASHES[each.dashes % len(DASHES)] or (None, None),
        )  # fmt: skip
        line.set_gid(f"{name}-{number}")
    _dress(plot, x, y)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        written = io.StringIO()
        figure.savefig(written, format="svg", dpi=72, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    height = 72 * SIZE[1]
    places = []
    for each in drawn:
        pixels = plot.transData.transform(list(zip(each.x, each.y, strict=True)))
        places.append([[round(across, 1), round(height - up, 1)] for across, up in pixels])
    points = {
        "x": x.name,
        "series": [
            {
                "name": each.name,
                "at": [_tick(value, x) for value in each.x],
                "values": [told(value) for value in each.y],
                "places": where,
            }
            for each, where in zip(drawn, places, strict=True)
        ],
    }
    header = [x.name, *(each.name for each in drawn)]
    return Chart(
        name, title, about, _page_picture(written.getvalue(), name),
        tuple(Curve(each.name, each.colour, each.dashes % len(DASHES)) for each in drawn), points,
        Table(f"{title}: {y.name}", header, _thinned(_rows(drawn, x, told)), folded=True),
        _csv([header, *_rows(drawn, x, _exact)]),
    )  # fmt: skip


def told(value: float) -> str:
    """Return a number as it is told to a person."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def ordered(number: int, count: int) -> str:
    """Return the colour of the `number`-th of `count` things that have an order."""
    return f"s{round(7 * number / max(1, count - 1))}"


def _finite(each: Series, x: Axis, y: Axis) -> Series:
    """Return a series without the points that the scales cannot show."""

    def shows(value: float, axis: Axis) -> bool:
        return math.isfinite(value) and (axis.scale == "linear" or value > 0)

    kept = [place for place, (a, b) in enumerate(zip(each.x, each.y, strict=True)) if shows(a, x) and shows(b, y)]
    low, high = (None if part is None else [part[place] for place in kept] for part in (each.low, each.high))
    x_kept, y_kept = ([part[place] for place in kept] for part in (each.x, each.y))
    return Series(_short(each.name), x_kept, y_kept, each.colour, each.dashes, low, high)


def _dress(plot: Axes, x: Axis, y: Axis) -> None:
    plot.set_facecolor("none")
    plot.grid(color=LINES, linewidth=0.6)
    plot.set_axisbelow(True)
    for axis, of_plot, scaled in ((x, plot.xaxis, plot.set_xscale), (y, plot.yaxis, plot.set_yscale)):
        if axis.scale == "log":
            scaled("log")
            low, high = of_plot.get_view_interval()
            # Powers of ten as text: matplotlib writes them as mathematics, of which the page has no fonts. Within one
            # decade there may be no power of ten, and the ticks between are named.
            of_plot.set_major_formatter(_Plain())
            of_plot.set_minor_formatter(NullFormatter() if high / low > 100 else _Plain(minor_thresholds=(2, 1)))
        if axis.ticks is not None:
            step = -(-sum(len(tick) + 2 for tick in axis.ticks) // ROOM)
            named = [_plain(tick) if place % step == 0 else "" for place, tick in enumerate(axis.ticks)]
            of_plot.set_ticks(range(len(axis.ticks)), named)
        of_plot.label.set(text=_plain(axis.name), color=TEXT)
    for level, line in ((x.level, plot.axvline), (y.level, plot.axhline)):
        if level is not None:
            line(level, color=TEXT, linewidth=0.8, dashes=(3, 3))
    if x.ticks is None and x.scale == "linear":
        plot.xaxis.set_major_formatter(lambda value, place: told(float(value)))
    plot.tick_params(which="both", color=LINES, labelcolor=TEXT, length=3, pad=4)
    for spine in plot.spines.values():
        spine.set_color(LINES)


class _Plain(LogFormatterSciNotation):
    """Names the ticks of a logarithmic axis as plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}" if super().__call__(x, pos) else ""


def _plain(text: str) -> str:
    """Return a text of a run as matplotlib shows it without taking dollars for mathematics."""
    return _short(text).replace("$", r"\$")


def _short(text: str) -> str:
    """Return a text of a run without its middle, if it is long."""
    return text if len(text) <= LABEL else f"{text[: LABEL // 2]}…{text[-LABEL // 2 :]}"


def _page_picture(svg: str, name: str) -> Markup:
    """Return the drawing with attributes for styles and variables for colours, hidden from readers: the page tells."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        for declaration in filter(None, element.attrib.pop("style", "").split(";")):
            key, _, value = (part.strip() for part in declaration.partition(":"))
            if key != "font-family":
                element.set(key, VARIABLES.get(value, value))
        identity = element.get("id", "")
        if identity and not identity.startswith(name) and re.fullmatch(r"[A-Za-z]+[\w.]*_\d+", identity):
            del element.attrib["id"]  # matplotlib counts anew in every drawing
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # drawn here, its text escaped


def _tick(value: float, axis: Axis, tell: Callable[[float], str] = told) -> str:
    return axis.ticks[int(value)] if axis.ticks is not None else tell(value)


def _rows(series: Sequence[Series], x: Axis, tell: Callable[[float], str]) -> list[list[str]]:
    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    places = sorted({value for each in series for value in each.x})
    return [[_tick(p, x, tell), *("" if p not in each else tell(each[p]) for each in values)] for p in places]


def _thinned(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """Return no more rows than a table holds, spread evenly, with the first and the last."""
    if len(rows) <= ROWS:
        return rows
    return [rows[round(place * (len(rows) - 1) / (ROWS - 1))] for place in range(ROWS)]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as the address of a file; a text never begins as a formula does in a spreadsheet."""

    def cell(text: str) -> str:
        safe = f"'{text}" if FORMULA.match(text) else text
        return '"' + safe.replace('"', '""') + '"'

    return "data:text/csv;charset=utf-8," + quote("\n".join(",".join(map(cell, row)) for row in rows))


def _exact(value: float) -> str:
    """Return a number as programs read it, with all of its digits."""
    return str(int(value)) if value == round(value) and abs(value) < 1e15 else repr(float(value))
