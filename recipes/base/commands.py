"""The table of all commands of `multisagd`, and how their arguments are quoted.

Imports nothing slow, so that help and completion respond at once.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_LINE = "docs/command-line.md"
"""The documentation page of all commands."""
TRAINING = "recipes.runs.settings:TrainSettings"
SAMPLES_KEPT = "completed samples are kept; the same command finds them and computes the metrics again:"
SHARDS_KEPT = "finished shards are kept, and the same command continues:"


@dataclass(frozen=True)
class Command:
    """One command.

    `summary` is its line in the list of commands; `page` is its documentation; `settings` names the class that checks
    its configuration, `configs/<name>.yaml`, as `module:class`. A command without it has its own help. Its module is
    `recipes.<name>`, with `main(arguments) -> status`. `interrupted` says what Ctrl-C leaves behind, if the command
    does not print that itself. `parallel`: several processes can share its work. `reads_run`: it only reads the run in
    its `run_dir`, so several commands may use one run at a time.
    """

    summary: str
    page: str = COMMAND_LINE
    settings: str = ""
    interrupted: str = "nothing was written, and the same command starts over:"
    parallel: bool = False
    reads_run: bool = False


COMMANDS = {
    "train": Command(
        "train a diffusion model, or continue an interrupted run", "docs/first-model.md", TRAINING,
        "nothing was saved yet; the same command starts from the beginning:", parallel=True,
    ),
    "sample": Command(
        "draw samples from a trained run", "docs/first-model.md", "recipes.runs.settings:SampleSettings",
        "no sample was written; the same command draws the same samples:", parallel=True,
        reads_run=True,
    ),
    "adopt": Command(
        "convert a model of the diffusers library, to fine-tune it", "docs/tutorials/fine-tuning.md",
        "recipes.adopt:AdoptSettings",
    ),
    "export": Command(
        "write a trained model as one safetensors file and one JSON", "docs/sharing-models.md",
        "recipes.export:ExportSettings", reads_run=True,
    ),
    "inspect": Command(
        "show what a model would see: examples, round trips, spectra and noise", "docs/tutorials/your-own-modality.md",
        TRAINING,
    ),
    "analyze": Command(
        "measure a dataset's spectrum: curves, uncertainty, power law", "docs/tutorials/schedule-design.md", TRAINING,
    ),
    "design": Command(
        "design a sampler's steps, and the noise, from the data's spectrum", "docs/tutorials/schedule-design.md",
        "recipes.design:DesignSettings",
    ),
    "explore": Command(
        "serve an interactive page that shows the effect of a spectrum", "docs/explore.md",
        "recipes.explore:ExploreSettings",
    ),
    "encode": Command(
        "encode a dataset into latents once, to train on them", "docs/tutorials/latents.md",
        "recipes.encode:EncodeSettings", SHARDS_KEPT,
    ),
    "pack": Command(
        "pack a folder of files into tar shards, for storage that likes few large files",
        "docs/tutorials/data-at-scale.md", "recipes.pack:PackSettings", SHARDS_KEPT,
    ),
    "evaluate": Command(
        "evaluate a run's samples by every metric: distances, spectra, variety, copies", "docs/evaluation.md",
        "recipes.evaluation.task:EvaluateSettings", SAMPLES_KEPT, parallel=True, reads_run=True,
    ),
    "report": Command(
        "write one HTML page about a run: losses, samples, spectra, process, evaluations", "docs/reports.md",
        "recipes.report:ReportSettings", reads_run=True,
    ),
    "launch": Command(
        "run a command on several GPUs or machines, or for several values", "docs/clusters.md",
        "recipes.launch:LaunchSettings", "nothing was launched:",
    ),
    "demo": Command(
        "train on small digits with white and with shaped noise, and compare (minutes)", "docs/start.md",
        "recipes.demo:DemoSettings", "what was trained is kept, and the same command continues:",
    ),
    "doctor": Command("check whether everything works on this machine, and what is missing"),
    "list": Command("list the available choices: spectra, modalities, samplers, experiments, …"),
    "completion": Command("print a script with which your shell completes commands, choices and keys"),
}  # fmt: skip
"""Every command by name. Those with settings have a configuration; the others are about multisagd itself."""
CONFIGURED = {name: command for name, command in COMMANDS.items() if command.settings}
TOOLS = {name: command for name, command in COMMANDS.items() if not command.settings}


def setting(key: str, value: str | Path) -> str:
    """Return `key=value` quoted for a shell and for Hydra, so that both read back the same text."""
    return shlex.quote(f"{key}={written(str(value))}")


def written(text: str) -> str:
    """Return a text as a value in Hydra's grammar, quoted where Hydra would read something else."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    try:
        if text and "${" not in text and OverridesParser.create().parse_override(f"key={text}").value() == text:
            return text
    except HydraException:
        pass
    # Between quotation marks too, ${…} is a reference to another key, unless an odd number of backslashes precedes it.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(literal, Quote.double).with_quotes()


def typed(value: Any) -> str:
    """Return a plain value as typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
