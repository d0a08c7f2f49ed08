"""What the two questions of the papers come to: whether the gain of a power law is DC, and what omission recovers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.experiments.verdicts import FRECHET, Estimate, Measured, gain, no_verdict, verdict

WHOLE, ZERO, SLOPE = "papers -.06", "zero frequency of -.06 only", "slope of -.06 only"


def attribute(measured: Measured, white: str = "white") -> list[str]:
    """Say which part of the papers' power law carries its gain over white noise, its zero frequency or its slope."""
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
    shares = {name: _of_whole(measured, name, white) for name in (ZERO, SLOPE)}
    parts = (
        f"of {whole}, `{ZERO}` gains {zero}{shares[ZERO]} and `{SLOPE}` {slope}{shares[SLOPE]}; "
        f"the first is ahead of the second by {ahead}"
    )
    return [f"{_carrier(zero, slope, ahead)}; {parts}."]


def _no_gain(whole: Estimate, parts: Mapping[str, Estimate | None], white: str) -> list[str]:
    by = f"({_moved(whole)} in Fréchet distance)"
    answer = (
        f"**There is no gain to be DC**: `{WHOLE}` is worse than `{white}` {by}"
        if whole.detected
        else f"**No gain is detected, so no gain can be DC**: no difference of `{WHOLE}` from `{white}` is "
        f"detected {by}"
    )
    said = [f"`{name}`: {verdict(part)} ({_moved(part)})" for name, part in parts.items() if part is not None]
    return [f"Is the gain DC? {answer}.", *([f"Of its parts against `{white}`, {'; '.join(said)}."] if said else [])]


def _carrier(zero: Estimate, slope: Estimate, ahead: Estimate) -> str:
    """Conclude from what either part gains, and from how far the zero frequency is `ahead` of the slope."""
    if zero.positive and slope.positive:
        return "**The gain is partly DC**: either part gains by itself"
    if zero.positive and ahead.positive:
        return (
            "**The gain is DC**: the zero frequency carries it alone, the slope has no detectable gain, and the two "
            "differ"
        )
    if slope.positive and ahead.detected and ahead.mean < 0:
        return (
            "**The gain is not DC**: the slope carries it alone, the zero frequency has no detectable gain, and "
            "the two differ"
        )
    why = "one part gains, but no difference of the two is detected" if zero.positive or slope.positive else ""
    return f"**It is undecided whether the gain is DC**: {why or 'neither part gains enough by itself'}"


def _of_whole(measured: Measured, part: str, white: str) -> str:
    share = _share(measured, white, part, WHOLE)
    return f" ({share.percent()})" if share is not None else ""


def _moved(better_by: Estimate) -> str:
    return f"{-better_by.mean:+.3f} ± {better_by.error:.3f}" if better_by.count > 1 else f"{-better_by.mean:+.3f}"


def _share(measured: Measured, start: str, arm: str, goal: str) -> Estimate | None:
    """Return which share of the way from one arm to another a third one goes: a ratio of mean paired differences."""
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
"""Arms of selective omission, the last of which is the best that can come of leaving the band out."""
TARGET = 0.8
CLEAN = "clean"
NOT_MET = "**Not met**"


def bands(names: Iterable[str]) -> list[str]:
    """Return the bands that arms of selective omission are named after, `BAND: ARM`."""
    return list(dict.fromkeys(arm.split(": ")[0] for arm in names if ": " in arm))


def closed(measured: Measured, band: str, kind: str) -> Estimate | None:
    """Return which share of the gap between white noise on corrupted data and clean training an arm closes."""
    return _share(measured, f"{band}: white", f"{band}: {kind}", CLEAN)


def percent(share: Estimate | None) -> str:
    """Write a share and its standard error, and of how many seeds it is if they are few."""
    if share is None:
        return "not measured"
    few = "" if share.enough else f" ({share.count} seed{'s' if share.count > 1 else ''})"
    return share.percent() + few


def closing(measured: Measured, named: Sequence[str]) -> list[str]:
    """Say in each band how much of the gap between white noise on corrupted data and clean training is closed."""
    said = []
    for band in named:
        gap = gain(measured, CLEAN, f"{band}: white")
        kinds = [kind for kind in KINDS if f"{band}: {kind}" in measured]
        if gap is None or not kinds:
            continue
        if gap.enough and not gap.positive:
            said.append(f"{band}: the corruption has no detectable cost ({gap}): there is no gap to close.")
            continue
        few = "" if gap.enough else f" ({no_verdict(gap.count)})"
        shares = ", ".join(f"`{kind}` {percent(closed(measured, band, kind))}" for kind in kinds)
        said.append(f"{band}: of the gap of {gap} between white noise and clean training{few} are closed by {shares}.")
    return said


def aims(measured: Measured, expected: Sequence[str]) -> list[str]:
    """Say whether selective omission reaches what was aimed at, in the bands that it should be measured in."""
    return [
        "Aim: `projected` is better than `papers' omission` by more than 2 standard errors in most bands. "
        + _reached({band: _beaten(measured, band) for band in expected}, len(expected) // 2 + 1),
        f"Aim: `restored` closes more than {100 * TARGET:.0f} % of the gap between white noise and clean training, by "
        "more than 2 standard errors, in every band. "
        + _reached({band: _restored(measured, band) for band in expected}, len(expected)),
    ]


Judged = tuple[bool | None, str]
"""Whether an aim is met in a band, None if that is undecided, and why."""
MISSING = "not measured"


def _beaten(measured: Measured, band: str) -> Judged:
    better_by = gain(measured, f"{band}: projected", f"{band}: papers' omission")
    if better_by is None:
        return None, MISSING
    if not better_by.enough:
        return None, no_verdict(better_by.count)
    return better_by.positive, f"{'met' if better_by.positive else 'not met'}, better by {better_by}"


def _restored(measured: Measured, band: str) -> Judged:
    gap, share = gain(measured, CLEAN, f"{band}: white"), closed(measured, band, "restored")
    if gap is None or share is None:
        return None, MISSING
    if not (gap.enough and share.enough):
        return None, no_verdict(min(gap.count, share.count))
    if not gap.positive:
        return None, f"undecided, no gap is detected ({gap})"
    if share.mean - 2 * share.error > TARGET:
        return True, f"met, {percent(share)}"
    if share.mean + 2 * share.error < TARGET:
        return False, f"not met, {percent(share)}"
    return None, f"undecided, {percent(share)}"


def _reached(judged: Mapping[str, Judged], needed: int) -> str:
    """Conclude from the bands: what is already decided stays so whatever the open ones come to."""
    met = [each for each, _ in judged.values()]
    unfinished = [why for _, why in judged.values() if why == MISSING or "no verdict" in why]
    if met.count(True) >= needed:
        said = "**Met**"
    elif len(met) - met.count(False) < needed:
        said = NOT_MET
    else:
        said = "**Not measured in all bands**" if unfinished else "**Undecided**"
    return f"{said}: {'; '.join(f'{band} {why}' for band, (_, why) in judged.items())}."
