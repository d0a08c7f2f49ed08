"""The folder of a training: claimed before anything is read, given its record, and described at the end."""

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from modalities.base import Dataset
from recipes.base.commands import setting
from recipes.base.errors import RecipeError
from recipes.base.files import replace_file
from recipes.base.signals import Ended
from recipes.data import contents
from recipes.runs.checkpoint import Checkpoints, SaveError
from recipes.runs.lock import Hold, check_shared, held
from recipes.runs.run import CORRUPTION, RESTORATION, Run, data_facts
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import wait_for_all
from recipes.training.setup import Job, TrainingData, TrainingModel

UNREADABLE = "unreadable.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LINGERING = 20.0
"""Seconds that the processes of an attempt before this one may take to end after what started them is gone."""
log = logging.getLogger("multisagd")


@contextmanager
def claimed(run_dir: Path, runtime: Runtime) -> Iterator[Hold | None]:
    """Hold a run's folder, in the first of all processes, and say in words what goes wrong with it.

    Raises:
        RecipeError: if it is in use or not shared by all processes, vanishes, or cannot be written any more.
    """
    patience = LINGERING if runtime.place.world > 1 else 0.0
    with held(run_dir, patience) if runtime.main else nullcontext() as hold:
        wait_for_all()
        check_shared(run_dir, patience)
        try:
            yield hold
        except Ended:
            if hold is not None and hold.new and not (run_dir / "checkpoints").exists():
                shutil.rmtree(run_dir)  # nothing was learned, and another command may take the name
            raise
        except (OSError, SaveError) as error:
            if hold is not None:
                hold.check()  # which says so if that is why
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise RecipeError(f"cannot write into {run_dir} ({error}): make room") from error
            raise


def write_record(job: Job, data: TrainingData, model: TrainingModel, checkpoints: Checkpoints, begun: bool) -> None:
    """Write down what the run is, what its data are, and that it was started now."""
    run_dir, samples = job.settings.run_dir, model.learner.samples
    for path in checkpoints.set_aside(samples):
        log.warning("%s is not continued from: it is set aside, and removed once training has passed it", path)
    run = Run(run_dir)
    run.write(job.config, data.statistics)
    if not begun:
        contents.keep(run_dir, data.dataset)
    if data.restoration is not None:
        replace_file(run_dir / RESTORATION, data.restoration.save)
    if data.corruption is not None and not begun:
        replace_file(run_dir / CORRUPTION, data.corruption.save)
    facts = data.condition.facts(data.texts)
    facts |= {"parameters": model.parameters, "data": data_facts(data.dataset)}
    facts |= {"held_out": 0 if data.held_out is None else len(data.held_out)}
    facts |= {} if model.initial is None else {"initial": model.initial}
    run.note_start(job.settings.seed, samples, job.runtime.describe(), facts)


def name_unreadable(dataset: Dataset, run_dir: Path) -> None:
    """Write down which files could not be read, where there are any, and a folder and room for it."""
    try:
        if run_dir.is_dir():
            dataset.save_unreadable(run_dir / UNREADABLE)
    except OSError as error:
        log.warning("cannot write %s: %s", run_dir / UNREADABLE, error)


def ending(run_dir: Path, checkpoint: Path, dataset: Dataset) -> str:
    """Say where everything is, and how to go on."""
    lines = [
        f"done. In {run_dir}:",
        *(["  samples      samples/"] if (run_dir / "samples").is_dir() else []),
        "  metrics      metrics.jsonl",
        f"  checkpoint   {checkpoint.relative_to(run_dir)}",
        "  record       config.yaml, run.json, statistics.safetensors",
    ]
    if dataset.unreadable:
        lines.append(f"  unreadable   {len(dataset.unreadable)} files, named in {UNREADABLE}")
    return "\n".join([*lines, f"More samples: multisagd sample {setting('run_dir', run_dir)}"])
