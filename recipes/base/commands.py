"""The commands of `multisagd`, in one table that all others read, and how their words are written.

Nothing heavy is imported, so that help and completion answer at once.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_LINE = "docs/command-line.md"
"""The page about all commands."""
TRAINING = "recipes.runs.settings:TrainSettings"
SAMPLES_KEPT = "samples that were drawn to the last are kept; the same command finds them, and measures anew:"
SHARDS_KEPT = "finished shards are kept, and the same command continues:"


@dataclass(frozen=True)
class Command:
    """One command.

    `summary` is its line in the list of all; `page` is where to read more; `settings` names the class that checks its
    configuration, `configs/<name>.yaml`, as `module:class`. A command without one explains itself. Its module is
    `recipes.<name>`, with `main(arguments) -> status`. `interrupted` says what Ctrl-C leaves behind, where the command
    itself does not say it. `parallel`: several processes can share its work. `reads_run`: its `run_dir` is a run that
    it only reads, so that several may work on one.
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
        "nothing was saved yet, and the same command begins anew:", parallel=True,
    ),
    "sample": Command(
        "draw samples from a trained run", "docs/first-model.md", "recipes.runs.settings:SampleSettings",
        "no sample was written; the same command draws the same samples from the first on:", parallel=True,
        reads_run=True,
    ),
    "adopt": Command(
        "take over a model of the diffusers library, to train it on with other noise", "docs/tutorials/fine-tuning.md",
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
        "serve a page to drag a spectrum and see what it does", "docs/explore.md", "recipes.explore:ExploreSettings",
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
        "judge a run's samples by every metric: distances, spectra, variety, copies", "docs/evaluation.md",
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
    "doctor": Command("tell whether all works on this machine, and what is missing for what"),
    "list": Command("list what can be chosen: spectra, modalities, samplers, experiments, …"),
    "completion": Command("print what lets your shell complete commands, choices and keys"),
}  # fmt: skip
"""Every command by name. Those with settings have a configuration; the others are about multisagd itself."""
CONFIGURED = {name: command for name, command in COMMANDS.items() if command.settings}
TOOLS = {name: command for name, command in COMMANDS.items() if not command.settings}


def setting(key: str, value: str | Path) -> str:
    """Return `key=value` for a text, as it is typed into a shell: a shell and Hydra read back what it stands for."""
    return shlex.quote(f"{key}={written(str(value))}")


def written(text: str) -> str:
    """Return a text as a value in Hydra's grammar, in quotation marks where it would be read as something else."""
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
    """Return a plain value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
