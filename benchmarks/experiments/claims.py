"""Answers to the two questions of the papers: whether the gain of a power law is DC, and what omission recovers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.experiments.verdicts import FRECHET, Estimate, Measured, gain, no_verdict, verdict

WHOLE, ZERO, SLOPE = "papers -.06", "zero frequency of -.06 only", "slope of -.06 only"


def attribute(measured: Measured, white: str = "white") -> list[str]:
    """Conclude whether the papers' power law owes its gain over white noise to its zero frequency or its slope."""
    whole, zero, slope = (gain(measured, arm, white) for arm in (WHOLE, ZERO, SLOPE))
    if whole is None:
        return [f"Is the gain DC? Not measured: `{WHOLE}` and `{white}` have no seed in common."]
    if not whole.enough:
        return [f"Is the gain DC? {no_verdict(whole.count)} ({_moved(whole)}, `{WHOLE}` against `{white}`)."]
    if not whole.positive:
        return _no_gain(whole, {ZERO: zero, SLOPE: slope}, white)
    ahead = gain(measured, ZERO, SLOPE)
    if zero is None or slope is None or ahead is None or not (zero.enough and slope.enough and ahead.enough):
        return [f"`{WHOLE}` gains {whole}. Is that DC? Not measured: one of the two parts has too few seeds."]
    fractions = {name: _of_whole(measured, name, white) for name in (ZERO, SLOPE)}
    parts = (
        f"of {whole}, `{ZERO}` gains {zero}{fractions[ZERO]} and `{SLOPE}` {slope}{fractions[SLOPE]}; "
        f"the first is better than the second by {ahead}"
    )
    return [f"{_carrier(zero, slope, ahead)}; {parts}."]


def _no_gain(whole: Estimate, parts: Mapping[str, Estimate | None], white: str) -> list[str]:
    by = f"({_moved(whole)} in Fréchet distance)"
    answer = (
        f"**There is no gain to be DC**: `{WHOLE}` is worse than `{white}` {by}"
        if whole.detected
        else f"**No gain is detected, so no gain can be DC**: no difference between `{WHOLE}` and `{white}` "
        f"is detected {by}"
    )
    said = [f"`{name}`: {verdict(part)} ({_moved(part)})" for name, part in parts.items() if part is not None]
    return [
        f"Is the gain DC? {answer}.",
        *([f"Its parts, compared with `{white}`: {'; '.join(said)}."] if said else []),
    ]


def _carrier(zero: Estimate, slope: Estimate, ahead: Estimate) -> str:
    """Conclude from the gain of each part, and from how far the zero frequency is `ahead` of the slope."""
    if zero.positive and slope.positive:
        return "**The gain is partly DC**: each part has a gain by itself"
    if zero.positive and ahead.positive:
        return (
            "**The gain is DC**: it comes from the zero frequency alone; the slope has no detectable gain, and the two "
            "differ"
        )
    if slope.positive and ahead.detected and ahead.mean < 0:
        return (
            "**The gain is not DC**: it comes from the slope alone; the zero frequency has no detectable gain, and "
            "the two differ"
        )
    why = "one part gains, but no difference between the two is detected" if zero.positive or slope.positive else ""
    return f"**It is undecided whether the gain is DC**: {why or 'neither part gains enough by itself'}"


def _of_whole(measured: Measured, part: str, white: str) -> str:
    fraction = _fraction(measured, white, part, WHOLE)
    return f" ({fraction.percent()})" if fraction is not None else ""


def _moved(better_by: Estimate) -> str:
    return f"{-better_by.mean:+.3f} ± {better_by.error:.3f}" if better_by.count > 1 else f"{-better_by.mean:+.3f}"


def _fraction(measured: Measured, start: str, arm: str, goal: str) -> Estimate | None:
    """Return the fraction of the difference between `start` and `goal` that `arm` achieves: a ratio of means."""
    begun, reached, aimed = (
        {seed: row[FRECHET.key] for seed, row in measured.get(name, {}).items() if FRECHET.key in row}
        for name in (start, arm, goal)
    )
    seeds = [seed for seed in sorted(reached) if seed in begun and seed in aimed]
    return Estimate.ratio([begun[s] - reached[s] for s in seeds], [begun[s] - aimed[s] for s in seeds])


