"""Power over frequency of a run's data, its noise and its samples: over the radius, and along every axis."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from multisagd import DataStatistics, Grid
from multisagd.analysis.profiles import RADIUS, Profile, profile_of, unit_of
from multisagd.metrics.spectral import LEAST
from recipes.base.commands import setting
from recipes.config.build import Builder
from recipes.plotting.curves import Axis, Series, draw
from recipes.plotting.figures import on_logarithmic_axis
from recipes.reports.page import Block, Note, unmade
from recipes.reports.process import assembly
from recipes.reports.run import MALFORMED, Overview, SampleSet

BATCH = 32
ABOUT = (
    "Zero frequency, the mean of a datum, stands at half the lowest frequency. The noise is scaled to the data's "
    "variance."
)


def spectrum_blocks(run: Overview, sets: Sequence[SampleSet], builder: Builder) -> list[Block]:
    """Return the power of data, noise and samples, of whichever there are."""
    if run.statistics is None:
        return [Note("The spectrum of the data is measured when training begins, and is not there.")]
    powers: dict[str, Tensor] = {"data": run.statistics.power}
    notes: list[Block] = []
    try:
        powers["noise"] = run.statistics.sigma_data**2 * assembly(run, builder).process().covariance.power()
    except MALFORMED as error:
        notes.append(unmade(error))
    drawn, problems = sample_powers(run.statistics, sets[:2])
    if not sets:
        command = f"multisagd sample {setting('run_dir', run.folder)} count=256"
        problems.append(Note("There are no samples yet whose spectrum could be shown beside.", command))
    return [*spectrum_charts(powers | drawn, run.statistics.grid), *notes, *problems]


def sample_powers(data: DataStatistics, sets: Sequence[SampleSet]) -> tuple[dict[str, Tensor], list[Block]]:
    """Return the power of sets of samples about their own mean by name, and what could not be measured."""
    powers: dict[str, Tensor] = {}
    problems: list[Block] = []
    for each in sets:
        try:
            x0 = each.read(data)
            if len(x0) < 2:
                raise ValueError("one sample has no power about the mean: draw more")
            name = f"samples {len(powers) + 1}: {len(x0)}, {each.sampler}"
            powers[name] = DataStatistics.measure(x0.split(BATCH), data.grid).power
        except MALFORMED as error:
            problems.append(unmade(error))
    return powers, problems


def spectrum_charts(powers: Mapping[str, Tensor], grid: Grid, name: str = "spectrum") -> list[Block]:
    """Return a chart over the radius and one along every axis, with a curve for each power `(..., *half_shape)`.

    The first power is that of the data; those whose name begins with "samples" are also shown in decibels over it.
    """
    blocks: list[Block | None] = []
    over = "Decibels of the samples' power over the data's: 0 is the data's own."
    for place, along in enumerate((RADIUS, *grid.names) if grid.dimensions > 1 else grid.names):
        where = "over the radius" if along == RADIUS else f"along {along}"
        x = Axis(unit_of(along, grid), "log")
        curves, ratios, data = [], [], None
        for number, (key, power) in enumerate(powers.items()):
            profile = profile_of(power, grid, along)
            data = profile.power if data is None else data
            curves.append(_series(key, number, profile, profile.power, profile.power))
            if key.startswith("samples"):
                decibels = 10 * (profile.power / data).log10()
                ratios.append(_series(key, number, profile, decibels, data))
        blocks.append(draw(f"{name}-{place}", f"Power {where}", ABOUT, x, Axis("power", "log"), curves))
        title = f"Samples over data {where}"
        blocks.append(draw(f"{name}-{place}-ratio", title, over, x, Axis("dB", level=0.0), ratios))
    return [block for block in blocks if block is not None]


def _series(key: str, number: int, profile: Profile, values: Tensor, power: Tensor) -> Series:
    """Return values over frequency, without those where a power cannot be told from rounding."""
    kept = values.where(power > LEAST * power.max(), math.nan)
    return Series(key, on_logarithmic_axis(profile.frequency).tolist(), kept.tolist(), f"c{number % 8}", number)
