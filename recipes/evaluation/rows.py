"""The numbers of an evaluation as rows of a table: each with its uncertainty, and beside it what real data score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

FRECHET = ("classifier", "inception", "vggish", "r3d", "components")
"""Metrics that have a Fréchet distance; the first that was computed gives the score of that name."""
RECOGNISED, RADIAL_ERROR = "recognised as asked for", "rms over the radius"
"""Names of the rows that are scores."""
WIDTH = 92
"""Columns the table takes, on a narrow terminal too: wrapped names are worse than wrapped lines."""


@dataclass(frozen=True)
class Row:
    """One number about the samples, and the same about real data against other real data of equal counts, the floor.

    Errors are standard deviations, None where there is none. `ideal` is what equal distributions score at endless
    counts, and says in which direction better lies.
    """

    name: str
    value: float
    error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    ideal: float | None = 0.0
    unit: str = ""


@dataclass(frozen=True)
class Result:
    """What one kind of metric found: rows, what else goes into the JSON, and what must be said beside the numbers."""

    rows: tuple[Row, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {"rows": [asdict(row) for row in self.rows], "notes": list(self.notes), **self.details}


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation, None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def scores(results: Mapping[str, Result]) -> dict[str, float | None]:
    """Return the numbers that say most, of the metrics that were computed.

    `frechet_distance` and what real data score, `frechet_distance_floor`; `recognised`, the share of samples that the
    classifier recognises, from 0 to 1; `spectrum_error_db`, the root mean square error of power over the radius.
    """
    found: dict[str, float | None] = {}
    distances = [row for row in _rows(results, *FRECHET) if row.name.endswith("Fréchet distance")]
    if distances:
        found = {"frechet_distance": distances[0].value, "frechet_distance_floor": distances[0].floor}
    named = {row.name: row.value for row in _rows(results, "classes", "spectrum")}
    if RECOGNISED in named:
        found["recognised"] = named[RECOGNISED] / 100
    if RADIAL_ERROR in named:
        found["spectrum_error_db"] = named[RADIAL_ERROR]
    return found


def _rows(results: Mapping[str, Result], *kinds: str) -> list[Row]:
    return [row for kind in kinds if kind in results for row in results[kind].rows]


def show(title: str, results: Mapping[str, Result], lines: Sequence[str]) -> None:
    """Print the rows as a table, and below it what must be said."""
    table = Table("what", "samples", "real against real", "ideal", box=box.SIMPLE, title=title, title_justify="left")
    for kind, result in results.items():
        table.add_section()
        table.add_row(f"[bold]{kind}[/bold]", "", "", "")
        for row in result.rows:
            ideal = "" if row.ideal is None else f"{row.ideal:g}"
            table.add_row(
                f"  {row.name}", _number(row.value, row.error, row.unit), _number(row.floor, row.floor_error, row.unit),
                ideal,
            )  # fmt: skip
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _number(value: float | None, error: float | None, unit: str) -> str:
    if value is None:
        return "-"
    unit = f" {unit}" if unit else ""
    return f"{value:.4g}{unit}" if error is None else f"{value:.4g} ± {error:.2g}{unit}"
