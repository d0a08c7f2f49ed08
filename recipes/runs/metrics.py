"""Metrics read to be drawn: of a file of any length, no more entries than a curve can show.

A run may be writing the file at this moment, or its machine may have died doing so: a line that is no entry is counted
and passed over.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multisagd.files import check_file, parse_json

MOST = 400
"""Entries of each kind that are kept, at most."""
KINDS = 8
"""Kinds of entries that are told apart; training writes two."""
LONGEST = 1 << 20
"""Bytes of a line; one of sixty noise levels and sixty bands has a tenth of it."""
Entry = dict[str, Any]


@dataclass
class Thinned:
    """Entries of one kind, every `stride`-th of those that came, and the last one."""

    entries: list[Entry] = field(default_factory=list)
    count: int = 0
    stride: int = 1
    last: Entry = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take one more; where there are too many, every second is let go."""
        if self.count % self.stride == 0:
            self.entries.append(entry)
        if len(self.entries) > MOST:
            self.entries, self.stride = self.entries[::2], 2 * self.stride
        self.count, self.last = self.count + 1, entry

    def all(self) -> list[Entry]:
        """Return what was kept, in the order in which it came."""
        return self.entries if self.entries[-1] is self.last else [*self.entries, self.last]


@dataclass
class Metrics:
    """What a file of JSON lines holds, by the `kind` of its entries; `broken` lines could not be read."""

    kinds: dict[str, Thinned] = field(default_factory=dict)
    broken: int = 0

    def of(self, kind: str) -> list[Entry]:
        """Return the entries kept of one kind."""
        return self.kinds[kind].all() if kind in self.kinds else []

    @property
    def thinned(self) -> bool:
        """Whether there were more than are kept."""
        return any(each.stride > 1 for each in self.kinds.values())


def read_metrics(path: Path, kind: str | None = None) -> Metrics:
    """Read a file of JSON lines, `kind` standing for that of entries without one; OSError or ValueError if not."""
    check_file(path)
    metrics = Metrics()
    for line in _lines(path):
        try:
            entry = parse_json(line.decode(), finite=False)
            name = entry.get("kind", kind)
            known = isinstance(name, str) and (name in metrics.kinds or len(metrics.kinds) < KINDS)
            if not known or not math.isfinite(number(entry.get("samples"))):
                raise ValueError("no entry")
        except (ValueError, AttributeError):
            metrics.broken += 1
            continue
        metrics.kinds.setdefault(name, Thinned()).add(entry)
    return metrics


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long, its beginning, which is no JSON."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            rest = line
            while len(rest) == LONGEST and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST)
            if line.strip():
                yield line


def number(value: Any) -> float:
    """Return a number as float, and NaN for whatever is none."""
    with suppress(OverflowError):
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return math.nan


def inner(entry: Entry, *names: str) -> dict[str, Any]:
    """Return a nested group of an entry, empty where there is none."""
    found: Any = entry
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
