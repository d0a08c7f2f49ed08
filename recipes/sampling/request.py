"""How samples are drawn: everything that `generate` needs besides the model and what each sample is to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from multisagd import Denoiser, Flat, Process
from multisagd.analysis.design import DesignedSteps
from multisagd.mixing import Refinement
from multisagd.samplers import Sampler
from multisagd.sampling import Spacing
from recipes.base.errors import RecipeError
from recipes.config.compose import Config
from recipes.runs.assembly import Assembly, check_refinement, check_sampler
from recipes.runs.settings import Guidance, SampleSettings
from recipes.runtime.device import Runtime
from recipes.sampling.residual import band_residual

NO_REFINEMENT = Refinement(Flat(), iterations=0)


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """How samples are drawn: `batch` of them at a time, in `steps` of the sampler, or at `times` if they are given.

    Those of a restoring denoiser end with a sample of the band where there is a `residual`, the power that the estimate
    of that band lacks, and else with its mean.
    """

    sampler: Sampler
    steps: int = 20
    spacing: Spacing = "time"
    times: Tensor | None = None
    guidance: Guidance = field(default_factory=Guidance)
    refinement: Refinement = NO_REFINEMENT
    residual: Tensor | None = None
    batch: int = 64


def sampling_request(
    settings: SampleSettings, denoiser: Denoiser, run_config: Config, assembly: Assembly, runtime: Runtime
) -> SamplingRequest:
    """Return what the settings of a sampling ask for, of a run with this configuration.

    Raises:
        RecipeError: for a sampler or refinement that does not suit the run's process, or steps that it cannot take.
    """
    process, builder = denoiser.process, assembly.builder
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=assembly.statistics)  # type: ignore[type-abstract]
    check_sampler(sampler, process)
    refinement = builder.build(settings.refine, Refinement, "refine")
    check_refinement(refinement, process.grid)
    _, times = designed_steps(settings.steps_file, process)
    residual = band_residual(denoiser, settings, run_config, assembly, runtime)
    return SamplingRequest(
        sampler, settings.steps, settings.spacing, times, settings.guidance, refinement, residual, settings.batch
    )


def designed_steps(path: Path | None, process: Process) -> tuple[DesignedSteps | None, Tensor | None]:
    """Return designed steps and their times in a process's schedule, or None for both without a file.

    Raises:
        RecipeError: if the file holds none, or the schedule does not reach them.
    """
    if path is None:
        return None, None
    try:
        designed = DesignedSteps.load(path)
        return designed, designed.times(process.schedule)
    except (OSError, ValueError) as error:
        raise RecipeError(f"steps_file: {error}") from error
