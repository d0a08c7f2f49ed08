"""Run a command in several processes, or once for each value of a sweep: `multisagd launch …`.

The configuration of every job is composed and checked here, before any job runs or is submitted. RecipeError is raised
if a configuration is invalid, a batch cannot be divided among the processes, several jobs use one folder, several
processes are requested for a single-process command, or the cluster cannot be reached from here.
"""

import itertools
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.base.console import show
from recipes.base.errors import RecipeError, nearest
from recipes.cli.command import run_command, take_option
from recipes.cli.help import command_help
from recipes.clusters.cluster import Cluster, Job, check_printable
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.run import Run
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import Rank


@dataclass(frozen=True)
class LaunchSettings:
    """All keys of `configs/launch.yaml`."""

    cluster: Cluster
    command: str

    def __post_init__(self) -> None:
        if self.command not in CONFIGURED or self.command == "launch":
            raise ValueError(f"command={self.command}: there is no such command{nearest(self.command, CONFIGURED)}")
        if self.cluster.world > 1 and not COMMANDS[self.command].parallel:
            raise ValueError(f"{self.command} runs in one process, but {self.cluster.world} were requested")


def launch(arguments: Sequence[str]) -> int:
    """Launch the jobs that the arguments describe, or print them with `--show`, and return the exit status."""
    words = [word for word in arguments if word != "--show"]
    folder = take_option(words, "--config-dir")
    settings, jobs = planned(words, folder)
    if "--show" in arguments:
        show(settings.cluster.show(jobs))
        return 0
    return settings.cluster.launch(jobs)


def planned(words: Sequence[str], folder: str | None = None) -> tuple[LaunchSettings, list[Job]]:
    """Return the settings and the jobs that the words describe, after checking every job."""
    own, others = [], []
    for override in configuration.parse(words):
        if override.key_or_group.split(".")[0] in ("cluster", "command"):
            own.append(override.input_line or "")
        else:
            others.append(override)
    settings = Builder().settings(LaunchSettings, configuration.load("launch", own, folder), "")
    for name, value in vars(settings.cluster).items():
        check_printable(f"cluster.{name}", value)
    check_printable("this folder", str(Path.cwd()))
    options = [] if folder is None else ["--config-dir", str(Path(folder).absolute())]
    jobs: list[Job] = []
    folders: dict[str | None, Job] = {}
    for combination in itertools.product(*map(sweep_values, others)):
        job = Job(settings.command, (*combination, *options))
        run_dir = checked(settings, combination, folder).get("run_dir")
        if run_dir in folders and not COMMANDS[settings.command].reads_run:
            conflict = f"two jobs would use {run_dir}: {folders[run_dir]} and {job}"
            raise RecipeError(f"{conflict}. Name the folder after what differs: 'run_dir=runs/sweep/${{seed}}'")
        folders[run_dir] = job
        jobs.append(job)
    return settings, jobs


def sweep_values(override: Override) -> list[str]:
    """Return one argument for each value of a sweep; an argument without a sweep is returned unchanged."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except (HydraException, AssertionError) as error:
        raise RecipeError(f"{override.input_line}: list the values, as in 0,1,2, or write range(0,3)") from error


def checked(settings: LaunchSettings, words: Sequence[str], folder: str | None) -> Config:
    """Return the configuration of one job, after making the command's own checks, except those that need the data."""
    config = configuration.load(settings.command, words, folder)
    kind = pkgutil.resolve_name(COMMANDS[settings.command].settings)
    builder = Builder(tuple(config.get("allow_targets", ())))
    own = {field.name for field in fields(kind)}
    typed = builder.settings(kind, {key: value for key, value in config.items() if key in own}, "")
    if settings.command == "train":
        process = Rank(0, settings.cluster.world, 0)
        Runtime(torch.device("cpu"), typed.engine, process).share(typed.training.batch, typed.training.accumulation)
        Run(typed.run_dir).check_config(config, begun=any((typed.run_dir / "checkpoints").glob("*")))
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help") for word in words):
        show(command_help("launch", words))
        return 0
    again = f"; {COMMANDS['launch'].interrupted}\n  {shlex.join(['multisagd', 'launch', *words])}"
    return run_command(lambda: launch(words), lambda reported: again)


if __name__ == "__main__":
    sys.exit(main())
