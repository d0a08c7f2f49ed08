"""The forecasts in files of arrays: which examples have all known states before them, and their splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modalities.base import Split
from modalities.forecasts import checked_reach, cut, divided
from modalities.stored_arrays import Stored
from modalities.time_sequences import joined, step_of

log = logging.getLogger("multisagd")


@dataclass(frozen=True)
class Forecasts:
    """The positions of forecasts in a dataset, with those of their known states, in order of time, and their splits.

    `lead` is the time from the present state to the forecast, in `unit`; a number of steps if the files state no times.
    """

    known: Mapping[int, tuple[int, ...]]
    splits: Mapping[int, Split]
    lead: float
    unit: str


def forecasts_of(
    files: Sequence[Stored], starts: Sequence[int], splits: Sequence[Split] | None, groups: Sequence[str] | None,
    lead: int, history: int, fractions: tuple[float, float],
) -> Forecasts:  # fmt: skip
    """Return the forecasts in files, of which `starts` are the positions of their first examples.

    `splits` and `groups` are those of all examples, if they are stated; forecasts stay within them. Otherwise,
    `fractions` are held out for validation and testing (see `divided`).

    Raises:
        ValueError: If no sequence of states is long enough, or the files do not follow each other evenly in time.
    """
    sequences, step, unit = _sequences(files, starts)
    for keys in (splits, groups):
        sequences = sequences if keys is None else cut(sequences, keys)
    reach = checked_reach(lead, history)
    usable = [each for each in sequences if len(each) > reach]
    if not usable:
        raise ValueError(
            f"lead={lead} and history={history} need {reach + 1} states in a row, but the data have at most "
            f"{max(map(len, sequences))}: reduce them, or set lead=null"
        )
    if len(usable) < len(sequences):
        log.warning(
            "%d of %d sequences of states are too short for a forecast, which needs %d states in a row",
            len(sequences) - len(usable), len(sequences), reach + 1,
        )  # fmt: skip
    if splits is None:
        # The parts of one field are of the same times, so they are not held out from each other.
        parts = divided(usable, reach, *fractions, whole=all(len(file.parts) == 1 for file in files))
    else:
        parts = [(each, splits[each[0]]) for each in usable]
    back = range(reach, 0, -lead)
    known = {
        part[number]: tuple(part[number - each] for each in back)
        for part, _ in parts
        for number in range(reach, len(part))
    }
    named = {position: split for part, split in parts for position in part[reach:]}
    return Forecasts(known, named, lead * step, unit)


def _sequences(files: Sequence[Stored], starts: Sequence[int]) -> tuple[list[range], float, str]:
    """Return the sequences of positions in order of time, the step between two and its unit."""
    times = [file.times for file in files if file.times is not None]
    if all(file.stored == 1 for file in files):
        return joined([str(file.path.parent) for file in files], starts, [len(file.parts) for file in files], times)
    sequences = [
        range(start + each.start, start + each.stop, each.step)
        for start, own in zip(starts, times, strict=False)
        for each in own.sequences
    ]
    return sequences, *step_of(times)
