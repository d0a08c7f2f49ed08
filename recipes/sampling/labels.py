"""Which classes are drawn: what a person asks for by `labels`, as numbers of a run's classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

from recipes.base.errors import RecipeError, nearest
from recipes.runtime.distribution import is_first

SHOWN = 10
"""Classes that a message names."""

log = logging.getLogger("multisagd")


def chosen_labels(
    wanted: str | int | Sequence[str | int] | None,
    classes: Sequence[str] | None,
    count: int,
    text: bool = False,
    untrained: Collection[str] = (),
) -> list[int] | None:
    """Return a class number for each sample, taking the wanted classes in turn; None to draw without classes.

    `untrained` are classes that the run has seen no example of: "all" leaves them out and says so.

    Raises:
        RecipeError: for classes that do not exist, naming the nearest, that were never trained, or any class of a run
            without classes.
    """
    if wanted is None or (classes is None and wanted == "all"):
        return None
    if classes is None:
        other = "on text: give prompts" if text else "without classes: leave out labels"
        raise RecipeError(f"labels={wanted}: this run was trained {other}")
    if wanted == "all":
        numbers = trained_classes(classes, untrained)
        if untrained and is_first():
            log.warning("note: %s, so it is left out", never_trained(untrained))
    else:
        entries = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        numbers = [number for entry in entries for number in _numbers(str(entry), classes)]
        if unknown := [name for name in dict.fromkeys(classes[number] for number in numbers) if name in untrained]:
            raise RecipeError(f"labels={wanted}: {never_trained(unknown)}; labels=all draws those that were trained")
    if not numbers:
        raise RecipeError("labels is empty: name classes, or use all or null")
    return [numbers[slot % len(numbers)] for slot in range(count)]


def trained_classes(classes: Sequence[str], untrained: Collection[str]) -> list[int]:
    """Return the numbers of the classes that a run was shown examples of."""
    return [number for number, name in enumerate(classes) if name not in untrained]


def never_trained(names: Collection[str]) -> str:
    """Say that a run has no example of these classes."""
    return f"of class {listed(names)} this run was shown no training example"


def listed(names: Collection[str]) -> str:
    """Return the first of some names in one line."""
    return ", ".join(list(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _numbers(entry: str, classes: Sequence[str]) -> list[int]:
    """Return the classes that one entry asks for: by name, or by number where no class is named by one."""
    if entry in classes:
        return [classes.index(entry)]
    span = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", entry)
    if span is None:
        raise RecipeError(f"labels: there is no class {entry!r}{nearest(entry, classes)}")
    first, last = int(span[1]), int(span[2] or span[1])
    named = {place: int(name) for place, name in enumerate(classes) if re.fullmatch(r"[0-9]{1,18}", name)}
    # Numbers that are names are meant as names: 1-2 of the classes 1, 2 and 3 are not the second and third.
    values = named or {place: place for place in range(len(classes))}
    found = [place for place, value in values.items() if first <= value <= last]
    ambiguous = span[2] is None and len(found) > 1  # 007, of the classes 7 and 07
    if ambiguous or not found or not {first, last} <= {values[place] for place in found}:
        without_gap = list(values.values()) == list(range(len(classes)))
        there = f"0 to {len(classes) - 1}" if without_gap else listed(classes)
        raise RecipeError(f"labels: {entry} is not within the classes {there}")
    return found
