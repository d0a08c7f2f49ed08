"""Line charts as SVG with the page's colours, so that one drawing works in light and dark mode.

matplotlib draws with placeholder colours, which are then replaced by CSS variables. Its inline styles are replaced by
attributes, because a page's content security policy may forbid them.
"""

import csv
import io
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from multisagd.addresses import without_secrets

SVG = "http://www.w3.org/2000/svg"
SIZE = (5.6, 3.3)
"""Width and height in inches of 72 points."""
MARGINS = (0.16, 0.16, 0.8, 0.81)
"""Left, bottom, width and height of the plot as fractions of the figure, with room for labels.

A layout engine would draw everything twice.
"""
TEXT, LINES = "#010101", "#010102"
COLOURS = {**{f"c{n}": f"#0202{n:02x}" for n in range(8)}, **{f"s{n}": f"#0303{n:02x}" for n in range(8)}}
"""Placeholder colours: c0 to c7 are categorical, s0 to s7 sequential."""
VARIABLES = {TEXT: "var(--text)", LINES: "var(--line)", **{hex_: f"var(--{name})" for name, hex_ in COLOURS.items()}}
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
"""Dash patterns, so that curves can be distinguished without colours."""
ROWS = 30
"""Maximum number of rows of the table under a chart; the CSV file has all rows."""
MARKED = 40
"""Points have markers if the curve has fewer points than this."""
LABEL = 40
"""Maximum length of a run's name in a chart. The middle of longer names is omitted, as names often begin alike."""
FORMULA = re.compile(r"[=+@\t\r]|-(?!\d[\d.e+-]*$)")
"""First characters of spreadsheet formulas, except in negative numbers."""
ROOM = 56
"""Number of characters of tick labels that fit below a chart."""
_STYLED = threading.Lock()
"""Lock for matplotlib's settings, which are global to the process."""


@dataclass(frozen=True)
class Series:
    """One curve: `x` are numbers, or indices of an axis's `ticks`.

    `colour` is a key of `COLOURS`. `dashes` is an index of `DASHES`; larger numbers wrap around.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashes: int = 0


@dataclass(frozen=True)
class Axis:
    """Name and scale of an axis; `ticks` are the names of the positions 0, 1, …, and a line is drawn at `level`."""

    name: str
    scale: Literal["linear", "log"] = "linear"
    ticks: Sequence[str] | None = None
    level: float | None = None

    def shows(self, value: float) -> bool:
        """Whether the scale can show a value."""
        return math.isfinite(value) and (self.scale == "linear" or value > 0)

    def label(self, value: float, text_of: Callable[[float], str]) -> str:
        """Return the name of the tick at a position or, without ticks, the number as text."""
        return text_of(value) if self.ticks is None else self.ticks[int(value)]


@dataclass(frozen=True)
class Chart:
    """A drawn chart: `svg` is SVG without inline styles, and `points` are the values shown at the pointer.

    `caption`, `header` and `rows` are a thinned table of its numbers; `csv` is the text of a CSV file with all numbers.
    """

    name: str
    title: str
    description: str
    svg: Markup
    curves: Sequence[Series]
    points: Mapping[str, Any]
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    csv: str


def draw(name: str, title: str, description: str, x: Axis, y: Axis, series: Sequence[Series]) -> Chart | None:
    """Draw and return a chart, or return None if there is no point that its scales can show.

    `name` must be unique on the page.
    """
    if not (drawn := [visible for each in series if (visible := _visible(each, x, y)).x]):
        return None
    figure = Figure(figsize=SIZE, dpi=72, facecolor="none")
    plot = figure.add_axes(MARGINS)
    for number, each in enumerate(drawn):
        plot.plot(
            each.x, each.y, color=COLOURS[each.colour], linewidth=1.6, marker="o" if len(each.x) < MARKED else None,
            markersize=3, dashes=DASHES[each.dashes] or (None, None), gid=f"{name}-{number}",
        )  # fmt: skip
    _style_axes(plot, x, y)
    svg = _svg(figure, name)  # drawing also scales the axes, on which the positions of points depend
    points = [
        {
            "name": each.name,
            "at": [x.label(value, number_text) for value in each.x],
            "values": [number_text(value) for value in each.y],
            "positions": [
                [round(across, 1), round(72 * SIZE[1] - up, 1)]
                for across, up in plot.transData.transform(list(zip(each.x, each.y, strict=True)))
            ],
        }
        for each in drawn
    ]
    header, rows = [x.name, *(each.name for each in drawn)], _rows(drawn, x, number_text)
    if len(rows) > ROWS:
        rows = [rows[round(number * (len(rows) - 1) / (ROWS - 1))] for number in range(ROWS)]
    return Chart(
        name, title, description, svg, drawn, {"x": x.name, "series": points}, f"{title}: {y.name}", header,
        rows, _csv([header, *_rows(drawn, x, _exact)]),
    )  # fmt: skip


def number_text(value: float) -> str:
    """Return a number as short text: an integer with separators, or four significant digits."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def ordered(number: int, count: int) -> str:
    """Return the sequential colour of curve `number` of `count`."""
    return f"s{round(7 * number / max(1, count - 1))}"


