"""The table of all `multisagd` commands, and functions that quote their arguments.

This module imports nothing that loads slowly, so that help and completion respond quickly.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_LINE = "docs/command-line.md"
"""The documentation page for all commands."""
TRAINING = "recipes.runs.settings:TrainSettings"
SAMPLES_KEPT = "a complete set of samples is kept; the same command uses it again and repeats the evaluation:"
SHARDS_KEPT = "finished shards are kept, and the same command continues:"


@dataclass(frozen=True)
class Command:
    """A `multisagd` command, implemented by the function `main(arguments) -> status` of the module `recipes.<name>`.

    `summary` is one line for the list of commands, and `page` is its documentation page. `settings` is the class that
    checks its configuration, `configs/<name>.yaml`, as `module:class`; a command without settings prints its own help.
    `interrupted` is printed after Ctrl-C and says what is kept, unless the command prints its own message. `parallel`
    says whether several processes can share the work, and `reads_run` whether the command only reads the run in
    `run_dir`, so that several processes may use the run at once.
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
        "nothing was saved yet, and the same command starts from the beginning:", parallel=True,
    ),
    "sample": Command(
        "draw samples from a trained run", "docs/first-model.md", "recipes.runs.settings:SampleSettings",
        "no sample was written; the same command draws the same samples from the beginning:", parallel=True,
        reads_run=True,
    ),
    "adopt": Command(
        "import a diffusers model, to continue its training with different noise",
        "docs/tutorials/fine-tuning.md",
        "recipes.adopt:AdoptSettings",
    ),
    "export": Command(
        "write a trained model as a safetensors file, a JSON file and a model card", "docs/sharing-models.md",
        "recipes.export:ExportSettings", reads_run=True,
    ),
    "inspect": Command(
        "show the input of a model: examples, round trips, spectra and noise", "docs/tutorials/your-own-modality.md",
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
        "serve a web page for editing a spectrum interactively", "docs/explore.md", "recipes.explore:ExploreSettings",
    ),
    "encode": Command(
        "encode a dataset into latents once, to train on them", "docs/tutorials/latents.md",
        "recipes.encode:EncodeSettings", SHARDS_KEPT,
    ),
    "pack": Command(
        "pack a folder of files into tar shards, for storage that works best with few large files",
        "docs/tutorials/data-at-scale.md", "recipes.pack:PackSettings", SHARDS_KEPT,
    ),
    "evaluate": Command(
        "evaluate a run's samples: distances, spectra, diversity, copies of training data", "docs/evaluation.md",
        "recipes.evaluation.task:EvaluateSettings", SAMPLES_KEPT, parallel=True, reads_run=True,
    ),
    "report": Command(
        "write one HTML page about a run: losses, samples, spectra, process, evaluations", "docs/reports.md",
        "recipes.report:ReportSettings", reads_run=True,
    ),
    "launch": Command(
        "run a command on several GPUs or machines, or once for each of several values", "docs/clusters.md",
        "recipes.launch:LaunchSettings", "nothing was launched:",
    ),
    "demo": Command(
        "train on small digits with white and with shaped noise, and compare (takes minutes)", "docs/start.md",
        "recipes.demo:DemoSettings", "checkpoints are kept, and the same command continues:",
    ),
    "doctor": Command("check the installation, the GPU and the data on this machine, and list what is missing"),
    "list": Command("list the available choices: spectra, modalities, samplers, experiments, …"),
    "completion": Command("print a script for shell completion of commands, choices and keys"),
}  # fmt: skip
"""All commands by name. Commands with settings have a configuration; the others concern multisagd itself."""
CONFIGURED = {name: command for name, command in COMMANDS.items() if command.settings}
TOOLS = {name: command for name, command in COMMANDS.items() if not command.settings}


def setting(key: str, value: str | Path) -> str:
    """Return `key=value`, quoted so that a shell and Hydra read the same string back."""
    return shlex.quote(f"{key}={written(str(value))}")


def written(text: str) -> str:
    """Return a string as a value in Hydra's grammar, quoted if it would otherwise be parsed as something else."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    try:
        if text and "${" not in text and OverridesParser.create().parse_override(f"key={text}").value() == text:
            return text
    except HydraException:
        pass
    # ${…} is a reference to another key even in quotation marks, unless an odd number of backslashes precedes it.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(literal, Quote.double).with_quotes()


def typed(value: Any) -> str:
    """Return a plain value as it is typed on the command line; text is not quoted."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