KINDS = (
    "papers' omission",
    "omitted from the noise only",
    "projected",
    "restored",
    "restored by samples",
    "restored in the network",
    "restored through a floor",
    "real without it",
)
"""Arms of selective omission; the last one is the best possible result of omitting the band."""
TARGET = 0.8
CLEAN = "clean"
NOT_MET = "**Not met**"


def bands(names: Iterable[str]) -> list[str]:
    """Return the bands in the names of arms of selective omission, `BAND: ARM`."""
    return list(dict.fromkeys(arm.split(": ")[0] for arm in names if ": " in arm))


def closed(measured: Measured, band: str, kind: str) -> Estimate | None:
    """Return the fraction of the gap between white noise on corrupted data and clean training that an arm closes."""
    return _fraction(measured, f"{band}: white", f"{band}: {kind}", CLEAN)


def percent(fraction: Estimate | None) -> str:
    """Format a fraction and its standard error in per cent, and the number of seeds if it is too small."""
    if fraction is None:
        return "not measured"
    few = "" if fraction.enough else f" ({fraction.count} seed{'s' if fraction.count > 1 else ''})"
    return fraction.percent() + few


def closing(measured: Measured, named: Sequence[str]) -> list[str]:
    """Report for each band how much of the gap between white noise on corrupted data and clean training is closed."""
    said = []
    for band in named:
        gap = gain(measured, CLEAN, f"{band}: white")
        kinds = [kind for kind in KINDS if f"{band}: {kind}" in measured]
        if gap is None or not kinds:
            continue
        if gap.enough and not gap.positive:
            said.append(f"{band}: the corruption has no detectable cost ({gap}), so there is no gap to close.")
            continue
        few = "" if gap.enough else f" ({no_verdict(gap.count)})"
        fractions = ", ".join(f"`{kind}` {percent(closed(measured, band, kind))}" for kind in kinds)
        said.append(
            f"{band}: the gap between white noise and clean training is {gap}{few}. Fractions closed: {fractions}."
        )
    return said


def aims(measured: Measured, expected: Sequence[str]) -> list[str]:
    """Report whether selective omission meets its aims in the bands in which it should be measured."""
    return [
        "Aim: `projected` is better than `papers' omission` by more than 2 standard errors in most bands. "
        + _reached({band: _beaten(measured, band) for band in expected}, len(expected) // 2 + 1),
        f"Aim: `restored` closes more than {100 * TARGET:.0f} % of the gap between white noise and clean training, by "
        "more than 2 standard errors, in every band. "
        + _reached({band: _restored(measured, band) for band in expected}, len(expected)),
    ]


Judged = tuple[bool | None, str]
"""Whether an aim is met in a band (None if undecided), and the reason."""
MISSING = "not measured"


def _beaten(measured: Measured, band: str) -> Judged:
    better_by = gain(measured, f"{band}: projected", f"{band}: papers' omission")
    if better_by is None:
        return None, MISSING
    if not better_by.enough:
        return None, no_verdict(better_by.count)
    return better_by.positive, f"{'met' if better_by.positive else 'not met'}, better by {better_by}"


def _restored(measured: Measured, band: str) -> Judged:
    gap, fraction = gain(measured, CLEAN, f"{band}: white"), closed(measured, band, "restored")
    if gap is None or fraction is None:
        return None, MISSING
    if not (gap.enough and fraction.enough):
        return None, no_verdict(min(gap.count, fraction.count))
    if not gap.positive:
        return None, f"undecided, no gap is detected ({gap})"
    if fraction.mean - 2 * fraction.error > TARGET:
        return True, f"met, {percent(fraction)}"
    if fraction.mean + 2 * fraction.error < TARGET:
        return False, f"not met, {percent(fraction)}"
    return None, f"undecided, {percent(fraction)}"


def _reached(judged: Mapping[str, Judged], needed: int) -> str:
    """Conclude from all bands; a conclusion is drawn as soon as the undecided bands can no longer change it."""
    met = [each for each, _ in judged.values()]
    unfinished = [why for _, why in judged.values() if why == MISSING or "no verdict" in why]
    if met.count(True) >= needed:
        said = "**Met**"
    elif len(met) - met.count(False) < needed:
        said = NOT_MET
    else:
        said = "**Not measured in all bands**" if unfinished else "**Undecided**"
    return f"{said}: {'; '.join(f'{band} {why}' for band, (_, why) in judged.items())}."