def _visible(each: Series, x: Axis, y: Axis) -> Series:
    """Return a series with only the points that the scales can show, a short name, and a valid index of `DASHES`."""
    points = [(a, b) for a, b in zip(each.x, each.y, strict=True) if x.shows(a) and y.shows(b)]
    xs, ys = [a for a, _ in points], [b for _, b in points]
    return replace(each, name=_short(each.name), x=xs, y=ys, dashes=each.dashes % len(DASHES))


def _style_axes(plot: Axes, x: Axis, y: Axis) -> None:
    """Set the scales, ticks, labels and colours of the plot's axes, and draw the lines that mark levels."""
    plot.set_facecolor("none")
    plot.grid(color=LINES, linewidth=0.6)
    plot.set_axisbelow(True)
    for axis, of_plot, scaled in ((x, plot.xaxis, plot.set_xscale), (y, plot.yaxis, plot.set_yscale)):
        if axis.scale == "log":
            scaled("log")
            low, high = of_plot.get_view_interval()
            # Powers of ten are written as text, because the page has no fonts for matplotlib's mathematical text. A
            # range within one decade may contain no power of ten, so minor ticks have labels where they fit.
            of_plot.set_major_formatter(_Plain())
            crowded = high / low > (30 if axis is x else 100)
            of_plot.set_minor_formatter(NullFormatter() if crowded else _Plain(minor_thresholds=(2, 1)))
        if axis.ticks is not None:
            step = -(-sum(len(tick) + 2 for tick in axis.ticks) // ROOM)
            labels = [_plain(tick) if number % step == 0 else "" for number, tick in enumerate(axis.ticks)]
            of_plot.set_ticks(range(len(axis.ticks)), labels)
        of_plot.label.set(text=_plain(axis.name), color=TEXT)
    for level, line in ((x.level, plot.axvline), (y.level, plot.axhline)):
        if level is not None:
            line(level, color=TEXT, linewidth=0.8, dashes=(3, 3))
    if x.ticks is None and x.scale == "linear":
        plot.xaxis.set_major_formatter(lambda value, position: number_text(float(value)))
    plot.tick_params(which="both", color=LINES, labelcolor=TEXT, length=3, pad=4)
    for spine in plot.spines.values():
        spine.set_color(LINES)


class _Plain(LogFormatterSciNotation):
    """Formatter that labels the ticks of a logarithmic axis with plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:.4g}" if super().__call__(x, pos) else ""


def _plain(text: str) -> str:
    """Return short text from a run with dollar signs escaped, because matplotlib would parse them as mathematics."""
    return _short(text).replace("$", r"\$")


def _short(text: str) -> str:
    """Return text from a run without secrets in addresses, and without its middle if it is long."""
    text = without_secrets(text)  # first, because a shortened address would not be recognised
    return text if len(text) <= LABEL else f"{text[: LABEL // 2]}…{text[-LABEL // 2 :]}"


def _svg(figure: Figure, name: str) -> Markup:
    """Return a figure as SVG, hidden from screen readers, with identifiers prefixed by `name`."""
    file = io.StringIO()
    with _STYLED, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", dpi=72, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(text[text.index("<svg") :])
    for element in root.iter():
        for child in [*element.iterfind(f"{{{SVG}}}style"), *element.iterfind(f"{{{SVG}}}metadata")]:
            element.remove(child)
        for declaration in filter(None, element.attrib.pop("style", "").split(";")):
            key, _, value = (part.strip() for part in declaration.partition(":"))
            if key != "font-family":
                element.set(key, VARIABLES.get(value, value))
        identity = element.get("id", "")
        if identity and not identity.startswith(name) and re.fullmatch(r"[A-Za-z]+[\w.]*_\d+", identity):
            del element.attrib["id"]  # matplotlib uses the same numbers in every figure
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"aria-hidden": "true", "focusable": "false"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # safe: drawn above, and text is escaped


def _rows(series: Sequence[Series], x: Axis, text_of: Callable[[float], str]) -> list[list[str]]:
    """Return one row for each position on the x axis: its label, and the value of each series there or ""."""
    values = [dict(zip(each.x, each.y, strict=True)) for each in series]
    positions = sorted({value for each in series for value in each.x})
    return [[x.label(p, text_of), *("" if p not in each else text_of(each[p]) for each in values)] for p in positions]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as the text of a CSV file; cells that look like spreadsheet formulas are escaped."""
    safe = [[f"'{text}" if FORMULA.match(text) else text for text in row] for row in rows]
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(safe)
    return file.getvalue().removesuffix("\n")


def _exact(value: float) -> str:
    """Return a number with all digits."""
    return str(int(value)) if value == round(value) and abs(value) < 1e15 else repr(float(value))
