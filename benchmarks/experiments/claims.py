"""What the two questions of the papers come to: whether the gain of a power law is DC, and what omission recovers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from benchmarks.experiments.verdicts import FRECHET, Estimate, Measured, gain, verdict

WHOLE, ZERO, SLOPE = "papers -.06", "zero frequency of -.06 only", "slope of -.06 only"


def attribute(measured: Measured, white: str = "white") -> list[str]:
    """Say which part of the papers' power law carries its gain over white noise, its zero frequency or its slope."""
    whole, zero, slope = (gain(measured, arm, white) for arm in (WHOLE, ZERO, SLOPE))
    if whole is None:
        return [f"Is the gain DC? Not measured: `{WHOLE}` and `{white}` have too few seeds in common."]
    if not whole.told or whole.mean < 0:
        seen = "is worse than" if whole.told else "gains nothing that can be told over"
        said = f"`{WHOLE}` {seen} `{white}` ({_moved(whole)} in Fréchet distance)"
        parts = [f"`{name}`: {verdict(part)} ({_moved(part)})" for name, part in ((ZERO, zero), (SLOPE, slope)) if part]
        return [
            f"Is the gain DC? **There is no gain to be DC**: {said}.",
            *([f"Of its parts against `{white}`, {'; '.join(parts)}."] if parts else []),
        ]
    if zero is None or slope is None:
        return [f"`{WHOLE}` gains {whole}. Is that DC? Not measured: one of the two parts has too few seeds."]
    shares = {name: f"{part} ({100 * part.mean / whole.mean:.0f} %)" for name, part in ((ZERO, zero), (SLOPE, slope))}
    parts_said = f"of {whole}, `{ZERO}` gains {shares[ZERO]} and `{SLOPE}` {shares[SLOPE]}"
    alone = (zero.told and zero.mean > 0, slope.told and slope.mean > 0)
    conclusion = {
        (
            True,
            False,
        ): "**The gain is DC**: the zero frequency carries it alone, and the slope nothing that can be told",
        (
            False,
            True,
        ): "**The gain is not DC**: the slope carries it alone, and the zero frequency nothing that can be told",
        (True, True): "**The gain is partly DC**: either part gains by itself",
        (False, False): "**It cannot be told whether the gain is DC**: neither part gains enough by itself",
    }[alone]
    return [f"{conclusion}; {parts_said}."]


def _moved(better_by: Estimate) -> str:
    return f"{-better_by.mean:+.3f} ± {better_by.error:.3f}"


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


def closed(measured: Measured, band: str, kind: str) -> list[float]:
    """Return which share of the gap between white noise on corrupted data and clean training an arm closes, by seed."""
    names = (f"{band}: white", f"{band}: {kind}", CLEAN)
    white, arm, clean = (
        {seed: row[FRECHET.key] for seed, row in measured.get(name, {}).items() if FRECHET.key in row} for name in names
    )
    seeds = [seed for seed in sorted(arm) if seed in white and seed in clean and white[seed] != clean[seed]]
    return [(white[seed] - arm[seed]) / (white[seed] - clean[seed]) for seed in seeds]


def percent(values: Sequence[float]) -> str:
    """Write the mean of shares and its standard error in percent."""
    if not values:
        return "not measured"
    estimate = Estimate.of(values)
    return (
        f"{100 * mean(values):.0f} %"
        if estimate is None
        else f"{100 * estimate.mean:.0f} ± {100 * estimate.error:.0f} %"
    )


def closing(measured: Measured, named: Sequence[str]) -> list[str]:
    """Say in each band how much of the gap between white noise on corrupted data and clean training is closed."""
    said = []
    for band in named:
        gap = gain(measured, CLEAN, f"{band}: white")
        kinds = [kind for kind in KINDS if f"{band}: {kind}" in measured]
        if gap is None or not kinds:
            continue
        if not gap.told or gap.mean < 0:
            said.append(f"{band}: the corruption costs nothing that can be told ({gap}): there is no gap to close.")
        else:
            shares = ", ".join(f"`{kind}` {percent(closed(measured, band, kind))}" for kind in kinds)
            said.append(f"{band}: of the gap of {gap} between white noise and clean training are closed by {shares}.")
    return said


def aims(measured: Measured, expected: Sequence[str]) -> list[str]:
    """Say whether selective omission reaches what was aimed at, in the bands that it should be measured in."""
    gains = [gain(measured, f"{band}: projected", f"{band}: papers' omission") for band in expected]
    beaten = [each is not None and each.told and each.mean > 0 for each in gains]
    restored = [closed(measured, band, "restored") for band in expected]
    reached = [bool(shares) and mean(shares) >= TARGET for shares in restored]
    return [
        "Aim: `projected` is better than `papers' omission` by more than 2 standard errors in most bands. "
        + _reached(beaten, [each is not None for each in gains], 2 * sum(beaten) > len(expected)),
        f"Aim: `restored` closes at least {100 * TARGET:.0f} % of the gap between white noise and clean training in "
        "every band. " + _reached(reached, [bool(shares) for shares in restored], all(reached)),
    ]


def _reached(bands_reached: list[bool], seen: list[bool], met: bool) -> str:
    count = f"in {sum(bands_reached)} of {len(bands_reached)} bands"
    if all(seen):
        return f"{'**Met**' if met else NOT_MET}: {count}."
    return f"**Not measured in all bands**: {count} so far, {seen.count(False)} missing."
