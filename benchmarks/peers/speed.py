"""Cost of our training step and the diffusers step with the same network and data, in interleaved, paired repeats."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.peers.arms import peers
from benchmarks.peers.setting import Setting
from benchmarks.timing import interleave, machine, milliseconds, ratio

BATCHES = 50
"""Number of batches prepared beforehand and used in turn, so that no step waits for data."""


def compare_speed(setting: Setting, coloured: Setting, repeats: int) -> dict[str, Any]:
    """Time whole steps (loss, gradient, clipping, optimiser, average of weights) of our training and of diffusers.

    `coloured` is one of our settings with different noise. Returns medians in milliseconds, and quartiles of the ratio
    of paired times: above 1, ours is faster.
    """
    made = list(itertools.islice(setting.batches(), BATCHES))
    white, shaped = (itertools.cycle(made) for _ in range(2))
    theirs = itertools.cycle(made)
    ours, ours_coloured = setting.learner(), coloured.learner()
    loop = setting.peer(next(iter(peers(setting.settings.training).values())))
    times = interleave(
        {
            "ours, white": lambda: ours.step([next(white)]),
            "ours, coloured": lambda: ours_coloured.step([next(shaped)]),
            "diffusers": lambda: loop.step(next(theirs)),
        },
        repeats,
    )
    return {
        "milliseconds": {name: round(milliseconds(times, name), 3) for name in times},
        "diffusers_over_ours": ratio(times, "diffusers", "ours, white")._asdict(),
        "diffusers_over_ours_coloured": ratio(times, "diffusers", "ours, coloured")._asdict(),
        "coloured_over_white": ratio(times, "ours, coloured", "ours, white")._asdict(),
        "repeats": repeats,
        "machine": machine(),
    }
