"""Read metrics for charts: a bounded number of entries from a file of any length.

A run may be writing the file, or may have crashed while writing, so invalid lines are counted and skipped.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multisagd.files import check_file, parse_json

MAX_ENTRIES = 400
"""Maximum number of entries of each kind."""
MAX_KINDS = 8
"""Maximum number of kinds of entries; training writes two."""
MAX_LINE_BYTES = 1 << 20
"""Maximum length of a line in bytes; a line with 60 noise levels and 60 bands has a tenth of that length."""
Entry = dict[str, Any]


@dataclass
class SubsampledEntries:
    """Entries of one kind: every `stride`-th entry, and the last one; `count` is the number of all entries."""

    entries: list[Entry] = field(default_factory=list)
    count: int = 0
    stride: int = 1
    last: Entry = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Add an entry; if too many are kept, drop every second one."""
        if self.count % self.stride == 0:
            self.entries.append(entry)
        if len(self.entries) > MAX_ENTRIES:
            self.entries, self.stride = self.entries[::2], 2 * self.stride
        self.count, self.last = self.count + 1, entry

    def all(self) -> list[Entry]:
        """Return the kept entries in order."""
        return self.entries if self.entries[-1] is self.last else [*self.entries, self.last]


@dataclass
class Metrics:
    """The entries of a JSON Lines file, grouped by their `kind`; `broken` is the number of invalid lines."""

    kinds: dict[str, SubsampledEntries] = field(default_factory=dict)
    broken: int = 0

    def of(self, kind: str) -> list[Entry]:
        """Return the kept entries of one kind."""
        return self.kinds[kind].all() if kind in self.kinds else []

    @property
    def subsampled(self) -> bool:
        """Whether entries were dropped."""
        return any(each.stride > 1 for each in self.kinds.values())


def read_metrics(path: Path, kind: str | None = None) -> Metrics:
    """Read a JSON Lines file; entries without a kind have `kind`. Raises OSError or ValueError if it is unreadable."""
    check_file(path)
    metrics = Metrics()
    for line in _lines(path):
        try:
            entry = parse_json(line.decode(), finite=False)
            name = entry.get("kind", kind)
            known = isinstance(name, str) and (name in metrics.kinds or len(metrics.kinds) < MAX_KINDS)
            if not known or not math.isfinite(number(entry.get("samples"))):
                raise ValueError("not an entry")
        except (ValueError, AttributeError):
            metrics.broken += 1
            continue
        metrics.kinds.setdefault(name, SubsampledEntries()).add(entry)
    return metrics


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file. A line that is too long is truncated, and therefore not valid JSON."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            rest = line
            while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            if line.strip():
                yield line


def number(value: Any) -> float:
    """Return a number as a float, or NaN for any other value."""
    with suppress(OverflowError):
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return math.nan


def inner(entry: Entry, *names: str) -> dict[str, Any]:
    """Return a nested group of an entry, or an empty dictionary if it is missing."""
    value: Any = entry
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
